"""Where Venice's own files and its state are."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Path of a shipped file or folder (`playbooks`, `roles`, ...): beside the package in a checkout, inside it in a wheel."""
    inside = _PACKAGE / "_data" / name
    return inside if inside.exists() else _PACKAGE.parent / name


def cache_dir() -> Path:
    """Folder for what can be made again (downloads, exported images); created when missing."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "venice"
    path.mkdir(parents=True, exist_ok=True)
    return path


def lab_dir() -> Path:
    """Folder of the lab's SSH key and known hosts. One per user: a machine has one lab, whatever checkout made it."""
    return Path.home() / ".venice" / "lab"


def shown(path: Path) -> str:
    """A path as people see it: from the current folder when it is below it."""
    full = path.absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)
