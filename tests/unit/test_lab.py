"""What the lab decides, without an engine: addresses, clashes, keys, how hosts are isolated, apt's settings."""

import os
import stat
import subprocess
from pathlib import Path

import docker
import pytest
import yaml

from venice import engine, lab
from venice.errors import InputError

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
venice-lab\t003DA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


def test_routes_are_read():
    assert lab.parse_routes(ROUTES) == [
        ("0.0.0.0/0", "eth0"),
        ("172.17.0.0/16", "docker0"),
        ("192.168.61.0/24", "venice-lab"),
    ]


@pytest.mark.parametrize(
    ("networks", "routes", "named"),
    [
        ({"bridge": ["172.17.0.0/16"], "none": []}, lab.parse_routes(ROUTES), None),
        ({"shop": ["192.168.48.0/20"]}, [], "Docker network shop (192.168.48.0/20)"),
        ({"shop": ["192.168.61.128/25"]}, [], "Docker network shop (192.168.61.128/25)"),
        ({"six": ["fd00::/64"]}, [], None),
        ({}, [("192.168.0.0/16", "tun0")], "route to 192.168.0.0/16 over tun0"),
        ({}, [("0.0.0.0/1", "tun0"), ("128.0.0.0/1", "tun0")], None),
        ({}, [("192.168.60.0/24", "eth1")], None),
    ],
)
def test_clash(networks, routes, named):
    clash = lab.find_clash(networks, routes)
    assert (clash and named in clash[0]) if named else clash is None


def test_addresses_are_the_inventories_and_the_vagrantfile_s():
    root = Path(__file__).parents[2]
    for name, count in (("lab", 3), ("single", 1)):
        hosts = yaml.safe_load((root / "inventory" / name / "hosts.yml").read_text())["all"]["hosts"]
        assert {host: values["ansible_host"] for host, values in hosts.items()} == {
            f"lab-{number}": lab.address(f"lab-{number}") for number in range(1, count + 1)
        }
    vagrantfile = (root / "Vagrantfile").read_text()
    assert all(f'"{lab.address(f"lab-{number}")}"' in vagrantfile for number in (1, 2, 3))


def test_keys_are_made_once_and_only_what_is_missing(tmp_path):
    lab.write_keys(tmp_path, ["lab-1", "lab-2"])
    known = (tmp_path / "known_hosts").read_text().splitlines()
    assert [line.split()[0] for line in known] == ["lab-1,192.168.61.11", "lab-2,192.168.61.12"]
    public = (tmp_path / "host_keys" / "lab-2.pub").read_text().split()
    assert known[1].split()[1:] == public[:2]
    for private in ("id_ed25519", "host_keys/lab-1"):
        assert stat.S_IMODE((tmp_path / private).stat().st_mode) == 0o600
    before = (tmp_path / "id_ed25519").read_text()
    (tmp_path / "host_keys" / "lab-1.pub").unlink()
    lab.write_keys(tmp_path, ["lab-1", "lab-2", "lab-3"])
    again = (tmp_path / "known_hosts").read_text().splitlines()
    assert (tmp_path / "id_ed25519").read_text() == before
    assert again[1] == known[1] and again[0] != known[0] and len(again) == 3


def test_known_hosts_satisfy_ssh(tmp_path):
    lab.write_keys(tmp_path, ["lab-1"])
    found = subprocess.run(["ssh-keygen", "-F", "192.168.61.11", "-f", tmp_path / "known_hosts"], capture_output=True, text=True)
    assert found.returncode == 0


@pytest.mark.parametrize(
    ("cgroup_version", "status", "privileged"),
    [
        ("1", "CapBnd:\t000001fffeffffff\n", False),  # a sandbox without CAP_SYS_RESOURCE
        ("1", "CapBnd:\t000001ffffffffff\n", True),
        ("2", "CapBnd:\t000001fffeffffff\n", True),
        ("1", "", True),  # no /proc: the engine is in a virtual machine of its own
    ],
)
def test_isolation(cgroup_version, status, privileged):
    options = lab.isolation(cgroup_version, f"Name:\tx\n{status}" if status else "")
    assert options.get("Privileged", False) is privileged
    assert privileged or options["CapDrop"] == ["SYS_RESOURCE"]


def test_apt_uses_the_operator_s_mirror_and_settings():
    config = (
        'Acquire "";\nAcquire::http "";\nAcquire::http::Proxy "http://proxy:3128";\nAcquire::Languages "none";\n'
        'Acquire::Check-Valid-Until "false";\nAPT::Architecture "amd64";\n'
    )
    targets = "http://mirror/debian/|Debian\nhttp://mirror/security/|Debian-Security\n"
    files = lab.operator_files(config, targets, "http://other:1", {"own.crt": "CERTIFICATE\n"})
    assert files["etc/apt/apt.conf.d/90operator"] == ('Acquire::http::Proxy "http://proxy:3128";\nAcquire::Check-Valid-Until "false";\n')
    assert "deb http://mirror/debian/ bookworm main\n" in files["etc/apt/sources.list"]
    assert "deb http://mirror/security/ bookworm-security main\n" in files["etc/apt/sources.list"]
    assert files["usr/local/share/ca-certificates/own.crt"] == "CERTIFICATE\n"


