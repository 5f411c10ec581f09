"""Adding to an inventory: a component's group with its hosts, or a pipeline with its folder; and what there is to add.

Everything is checked before anything is written: the inventory as it would be, the pipeline's files where they come from.
"""

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from venice import __version__, inventory, paths, pipeline, preflight, sources, yamledit
from venice.cluster import Cluster, component_groups, component_roles
from venice.errors import InputError
from venice.paths import shown
from venice.reading import written_in
from venice.sources import Source

RECORD = ".venice-source.json"
_SHIPPED = "venice"
_CANARY = "canary"
# A pipeline's parts and the components without which they can't be.
_PARTS = (
    ("topics", "kafka"),
    ("schemas", "schema_registry"),
    ("tables", "pinot"),
    ("connectors", "connect"),
    ("producers", "producer"),
    ("jobs", "spark"),
)


@dataclass(frozen=True)
class Component:
    """A component that Venice ships: the hosts of this inventory that have it, and what it needs to have beside it."""

    name: str
    title: str
    hosts: list[str]
    requires: list[str]


@dataclass(frozen=True)
class Offered:
    """A pipeline that Venice ships or that is in ./pipelines. `named`: the inventory runs it; `folder`: the copy, if any."""

    name: str
    description: str
    shipped: bool
    named: bool
    folder: str | None
    source: str | None


@dataclass(frozen=True)
class Listing:
    """What `venice install` lists; `to_dict` is the documented JSON."""

    components: list[Component]
    pipelines: list[Offered]

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        return asdict(self)


@dataclass
class Outcome:
    """What was done: `changes` is empty when nothing was to do; `next` are the commands to run then."""

    kind: str
    name: str
    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    commit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        return asdict(self)


def listing(cluster: Cluster) -> Listing:
    """What can be installed and what of it is."""
    components = [
        Component(name, role.description["title"], list(cluster.groups.get(name, [])), list(role.description.get("requires", [])))
        for name, role in component_roles().items()
        if name in component_groups()
    ]
    named = {folder.name for folder in cluster.pipelines}
    shipped, local = _pipelines(paths.resource("pipelines")), _pipelines(Path("pipelines"))
    offered = []
    for name in sorted(shipped | local):
        folder = local.get(name) or shipped[name]
        record = _record(folder)
        offered.append(
            Offered(
                name,
                _description(folder),
                name in shipped,
                name in named,
                str(local[name]) if name in local else None,
                f"{record['url']}#{record['commit']}" if record and record["url"] != _SHIPPED and record["commit"] else None,
            )
        )
    return Listing(components, offered)


def kind(what: str) -> str:
    """`component`, `pipeline` or `source` for what a person typed. Raises InputError with the nearest name for neither."""
    known = [*component_groups(), *sorted(_pipelines(paths.resource("pipelines")) | _pipelines(Path("pipelines")))]
    if what.replace("-", "_") in component_groups():
        return "component"
    if what in known:
        return "pipeline"
    if sources.is_source(what):
        return "source"
    near = difflib.get_close_matches(what, known, 1, cutoff=0.6)
    raise InputError(
        f"{what!r} is no component and no pipeline",
        f"{f'did you mean {near[0]}? ' if near else ''}known: {', '.join(known)}; or a git URL, or a folder such as ./{what}",
    )


# ---- components -----------------------------------------------------------------------------------------------------


