"""Names for the shell's completion: read from files in milliseconds, without Ansible, and never from the network."""

import os
import re
from pathlib import Path
from typing import Any

import click

from venice import inventory, paths
from venice.errors import InputError

_FILES = ("hosts.yml", "hosts.yaml")


# Bash takes `connect@lab-2` for two words as long as it thinks that hosts' names begin after an @.
_BASH = "COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}\n"


def script(shell: str) -> str:
    """What `bash`, `zsh` or `fish` has to evaluate."""
    from click.shell_completion import get_completion_class

    from venice.cli import cli

    made = get_completion_class(shell)
    if made is None:
        raise InputError(f"there is no completion for {shell}", "bash, zsh, fish")
    return (_BASH if shell == "bash" else "") + made(cli, {}, "venice", "_VENICE_COMPLETE").source()


def components() -> list[str]:
    """The components that have a group: roles whose defaults describe containers, and that run on no other's hosts."""
    found = {p.parents[1].name: p.read_text() for p in paths.resource("roles").glob("*/defaults/main.yml")}
    return sorted(name for name, text in found.items() if f"\n{name}_component:" in text and "\n  group:" not in text)


def pipelines() -> list[str]:
    """Pipelines that are shipped or below ./pipelines."""
    folders = (paths.resource("pipelines"), Path("pipelines"))
    return sorted({p.parent.name for folder in folders for p in folder.glob("*/pipeline.yml")})


def groups(given: str | None) -> dict[str, list[str]]:
    """Group -> its hosts as the inventory's file has them; nothing when that is not simply a YAML file that is there."""
    given = given or os.environ.get("VENICE_INVENTORY")
    if not given and len(here := inventory.names(Path("inventory"))) == 1:
        given = here[0]
    places = [place for place in (Path(given), Path("inventory") / given) if place.exists()] if given else []
    files = [f for place in places for f in ([place] if place.is_file() else [place / name for name in _FILES]) if f.is_file()]
    if not files:
        return {}
    import yaml

    found: dict[str, list[str]] = {}

    def walk(bodies: dict) -> None:
        for name, body in bodies.items():
            body = body or {}
            found.setdefault(name, []).extend(body.get("hosts") or {})
            walk(body.get("children") or {})

    try:
        walk(yaml.load(files[0].read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {})  # noqa: S506 both are safe
    except (yaml.YAMLError, OSError, AttributeError, TypeError, ValueError):
        return {}
    return found


def hosts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes the last of `lab-1,lab-2`."""
    before, comma, last = incomplete.rpartition(",")
    names = dict.fromkeys(host for members in groups(_inventory(ctx)).values() for host in members)
    return [f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in before.split(",")]


def running(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes components that the inventory gives hosts, and `component@host`."""
    there = {name: members for name, members in groups(_inventory(ctx)).items() if members and name in components()}
    words = [name.replace("_", "-") for name in there]
    at = [f"{name.replace('_', '-')}@{host}" for name, members in there.items() for host in members] if "@" in incomplete else []
    return _beginning(words + at, incomplete)


def pages(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes what `venice open` can open."""
    found = []
    for name in (name for name, members in groups(_inventory(ctx)).items() if members and name in components()):
        web = re.search(r"^  web: \{name: ([\w-]+)", (paths.resource("roles") / name / "defaults" / "main.yml").read_text(), re.MULTILINE)
        found += [web[1]] if web else []
    return _beginning(found, incomplete)


def named_pipelines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes the pipelines that `pipelines` finds."""
    return _beginning(pipelines(), incomplete)


def installable(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Completes components, pipelines, and folders."""
    if incomplete.startswith((".", "/", "~")):
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="dir")]
    return _beginning([*components(), *pipelines()], incomplete)


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _inventory(ctx: click.Context) -> str | None:
    return ctx.params.get("inventory_name")
