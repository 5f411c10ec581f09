"""Lab hosts: containers that behave as freshly installed Debian machines, on one Docker engine.

Each boots systemd, runs sshd and has Python, an ordinary user with sudo, and nothing else; Docker inside them is
installed by Venice's `engine` role as on a VM. They have fixed names and addresses in a network of their own. The
operator's side (SSH key, host keys, known hosts) is in `venice.paths.lab_dir()`; everything on the engine carries the
label `venice.lab`.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import ipaddress
import json
import os
import re
import shlex
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from venice import paths
from venice.errors import InputError, UnreachableError, VeniceError

if TYPE_CHECKING:  # `venice lab --help` must not wait for the docker SDK
    import docker
    from docker.models.containers import Container
    from docker.models.networks import Network

Report = Callable[[str], None]

LABEL = "venice.lab"
NETWORK = "venice-lab"
# in the range where VirtualBox allows host-only networks without configuration: the Vagrantfile has the same addresses
SUBNET = ipaddress.ip_network("192.168.61.0/24")
FIRST_ADDRESS = 11
MAX_HOSTS = 9
USER = "venice"
RELEASE = "bookworm"
BASE = f"venice/lab-base:{RELEASE}"
PUBLIC_BASE = ("debian", f"{RELEASE}-slim")
BOOT_SECONDS = 180  # several seconds, unless the machine is busy with much else
STOP_SECONDS = 120  # an orderly stop waits for the stop of the containers inside


def _plain_errors(function: Callable) -> Callable:
    """Turns what the engine refuses into a message for the user."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        import docker

        try:
            return function(*args, **kwargs)
        except docker.errors.DockerException as error:
            raise VeniceError(
                f"Docker refused: {getattr(error, 'explanation', None) or error}",
                "See `venice lab status`; `venice lab up` mends a half-made lab.",
            ) from error

    return wrapper


@dataclass(frozen=True)
class LabHost:
    """One lab host as it is.

    `state`: running, cut (running, but off the network), off or missing. `ssh`: sshd answers. `docker`: the host's own
    engine: absent, or systemd's word for it (active, inactive, failed); empty when the host is not running.
    """

    name: str
    address: str
    state: str
    ssh: bool
    docker: str


@_plain_errors
def up(hosts: int = 3, report: Report = print) -> None:
    """Make `lab-1..N` exist, run and answer over SSH. What is already right is not touched.

    What is half-made is mended. Hosts beyond N are left as they are. Raises VeniceError.
    """
    from venice import engine

    if not 1 <= hosts <= MAX_HOSTS:
        raise InputError(f"a lab has 1 to {MAX_HOSTS} hosts, not {hosts}", f"Use --hosts 1 ... {MAX_HOSTS}.")
    engine.ensure_tools({"ssh": "openssh-client", "ssh-keygen": "openssh-client"}, report)
    client = engine.ensure_engine(report)
    names = [_name(number) for number in range(1, hosts + 1)]
    with _lock():
        write_keys(paths.lab_dir(), names)
        image = _image(client, report)
        network = _network(client)
        with ThreadPoolExecutor(hosts) as pool:
            list(pool.map(lambda name: _host_up(client, network, image, name, report), names))


@_plain_errors
def down(keep: bool = False, report: Report = print) -> None:
    """Remove all lab hosts and their network, and with them their Docker data unless `keep`. The lab's keys stay."""
    client = _engine()
    with _lock():
        containers = _containers(client)
        with ThreadPoolExecutor(MAX_HOSTS) as pool:
            list(pool.map(lambda container: container.remove(force=True), containers.values()))
        for network in client.networks.list(filters={"label": LABEL}):
            _remove_network(network)
        volumes = [] if keep else client.volumes.list(filters={"label": LABEL})
        for volume in volumes:
            volume.remove()
    report(
        f"removed {', '.join(containers) or 'no hosts'}"
        + (f" and {len(volumes)} Docker volumes" if volumes else "")
        + ("; their Docker data is kept" if keep else "")
    )


@_plain_errors
def status() -> list[LabHost]:
    """All lab hosts, by number; gaps (a host whose container was removed) are `missing`. Empty without a lab."""
    containers = _containers(_engine())
    numbers = [int(name.removeprefix("lab-")) for name in containers]
    names = [_name(number) for number in range(1, max(numbers, default=0) + 1)]
    with ThreadPoolExecutor(MAX_HOSTS) as pool:
        return list(pool.map(lambda name: _look(name, containers.get(name)), names))