def test_apt_defaults_where_the_operator_has_no_debian():
    files = lab.operator_files("", "", "http://proxy:3128", {})
    assert "etc/apt/sources.list" not in files
    assert files["etc/apt/apt.conf.d/90operator"] == 'Acquire::http::Proxy "http://proxy:3128";\n'
    assert not any("certificates" in path for path in files)


@pytest.mark.parametrize("name", ["lab-0", "lab-10", "nowhere", "lab-1; true"])
def test_ssh_to_what_is_no_lab_host(name):
    with pytest.raises(InputError, match="there is no lab host"):
        lab.ssh_argv(name)


@pytest.mark.parametrize("hosts", [0, 10])
def test_number_of_hosts(hosts):
    with pytest.raises(InputError, match=f"not {hosts}"):
        lab.up(hosts)


@pytest.mark.parametrize(
    ("cause", "docker_host", "distribution", "uid", "message"),
    [
        ("refused", None, {"debian"}, 0, None),
        ("refused", None, {"ubuntu", "debian"}, 0, None),
        ("refused", None, {"debian"}, 1000, "no Docker engine answers"),
        ("refused", None, {"fedora"}, 0, "no Docker engine answers"),
        ("refused", None, set(), 0, "no Docker engine answers"),
        ("PermissionError(13, 'Permission denied')", None, {"debian"}, 1000, "may not talk"),
        ("refused", "tcp://elsewhere:2375", {"debian"}, 0, "tcp://elsewhere:2375"),
    ],
)
def test_who_may_have_an_engine_installed(cause, docker_host, distribution, uid, message):
    refusal = engine._refusal(cause, docker_host, distribution, uid)
    assert (refusal is None) if message is None else (message in refusal.message and refusal.remedy)


def test_a_reachable_engine_is_used_untouched(monkeypatch):
    client = object()
    monkeypatch.setattr(engine, "connect", lambda timeout=10: (client, ""))
    monkeypatch.setattr(engine, "_apt_install", lambda packages: pytest.fail("installed"))
    monkeypatch.setattr(engine, "_start", lambda report: pytest.fail("started"))
    assert engine.ensure_engine(print) is client


@pytest.mark.parametrize(("installed", "packages"), [(None, True), ("/usr/sbin/dockerd", False)])
def test_a_missing_engine_is_installed_only_when_its_program_is_missing(monkeypatch, tmp_path, installed, packages):
    done = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "connect", lambda timeout=10: (None, "refused"))
    monkeypatch.setattr(engine, "_refusal", lambda *args: None)
    monkeypatch.setattr(engine.platform, "freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "13"})
    monkeypatch.setattr(engine.shutil, "which", lambda command: installed)
    monkeypatch.setattr(engine, "_apt_install", done.append)
    monkeypatch.setattr(engine, "_start", lambda report: "client")
    assert engine.ensure_engine(lambda line: None) == "client"
    assert done == ([[*engine.PACKAGES, "docker-cli"]] if packages else [])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_namespaces_of_a_killed_engine_are_let_go(tmp_path):
    """One that nobody has entered lives as long as it is mounted, and so do its interfaces."""
    kept, plain = tmp_path / "4f1d", tmp_path / "default"
    for path in (kept, plain):
        path.touch()
    subprocess.run(["unshare", f"--net={kept}", "true"], check=True)
    mounted = kept.stat().st_dev != tmp_path.stat().st_dev
    engine.drop_stale_namespaces(tmp_path)
    assert mounted
    assert not list(tmp_path.iterdir())


def test_stale_pid_files(tmp_path):
    file = tmp_path / "docker.pid"
    me = Path("/proc/self/comm").read_text().strip()
    pid = Path("/proc/self").resolve().name
    file.write_text(pid)
    engine.drop_stale_pid(file, me)
    assert file.exists()
    engine.drop_stale_pid(file, "dockerd")
    assert not file.exists()
    file.write_text("not a number")
    engine.drop_stale_pid(file, "dockerd")
    assert not file.exists()
    engine.drop_stale_pid(file, "dockerd")


def test_tools_that_are_there_cost_nothing(monkeypatch):
    monkeypatch.setattr(engine, "_apt_install", lambda packages: pytest.fail("installed"))
    engine.ensure_tools({"sh": "dash"}, print)


def test_no_engine_is_an_error_that_says_how_to_get_one(monkeypatch):
    def refuse(timeout):
        raise docker.errors.DockerException("connection refused")

    monkeypatch.setattr(engine.docker, "from_env", refuse)
    with pytest.raises(lab.UnreachableError, match="connection refused"):
        lab.status()
