"""Flink tables of what is in Kafka: DDL made from topics and the registry's schemas, so that SQL works without declaring anything.

Each table has the record's key as `_key` and the record's `_timestamp` (its event time, with a watermark one second behind),
`_partition` and `_offset`.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_AVRO = {
    "string": "STRING",
    "int": "INT",
    "long": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    "bytes": "BYTES",
}
# Flink reads by the schema that it makes of the columns. Avro resolves neither an enum to a string nor a fixed to bytes, so those can't
# be columns; of timestamps that schema can have none finer than milliseconds, so microseconds are the number that is written.
_LOGICAL = {
    ("long", "timestamp-millis"): "TIMESTAMP(3)",
    ("int", "date"): "DATE",
    ("int", "time-millis"): "TIME(3)",
    ("string", "uuid"): "STRING",
}
_OWN = {"_key", "_timestamp", "_partition", "_offset"}
_LARGEST_DECIMAL = 38
_JSON = {"string": "STRING", "integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN"}


class _UnsupportedError(Exception):
    """A type that Flink SQL has no column for."""


@dataclass(frozen=True)
class Table:
    """One topic as Flink sees it: statements that make it."""

    name: str
    statements: tuple[str, ...]


def quoted(name: str) -> str:
    """A name in backticks."""
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """A text in single quotes."""
    return "'" + text.replace("'", "''") + "'"


def table(topic: str, schema: Mapping[str, str] | None, bootstrap_servers: str, registry_url: str, keyed: bool, bounded: bool) -> Table:
    """The table of a topic. `schema`: `{schema, schemaType}` of its value as the registry has it, None without one.

    `keyed`: keys are plain text (no schema of their own). `bounded`: reads what is there now and ends.
    """
    options = {
        "connector": "kafka",
        "topic": topic,
        "properties.bootstrap.servers": bootstrap_servers,
        # what a transaction that was aborted has left in the log is no record
        "properties.isolation.level": "read_committed",
        "scan.startup.mode": "earliest-offset",
    }
    if bounded:
        options["scan.bounded.mode"] = "latest-offset"
    kind = (schema or {}).get("schemaType") or "AVRO"
    if schema and kind == "AVRO":
        document = json.loads(schema["schema"])
        if isinstance(document, dict) and document.get("type") == "record" and (columns := _avro_columns(document)):
            options |= {"value.format": "avro-confluent", "value.avro-confluent.url": registry_url}
            return Table(topic, (_ddl(topic, columns, options, keyed),))
    options |= {"value.format": "raw"}
    if schema and kind == "JSON":
        fields = _json_columns(json.loads(schema["schema"]))
        if fields:
            hidden = f"_{topic}_raw"
            return Table(topic, (_ddl(hidden, [("_value", "STRING")], options, keyed), _json_view(topic, hidden, fields, keyed)))
    return Table(topic, (_ddl(topic, [("_value", "STRING")], options, keyed),))


def _ddl(name: str, columns: list[tuple[str, str]], options: dict[str, str], keyed: bool) -> str:
    lines = [f"{quoted(column)} {kind}" for column, kind in columns]
    if keyed:
        lines.insert(0, "`_key` STRING")
        options = options | {"key.format": "raw", "key.fields": "_key", "value.fields-include": "EXCEPT_KEY"}
    lines += [
        "`_timestamp` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL",
        "`_partition` INT METADATA FROM 'partition' VIRTUAL",
        "`_offset` BIGINT METADATA FROM 'offset' VIRTUAL",
        "WATERMARK FOR `_timestamp` AS `_timestamp` - INTERVAL '1' SECOND",
    ]
    given = ",\n  ".join(f"{literal(key)} = {literal(value)}" for key, value in options.items())
    return f"CREATE TEMPORARY TABLE {quoted(name)} (\n  " + ",\n  ".join(lines) + f"\n) WITH (\n  {given}\n)"


def _avro_columns(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and type of the fields that Flink can read."""
    columns, named, space = [], {}, _space(record, "")
    for field in record["fields"]:
        with suppress(_UnsupportedError):
            columns.append((field["name"], _avro_type(field["type"], named, space)))
    return [column for column in columns if column[0] not in _OWN]


def _space(record: dict[str, Any], outer: str) -> str:
    """The namespace of a record's name, which those within inherit."""
    name = record.get("name", "")
    return name.rpartition(".")[0] if "." in name else record.get("namespace", outer)


