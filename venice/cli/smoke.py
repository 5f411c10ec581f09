"""`venice smoke`."""

import json
import sys

import click

from venice import inventory
from venice.cli._options import inventory_option, json_option


@click.command()
@inventory_option
@json_option
def command(inventory_name: str | None, as_json: bool) -> None:
    """Trace one real event from producer through Kafka, registry and Connect into PostgreSQL."""
    from rich.console import Console

    from venice import smoke
    from venice.cluster import Cluster
    from venice.progress import smoke_table

    found = smoke.run(Cluster.load(inventory.resolve(inventory_name)))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        Console().print(smoke_table(found.to_dict()["hops"]))
    sys.exit(0 if found.ok else 1)
