"""`venice up`."""

import sys

import click

from venice.cli._options import playbook_options


@click.command()
@playbook_options
def command(options) -> None:
    """Start what is deployed, in dependency order, and wait until it is healthy.

    Where no host has a container of the cluster, it is deployed.
    """
    from rich.console import Console

    from venice import actions

    sys.exit(actions.up(options, Console()).exit_code)
