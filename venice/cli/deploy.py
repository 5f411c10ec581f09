"""`venice deploy`."""

import sys

import click

from venice.cli._options import playbook_options, prune_option


@click.command()
@playbook_options
@prune_option
def command(options, prune: bool) -> None:
    """Make the hosts what the inventory says, and prove it with one traced event.

    Installs Docker where it is missing, ships images, starts and waits for every component, applies the pipelines.
    Running it again changes only what differs.
    """
    from rich.console import Console

    from venice import actions

    sys.exit(actions.deploy(options, Console(), prune).exit_code)
