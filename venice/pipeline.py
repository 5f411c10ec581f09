"""Pipelines as code: a folder with `pipeline.yml`, Avro schemas and connector files, loaded, compared and applied.

Order: topics, schemas, connectors; only differences are sent, and a second apply changes nothing. Nothing is sent
before every file of the pipeline has been read and found right.
"""

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from venice import paths
from venice.connect import Connect
from venice.errors import InputError, VeniceError
from venice.hosts import DockerHost, over
from venice.kafka import Kafka
from venice.registry import Registry
from venice.specs import Difference, TopicSpec, retention_ms

FILE = "pipeline.yml"
READY_SECONDS = 60.0
RUNNING_SECONDS = 60.0
_LOG_SECONDS = 8.0

# ${name}; not ${file:...} and the like, which Connect resolves itself, and not $${name}, which stands for ${name}
_VARIABLE = re.compile(r"(?P<escape>\$?)\$\{(?P<name>[A-Za-z_]\w*)\}")
_SECRET_KEY = re.compile(r"passw|secret|token|credential|jaas|api\.?key|private\.?key|access\.?key", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{\w+:[^}]*\}")
_MASK = "********"


@dataclass(frozen=True)
class Schema:
    """One subject's Avro schema; `compatibility` None leaves the registry's level alone."""

    subject: str
    schema: dict[str, Any]
    compatibility: str | None = None


@dataclass(frozen=True)
class ConnectorFile:
    """A stored connector; `text` is the file before `${...}` are replaced."""

    path: Path
    text: str

    def load(self, variables: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """Name and configuration with variables replaced and Venice's defaults for sinks added."""
        try:
            # replaced inside the parsed strings, so that a value with a quote in it can't break the JSON
            document = _walk(json.loads(self.text), lambda text: self._replace(text, variables))
        except json.JSONDecodeError as error:
            raise InputError(f"{self.path}:{error.lineno}: {error.msg}", "correct the JSON there") from error
        if not isinstance(document, dict) or set(document) != {"name", "config"}:
            raise InputError(f'{self.path}: not in the form {{"name": "...", "config": {{...}}}}', "use Connect's own form")
        name, config = document["name"], document["config"]
        if not isinstance(name, str) or not isinstance(config, dict) or "connector.class" not in config:
            raise InputError(f'{self.path}: "name" must be a text and "config" an object with "connector.class"')
        for key, value in config.items():
            if isinstance(value, dict | list) or value is None:
                line = _line_with(self.text, f'"{key}"')
                raise InputError(f"{self.path}:{line}: {key} must be a text, number, true or false")
        texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in config.items()}
        return name, with_sink_defaults(name, texts, int(variables.get("replication_factor", 1)))

    def _replace(self, text: str, variables: dict[str, Any]) -> str:
        def value(match: re.Match[str]) -> str:
            if match["escape"]:
                return match[0][1:]
            if match["name"] not in variables:
                raise InputError(
                    f"{self.path}:{_line_with(self.text, match[0])}: unknown variable {match[0]}",
                    f"known: {', '.join(sorted(variables))}; write ${match[0]} for a literal {match[0]}",
                )
            return str(variables[match["name"]])

        return _VARIABLE.sub(value, text)


@dataclass(frozen=True)
class Producer:
    """A Python program that Venice runs as a container; the role `producer` adds the brokers' and the registry's addresses to its
    environment. `health`: arguments of its health check, empty without one."""

    name: str
    script: Path
    environment: dict[str, str]
    health: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """A pipeline folder, read and checked."""

    name: str
    folder: Path
    description: str = ""
    topics: tuple[TopicSpec, ...] = ()
    schemas: tuple[Schema, ...] = ()
    connectors: tuple[ConnectorFile, ...] = ()
    producers: tuple[Producer, ...] = ()


