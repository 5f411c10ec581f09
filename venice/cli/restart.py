"""`venice restart`."""

import sys

import click

from venice import completion
from venice.cli._options import playbook_options


@click.command()
@playbook_options
@click.argument("names", nargs=-1, metavar="[COMPONENT|INSTANCE|HOST]...", shell_complete=completion.running)
def command(options, names: tuple[str, ...]) -> None:
    """Restart containers, one at a time, each only when the one before works again.

    Names are components (kafka), instances (kafka-2), hosts (lab-2), one of several (kafka@lab-2), or `all`. A broker goes down
    only while every partition keeps min.insync.replicas without it, the active controller last; the next waits until all
    replicas are in sync. A named container that is stopped is started. Without names, on a terminal, there is a list to choose
    from.
    """
    from rich.console import Console

    from venice import actions

    sys.exit(actions.restart(options, Console(), list(names) or _chosen(options)).exit_code)


def _chosen(options) -> list[str]:
    """Names picked from a list; none without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return []
    import questionary

    from venice import actions, selection

    names = selection.known(actions.checked(options))
    picked = questionary.checkbox("Restart what?", choices=names, instruction="(space marks, enter restarts)").ask()
    if not picked:
        raise click.Abort
    return picked
