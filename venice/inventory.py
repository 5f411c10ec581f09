"""From `--inventory NAME|PATH` to a folder or file."""

import os
import shutil
from pathlib import Path

from venice import paths
from venice.errors import InputError


def resolve(given: str | None) -> Path:
    """The inventory meant by NAME or PATH.

    Order: an existing path; `inventory/NAME` below the current folder; an inventory that Venice ships, which is copied to
    `inventory/NAME` first, because secrets and run records are kept beside it. Without a value: $VENICE_INVENTORY, else the only
    inventory below the current folder. Raises InputError that lists what there is.
    """
    given = given or os.environ.get("VENICE_INVENTORY")
    local = Path("inventory")
    if not given:
        present = names(local)
        if len(present) == 1:
            return local / present[0]
        there = f"here: {', '.join(present) or 'none'}; shipped: {', '.join(names(_shipped()))}"
        raise InputError("no inventory was given", f"--inventory NAME or export VENICE_INVENTORY=NAME; {there}")
    for path in (Path(given), local / given):
        if path.exists():
            if path.is_dir() and not _is_inventory(path):
                raise InputError(
                    f"{path} is no inventory: it has no hosts.yml",
                    "name the folder that holds hosts.yml, or a YAML or INI file",
                )
            return path
    if given in names(_shipped()):
        shutil.copytree(_shipped() / given, local / given, ignore=shutil.ignore_patterns(".venice"))
        return local / given
    raise InputError(f"there is no inventory {given!r}, as a path or as inventory/{given}", f"known: {', '.join(known()) or 'none'}")


def known() -> list[str]:
    """Names that `resolve` finds from the current folder: its own inventories and the shipped ones."""
    return sorted({*names(Path("inventory")), *names(_shipped())})


def names(folder: Path) -> list[str]:
    """Names of the inventories in a folder."""
    return sorted(p.name for p in folder.iterdir() if _is_inventory(p)) if folder.is_dir() else []


def _is_inventory(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("hosts.yml", "hosts.yaml", "hosts", "hosts.ini"))


def _shipped() -> Path:
    return paths.resource("inventory")
