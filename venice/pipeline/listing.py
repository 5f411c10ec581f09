"""Which pipelines there are: named in the inventory or applied earlier; what was applied when, and what is not so any more."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from venice import applying
from venice.cluster import Cluster
from venice.errors import InputError, VeniceError
from venice.pipeline import applied, digest, load
from venice.pipeline.applied import Applied
from venice.pipeline.look import Look, Wanted, kafka_of
from venice.pipeline.model import Change
from venice.pipeline.plan import Planner

IN_STEP, DIFFERS, NEVER, MISSING, WRONG, UNKNOWN = "in step", "differs", "never applied", "folder missing", "wrong", "unknown"


@dataclass(frozen=True)
class Row:
    """One pipeline. `state` is one of the constants above; `error` says why it is wrong, unknown, or can't be made in step."""

    name: str
    in_inventory: bool
    folder: Path | None
    description: str
    digest: str | None
    applied: Applied | None
    state: str
    changes: tuple[Change, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        record = self.applied
        return {
            "name": self.name,
            "in_inventory": self.in_inventory,
            "folder": str(self.folder) if self.folder else None,
            "description": self.description,
            "digest": self.digest,
            "applied": record and {"at": record.at, "by": record.by, "version": record.version, "digest": record.digest},
            "state": self.state,
            "differences": [change.to_dict() for change in self.changes],
            "left": [{"kind": kind, "name": name} for kind, name in self.left],
            "error": self.error,
        }


def collect(inventory: Path) -> tuple[str, list[Row]]:
    """The cluster's name and its pipelines, the inventory's first. UnreachableError when no broker answers."""
    cluster = Cluster.load(inventory)
    named = {folder.name: folder for folder in cluster.pipelines}
    records = applied.read(kafka_of(cluster)) if cluster.groups.get("kafka") else {}
    folders = named | {name: _folder(cluster, name) for name in records if name not in named}
    there = [folder for folder in folders.values() if folder]
    errors: dict[str, VeniceError] = {}
    wanted: dict[str, Wanted] = {}
    try:
        cluster = applying.including(cluster, inventory, there).cluster
    except InputError:  # of a folder that the inventory does not name: said below, and its producers are nowhere
        there = list(named.values())
    for name, folder in folders.items():
        if folder is None:
            continue
        try:
            wanted[name] = Wanted.of(cluster, load(folder))
        except InputError as error:
            errors[name] = error
    look = Look(cluster, wanted.values())
    return cluster.name, [
        _row(cluster, look, name, folder, name in named, records.get(name), wanted.get(name), errors.get(name))
        for name, folder in folders.items()
    ]


def _folder(cluster: Cluster, name: str) -> Path | None:
    try:
        return cluster.pipeline_folder(name)
    except InputError:
        return None


def _row(
    cluster: Cluster,
    look: Look,
    name: str,
    folder: Path | None,
    in_inventory: bool,
    record: Applied | None,
    wanted: Wanted | None,
    error: VeniceError | None,
) -> Row:
    if folder is None:
        return Row(name, in_inventory, None, "", None, record, MISSING)
    if wanted is None:
        return Row(name, in_inventory, folder, "", digest(folder), record, WRONG, error=error.message if error else "")
    said = (name, in_inventory, wanted.pipeline.folder, wanted.pipeline.description, digest(folder), record)
    try:
        plan = Planner(cluster, look, wanted).plan(verify=False)
    except InputError as problem:
        return Row(*said, DIFFERS, error=problem.message)
    except VeniceError as problem:
        return Row(*said, UNKNOWN, error=problem.message)
    state = NEVER if record is None else DIFFERS if plan.changes else IN_STEP
    return Row(*said, state, tuple(plan.changes), tuple(plan.left))


def lines(row: Row) -> list[str]:
    """What a person reads below a pipeline's line."""
    found = [line for change in row.changes for line in (change.headline, *(f"    {detail}" for detail in change.details))]
    found += row.error.splitlines()
    if row.left:
        found.append(f"no longer in its folder: {', '.join(f'{kind} {name}' for kind, name in row.left)}")
    return found
