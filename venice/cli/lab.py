"""`venice lab`: lab hosts that behave as machines, on this machine's Docker engine."""

import dataclasses
import json
import os

import click

from venice import lab


@click.group("lab", short_help="Make and handle lab hosts: containers that behave as machines.")
def command() -> None:
    """Make and handle lab hosts: containers that behave as freshly installed Debian machines."""


@command.command()
@click.option("--hosts", default=3, show_default=True, metavar="N", help="How many hosts: lab-1 ... lab-N.")
def up(hosts: int) -> None:
    """Make the hosts, or mend what is wrong with them; returns when SSH answers on all."""
    lab.up(hosts, click.echo)


@command.command()
@click.option("--keep", is_flag=True, help="Keep the hosts' Docker data for the next lab up.")
def down(keep: bool) -> None:
    """Remove all hosts and their Docker data."""
    lab.down(keep, click.echo)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show the hosts: address, state, SSH and Docker."""
    hosts = lab.status()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(host) for host in hosts], indent=2))
        return
    if not hosts:
        click.echo("no lab; make one with `venice lab up`")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("host", "address", "state", "ssh", "docker")
    for host in hosts:
        table.add_row(host.name, host.address, host.state, "answers" if host.ssh else "-", host.docker or "-")
    Console().print(table)


@command.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("host")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED, metavar="[CMD]...")
def ssh(host: str, cmd: tuple[str, ...]) -> None:
    """Log in to a host, or run a command there; its exit code is this command's."""
    argv = lab.ssh_argv(host)
    os.execvp(argv[0], [*argv, *cmd])  # noqa: S606 (no shell: the terminal and the exit code are ssh's own)


@command.command()
@click.argument("host")
def reboot(host: str) -> None:
    """Shut a host down in order and boot it; returns when SSH answers again."""
    lab.reboot(host, click.echo)


@command.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@click.argument("host")
def power(state: str, host: str) -> None:
    """Switch a host on, or off as if its plug were pulled."""
    lab.power(host, state == "on", click.echo)


@command.command()
@click.argument("host")
def cut(host: str) -> None:
    """Cut a host off the network; it goes on running."""
    lab.cut(host, click.echo)


@command.command()
@click.argument("host")
def mend(host: str) -> None:
    """Put a host that was cut off back on the network."""
    lab.mend(host, click.echo)
