"""Venice's own container images: what their tags are, building them, exporting them for shipping.

An image is a folder of `images/` with a Dockerfile; the downloads it uses are pinned in `images/artifacts.yml`. Its tag is a
hash of all that goes into it, so that "is it built" and "does the host have it" are questions about names only.
"""

import contextlib
import fcntl
import functools
import graphlib
import gzip
import hashlib
import io
import json
import os
import queue
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import requests
import yaml

from venice import paths
from venice.errors import InputError, VeniceError

BUILDER = "builder"
"""The image that downloads and compiles: never shipped, not among `refs()`."""

_RECIPE = "1"
"""Part of every tag: raise it when this module builds something else from the same files."""

_DEBIAN_PULL_SECONDS = 5
_FILE_TIME = 1735689600  # 2025-01-01: a jar's time is recorded in AOT caches, so it must not depend on when it was fetched
_LABEL = "venice.image"
_DOWNLOADS = "downloads"  # value of the label on containers that download
_USES = re.compile(r"^(FROM\s+|COPY\s+--from=)venice/([a-z0-9-]+)(?::([a-z]+))?", re.MULTILINE)

Report = Callable[[str], None]


@dataclass(frozen=True)
class Artifact:
    """One pinned download. `source` is `maven` or `pypi`, `coordinates` what that tool calls it."""

    source: str
    coordinates: str
    sha256: str
    licence: str
    file: str


@dataclass(frozen=True)
class Image:
    """One folder of `images/`: its Dockerfile's text, the images and artifacts it uses, its content hash (64 hex digits)."""

    name: str
    folder: Path
    uses: tuple[str, ...]
    artifacts: tuple[Artifact, ...]
    digest: str

    @property
    def ref(self) -> str:
        return f"venice/{self.name}:{self.digest[:12]}"


@dataclass(frozen=True)
class Built:
    """Outcome for one image: `size` in bytes on disk, `built` False when it was there already, `seconds` spent."""

    name: str
    ref: str
    id: str
    size: int
    built: bool
    seconds: float


@dataclass(frozen=True)
class Exported:
    """An image as files: `config` is its configuration (JSON), `layers` the diff ids (hex) in order, each `<diff id>.tar`."""

    ref: str
    id: str
    config: bytes
    layers: list[str]
    directory: Path


# --- what there is -----------------------------------------------------------------------------------------------------


def artifacts(folder: Path | None = None) -> dict[str, tuple[Artifact, ...]]:
    """Image name -> its pinned downloads, from `artifacts.yml`."""
    path = (folder or paths.resource("images")) / "artifacts.yml"
    try:
        # the C loader is safe_load's, ten times as fast: every command that names an image reads this file
        document = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        return {
            image: tuple(
                Artifact(source, entry[source], entry["sha256"], entry["licence"], entry["file"])
                for entry in content["files"]
                for source in ("maven", "pypi")
                if source in entry
            )
            for image, content in document.items()
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read: {error!r}", "restore it, or run tools/pin_artifacts.py") from error


@functools.cache
def images(folder: Path | None = None) -> dict[str, Image]:
    """All images by name, parents before children. Reads files only."""
    folder = folder or paths.resource("images")
    pinned = artifacts(folder)
    texts = {path.parent: path.read_text() for path in sorted(folder.glob("*/Dockerfile"))}
    # a folder whose Dockerfile starts from nothing of Venice's is not for hosts and not built here (the lab's machines)
    uses = {path.name: _uses(text) for path, text in texts.items() if _uses(text)}
    folders = {path.name: path for path in texts if path.name in uses}
    result: dict[str, Image] = {}
    try:
        order = list(graphlib.TopologicalSorter(uses).static_order())
    except graphlib.CycleError as error:
        raise InputError(f"{folder}: images use each other in a circle: {' -> '.join(error.args[1])}") from error
    for name in order:
        if name not in folders:
            if name == "debian":
                continue
            user = next(image for image, used in uses.items() if name in used)
            raise InputError(f"{folders[user]}/Dockerfile: uses venice/{name}, which has no folder in {folder}")
        digest = hashlib.sha256(f"{_RECIPE}\0{name}\0".encode())
        for path in _files(folders[name]):
            mode = "x" if os.access(path, os.X_OK) else "-"
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folders[name]).as_posix()}\0{mode}\0{content}\0".encode())
        for artifact in pinned.get(name, ()):
            digest.update(f"{artifact.file}\0{artifact.sha256}\0".encode())
        for used in uses[name]:
            digest.update(f"{used}\0{result[used].digest if used in result else ''}\0".encode())
        result[name] = Image(name, folders[name], uses[name], pinned.get(name, ()), digest.hexdigest())
    return result


