"""`venice destroy`."""

import sys

import click

from venice.cli._options import playbook_options


@click.command()
@playbook_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-data", is_flag=True, help="Remove the containers only.")
def command(options, yes: bool, keep_data: bool) -> None:
    """Remove containers, configuration and data from the hosts; names them first and asks."""
    from rich.console import Console

    from venice import actions

    console = Console()
    console.print("\n".join(actions.doomed(options, keep_data)), highlight=False)
    if not yes:
        click.confirm("Remove all this?", abort=True)
    sys.exit(actions.play("destroy", options, console, {"keep_data": keep_data}).exit_code)
