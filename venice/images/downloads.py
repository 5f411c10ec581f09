"""The pinned downloads that go into images: the folder they are kept in, verifying them, fetching those that are missing."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from venice import paths
from venice.errors import VeniceError
from venice.images import LABEL, Artifact, Report

if TYPE_CHECKING:
    import docker

_RUNNING = "downloads"  # value of the label on containers that download
# pip asks a source archive for its metadata before it hands it over, which takes setuptools; nothing of either is built
_SETUPTOOLS = "setuptools==80.9.0 --hash=sha256:062d34222ad13e0cc312a4c02d73f059e86a4acbfbdea8f8f76b28c99f306922"
SETUPTOOLS = (
    f"echo '{_SETUPTOOLS}' > /tmp/setuptools.txt\n"
    "pip install -q --no-cache-dir --root-user-action=ignore --no-deps --only-binary=:all: --require-hashes -r /tmp/setuptools.txt "
    "--target /tmp/setuptools\n"
)
SOURCES = "PYTHONPATH=/tmp/setuptools pip download -q --no-cache-dir --no-deps --no-binary=:all: --no-build-isolation"
"""In the builder, after `SETUPTOOLS`: fetches source archives, for packages that are published in no other form."""


def artifacts_dir() -> Path:
    """Folder of the kept downloads; created when missing."""
    path = paths.cache_dir() / "artifacts"
    path.mkdir(exist_ok=True)
    return path


def cached(wanted: Iterable[Artifact]) -> bool:
    """True when all of `wanted` are kept; their content is not looked at."""
    return all((artifacts_dir() / artifact.file).is_file() for artifact in wanted)


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(wanted: Iterable[Artifact]) -> None:
    """Check cached files against their pins; a file that does not match is removed, so that the next run fetches it."""
    for artifact in wanted:
        path = artifacts_dir() / artifact.file
        if not path.is_file():
            raise VeniceError(f"{artifact.coordinates}: not in {path.parent}", "run the same command again to fetch it")
        if (found := sha256(path)) != artifact.sha256:
            path.unlink()
            raise VeniceError(
                f"{artifact.coordinates}: the cached file {path.name} has sha256 {found}, not {artifact.sha256}",
                "it was removed; run the same command again to fetch it anew",
            )


def fetch(engine: "docker.DockerClient", builder: str, wanted: list[Artifact], report: Report) -> None:
    """Download what is not cached in a builder container, with the distribution's own maven and pip; verify; keep."""
    missing = [artifact for artifact in wanted if not cached([artifact])]
    report(f"(downloads): {len(missing)} files from Maven Central and PyPI")
    for left in artifacts_dir().glob("part-*"):  # of an interrupted run
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=artifacts_dir(), prefix="part-") as scratch:
        folder = Path(scratch)
        maven = [artifact for artifact in missing if artifact.source == "maven"]
        pypi = [artifact for artifact in missing if artifact.source == "pypi"]
        wheels = [artifact for artifact in pypi if artifact.file.endswith(".whl")]
        sources = [artifact for artifact in pypi if artifact not in wheels]
        script = ""
        if maven:
            (folder / "pom.xml").write_text(_pom(maven))
            # Maven's own libraries use what this Java warns of, in front of the lines that say what went wrong
            script += "export MAVEN_OPTS=--sun-misc-unsafe-memory-access=allow\n"
            script += "mvn -B -q -ntp -f /work/pom.xml dependency:copy\n"
        if wheels:
            (folder / "wheels.txt").write_text(_requirements(wheels))
            script += (
                "pip download --no-cache-dir --disable-pip-version-check -q --no-deps --only-binary=:all: "
                "--require-hashes -r /work/wheels.txt -d /work/files\n"
            )
        if sources:
            (folder / "sources.txt").write_text(_requirements(sources))
            script += f"{SETUPTOOLS}{SOURCES} --require-hashes -r /work/sources.txt -d /work/files\n"
        in_builder(engine, builder, script, folder)
        for artifact in missing:
            path = folder / "files" / artifact.file
            if not path.is_file():
                raise VeniceError(f"{artifact.coordinates}: the download gave no {artifact.file}", "check images/artifacts.yml")
            if (found := sha256(path)) != artifact.sha256:
                raise VeniceError(
                    f"{artifact.coordinates}: what was downloaded has sha256 {found}, artifacts.yml says {artifact.sha256}",
                    "the file was changed at its source or on the way: find out which before pinning it anew (tools/pin_artifacts.py)",
                )
            path.replace(artifacts_dir() / artifact.file)


def in_builder(engine: "docker.DockerClient", builder: str, script: str, folder: Path) -> None:
    """Run a shell script in the builder image with `folder` as /work (its files end up owned by the caller).

    The operator's own CA files are mounted and trusted for this run only. Raises VeniceError with the last output lines.
    """
    volumes = {str(folder): {"bind": "/work", "mode": "rw"}}
    trust = ""
    own = Path("/usr/local/share/ca-certificates")
    if any(own.glob("*.crt")):
        volumes[str(own)] = {"bind": str(own), "mode": "ro"}
        trust = "update-ca-certificates >/dev/null 2>&1\n"
    whole = (
        f"set -e\ntrap 'chown -R {os.getuid()}:{os.getgid()} /work' EXIT\n{trust}"
        f"export PIP_CERT=/etc/ssl/certs/ca-certificates.crt\n{script}"
    )
    container = engine.containers.create(builder, ["sh", "-c", whole], volumes=volumes, use_config_proxy=True, labels={LABEL: _RUNNING})
    try:
        container.start()
        status = container.wait()["StatusCode"]
        if status != 0:
            tail = "\n  ".join(container.logs(tail=15).decode(errors="replace").splitlines())
            raise VeniceError(
                f"a download failed (exit {status}):\n  {tail}",
                "can containers on this machine reach Maven Central and PyPI? A company's own CA belongs into "
                "/usr/local/share/ca-certificates/*.crt",
            )
    finally:
        container.remove(force=True)


def stop(engine: "docker.DockerClient") -> None:
    """End the downloads of an interrupted build."""
    for container in engine.containers.list(filters={"label": f"{LABEL}={_RUNNING}"}):
        container.remove(force=True)


def _requirements(wanted: Iterable[Artifact]) -> str:
    return "".join(f"{artifact.coordinates} --hash=sha256:{artifact.sha256}\n" for artifact in wanted)


def _pom(wanted: Iterable[Artifact]) -> str:
    items = ""
    for artifact in wanted:
        group, name, version, *rest = artifact.coordinates.split(":")
        kind, classifier = [*rest, "", ""][:2]
        items += (
            f"<artifactItem><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version>"
            f"<type>{kind or 'jar'}</type>{f'<classifier>{classifier}</classifier>' if classifier else ''}</artifactItem>\n"
        )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>venice</groupId><artifactId>downloads</artifactId>"
        "<version>1</version><packaging>pom</packaging><build><plugins><plugin>"
        "<groupId>org.apache.maven.plugins</groupId><artifactId>maven-dependency-plugin</artifactId><version>3.8.1</version>"
        f"<configuration><outputDirectory>/work/files</outputDirectory><artifactItems>\n{items}</artifactItems>"
        "</configuration></plugin></plugins></build></project>\n"
    )