def refs() -> dict[str, str]:
    """Image name -> `venice/<name>:<hash>` for every image that can run on a host. Reads files only, no Docker."""
    return {name: image.ref for name, image in images().items() if name != BUILDER}


def _uses(dockerfile: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(match[2] for match in _USES.finditer(dockerfile)))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


# --- building ----------------------------------------------------------------------------------------------------------


def client() -> docker.DockerClient:
    """The operator's Docker engine; UnreachableError-like VeniceError when none answers."""
    try:
        # a build step may be silent for minutes (a JVM being trained), so no read timeout
        engine = docker.from_env(timeout=None)
        engine.ping()
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise VeniceError(
            f"no Docker engine answers on this machine: {error}",
            "start it (systemctl start docker) or install it (apt-get install docker.io); your user must be in its group",
            exit_code=3,
        ) from error
    return engine


def present(engine: docker.DockerClient) -> dict[str, dict]:
    """Images of Venice that the engine has: tag -> {"id", "size"}."""
    found = engine.api.images()
    return {
        tag: {"id": image["Id"], "size": image["Size"]}
        for image in found
        for tag in image.get("RepoTags") or ()
        if tag.startswith("venice/")
    }


def build(names: Iterable[str] | None = None, report: Report = lambda line: None) -> list[Built]:
    """Build what is missing of `names` (all images when None) and what they are made from; returns one Built per image.

    `report` gets a line for each step, possibly from several threads. Raises VeniceError; nothing half-made gets a tag.
    """
    known = images()
    wanted = list(names) if names is not None else list(refs())
    if unknown := [name for name in wanted if name not in refs()]:
        raise InputError(f"no such image: {', '.join(unknown)}", f"images are: {', '.join(refs())}")
    engine = client()
    there = present(engine)
    spent = build_missing(engine, wanted, report, there)
    if spent:
        there = present(engine)
    return [
        Built(
            name=image.name,
            ref=image.ref,
            id=there[image.ref]["id"],
            size=there[image.ref]["size"],
            built=image.name in spent,
            seconds=round(spent.get(image.name, 0.0), 1),
        )
        for image in (known[name] for name in known if name in wanted)
    ]


