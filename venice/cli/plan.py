"""`venice plan`."""

import sys

import click

from venice.cli._options import playbook_options


@click.command()
@playbook_options
def command(options) -> None:
    """Show what deploy would change, and change nothing.

    Files are shown as differences, secrets masked.
    """
    from rich.console import Console

    from venice import actions

    sys.exit(actions.plan(options, Console()).exit_code)
