"""Files and directories on this host: what is there, what differs, and atomic writing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path


def sha256(text: str) -> str:
    """Hex digest of a file's content."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: str) -> str:
    """Hex digest of the file at `path`; '' when there is none."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        return ""


def directory_differences(wanted: dict) -> list[dict]:
    """What differs at a directory description: `{field, current, desired, reason}` for existence, owner and mode."""
    path = Path(wanted["path"])
    if not path.is_dir():
        reason = "is not a directory" if path.exists() else "does not exist"
        return [{"field": "directory", "current": None, "desired": _rights(wanted), "reason": reason}]
    return _rights_differences(path.stat(), wanted)


def file_differences(wanted: dict) -> tuple[list[dict], str]:
    """What differs at a file description, and the present content ('' when there is none or it is no text)."""
    path = Path(wanted["path"])
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return [{"field": "content", "current": None, "desired": _size(wanted), "reason": "does not exist"}], ""
    differences = _rights_differences(path.stat(), wanted)
    if raw != wanted["content"].encode():
        size = f"{len(raw)} bytes"
        differences.insert(0, {"field": "content", "current": size, "desired": _size(wanted), "reason": "the content differs"})
    return differences, raw.decode(errors="replace")


def make_directory(wanted: dict) -> None:
    """Create a directory (parents: root, 0755) or put its owner and mode right."""
    path = Path(wanted["path"])
    _make_parents(path)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    os.chown(path, wanted["owner"], wanted["group"])
    path.chmod(int(wanted["mode"], 8))


def write_file(wanted: dict) -> None:
    """Replace a file atomically: readers see the old content or the new one, also after a power cut."""
    path = Path(wanted["path"])
    _make_parents(path)
    # a fixed name, so that an interrupted run leaves at most one and the next run overwrites it
    temporary = path.with_name(f".{path.name}.venice")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchown(descriptor, wanted["owner"], wanted["group"])
        os.fchmod(descriptor, int(wanted["mode"], 8))
        file.write(wanted["content"].encode())
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def set_rights(wanted: dict) -> None:
    """Put owner and mode of an existing file right, keeping the file (and its inode)."""
    os.chown(wanted["path"], wanted["owner"], wanted["group"])
    Path(wanted["path"]).chmod(int(wanted["mode"], 8))


def remove_file(path: str) -> None:
    """Delete a file and the directories above it that this leaves empty."""
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    _remove_empty_above(Path(path))


def remove_directory(path: str) -> None:
    """Delete a directory with all its content and the directories above it that this leaves empty.

    A mount point or a symbolic link stays, empty.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()
        _remove_empty_above(directory)


def _make_parents(path: Path) -> None:
    missing = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(missing):
        with contextlib.suppress(FileExistsError):
            parent.mkdir()
            parent.chmod(0o755)


def _remove_empty_above(path: Path) -> None:
    # never one of the root's own directories, such as /etc or /srv
    for parent in [parent for parent in path.parents if len(parent.parts) > 2]:
        try:
            parent.rmdir()
        except OSError:
            return


def _rights(wanted: dict) -> str:
    return f"{wanted['owner']}:{wanted['group']} {wanted['mode']}"


def _size(wanted: dict) -> str:
    return f"{len(wanted['content'].encode())} bytes"


def _rights_differences(status: os.stat_result, wanted: dict) -> list[dict]:
    pairs = [
        ("owner", f"{status.st_uid}:{status.st_gid}", f"{wanted['owner']}:{wanted['group']}"),
        ("mode", f"{stat.S_IMODE(status.st_mode):04o}", wanted["mode"]),
    ]
    return [
        {"field": field, "current": current, "desired": desired, "reason": "differs from the description"}
        for field, current, desired in pairs
        if current != desired
    ]
