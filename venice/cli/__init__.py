"""The command line: one module per command, imported only when it is called."""

import difflib
import importlib
import pkgutil
import sys

import click

from venice import __version__
from venice.errors import VeniceError

# The short forms that the first Venice had: `venice -st` is `venice status`.
ALIASES = {
    "-c": "connectors",
    "-i": "install",
    "-k": "ksql",
    "-l": "logs",
    "-p": "psql",
    "-r": "restart",
    "-s": "schemas",
    "-st": "status",
    "-t": "topics",
}


class _Commands(click.Group):
    """Finds `venice/cli/<name>.py`, so that `--help` of one command does not import the libraries of all."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"venice.cli.{name.replace('-', '_')}").command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in ALIASES:
            args = [ALIASES[args[0]], *args[1:]]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        # completion asks with words that are not finished
        near = [] if ctx.resilient_parsing else difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
        if near and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}; did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Short forms"):
            formatter.write_text(", ".join(f"{short} {name}" for short, name in ALIASES.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="venice")
def cli() -> None:
    """Put a complete event-stream pipeline on one or many hosts, and keep it right.

    Exit codes: 0 done; 1 failed on a host; 2 wrong input, nothing was touched; 3 a host or service did not answer;
    130 interrupted.
    """


def main() -> None:
    """Entry point of the console script; turns VeniceError into a message and its exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except VeniceError as error:
        click.secho(f"error: {error.message}", fg="red", err=True)
        if error.remedy:
            click.echo(f"  {error.remedy}", err=True)
        code = error.exit_code
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    sys.exit(code or 0)
