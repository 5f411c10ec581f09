"""Why a reader's Avro schema can't read what a writer's wrote, in words: registries say little or nothing about it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# what a reader's type takes beside itself (Avro's schema resolution)
_PROMOTIONS = {
    "long": {"int"},
    "float": {"int", "long"},
    "double": {"int", "long", "float"},
    "string": {"bytes"},
    "bytes": {"string"},
}
_PRIMITIVES = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
_NAMED = {"record", "error", "enum", "fixed"}


@dataclass(frozen=True)
class Side:
    """One of the two schemas; `name` is what explanations call it, as "version 3"; `new` when it is the one that may still change."""

    name: str
    new: bool
    schema: Any
    types: dict[str, Any]

    @classmethod
    def of(cls, name: str, text: str, new: bool = False) -> "Side":
        """From a schema's JSON text. Names are resolved to their full names."""
        types: dict[str, Any] = {}
        return cls(name, new, _resolved(json.loads(text), "", types), types)

    def resolve(self, schema: Any) -> Any:
        """The definition that a name stands for; other schemas as they are."""
        return self.types.get(schema, schema) if isinstance(schema, str) else schema


def explain(reader: Side, writer: Side) -> list[str]:
    """What keeps `reader` from reading `writer`'s records, each with its remedy; empty when nothing does."""
    return list(dict.fromkeys(_differences(reader, writer, reader.schema, writer.schema, "", frozenset())))


def _resolved(schema: Any, namespace: str, types: dict[str, Any]) -> Any:
    """A copy with full names everywhere; definitions of named types are put into `types`."""
    if isinstance(schema, str):
        return schema if schema in _PRIMITIVES or "." in schema or not namespace else f"{namespace}.{schema}"
    if isinstance(schema, list):
        return [_resolved(branch, namespace, types) for branch in schema]
    kind = schema["type"]
    if not isinstance(kind, str) or kind not in _NAMED | {"array", "map"}:
        return _resolved(kind, namespace, types)
    found = dict(schema)
    if kind in _NAMED:
        namespace = schema["name"].rpartition(".")[0] or schema.get("namespace", namespace)
        found["name"] = schema["name"] if "." in schema["name"] or not namespace else f"{namespace}.{schema['name']}"
        types[found["name"]] = found
    if "fields" in schema:
        found["fields"] = [field | {"type": _resolved(field["type"], namespace, types)} for field in schema["fields"]]
    for part in ("items", "values"):
        if part in schema:
            found[part] = _resolved(schema[part], namespace, types)
    return found


def _kind(schema: Any) -> str:
    if isinstance(schema, list):
        return "union"
    return schema if isinstance(schema, str) else str(schema["type"])


def _called(schema: Any) -> str:
    """A type as a person writes it."""
    if isinstance(schema, list):
        return f"[{', '.join(map(_called, schema))}]"
    if isinstance(schema, str):
        return schema
    kind = _kind(schema)
    if kind in _NAMED:
        return f"{kind} {schema['name'].rpartition('.')[2]}"
    return f"{kind} of {_called(schema['items' if kind == 'array' else 'values'])}"


def _where(place: str) -> str:
    return f"field {place}" if place else "the schema itself"


def _differences(r: Side, w: Side, reader: Any, writer: Any, place: str, seen: frozenset[tuple[str, str]]) -> Iterator[str]:
    """`seen`: the named types that this place lies in, so that a recursive schema comes to an end."""
    reader, writer = r.resolve(reader), w.resolve(writer)
    kinds = _kind(reader), _kind(writer)
    if kinds[1] == "union":
        for branch in writer:
            if any(_differences(r, w, reader, branch, place, seen)):
                remedy = "keep that type" if r.new else "leave that type out"
                what = f"{w.name} may write {_called(w.resolve(branch))}, {r.name} takes only {_called(reader)}"
                yield f"{_where(place)}: {what}; {remedy}"
    elif kinds[0] == "union":
        if all(any(_differences(r, w, branch, writer, place, seen)) for branch in reader):
            remedy = f"add {_called(writer)} to the union" if r.new else "keep a type of the union"
            yield f"{_where(place)}: {w.name} writes {_called(writer)}, {r.name} takes only {_called(reader)}; {remedy}"
    elif kinds[0] != kinds[1]:
        if kinds[1] not in _PROMOTIONS.get(kinds[0], ()):
            what = f"{w.name} writes {_called(writer)}, {r.name} reads {_called(reader)}"
            yield f"{_where(place)}: {what}; keep the type, or add a field of another name with a default"
    elif kinds[0] == "array":
        yield from _differences(r, w, reader["items"], writer["items"], f"{place}[]", seen)
    elif kinds[0] == "map":
        yield from _differences(r, w, reader["values"], writer["values"], f"{place}{{}}", seen)
    elif kinds[0] in _NAMED and (pair := (reader["name"], writer["name"])) not in seen:
        yield from _named(r, w, reader, writer, place, seen | {pair})


def _named(r: Side, w: Side, reader: dict, writer: dict, place: str, seen: frozenset[tuple[str, str]]) -> Iterator[str]:
    kind = _kind(reader)
    names = {name.rpartition(".")[2] for name in (reader["name"], *reader.get("aliases", ()))}
    if writer["name"].rpartition(".")[2] not in names:
        remedy = "keep the name, or give its old one as an alias" if r.new else "keep the name"
        yield f"{_where(place)}: {w.name} calls the {kind} {writer['name']}, {r.name} calls it {reader['name']}; {remedy}"
    elif kind == "fixed" and reader["size"] != writer["size"]:
        yield f"{_where(place)}: {w.name} writes {writer['size']} bytes, {r.name} reads {reader['size']}; keep the size"
    elif kind == "enum":
        unknown = ", ".join(symbol for symbol in writer["symbols"] if symbol not in reader["symbols"])
        if unknown and "default" not in reader:
            remedy = f"keep {unknown}, or give the enum a default" if r.new else f"leave {unknown} out"
            yield f"{_where(place)}: {w.name} may write {unknown}, which {r.name} does not know; {remedy}"
    elif kind in ("record", "error"):
        written = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            path = f"{place}.{field['name']}".lstrip(".")
            match = next((written[name] for name in (field["name"], *field.get("aliases", ())) if name in written), None)
            if match is not None:
                yield from _differences(r, w, field["type"], match["type"], path, seen)
            elif "default" not in field:
                remedy = "give it a default" if r.new else "keep the field"
                yield f"{_where(path)}: {r.name} reads it and has no default for it, {w.name} does not write it; {remedy}"
