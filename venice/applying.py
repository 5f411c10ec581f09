"""`venice apply` and `venice diff`: pipelines by name or folder, compared, applied, recorded."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from venice import runner
from venice.cluster import Cluster
from venice.errors import InputError, VeniceError
from venice.pipeline.engines import made
from venice.pipeline.model import Change
from venice.pipeline.plan import PROGRAM_KINDS, Plan, Plans, prepare
from venice.records import Record


@dataclass(frozen=True)
class Chosen:
    """Pipelines on a cluster whose model knows them; `outside`: those that its inventory does not name."""

    cluster: Cluster
    inventory: Path
    folders: list[Path]
    outside: list[Path]
    extra: dict[str, Any]


def choose(inventory: Path, names: Sequence[str]) -> Chosen:
    """The pipelines of these names or folders; all of the inventory when there are none. InputError for one that is not there."""
    cluster = Cluster.load(inventory)
    if not names:
        return Chosen(cluster, inventory, cluster.pipelines, [], {})
    folders = list(dict.fromkeys(cluster.pipeline_folder(name) for name in names))
    return including(cluster, inventory, folders)


def including(cluster: Cluster, inventory: Path, folders: list[Path]) -> Chosen:
    """The model again with pipelines that the inventory does not name, so that it knows their producers' hosts."""
    outside = [folder for folder in folders if folder not in cluster.pipelines]
    if not outside:
        return Chosen(cluster, inventory, folders, [], {})
    extra = {"venice_pipelines": [*cluster.var(next(iter(cluster.hosts)), "venice_pipelines"), *map(str, outside)]}
    return Chosen(Cluster.load(inventory, extra), inventory, folders, outside, extra)


def compare(chosen: Chosen, prune: bool = False, wait: float = 0.0) -> Plans:
    """What the pipelines need; see `plan.prepare`."""
    return prepare(chosen.cluster, chosen.folders, wait, prune)


def apply(chosen: Chosen, plans: Plans, listener: runner.Listener, report: Callable[[str], None] = lambda line: None) -> Record:
    """Make all changes, those of producers and jobs through Ansible, and keep what was applied; returns the run's record.

    Its `exit_code` is not 0 when Ansible failed; all other failures are raised, recorded, too.
    """
    cluster = chosen.cluster
    record = Record.start("apply", cluster.name, chosen.inventory, None, [])
    changes = {str(change): change for change in plans.changes}

    def note(line: str) -> None:
        if line in changes:
            record.differences.append(difference(cluster.name, changes[line]))
        report(line)

    with _recorded(cluster, record):
        plans.apply(note)
        plans.record(record.user)
    if plans.with_programs:
        prune = any(kind in PROGRAM_KINDS for plan in plans.all for kind, _ in plan.removed)
        extra = chosen.extra | {"venice_apply": plans.with_programs, "venice_apply_prune": prune}
        runner.run("apply", "apply", runner.Options(chosen.inventory), cluster, listener, extra, record)
    if record.exit_code == 0 and any(plan.removals for plan in plans.all):
        with _recorded(cluster, record):
            plans.remove(note)
            plans.record(record.user, removed=True)
    return record


@contextmanager
def _recorded(cluster: Cluster, record: Record) -> Iterator[None]:
    """Part of a run: alone on the cluster, its outcome and duration in the record, whatever happens."""
    with runner.alone(cluster.state_dir, record.command):
        began = time.monotonic()
        record.save(cluster.state_dir)
        try:
            yield
        except (VeniceError, KeyboardInterrupt) as error:
            failed = isinstance(error, VeniceError)
            record.outcome, record.exit_code = ("failed", error.exit_code) if failed else ("interrupted", runner.INTERRUPTED)
            record.failures.append({"host": cluster.name, "task": "Apply the pipelines", "msg": str(error)})
            raise
        else:
            record.outcome, record.exit_code = ("changed" if record.differences else "unchanged"), 0
        finally:
            record.seconds = round(record.seconds + time.monotonic() - began, 1)
            record.save(cluster.state_dir)


