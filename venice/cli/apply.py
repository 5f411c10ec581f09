"""`venice apply`."""

import sys

import click

from venice import completion, inventory
from venice.cli._options import ask, inventory_option, json_option, yes_option


@click.command()
@click.argument("pipelines", nargs=-1, required=True, metavar="PIPELINE...", shell_complete=completion.named_pipelines)
@inventory_option
@click.option("--check", is_flag=True, help="Only show what would be changed.")
@click.option("--prune", is_flag=True, help="Remove what an earlier apply made and the folder no longer has; names it and asks.")
@yes_option
@json_option
def command(pipelines: tuple[str, ...], inventory_name: str | None, check: bool, prune: bool, yes: bool, as_json: bool) -> None:
    """Make the cluster what pipelines say: topics, schemas, SQL, connectors, producers.

    PIPELINE is a folder with a pipeline.yml, or a name as in venice_pipelines. Everything is read and checked before anything
    is changed; only differences are sent; applying again changes nothing.
    """
    from rich.console import Console

    from venice import applying
    from venice.cli._output import print_json
    from venice.pipeline.running import READY_SECONDS
    from venice.progress import Progress

    chosen = applying.choose(inventory.resolve(inventory_name), pipelines)
    plans = applying.compare(chosen, prune, 0 if check else READY_SECONDS)
    code = 0
    if not check:
        if plans.questions:
            click.echo("\n".join(plans.questions), err=True)
            ask("Go on?", yes)
        say = (lambda line: click.echo(line, err=True)) if as_json else click.echo
        # the summary of the whole run is printed below; Ansible's part shows itself
        with Progress(Console(stderr=as_json)) as progress:
            code = applying.apply(chosen, plans, progress, say).exit_code
    if as_json:
        print_json(applying.to_dict(chosen, plans, check))
    else:
        click.echo("\n".join(applying.closing(chosen, plans, check, code)))
    sys.exit(code)
