"""`venice verify`."""

import sys

import click

from venice import completion
from venice.cli._options import cluster_option, json_option

_SHOWN = 10


@click.command(short_help="Recompute a pipeline's windows and compare each engine's with them.")
@click.argument("pipeline", shell_complete=completion.named_pipelines)
@cluster_option
@json_option
def command(cluster, pipeline: str, as_json: bool) -> None:
    """Recompute every window from the pipeline's input topic and compare what each engine of the inventory published.

    equal; missing; duplicate: more than once; wrong: other numbers; uncertain: events that may have come too late make several
    numbers right, and it has one of them; open: nothing has come yet that closes it. Exit code 1 when anything is
    missing, duplicate or wrong, or an engine has nothing to compare.
    """
    from rich.text import Text

    from venice import verify
    from venice.cli._output import console, grid, print_json

    found = verify.verify(cluster, cluster.pipeline_folder(pipeline))
    if as_json:
        print_json(found.to_dict())
        sys.exit(0 if found.ok else 1)
    out = console()
    out.print(
        f"{found.topic}: {found.records} records, {found.counted} count, in {found.windows} windows; "
        f"{found.ahead} from the far future, {found.malformed} malformed",
        soft_wrap=True,
    )
    table = grid("engine", *verify.VERDICTS, right=verify.VERDICTS)
    for engine in found.engines:
        table.add_row(Text(engine.name, style="green" if engine.ok else "red"), *(str(engine.counts[v]) for v in verify.VERDICTS))
    out.print(table)
    for engine in found.engines:
        for window in engine.remarkable[:_SHOWN]:
            out.print(f"{engine.name} {window}", soft_wrap=True)
        if (more := len(engine.remarkable) - _SHOWN) > 0:
            out.print(f"{engine.name}: and {more} more; --json has all of them", soft_wrap=True)
        if not engine.counts[verify.EQUAL] + engine.counts[verify.UNCERTAIN] and not engine.remarkable:
            out.print(f"{engine.name}: nothing to compare yet", soft_wrap=True)
    sys.exit(0 if found.ok else 1)
