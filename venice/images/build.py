"""Building Venice's images on the operator's Docker engine: what is missing, in the right order, independent ones at once."""

import contextlib
import fcntl
import graphlib
import io
import os
import queue
import re
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import docker
import docker.errors
import requests

from venice import paths
from venice.engine import ensure_engine
from venice.errors import InputError, VeniceError
from venice.images import BUILDER, LABEL, USES, Image, Report, catalog, debian, downloads, files, refs
from venice.images.export import prune

_FILE_TIME = 1735689600  # 2025-01-01: a jar's time is recorded in AOT caches, so it must not depend on when it was fetched


@dataclass(frozen=True)
class Built:
    """Outcome for one image: `size` in bytes on disk, `built` False when it was there already, `seconds` spent."""

    name: str
    ref: str
    id: str
    size: int
    built: bool
    seconds: float


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
    known = catalog()
    wanted = list(names) if names is not None else list(refs())
    if unknown := [name for name in wanted if name not in refs()]:
        raise InputError(f"no such image: {', '.join(unknown)}", f"images are: {', '.join(refs())}")
    ensure_engine(report)
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
    known = catalog()
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
        if image.artifacts and not downloads.cached(image.artifacts):
            todo.append(BUILDER)
    return needed


def _build_all(engine: docker.DockerClient, known: dict[str, Image], needed: set[str], report: Report) -> dict[str, float]:
    """Build `needed`, independent ones at the same time; returns seconds by name."""
    pinned = {artifact.file: artifact for name in needed for artifact in known[name].artifacts}
    fetch = bool(pinned) and not downloads.cached(pinned.values())
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
            if debian.TAG not in present(engine):
                debian.make(engine, report)
        elif node == "(downloads)":
            downloads.fetch(engine, known[BUILDER].ref, list(pinned.values()), report)
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
        downloads.stop(engine)
        raise
    return {name: seconds for name, seconds in spent.items() if name in needed}


def _build_one(engine: docker.DockerClient, known: dict[str, Image], image: Image, report: Report, stop: threading.Event) -> None:
    """One `docker build`; the tag is given only when all of it worked."""
    report(f"{image.name}: building {image.ref}")
    downloads.verify(image.artifacts)
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

    text = USES.sub(tagged, (image.folder / "Dockerfile").read_text())
    return re.sub(r"^(FROM .*)$", rf"\1\nLABEL {LABEL}={image.name}", text, flags=re.MULTILINE)


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
            for path in files(image.folder):
                name = path.relative_to(image.folder).as_posix()
                if name != "Dockerfile":
                    with path.open("rb") as content:
                        tar.addfile(entry(name, path.stat().st_size, os.access(path, os.X_OK)), content)
            for artifact in image.artifacts:
                path = downloads.artifacts_dir() / artifact.file
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
        engine.images.prune(filters={"dangling": True, "label": [LABEL]})
    kept: set[str] = set()
    for image in engine.images.list():
        kept |= {name.partition(":")[2] for name in (image.id, *image.attrs["RootFS"].get("Layers", ()))}
    prune(kept)
