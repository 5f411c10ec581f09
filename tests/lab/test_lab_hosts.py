"""Lab hosts as machines: boot, power, network, logins, and a lab that is half made."""

import shutil
import subprocess
from pathlib import Path

import docker
import pytest
from click.testing import CliRunner

from tests.waiting import PATIENCE, wait_until
from venice import lab, paths
from venice.cli.lab import command
from venice.errors import InputError

STATES = dict.fromkeys(("lab-1", "lab-2", "lab-3", "lab-4"), "running")


def output(name: str, *argv: str) -> str:
    done = lab.run(name, list(argv), timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def boot_id(name: str) -> str:
    return output(name, "cat", "/proc/sys/kernel/random/boot_id")


def states() -> dict[str, str]:
    return {host.name: host.state for host in lab.status()}


def started() -> dict[str, str]:
    containers = docker.from_env().containers.list(filters={"label": lab.LABEL})
    return {container.name: container.attrs["State"]["StartedAt"] for container in containers}


def container(name: str):
    return docker.from_env().containers.get(name)


def log_in(user: str, *options: str) -> subprocess.CompletedProcess[str]:
    argv = lab.ssh_argv("lab-4")
    argv[-1] = argv[-1].replace(f"{lab.USER}@", f"{user}@")
    return subprocess.run([argv[0], *options, *argv[1:], "true"], capture_output=True, text=True, timeout=PATIENCE)


def test_a_host_is_a_bare_debian_machine(spare_host):
    assert output(spare_host, "systemctl", "is-system-running") == "running"
    assert output(spare_host, "ps", "-o", "comm=", "1") == "systemd"
    assert output(spare_host, "hostname") == spare_host
    assert 'VERSION_ID="12"' in output(spare_host, "cat", "/etc/os-release")
    assert output(spare_host, "sudo", "-n", "id", "-u") == "0"
    assert output(spare_host, "python3", "-c", "print(1)") == "1"
    assert lab.run(spare_host, ["which", "dockerd", "docker"]).returncode != 0
    assert {host.name: host.docker for host in lab.status()}[spare_host] == "absent"


def test_hosts_know_each_other_by_name(spare_host):
    for number in range(1, 4):
        assert output(spare_host, "getent", "hosts", f"lab-{number}").split()[0] == lab.address(f"lab-{number}")


def test_only_the_lab_user_s_key_logs_in(spare_host):
    key = (paths.lab_dir() / "id_ed25519.pub").read_text()
    root = container(spare_host)
    root.exec_run(["sh", "-c", f"mkdir -p -m 0700 /root/.ssh && echo '{key}' > /root/.ssh/authorized_keys"])
    root.exec_run(["sh", "-c", "echo root:venice | chpasswd; echo venice:venice | chpasswd"])
    assert log_in("venice").returncode == 0
    refused = log_in("root")
    assert refused.returncode == 255 and "Permission denied (publickey)" in refused.stderr
    without_key = log_in("venice", "-o", "PubkeyAuthentication=no", "-o", "PasswordAuthentication=yes", "-o", "BatchMode=yes")
    assert without_key.returncode == 255 and "Permission denied (publickey)" in without_key.stderr


def test_another_host_key_is_refused(spare_host, tmp_path):
    known = (paths.lab_dir() / "known_hosts").read_text().splitlines()
    other = next(line.split(" ", 1)[1] for line in known if line.startswith("lab-1,"))
    (tmp_path / "known_hosts").write_text(f"{spare_host},{lab.address(spare_host)} {other}\n")
    refused = log_in("venice", "-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}")
    assert refused.returncode == 255 and "Host key verification failed" in refused.stderr


def test_up_again_touches_nothing(spare_host):
    before, known = started(), (paths.lab_dir() / "known_hosts").read_text()
    lab.up(4)
    assert started() == before
    assert (paths.lab_dir() / "known_hosts").read_text() == known


def test_reboot_comes_back_with_a_new_boot(spare_host):
    before = boot_id(spare_host)
    output(spare_host, "sh", "-c", "echo kept > ~/kept; sudo touch /tmp/lost")
    lab.reboot(spare_host)
    assert boot_id(spare_host) != before
    assert output(spare_host, "cat", "kept") == "kept"
    assert lab.run(spare_host, ["ls", "/tmp/lost"]).returncode != 0


def test_a_host_reboots_itself(spare_host):
    before = boot_id(spare_host)
    lab.run(spare_host, ["sudo", "reboot"])

    def rebooted() -> bool:
        done = lab.run(spare_host, ["cat", "/proc/sys/kernel/random/boot_id"])
        return not done.returncode and done.stdout.strip() != before

    wait_until(rebooted, "the host has booted again")


def test_power_off_and_on(spare_host):
    before = boot_id(spare_host)
    lab.power(spare_host, on=False)
    assert states()[spare_host] == "off"
    assert lab.run(spare_host, ["true"]).returncode == 255
    lab.power(spare_host, on=True)
    assert states()[spare_host] == "running"
    assert boot_id(spare_host) != before


def test_cut_and_mend(spare_host):
    before = boot_id(spare_host)
    lab.cut(spare_host)
    lab.cut(spare_host)
    assert states() == STATES | {spare_host: "cut"}
    assert lab.run(spare_host, ["true"]).returncode == 255
    assert lab.run("lab-1", ["python3", "-c", "import socket; socket.create_connection(('lab-4', 22), 2)"]).returncode == 1
    # its cable is pulled, its address is not gone
    assert lab.address(spare_host) in container(spare_host).exec_run(["ip", "-br", "address", "show", "eth0"]).output.decode()
    lab.mend(spare_host)
    assert states() == STATES
    assert boot_id(spare_host) == before
    assert output(spare_host, "ip", "route", "get", lab.address("lab-1"))


def test_up_mends_a_cut_host(spare_host):
    lab.cut(spare_host)
    lab.up(4)
    assert states() == STATES


def test_up_starts_a_stopped_host_with_its_data(spare_host):
    output(spare_host, "sh", "-c", "echo kept > ~/kept")
    container(spare_host).stop(timeout=0)
    lab.up(4)
    assert output(spare_host, "cat", "kept") == "kept"


def test_up_remakes_a_removed_host(spare_host):
    before = started()
    known = (paths.lab_dir() / "known_hosts").read_text()
    container(spare_host).remove(force=True)
    lab.up(4)
    assert states() == STATES
    after = started()
    assert {name: after[name] for name in STATES if name != spare_host} == {name: before[name] for name in STATES if name != spare_host}
    assert (paths.lab_dir() / "known_hosts").read_text() == known


def test_up_reconnects_a_host_that_lost_its_network(spare_host):
    docker.from_env().networks.get(lab.NETWORK).disconnect(spare_host, force=True)
    lab.up(4)
    assert states() == STATES


def test_up_replaces_a_lost_host_key(spare_host):
    (paths.lab_dir() / "host_keys" / spare_host).unlink()
    lab.up(4)
    assert output(spare_host, "hostname") == spare_host


def test_unknown_host_is_named_with_those_there_are(lab):
    from venice import lab as module

    with pytest.raises(InputError, match="no lab host 'lab-7'"):
        module.reboot("lab-7")


def test_command_passes_exit_code_and_output(lab):
    venice = shutil.which("venice") or str(Path(__file__).parents[2] / ".venv" / "bin" / "venice")
    done = subprocess.run([venice, "lab", "ssh", "lab-1", "echo -n out; exit 7"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "out")


def test_status_as_json(lab):
    import json

    def first() -> dict:
        result = CliRunner().invoke(command, ["status", "--json"])
        assert result.exit_code == 0
        return json.loads(result.output)[0]

    found = wait_until(lambda: (found := first())["ssh"] and found, "its sshd answers in time")
    assert (found["name"], found["address"], found["ssh"]) == ("lab-1", "192.168.61.11", True)
