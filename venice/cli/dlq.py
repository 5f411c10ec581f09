"""`venice dlq`."""

import datetime
import json
import re
import sys
import time

import click

from venice.cli._options import ask, cluster_option, json_option, yes_option
from venice.errors import InputError

_offsets = click.option(
    "--offset", "offsets", multiple=True, metavar="P:O", help="The record at offset O of partition P; several times for more."
)


@click.group()
def command() -> None:
    """Dead letters: records that a sink could not take, why, and sending them once more."""


@command.command("list")
@cluster_option
@json_option
def list_(cluster, as_json: bool) -> None:
    """List the dead letter topics, how many records wait in each, and why the newest one failed."""
    from rich.text import Text

    from venice import human
    from venice.cli._output import console, grid, print_json
    from venice.dlq import DeadLetters

    letters = DeadLetters.of(cluster)
    found = letters.queues()
    if as_json:
        print_json({"queues": [queue.to_dict() for queue in found], "problem": letters.problem or None})
        return
    _warn(letters.problem and f"{letters.problem}: topics that only connectors name are missing")
    table = grid("dead letters", "from", "records", "waiting", "newest", right=("records", "waiting"))
    for queue in found:
        age = "" if queue.timestamp is None else human.age(time.time() - queue.timestamp / 1000)
        waiting = Text(str(queue.waiting), style="yellow") if queue.waiting else "0"
        table.add_row(queue.topic, ", ".join(queue.sources), str(queue.records), waiting, age)
    out = console()
    out.print(table if found else "no dead letter topics")
    for queue in found:
        if queue.reason:
            click.echo(f"{queue.topic}: {queue.reason}")


@command.command()
@cluster_option
@click.argument("name", metavar="CONNECTOR|TOPIC")
@click.option("-n", "--count", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="How many of the newest.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: one object per line.")
def show(cluster, name: str, count: int, output: str) -> None:
    """Show the newest dead letters: what failed, why, and whether it was replayed."""
    show_letters(cluster, name, count, output)


def show_letters(cluster, name: str, count: int, output: str) -> None:
    """What `venice dlq show` prints of a connector or a dead letter topic."""
    from venice.cli.topics import print_records
    from venice.dlq import DeadLetters

    letters = DeadLetters.of(cluster)
    print_records(map(letters.describe, letters.newest(letters.topic_of(name), count)), letters.codec, output, _text)


def _warn(problem: str) -> None:
    if problem:
        click.secho(f"warning: {problem}", fg="yellow", err=True)


def _text(found: dict) -> str:
    from venice.cli.topics import record_text

    failure, mark = found["failure"], found["replayed"]
    came = f"{failure['topic']} {failure['partition']}:{failure['offset']}" if failure["topic"] else "unknown topic"
    lines = [record_text(found)]
    sink = ", ".join(part for part in (failure["connector"], failure["stage"]) if part)
    lines.append(f"  from {came}" + (f" ({sink})" if sink else ""))
    lines.append(click.style(f"  {failure['reason'] or 'the reason is not recorded'}", fg="red"))
    part = {"KEY_CONVERTER": "key", "VALUE_CONVERTER": "value"}.get(failure["stage"])
    if part and found[f"{part}_schema"] is None and not found[f"{part}_error"]:
        # what converters say of that is hard to read
        lines.append(f"  its {part} names no schema of the registry")
    if found["replays"]:
        lines.append(f"  replayed {found['replays']} times before it failed again")
    if mark:
        lines.append(click.style(f"  replayed to {mark['topic']} {mark['partition']}:{mark['offset']} at {mark['time']}", fg="green"))
    return "\n".join(lines)