def component(place: Path, name: str, hosts: list[str]) -> Outcome:
    """Adds hosts to the component's group in the inventory at `place`.

    Raises InputError, and writes nothing, for unknown hosts, for a result that `preflight.validate` finds fault with, and for an
    inventory that is no YAML file (it says the lines to add).
    """
    name = name.replace("-", "_")
    cluster = Cluster.load(place)
    # plain texts: names out of the model are texts of Ansible's own, which remember their files
    hosts = list(dict.fromkeys(str(host) for host in hosts))
    for host in hosts:
        if host not in cluster.hosts:
            near = difflib.get_close_matches(host, list(cluster.hosts), 1)
            suggestion = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"{shown(place)} has no host {host!r}", f"{suggestion}hosts: {', '.join(cluster.hosts)}")
    outcome = Outcome("component", name)
    new = [host for host in hosts if host not in cluster.groups.get(name, [])]
    if not new:
        return outcome
    file = _hosts_file(place)
    lines = "\n".join([f"[{name}]", *new]) if file is None or file.suffix not in (".yml", ".yaml") else f"{name}: {{hosts: {_flow(new)}}}"
    text = _edited(file or place, lines, lambda text: yamledit.add_hosts(text, name, new))
    after = Cluster.load(place, texts={file.resolve(): text})
    missing = [c for c in component_roles()[name].description.get("requires", []) if not after.groups.get(c)]
    findings = _new_findings(cluster, after)
    if findings and not missing:
        raise InputError(_listed(f"{name} on {', '.join(new)} would make the inventory wrong; nothing was written", findings))
    _write(file, text)
    outcome.changes.append(f"{shown(file)}: group {name}: added {', '.join(new)}")
    # what else does not fit may be due to what is missing: it is told once that is there
    outcome.warnings = [f"{name} needs {c}, which has no hosts: venice install {c} --hosts ..." for c in missing]
    outcome.next = [f"venice plan -i {_called(place)}", f"venice deploy -i {_called(place)}"]
    return outcome


def _flow(hosts: list[str]) -> str:
    return "{" + ", ".join(f"{host}: " for host in hosts).rstrip() + "}"


def _hosts_file(place: Path) -> Path | None:
    """The inventory's file that may be edited: YAML, no program."""
    places = [place / name for name in ("hosts.yml", "hosts.yaml", "hosts")] if place.is_dir() else [place]
    file = next((p for p in places if p.is_file()), None)
    return file if file and file.suffix in (".yml", ".yaml", "") and not os.access(file, os.X_OK) else None


# ---- pipelines ------------------------------------------------------------------------------------------------------


def shipped(place: Path, name: str, overwrite: Callable[[str], bool]) -> Outcome:
    """Copies a pipeline that Venice ships to ./pipelines and names it in the inventory; one that is only there is just named.

    `overwrite`: asked with the changed files when the copy was changed; InputError when it says no.
    """
    folder = paths.resource("pipelines") / name
    if name not in _pipelines(paths.resource("pipelines")) or (Path("pipelines") / name).resolve() == folder.resolve():
        return _named(place, Path("pipelines") / name, None, overwrite)
    return _named(place, Path("pipelines") / name, Source(name, _SHIPPED, __version__, name, sources.fetch(str(folder)).files), overwrite)


def sourced(place: Path, what: str, commit: str | None, overwrite: Callable[[str], bool]) -> Outcome:
    """The same with a pipeline from a git repository or a folder; `what` and `commit` as `sources.fetch` takes them."""
    source = sources.fetch(what, commit)
    target = Path("pipelines") / source.name
    if not source.commit and Path(what).expanduser().resolve() == target.resolve():
        return _named(place, target, None, overwrite)
    outcome = _named(place, target, source, overwrite)
    outcome.commit = source.commit or None
    return outcome


