"""`venice schemas`."""

from pathlib import Path

import click

from venice import inventory
from venice.cli._options import ask, cluster_option, inventory_option, json_option, yes_option


@click.group(invoke_without_command=True, short_help="List schemas; show, add and delete them, change compatibility.")
@inventory_option
@json_option
@click.option("--deleted", is_flag=True, help="List what is deleted softly.")
@click.pass_context
def command(ctx: click.Context, inventory_name: str | None, as_json: bool, deleted: bool) -> None:
    """List the registry's subjects; the subcommands show, add and delete schemas, and change compatibility."""
    if ctx.invoked_subcommand is not None:
        return
    from venice import schemas
    from venice.cli._output import console, grid, print_json
    from venice.cluster import Cluster
    from venice.registry import Registry

    cluster = Cluster.load(inventory.resolve(inventory_name))
    found = schemas.listing(Registry.of(cluster), deleted)
    if as_json:
        print_json({"subjects": [subject.to_dict() for subject in found]})
        return
    if not found:
        click.echo("nothing is deleted softly" if deleted else "no subjects; `venice schemas add FILE` makes one")
        return
    table = grid("subject", "type", "versions", "id", "compatibility", *(["deleted"] if deleted else []), right=("id",))
    for s in found:
        level = s.compatibility if s.own_compatibility else f"{s.compatibility} (default)"
        gone = [schemas.spans(s.deleted_versions)] if deleted else []
        table.add_row(s.subject, s.type or "-", schemas.spans(s.versions) or "-", str(s.latest_id or "-"), level, *gone)
    console().print(table)


@command.command()
@click.argument("subject")
@click.option("--version", type=click.IntRange(1), metavar="N", help="Default: the latest.")
@cluster_option
@json_option
def show(cluster, subject: str, version: int | None, as_json: bool) -> None:
    """Show a subject's schema."""
    from venice import schemas
    from venice.cli._output import print_json
    from venice.registry import Registry

    found = schemas.show(Registry.of(cluster), subject, version)
    if as_json:
        return print_json(found)
    own = "its own" if found["own_compatibility"] else "the default"
    click.echo(f"{subject} version {found['version']} of {schemas.spans(found['versions'])}, id {found['id']}, {found['type']}")
    click.echo(f"compatibility {found['compatibility']} ({own})")
    for reference in found["references"]:
        click.echo(f"refers to {reference['name']}: subject {reference['subject']} version {reference['version']}")
    click.echo(f"\n{schemas.pretty(found['schema'], found['type'])}")


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--subject", metavar="NAME", help="Default: the file's name without its ending, and -value.")
@click.option(
    "--type", "kind", type=click.Choice(["AVRO", "JSON", "PROTOBUF"], case_sensitive=False), help="Default: by the file's ending."
)
@cluster_option
@json_option
def add(cluster, file: Path, subject: str | None, kind: str | None, as_json: bool) -> None:
    """Register a schema (.avsc, .json, .proto) when it is right and compatible.

    What is incompatible is explained, with exit code 1, and nothing is registered then.
    """
    from venice import schema_files, schemas
    from venice.cli._output import print_json
    from venice.registry import Registry

    schema = schema_files.load(file, kind)
    added = schemas.add(Registry.of(cluster), subject or schema.subject, schema)
    if as_json:
        return print_json(added.to_dict())
    what = "registered as" if added.registered else "is already registered as"
    click.echo(f"{file} {what} version {added.version} of {added.subject}, id {added.id}")


@command.command()
@click.argument("subject")
@click.option("--version", type=click.IntRange(1), metavar="N", help="Only this version.")
@click.option("--permanent", is_flag=True, help="For good: records written with it can't be read any more.")
@yes_option
@cluster_option
@json_option
def delete(cluster, subject: str, version: int | None, permanent: bool, yes: bool, as_json: bool) -> None:
    """Delete a subject or a version, softly: it stays readable by its id, and adding it again brings it back."""
    from venice import schemas
    from venice.cli._output import print_json
    from venice.registry import Registry

    registry = Registry.of(cluster)
    versions = schemas.spans(schemas.doomed(registry, subject, version, permanent))
    loss = " for good? Records written with it can't be read any more." if permanent else " (softly)?"
    ask(f"Delete version {versions} of {subject}{loss}", yes)
    gone = registry.delete(subject, permanent, version)
    if as_json:
        return print_json({"subject": subject, "versions": gone, "permanent": permanent})
    click.echo(f"deleted {'for good' if permanent else 'softly'}: version {schemas.spans(gone)} of {subject}")
    if not permanent:
        click.echo(f"  `venice schemas delete {subject} --permanent` removes it for good, adding it again brings it back")


@command.command()
@click.argument("subject", required=False)
@click.argument("level", required=False)
@cluster_option
@json_option
def compat(cluster, subject: str | None, level: str | None, as_json: bool) -> None:
    """Show or set the compatibility of SUBJECT; without SUBJECT the default of all that have none of their own.

    LEVEL: BACKWARD (the new schema reads what the latest wrote), FORWARD (the latest reads what the new one writes), FULL
    (both), each also _TRANSITIVE (all versions instead of the latest), or NONE.
    """
    from venice import schemas
    from venice.cli._output import print_json
    from venice.registry import LEVELS, Registry

    if subject and not level and subject.upper() in LEVELS:
        subject, level = None, subject
    registry = Registry.of(cluster)
    before = schemas.set_compatibility(registry, subject, level) if level else None
    now, own = schemas.compatibility(registry, subject)
    if as_json:
        return print_json({"subject": subject, "compatibility": now, "own_compatibility": own, "before": before})
    name = subject or "default of all subjects"
    click.echo(f"{name}: {now}" + (f" (was {before})" if before else "" if own else " (the default)"))
