"""`venice open`."""

import os
import sys

import click

from venice import completion
from venice.cli._options import cluster_option, json_option


@click.command()
@cluster_option
@json_option
@click.option("--print", "only_print", is_flag=True, help="Print the address and open nothing.")
@click.argument("name", required=False, metavar="[NAME[@HOST]]", shell_complete=completion.pages)
def command(cluster, as_json: bool, only_print: bool, name: str | None) -> None:
    """Open a page of the cluster in the browser, after it has answered; without NAME: list what can be opened.

    Names are `connect`, `registry`, `ui`, ...: what the inventory's components have. The first host that answers is taken.
    Where there is no display or terminal the address is printed only.
    """
    from venice import web
    from venice.cli._output import console, grid, print_json

    if name is None:
        found = web.pages(cluster)
        if as_json:
            print_json([page.to_dict() for page in found])
            return
        table = grid("name", "host", "address")
        for page in found:
            table.add_row(page.name, page.host, page.url)
        console().print(table)
        return
    page = web.answering(web.find(cluster, name))
    if as_json:
        print_json([page.to_dict()])
        return
    click.echo(page.url)
    if not only_print and _has_display():
        click.launch(page.url)


def _has_display() -> bool:
    """A person is there and a browser can show itself; else `launch` would start a text browser in the way of a script."""
    return sys.stdout.isatty() and (
        sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )
