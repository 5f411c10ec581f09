"""`venice psql`."""

import sys
from typing import IO

import click

from venice.cli._options import cluster_option, json_option


@click.command(short_help="Open psql on the sink, or run SQL there.")
@cluster_option
@click.option("-c", "--command", "commands", multiple=True, metavar="SQL", help="Run this and end; may be repeated.")
@click.option("-f", "--file", type=click.File("rb"), metavar="FILE", help="Run a file's SQL and end; - is the standard input.")
@click.option("--csv", "as_csv", is_flag=True, help="Print results as CSV.")
@json_option
@click.argument("options", nargs=-1, metavar="[-- PSQL_OPTION...]")
def command(cluster, commands: tuple[str, ...], file: IO[bytes] | None, as_csv: bool, as_json: bool, options: tuple[str, ...]) -> None:
    """Open psql on the sink, as its superuser and in the pipelines' database; or run SQL there.

    Without -c and -f, and with an input that is no terminal, that input is run. What fails ends the run with exit code 1.
    psql runs in its own container over SSH: no password is asked for or sent.
    """
    from venice.cli._output import print_json
    from venice.errors import InputError
    from venice.postgres import Postgres
    from venice.terminal import on_terminal

    if commands and file:
        raise InputError("-c and -f together: which first?", "run the command twice")
    if as_json and (len(commands) != 1 or as_csv or options):
        raise InputError("--json takes one -c SQL and no other options", "repeat the command for each statement")
    postgres = Postgres.of(cluster)
    options = (*(["--csv"] if as_csv else []), *options)
    if as_json:
        print_json(postgres.rows(commands[0]))
    elif commands:
        sys.exit(postgres.run_commands(commands, options))
    elif file or not on_terminal():
        sys.exit(postgres.run_input(file, options))
    else:
        sys.exit(postgres.shell(options))
