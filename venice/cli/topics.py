"""`venice topics`."""

import json

import click

from venice.cli._options import ask, cluster_option, inventory_option, json_option, yes_option

_setting = click.option("--config", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting of Kafka's own.")


@click.group(invoke_without_command=True)
@inventory_option
@click.option("--all", "every", is_flag=True, help="Also those that services and Venice use for themselves.")
@json_option
@click.pass_context
def command(ctx: click.Context, inventory_name: str | None, every: bool, as_json: bool) -> None:
    """List topics; show their records, make, change and delete them."""
    if ctx.invoked_subcommand:
        return
    from venice import inventory, topics
    from venice.cli._output import print_json
    from venice.cluster import Cluster
    from venice.kafka import Kafka

    found = topics.listing(Kafka.of(Cluster.load(inventory.resolve(inventory_name))), every)
    if as_json:
        print_json(found.to_dict())
    else:
        _table(found)


def _table(found) -> None:
    from rich.text import Text

    from venice import human
    from venice.cli._output import console, grid

    table = grid(
        "topic",
        "parts",
        "repl",
        "under",
        "retention",
        "messages",
        "size",
        "disk",
        right=("parts", "repl", "under", "messages", "size", "disk"),
    )
    for topic in found.topics:
        table.add_row(
            topic.name,
            str(topic.partitions),
            str(topic.replication),
            Text(str(topic.under_replicated), style="yellow") if topic.under_replicated else "0",
            topic.kept,
            "?" if topic.messages is None else f"{topic.messages:,}",
            "?" if topic.size is None else human.size(topic.size),
            "?" if topic.disk is None else human.size(topic.disk),
        )
    console().print(table if found.topics else "no topics; `venice topics --all` also shows those of the services")
    for topic in found.topics:
        if topic.offline:
            console().print(f"{topic.name}: {topic.offline} of {topic.partitions} partitions have no leader", style="red")
    for node, reason in sorted(found.silent.items()):
        console().print(f"broker {node} did not answer, so what it has on disk is unknown: {reason}", highlight=False)


@command.command()
@cluster_option
@click.argument("topic")
@click.option(
    "-n", "--count", type=click.IntRange(1), metavar="N", help="How many records. Default: the newest 10; all from the beginning."
)
@click.option("--from-beginning", is_flag=True, help="The oldest first, and not only the newest ones.")
@click.option("--follow", is_flag=True, help="Wait for new records; ends with Ctrl-C, or after N.")
@click.option("--key", metavar="K", help="Only records with this key.")
@click.option("--partition", type=click.IntRange(0), metavar="P", help="Only this partition.")
@click.option("--offset", type=click.IntRange(0), metavar="O", help="From this offset of the partition on.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: one object per line.")
def show(cluster, topic: str, output: str, **choice) -> None:
    """Show a topic's records, decoded by the schemas of the registry.

    What can't be decoded is shown as hexadecimal digits with the reason.
    """
    from venice import messages, topics
    from venice.kafka import Kafka

    kafka, codec = Kafka.of(cluster), messages.Codec.of(cluster)
    topics.existing(kafka, [topic])
    print_records(map(codec.describe, messages.selected(kafka, codec, topic, messages.Choice(**choice))), codec, output, record_text)


def print_records(described, codec, output: str, text) -> None:
    """Prints described records as they come: each as `text` makes it, or as a JSON object per line.

    Whatever keeps the codec from asking the registry is said once, on standard error.
    """
    warned = False
    for found in described:
        if codec.problem and not warned:
            warned = True
            click.secho(f"warning: {codec.problem}", fg="yellow", err=True)
        click.echo(json.dumps(found, ensure_ascii=False) if output == "json" else text(found))


def record_text(found: dict) -> str:
    """A described record for people, over several lines."""
    schema = found["value_schema"]
    kind = f"{found['value_format']}, {schema['subject']} (id {schema['id']})" if schema else found["value_format"]
    lines = [
        f"{click.style(str(found['partition']) + ':' + str(found['offset']), bold=True)}  {found['timestamp'] or 'no time'}  "
        f"key {_shown(found['key'])}  {click.style(kind, dim=True)}"
    ]
    lines += [f"  {_shown(found['value'])}"]
    for part in ("key", "value"):
        if found[f"{part}_error"]:
            lines.append(click.style(f"  {part} not decoded: {found[f'{part}_error']}", fg="yellow"))
    lines += [f"  header {header['name']}: {_shown(header['value'])}" for header in found["headers"]]
    return "\n".join(lines)


def _shown(value) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


@command.command()
@cluster_option
@click.argument("name")
@click.option(
    "--partitions", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="How many parts the topic is split into."
)
@click.option("--replication", type=click.IntRange(1), metavar="N", help="Default: the cluster's.")
@click.option("--retention", metavar="TIME", help="unlimited, or as 90s, 30m, 12h, 7d. Default: the cluster's.")
@click.option("--cleanup", type=click.Choice(["delete", "compact", "compact,delete"]), help="Default: the cluster's.")
@_setting
def new(cluster, name: str, partitions: int, replication: int | None, retention: str | None, cleanup: str | None, settings) -> None:
    """Make a topic."""
    from venice import topics
    from venice.kafka import Kafka

    spec = topics.specified(name, partitions, replication, retention, cleanup, _pairs(settings))
    default = int(cluster.pipeline_vars["replication_factor"])
    topics.create(Kafka.of(cluster), spec, default)
    click.echo(f"topic {name}: made, {partitions} partitions, {replication or default} replicas")


@command.command()
@cluster_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@yes_option
def delete(cluster, names: tuple[str, ...], yes: bool) -> None:
    """Delete topics and their records; asks first. Returns once no broker has them any longer."""
    from venice import human, topics
    from venice.kafka import Kafka

    kafka = Kafka.of(cluster)
    doomed = topics.doomed(kafka, names)
    for topic in doomed:
        size = "" if topic.disk is None else f", {human.size(topic.disk)} on the brokers' disks"
        click.echo(f"topic {topic.name}: {topic.partitions} partitions, {topic.messages or 0:,} messages{size}")
    ask("Delete it?" if len(doomed) == 1 else f"Delete these {len(doomed)}?", yes)
    kafka.delete(topic.name for topic in doomed)
    click.echo("deleted")


@command.command()
@cluster_option
@click.argument("name")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--all", "every", is_flag=True, help="Show also what it has from the brokers and from Kafka.")
@yes_option
@json_option
def config(cluster, name: str, settings: tuple[str, ...], every: bool, yes: bool, as_json: bool) -> None:
    """Show a topic's own settings, or change some: KEY=VALUE sets one, KEY= takes it away, so that the cluster's counts.

    Asks before a change that makes Kafka remove records.
    """
    from venice import topics
    from venice.cli._output import console, grid, print_json
    from venice.kafka import Kafka

    kafka = Kafka.of(cluster)
    if settings:
        _change(kafka, name, _pairs(settings), yes)
        return
    found = topics.settings(kafka, name, every)
    if as_json:
        print_json({"topic": name, "settings": [vars(setting) for setting in found]})
        return
    table = grid("setting", "value", "set for", "otherwise")
    for setting in found:
        table.add_row(setting.name, setting.value, setting.source, setting.inherited if setting.source == "topic" else "")
    console().print(table if found else f"topic {name} has no settings of its own; --all shows those of the cluster")


@command.command()
@cluster_option
@click.argument("name")
@yes_option
def compact(cluster, name: str, yes: bool) -> None:
    """Keep the newest record of each key for ever, and remove older ones; asks first."""
    from venice.kafka import Kafka

    if _change(Kafka.of(cluster), name, {"cleanup.policy": "compact"}, yes):
        click.echo(
            "Each key's newest record stays for ever; a record without value deletes its key. Older ones go when the brokers'\n"
            "cleaner comes by, not from the newest segment. Records without a key are refused from now on."
        )


@command.command()
@cluster_option
@click.argument("name")
@click.argument("time", metavar="unlimited|TIME")
@yes_option
def retain(cluster, name: str, time: str, yes: bool) -> None:
    """Keep every record for a time, as 90s, 30m, 12h, 7d, or without limit; asks when that is shorter than now."""
    from venice.kafka import Kafka
    from venice.specs import retention_ms

    _change(Kafka.of(cluster), name, {"retention.ms": str(retention_ms(time)), "cleanup.policy": "delete"}, yes)


def _change(kafka, name: str, wanted: dict[str, str], yes: bool) -> bool:
    from venice import topics

    differences = topics.changes(kafka, name, wanted)
    if not differences:
        click.echo(f"topic {name}: nothing to change")
        return False
    lost = topics.losses(kafka, name, differences)
    if lost:
        ask(f"Kafka will remove from {name} {', and '.join(lost)}. Go on?", yes)
    topics.change(kafka, name, differences, wanted)
    for change in differences:
        # the same value as the cluster's, but from now on its own
        told = f"{change.current} -> {change.desired}" if change.current != change.desired else f"{change.desired}, set for the topic"
        click.echo(f"topic {name}: {change.field}: {told}")
    return True


def _pairs(settings: tuple[str, ...]) -> dict[str, str]:
    from venice.errors import InputError

    for text in settings:
        if "=" not in text or text.startswith("="):
            raise InputError(f"{text!r} is no setting", "write KEY=VALUE, as retention.ms=86400000")
    return dict(text.split("=", 1) for text in settings)
