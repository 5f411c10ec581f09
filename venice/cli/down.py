"""`venice down`."""

import sys

import click

from venice.cli._options import playbook_options


@click.command()
@playbook_options
def command(options) -> None:
    """Stop everything in reverse dependency order; data is kept."""
    from rich.console import Console

    from venice import actions

    sys.exit(actions.play("down", options, Console()).exit_code)
