"""`venice pipelines`."""

import click

from venice import inventory
from venice.cli._options import inventory_option, json_option


@click.command()
@inventory_option
@json_option
def command(inventory_name: str | None, as_json: bool) -> None:
    """List the pipelines: what was applied when and by whom, and what differs from their folders now."""
    from rich.text import Text

    from venice.cli._output import console, grid, print_json
    from venice.pipeline import listing

    cluster, rows = listing.collect(inventory.resolve(inventory_name))
    if as_json:
        print_json({"cluster": cluster, "pipelines": [row.to_dict() for row in rows]})
        return
    table = grid("pipeline", "state", "applied", "by", "from")
    styles = {listing.IN_STEP: "green", listing.NEVER: "yellow", listing.DIFFERS: "yellow"}
    for row in rows:
        record = row.applied
        state = Text(row.state, style=styles.get(row.state, "red"))
        when = record.at[:16].replace("T", " ") if record else ""
        table.add_row(row.name, state, when, record.by.partition("@")[0] if record else "", record.digest if record else "")
    out = console()
    out.print(table)
    for row in rows:
        if said := listing.lines(row):
            out.print(f"\n{row.name}")
            for line in said:
                out.print(f"  {line}", soft_wrap=True)
    outside = [row.name for row in rows if row.folder and not row.in_inventory]
    if outside:
        out.print(f"\nnot in the inventory: {', '.join(outside)}; `venice install NAME` names it there", soft_wrap=True)
