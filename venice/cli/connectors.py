"""`venice connectors`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from venice.cli._options import ask, cluster_option, inventory_option, json_option, yes_option
from venice.cli._output import console, grid, print_json

if TYPE_CHECKING:
    from venice.connectors import Row


@click.group(invoke_without_command=True)
@json_option
@inventory_option
@click.pass_context
def command(ctx: click.Context, inventory_name: str | None, as_json: bool) -> None:
    """Show connectors, where their tasks run, and why some do not.

    Without a subcommand: all connectors, then each failure with its root cause, then workers that do not answer.
    """
    if ctx.invoked_subcommand:
        return
    from venice import connectors, inventory
    from venice.cluster import Cluster

    found = connectors.overview(Cluster.load(inventory.resolve(inventory_name)))
    if as_json:
        print_json(found.to_dict())
        return
    out = console()
    if found.connectors:
        table = grid("connector", "type", "state", "tasks", "on", "topics")
        for row in found.connectors:
            table.add_row(row.name, row.type, _state(row), f"{row.running}/{len(row.tasks)}", _hosts(row), ", ".join(row.topics))
        out.print(table)
    else:
        out.print("no connectors: `venice connectors new` makes one")
    for row in found.connectors:
        _failures(row)
    for worker in found.workers:
        if worker.error:
            click.secho(f"connect on {worker.host} ({worker.id}) does not answer: {worker.error}; `venice up` starts it", fg="red")


@command.command()
@click.argument("name")
@json_option
@cluster_option
def show(cluster: Any, name: str, as_json: bool) -> None:
    """Show one connector: its tasks, how far it is, and its configuration without secrets."""
    from venice import connectors

    found = connectors.details(cluster, name)
    if as_json:
        print_json(found.to_dict())
        return
    row, out = found.row, console()
    out.print(f"{row.name}: {row.type} {row.plugin}, {row.state} on {row.host}; topics: {', '.join(row.topics) or 'none yet'}\n")
    tasks = grid("task", "state", "on")
    for task in row.tasks:
        tasks.add_row(str(task["id"]), task["state"], f"{task['host']} ({task['worker']})")
    if row.tasks:
        out.print(tasks)
    _failures(row)
    if found.progress:
        out.print()
        progress = grid("topic", "partition", "committed", "lag", right=("partition", "committed", "lag"))
        for item in found.progress:
            progress.add_row(item.topic, str(item.partition), str(item.offset), "?" if item.lag is None else str(item.lag))
        out.print(progress)
    elif row.type == "sink":
        out.print("\nnothing committed yet")
    for item in found.offsets:
        click.echo(f"\n{item['partition']}: {item['offset']}")
    out.print()
    config = grid("option", "value")
    for key, value in found.config.items():
        config.add_row(key, value)
    out.print(config)


@command.command()
@click.argument("name", required=False)
@click.option("--topic", metavar="TOPIC", help="Sink this topic to a PostgreSQL table.")
@click.option("--table", metavar="TABLE", help="The table. Default: the topic's name.")
@click.option(
    "--mode",
    type=click.Choice(["upsert", "insert"]),
    help="upsert: the newest record of each key; insert: every record. Default: upsert with a key, else insert.",
)
@click.option("--key", metavar="FIELD[,FIELD]", help="The key of the table: fields of the value.")
@click.option("--record-key", metavar="COLUMN", help="The key of the table: the record's own key (a string), as this column.")
@click.option("--file", "file", type=click.Path(path_type=Path, dir_okay=False), help="A connector file, as pipelines have them.")
@click.option("--set", "settings", metavar="OPTION=VALUE", multiple=True, help="An option of the connector; wins over the others.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the connector to this file, for a pipeline.")
@cluster_option
def new(
    cluster: Any,
    name: str | None,
    topic: str | None,
    table: str | None,
    mode: str | None,
    key: str | None,
    record_key: str | None,
    file: Path | None,
    settings: tuple[str, ...],
    save: Path | None,
) -> None:
    """Make a connector and wait until it runs. Guided on a terminal when no option says what.

    \b
      venice connectors new
      venice connectors new --topic bus_locations --table latest --key vehicle_id
      venice connectors new --file sink.json --set tasks.max=2
      venice connectors new lines --set connector.class=FileStreamSource \\
        --set file=/etc/hosts --set topic=lines

    Connect validates it first: what is wrong is named with option, value and reason, and nothing is made. A password is given
    as ${file:/etc/kafka/secrets.properties:KEY}, which only the workers can read.
    """
    from venice import connectors, wizard

    given = {"topic": topic, "table": table, "mode": mode, "key": key, "record_key": record_key}
    wanted = connectors.wanted(cluster, name or "", given, file, connectors.parse_settings(settings))
    if wanted is None:
        wanted = wizard.run(cluster, name or "")
        wizard.summary(wanted)
        save = save or wizard.ask_file(wanted)
        ask(f"Create connector {wanted.name}?", yes=False)
    else:
        for note in wanted.notes:
            click.echo(note)
    connectors.create(cluster, wanted, save, click.echo)


@command.command()
@click.argument("name")
@yes_option
@cluster_option
def delete(cluster: Any, name: str, yes: bool) -> None:
    """Delete a connector. What it wrote, its topics and its offsets stay."""
    from venice import connectors

    left = connectors.left_behind(cluster, name)
    ask(f"Delete connector {name}?", yes)
    connectors.delete(cluster, name)
    click.echo(f"connector {name}: deleted")
    for line in left:
        click.echo(f"  {line}")


@command.command()
@click.argument("name")
@cluster_option
def restart(cluster: Any, name: str) -> None:
    """Start a connector and all of its tasks anew; ends when they run."""
    from venice import connectors

    connectors.restart(cluster, name, click.echo)


@command.command()
@click.argument("name")
@cluster_option
def pause(cluster: Any, name: str) -> None:
    """Pause a connector; ends when its tasks are paused."""
    from venice import connectors

    connectors.pause(cluster, name)
    click.echo(f"{name} PAUSED; `venice connectors resume {name}` lets it run")


@command.command()
@click.argument("name")
@cluster_option
def resume(cluster: Any, name: str) -> None:
    """Let a paused or stopped connector run; ends when its tasks do."""
    from venice import connectors

    connectors.resume(cluster, name, click.echo)


@command.command()
@json_option
@cluster_option
def plugins(cluster: Any, as_json: bool) -> None:
    """List the installed connector plugins."""
    from venice.connect import Connect

    found = Connect.of(cluster).plugins()
    if as_json:
        print_json([{"class": plugin.name, "type": plugin.type, "version": plugin.version} for plugin in found])
        return
    table = grid("type", "class", "version")
    for plugin in found:
        table.add_row(plugin.type, plugin.name, plugin.version)
    console().print(table)


@command.command()
@click.argument("name")
@click.option("-n", "--count", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="How many of the newest.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: one object per line.")
@cluster_option
def dlq(cluster: Any, name: str, count: int, output: str) -> None:
    """Show the newest records that a sink could not take, and why: `venice dlq show`."""
    from venice.cli.dlq import show_letters

    show_letters(cluster, name, count, output)


def _state(row: "Row") -> str:
    return "FAILED" if row.state == "RUNNING" and any(task["state"] == "FAILED" for task in row.tasks) else row.state


def _hosts(row: "Row") -> str:
    """The hosts of its tasks; of the connector itself when it has none."""
    return ", ".join(sorted({task["host"] or task["worker"] for task in row.tasks})) or row.host


def _failures(row: "Row") -> None:
    for failure in row.failures:
        click.secho(failure, fg="red")
