"""`venice plan`."""

import sys

import click

from venice.cli._options import playbook_options, prune_option


@click.command()
@playbook_options
@prune_option
def command(options, prune: bool) -> None:
    """Show what deploy would change, and change nothing.

    Files are shown as differences, secrets masked.
    """
    from rich.console import Console

    from venice import actions

    sys.exit(actions.plan(options, Console(), prune).exit_code)
