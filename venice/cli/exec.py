"""`venice exec`."""

import sys

import click

from venice import completion
from venice.cli._options import cluster_option


@click.command(context_settings={"allow_interspersed_args": False}, short_help="Run a command, or a shell, in a container.")
@cluster_option
@click.argument("instance", metavar="INSTANCE[@HOST]", shell_complete=completion.running)
@click.argument("argv", nargs=-1, metavar="[--] [CMD...]")
def command(cluster, instance: str, argv: tuple[str, ...]) -> None:
    """Run a command in an instance's container, or open a shell there; its exit code is this command's.

    INSTANCE is a component that runs once, an instance, or either with its host: kafka@lab-1. Options go before it.
    """
    from venice import selection, terminal
    from venice.errors import InputError
    from venice.hosts import DockerHost

    argv = argv[1:] if argv[:1] == ("--",) else argv
    if argv and argv[0].startswith("-"):
        raise InputError(f"{argv[0]} is no command", f"options go before {instance}: venice exec -i NAME {instance} CMD")
    chosen = selection.one(selection.with_running(cluster, [instance]), instance)
    with DockerHost(cluster.hosts[chosen.host]) as host:
        sys.exit(terminal.attach(host, chosen.container, list(argv) or terminal.SHELL, terminal.on_terminal()))
