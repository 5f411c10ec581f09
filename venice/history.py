"""Lists runs and shows one."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from venice import inventory
from venice.cluster import Cluster
from venice.errors import InputError
from venice.progress import why
from venice.records import Record, load_all


def show(inventory_name: str | None, run: str | None, as_json: bool, console: Console) -> None:
    """Prints all runs, or one. Raises InputError when there is no such run."""
    cluster = Cluster.load(inventory.resolve(inventory_name))
    records = load_all(cluster.state_dir)
    if run:
        chosen = _find(records, run, cluster.state_dir)
        console.print_json(json.dumps(asdict(chosen))) if as_json else _one(chosen, console)
    elif as_json:
        console.print_json(json.dumps([asdict(r) for r in records]))
    else:
        console.print(_table(records))


def _find(records: list[Record], run: str, state_dir: Path) -> Record:
    if not records:
        raise InputError(f"no run is recorded in {state_dir / 'runs'}", "venice deploy makes the first")
    found = records[-1:] if run == "last" else [r for r in records if r.id.startswith(run)]
    if len(found) != 1:
        raise InputError(f"{'several runs begin' if found else 'no run begins'} with {run!r}", "venice history lists all ids")
    return found[0]


def _table(records: list[Record]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "command", "by", "outcome", "changes", "seconds"):
        table.add_column(heading, justify="right" if heading in ("changes", "seconds") else "left")
    for r in records:
        table.add_row(r.id, r.command, r.user, r.outcome, str(len(r.differences)), f"{r.seconds:.1f}")
    return table


def _one(record: Record, console: Console) -> None:
    console.print(f"{record.id}: venice {record.command} of {record.cluster} by {record.user}, {record.started}")
    console.print(f"  inventory {record.inventory}, limit {record.limit or 'none'}, variables {', '.join(record.extra_vars) or 'none'}")
    console.print(f"  {record.outcome} after {record.seconds:.1f} s, exit code {record.exit_code}, Venice {record.version}")
    for difference in record.differences:
        name = difference.get("container") or difference.get("path") or difference.get("name") or ""
        console.print(f"  {difference['host']}  {difference.get('action', '')} {name}  {why(difference)}")
    for failure in record.failures:
        console.print(f"  failed on {failure['host']}: {failure['task']}: {failure['msg']}")
    for phase in record.phases:
        console.print(f"  {phase['seconds'] or 0:7.2f} s  {phase['task']}")
