"""Images as files: each layer once in the cache, named by its content, ready to be sent to hosts."""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import requests

from venice import paths
from venice.errors import VeniceError


@dataclass(frozen=True)
class Exported:
    """An image as files: `config` is its configuration (JSON), `layers` the diff ids (hex) in order, each `<diff id>.tar`."""

    ref: str
    id: str
    config: bytes
    layers: list[str]
    directory: Path


def layers_dir() -> Path:
    """Folder of the layer files and the images' configurations; created when missing."""
    path = paths.cache_dir() / "layers"
    path.mkdir(exist_ok=True)
    return path


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """While anybody on this machine is in here, no file of the cache's layers is removed."""
    with (paths.cache_dir() / ".layers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def prune(kept: Collection[str]) -> None:
    """Remove the files of all images and layers but `kept` (hex ids); nothing while anybody uses any, a later call does it then."""
    with (paths.cache_dir() / ".layers.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for path in layers_dir().iterdir():
            if path.stem not in kept:  # also what an interrupted export left half-written
                path.unlink(missing_ok=True)


def ids(engine: docker.DockerClient, ref: str) -> set[str]:
    """What `prune` is told to keep an image's files: its id and those of its layers; nothing when the engine lacks it."""
    try:
        attributes = engine.api.inspect_image(ref)
    except docker.errors.ImageNotFound:
        return set()
    return {name.partition(":")[2] for name in (attributes["Id"], *attributes["RootFS"].get("Layers", ()))}


def export(engine: docker.DockerClient, ref: str) -> Exported:
    """Write the image's layers to the cache, each once as `<diff id>.tar`; asks the engine for data only when one lacks.

    To be called, and the files to be used, inside `in_use()`.
    Raises VeniceError when the engine does not have `ref`.
    """
    try:
        attributes = engine.api.inspect_image(ref)
    except docker.errors.ImageNotFound as error:
        raise VeniceError(f"image {ref} is not on this machine", "run `venice images build`") from error
    directory = layers_dir()
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
