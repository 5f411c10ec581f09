"""How hosts are reached: Ansible's connection variables, OpenSSH arguments and ~/.ssh/config; and many hosts at once."""

import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import paramiko
import pytest

from tests.waiting import PATIENCE
from venice import hosts
from venice.errors import InputError, UnreachableError, VeniceError
from venice.hosts import DockerHost, SshOptions, over, parse_ssh_args, ssh_options


@dataclass
class Host:
    name: str
    vars: dict = field(default_factory=dict)
    address: str = ""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("-o Port=2222", {"port": ["2222"]}),
        ("-oPort=2222", {"port": ["2222"]}),
        ("-o 'Port 2222'", {"port": ["2222"]}),
        ("-o 'Port = 2222'", {"port": ["2222"]}),
        ("-J hop -C -o ForwardAgent=yes", {"proxyjump": ["hop"], "forwardagent": ["yes"]}),
        ("-i a -i b", {"identityfile": ["a", "b"]}),
        ('-o ProxyCommand="ssh -W %h:%p hop"', {"proxycommand": ["ssh -W %h:%p hop"]}),
        ("-o 'UserKnownHostsFile=/a /b'", {"userknownhostsfile": ["/a /b"]}),
    ],
)
def test_ssh_arguments(text, expected):
    assert parse_ssh_args(text) == expected


def test_defaults_are_openssh_s(home):
    options = ssh_options({}, "web-1")
    assert (options.hostname, options.port, options.strict) == ("web-1", 22, "yes")
    assert options.known_hosts[0] == str(home / ".ssh/known_hosts")


def test_variables_win_over_arguments_and_arguments_over_the_config_file(home):
    (home / ".ssh/config").write_text("Host 10.0.0.5\n  User config\n  Port 2022\n  IdentityFile ~/c\n")
    variables = {
        "ansible_host": "10.0.0.5",
        "ansible_user": "vagrant",
        "ansible_ssh_private_key_file": "~/key",
        "ansible_ssh_common_args": "-o UserKnownHostsFile=~/known -o StrictHostKeyChecking=accept-new",
        "ansible_ssh_extra_args": "-o Port=2023 -o IdentitiesOnly=yes -J ops@hop:2200,second",
    }
    options = ssh_options(variables, "lab-1")
    assert (options.hostname, options.user, options.port) == ("10.0.0.5", "vagrant", 2023)
    assert options.key_files == [str(home / "key"), str(home / "c")]
    assert options.known_hosts == [str(home / "known")]
    assert options.strict == "accept-new"
    assert options.identities_only
    assert options.jumps == ["ops@hop:2200", "second"]


def test_the_config_file_s_host_name_and_proxy_are_used(home):
    (home / ".ssh/config").write_text("Host web-1\n  HostName 10.0.0.9\n  ProxyJump gate\n")
    options = ssh_options({}, "web-1")
    assert (options.hostname, options.jumps) == ("10.0.0.9", ["gate"])


def test_a_config_file_that_is_not_there_is_an_error():
    with pytest.raises(InputError, match="/none/such"):
        ssh_options({"ansible_ssh_common_args": "-F /none/such"}, "web-1")


def test_host_key_checking_can_be_switched_off_by_variable():
    assert ssh_options({"ansible_host_key_checking": False}, "web-1").strict == "no"


def test_a_connection_that_is_not_ssh_is_refused():
    with pytest.raises(InputError, match="ansible_connection is winrm"):
        DockerHost(Host("w", {"ansible_connection": "winrm"})).run(["true"])


def test_a_closed_port_names_host_user_and_port():
    host = Host("lab-1", {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "v"})
    with pytest.raises(UnreachableError, match=r"lab-1 \(v@127.0.0.1:1\)"):
        DockerHost(host).run(["true"])