@dataclass(frozen=True)
class Change:
    """One thing of a pipeline that was (in check mode: would be) created or updated. Secrets in it are masked."""

    kind: str
    name: str
    action: str
    differences: tuple[Difference, ...] = field(default=())

    def __str__(self) -> str:
        if self.action == "create":
            return f"{self.kind} {self.name}: create"
        fields = ", ".join(f"{d.field}: {d.current or '(none)'} -> {d.desired or '(none)'}" for d in self.differences)
        return f"{self.kind} {self.name}: {fields}"

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "differences": [vars(difference) for difference in self.differences],
        }


# ---- the file -------------------------------------------------------------------------------------------------------


def load(folder: Path) -> Pipeline:
    """Read and check a pipeline folder. InputError names file, line and key of all that is wrong in `pipeline.yml`."""
    file = folder / FILE
    try:
        text = file.read_text()
    except OSError as error:
        raise InputError(f"{file}: can't be read ({error.strerror})", f"a pipeline is a folder with a {FILE}") from error
    document, lines = _parse(file, text)
    _validate(file, document, lines)
    _refuse_doubles(file, document, lines)

    def path(name: str, *place: Any) -> Path:
        target = folder / name
        if not target.is_file():
            raise InputError(f"{file}:{_line(lines, place)}: {'.'.join(map(str, place))}: no file {target}")
        return target

    schemas = [
        Schema(item["subject"], _avro(path(item["file"], "schemas", n, "file")), item.get("compatibility"))
        for n, item in enumerate(document.get("schemas") or [])
    ]
    connectors = [
        ConnectorFile(target := path(name, "connectors", n), target.read_text()) for n, name in enumerate(document.get("connectors") or [])
    ]
    producers = [
        Producer(
            item["name"],
            path(item["script"], "producers", n, "script"),
            {key: _text(value) for key, value in (item.get("environment") or {}).items()},
            tuple(item.get("health") or ()),
        )
        for n, item in enumerate(document.get("producers") or [])
    ]
    return Pipeline(
        folder.resolve().name,
        folder,
        document.get("description", ""),
        tuple(_topic(item) for item in document.get("topics") or []),
        tuple(schemas),
        tuple(connectors),
        tuple(producers),
    )


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
                    raise InputError(
                        f"{file}:{key.start_mark.line + 1}: YAML does not read the key {key.value} as a text",
                        "quote it",
                    )
                if place in lines:
                    raise InputError(
                        f"{file}:{key.start_mark.line + 1}: {key.value} is given twice (first in line {lines[place]})",
                        "keep one of them",
                    )
                lines[place] = key.start_mark.line + 1
                walk(value, place)

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            walk(root, ())
        return yaml.safe_load(text) or {}, lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(f"{file}:{mark.line + 1 if mark else 1}: {error.problem}", "correct the YAML there") from error


def _line(lines: dict[tuple, int], place: Iterable[Any]) -> int:
    place = tuple(place)
    while place not in lines:
        place = place[:-1]
    return lines[place]


def _validate(file: Path, document: Any, lines: dict[tuple, int]) -> None:
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
        found.append((_line(lines, place), f"{'.'.join(map(str, place)) or 'the document'}: {message}"))
    if found:
        raise InputError(
            "\n".join(f"{file}:{line}: {message}" for line, message in sorted(found)),
            "docs/pipelines.md lists every key",
        )


def _refuse_doubles(file: Path, document: dict[str, Any], lines: dict[tuple, int]) -> None:
    for section, key in (("topics", "name"), ("schemas", "subject"), ("producers", "name")):
        seen: dict[str, int] = {}
        for n, item in enumerate(document.get(section) or []):
            line = _line(lines, (section, n))
            if item[key] in seen:
                raise InputError(f"{file}:{line}: {section}: {item[key]} is already in line {seen[item[key]]}", "keep one")
            seen[item[key]] = line


def _topic(item: dict[str, Any]) -> TopicSpec:
    config = {
        "retention.ms": str(retention_ms(item.get("retention", "unlimited"))),
        "cleanup.policy": item.get("cleanup", "delete"),
    }
    return TopicSpec(
        item["name"],
        item.get("partitions", 1),
        item.get("replication"),
        config | {key: _text(value) for key, value in (item.get("config") or {}).items()},
    )