@_plain_errors
def reboot(name: str, report: Report = print) -> None:
    """Shut the host down in order, boot it, and return when it is up and SSH answers. Raises VeniceError."""
    client = _engine()
    container = _container(client, name)
    report(f"{name}: rebooting")
    container.restart(timeout=STOP_SECONDS)
    _wait_until_up(container, report)


@_plain_errors
def power(name: str, on: bool, report: Report = print) -> None:
    """Off: as if the plug were pulled, no orderly shutdown. On: boot, and return when it is up. Raises VeniceError."""
    client = _engine()
    container = _container(client, name)
    if on:
        container.start()
        _wait_until_up(container, report)
    else:
        container.stop(timeout=0)
        report(f"{name}: off")


@_plain_errors
def cut(name: str, report: Report = print) -> None:
    """Pull the host's network cable: it goes on running, and keeps its address. Raises VeniceError.

    A boot plugs the cable in again, as `mend` does.
    """
    container = _container(_engine(), name)
    _plug(container, False)
    report(f"{name}: cut off the network")


@_plain_errors
def mend(name: str, report: Report = print) -> None:
    """Plug the network cable of a host that was cut off in again; returns when SSH answers. Raises VeniceError."""
    container = _container(_engine(), name)
    _plug(container, True)
    _wait_until_up(container, report)


