"""`venice config`."""

import click

from venice import completion
from venice.cli._options import cluster_option, json_option


@click.group()
def command() -> None:
    """Look at what Venice configures."""


@command.command()
@cluster_option
@json_option
@click.argument("name", metavar="COMPONENT|INSTANCE[@HOST]", shell_complete=completion.running)
def show(cluster, as_json: bool, name: str) -> None:
    """Show the rendered files and the environment of a component's containers.

    What hosts have alike is shown once, with all who have it. Passwords are masked; files that hold some show their keys only.
    """
    from venice import config
    from venice.cli._output import print_json

    found = config.show(cluster, name)
    if as_json:
        print_json(found.to_dict())
        return
    for file in found.files:
        _heading([f"{p.host}:{p.path}" for p in file.places], f"mode {file.mode}{', secret' if file.secret else ''}")
        click.echo(file.content.rstrip("\n") + "\n")
    for environment in found.environments:
        _heading([f"{p.host}: container {p.path}" for p in environment.places], "environment")
        click.echo("\n".join(f"{key}={value}" for key, value in environment.values.items()) + "\n")


def _heading(places: list[str], what: str) -> None:
    for n, place in enumerate(places):
        click.secho(f"==> {place}{f' ({what})' if n == len(places) - 1 else ''}", bold=True)
