"""`venice sql`."""

import sys
from typing import IO

import click

from venice.cli._options import cluster_option, json_option


@click.command(short_help="Open the stream processor's SQL client, or run SQL over topics.")
@cluster_option
@click.option("-e", "--execute", "scripts", multiple=True, metavar="SQL", help="Run this and end; may be repeated.")
@click.option("-f", "--file", type=click.File("r", encoding="utf-8"), metavar="FILE", help="Run a file's SQL and end; - is standard input.")
@json_option
def command(cluster, scripts: tuple[str, ...], file: IO[str] | None, as_json: bool) -> None:
    """Open Flink's SQL client with every topic declared as a table; or run SQL over what is in the topics now.

    On a terminal tables are read as they grow: SELECT * FROM bus_locations shows buses until Ctrl-C. With -e, -f or a pipe they
    are read up to now, and the first statement that fails ends the run with exit code 1.
    """
    from venice import sql
    from venice.cli._output import console, grid, print_json
    from venice.errors import InputError
    from venice.terminal import on_terminal

    cluster.required("flink", "gateway")
    if scripts and file:
        raise InputError("-e and -f together: which first?", "run the command twice")
    if not scripts and not file and on_terminal():
        sys.exit(sql.shell(cluster))
    source = file or sys.stdin
    script, name = ("\n;\n".join(scripts), "") if scripts else (source.read(), source.name)
    for statement, result in sql.run(cluster, script, name):
        if as_json:
            print_json({"statement": statement, "rows": list(sql.documents(result))})
            continue
        table = grid(*(name for name, _ in result.columns))
        for row in result.rows:
            table.add_row(*("NULL" if value is None else str(value) for value in row))
        console().print(table)
