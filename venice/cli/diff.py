"""`venice diff`."""

import sys

import click

from venice import completion, inventory
from venice.cli._options import inventory_option, json_option


@click.command()
@click.argument("pipelines", nargs=-1, metavar="[PIPELINE]...", shell_complete=completion.named_pipelines)
@inventory_option
@json_option
def command(pipelines: tuple[str, ...], inventory_name: str | None, as_json: bool) -> None:
    """Show what `venice apply` would change, and change nothing.

    PIPELINE is a folder or a name; all that the inventory names when none is given. Exits with 0 when nothing differs, 1 when
    something does.
    """
    from venice import applying
    from venice.cli._output import print_json

    chosen = applying.choose(inventory.resolve(inventory_name), pipelines)
    plans = applying.compare(chosen)
    if as_json:
        print_json(applying.to_dict(chosen, plans, check=True))
    else:
        click.echo("\n".join([*applying.lines(plans), *applying.remarks(chosen, plans)]))
    sys.exit(1 if plans.changes else 0)
