"""`venice install`."""

import sys
from typing import TYPE_CHECKING

import click

from venice import completion, inventory
from venice.cli._options import inventory_option, json_option
from venice.errors import InputError

if TYPE_CHECKING:
    from venice.cluster import Cluster
    from venice.install import Listing, Outcome


@click.command()
@inventory_option
@json_option
@click.option("--hosts", metavar="HOST,HOST", shell_complete=completion.hosts, help="The hosts that are to run the component.")
@click.option("--commit", metavar="COMMIT|TAG", help="The commit of a git source; default: the newest, which is then kept.")
@click.option("--overwrite", is_flag=True, help="Lose changes that were made to the pipeline's copy here.")
@click.argument("what", required=False, metavar="[COMPONENT|PIPELINE|URL|FOLDER]", shell_complete=completion.installable)
def command(inventory_name: str | None, as_json: bool, hosts: str | None, commit: str | None, overwrite: bool, what: str | None) -> None:
    """Add a component or a pipeline to an inventory; without a name: list what there is.

    A component's hosts go into the inventory's hosts.yml. A pipeline's folder is copied to ./pipelines and named in the
    inventory's venice_pipelines. No host is touched: `venice plan` and `venice deploy` come next.

    \b
    venice install connect --hosts lab-1,lab-2
    venice install bus_locations
    venice install https://host/team/pipelines.git#v1.2:orders
    venice install ../orders
    """
    from venice import install
    from venice.cli._output import print_json
    from venice.cluster import Cluster

    place = inventory.resolve(inventory_name)
    if what is None:
        found = install.listing(Cluster.load(place))
        if as_json:
            print_json(found.to_dict())
            return
        _print(found)
        if hosts or commit or overwrite or not _on_terminal():
            return
        what = _chosen(found)
    kind = install.kind(what)
    if hosts is not None and kind != "component":
        raise InputError(f"--hosts is for components; {what} is a pipeline", "its producers run on the hosts of the group producer")
    if commit is not None and kind != "source":
        raise InputError(f"--commit is for git sources; {what} is part of Venice", "leave it out")
    if kind == "component":
        names = [name.strip() for name in hosts.split(",") if name.strip()] if hosts is not None else _hosts(Cluster.load(place), what)
        if not names:
            raise InputError("--hosts names no host", f"hosts: {', '.join(Cluster.load(place).hosts)}")
        outcome = install.component(place, what, names)
    else:
        may = _overwrite(overwrite)
        outcome = install.shipped(place, what, may) if kind == "pipeline" else install.sourced(place, what, commit, may)
    if as_json:
        print_json(outcome.to_dict())
    else:
        _report(outcome)


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _overwrite(given: bool):
    """Asks on a terminal; elsewhere only --overwrite says yes."""
    return lambda finding: given or (_on_terminal() and click.confirm(f"{finding} Overwrite?", default=False))


def _print(found: "Listing") -> None:
    from venice.cli._output import console, grid

    components = grid("component", "", "hosts", "needs")
    for c in found.components:
        components.add_row(c.name, c.title, ", ".join(c.hosts) or "-", ", ".join(c.requires))
    pipelines = grid("pipeline", "runs", "in", "")
    for p in found.pipelines:
        url, _, pinned = (p.source or "").rpartition("#")
        origin = f" (from {url} at {pinned[:12]})" if pinned else ""
        pipelines.add_row(p.name, "yes" if p.named else "-", p.folder or "Venice", p.description + origin)
    out = console()
    out.print(components)
    out.print()
    out.print(pipelines)


def _chosen(found: "Listing") -> str:
    import questionary

    choices = [questionary.Choice(f"{c.name}: {c.title}", c.name) for c in found.components]
    choices += [questionary.Choice(f"{p.name}: {p.description}", p.name) for p in found.pipelines if not p.named]
    picked = questionary.select("Add what?", choices=choices).ask()
    if picked is None:
        raise click.Abort
    return picked


def _hosts(cluster: "Cluster", component: str) -> list[str]:
    there = cluster.groups.get(component.replace("-", "_"), [])
    free = [host for host in cluster.hosts if host not in there]
    if not free:
        return list(there)
    if not _on_terminal():
        raise InputError(f"which hosts are to run {component}?", f"--hosts {','.join(free)}, or some of them")
    import questionary

    picked = questionary.checkbox(f"Which hosts are to run {component}?", choices=free, instruction="(space marks, enter ends)").ask()
    if not picked:
        raise click.Abort
    return picked


def _report(outcome: "Outcome") -> None:
    for change in outcome.changes or [f"{outcome.name} is already there"]:
        click.echo(change)
    if outcome.commit:
        click.echo(f"pinned to commit {outcome.commit}")
    for warning in outcome.warnings:
        click.secho(f"note: {warning}", fg="yellow", err=True)
    if outcome.next:
        click.echo("next: " + "; ".join(outcome.next))