@command.command()
@cluster_option
@click.argument("name", metavar="CONNECTOR|TOPIC")
@_offsets
@click.option("--all", "every", is_flag=True, help="All that were not replayed yet.")
@click.option("--value", metavar="JSON|@FILE", help="Send this value instead.")
@click.option(
    "--set",
    "fields",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the value; OUTER.INNER=VALUE too. VALUE is JSON or text.",
)
@click.option("--edit", is_flag=True, help="Change the value in $EDITOR.")
@click.option("--key", metavar="KEY", help="Send this key instead.")
@click.option("--to", metavar="TOPIC", help="Send it there. Default: the topic that it comes from.")
@click.option(
    "--max", "most", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Refuse a record that was replayed N times."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
@yes_option
@json_option
def replay(
    cluster, name: str, offsets, every: bool, value, fields, edit: bool, key, to, most: int, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Send dead letters once more to the topic that they come from, as they are or repaired; asks first.

    A repaired value is written by the newest schema of the topic's subject. A record is replayed once: repeating the
    command sends nothing. On a terminal, without --offset and --all, the records are chosen from a list.
    """
    from venice.cli._output import print_json
    from venice.dlq import DeadLetters
    from venice.replay import Repair, planned, send

    if every and offsets:
        raise InputError("--all and --offset choose differently", "give one of them")
    if bool(value) + bool(fields) + edit > 1:
        raise InputError("--value, --set and --edit all change the value", "give one of them")
    letters = DeadLetters.of(cluster)
    topic = letters.topic_of(name)
    if offsets:
        chosen = letters.at(topic, [_place(text) for text in offsets])
    else:
        chosen = [letter for letter in letters.every(topic) if letter.mark is None]
        if not every:
            chosen = _picked(letters, topic, chosen)
    repair = Repair(key=key, fields=tuple(_field(text) for text in fields))
    if value is not None:
        repair = Repair(True, _json(value), key=key)
    elif edit:
        repair = Repair(True, _edited(letters, chosen), key=key)
    plan = planned(letters, topic, chosen, repair, to, most)
    _warn(letters.codec.problem)
    for letter, why in plan.refused:
        click.secho(f"refused: {topic} {letter.place}: {why}", fg="red", err=True)
    if plan.refused and (offsets or not plan.sendings):
        raise InputError(
            f"{len(plan.refused)} of {len(chosen)} records are refused; nothing was sent",
            "repair them, or raise --max when you know that they will pass",
        )
    if not as_json:
        _tell(plan, dry_run)
    if plan.sendings and not dry_run:
        ask(f"Send {_records(len(plan.sendings))}?", yes)
        send(letters, plan)
    if as_json:
        print_json(plan.to_dict(sent=not dry_run))
    elif not dry_run:
        for sending in plan.sendings:
            click.echo(f"{topic} {sending.letter.place}: sent as {sending.topic} {sending.partition}:{sending.offset}")
    # some were sent, some could not be
    sys.exit(1 if plan.refused else 0)


def _tell(plan, dry_run: bool) -> None:
    for letter in plan.done:
        click.echo(f"{plan.topic} {letter.place}: was replayed already: {letter.mark}")
    if not plan.sendings:
        click.echo("nothing to send")
    for sending in plan.sendings if dry_run else []:
        how = "repaired" if sending.repaired else "as it is"
        click.echo(f"{plan.topic} {sending.letter.place}: would be sent to {sending.topic}, {how}, replay {sending.count}")


def _picked(letters, topic: str, waiting: list) -> list:
    """Those that the user picks from a list, on a terminal."""
    if not sys.stdin.isatty():
        raise InputError("which records?", "name them with --offset P:O, or take --all that were not replayed")
    if not waiting:
        return []
    import questionary

    choices = [
        questionary.Choice(f"{letter.place}  {letter.record.time}  {letter.failure.reason or 'no reason recorded'}", letter)
        for letter in waiting
    ]
    picked = questionary.checkbox(f"Which records of {topic}?", choices).ask()
    if picked is None:
        raise click.Abort
    return picked


def _edited(letters, chosen: list):
    if not sys.stdin.isatty():
        raise InputError("--edit needs a terminal", "give the value with --value")
    if len(chosen) != 1:
        raise InputError(f"--edit changes one record, not {len(chosen)}", "choose it with --offset P:O")
    before = json.dumps(letters.decoded(chosen[0]).value, indent=2, ensure_ascii=False) + "\n"
    after = click.edit(before, extension=".json")
    if after is None:
        raise InputError("nothing was changed in the editor, so nothing is sent", "without --edit it is sent as it is")
    return _json(after)


def _json(text: str):
    if text.startswith("@"):
        try:
            with click.open_file(text[1:], encoding="utf-8") as file:
                text = file.read()
        except OSError as error:
            raise InputError(f"{text[1:]}: {error.strerror}", "name a file that holds the value as JSON") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"the value is no JSON: line {error.lineno}, column {error.colno}: {error.msg}", "correct it there") from error


def _field(text: str):
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--set {text}: not in the form FIELD=VALUE", "as speed=12.5, line='\"4\"' or stop.name=Rialto")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        raise InputError(f"--offset {text}: not in the form PARTITION:OFFSET", "as 0:17; `venice dlq show` begins each record with it")
    return int(match[1]), int(match[2])


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


@command.command()
@cluster_option
@click.argument("name", metavar="CONNECTOR|TOPIC")
@_offsets
@click.option("--before", metavar="TIME", help="Those before the first record of this time (UTC), as 2026-11-21 or 2026-11-21T12:00.")
@click.option("--all", "every", is_flag=True, help="All.")
@yes_option
@json_option
def drop(cluster, name: str, offsets, before: str | None, every: bool, yes: bool, as_json: bool) -> None:
    """Remove dead letters for good; asks first.

    Kafka removes records only from the beginning of a partition: --offset P:O removes that record and all before it.
    """
    from venice.cli._output import print_json
    from venice.dlq import DeadLetters

    if bool(offsets) + (before is not None) + every != 1:
        raise InputError("which records?", "give one of --offset P:O, --before TIME and --all")
    letters = DeadLetters.of(cluster)
    moment = None if before is None else _moment(before)
    doomed = letters.doomed(letters.topic_of(name), [_place(text) for text in offsets], moment, every)
    if doomed.records:
        waiting = f", {doomed.waiting} of them not replayed" if doomed.waiting else ", all replayed"
        places = ", ".join(f"partition {place[1]} before {offset}" for place, offset in sorted(doomed.before.items()))
        if not (as_json and yes):
            click.echo(f"{doomed.topic}: {_records(doomed.records)}{waiting} ({places})", err=as_json)
        ask("Drop them?", yes)
        letters.drop(doomed)
    if as_json:
        print_json(doomed.to_dict())
    else:
        click.echo("dropped" if doomed.records else f"{doomed.topic}: nothing to drop")


def _moment(text: str) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"--before {text}: {error}", "as 2026-11-21, 2026-11-21T12:00 or 2026-11-21T12:00+01:00") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
