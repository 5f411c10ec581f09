"""Hosts over SSH: commands, and each host's Docker engine through the SDK.

Connections follow the variables of Ansible's own (`ansible_host`, `ansible_user`, `ansible_ssh_common_args`, ...), then
`~/.ssh/config`, then OpenSSH's defaults, so that a host that Ansible reaches is reached here in the same way.
"""

import getpass
import logging
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paramiko

from venice.errors import InputError, UnreachableError, VeniceError

CONNECT_SECONDS = 5
# a machine that is on takes a TCP connection at once, however busy it is; long enough for one lost packet
TCP_SECONDS = 1.5
COMMAND_SECONDS = 30

# paramiko logs a traceback for what is reported here as one sentence
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

# ssh options that are flags with a value of their own, and the -o name that they stand for
_FLAGS = {"-J": "proxyjump", "-i": "identityfile", "-p": "port", "-l": "user", "-F": "configfile", "-o": ""}


@dataclass
class SshOptions:
    """How a host is reached. Empty fields mean OpenSSH's own default."""

    hostname: str
    port: int = 22
    user: str = ""
    password: str | None = None
    key_files: list[str] = field(default_factory=list)
    known_hosts: list[str] = field(default_factory=list)
    strict: str = "yes"
    identities_only: bool = False
    jumps: list[str] = field(default_factory=list)
    proxy_command: str = ""
    config_file: str = ""


def parse_ssh_args(text: str) -> dict[str, list[str]]:
    """Options in a string of OpenSSH arguments: lower-case option name -> values in order (`-J x` is `proxyjump`)."""
    options: dict[str, list[str]] = {}
    words = iter(shlex.split(text))
    for word in words:
        flag, value = word[:2], word[2:]
        if flag not in _FLAGS:
            continue
        value = value or next(words, "")
        name = _FLAGS[flag]
        if not name:
            # OpenSSH accepts "Key=Value", "Key = Value" and "Key Value"
            name, _, value = value.replace("=", " ", 1).strip().partition(" ")
            value = value.strip()
        options.setdefault(name.lower(), []).append(value)
    return options


def _config(path: str, hostname: str) -> dict[str, Any]:
    if path.lower() == "none":
        return {}
    file = Path(path or "~/.ssh/config").expanduser()
    if not file.exists():
        if path:
            raise InputError(f"{file}: the SSH configuration file does not exist", "correct the -F option in the SSH arguments")
        return {}
    return dict(paramiko.SSHConfig.from_path(str(file)).lookup(hostname))


def _known_hosts(value: str) -> list[str]:
    return [str(Path(path).expanduser()) for path in shlex.split(value) if path.lower() != "none"]


def ssh_options(variables: dict[str, Any], name: str) -> SshOptions:
    """Options for the host `name` from its Ansible connection variables, then `~/.ssh/config`."""

    def variable(*names: str) -> Any:
        return next((variables[key] for key in names if variables.get(key) not in (None, "")), None)

    arguments: dict[str, list[str]] = {}
    for key in ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args"):
        for option, values in parse_ssh_args(str(variables.get(key) or "")).items():
            arguments.setdefault(option, []).extend(values)
    address = str(variable("ansible_ssh_host", "ansible_host") or name)
    config_file = arguments.get("configfile", [""])[0]
    config = _config(config_file, address)

    def option(key: str, default: str = "") -> str:
        # the first value wins, as in OpenSSH
        return arguments[key][0] if key in arguments else str(config.get(key, default))

    key_file = variable("ansible_ssh_private_key_file", "ansible_private_key_file")
    keys = [str(key_file)] if key_file else []
    keys += [key for key in [*arguments.get("identityfile", []), *config.get("identityfile", [])] if key not in keys]
    checking = variable("ansible_ssh_host_key_checking", "ansible_host_key_checking")
    unchecked = checking is not None and str(checking).lower() in ("false", "no", "0")
    jumps = option("proxyjump")
    proxy_command = option("proxycommand")
    return SshOptions(
        hostname=str(config.get("hostname", address)),
        port=int(variable("ansible_port", "ansible_ssh_port") or option("port", "22")),
        user=str(variable("ansible_user", "ansible_ssh_user") or option("user", getpass.getuser())),
        password=str(variable("ansible_password", "ansible_ssh_pass", "ansible_ssh_password") or "") or None,
        key_files=[str(Path(key).expanduser()) for key in keys],
        known_hosts=_known_hosts(option("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")),
        strict="no" if unchecked else option("stricthostkeychecking", "yes").lower(),
        identities_only=option("identitiesonly").lower() == "yes",
        jumps=[jump.strip() for jump in jumps.split(",")] if jumps and jumps.lower() != "none" else [],
        proxy_command="" if proxy_command.lower() == "none" else proxy_command,
        config_file=config_file,
    )


