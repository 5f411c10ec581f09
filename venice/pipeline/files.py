"""Reading a pipeline folder: what is in it, checked, with file and line of everything; no service is asked."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from venice import paths, schema_files
from venice.errors import InputError
from venice.pipeline.connectors import ConnectorFile, as_text
from venice.pipeline.model import Job, Pipeline, Producer, Schema, Sql
from venice.pipeline.tables import TableFiles
from venice.specs import TopicSpec, retention_ms

FILE = "pipeline.yml"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as editors read it (1.2): only true and false are booleans, so that `on:` is a key like any other."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load(folder: Path) -> Pipeline:
    """Read and check a pipeline folder. InputError names file, line and key of all that is wrong in `pipeline.yml`."""
    if folder.is_absolute() and folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    file = folder / FILE
    document, lines = _parse(file, _read(file))
    _validate(file, document, lines)
    _refuse_doubles(file, document, lines)
    _refuse_unknown(file, document, lines)
    places: dict[tuple[str, ...], str] = {}

    def path(name: str, *place: Any) -> Path:
        target = folder / name
        if not target.is_file():
            raise InputError(f"{file}:{_line(lines, place)}: {'.'.join(map(str, place))}: no file {target}")
        return target

    def items(section: str, kind: str, key: str) -> list[tuple[int, dict[str, Any]]]:
        found = list(enumerate(document.get(section) or []))
        places.update({(kind, item[key]): f"{file}:{_line(lines, (section, n))}" for n, item in found})
        return found

    schemas = [
        _schema(item["subject"], path(item["file"], "schemas", n, "file"), item.get("compatibility"))
        for n, item in items("schemas", "schema", "subject")
    ]
    sql = [
        Sql(item["file"], target := path(item["file"], "sql", n, "file"), _read(target), item.get("on"), item.get("only_with", ""))
        for n, item in items("sql", "sql", "file")
    ]
    tables = []
    for n, item in enumerate(document.get("pinot") or []):
        schema, table = (path(item[key], "pinot", n, key) for key in ("schema", "table"))
        found = TableFiles.of(schema, table, _read(schema), _read(table), item.get("only_with", ""))
        if found.name in (other.name for other in tables):
            raise InputError(f"{file}:{_line(lines, ('pinot', n))}: pinot: there is already a table {found.name}", "keep one")
        places["table", found.name] = f"{file}:{_line(lines, ('pinot', n))}"
        tables.append(found)
    connectors = [
        ConnectorFile(target := path(name, "connectors", n), _read(target)) for n, name in enumerate(document.get("connectors") or [])
    ]
    topics = []
    for n, item in items("topics", "topic", "name"):
        topics.append(_topic(item))
        for key in ("partitions", "replication"):
            places["topic", item["name"], key] = f"{file}:{_line(lines, ('topics', n, key))}"
    for n, item in items("producers", "producer", "name"):
        if "script" in item:
            path(item["script"], "producers", n, "script")
    for n, item in items("jobs", "job", "name"):
        path(item["script"], "jobs", n, "script")
    return Pipeline(
        folder.resolve().name,
        folder,
        document.get("description", ""),
        tuple(topics),
        tuple(schemas),
        tuple(sql),
        tuple(tables),
        tuple(connectors),
        tuple(_producers(folder, document)),
        tuple(_jobs(folder, document)),
        places,
    )


def producers(folder: Path) -> list[Producer]:
    """The producers alone, for the model of the cluster: every command makes it, and only some need all of it checked.

    InputError as from `load` when the file can't be understood.
    """
    found = _alone(folder, _producers)
    return list(load(folder).producers) if found is None else found


def jobs(folder: Path) -> list[Job]:
    """The jobs alone, as `producers`."""
    found = _alone(folder, _jobs)
    return list(load(folder).jobs) if found is None else found


def _alone(folder: Path, read: Callable[[Path, Mapping[str, Any]], list[Any]]) -> list[Any] | None:
    """One section's programs; None when something is wrong with them, which `load` can say better."""
    try:
        found = read(folder, yaml.load(_read(folder / FILE), Loader=_Loader) or {})  # noqa: S506 (a safe loader's child)
        return found if all(program.script is None or program.script.is_file() for program in found) else None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _producers(folder: Path, document: Mapping[str, Any]) -> list[Producer]:
    return [
        Producer(
            item["name"],
            folder.resolve().name,
            folder / item["script"] if "script" in item else None,
            item.get("image", ""),
            tuple(item.get("command") or ()),
            ({"TOPIC": item["topic"]} if "topic" in item else {})
            | {key: as_text(value) for key, value in (item.get("environment") or {}).items()},
            tuple(item.get("health") or ()),
            item.get("memory"),
            item.get("only_with", ""),
        )
        for item in document.get("producers") or []
    ]