def build_missing(
    engine: docker.DockerClient, wanted: Iterable[str], report: Report, there: Iterable[str] | None = None
) -> dict[str, float]:
    """Build those of `wanted` (the builder may be among them) that the engine lacks; returns seconds by name."""
    known = images()
    if not _needed(known, wanted, present(engine) if there is None else there):
        return {}
    with (paths.cache_dir() / ".build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another build on this machine to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        needed = _needed(known, wanted, present(engine))
        spent = _build_all(engine, known, needed, report)
        _clean(engine, known, present(engine), report)
    return spent


def _needed(known: dict[str, Image], wanted: Iterable[str], there: Iterable[str]) -> set[str]:
    """Names to build: those wanted that are missing, and whatever is missing of what these are made from."""
    needed: set[str] = set()
    todo = list(wanted)
    while todo:
        image = known[todo.pop()]
        if image.name in needed or image.ref in there:
            continue
        needed.add(image.name)
        todo += [used for used in image.uses if used in known]
        if image.artifacts and not _cached(image.artifacts):
            todo.append(BUILDER)
    return needed


def _build_all(engine: docker.DockerClient, known: dict[str, Image], needed: set[str], report: Report) -> dict[str, float]:
    """Build `needed`, independent ones at the same time; returns seconds by name."""
    downloads = {artifact.file: artifact for name in needed for artifact in known[name].artifacts}
    fetch = bool(downloads) and not _cached(downloads.values())
    graph: dict[str, set[str]] = {name: needed.intersection(known[name].uses) for name in needed}
    if fetch:
        graph["(downloads)"] = needed.intersection({BUILDER})
        for name in needed:
            if known[name].artifacts:
                graph[name].add("(downloads)")
    if any("debian" in known[name].uses for name in needed):
        graph["(debian)"] = set()
        for name in needed:
            if "debian" in known[name].uses:
                graph[name].add("(debian)")
    spent: dict[str, float] = {}
    stop = threading.Event()

    def step(node: str) -> None:
        started = time.monotonic()
        if node == "(debian)":
            _debian(engine, report)
        elif node == "(downloads)":
            _fetch(engine, known[BUILDER].ref, list(downloads.values()), report)
        elif not stop.is_set():
            _build_one(engine, known, known[node], report, stop)
        spent[node] = time.monotonic() - started
        report(f"{node}: done in {spent[node]:.0f} s")

    results: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()

    def work(node: str) -> None:
        try:
            step(node)
        except BaseException as error:
            results.put((node, error))
        else:
            results.put((node, None))

    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    try:
        while sorter.is_active():
            for node in sorter.get_ready():
                # daemons: after Ctrl-C nobody waits for a build step; the engine ends a build whose client is gone
                threading.Thread(target=work, args=(node,), daemon=True).start()
            node, error = results.get()
            if error:
                raise error
            sorter.done(node)
    except BaseException:
        stop.set()
        for container in engine.containers.list(filters={"label": f"{_LABEL}={_DOWNLOADS}"}):
            container.remove(force=True)
        raise
    return {name: seconds for name, seconds in spent.items() if name in needed}


def _build_one(engine: docker.DockerClient, known: dict[str, Image], image: Image, report: Report, stop: threading.Event) -> None:
    """One `docker build`; the tag is given only when all of it worked."""
    report(f"{image.name}: building {image.ref}")
    _verify(image.artifacts)
    lines: list[str] = []
    with _context(image, known) as context:
        stream = engine.api.build(fileobj=context, custom_context=True, rm=True, forcerm=True, decode=True, use_config_proxy=True)
        built = ""
        for event in stream:
            if stop.is_set():
                stream.close()  # the engine ends a build whose client went away
                return
            if text := event.get("stream", "").strip():
                lines += text.splitlines()
                if text.startswith("Step "):
                    report(f"{image.name}: {text.splitlines()[0][:110]}")
            if "error" in event:
                tail = "\n  ".join(lines[-25:])
                raise VeniceError(
                    f"image {image.name} could not be built: {event['error'].strip()}\n  {tail}",
                    f"see {image.folder}/Dockerfile; running the same command again repeats only what is missing",
                )
            built = event.get("aux", {}).get("ID", built)
    engine.api.tag(built, f"venice/{image.name}", image.digest[:12])


def _dockerfile(image: Image, known: dict[str, Image]) -> str:
    """The Dockerfile with every `venice/<name>` replaced by its tag, and each stage labelled so that it can be cleaned up."""

    def tagged(match: re.Match) -> str:
        ref = known[match[2]].ref if match[2] in known else f"venice/{match[2]}:{match[3]}"
        return match[1] + ref

    text = _USES.sub(tagged, (image.folder / "Dockerfile").read_text())
    return re.sub(r"^(FROM .*)$", rf"\1\nLABEL {_LABEL}={image.name}", text, flags=re.MULTILINE)


@contextlib.contextmanager
def _context(image: Image, known: dict[str, Image]) -> Iterator[io.BufferedIOBase]:
    """The build context as a tar file: the folder, the artifacts under `artifacts/`; owner and times the same everywhere."""

    def entry(name: str, size: int, executable: bool) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = size, _FILE_TIME, 0o755 if executable else 0o644
        return info

    with tempfile.TemporaryFile(dir=paths.cache_dir()) as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            text = _dockerfile(image, known).encode()
            tar.addfile(entry("Dockerfile", len(text), False), io.BytesIO(text))
            for path in _files(image.folder):
                name = path.relative_to(image.folder).as_posix()
                if name != "Dockerfile":
                    with path.open("rb") as content:
                        tar.addfile(entry(name, path.stat().st_size, os.access(path, os.X_OK)), content)
            for artifact in image.artifacts:
                path = _artifacts_dir() / artifact.file
                with path.open("rb") as content:
                    tar.addfile(entry(f"artifacts/{artifact.file}", path.stat().st_size, False), content)
        file.seek(0)
        yield file


def _clean(engine: docker.DockerClient, known: dict[str, Image], there: dict[str, dict], report: Report) -> None:
    """Remove superseded tags that no container uses, build stages, and exported files of images that are gone.

    Stages are not worth their disk: a finished image is found by its tag, not by its layer cache.
    """
    names = {f"venice/{name}" for name in known}
    current = {image.ref for image in known.values()}
    for ref in there:
        if ref.rpartition(":")[0] in names and ref not in current:
            with contextlib.suppress(docker.errors.APIError):  # in use: it goes with a later build
                engine.api.remove_image(ref)
                report(f"removed superseded {ref}")
    with contextlib.suppress(docker.errors.APIError):  # someone else prunes
        engine.images.prune(filters={"dangling": True, "label": [_LABEL]})
    kept: set[str] = set()
    for image in engine.images.list():
        kept |= {name.partition(":")[2] for name in (image.id, *image.attrs["RootFS"].get("Layers", ()))}
    for path in _layers_dir().glob("[0-9a-f]*.*"):
        if path.stem not in kept:
            path.unlink(missing_ok=True)


# --- the Debian root ---------------------------------------------------------------------------------------------------


def _debian(engine: docker.DockerClient, report: Report) -> None:
    """Make `venice/debian:trixie`: pulled when a registry answers within seconds, else by debootstrap."""
    tag = "venice/debian:trixie"
    if tag in present(engine):
        return
    report("debian: asking for debian:trixie-slim")
    try:
        hasty = docker.APIClient(**docker.utils.kwargs_from_env(), timeout=_DEBIAN_PULL_SECONDS)
        for event in hasty.pull("debian", tag="trixie-slim", stream=True, decode=True):
            if "error" in event:
                raise docker.errors.APIError(event["error"])
        engine.api.tag("debian:trixie-slim", *tag.split(":"))
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
            result = engine.api.import_image_from_stream(iter(functools.partial(tar.stdout.read, 1 << 20), b""), *tag.split(":"))
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


# --- downloads ---------------------------------------------------------------------------------------------------------


def _artifacts_dir() -> Path:
    path = paths.cache_dir() / "artifacts"
    path.mkdir(exist_ok=True)
    return path


def _cached(wanted: Iterable[Artifact]) -> bool:
    return all((_artifacts_dir() / artifact.file).is_file() for artifact in wanted)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(wanted: Iterable[Artifact]) -> None:
    """Check cached files against their pins; a file that does not match is removed, so that the next run fetches it."""
    for artifact in wanted:
        path = _artifacts_dir() / artifact.file
        if not path.is_file():
            raise VeniceError(f"{artifact.coordinates}: not in {path.parent}", "run the same command again to fetch it")
        if (found := _sha256(path)) != artifact.sha256:
            path.unlink()
            raise VeniceError(
                f"{artifact.coordinates}: the cached file {path.name} has sha256 {found}, not {artifact.sha256}",
                "it was removed; run the same command again to fetch it anew",
            )


def _fetch(engine: docker.DockerClient, builder: str, wanted: list[Artifact], report: Report) -> None:
    """Download what is not cached in a builder container, with the distribution's own maven and pip; verify; keep."""
    missing = [artifact for artifact in wanted if not _cached([artifact])]
    report(f"(downloads): {len(missing)} files from Maven Central and PyPI")
    for left in _artifacts_dir().glob("part-*"):  # of an interrupted run
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=_artifacts_dir(), prefix="part-") as scratch:
        folder = Path(scratch)
        maven = [artifact for artifact in missing if artifact.source == "maven"]
        pypi = [artifact for artifact in missing if artifact.source == "pypi"]
        script = ""
        if maven:
            (folder / "pom.xml").write_text(_pom(maven))
            # Maven's own libraries use what this Java warns of, in front of the lines that say what went wrong
            script += "export MAVEN_OPTS=--sun-misc-unsafe-memory-access=allow\n"
            script += "mvn -B -q -ntp -f /work/pom.xml dependency:copy\n"
        if pypi:
            lines = [f"{artifact.coordinates} --hash=sha256:{artifact.sha256}\n" for artifact in pypi]
            (folder / "requirements.txt").write_text("".join(lines))
            script += (
                "pip download --no-cache-dir --disable-pip-version-check -q --no-deps --only-binary=:all: "
                "--require-hashes -r /work/requirements.txt -d /work/files\n"
            )
        in_builder(engine, builder, script, folder)
        for artifact in missing:
            path = folder / "files" / artifact.file
            if not path.is_file():
                raise VeniceError(f"{artifact.coordinates}: the download gave no {artifact.file}", "check images/artifacts.yml")
            if (found := _sha256(path)) != artifact.sha256:
                raise VeniceError(
                    f"{artifact.coordinates}: what was downloaded has sha256 {found}, artifacts.yml says {artifact.sha256}",
                    "the file was changed at its source or on the way: find out which before pinning it anew (tools/pin_artifacts.py)",
                )
            path.replace(_artifacts_dir() / artifact.file)


