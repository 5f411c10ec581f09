"""The operator's own Docker engine: used as it is when there is one, installed and started when there is none.

Also installs the few system tools that Venice calls (`ssh`, `debootstrap`), by the same rule: Debian or Ubuntu as root,
elsewhere a clear message.
"""

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker

from venice.errors import VeniceError

Report = Callable[[str], None]

PACKAGES = ["docker.io", "iptables", "iproute2", "debootstrap", "debian-archive-keyring", "ca-certificates"]
START_SECONDS = 60
# where an engine keeps its containers' network namespaces
NAMESPACES = Path("/run/docker/netns")
PID_FILES = {"dockerd": Path("/var/run/docker.pid"), "containerd": Path("/var/run/docker/containerd/containerd.pid")}


def ensure_engine(report: Report) -> docker.DockerClient:
    """A client of a Docker engine that answers.

    An engine that answers is used untouched. When `DOCKER_HOST` names one that does not answer, that is the user's to
    mend. Otherwise, on Debian and Ubuntu as root, the distribution's engine is installed and started. May be called by
    many processes at once. Raises VeniceError with what to do.
    """
    client, cause = connect()
    if client:
        return client
    refusal = _refusal(cause, os.environ.get("DOCKER_HOST"), _distribution(), os.geteuid())
    if refusal:
        raise refusal
    with _lock():
        client, _ = connect()  # another process may have started it while this one waited for the lock
        if client:
            return client
        if not shutil.which("dockerd"):
            packages = PACKAGES + _client_packages(platform.freedesktop_os_release())
            report(f"installing a Docker engine ({' '.join(packages)})")
            _apt_install(packages)
        return _start(report)


def ensure_tools(tools: dict[str, str], report: Report) -> None:
    """Make sure that commands exist: `{"ssh": "openssh-client"}` is command -> Debian packages. Raises VeniceError."""
    missing = {command: packages for command, packages in tools.items() if not shutil.which(command)}
    if not missing:
        return
    packages = sorted({package for several in missing.values() for package in several.split()})
    if not _can_install(_distribution(), os.geteuid()):
        raise VeniceError(
            f"{', '.join(missing)} not found on this machine",
            f"Install {', '.join(packages)} (the names of Debian's packages), then run this again.",
        )
    with _lock():
        report(f"installing {' '.join(packages)}")
        _apt_install(packages)


def connect(timeout: float = 10) -> tuple[docker.DockerClient | None, str]:
    """A client of the engine that DOCKER_HOST names (default: the local socket), or None and why it does not answer."""
    try:
        client = docker.from_env(timeout=timeout)
        client.ping()
    except Exception as error:  # the SDK lets requests', urllib3's and OS errors through, each from another hierarchy
        return None, str(error)
    client.api.timeout = 600  # for the work to come: importing or building an image takes longer than an answer
    return client, ""


def _refusal(cause: str, docker_host: str | None, distribution: set[str], uid: int) -> VeniceError | None:
    """Why Venice will not install or start an engine here, or None when it will."""
    if docker_host:
        return VeniceError(
            f"the Docker engine that DOCKER_HOST names ({docker_host}) does not answer: {cause}",
            "Start it, correct DOCKER_HOST, or unset it to use this machine's own engine.",
        )
    if "Permission denied" in cause:
        return VeniceError(
            "this user may not talk to the Docker engine (permission denied on its socket)",
            "Add the user to the docker group (sudo usermod -aG docker $USER), log in again, then run this again.",
        )
    if not _can_install(distribution, uid):
        return VeniceError(
            f"no Docker engine answers on this machine: {cause}",
            "Start one, or set DOCKER_HOST. As root on Debian or Ubuntu, Venice installs and starts one itself.",
        )
    return None


def _can_install(distribution: set[str], uid: int) -> bool:
    return bool(distribution & {"debian", "ubuntu"}) and uid == 0


def _distribution() -> set[str]:
    """This machine's distribution and those it derives from, e.g. {"ubuntu", "debian"}; empty where unknown."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return set()
    return {release.get("ID", ""), *release.get("ID_LIKE", "").split()}


def _client_packages(release: dict[str, str]) -> list[str]:
    """The docker command's package, where it is not part of docker.io (since Debian 13)."""
    version = release.get("VERSION_ID", "0").split(".")[0]
    return ["docker-cli"] if release.get("ID") == "debian" and int(version) >= 13 else []


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One process at a time installs or starts."""
    with (_state_dir() / "engine.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _state_dir() -> Path:
    path = Path.home() / ".venice"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _apt_install(packages: list[str]) -> None:
    """Install packages without questions, with new package lists if need be. Raises VeniceError."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "-q", "--no-install-recommends", *packages]
    update = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "update", "-q"]
    done = subprocess.run(install, env=env, capture_output=True, text=True)
    if done.returncode:
        subprocess.run(update, env=env, capture_output=True)
        done = subprocess.run(install, env=env, capture_output=True, text=True)
    if done.returncode:
        raise VeniceError(
            f"apt-get could not install {' '.join(packages)}: {_last_lines(done.stderr)}",
            "Make `apt-get update && apt-get install` work on this machine, then run this again.",
        )


def _start(report: Report) -> docker.DockerClient:
    """Start the engine and return once it answers. Raises VeniceError with the end of its log."""
    log = _state_dir() / "dockerd.log"
    process = None
    if Path("/run/systemd/system").is_dir():
        report("starting Docker (systemctl enable --now docker)")
        done = subprocess.run(["systemctl", "enable", "--now", "docker"], capture_output=True, text=True)
        if done.returncode:
            raise VeniceError(
                f"systemd could not start Docker: {_last_lines(done.stderr)}",
                "See `journalctl -u docker`, mend it, run this again.",
            )
    else:
        for command, path in PID_FILES.items():
            drop_stale_pid(path, command)
        if not PID_FILES["dockerd"].exists():  # else one is starting already, e.g. from its package's own script
            if not _containers_run():
                drop_stale_namespaces(NAMESPACES)
            report(f"starting dockerd (log: {log})")
            with log.open("ab") as output:
                process = subprocess.Popen(["dockerd"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    deadline = time.monotonic() + START_SECONDS
    while True:
        client, cause = connect(timeout=2)
        if client:
            return client
        if process and process.poll() is not None:
            raise VeniceError(
                f"dockerd ended at once: {_last_lines(log.read_text(errors='replace'), 1)}",
                f"See {log}, mend it, run this again.",
            )
        if time.monotonic() > deadline:
            raise VeniceError(f"Docker was started but does not answer after {START_SECONDS} s: {cause}", f"See {log}.")
        time.sleep(0.2)


def drop_stale_pid(path: Path, command: str) -> None:
    """Remove a pid file whose process is gone or is not `command`.

    dockerd refuses to start while any process at all has the pid in its file, likely after a machine's restart.
    """
    try:
        pid = int(path.read_text())
        running = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        running = ""
    if running != command:
        path.unlink(missing_ok=True)


def drop_stale_namespaces(folder: Path) -> None:
    """Let go of the network namespaces that an engine left when it was killed with its containers.

    Their interfaces stay on the engine's bridges and answer for new containers that have the same addresses: connections of
    these are then refused, or hang. An engine forgets them when its own folder was removed meanwhile.
    """
    for path in folder.glob("*"):
        subprocess.run(["umount", path], capture_output=True)  # fails for one that is not mounted
        path.unlink()


def _containers_run() -> bool:
    """Whether there are containers, which may outlive their engine."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if comm.read_text().startswith("containerd-shim"):
                return True
    return False


def _last_lines(text: str, count: int = 5) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
