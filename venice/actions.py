"""What the commands that change hosts do: check the input, run the playbook, show it. Returns records; prints through Progress."""

import dataclasses
from typing import Any

from rich.console import Console

from venice import runner
from venice.cluster import Cluster
from venice.errors import InputError
from venice.preflight import listing, validate
from venice.progress import Progress, smoke_table
from venice.records import Record
from venice.selection import select

# Commands after whose failure a support bundle is made.
_BUNDLED = ("deploy", "up", "restart")


def checked(options: runner.Options) -> Cluster:
    """The inventory's model. Raises InputError listing every finding; no host is touched."""
    cluster = Cluster.load(options.inventory, runner.parse_extra_vars(options.extra_vars))
    if findings := validate(cluster):
        raise InputError(f"{options.inventory}: {listing(findings, 'touched')}")
    return cluster


def deploy(options: runner.Options, console: Console, prune: bool = False) -> Record:
    """Deploys, applies the pipelines, traces an event."""
    return _run(
        "plan" if options.check else "deploy", "deploy", options, console, checked(options), {"venice_prune": True} if prune else {}
    )


def up(options: runner.Options, console: Console) -> Record:
    """Starts what is deployed; deploys when nothing is there."""
    return _run("up", "up", options, console, checked(options))


def restart(options: runner.Options, console: Console, names: list[str]) -> Record:
    """Restarts what is named, one container at a time. Raises InputError for an unknown name, or none.

    Only the hosts concerned are asked: that another one is down does not stand in the way.
    """
    cluster = checked(options)
    chosen = select(cluster, names)
    if not chosen:
        raise InputError("what to restart is not named", "venice restart NAME...: components, instances or hosts, or `all`")
    hosts = dict.fromkeys(instance.host for instance in chosen)
    limited = dataclasses.replace(options, limit=options.limit or ",".join(hosts))
    return _run("restart", "restart", limited, console, cluster, {"venice_restart": names})


def play(command: str, options: runner.Options, console: Console, extra: dict[str, Any] | None = None) -> Record:
    """Runs the playbook of that name on a checked inventory."""
    return _run(command, command, options, console, checked(options), extra)


def plan(options: runner.Options, console: Console, prune: bool = False) -> Record:
    """What a deployment would change, with the files' differences."""
    return deploy(dataclasses.replace(options, check=True, diff=True), console, prune)


def doomed(options: runner.Options, keep_data: bool) -> list[str]:
    """Lines that name what `destroy` will remove."""
    cluster = checked(options)
    lines = [f"On the hosts of {cluster.name} this will be removed:"]
    for name in cluster.hosts:
        document = cluster.desired(name)
        if not document["containers"]:
            continue
        lines.append(f"  {name}: containers {', '.join(c['name'] for c in document['containers'])}")
        data = sorted({m["source"] for c in document["containers"] for m in c["mounts"] if not m["read_only"]})
        lines.append(f"    data {'kept' if keep_data else 'DELETED'}: {', '.join(data) or 'none'}")
    return lines


def _run(
    command: str, playbook: str, options: runner.Options, console: Console, cluster: Cluster, extra: dict[str, Any] | None = None
) -> Record:
    with Progress(console, bool(options.verbosity)) as progress:
        record = runner.run(command, playbook, options, cluster, _Smoke(progress), extra)
    if command in _BUNDLED and record.outcome == "failed" and record.exit_code != InputError.exit_code:
        _bundle(cluster, console)
    return record


def _bundle(cluster: Cluster, console: Console) -> None:
    """A support bundle after a failure, which was printed before. Whatever goes wrong here does not hide that."""
    from venice import support

    try:
        with console.status("making a support bundle (Ctrl-C leaves it out)"):
            bundle = support.automatic(cluster)
    except KeyboardInterrupt:
        console.print("no support bundle was made")
    except Exception as error:  # the run's own failure is what counts
        console.print(f"no support bundle could be made: {error}", soft_wrap=True, highlight=False)
    else:
        size = bundle.path.stat().st_size
        text = f"support bundle of this moment: {bundle.path} ({size / 1e3:.0f} kB, without secrets)"
        console.print(text, soft_wrap=True, highlight=False)


class _Smoke(runner.Listener):
    """Progress, with the smoke test's table before the summary."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.hops: list[dict] = []

    def event(self, event: dict) -> None:
        found = (event.get("event_data", {}).get("res") or {}).get("smoke")
        if found:
            self.hops = found["hops"]
        self.progress.event(event)

    def finish(self, record: Record) -> None:
        if self.hops:
            self.progress.__exit__()
            self.progress.console.print(smoke_table(self.hops))
        self.progress.finish(record)
