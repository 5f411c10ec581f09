"""A PostgreSQL table fed by a topic: what its connector has to say, and what the topic's values allow."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from venice.errors import InputError

CLASS = "io.debezium.connector.jdbc.JdbcSinkConnector"
MODES = ("upsert", "insert")
_SECRETS = "${file:/etc/kafka/secrets.properties:%s}"
# what PostgreSQL takes without quotes; others would have to be quoted in every query
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class Field:
    """One column that a topic's values become; `nullable` ones can't be a key."""

    name: str
    type: str
    nullable: bool = False

    @property
    def key(self) -> bool:
        """True when it can be (part of) a primary key."""
        return not self.nullable and not self.type.startswith("array of ")


@dataclass(frozen=True)
class Values:
    """A topic's values by their schema in the registry.

    `fields`: the columns, those of nested records with the record's name before theirs. `left_out`: fields of the value that a table
    can't hold, and why. `nested`: there are nested records.
    """

    subject: str
    version: int
    fields: tuple[Field, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    nested: bool = False


@dataclass(frozen=True)
class TableSink:
    """A connector that keeps a table: `upsert` the newest record of each key, `insert` every record.

    `key`: columns of the value; or `record_key`: the record's own key, as a column of this name.
    """

    name: str
    topic: str
    table: str
    mode: str
    key: tuple[str, ...] = ()
    record_key: str = ""
    left_out: tuple[str, ...] = ()
    nested: bool = False

    def document(self) -> dict[str, Any]:
        """The connector in the form of a pipeline's file: `${...}` for what the inventory knows, no password."""
        config = {
            "connector.class": CLASS,
            "tasks.max": "1",
            "topics": self.topic,
            "connection.url": "jdbc:postgresql://${postgres_host}:${postgres_port}/${postgres_db}",
            "connection.username": _SECRETS % "postgres_user",
            "connection.password": _SECRETS % "postgres_password",
            "connection.pool.min_size": "1",
            "connection.pool.max_size": "4",
            # carries it through an outage of the database
            "connection.restart.on.errors": "true",
            "flush.max.retries": "240",
            "flush.retry.delay.ms": "1000",
            # without it a wrong password shows as an error about dialects
            "hibernate.dialect": "org.hibernate.dialect.PostgreSQLDialect",
            "collection.name.format": self.table,
            "insert.mode": self.mode,
            "primary.key.mode": "record_key" if self.record_key else "record_value" if self.key else "none",
            "schema.evolution": "basic",
        }
        if self.key:
            config["primary.key.fields"] = ",".join(self.key)
        return {"name": self.name, "config": config | self._transforms()}

    def _transforms(self) -> dict[str, str]:
        """What has to be done to records before they fit a table."""
        steps: dict[str, dict[str, str]] = {}
        if self.left_out:
            steps["leaveout"] = {"type": "org.apache.kafka.connect.transforms.ReplaceField$Value", "exclude": ",".join(self.left_out)}
        if self.nested:
            steps["flatten"] = {"type": "org.apache.kafka.connect.transforms.Flatten$Value", "delimiter": "_"}
        if self.record_key:
            # the sink takes a key only as a struct; Venice's keys are strings
            steps["key"] = {"type": "org.apache.kafka.connect.transforms.HoistField$Key", "field": self.record_key}
        found = {f"transforms.{name}.{key}": value for name, step in steps.items() for key, value in step.items()}
        return {"transforms": ",".join(steps), **found} if steps else {}


def table_name(topic: str) -> str:
    """A table's name made from a topic's."""
    name = re.sub(r"[^a-z0-9_]", "_", topic.lower())[:63]
    return name if _IDENTIFIER.fullmatch(name) else f"_{name}"[:63]


def check_name(what: str, name: str) -> str:
    """The name of a table or column, when PostgreSQL takes it without quotes; else InputError."""
    if not _IDENTIFIER.fullmatch(name):
        raise InputError(f"{what} {name!r}: lower-case letters, digits and _, not a digit first, 63 at most", f"say {table_name(name)}")
    return name


def table_sink(
    topic: str,
    values: Values | None,
    name: str = "",
    table: str = "",
    mode: str = "",
    key: tuple[str, ...] = (),
    record_key: str = "",
) -> TableSink:
    """The sink as asked for. `values` None: the registry knows nothing of the topic's values.

    Default table: the topic's name; connector: the table's; mode: upsert with a key, insert without. InputError for what can't work.
    """
    table = check_name("table", table or table_name(topic))
    mode = mode or ("upsert" if key or record_key else "insert")
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: one of {' and '.join(MODES)}")
    if key and record_key:
        raise InputError("a key of the value and the record's key both", "give one of --key and --record-key")
    columns = {column.name: column for column in values.fields} if values else {}
    if mode == "insert" and (key or record_key):
        raise InputError("insert keeps every record, and a table of every record has no key", "leave the key out, or use upsert")
    if mode == "upsert" and not (key or record_key):
        fit = ", ".join(name for name, column in columns.items() if column.key)
        raise InputError(
            "upsert keeps the newest record of each key: which key?",
            f"--key FIELD ({fit or 'a field of the value'}), or --record-key COLUMN for the record's own key",
        )
    if record_key:
        check_name("column", record_key)
        if record_key in {name.lower() for name in columns}:
            raise InputError(f"column {record_key}: the values of {topic} have a field of that name", "choose another for the record's key")
    for one in key if columns else ():
        if one not in columns:
            raise InputError(f"key {one}: the values of {topic} have no such field", f"they have: {', '.join(columns)}")
        if not columns[one].key:
            why = "may be null" if columns[one].nullable else f"is an {columns[one].type}"
            raise InputError(f"key {one}: it {why}", f"fit: {', '.join(name for name, c in columns.items() if c.key) or 'none'}")
    left_out = tuple(values.left_out) if values else ()
    return TableSink(name or table, topic, table, mode, key, record_key, left_out, bool(values and values.nested))