def _jobs(folder: Path, document: Mapping[str, Any]) -> list[Job]:
    return [
        Job(
            item["name"],
            folder.resolve().name,
            folder / item["script"],
            {key: as_text(value) for key, value in (item.get("environment") or {}).items()},
            item.get("only_with", ""),
        )
        for item in document.get("jobs") or []
    ]


def digest(folder: Path) -> str:
    """What the folder holds, as 12 hex digits: two folders with the same files have the same."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in name.parts):
            found.update(f"{name.as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


# ---- pipeline.yml ---------------------------------------------------------------------------------------------------


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise InputError(f"{file}: can't be read ({error.strerror})", f"a pipeline is a folder with a {FILE}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})", "save it as UTF-8") from error


def _parse(file: Path, text: str) -> tuple[dict[str, Any], dict[tuple, int]]:
    """The document, and the line (from 1) of each key and item by its path."""
    lines: dict[tuple, int] = {(): 1}

    def walk(node: yaml.Node, path: tuple) -> None:
        if isinstance(node, yaml.SequenceNode):
            for n, item in enumerate(node.value):
                lines[(*path, n)] = item.start_mark.line + 1
                walk(item, (*path, n))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*path, key.value)
                if key.tag != "tag:yaml.org,2002:str":
                    raise InputError(f"{file}:{key.start_mark.line + 1}: YAML does not read the key {key.value} as a text", "quote it")
                if place in lines:
                    raise InputError(
                        f"{file}:{key.start_mark.line + 1}: {key.value} is given twice (first in line {lines[place]})",
                        "keep one of them",
                    )
                lines[place] = key.start_mark.line + 1
                walk(value, place)

    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is not None:
            walk(root, ())
        return yaml.load(text, Loader=_Loader) or {}, lines  # noqa: S506 (a safe loader's child)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(f"{file}:{mark.line + 1 if mark else 1}: {error.problem}", "correct the YAML there") from error


def _line(lines: Mapping[tuple, int], place: Iterable[Any]) -> int:
    place = tuple(place)
    while place not in lines:
        place = place[:-1]
    return lines[place]


def _validate(file: Path, document: Any, lines: Mapping[tuple, int]) -> None:
    from jsonschema import Draft202012Validator  # a sixth of a second that other commands need not spend

    schema = json.loads((paths.resource("pipelines") / "pipeline.schema.json").read_text())
    found = []
    for error in Draft202012Validator(schema).iter_errors(document):
        place = list(error.absolute_path)
        message = error.message
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            known = error.schema.get("properties", {})
            unknown = [key for key in error.instance if key not in known]
            place = [*place, unknown[0]]
            message = f"unknown key (known: {', '.join(known)})"
        elif error.validator == "oneOf":
            message = "needs either script (with health, if any) or image (with command, if any)"
        found.append((_line(lines, place), f"{'.'.join(map(str, place)) or 'the document'}: {message}"))
    if found:
        raise InputError(
            "\n".join(f"{file}:{line}: {message}" for line, message in sorted(found)),
            "docs/pipelines.md lists every key",
        )


def _refuse_doubles(file: Path, document: Mapping[str, Any], lines: Mapping[tuple, int]) -> None:
    for section, key in (("topics", "name"), ("schemas", "subject"), ("sql", "file"), ("producers", "name"), ("jobs", "name")):
        seen: dict[str, int] = {}
        for n, item in enumerate(document.get(section) or []):
            line = _line(lines, (section, n))
            if item[key] in seen:
                raise InputError(f"{file}:{line}: {section}: {item[key]} is already in line {seen[item[key]]}", "keep one")
            seen[item[key]] = line


def _refuse_unknown(file: Path, document: Mapping[str, Any], lines: Mapping[tuple, int]) -> None:
    from venice.cluster import component_groups

    for section in ("sql", "pinot", "producers", "jobs"):
        for n, item in enumerate(document.get(section) or []):
            if "only_with" in item and item["only_with"] not in component_groups():
                line = _line(lines, (section, n, "only_with"))
                raise InputError(
                    f"{file}:{line}: {section}.{n}.only_with: no component {item['only_with']}", f"known: {', '.join(component_groups())}"
                )


def _topic(item: Mapping[str, Any]) -> TopicSpec:
    config = {
        "retention.ms": str(retention_ms(item.get("retention", "unlimited"))),
        "cleanup.policy": item.get("cleanup", "delete"),
    }
    return TopicSpec(
        item["name"],
        item.get("partitions", 1),
        item.get("replication"),
        config | {key: as_text(value) for key, value in (item.get("config") or {}).items()},
    )


def _schema(subject: str, file: Path, compatibility: str | None) -> Schema:
    """JSON is sent without its line breaks: a file that is only laid out anew is no new version."""
    found = schema_files.load(file)
    text = found.text if found.type == "PROTOBUF" else json.dumps(json.loads(found.text))
    return Schema(subject, file, found.type, text, compatibility)
