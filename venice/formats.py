"""Avro, JSON Schema and Protobuf: bytes <-> data that JSON can hold, by the text of a schema. Knows no registry and no Kafka.

What JSON has no form for is text: bytes are `0x` and hexadecimal digits, decimals their digits ("12.50"), dates and times ISO 8601
(timestamps in UTC), NaN and Infinity their names. Protobuf has its own JSON form, which is used as it is: bytes are base64 there,
64-bit numbers text. Encoding takes the same forms.
"""

import datetime
import decimal
import json
import math
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from venice.errors import VeniceError

AVRO, JSON, PROTOBUF = "AVRO", "JSON", "PROTOBUF"
_PROTOC_SECONDS = 30.0
_NOT_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class FormatError(ValueError):
    """Data or bytes that do not fit their schema, or a schema that can't be used; the message says where and why."""


class Format(Protocol):
    """One schema, ready for use. Both directions raise FormatError."""

    def decode(self, data: bytes) -> Any:
        """Data that JSON can hold, of the bytes after the registry's frame."""

    def encode(self, data: Any) -> bytes:
        """The bytes that follow the registry's frame."""


def compiled(kind: str, text: str, references: Mapping[str, str]) -> Format:
    """The schema `text` of a kind (AVRO, JSON, PROTOBUF); `references`: the schemas it needs by the name it calls them.

    References are in the order in which they need each other. FormatError when the schema is not valid.
    """
    kinds: dict[str, Callable[[str, Mapping[str, str]], Format]] = {AVRO: AvroFormat, JSON: JsonFormat, PROTOBUF: ProtobufFormat}
    if kind not in kinds:
        raise FormatError(f"Venice knows no schemas of the type {kind}")
    return kinds[kind](text, references)


