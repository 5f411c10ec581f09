"""Pinot's tables in a pipeline: schema and table in Pinot's own form, with `${...}` for what the inventory knows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from venice.errors import InputError
from venice.pipeline.connectors import line_with, walked

_TYPES = ("REALTIME", "OFFLINE")


@dataclass(frozen=True)
class TableFiles:
    """A table: its name, the files of its schema and of its table, and their texts before `${...}` are replaced."""

    name: str
    schema: Path
    table: Path
    schema_text: str
    table_text: str
    only_with: str = ""

    @classmethod
    def of(cls, schema: Path, table: Path, schema_text: str, table_text: str, only_with: str = "") -> "TableFiles":
        """InputError naming file and line of what is no schema and table that belong together."""
        documents = {}
        for path, text, key in ((schema, schema_text, "schemaName"), (table, table_text, "tableName")):
            documents[path] = document = _parsed(path, text)
            if not isinstance(document, dict) or not isinstance(document.get(key), str):
                raise InputError(f"{path}: must be an object with {key}, as Pinot's own documentation shows it")
        name, of = documents[table]["tableName"], documents[schema]["schemaName"]
        if name != of:
            line = line_with(schema_text, '"schemaName"')
            raise InputError(f"{schema}:{line}: schemaName is {of}, the table in {table} is {name}", "give both the same name")
        if documents[table].get("tableType") not in _TYPES:
            line = line_with(table_text, '"tableType"')
            raise InputError(f"{table}:{line}: tableType must be {' or '.join(_TYPES)}", "REALTIME for a table that follows a topic")
        return cls(name, schema, table, schema_text, table_text, only_with)

    def load(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """What Pinot is given: `{tableName, schema, realtime}` (or `offline`), variables replaced."""
        schema = walked(_parsed(self.schema, self.schema_text), variables, self.schema, self.schema_text)
        table = walked(_parsed(self.table, self.table_text), variables, self.table, self.table_text)
        return {"tableName": self.name, "schema": schema, table["tableType"].lower(): table}

    def place(self, path: str) -> str:
        """`file:line` of a field by its path in what Pinot is given, as `schema.dimensionFieldSpecs.user_id.dataType`."""
        of, _, rest = path.partition(".")
        file, text = (self.schema, self.schema_text) if of == "schema" else (self.table, self.table_text)
        # keys may have dots in them: the longest end of the path that stands in the file
        parts = rest.split(".")
        ends = (json.dumps(".".join(parts[n:])) for n in range(len(parts)))
        return f"{file}:{next((line_with(text, end) for end in ends if end in text), 1)}"


def unknown(given: Any, read: Any, path: str = "") -> str | None:
    """The path of the first field that Pinot has left out of what it was given; None when it knows all."""
    if isinstance(given, list) and isinstance(read, list):
        pairs = [(f"{path}.{item.get('name', n) if isinstance(item, dict) else n}", item, n) for n, item in enumerate(given)]
        found = (unknown(item, read[n], where) for where, item, n in pairs if n < len(read))
        return next((where for where in found if where), None)
    if not isinstance(given, dict) or not isinstance(read, dict):
        return None
    for key, value in given.items():
        where = f"{path}.{key}" if path else key
        if key not in read and value not in (None, {}, []):
            return where
        if inner := unknown(value, read.get(key), where):
            return inner
    return None


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}", "correct the JSON there") from error
