"""`venice support-bundle`."""

from pathlib import Path

import click

from venice.cli._options import cluster_option, json_option
from venice.cli._output import console, print_json


@click.command()
@cluster_option
@json_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.tar.gz",
    help="Default: venice-CLUSTER-TIME.tar.gz in the current folder.",
)
def command(cluster, as_json: bool, output: Path | None) -> None:
    """Gather configurations, logs, states and versions of all hosts in one archive, without secrets.

    Works while hosts or services are down: what could not be had is named. Made automatically when a deployment fails.
    """
    from venice import support

    bundle = support.make(cluster, output)
    if as_json:
        print_json(bundle.to_dict())
    else:
        console().print(support.render(bundle), soft_wrap=True)