def plain(value: Any) -> Any:
    """A value as JSON can hold it; see the module's description."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return f"0x{value.hex()}"
    if isinstance(value, datetime.datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)  # decimals, UUIDs


# ---- Avro -----------------------------------------------------------------------------------------------------------


class AvroFormat:
    """Records in Avro's binary form."""

    def __init__(self, text: str, references: Mapping[str, str]):
        import fastavro

        self._named: dict[str, Any] = {}
        try:
            for reference in references.values():
                fastavro.parse_schema(json.loads(reference), named_schemas=self._named)
            self._schema = fastavro.parse_schema(json.loads(text), named_schemas=self._named)
        except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"no valid Avro schema: {error}") from error

    def decode(self, data: bytes) -> Any:
        """See Format."""
        import fastavro

        stream = BytesIO(data)
        try:
            value = fastavro.schemaless_reader(stream, self._schema)
        except (EOFError, IndexError) as error:
            raise FormatError("the bytes don't fit the Avro schema: they end too soon") from error
        except Exception as error:  # what fastavro raises for bytes that are no Avro is of no one kind
            raise FormatError(f"the bytes don't fit the Avro schema: {error}") from error
        if left := len(data) - stream.tell():
            raise FormatError(f"the bytes don't fit the Avro schema: {left} are left over")
        return plain(value)

    def encode(self, data: Any) -> bytes:
        """See Format."""
        import fastavro

        stream = BytesIO()
        try:
            fastavro.schemaless_writer(stream, self._schema, self._native(self._schema, data, ""))
        except FormatError:
            raise
        except (ValueError, TypeError, KeyError, OverflowError, struct.error, decimal.DecimalException) as error:
            raise FormatError(f"the data does not fit the Avro schema: {error}") from error
        return stream.getvalue()

    def _native(self, schema: Any, value: Any, path: str) -> Any:
        """The value in the types that fastavro writes. FormatError names the field that does not fit."""
        if isinstance(schema, list):
            return self._union(schema, value, path)
        if isinstance(schema, str):
            schema = self._named.get(schema, {"type": schema})
        kind, logical = schema["type"], schema.get("logicalType")
        if isinstance(kind, list | dict):
            return self._native(kind, value, path)
        if kind in ("record", "error"):
            return self._record(schema, value, path)
        if kind == "array" and isinstance(value, list):
            return [self._native(schema["items"], item, f"{path}[{n}]") for n, item in enumerate(value)]
        if kind == "map" and isinstance(value, dict):
            return {key: self._native(schema["values"], item, _below(path, key)) for key, item in value.items()}
        if kind == "enum":
            if value not in schema["symbols"]:
                raise FormatError(f"{path or 'the data'}: {_shown(value)} is none of {', '.join(schema['symbols'])}")
            return value
        if kind in self._named:
            return self._native(self._named[kind], value, path)
        return _primitive(schema, kind, logical, value, path)

    def _record(self, schema: dict[str, Any], value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise FormatError(f"{path or 'the data'}: {schema['name']} is an object with fields, not {_shown(value)}")
        fields = {field["name"]: field for field in schema["fields"]}
        if unknown := [name for name in value if name not in fields]:
            raise FormatError(f"{_below(path, unknown[0])}: unknown field (known: {', '.join(fields)})")
        if missing := [name for name, field in fields.items() if name not in value and "default" not in field]:
            raise FormatError(f"{_below(path, missing[0])}: missing, and without a default in the schema")
        return {name: self._native(fields[name]["type"], item, _below(path, name)) for name, item in value.items()}

    def _union(self, branches: list[Any], value: Any, path: str) -> Any:
        failures = []
        for branch in branches:
            try:
                found = self._native(branch, value, path)
            except FormatError as error:
                failures.append(error)
                continue
            named = self._named.get(branch, branch) if isinstance(branch, str) else branch
            # a record's name tells fastavro which of several to take
            return (named["name"], found) if isinstance(named, dict) and named.get("type") == "record" else found
        # "null or X" is an optional X: what X says of the value is what helps
        raise (
            failures[-1]
            if len(branches) == 2 and "null" in branches
            else FormatError(f"{path or 'the data'}: {_shown(value)} is none of {', '.join(_kind(branch) for branch in branches)}")
        )


def _primitive(schema: dict[str, Any], kind: str, logical: str | None, value: Any, path: str) -> Any:
    try:
        found = _converted(schema, kind, logical, value)
    except (ValueError, decimal.DecimalException) as error:
        raise FormatError(f"{path or 'the data'}: {_shown(value)} is no {logical or kind}: {error}") from error
    if found is _NO:
        raise FormatError(f"{path or 'the data'}: {_shown(value)} is no {logical or kind}")
    return found


_NO = object()
_TIMES: dict[str, Callable[[str], Any]] = {
    "date": datetime.date.fromisoformat,
    "time-millis": datetime.time.fromisoformat,
    "time-micros": datetime.time.fromisoformat,
    "timestamp-millis": lambda text: _utc(datetime.datetime.fromisoformat(text)),
    "timestamp-micros": lambda text: _utc(datetime.datetime.fromisoformat(text)),
    "local-timestamp-millis": datetime.datetime.fromisoformat,
    "local-timestamp-micros": datetime.datetime.fromisoformat,
}


def _converted(schema: dict[str, Any], kind: str, logical: str | None, value: Any) -> Any:
    """The value as fastavro writes it, `_NO` when it is of another type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "null" and value is None:
        return None
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind in ("int", "long"):
        if isinstance(value, str) and logical in _TIMES:
            return _TIMES[logical](value)
        bits = 31 if kind == "int" else 63
        return value if number and isinstance(value, int) and -(1 << bits) <= value < 1 << bits else _NO
    if kind in ("float", "double"):
        return _NOT_NUMBERS.get(value, _NO) if isinstance(value, str) else float(value) if number else _NO
    if kind == "string" and isinstance(value, str):
        return value
    if kind in ("bytes", "fixed"):
        if logical == "decimal" and (number or isinstance(value, str)):
            return decimal.Decimal(str(value))
        if isinstance(value, str):
            if not value.startswith("0x"):
                raise ValueError("bytes are written as 0x and hexadecimal digits")
            data = bytes.fromhex(value[2:])
            if kind == "fixed" and len(data) != schema["size"]:
                raise ValueError(f"it has {len(data)} bytes, not {schema['size']}")
            return data
    return _NO


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(branch: Any) -> str:
    if isinstance(branch, dict):
        return branch.get("logicalType") or branch.get("name") or branch["type"]
    return str(branch)


# ---- JSON Schema ----------------------------------------------------------------------------------------------------


class JsonFormat:
    """Records that are JSON text. Reading does not validate: what a producer has written is shown as it is."""

    def __init__(self, text: str, references: Mapping[str, str]):
        try:
            self._schema = json.loads(text)
            self._references = {name: json.loads(reference) for name, reference in references.items()}
        except ValueError as error:
            raise FormatError(f"no valid JSON schema: {error}") from error

    def decode(self, data: bytes) -> Any:
        """See Format."""
        try:
            return plain(json.loads(data.decode()))
        except ValueError as error:
            raise FormatError(f"the bytes are no JSON: {error}") from error

    def encode(self, data: Any) -> bytes:
        """See Format. Validates."""
        import jsonschema
        from referencing import Registry
        from referencing.jsonschema import DRAFT7

        resources = [(name, DRAFT7.create_resource(schema)) for name, schema in self._references.items()]
        validator = jsonschema.validators.validator_for(self._schema, default=jsonschema.Draft7Validator)
        found = validator(self._schema, registry=Registry().with_resources(resources))
        try:
            error = jsonschema.exceptions.best_match(found.iter_errors(data))
        except jsonschema.exceptions.SchemaError as wrong:
            raise FormatError(f"no valid JSON schema: {wrong.message}") from wrong
        if error:
            raise FormatError(f"{'.'.join(map(str, error.absolute_path)) or 'the data'}: {error.message}")
        return json.dumps(data, ensure_ascii=False).encode()


# ---- Protobuf -------------------------------------------------------------------------------------------------------


class ProtobufFormat:
    """Messages of a .proto file. Before a message stands which one of the file it is: a list of indexes, outermost first."""

    def __init__(self, text: str, references: Mapping[str, str]):
        from google.protobuf import descriptor_pb2, descriptor_pool

        files = descriptor_pb2.FileDescriptorSet.FromString(_protoc(text, references))
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        self._file = pool.FindFileByName(_PROTO)
        # in the order of the file; the pool's own mapping has none
        own = next(file for file in files.file if file.name == _PROTO)
        self._names = [message.name for message in own.message_type]
        self._nested = {message.name: message for message in own.message_type}

    def _message(self, indexes: list[int]) -> Any:
        from google.protobuf import message_factory

        try:
            name = self._names[indexes[0]]
            found, proto = self._file.message_types_by_name[name], self._nested[name]
            for index in indexes[1:]:
                proto = proto.nested_type[index]
                found = found.nested_types_by_name[proto.name]
        except IndexError as error:
            raise FormatError(f"the .proto file has no message with the index {indexes}") from error
        return message_factory.GetMessageClass(found)()

    def decode(self, data: bytes) -> Any:
        """See Format."""
        from google.protobuf import json_format
        from google.protobuf.message import DecodeError

        indexes, start = _indexes(data)
        message = self._message(indexes)
        try:
            message.ParseFromString(data[start:])
            return json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        except (DecodeError, json_format.Error, TypeError) as error:
            raise FormatError(f"the bytes don't fit the message {message.DESCRIPTOR.full_name}: {error}") from error

    def encode(self, data: Any) -> bytes:
        """See Format. Makes the first message of the file."""
        from google.protobuf import json_format

        message = self._message([0])
        try:
            json_format.ParseDict(data, message)
        except (json_format.Error, TypeError, AttributeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise FormatError(f"the data does not fit the message {message.DESCRIPTOR.full_name}: {why}") from error
        return b"\0" + message.SerializeToString()


_PROTO = "venice_schema.proto"


def _protoc(text: str, references: Mapping[str, str]) -> bytes:
    """The compiled files, all that they import before them, as protoc writes them."""
    with tempfile.TemporaryDirectory(prefix="venice-proto-") as folder:
        root = Path(folder).resolve()
        for name, content in {**references, _PROTO: text}.items():
            file = (root / name).resolve()
            if not file.is_relative_to(root):
                raise FormatError(f"the reference {name} leads out of the folder of its schema")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        output = root / "venice_schema.bin"
        # in a process of its own: protoc writes its errors past Python. -m also finds Google's own .proto files
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", "--include_imports", f"--descriptor_set_out={output}", _PROTO]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_PROTOC_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise VeniceError(f"protoc did not end within {_PROTOC_SECONDS:g} s", "run it again when the machine is less busy") from error
        if done.returncode:
            lines = [line.removeprefix(f"{root}/") for line in done.stderr.strip().splitlines() if "warning" not in line.lower()]
            raise FormatError(f"no valid .proto file: {' '.join(lines[-1:]) or f'protoc ended with {done.returncode}'}")
        return output.read_bytes()


def _indexes(data: bytes) -> tuple[list[int], int]:
    """The indexes before a message, and where the message begins. A single 0 is short for the first message."""
    count, at = _zigzag(data, 0)
    if count < 0 or count > len(data):
        raise FormatError(f"the bytes have no place for {count} message indexes")
    indexes = []
    for _ in range(count):
        index, at = _zigzag(data, at)
        if index < 0:
            raise FormatError(f"{index} is no message index")
        indexes.append(index)
    return indexes or [0], at


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise FormatError("the bytes end within the message indexes")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
