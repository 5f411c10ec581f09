"""`venice logs`."""

import json
import os
import sys

import click

from venice import completion
from venice.cli._options import cluster_option

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green", "bright_magenta", "bright_blue")


@click.command(short_help="Show the logs of components and hosts as one, merged by time.")
@cluster_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on, until Ctrl-C.")
@click.option("--since", metavar="TIME", help="From then on: 10m, 2h (ago), or an ISO time (UTC).")
@click.option(
    "--tail", type=click.IntRange(0), metavar="N", help="Only the last N of each instance. Default 100, with -f 10, with --since all."
)
@click.option("--grep", metavar="REGEX", help="Only records that match, with all their lines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per record.")
@click.argument("names", nargs=-1, metavar="[COMPONENT|INSTANCE|HOST|INSTANCE@HOST]...", shell_complete=completion.running)
def command(cluster, follow: bool, since: str | None, tail: int | None, grep: str | None, as_json: bool, names: tuple[str, ...]) -> None:
    """Show the logs of components, instances and hosts as one, merged by time (UTC).

    Without names: a choice on a terminal, else all. A stack trace stays with its record. Exit code 3 when a host does not
    answer; the others' logs are shown.
    """
    from venice import logs, selection
    from venice.terminal import on_terminal

    wanted = logs.query(since, tail, grep, follow)
    ask = not names and not as_json and on_terminal()
    chosen = logs.pick(cluster) if ask else selection.select(selection.with_running(cluster, names), names or [selection.ALL])
    width = max((len(logs.label(i)) for i in chosen), default=0)
    colours = {logs.label(i): _COLOURS[n % len(_COLOURS)] for n, i in enumerate(chosen)}
    coloured = False if os.environ.get("NO_COLOR") else None

    def show(record: logs.Record) -> None:
        if as_json:
            click.echo(json.dumps(record.to_dict(), ensure_ascii=False))
            return
        time, lines = record.shown()
        prefix = click.style(f"{time} {record.label:{width}}", fg=colours[record.label])
        click.echo("\n".join(f"{prefix} {line}" for line in lines), color=coloured)

    def warn(text: str) -> None:
        click.secho(text, fg="yellow", err=True, color=coloured)

    found = logs.read(cluster, chosen, wanted)
    for record in found.records:
        show(record)
    for text in found.warnings():
        warn(text)
    if follow:
        for record in logs.follow(cluster, chosen, wanted, found, warn):
            show(record)
    sys.exit(found.exit_code)
