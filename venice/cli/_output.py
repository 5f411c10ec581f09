"""How commands print: JSON for programs, tables for people."""

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_json(data: Any) -> None:
    """The documented form of a command's output (`docs/json/<command>.schema.json`), never coloured, never wrapped."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def console() -> "Console":
    """A console for people: a terminal's own width, and wide enough to cut nothing when it is piped into a program.

    Brackets are what they are: names and values of others are printed, and none of it is markup.
    """
    from rich.console import Console

    found = Console(highlight=False, markup=False)
    return found if found.is_terminal else Console(width=max(found.width, 160), highlight=False, markup=False)


def grid(*headings: str, right: tuple[str, ...] = ()) -> "Table":
    """A table without lines; the columns named in `right` are numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table