def in_builder(engine: docker.DockerClient, builder: str, script: str, folder: Path) -> None:
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
    container = engine.containers.create(builder, ["sh", "-c", whole], volumes=volumes, use_config_proxy=True, labels={_LABEL: _DOWNLOADS})
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


# --- export ------------------------------------------------------------------------------------------------------------


def _layers_dir() -> Path:
    path = paths.cache_dir() / "layers"
    path.mkdir(exist_ok=True)
    return path


def export(ref: str) -> Exported:
    """Write the image's layers to the cache, each once as `<diff id>.tar`; asks the engine for data only when one lacks.

    Raises VeniceError when the engine does not have `ref`.
    """
    engine = client()
    try:
        attributes = engine.api.inspect_image(ref)
    except docker.errors.ImageNotFound as error:
        raise VeniceError(f"image {ref} is not on this machine", "run `venice images build`") from error
    directory = _layers_dir()
    layers = [layer.partition(":")[2] for layer in attributes["RootFS"]["Layers"]]
    record = directory / f"{attributes['Id'].partition(':')[2]}.json"
    if not (record.is_file() and all((directory / f"{layer}.tar").is_file() for layer in layers)):
        _write_atomically(record, unpack_archive(engine.api.get_image(ref, chunk_size=1 << 20), directory))
    config = record.read_bytes()
    return Exported(ref, f"sha256:{hashlib.sha256(config).hexdigest()}", config, layers, directory)