class _Refuse(paramiko.MissingHostKeyPolicy):
    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise paramiko.SSHException(f"its {key.get_name()} host key {key.fingerprint} is in no known_hosts file")


class _Accept(paramiko.MissingHostKeyPolicy):
    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """The user said StrictHostKeyChecking=no (or accept-new) for this host."""


def _jump_options(jump: str, config_file: str) -> SshOptions:
    parts = urlsplit(jump if "://" in jump else f"ssh://{jump}")
    name = parts.hostname or jump
    variables = {"ansible_host": name, "ansible_user": parts.username, "ansible_port": parts.port}
    # OpenSSH gives a jump host only its own configuration, never the target's -o options
    if config_file:
        variables["ansible_ssh_args"] = f"-F {shlex.quote(config_file)}"
    return ssh_options(variables, name)


def _route(options: SshOptions, name: str) -> list[tuple[SshOptions, str]]:
    """Every SSH server on the way, outermost first. Only the first jump host may itself stand behind others."""
    route: list[tuple[SshOptions, str]] = []
    for jump in options.jumps:
        hop = _jump_options(jump, options.config_file)
        route += [(hop, f"jump host {jump}")] if route else _route(hop, f"jump host {jump}")
    return [*route, (options, name)]


def _connect(options: SshOptions, name: str) -> tuple[paramiko.SSHClient, list[paramiko.SSHClient]]:
    """An SSH connection, and the ones to the jump hosts before it (outermost first). Errors are UnreachableError."""
    clients: list[paramiko.SSHClient] = []
    for server, label in _route(options, name):
        client = paramiko.SSHClient()
        try:
            sock: Any = None
            if clients:
                target = (server.hostname, server.port)
                before = clients[-1].get_transport()
                sock = before.open_channel("direct-tcpip", target, ("127.0.0.1", 0), timeout=CONNECT_SECONDS)
            elif server.proxy_command:
                command = server.proxy_command.replace("%h", server.hostname).replace("%p", str(server.port))
                sock = paramiko.ProxyCommand(command.replace("%r", server.user).replace("%%", "%"))
            else:
                # not by paramiko: its time limit for this would be that of the key exchange, too, which a busy host needs longer for
                sock = socket.create_connection((server.hostname, server.port), TCP_SECONDS)
            _authenticate(client, server, sock)
        except (paramiko.SSHException, OSError, EOFError) as error:
            _close(client, clients)
            raise _unreachable(f"{label} ({server.user}@{server.hostname}:{server.port})", server, error) from error
        clients.append(client)
    return clients[-1], clients[:-1]


def _authenticate(client: paramiko.SSHClient, options: SshOptions, sock: Any) -> None:
    for file in options.known_hosts:
        with suppress(FileNotFoundError):
            client.load_host_keys(file)
    client.set_missing_host_key_policy(_Accept() if options.strict in ("no", "off", "accept-new") else _Refuse())
    client.connect(
        options.hostname,
        port=options.port,
        username=options.user,
        password=options.password,
        key_filename=[key for key in options.key_files if Path(key).exists()],
        allow_agent=not options.identities_only,
        look_for_keys=not options.key_files,
        timeout=2 * CONNECT_SECONDS,
        banner_timeout=2 * CONNECT_SECONDS,
        auth_timeout=2 * CONNECT_SECONDS,
        sock=sock,
    )


def _close(client: paramiko.SSHClient, hops: list[paramiko.SSHClient]) -> None:
    for connection in [client, *reversed(hops)]:
        with suppress(Exception):
            connection.close()


def _unreachable(where: str, options: SshOptions, error: Exception) -> UnreachableError:
    by_hand = f"ssh -p {options.port} {options.user}@{options.hostname}"
    missing = [key for key in options.key_files if not Path(key).exists()]
    if isinstance(error, paramiko.BadHostKeyException):
        return UnreachableError(
            f"{where}: the host key is not the one in {' or '.join(options.known_hosts)}",
            "if the host was rebuilt, remove its old line from that file; otherwise find out who answers there",
        )
    if isinstance(error, paramiko.AuthenticationException) or "authentication" in str(error):
        tried = f"; {missing[0]} does not exist" if missing else ""
        return UnreachableError(f"{where}: SSH login refused ({error}{tried})", f"try by hand: {by_hand}")
    if "host key" in str(error):
        return UnreachableError(
            f"{where}: {error}",
            f"compare the fingerprint, then record the key: ssh-keyscan -p {options.port} {options.hostname} >> "
            f"{options.known_hosts[0] if options.known_hosts else '~/.ssh/known_hosts'}",
        )
    if isinstance(error, TimeoutError):
        return UnreachableError(f"{where}: no answer", "is the host on, and the address right?")
    if isinstance(error, socket.gaierror):
        return UnreachableError(f"{where}: the name does not resolve", "set ansible_host to an address in the inventory")
    if isinstance(error, OSError) and error.strerror:
        return UnreachableError(f"{where}: {error.strerror}", "is the host on, its SSH server running, and the address right?")
    return UnreachableError(f"{where}: {error or type(error).__name__}", f"try by hand: {by_hand}")


