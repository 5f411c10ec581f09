"""Venice's own container images: which there are, what they are made of, what their tags are. Reads files only, no Docker.

An image is a folder of `images/` with a Dockerfile; the downloads it uses are pinned in `images/artifacts.yml`. Its tag is a
hash of all that goes into it, so that "is it built" and "does the host have it" are questions about names only. Every command
loads this module; what needs Docker's library is in the modules beside it.
"""

import functools
import graphlib
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from venice import paths
from venice.errors import InputError

BUILDER = "builder"
"""The image that downloads and compiles: never shipped, not among `refs()`."""

_RECIPE = "1"
"""Part of every tag: raise it when this package builds something else from the same files."""

LABEL = "venice.image"
"""The label of images, build stages and containers that are Venice's own; its value says which."""

USES = re.compile(r"^(FROM\s+|COPY\s+--from=)venice/([a-z0-9-]+)(?::([a-z]+))?", re.MULTILINE)
"""How a Dockerfile names another image of Venice's: groups are what stands before it, the name, the tag if any."""

Report = Callable[[str], None]
"""Gets a line for each step of something that takes a while, possibly from several threads."""


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
def catalog(folder: Path | None = None) -> dict[str, Image]:
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
        for path in files(folders[name]):
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
    return {name: image.ref for name, image in catalog().items() if name != BUILDER}


def _uses(dockerfile: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(match[2] for match in USES.finditer(dockerfile)))


def files(folder: Path) -> list[Path]:
    """What belongs to an image's folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