def difference(cluster: str, change: Change) -> dict[str, Any]:
    """The form that all of Venice's actions return; it happens to the cluster, not to the host that the task runs for."""
    reasons = {"create": "does not exist", "remove": "its pipeline no longer has it"}
    return {
        "host": cluster,
        "component": change.kind,
        "name": f"{change.kind} {change.name}",
        "action": change.action,
        "reason": reasons.get(change.action) or ", ".join(d.field for d in change.differences),
    }


def refuse_questions(plans: Plans) -> None:
    """InputError when something of the pipelines needs a person's consent, for those who have nobody to ask."""
    if plans.questions:
        names = " ".join(plan.pipeline.name for plan in plans.all if plan.questions)
        raise InputError("\n".join(plans.questions), f"if that is what you want: venice apply {names} --yes")


def lines(plans: Plans) -> list[str]:
    """What differs, for a person: a heading for each pipeline, its changes below it."""
    found = []
    for plan in plans.all:
        found.append(f"{plan.pipeline.name}: {'in step' if not plan.changes else f'{count(len(plan.changes))}'}")
        for change in plan.changes:
            found.append(f"  {change.headline}")
            found += [f"      {line}" for line in change.details]
    return found


def remarks(chosen: Chosen, plans: Plans) -> list[str]:
    """What a person should know at the end: what the folders no longer have, what a deployment will not keep."""
    found = []
    for plan in plans.all:
        name = plan.pipeline.name
        left = [(kind, thing) for kind, thing in plan.left if (kind, thing) not in plan.removed]
        gone = [f"{kind} {thing}" for kind, thing in left if kind != "sql"]
        if gone:
            found.append(f"{name} no longer has {', '.join(gone)}: `venice apply {name} --prune` removes what it left")
        if sql := [thing for kind, thing in left if kind == "sql"]:
            undone = {thing: made(chosen.cluster, name, thing) for thing in sql}
            found += [
                f"{name} no longer has {thing}: `venice apply {name} --prune` drops {', '.join(undone[thing])}"
                for thing in sql
                if undone[thing]
            ]
            if stays := [thing for thing in sql if not undone[thing]]:
                found.append(f"{name} no longer has {', '.join(stays)}: what it did stays, Venice undoes no SQL")
        if plan.pipeline.folder.resolve() in chosen.outside:
            kept = [word for word, some in (("producers", plan.pipeline.producers), ("jobs", plan.pipeline.jobs)) if some]
            keeps = f"keeps its {' and '.join(kept)}, too" if kept else "applies it, too"
            install = f"`venice install {_called(chosen, plan)}`"
            found.append(f"{name} is not in {chosen.inventory}: {install} names it there, and `venice deploy` {keeps}")
    return found


def _called(chosen: Chosen, plan: Plan) -> str:
    """The pipeline's name where it is found by that, else its folder."""
    try:
        found = chosen.cluster.pipeline_folder(plan.pipeline.name) == plan.pipeline.folder.resolve()
    except InputError:
        found = False
    return plan.pipeline.name if found else str(plan.pipeline.folder)


def count(changes: int) -> str:
    """`3 changes`."""
    return f"{changes} change{'s' if changes != 1 else ''}"


def closing(chosen: Chosen, plans: Plans, check: bool, code: int) -> list[str]:
    """The last lines of `venice apply`."""
    if check:
        return [*lines(plans), *remarks(chosen, plans)]
    name = chosen.cluster.name
    if code:
        rest = "the rest is, but nothing was removed" if any(plan.removals for plan in plans.all) else "the rest is"
        return [f"apply {name} failed: its containers are not what their pipelines say; {rest}"]
    if not plans.changes:
        return [f"nothing changed on {name}", *remarks(chosen, plans)]
    made = f"applied {', '.join(plan.pipeline.name for plan in plans.all)} to {name}: {count(len(plans.changes))}"
    return [made, *remarks(chosen, plans), "next: `venice pipelines` shows whether it stays so, `venice status` what runs"]


def to_dict(chosen: Chosen, plans: Plans, check: bool) -> dict[str, Any]:
    """Form for `--json`, of `apply` and `diff`: `checked` when nothing was changed."""
    return {"cluster": chosen.cluster.name, "checked": check, "pipelines": [plan.to_dict() for plan in plans.all]}