class DockerHost:
    """One host: commands over one SSH connection (made at first use), and its Docker engine.

    A context manager; safe to use from several threads. `ansible_connection: local` means this machine.
    """

    def __init__(self, host: Any):
        """`host` has `name`, `address` and `vars` (its Ansible connection variables, templated)."""
        self.name: str = host.name
        self.local = host.vars.get("ansible_connection") == "local"
        self._host = host
        self._lock = threading.Lock()
        self._client: paramiko.SSHClient | None = None
        self._hops: list[paramiko.SSHClient] = []

    def __enter__(self) -> "DockerHost":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; a later call makes a new one."""
        with self._lock:
            if "docker" in self.__dict__:
                with suppress(Exception):
                    self.__dict__.pop("docker").close()
            if self._client:
                _close(self._client, self._hops)
                self._client, self._hops = None, []

    def transport(self) -> paramiko.Transport:
        """The live SSH transport; UnreachableError when the host can't be reached."""
        with self._lock:
            transport = self._client.get_transport() if self._client else None
            if transport is None or not transport.is_active():
                connection = self._host.vars.get("ansible_connection") or "ssh"
                if connection not in ("ssh", "smart", "paramiko", "paramiko_ssh"):
                    raise InputError(
                        f"{self.name}: ansible_connection is {connection}",
                        "Venice's hosts are reached by ssh (or are local)",
                    )
                self._client, self._hops = _connect(ssh_options(self._host.vars, self.name), self.name)
                transport = self._client.get_transport()
            return transport

    def watch(self, seconds: float) -> None:
        """From now on a connection whose host has been silent for `seconds` is lost, also while nothing is said on it."""
        transport = self.transport()
        transport.set_keepalive(max(1, int(seconds / 3)))
        # what is sent and not acknowledged is what tells; through a jump host only that one's connection can be watched
        with suppress(AttributeError, OSError):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    @property
    def lost(self) -> bool:
        """True when the connection that was made has ended: what was read over it may lack its end."""
        transport = self._client.get_transport() if self._client else None
        return self._client is not None and not (transport and transport.is_active())

    def run(self, argv: list[str], stdin: str | None = None, timeout: float = COMMAND_SECONDS) -> tuple[int, str, str]:
        """Run a command on the host (never through more than the login shell, every word quoted).

        Returns exit code, output and error output. UnreachableError when the host does not answer or the command has
        not ended after `timeout` seconds.
        """
        late = UnreachableError(
            f"{self.name}: `{' '.join(argv[:3])}` did not end within {timeout:g} s",
            "is the host overloaded? `uptime` there tells",
        )
        if self.local:
            try:
                done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
            except subprocess.TimeoutExpired as error:
                raise late from error
            except OSError as error:
                raise VeniceError(f"{self.name}: {argv[0]} can't be run: {error}") from error
            return done.returncode, done.stdout, done.stderr
        deadline = time.monotonic() + timeout
        try:
            channel = self.transport().open_session(timeout=CONNECT_SECONDS)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise UnreachableError(f"{self.name}: the SSH connection was lost ({error})", "repeat the command") from error
        errors: list[bytes] = []
        try:
            channel.settimeout(timeout)
            channel.exec_command(shlex.join(argv))
            drain = threading.Thread(target=lambda: errors.extend(_chunks(channel.recv_stderr)), daemon=True)
            drain.start()
            if stdin is not None:
                channel.sendall(stdin.encode())
            channel.shutdown_write()
            output = b"".join(_chunks(channel.recv, lambda: channel.settimeout(max(0.01, deadline - time.monotonic()))))
            drain.join(max(0.01, deadline - time.monotonic()))
            if not channel.status_event.wait(max(0.01, deadline - time.monotonic())):
                raise late
            code = channel.recv_exit_status()
        except TimeoutError as error:
            raise late from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise UnreachableError(f"{self.name}: the SSH connection was lost ({error})", "repeat the command") from error
        finally:
            channel.close()
        return code, output.decode(errors="replace"), b"".join(errors).decode(errors="replace")

    @cached_property
    def docker(self) -> Any:
        """A `docker.DockerClient` of this host's engine; wrap its use in `asking()` for readable errors."""
        import docker  # a fifth of a second that most commands need not spend

        if self.local:
            return docker.from_env(timeout=COMMAND_SECONDS)
        from docker.transport import SSHHTTPAdapter

        owner = self

        class Adapter(SSHHTTPAdapter):
            """Docker's own SSH adapter over a connection that was made with Ansible's options."""

            def _create_paramiko_client(self, base_url: str) -> None:
                self._connect()

            def _connect(self) -> None:
                owner.transport()
                self.ssh_client = owner._client

            def get_connection(self, url: str, proxies: Any = None) -> Any:
                """One pool for all requests. The SDK's own has one for each address that was asked for, and so an SSH
                session for each: a host with ten containers then has more than sshd allows (MaxSessions 10)."""
                return super().get_connection("http+docker://ssh", proxies)

        with self.asking():
            # an address is asked for, and never connected to: requests go to the adapter mounted below
            client = docker.DockerClient(base_url="unix://", version="1.41", timeout=COMMAND_SECONDS)
            client.api.mount("http+docker://ssh", Adapter("ssh://", timeout=COMMAND_SECONDS))
            client.api.base_url = "http+docker://ssh"
            # the SDK negotiates only in its constructor, before an adapter of ours can be mounted
            client.api._version = client.api.version(api_version=False)["ApiVersion"]
        return client

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Turn the Docker SDK's errors into UnreachableError or VeniceError that name the host."""
        import docker.errors
        import requests

        try:
            yield
        except docker.errors.NotFound as error:
            raise VeniceError(f"{self.name}: {error.explanation}", "`venice status` shows what runs there") from error
        except docker.errors.APIError as error:
            raise VeniceError(f"{self.name}: Docker says: {error.explanation or error}") from error
        except (docker.errors.DockerException, requests.RequestException, paramiko.SSHException) as error:
            raise UnreachableError(
                f"{self.name}: its Docker engine does not answer ({self._docker_says(error)})",
                "`venice deploy` installs and starts it, and puts the SSH user into the docker group",
            ) from error

    def _docker_says(self, error: Exception) -> str:
        """What `docker` on the host itself says: over SSH the SDK only sees a connection that ends."""
        with suppress(VeniceError):
            _, _, says = self.run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=CONNECT_SECONDS)
            if says.strip():
                return says.strip().splitlines()[-1]
        return str(error)

    def logs(self, container: str, tail: int = 20) -> str:
        """The container's last log lines, both streams; VeniceError when there is no such container."""
        with self.asking():
            return self.docker.containers.get(container).logs(tail=tail).decode(errors="replace")

    def exec(self, container: str, argv: list[str], stdin: str | None = None, timeout: float = COMMAND_SECONDS) -> tuple[int, str, str]:
        """Run a command in a container, with `stdin` as its input: exit code, output, error output."""
        return self.run(["docker", "exec", "-i", container, *argv], stdin=stdin or "", timeout=timeout)