def _named(place: Path, target: Path, source: Source | None, overwrite: Callable[[str], bool]) -> Outcome:
    """Checks, copies (without a source it is there already), names."""
    name = target.name
    cluster = Cluster.load(place)
    outcome = Outcome("pipeline", name)
    if name == _CANARY:
        if cluster.has_canary:
            return outcome
        raise InputError(f"{name} comes by itself", "it is part of every deployment that has Kafka, registry, Connect and PostgreSQL")
    beside = cluster.inventory_dir / "pipelines" / name
    if source and beside.exists() and beside.resolve() != target.resolve():
        raise InputError(f"{shown(beside)} is there already and comes before ./{target}", "remove or rename one of them")
    copied = source is not None and _to_copy(target, source, overwrite, outcome)
    with tempfile.TemporaryDirectory(prefix="venice-pipeline-") as folder:
        staged = Path(folder) / name
        if source and copied:
            _stage(source, staged, target)
        _checked(cluster, place, staged if copied else target, source, folder, outcome)
        edit = _naming(cluster, place, name)
        if copied:
            _replace(staged, target)
            origin = f"Venice {source.commit}" if source.url == _SHIPPED else str(source)
            outcome.changes.append(f"{target}: copied from {origin}")
    if edit:
        _write(*edit)
        outcome.changes.append(f"{shown(edit[0])}: venice_pipelines: added {name}")
    if outcome.changes:
        # producers and jobs are containers: hosts have to be brought up to them, too
        found = pipeline.load(target).within(cluster.groups)
        last = f"venice deploy -i {_called(place)}" if found.producers or found.jobs else f"venice apply {name} -i {_called(place)}"
        outcome.next = [f"venice plan -i {_called(place)}", last]
    return outcome


def _to_copy(target: Path, source: Source, overwrite: Callable[[str], bool], outcome: Outcome) -> bool:
    """True when files must be copied. Raises InputError when that would lose somebody's work."""
    if not target.exists():
        return True
    record = _record(target)
    here = {p: digest for p, digest in _digests(target).items() if p != RECORD}
    wanted = {path: hashlib.sha256(content).hexdigest() for path, content in source.files.items()}
    same = all(here.get(path) == digest for path, digest in wanted.items())
    if record is None:
        if same and (source.url == _SHIPPED or not source.commit):
            return False
        if not same:
            _or_refuse(target, sorted(p for p in here if wanted.get(p) != here[p]), "is there and was not installed from there", overwrite)
        return True
    if (record["url"], record["path"]) != (source.url, source.path):
        raise InputError(
            f"{target} comes from {record['url']}{':' + record['path'] if record['path'] else ''}, not from {source.url}",
            "remove that folder first, or rename the new pipeline's folder",
        )
    changed = sorted(p for p in record["files"] if here.get(p) != record["files"][p])
    changed += sorted(p for p in wanted if p in here and p not in record["files"] and here[p] != wanted[p])
    if record["commit"] == source.commit and record["files"] == wanted:
        if changed:
            outcome.warnings.append(f"changed here since it was installed: {', '.join(changed)}")
        return False
    if changed and not same:
        _or_refuse(target, changed, "was changed here since it was installed", overwrite)
    return True


def _or_refuse(target: Path, changed: list[str], why: str, overwrite: Callable[[str], bool]) -> None:
    files = ", ".join(changed) or "files are missing"
    if not overwrite(f"{target} {why}: {files}."):
        raise InputError(f"{target} {why}: {files}", "keep your copy elsewhere, or add --overwrite to lose these changes")


def _stage(source: Source, staged: Path, target: Path) -> None:
    """The folder as it is to be: the source's files, the record, and what else somebody put beside the old ones."""
    record = _record(target)
    if record:
        for path in _digests(target).keys() - record["files"].keys() - {RECORD}:
            _make(staged / path, (target / path).read_bytes())
    for path, content in source.files.items():
        _make(staged / path, content)
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in sorted(source.files.items())}
    written = {"url": source.url, "commit": source.commit, "path": source.path, "files": digests}
    _make(staged / RECORD, (json.dumps(written, indent=2) + "\n").encode())


