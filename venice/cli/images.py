"""venice images: the container images Venice builds itself."""

import json
import sys

import click

from venice.cli._options import json_option, playbook_options


@click.group()
def command() -> None:
    """Build, list and ship Venice's own container images."""


@command.command()
@click.argument("names", nargs=-1, metavar="[IMAGE]...")
def build(names: tuple[str, ...]) -> None:
    """Build the images that are missing (all, or those named)."""
    from venice.images.build import build

    for image in build(names or None, click.echo):
        how = f"built in {image.seconds:.0f} s" if image.built else "was there"
        click.echo(f"{image.ref:40} {image.size / 1e6:5.0f} MB  {how}")


@command.command("list")
@json_option
def list_images(as_json: bool) -> None:
    """List the images: tag, and size on disk when built."""
    from venice.images import refs
    from venice.images.build import client, present

    there = present(client())
    rows = [{"name": name, "ref": ref, "built": ref in there, "size": there.get(ref, {}).get("size")} for name, ref in refs().items()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['ref']:40} " + (f"{row['size'] / 1e6:5.0f} MB" if row["built"] else "not built"))


@command.command()
@playbook_options
def ship(options) -> None:
    """Give every host the images that it lacks."""
    from rich.console import Console

    from venice import actions

    sys.exit(actions.play("images", options, Console()).exit_code)
