"""Options and endings that several commands share."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from venice import inventory
from venice.errors import InputError


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in inventory.known() if name.startswith(incomplete)]


def _inherited(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """An option given to a group counts for its subcommands too: `venice topics -i lab show x`."""
    return value or (ctx.parent and ctx.parent.params.get(param.name)) or value


inventory_option = click.option(
    "-i",
    "--inventory",
    "inventory_name",
    metavar="NAME|PATH",
    shell_complete=_complete,
    callback=_inherited,
    help="A path, or a folder below ./inventory, or one that Venice ships. Default: $VENICE_INVENTORY, else the only one in ./inventory.",
)
prune_option = click.option("--prune", is_flag=True, help="Remove containers of components that left a host's groups.")
json_option = click.option("--json", "as_json", is_flag=True, callback=_inherited, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def ask(question: str, yes: bool) -> None:
    """Returns when the user says yes, on a terminal, or said so with --yes; before anything that can't be undone.

    Saying no is click's Abort (exit code 130). Without a terminal and without --yes it is an InputError: nobody can answer.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{question} Nobody can answer: this is no terminal", "add --yes when that is what you want")
    click.confirm(question, abort=True, err=True)


def cluster_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--inventory` of commands that ask a running cluster; handed over as one `cluster`."""

    @inventory_option
    @functools.wraps(command)
    def wrapped(inventory_name: str | None, **rest: Any) -> Any:
        from venice.cluster import Cluster

        return command(cluster=Cluster.load(inventory.resolve(inventory_name)), **rest)

    return wrapped


def playbook_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--inventory --limit -e -v` of commands that run a playbook; handed over as one `options`."""

    @inventory_option
    @click.option("-l", "--limit", metavar="HOSTS", help="Only these hosts or groups (an Ansible pattern).")
    @click.option("-e", "--extra-vars", multiple=True, metavar="KEY=VALUE", help="Set a variable; also JSON or @FILE.")
    @click.option("-v", "--verbose", count=True, help="Show Ansible's own output; more for more.")
    @functools.wraps(command)
    def wrapped(inventory_name: str | None, limit: str | None, extra_vars: tuple[str, ...], verbose: int, **rest: Any) -> Any:
        from venice.runner import Options

        options = Options(inventory.resolve(inventory_name), limit, verbosity=verbose, extra_vars=extra_vars)
        return command(options=options, **rest)

    return wrapped