def _make(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _checked(cluster: Cluster, place: Path, folder: Path, source: Source | None, temporary: str, outcome: Outcome) -> None:
    """Loads the pipeline and the inventory with it. Raises InputError; warns of components that it needs and that have no hosts."""
    try:
        whole = pipeline.load(folder)
        for file in _files(whole):
            if not file.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{folder}: {file} is outside of the pipeline's folder", "put it inside")
        found = whole.within(cluster.groups)
        missing = [(part, needed) for part, needed in _PARTS if getattr(found, part) and not cluster.groups.get(needed)]
        for part, needed in missing:
            outcome.warnings.append(f"{folder.name} has {part}, but {needed} has no hosts: venice install {needed} --hosts ...")
        for file in (*found.tables, *found.connectors):
            file.load(cluster.pipeline_vars)
        others = [name for name in cluster.var(next(iter(cluster.hosts)), "venice_pipelines") if name != folder.name]
        findings = _new_findings(cluster, Cluster.load(place, {"venice_pipelines": [*others, str(folder.resolve())]}))
        # what else does not fit may be due to what is missing: it is told once that is there
        if findings and not missing:
            raise InputError(_listed(f"with {folder.name} the inventory would be wrong; nothing was written", findings))
    except InputError as error:
        if source:
            # the temporary folder means nothing to anybody
            error.message = error.message.replace(f"{temporary}/", f"{source}: " if source.url != _SHIPPED else "")
        raise


def _files(found: pipeline.Pipeline) -> list[Path]:
    files = [s.file for s in found.schemas] + [s.file for s in found.sql] + [c.path for c in found.connectors]
    files += [file for table in found.tables for file in (table.schema, table.table)]
    return files + [p.script for p in (*found.producers, *found.jobs) if p.script]


def _naming(cluster: Cluster, place: Path, name: str) -> tuple[Path, str] | None:
    """The file and its new text in which venice_pipelines names the pipeline; None when it does."""
    given = cluster.given(next(iter(cluster.hosts))).get("venice_pipelines")
    if name in (folder.name for folder in cluster.pipelines):
        return None
    folder = cluster.inventory_dir / "group_vars"
    usual = folder / "all" / "pipelines.yml" if (folder / "all").is_dir() else folder / "all.yml"
    file, line = written_in(given) or (usual, None)
    return file, _edited(file, f"venice_pipelines: [..., {name}]", lambda text: yamledit.add_to_list(text, "venice_pipelines", name, line))


def _replace(staged: Path, target: Path) -> None:
    """Puts the folder in its place: at every moment there is the old one or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(staged, new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


# ---- files ----------------------------------------------------------------------------------------------------------


def _pipelines(folder: Path) -> dict[str, Path]:
    return {p.parent.name: p.parent for p in sorted(folder.glob("*/pipeline.yml")) if not p.parent.name.startswith(".")}


def _description(folder: Path) -> str:
    try:
        return pipeline.load(folder).description
    except InputError as error:
        return error.message.splitlines()[0]


def _record(folder: Path) -> dict[str, Any] | None:
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
        return {key: record[key] for key in ("url", "commit", "path", "files")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} can't be read as what Venice wrote there", "remove it: the folder then counts as your own") from error


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and "__pycache__" not in name.parts:
            found[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _edited(file: Path, lines: str, edit: Callable[[str], str]) -> str:
    """The file's text after an edit. InputError with the lines to add by hand when it can't be edited."""
    try:
        if (not file.is_file() and file.exists()) or file.suffix not in (".yml", ".yaml", ""):
            raise yamledit.CannotEditError("it is no YAML file")
        return edit(file.read_text() if file.exists() else "")
    except (yamledit.CannotEditError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(file)}: Venice does not change this file: {error}", "add this yourself:\n" + lines) from error


def _write(file: Path, text: str) -> None:
    """Writes a file as a whole or not at all; it keeps its mode."""
    file = file.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("w", newline="") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    if file.exists():
        shutil.copymode(file, temporary)
    temporary.replace(file)


def _new_findings(before: Cluster, after: Cluster) -> list[preflight.Finding]:
    """What is wrong only afterwards; what was before is no reason to refuse."""
    found = preflight.validate(after)
    known = preflight.validate(before) if found else []
    return [finding for finding in found if finding not in known]


def _listed(heading: str, findings: list[preflight.Finding]) -> str:
    return "\n".join([heading, *(f"  {f.where}: {f.what}\n    → {f.remedy}" for f in findings)])


def _called(place: Path) -> str:
    """How `--inventory` names it."""
    return place.name if place.parent == Path("inventory") and place.name in inventory.known() else str(place)
