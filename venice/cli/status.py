"""`venice status`."""

import sys

import click

from venice.cli._options import cluster_option, json_option
from venice.cli._output import print_json
from venice.errors import InputError


@click.command()
@cluster_option
@json_option
@click.option(
    "-w",
    "--watch",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(min=0.5),
    metavar="SECONDS",
    help="Show it anew every so many seconds (2), until Ctrl-C.",
)
def command(cluster, as_json: bool, watch: float | None) -> None:
    """Show every container, broker and connector, and which hosts do not answer.

    Exits with 0 when everything that should run is healthy, 1 when something is not, 3 when a host does not answer; --watch
    ends with Ctrl-C and 0. What to run next is named at the end when something is wrong.
    """
    from rich.console import Console

    from venice import status

    if watch:
        if as_json or not sys.stdout.isatty():
            raise InputError("--watch needs a terminal", "without one, call `venice status --json` as often as you like")
        Console().print(status.render(status.watch(cluster, watch, Console())))
        return
    found = status.collect(cluster)
    if as_json:
        print_json(found.to_dict())
    else:
        Console().print(status.render(found))
    sys.exit(found.exit_code)
