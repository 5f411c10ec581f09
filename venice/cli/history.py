"""`venice history`."""

import click

from venice.cli._options import inventory_option, json_option


@click.command()
@inventory_option
@json_option
@click.argument("run", required=False)
def command(inventory_name: str | None, as_json: bool, run: str | None) -> None:
    """List the runs on a cluster, or show one (RUN is its id or `last`)."""
    from rich.console import Console

    from venice import history

    history.show(inventory_name, run, as_json, Console())