def _avro_type(kind: Any, named: dict[str, str], space: str) -> str:
    """A type of Flink SQL, `NOT NULL` where Avro's has no null. Raises _UnsupportedError.

    `named`: the types of records by their full names, `space` the namespace that names without one belong to.
    """
    if isinstance(kind, list):
        some = [k for k in kind if k != "null"]
        if len(some) != 1:
            raise _UnsupportedError
        inner = _avro_type(some[0], named, space)
        return inner.removesuffix(" NOT NULL") if len(some) < len(kind) else inner
    if isinstance(kind, str):
        if kind in _AVRO:
            return f"{_AVRO[kind]} NOT NULL"
        for name in (f"{space}.{kind}", kind):
            if name in named:
                return named[name]
        raise _UnsupportedError
    what = kind["type"]
    if isinstance(what, dict | list):
        return _avro_type(what, named, space)
    logical = kind.get("logicalType")
    # one without a precision is plain bytes to Avro, too
    if logical == "decimal" and what == "bytes" and kind.get("precision", _LARGEST_DECIMAL + 1) <= _LARGEST_DECIMAL:
        return f"DECIMAL({kind['precision']}, {kind.get('scale', 0)}) NOT NULL"
    if (what, logical) in _LOGICAL:
        return f"{_LOGICAL[what, logical]} NOT NULL"
    if what == "array":
        return f"ARRAY<{_avro_type(kind['items'], named, space)}> NOT NULL"
    if what == "map":
        return f"MAP<STRING NOT NULL, {_avro_type(kind['values'], named, space)}> NOT NULL"
    if what == "record":
        inner = _space(kind, space)
        parts = [f"{quoted(f['name'])} {_avro_type(f['type'], named, inner)}" for f in kind["fields"]]
        row = f"ROW<{', '.join(parts)}> NOT NULL"
        short = kind["name"].rpartition(".")[2]
        named[f"{inner}.{short}" if inner else short] = row
        return row
    if what in _AVRO:
        return f"{_AVRO[what]} NOT NULL"
    raise _UnsupportedError


def _json_columns(document: Any) -> list[tuple[str, str]]:
    """Top-level scalar properties of a JSON Schema."""
    properties = document.get("properties", {}) if isinstance(document, dict) else {}
    columns = []
    for name, spec in ((name, spec) for name, spec in properties.items() if name not in _OWN):
        kinds = spec.get("type", "string") if isinstance(spec, dict) else "string"
        kind = next((k for k in kinds if k != "null"), "string") if isinstance(kinds, list) else kinds
        if kind in _JSON:
            columns.append((name, _JSON[kind]))
    return columns


def _json_view(name: str, raw: str, fields: list[tuple[str, str]], keyed: bool) -> str:
    """Records framed by a JSON Schema serializer: five bytes, then the JSON, which begins with the first brace.

    The last of those bytes may be a brace, too (schema 123); an object never has two at its beginning.
    """
    text = "CONCAT('{', TRIM(LEADING '{' FROM SUBSTRING(`_value`, POSITION('{' IN `_value`))))"

    def column(field: str, kind: str) -> str:
        path = literal(f'$["{field}"]' if not field.isidentifier() else f"$.{field}")
        # RETURNING knows no BIGINT, and fails for a DOUBLE that is written without a point
        return f"TRY_CAST(JSON_VALUE({text}, {path}) AS {kind}) AS {quoted(field)}"

    columns = [*(["`_key`"] if keyed else []), *(column(*f) for f in fields), "`_timestamp`", "`_partition`", "`_offset`"]
    return f"CREATE TEMPORARY VIEW {quoted(name)} AS SELECT\n  " + ",\n  ".join(columns) + f"\nFROM {quoted(raw)}"


def tables(cluster: Any, bounded: bool) -> list[Table]:
    """Tables of all topics that are not internal, in order of their names. Raises VeniceError when a service does not answer."""
    from concurrent.futures import ThreadPoolExecutor

    from venice.kafka import Kafka
    from venice.registry import Registry
    from venice.topics import owner

    topics = sorted({p.topic for p in Kafka.of(cluster).partitions() if not owner(p.topic)})
    registry = Registry.of(cluster)
    subjects = set(registry.subjects())
    described = [t for t in topics if f"{t}-value" in subjects]
    with ThreadPoolExecutor(8) as pool:
        schemas = dict(zip(described, pool.map(lambda t: registry.latest(f"{t}-value"), described), strict=True))
    url = cluster.registry_urls[0]
    return [table(t, schemas.get(t), cluster.bootstrap_servers, url, f"{t}-key" not in subjects, bounded) for t in topics]