def unpack_archive(chunks: Iterable[bytes], directory: Path) -> bytes:
    """Split a `docker save` archive of one image into `<diff id>.tar` files; returns the image's configuration.

    Understands what docker 20.10 writes (`<id>/layer.tar`, links for repeated layers) and what 25 and later write (OCI
    blobs, possibly compressed): a layer is recognised by its content and named by the hash of it.
    """
    documents: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=_Stream(chunks), mode="r|") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                content = archive.extractfile(member)
                assert content is not None  # noqa: S101 (for the type checker: it is a file)
                is_blob = member.name.startswith("blobs/")
                head = content.read(2)
                if member.name.endswith("/layer.tar") or (is_blob and head[:1] != b"{"):
                    _write_layer(_Joined(head, content), directory)
                elif is_blob or member.name.endswith(".json"):
                    documents[member.name] = head + content.read()
    except (tarfile.TarError, EOFError, requests.RequestException) as error:
        raise VeniceError(f"the engine's archive ended early: {error}", "run the same command again") from error
    try:
        manifest = json.loads(documents["manifest.json"])
        config = documents[manifest[0]["Config"]]
        layers = [layer.partition(":")[2] for layer in json.loads(config)["rootfs"]["diff_ids"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise VeniceError(f"the engine's archive is not an image archive: {error!r}", "is the engine healthy?") from error
    if lacking := [layer for layer in layers if not (directory / f"{layer}.tar").is_file()]:
        raise VeniceError(f"the engine's archive lacks layers {', '.join(lacking)}", "run the same command again")
    return config


def _write_layer(content: io.RawIOBase, directory: Path) -> None:
    """Write one (possibly gzip-compressed) layer as `<sha256 of the tar>.tar`, unless that is there."""
    buffered = io.BufferedReader(content)
    source = gzip.GzipFile(fileobj=buffered) if buffered.peek(2)[:2] == b"\x1f\x8b" else buffered
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=directory, prefix="part-", delete=False) as file:
        try:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            target = directory / f"{digest.hexdigest()}.tar"
            Path(file.name).unlink() if target.is_file() else Path(file.name).replace(target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _write_atomically(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="part-", delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


class _Stream(io.RawIOBase):
    """Chunks as a file that can be read once."""

    def __init__(self, chunks: Iterable[bytes]):
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk
        end = len(self._rest) if size < 0 else size
        result, self._rest = self._rest[:end], self._rest[end:]
        return result


class _Joined(io.RawIOBase):
    """Bytes already read, then the rest of the file they came from."""

    def __init__(self, head: bytes, rest):
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._head or self._rest.read(len(buffer))
        data, self._head = data[: len(buffer)], data[len(buffer) :] if self._head else b""
        buffer[: len(data)] = data
        return len(data)