def run(name: str, argv: list[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command on a host over SSH as the lab's user, each argument as given; text output is captured."""
    return subprocess.run([*ssh_argv(name), shlex.join(argv)], capture_output=True, text=True, timeout=timeout)


def ssh_argv(name: str) -> list[str]:
    """The OpenSSH command line that logs in to a host; append a remote command. Raises InputError."""
    directory = paths.lab_dir()
    if name not in map(_name, range(1, MAX_HOSTS + 1)) or not (directory / "host_keys" / name).exists():
        raise InputError(f"there is no lab host {name!r}", "See `venice lab status`; make hosts with `venice lab up`.")
    options = {
        "IdentityFile": directory / "id_ed25519",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": directory / "known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "PasswordAuthentication": "no",
        "LogLevel": "ERROR",
        "ConnectTimeout": "15",
    }
    arguments = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return ["ssh", *arguments, "-F", "none", f"{USER}@{address(name)}"]


def address(name: str) -> str:
    """The host's fixed address: lab-1 is 192.168.61.11."""
    return str(SUBNET[FIRST_ADDRESS - 1 + int(name.removeprefix("lab-"))])


def find_clash(
    networks: dict[str, list[str]], routes: list[tuple[str, str]], subnet: ipaddress.IPv4Network = SUBNET
) -> tuple[str, str] | None:
    """What already uses the lab's subnet, and the remedy; None when nothing does.

    `networks`: name of another Docker network -> its subnets; `routes`: (destination, interface) of the machine's
    routes. Routes wider than a /8 are ways to everywhere else (a default route, a VPN's two halves of one), not a use
    of the subnet.
    """
    for name, subnets in networks.items():
        for other in map(ipaddress.ip_network, subnets):
            if other.version == 4 and other.overlaps(subnet):
                return f"the Docker network {name} ({other})", f"Remove it: docker network rm {name}"
    for destination, interface in routes:
        other = ipaddress.ip_network(destination)
        if other.prefixlen >= 8 and other.overlaps(subnet) and interface != NETWORK:
            return (
                f"this machine's route to {other} over {interface}",
                f"Leave that network, or remove the route: ip route del {other} dev {interface}",
            )
    return None


def parse_routes(table: str) -> list[tuple[str, str]]:
    """(destination, interface) of each line of Linux's /proc/net/route."""
    routes = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        destination, mask = (socket.inet_ntoa(int(fields[column], 16).to_bytes(4, "little")) for column in (1, 7))
        routes.append((str(ipaddress.ip_network(f"{destination}/{mask}")), fields[0]))
    return routes


def write_keys(directory: Path, names: list[str]) -> None:
    """Make what is missing of the lab's SSH key, the hosts' keys and the known_hosts file that lists them all.

    The operator makes the host keys, so they are known before the first connection and nothing is trusted on first use.
    """
    host_keys = directory / "host_keys"
    host_keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, comment in [(directory / "id_ed25519", "venice-lab"), *((host_keys / name, name) for name in names)]:
        if not path.exists() or not path.with_suffix(".pub").exists():
            path.unlink(missing_ok=True)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    known = ""
    for path in sorted(host_keys.glob("*.pub")):
        kind, key = path.read_text().split()[:2]
        known += f"{path.stem},{address(path.stem)} {kind} {key}\n"
    (directory / "known_hosts").write_text(known)


def isolation(cgroup_version: str, status_of_self: str) -> dict:
    """How the engine must run a host so that systemd and an engine work in it: fields of the API's HostConfig.

    `status_of_self` is /proc/self/status, empty where there is none. Privileged needs every capability; where this
    machine itself lacks CAP_SYS_RESOURCE (it may be a sandbox), all others are given one by one.
    """
    bounding = int(re.search(r"^CapBnd:\s*(\w+)", status_of_self, re.MULTILINE)[1], 16) if status_of_self else -1
    cap_sys_resource = 1 << 24
    if cgroup_version == "2" or bounding & cap_sys_resource:
        return {"Privileged": True}
    return {
        "CapAdd": ["ALL"],
        "CapDrop": ["SYS_RESOURCE"],
        "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
        "MaskedPaths": [],
        "ReadonlyPaths": [],
    }


def operator_files(apt_config: str, indextargets: str, http_proxy: str | None, authorities: dict[str, str]) -> dict[str, str]:
    """Path -> content of what makes apt work on a host as it does on the operator's machine.

    `apt_config` is `apt-config dump`, `indextargets` lists "REPO_URI|LABEL" of the operator's Debian sources (empty
    elsewhere), `http_proxy` is the environment's, `authorities` are the operator's own CA files by name.
    """
    mirrors = {label: uri for uri, _, label in (line.partition("|") for line in indextargets.splitlines())}
    wanted = re.compile(r"Acquire::(https?|ForceIPv[46]|Check-\S+|Retries)\b")
    settings = [line for line in apt_config.splitlines() if wanted.match(line) and not line.endswith(' "";')]
    if http_proxy and not any(line.startswith("Acquire::http::Proxy ") for line in settings):
        settings.append(f'Acquire::http::Proxy "{http_proxy}";')
    files = {"etc/apt/apt.conf.d/90operator": "".join(f"{line}\n" for line in settings)}
    # an operator without Debian's sources (Ubuntu, say) knows no mirror: the hosts keep the ones that their base came with
    if main := mirrors.get("Debian"):
        lines = [f"deb {main} {RELEASE} main", f"deb {main} {RELEASE}-updates main"]
        lines += [f"deb {mirrors[label]} {RELEASE}-security main" for label in ("Debian-Security",) if label in mirrors]
        files["etc/apt/sources.list"] = "".join(f"{line}\n" for line in lines)
    for name, content in authorities.items():
        files[f"usr/local/share/ca-certificates/{name}"] = content
    if authorities:  # trusted before ca-certificates is installed, which makes the real bundle
        files["etc/ssl/certs/ca-certificates.crt"] = "".join(authorities.values())
    return files


# ---- the engine's side ----


def _name(number: int) -> str:
    return f"lab-{number}"


def _engine() -> "docker.DockerClient":
    """The engine, which must be there: only `up` installs or starts one."""
    from venice import engine

    client, cause = engine.connect()
    if not client:
        raise UnreachableError(f"no Docker engine answers: {cause}", "Run `venice lab up`: it starts engine and lab.")
    return client


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One `up` or `down` at a time."""
    directory = paths.lab_dir()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _containers(client: "docker.DockerClient") -> dict[str, "Container"]:
    """The lab's containers by name, in order."""
    found = {container.name: container for container in client.containers.list(all=True, filters={"label": LABEL})}
    return dict(sorted(found.items()))


def _container(client: "docker.DockerClient", name: str) -> "Container":
    containers = _containers(client)
    if name not in containers:
        there = f"there are {', '.join(containers)}" if containers else "there is no lab"
        raise InputError(f"no lab host {name!r}: {there}", "See `venice lab status`; make hosts with `venice lab up`.")
    return containers[name]


def _network(client: "docker.DockerClient") -> "Network":
    """The lab's network, created when missing. Raises VeniceError when its subnet is used by something else."""
    import docker

    networks = {network.name: network for network in client.networks.list()}
    network = networks.pop(NETWORK, None)
    if network:
        if LABEL not in (network.attrs["Labels"] or {}) or _subnets(network) != [str(SUBNET)]:
            raise VeniceError(
                f"a Docker network {NETWORK} exists that is not the lab's ({', '.join(_subnets(network))})",
                f"Remove it: docker network rm {NETWORK}",
            )
        return network
    table = Path("/proc/net/route")
    routes = parse_routes(table.read_text()) if table.exists() else []
    clash = find_clash({name: _subnets(other) for name, other in networks.items()}, routes)
    if clash:
        raise VeniceError(f"the lab's subnet {SUBNET} is already used by {clash[0]}", clash[1])
    pool = docker.types.IPAMPool(subnet=str(SUBNET), gateway=str(SUBNET[1]))
    return client.networks.create(
        NETWORK,
        driver="bridge",
        ipam=docker.types.IPAMConfig(pool_configs=[pool]),
        options={"com.docker.network.bridge.name": NETWORK},
        labels={LABEL: ""},
    )


def _subnets(network: "Network") -> list[str]:
    return [pool["Subnet"] for pool in (network.attrs["IPAM"]["Config"] or []) if pool.get("Subnet")]


def _remove_network(network: "Network") -> None:
    network.reload()
    others = [endpoint["Name"] for endpoint in network.attrs["Containers"].values()]
    if others:
        raise VeniceError(
            f"the lab's network {network.name} is still used by {', '.join(others)}",
            f"Run `docker network disconnect {network.name} {others[0]}`, then `venice lab down` again.",
        )
    network.remove()


def _host_up(client: "docker.DockerClient", network: "Network", image: str, name: str, report: Report) -> None:
    import docker

    try:
        container = client.containers.get(name)
    except docker.errors.NotFound:
        container = _create(client, image, name)
    if LABEL not in container.labels:
        raise VeniceError(f"a container {name} exists that is not the lab's", f"Remove it: docker rm -f {name}")
    before = container.status
    if before == "paused":
        container.unpause()
    _attach(network, container)
    if before in ("running", "paused"):
        _give_keys_to_running(container)
        if not _plugged(container):
            _plug(container, True)
    else:
        container.put_archive("/", _archive(_key_files(name)))
        container.start()
    _wait_until_up(container, report)


def _create(client: "docker.DockerClient", image: str, name: str) -> "Container":
    import docker

    volume = f"{name}-docker"
    client.volumes.create(volume, labels={LABEL: ""})
    endpoint = client.api.create_endpoint_config(ipv4_address=address(name))
    # as on Vagrant boxes the hosts file names the neighbours, so that a name is known while its host is off
    neighbours = {_name(number): address(_name(number)) for number in range(1, MAX_HOSTS + 1) if _name(number) != name}
    options = client.api.create_host_config(
        mounts=[docker.types.Mount("/var/lib/docker", volume)],
        tmpfs={"/run": "", "/run/lock": ""},
        extra_hosts=neighbours,
        # `sudo reboot` in a host ends its container with an error code; one that Docker stopped stays off
        restart_policy={"Name": "on-failure"},
        network_mode=NETWORK,
        cgroupns="private",
    )
    status_of_self = Path("/proc/self/status")
    options |= isolation(client.info()["CgroupVersion"], status_of_self.read_text() if status_of_self.exists() else "")
    created = client.api.create_container(
        image,
        name=name,
        hostname=name,
        labels={LABEL: ""},
        host_config=options,
        networking_config=client.api.create_networking_config({NETWORK: endpoint}),
    )
    return client.containers.get(created["Id"])


def _plugged(container: "Container") -> bool:
    return "LOWER_UP" in _interface(container).get("flags", [])


def _interface(container: "Container") -> dict:
    """The host's interface with its fixed address, as `ip -j address` describes it; empty when there is none."""
    own = address(container.name)
    interfaces = json.loads(_exec(container, "ip", "-j", "-4", "address") or "[]")
    return next((each for each in interfaces if own in (info["local"] for info in each["addr_info"])), {})


def _plug(container: "Container", state: bool) -> None:
    """Set the engine's end of the host's network link up or down, which the host sees as a cable plugged in or pulled.

    Unlike `docker network disconnect` this takes neither the interface nor its address and routes away. A helper
    container does it, so the user need not be root.
    """
    if container.status != "running":
        raise VeniceError(f"{container.name} is off", f"Switch it on first: venice lab power on {container.name}")
    interface = _interface(container)
    if not interface:
        raise VeniceError(f"{container.name} has no network", "Run `venice lab up`: it mends a half-made lab.")
    index = str(interface["link_index"])
    interfaces = '[ "$(cat $link/ifindex)" = "$0" ] && exec ip link set "${link##*/}" "$1"'
    container.client.containers.run(
        container.attrs["Image"],
        ["sh", "-c", f"for link in /sys/class/net/*; do {interfaces}; done; exit 1", index, "up" if state else "down"],
        network_mode="host",
        cap_add=["NET_ADMIN"],
        remove=True,
    )


def _attach(network: "Network", container: "Container") -> None:
    """Put the host on the lab's network with its address, whatever it is on now."""
    endpoint = container.attrs["NetworkSettings"]["Networks"].get(NETWORK)
    if endpoint and endpoint["NetworkID"] in ("", network.id):
        return
    if endpoint:  # the network it knows was removed, and another made under the same name
        network.client.api.disconnect_container_from_network(container.id, NETWORK, force=True)
    network.connect(container, ipv4_address=address(container.name))
    container.reload()


def _key_files(name: str) -> dict[str, tuple[str, int, int]]:
    """Path on the host -> content, mode, owner."""
    directory = paths.lab_dir()
    host_key = directory / "host_keys" / name
    return {
        "etc/ssh/ssh_host_ed25519_key": (host_key.read_text(), 0o600, 0),
        "etc/ssh/ssh_host_ed25519_key.pub": (host_key.with_suffix(".pub").read_text(), 0o644, 0),
        f"home/{USER}/.ssh/authorized_keys": ((directory / "id_ed25519.pub").read_text(), 0o600, 1000),
    }


def _give_keys_to_running(container: "Container") -> None:
    """Replace keys that are not the lab's present ones (its folder was lost and made again)."""
    files = _key_files(container.name)
    for path, (content, _, _) in files.items():
        if container.exec_run(["cat", f"/{path}"]).output.decode() != content:
            container.put_archive("/", _archive(files))
            container.exec_run(["systemctl", "reload-or-restart", "ssh"])
            return


def _archive(files: dict[str, tuple[str, int, int]]) -> bytes:
    """A tar archive of path -> (content, mode, owner's uid and gid)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (content, mode, owner) in files.items():
            data = content.encode()
            member = tarfile.TarInfo(path)
            member.size, member.mode, member.uid, member.gid = len(data), mode, owner, owner
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _wait_until_up(container: "Container", report: Report) -> None:
    """Return when systemd has finished booting and a login over SSH works."""
    name = container.name
    started = time.monotonic()
    state = ""
    while state not in ("running", "degraded"):
        container.reload()
        if container.status != "running" or time.monotonic() - started > BOOT_SECONDS:
            log = container.logs(tail=20).decode(errors="replace").strip()
            raise VeniceError(
                f"{name} did not boot (container {container.status}, systemd {state or 'silent'}) {log}",
                f"See `docker logs {name}`; make the lab anew with `venice lab down` and `venice lab up`.",
            )
        # until D-Bus answers the command fails at once, from then on it returns when the boot is over
        state = _exec(container, "timeout", str(BOOT_SECONDS), "systemctl", "is-system-running", "--wait")
        if state not in ("running", "degraded"):
            time.sleep(0.1)
    if state == "degraded":
        failed = _exec(container, "systemctl", "list-units", "--failed", "--plain", "--no-legend").splitlines()
        report(f"{name}: failed units: {', '.join(line.split()[0] for line in failed)}")
    while (login := run(name, ["true"])).returncode:
        if time.monotonic() - started > BOOT_SECONDS:
            raise UnreachableError(
                f"{name} runs but no login over SSH works: {login.stderr.strip()}",
                f"Check that this machine reaches {SUBNET}: the engine must run on this (Linux) machine itself.",
            )
        time.sleep(0.2)
    report(f"{name}: up at {address(name)}")


def _exec(container: "Container", *argv: str) -> str:
    """Standard output of a command in the container, also of one that fails; "" when the container is just going."""
    import docker

    try:
        return (container.exec_run(list(argv), demux=True).output[0] or b"").decode().strip()
    except docker.errors.APIError:
        return ""


def _look(name: str, container: "Container | None") -> LabHost:
    if not container:
        return LabHost(name, address(name), "missing", False, "")
    if container.status != "running":
        return LabHost(name, address(name), "off", False, "")
    unit = dict(
        line.split("=", 1) for line in _exec(container, "systemctl", "show", "docker", "-p", "LoadState", "-p", "ActiveState").splitlines()
    )
    engine = "absent" if unit.get("LoadState") == "not-found" else unit.get("ActiveState", "")
    if not _plugged(container):
        return LabHost(name, address(name), "cut", False, engine)
    return LabHost(name, address(name), "running", _sshd_answers(address(name)), engine)


def _sshd_answers(host: str) -> bool:
    try:
        with socket.create_connection((host, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


# ---- the image ----


def _image(client: "docker.DockerClient", report: Report) -> str:
    """Reference of the lab host's image, built when the engine does not have it.

    The tag is the hash of what it is made of. It carries the operator's apt settings, so it stays on this engine.
    """
    import docker

    folder = paths.resource("images") / "lab-host"
    context = {name: ((folder / name).read_text(), 0o755, 0) for name in ("Dockerfile", "lab-init")}
    context |= {f"operator/{path}": (content, 0o644, 0) for path, content in _operator_files().items()}
    reference = f"venice/lab-host:{hashlib.sha256(repr(sorted(context.items())).encode()).hexdigest()[:12]}"
    try:
        client.images.get(reference)
        return reference
    except docker.errors.ImageNotFound:
        pass
    base = _base(client, report)
    report("building the lab host's image")
    archive = io.BytesIO(_archive(context))
    lines = client.api.build(fileobj=archive, custom_context=True, tag=reference, buildargs={"BASE": base}, rm=True, decode=True)
    output = []
    for line in lines:
        output.append(line.get("stream", ""))
        if "error" in line:
            tail = "".join(output).strip().splitlines()[-15:]
            raise VeniceError(
                "the lab host's image could not be built: " + "\n".join([*tail, line["error"]]),
                "Check that `apt-get update` works on this machine and in its containers, then run this again.",
            )
    return reference


def _operator_files() -> dict[str, str]:
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(LABEL)", "Origin: Debian", "Created-By: Packages"]
    outputs = []
    for command in (["apt-config", "dump"], targets):
        try:
            outputs.append(subprocess.run(command, capture_output=True, text=True).stdout)
        except FileNotFoundError:
            outputs.append("")
    authorities = Path("/usr/local/share/ca-certificates")
    own = {path.name: path.read_text() for path in sorted(authorities.glob("*.crt"))}
    return operator_files(*outputs, os.environ.get("http_proxy"), own)


def _base(client: "docker.DockerClient", report: Report) -> str:
    """A Debian base: the public image when a registry answers at once, else made here by debootstrap."""
    import docker

    with contextlib.suppress(docker.errors.ImageNotFound):
        return client.images.get(BASE).tags[0]
    repository, tag = PUBLIC_BASE
    try:
        quick = docker.from_env(timeout=5)
        quick.api.inspect_distribution(f"{repository}:{tag}")
        report(f"pulling {repository}:{tag}")
        client.images.pull(repository, tag)
        return f"{repository}:{tag}"
    except Exception as error:  # the SDK lets requests', urllib3's and OS errors through, each from another hierarchy
        report(f"no registry answers ({type(error).__name__}): making Debian {RELEASE} with debootstrap")
    return _debootstrap(client, report)


def _debootstrap(client: "docker.DockerClient", report: Report) -> str:
    from venice import engine

    if os.geteuid():
        raise VeniceError(
            f"the base image {':'.join(PUBLIC_BASE)} cannot be pulled, and only root can make one with debootstrap",
            f"Run `docker pull {':'.join(PUBLIC_BASE)}` where a registry answers, or run this once as root.",
        )
    engine.ensure_tools({"debootstrap": "debootstrap debian-archive-keyring"}, report)
    sources = _operator_files().get("etc/apt/sources.list")
    mirror = [sources.split()[1]] if sources else []
    with tempfile.TemporaryDirectory(prefix="venice-debootstrap-") as root:
        command = ["debootstrap", "--variant=minbase", RELEASE, root, *mirror]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            tail = "\n".join(done.stdout.strip().splitlines()[-5:])
            raise VeniceError(
                f"debootstrap {RELEASE} failed: {tail}",
                "Check that this machine reaches its Debian mirror, then run this again.",
            )
        Path(root).chmod(0o755)
        with subprocess.Popen(["tar", "-C", root, "-c", "--numeric-owner", "."], stdout=subprocess.PIPE) as archive:
            blocks = iter(functools.partial(archive.stdout.read, 1 << 20), b"")
            repository, tag = BASE.split(":")
            client.api.import_image_from_stream(blocks, repository=repository, tag=tag)
    return BASE
