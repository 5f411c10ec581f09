"""`venice ksql`."""

import json
import sys
from typing import IO

import click

from venice.cli._options import cluster_option


@click.command(short_help="Open ksqlDB's command line, or run statements there.")
@cluster_option
@click.option("-e", "--execute", "scripts", multiple=True, metavar="STATEMENTS", help="Run these and end; may be repeated.")
@click.option("-f", "--file", type=click.File("r", encoding="utf-8"), metavar="FILE", help="Run a file's statements; - is standard input.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per answer or row.")
def command(cluster, scripts: tuple[str, ...], file: IO[str] | None, as_json: bool) -> None:
    """Open ksqlDB's own command line in its container; or run statements there, one after the other.

    Without -e and -f, and with an input that is no terminal, that input is run. Statements go to the server's REST interface,
    and the first that fails ends the run with exit code 1. A query with EMIT CHANGES or EMIT FINAL and no LIMIT runs until
    Ctrl-C.
    """
    from venice import ksqldb, terminal
    from venice.errors import InputError
    from venice.hosts import DockerHost

    ksqldb.require(cluster)
    if scripts and file:
        raise InputError("-e and -f together: which first?", "run the command twice")
    if not scripts and not file and terminal.on_terminal():
        instance = cluster.instances("ksqldb")[0]
        url = f"http://localhost:{instance.ports['http']}"
        with DockerHost(cluster.hosts[instance.host]) as host:
            sys.exit(terminal.attach(host, instance.container, [*cluster.var(instance.host, "ksqldb_cli"), url], True))
    source = file or sys.stdin
    # each may lack its last semicolon, and end with a comment
    statements = ksqldb.split("\n;".join(scripts) if scripts else source.read(), "" if scripts else source.name)
    for found in ksqldb.KsqlDb.of(cluster).run(statements, "" if scripts else source.name):
        (_print_json if as_json else _print)(found)


def _print_json(found) -> None:
    from venice.ksqldb import Answer

    for document in [found.to_dict()] if isinstance(found, Answer) else found.documents():
        click.echo(json.dumps(document, ensure_ascii=False))


def _print(found) -> None:
    from venice.cli._output import console, grid
    from venice.ksqldb import Answer

    if isinstance(found, Answer):
        for text in [*found.warnings, found.message]:
            if text:
                click.echo(text)
        columns, rows = found.table()
        if not columns and not found.message:
            click.echo("none")
    elif found.endless:
        click.echo("\t".join(found.columns))
        for row in found.text():
            click.echo("\t".join(row))
        return
    else:
        columns, rows = found.columns, list(found.text())
    if columns:
        table = grid(*columns)
        for row in rows:
            table.add_row(*row)
        console().print(table)
