"""The Debian root that all images start from: pulled when a registry answers, else made here."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import docker
import docker.errors
import docker.utils
import requests

from venice import paths
from venice.errors import VeniceError
from venice.images import Report

TAG = "venice/debian:trixie"

_PULL_SECONDS = 5


def make(engine: docker.DockerClient, report: Report) -> None:
    """Make the image `TAG`: pulled when a registry answers within seconds, else by debootstrap."""
    report("debian: asking for debian:trixie-slim")
    try:
        hasty = docker.APIClient(**docker.utils.kwargs_from_env(), timeout=_PULL_SECONDS)
        for event in hasty.pull("debian", tag="trixie-slim", stream=True, decode=True):
            if "error" in event:
                raise docker.errors.APIError(event["error"])
        engine.api.tag("debian:trixie-slim", *TAG.split(":"))
        return
    except (docker.errors.APIError, requests.RequestException) as error:
        report(f"debian: no registry answers ({str(error).splitlines()[0][:90]}); using debootstrap")
    if os.geteuid() != 0:
        raise VeniceError(
            "the Debian base image can be neither pulled (no registry answers) nor made (debootstrap needs root)",
            "run `venice images build` once as root, or let this engine reach a registry that has debian:trixie-slim",
        )
    _install_debootstrap(report)
    with tempfile.TemporaryDirectory(dir=paths.cache_dir(), prefix="debian-") as scratch:
        root = Path(scratch) / "root"
        _run(["debootstrap", "--variant=minbase", "trixie", str(root)], "debian: debootstrap", report)
        _slim(root)
        with subprocess.Popen(["tar", "--numeric-owner", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None  # noqa: S101 (for the type checker: it is a pipe)
            result = engine.api.import_image_from_stream(iter(functools.partial(tar.stdout.read, 1 << 20), b""), *TAG.split(":"))
        if "error" in result or tar.returncode != 0:
            raise VeniceError(f"the Debian base image could not be imported: {result}", "is the engine's disk full?")


def _install_debootstrap(report: Report) -> None:
    if shutil.which("debootstrap"):
        return
    if not shutil.which("apt-get"):
        raise VeniceError(
            "the Debian base image can be neither pulled (no registry answers) nor made (no debootstrap here)",
            "install debootstrap, or let this engine reach a registry that has debian:trixie-slim",
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "-q", "update"], "debian: apt-get update", report, environment)
    _run(
        ["apt-get", "-q", "install", "-y", "--no-install-recommends", "debootstrap", "debian-archive-keyring"],
        "debian: installing debootstrap",
        report,
        environment,
    )


def _run(command: list[str], what: str, report: Report, environment: dict[str, str] | None = None) -> None:
    report(what)
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode != 0:
        tail = "\n  ".join((result.stdout + result.stderr).strip().splitlines()[-15:])
        raise VeniceError(f"{' '.join(command)} failed:\n  {tail}", "mend what it says and run the same command again")


def _slim(root: Path) -> None:
    """What Debian's own slim image leaves out, now and for packages installed later: docs, manuals, translations, caches."""
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(
        "path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\n"
        "path-exclude /usr/share/man/*\npath-exclude /usr/share/info/*\npath-exclude /usr/share/locale/*\n"
    )
    (root / "etc/apt/apt.conf.d/slim").write_text(
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };\n'
        'Acquire::Languages "none";\nAcquire::GzipIndexes "true";\nDir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n'
    )
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # a package must not start a service in a build
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    for path in (root / "usr/share/doc").glob("*/*"):
        if path.name != "copyright":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for folder in ("usr/share/man", "usr/share/info", "usr/share/locale", "var/cache", "var/lib/apt/lists", "var/log"):
        for path in (root / folder).glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