class _Server(paramiko.ServerInterface):
    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username):
        return "publickey"

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=self._serve, args=(channel, command.decode()), daemon=True).start()
        return True

    def _serve(self, channel, command):
        data = b"".join(iter(lambda: channel.recv(65536), b""))
        done = subprocess.run(["/bin/sh", "-c", command], input=data, capture_output=True, check=False)
        channel.sendall(done.stdout)
        channel.sendall_stderr(done.stderr)
        channel.send_exit_status(done.returncode)
        channel.close()


@pytest.fixture
def server(home):
    """An SSH server in a thread: (connection variables without host key, its host key)."""
    import socket

    key, client = paramiko.RSAKey.generate(2048), paramiko.RSAKey.generate(2048)
    client.write_private_key_file(str(home / "key"))
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(key)
            # a client that refuses the host key hangs up in the middle of this
            with suppress(paramiko.SSHException, OSError, EOFError):
                transport.start_server(server=_Server())

    threading.Thread(target=accept, daemon=True).start()
    yield (
        {
            "ansible_host": "127.0.0.1",
            "ansible_port": listener.getsockname()[1],
            "ansible_user": "v",
            "ansible_ssh_private_key_file": str(home / "key"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={home / 'known'} -o IdentitiesOnly=yes",
        },
        key,
    )
    listener.close()


def test_commands_run_with_input_and_every_word_quoted(server, home):
    variables, key = server
    (home / "known").write_text(f"[127.0.0.1]:{variables['ansible_port']} {key.get_name()} {key.get_base64()}\n")
    with DockerHost(Host("lab-1", variables)) as host:
        assert host.run(["cat"], stdin="x" * 300_000) == (0, "x" * 300_000, "")
        assert host.run(["printf", "%s", "a; echo $HOME 'b"])[1] == "a; echo $HOME 'b"
        assert host.run(["sh", "-c", "echo no >&2; exit 3"]) == (3, "", "no\n")
        with pytest.raises(UnreachableError, match="did not end within"):
            host.run(["sleep", "5"], timeout=0.3)


def test_an_unknown_host_key_is_refused_with_the_way_to_record_it(server):
    with pytest.raises(UnreachableError, match=r"host key SHA256:.* is in no known_hosts file") as caught:
        DockerHost(Host("lab-1", server[0])).run(["true"])
    assert "ssh-keyscan -p" in caught.value.remedy


def test_a_changed_host_key_is_refused(server, home):
    variables, _ = server
    other = paramiko.RSAKey.generate(2048)
    (home / "known").write_text(f"[127.0.0.1]:{variables['ansible_port']} {other.get_name()} {other.get_base64()}\n")
    with pytest.raises(UnreachableError, match="host key is not the one in"):
        DockerHost(Host("lab-1", variables)).run(["true"])


def test_over_gives_each_host_its_result_or_error():
    ended = threading.Event()

    def work(host):
        if host.name == "b":
            raise VeniceError("broken")
        if host.name == "c":
            ended.wait(PATIENCE)
        return host.name.upper()

    answers = over([Host("a"), Host("b"), Host("c")], work, timeout=2)
    ended.set()
    assert answers["a"] == "A"
    assert answers["b"].message == "broken"
    assert isinstance(answers["c"], UnreachableError)


def test_over_does_not_hide_a_mistake_of_venice_s_own():
    with pytest.raises(ZeroDivisionError):
        over([Host("a")], lambda host: 1 / 0)


class _Anybody(paramiko.ServerInterface):
    """Lets anybody with the password in."""

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if password == "right" else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "password"


def test_a_busy_host_has_longer_for_its_key_exchange_than_for_tcp(monkeypatch):
    monkeypatch.setattr(hosts, "TCP_SECONDS", 0.2)
    key = paramiko.ECDSAKey.generate()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            transport = paramiko.Transport(listening.accept()[0])
            transport.add_server_key(key)
            time.sleep(1)  # busy
            transport.start_server(event=threading.Event(), server=_Anybody())

        threading.Thread(target=serve, daemon=True).start()
        options = SshOptions("127.0.0.1", listening.getsockname()[1], "somebody", "right", strict="no", identities_only=True)
        client, _ = hosts._connect(options, "h")
        assert client.get_transport().is_authenticated()
        client.close()