def fits_table(sink: TableSink, primary_key: tuple[str, ...]) -> None:
    """InputError when a table that exists, with this primary key, can't take what the sink writes."""
    remedy = f"choose another table, or remove it: venice psql -c 'drop table {sink.table}'"
    wanted = (sink.record_key,) if sink.record_key else sink.key
    if {name.lower() for name in wanted} == set(primary_key):
        return
    has = f"the primary key ({', '.join(primary_key)})" if primary_key else "no primary key"
    needs = f"the primary key ({', '.join(wanted)})" if wanted else "none"
    raise InputError(f"table {sink.table} exists and has {has}; {sink.mode} needs {needs}", remedy)


# ---- a topic's values ------------------------------------------------------------------------------------------------

_LOGICAL = {
    "decimal": "decimal",
    "date": "date",
    "time-millis": "time",
    "time-micros": "time",
    "timestamp-millis": "timestamp",
    "timestamp-micros": "timestamp",
    "uuid": "uuid",
}


class _UnfitError(Exception):
    """A type that no column can hold; says which."""


def values_of(topic: str, found: Mapping[str, Any] | None) -> Values | None:
    """A topic's values, from the latest version of the subject `TOPIC-value` as the registry gives it (None: there is none).

    InputError when the workers can't read such values, or they are no records.
    """
    if not found:
        return None
    subject = found["subject"]
    if found.get("schemaType", "AVRO") != "AVRO":
        raise InputError(
            f"subject {subject} is {found['schemaType']}, and the Connect workers read Avro",
            "give a connector file with a value.converter for it: `venice connectors new --file`",
        )
    schema = json.loads(found["schema"])
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise InputError(
            f"subject {subject}: the values are no records with fields, which a row could be made of",
            "hoist them into one: a connector file with a HoistField$Value transform, `venice connectors new --file`",
        )
    names: dict[str, Any] = {}
    fields: list[Field] = []
    left_out: dict[str, str] = {}
    nested = False
    _remember(schema, names, "")
    for item in schema["fields"]:
        try:
            columns = _columns(item["name"], item["type"], names, schema.get("namespace", ""), False, ())
        except _UnfitError as error:
            left_out[item["name"]] = str(error)
            continue
        fields += columns
        nested = nested or [column.name for column in columns] != [item["name"]]
    return Values(subject, int(found["version"]), tuple(fields), left_out, nested)


def _columns(name: str, kind: Any, names: dict[str, Any], space: str, nullable: bool, inside: tuple[str, ...]) -> list[Field]:
    """The columns of one field; `inside`: names of the records around it."""
    if isinstance(kind, list):
        rest = [branch for branch in kind if branch != "null"]
        if len(rest) != 1:
            raise _UnfitError("a union of several types")
        return _columns(name, rest[0], names, space, nullable or len(rest) < len(kind), inside)
    if isinstance(kind, str):
        known = names.get(kind) or names.get(f"{space}.{kind}")
        return _columns(name, known, names, space, nullable, inside) if known else [Field(name, kind, nullable)]
    _remember(kind, names, space)
    logical, type_ = kind.get("logicalType"), kind["type"]
    if type_ == "record":
        full = _full(kind, space)
        if full in inside:
            raise _UnfitError("a record that holds itself")
        space = full.rpartition(".")[0]
        return [
            column
            for item in kind["fields"]
            for column in _columns(f"{name}_{item['name']}", item["type"], names, space, nullable, (*inside, full))
        ]
    if type_ == "map":
        raise _UnfitError("a map")
    if type_ == "array":
        if not isinstance(kind["items"], str) or kind["items"] in names or f"{space}.{kind['items']}" in names:
            raise _UnfitError("an array of something that is no simple type")
        return [Field(name, f"array of {kind['items']}", nullable)]
    if isinstance(type_, dict | list):
        return _columns(name, type_, names, space, nullable, inside)
    return [Field(name, _LOGICAL.get(logical, type_), nullable)]


def _full(schema: Mapping[str, Any], space: str) -> str:
    name, space = schema["name"], schema.get("namespace", space)
    return name if "." in name or not space else f"{space}.{name}"


def _remember(schema: Mapping[str, Any], names: dict[str, Any], space: str) -> None:
    if schema["type"] in ("record", "enum", "fixed"):
        names[_full(schema, space)] = schema