def _chunks(receive: Callable[[int], bytes], before: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    while True:
        before()
        data = receive(65536)
        if not data:
            return
        yield data


def over(hosts: Iterable[Any], function: Callable[[DockerHost], Any], timeout: float = COMMAND_SECONDS) -> dict[str, Any]:
    """Call `function(DockerHost)` for all hosts at once: host name -> its result, or the VeniceError that it raised.

    `hosts` are model hosts, or DockerHosts whose connections are kept. A host that has not answered after `timeout`
    seconds has an UnreachableError. Errors that are not the user's to mend are raised.
    """
    results: dict[str, Any] = {}
    wanted = list(hosts)

    def work(host: Any) -> None:
        connection = host if isinstance(host, DockerHost) else DockerHost(host)
        try:
            results[connection.name] = function(connection)
        except Exception as error:
            results[connection.name] = error
        finally:
            if connection is not host:
                connection.close()

    # daemon threads, not a pool: a host that hangs must not keep the process from ending
    threads = [threading.Thread(target=work, args=(host,), daemon=True) for host in wanted]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    answered = dict(results)
    for error in answered.values():
        if isinstance(error, Exception) and not isinstance(error, VeniceError):
            raise error
    return {
        host.name: answered.get(host.name)
        if host.name in answered
        else UnreachableError(f"{host.name}: no answer within {timeout:g} s", "is the host on?")
        for host in wanted
    }