def _avro(file: Path) -> dict[str, Any]:
    import fastavro

    try:
        schema = json.loads(file.read_text())
        fastavro.parse_schema(schema)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: {error.msg}", "correct the JSON there") from error
    except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, KeyError, TypeError) as error:
        raise InputError(f"{file}: no valid Avro schema: {error}", "correct the schema") from error
    return schema


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _walk(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _walk(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_walk(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _line_with(text: str, part: str) -> int:
    return text[: text.find(part)].count("\n") + 1 if part in text else 1


def with_sink_defaults(name: str, config: dict[str, str], replication: int) -> dict[str, str]:
    """A sink's configuration with a dead letter queue unless it says `errors.tolerance: none`; sources as they are."""
    if not ({"topics", "topics.regex"} & set(config)) or config.get("errors.tolerance") == "none":
        return config
    return {
        "errors.tolerance": "all",
        "errors.deadletterqueue.topic.name": f"dlq.{name}",
        "errors.deadletterqueue.topic.replication.factor": str(replication),
        "errors.deadletterqueue.context.headers.enable": "true",
        **config,
    }


def dead_letter_topic(config: dict[str, str]) -> TopicSpec | None:
    """The topic that a sink with this configuration sends bad records to: kept for ever; None when it names none."""
    name = config.get("errors.deadletterqueue.topic.name")
    return TopicSpec(name, 1, None, {"retention.ms": "-1", "cleanup.policy": "delete"}) if name else None


# ---- compare and apply ----------------------------------------------------------------------------------------------


def masked(key: str, value: str | None) -> str | None:
    """A configuration value fit to be shown: passwords hidden, references to a config provider left readable."""
    if value is None:
        return None
    if _SECRET_KEY.search(key) and not _REFERENCE.fullmatch(value):
        return _MASK
    # jdbc:...?password=x and scheme://user:x@host
    value = re.sub(r"(?i)((?:password|secret|token)=)[^&;\s]+", rf"\1{_MASK}", value)
    return re.sub(r"(://[^/\s:@]+:)[^@/\s]+@", rf"\1{_MASK}@", value)


def config_differences(current: dict[str, str] | None, desired: dict[str, str]) -> tuple[Difference, ...]:
    """Keys that differ, in order, values masked. Connect's own `name` key is no difference."""
    now = {key: value for key, value in (current or {}).items() if key != "name"}
    wanted = {key: value for key, value in desired.items() if key != "name"}
    return tuple(
        Difference(key, masked(key, now.get(key)), masked(key, wanted.get(key)) or "")
        for key in sorted(now.keys() | wanted.keys())
        if now.get(key) != wanted.get(key)
    )


def apply(cluster: Any, folder: Path, check: bool = False, report: Callable[[str], None] = lambda line: None) -> list[Change]:
    """Make the cluster as the pipeline in `folder` says; returns what was (with `check`: would be) changed.

    Ends when each of its connectors and every task of theirs run; VeniceError with the root cause when one fails.
    """
    pipeline = load(folder)
    variables = cluster.pipeline_vars
    connectors = dict(connector.load(variables) for connector in pipeline.connectors)
    changes: list[Change] = []

    def note(change: Change) -> None:
        changes.append(change)
        report(str(change))

    try:
        _apply_topics(cluster, pipeline, connectors, int(variables["replication_factor"]), check, note)
        _apply_schemas(cluster, pipeline, check, note)
        _apply_connectors(cluster, connectors, check, note, report)
    except VeniceError as error:
        error.message = f"pipeline {pipeline.name}: {error.message}"
        raise
    return changes


def _apply_topics(cluster, pipeline: Pipeline, connectors, replication: int, check: bool, note) -> None:
    topics = list(pipeline.topics)
    named = {topic.name for topic in topics}
    # Connect would make a dead letter topic only when the first bad record comes, with the brokers' retention
    for config in connectors.values():
        dlq = dead_letter_topic(config)
        if dlq and dlq.name not in named:
            topics.append(dlq)
            named.add(dlq.name)
    if not topics:
        return
    existing = Kafka(cluster.bootstrap_servers)
    for name, differences in existing.ensure_topics(topics, replication, check).items():
        created = differences[0].current is None
        note(Change("topic", name, "create" if created else "update", tuple(differences)))


def _apply_schemas(cluster, pipeline: Pipeline, check: bool, note) -> None:
    if not pipeline.schemas:
        return
    registry = Registry(cluster.registry_urls)
    for schema in pipeline.schemas:
        differences = []
        latest = registry.latest(schema.subject)
        # an older version stays registered: a registry can't make it the latest again, and who reads it needs nothing new
        if latest is None or registry.version_of(schema.subject, json.dumps(schema.schema)) is None:
            current = f"version {latest['version']}" if latest else None
            differences.append(Difference("schema", current, "new version" if latest else "version 1"))
            if not check:
                registry.register(schema.subject, json.dumps(schema.schema))
        level = registry.compatibility(schema.subject) if latest else None
        if schema.compatibility and level != schema.compatibility:
            differences.append(Difference("compatibility", level, schema.compatibility))
            if not check:
                registry.set_compatibility(schema.subject, schema.compatibility)
        if differences:
            note(Change("schema", schema.subject, "update" if latest else "create", tuple(differences)))


def _apply_connectors(cluster, connectors: dict[str, dict[str, str]], check: bool, note, report) -> None:
    if not connectors:
        return
    started = time.time()
    connect = Connect(cluster.connect_urls)
    connect.wait_ready(READY_SECONDS if not check else 0)
    there = connect.connectors()
    for name, config in connectors.items():
        found = there.get(name)
        differences = config_differences(found.config if found else None, config)
        if found is None:
            if not check:
                connect.put(name, config)
            note(Change("connector", name, "create", differences))
            continue
        # a connector that has failed, or that somebody paused, is started again: its pipeline says that it runs
        if found.failure or found.state in ("PAUSED", "STOPPED"):
            differences = (*differences, Difference("state", "FAILED" if found.failure else found.state, "RUNNING"))
        if not differences:
            continue
        if not check:
            _restart_with(connect, name, config)
        note(Change("connector", name, "update", differences))
    if not check:
        wait_running(cluster, connect, list(connectors), started, report)


def wait_running(cluster: Any, connect: Connect, names: list[str], since: float, report: Callable[[str], None] = lambda line: None) -> None:
    """Return once all these connectors and every task of theirs run; VeniceError with the cause when one fails.

    What the workers have logged since then (seconds since 1970) is added to the cause.
    """
    try:
        connect.wait_running(names, RUNNING_SECONDS, report)
    except VeniceError as error:
        # some plugins keep the reason to themselves: "check the logs for details"
        said = _workers_say(cluster, since)
        error.message += "".join(f"\n  the log says: {line}" for line in said if line not in error.message)
        raise


def _workers_say(cluster: Any, since: float) -> list[str]:
    """Error lines (the last three different ones) that the Connect workers have logged since then (seconds since 1970)."""
    workers = cluster.instances("connect")

    def ask(host: DockerHost) -> list[str]:
        with host.asking():
            logs = [
                host.docker.containers.get(worker.container).logs(since=since, tail=500).decode(errors="replace")
                for worker in workers
                if worker.host == host.name
            ]
        return [match[1].strip() for match in re.finditer(r"\bERROR\s+(.*)", "\n".join(logs))]

    names = {worker.host for worker in workers}
    answers = over([cluster.hosts[name] for name in names], ask, timeout=_LOG_SECONDS)
    lines = [line for answer in answers.values() if isinstance(answer, list) for line in answer]
    # what Connect adds to each failure says nothing of its reason
    return [line for line in dict.fromkeys(lines) if "Task threw an uncaught" not in line][-3:]


def _restart_with(connect: Connect, name: str, config: dict[str, str]) -> None:
    # Stopped first: else the states of its old tasks could be taken for those of the new ones.
    connect.stop(name)
    try:
        connect.put(name, config)
    finally:
        connect.resume(name)
