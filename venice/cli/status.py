"""`venice status`."""

import json
import sys

import click

from venice import inventory
from venice.cli._options import inventory_option, json_option


@click.command()
@inventory_option
@json_option
def command(inventory_name: str | None, as_json: bool) -> None:
    """Show every container, broker and connector, and which hosts do not answer.

    Exits with 0 when everything that should run is healthy, 1 when something is not, 3 when a host does not answer.
    """
    from rich.console import Console

    from venice import status
    from venice.cluster import Cluster

    found = status.collect(Cluster.load(inventory.resolve(inventory_name)))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        Console().print(status.render(found))
    sys.exit(found.exit_code)
