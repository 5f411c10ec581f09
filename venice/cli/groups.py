"""`venice groups`."""

import click

from venice import inventory
from venice.cli._options import ask, cluster_option, inventory_option, json_option, yes_option


def _services(cluster):
    """Kafka, Connect (None when the inventory has none) and the hosts' names by address."""
    from venice.connect import Connect
    from venice.kafka import Kafka

    connect = Connect.of(cluster) if cluster.instances("connect") else None
    return Kafka.of(cluster), connect, {host.address: name for name, host in cluster.hosts.items()}


@click.group(invoke_without_command=True, short_help="List consumer groups and their lag; show, reset and delete them.")
@inventory_option
@json_option
@click.pass_context
def command(ctx: click.Context, inventory_name: str | None, as_json: bool) -> None:
    """List consumer groups with their lag; the subcommands show one, set its offsets, delete it."""
    if ctx.invoked_subcommand is not None:
        return
    from venice import groups
    from venice.cli._output import console, grid, print_json
    from venice.cluster import Cluster

    kafka, _, hosts = _services(Cluster.load(inventory.resolve(inventory_name)))
    found = groups.listing(kafka, hosts)
    if as_json:
        print_json({"groups": [group.to_dict() for group in found]})
        return
    if not found:
        click.echo("no consumer groups")
        return
    table = grid("group", "state", "assignor", "members", "lag", "topics", right=("members", "lag"))
    for g in found:
        table.add_row(g.name, g.state, g.assignor or "-", str(len(g.members)), _number(g.lag), ", ".join(g.topics) or "-")
    console().print(table)


@command.command()
@click.argument("group")
@cluster_option
@json_option
def show(cluster, group: str, as_json: bool) -> None:
    """Show how far a group is in every partition, and who reads it."""
    from venice import groups
    from venice.cli._output import console, grid, print_json

    kafka, _, hosts = _services(cluster)
    [found] = groups.listing(kafka, hosts, group)
    if as_json:
        print_json(found.to_dict(details=True))
        return
    assignor = f", assignor {found.assignor}" if found.assignor else ""
    click.echo(f"{found.name}: {found.state}, protocol {found.protocol}{assignor}, members {len(found.members)}, lag {_number(found.lag)}")
    table = grid("topic", "partition", "committed", "end", "lag", "host", "client", right=("partition", "committed", "end", "lag"))
    for p in found.partitions:
        reader = (p.member.host, p.member.client_id) if p.member else ("-", "-")
        table.add_row(p.topic, str(p.partition), _number(p.committed), _number(p.end), _number(p.lag), *reader)
    console().print(table if found.partitions else "no offsets committed, no partitions assigned")


@command.command()
@click.argument("group")
@click.option(
    "--to", "where", required=True, metavar="earliest|latest|TIME|OFFSET", help="TIME: 2026-11-21T18:00:00Z, or -1h for an hour ago."
)
@click.option("--topic", metavar="T[:P]", help="Only this topic, or its partition P. Default: all that the group has read.")
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@yes_option
@cluster_option
@json_option
def reset(cluster, group: str, where: str, topic: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Set a group's offsets: shows the plan, asks, sets them and reads them back.

    Refused while consumers of the group run. A sink connector's group is set through Kafka Connect: the connector is stopped for it
    and resumed afterwards.
    """
    from venice import groups
    from venice.cli._output import print_json

    target = groups.Target.of(where)
    kafka, connect, hosts = _services(cluster)
    plan = groups.plan(kafka, connect, hosts, group, target, topic)
    if not as_json:
        _print_plan(plan)
    if not dry_run and plan.changes:
        if not plan.hindrance:  # else apply refuses it, and says why
            ask(f"Set these offsets of {group}?", yes)
        groups.apply(kafka, connect, plan, lambda line: click.echo(line, err=as_json))
    done = bool(plan.changes) and not dry_run
    if as_json:
        print_json(plan.to_dict(applied=done))
    elif done:
        click.echo(f"set {len(plan.changes)} offsets of {group}")


def _print_plan(plan) -> None:
    from venice.cli._output import console, grid

    click.echo(f"group {plan.group.name} to {plan.target}:")
    table = grid("topic", "partition", "from", "to", "records", "", right=("partition", "from", "to"))
    for m in plan.moves:
        records = f"{m.skipped} skipped" if m.skipped else f"{m.repeated} again" if m.repeated else "-"
        table.add_row(m.topic, str(m.partition), _number(m.current), _number(m.target), records, m.note)
    console().print(table)
    if not plan.changes:
        click.echo("nothing to do: it is there already")
    elif plan.hindrance:
        click.echo(f"this can't be done now: {plan.hindrance}")
    elif plan.connector and plan.connector.state == "STOPPED":
        click.echo(f"connector {plan.connector.name} is stopped, and stays so")
    elif plan.connector:
        after = "paused again" if plan.connector.state == "PAUSED" else "resumed"
        click.echo(f"connector {plan.connector.name} will be stopped for it and {after} afterwards")


@command.command()
@click.argument("group")
@yes_option
@cluster_option
def delete(cluster, group: str, yes: bool) -> None:
    """Delete a group with its offsets; refused while it is in use."""
    from venice import groups

    kafka, connect, hosts = _services(cluster)
    found = groups.deletable(kafka, connect, hosts, group)
    ask(f"Delete group {group} with its {sum(p.committed is not None for p in found.partitions)} offsets?", yes)
    groups.delete(kafka, group)
    click.echo(f"deleted group {group}")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
