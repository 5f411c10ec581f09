"""Bytes of a record -> JSON: by the registry when they carry its frame, else JSON, else text.

What JSON has no form for is written as everywhere in Venice: bytes as `0x` and hexadecimal digits, decimals as their digits, dates and
times as ISO 8601 (timestamps in UTC), NaN and Infinity as their names.
"""

import datetime
import io
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import fastavro

ASK_SECONDS = 5.0
_FRAME = 5  # a zero byte and the schema's id


class UndecodableError(Exception):
    """These bytes will never be readable here: wrong data, an unknown schema, a format that is not supported."""


class AwayError(Exception):
    """The registry did not answer: the same bytes may be readable later."""


class Registry:
    """Schemas by id; asked once for each, any registry of the list that answers.

    All are asked before one is said to lack something: what was registered a moment ago is not known to all of them yet.
    """

    def __init__(self, urls: list[str]):
        self.urls = urls
        self.why = ""
        self.not_before = 0.0

    def schema(self, number: int) -> dict:
        """`{schema, schemaType, references}` of an id. UndecodableError when no registry has it, AwayError when none answers."""
        return self._get(f"/schemas/ids/{number}")

    def version(self, subject: str, version: int) -> dict:
        """The same by subject and version: what a reference names."""
        return self._get(f"/subjects/{urllib.parse.quote(subject, safe='')}/versions/{version}")

    def _get(self, path: str) -> dict:
        begun = time.monotonic()
        if begun < self.not_before:
            raise AwayError(self.why)
        lacking, failures = 0, []
        for url in self.urls:
            try:
                with urllib.request.urlopen(url + path, timeout=ASK_SECONDS) as answer:  # noqa: S310 (addresses from the role)
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                lacking += error.code == 404
                failures.append(f"{url}: HTTP {error.code}")
            except (OSError, ValueError) as error:
                failures.append(f"{url}: {getattr(error, 'reason', error)}")
        if not self.urls:
            raise UndecodableError("the record has a registry's frame, and there is no registry")
        if lacking == len(self.urls):
            raise UndecodableError(f"the registry has no {path.strip('/')}")
        # who waits for its answer can do nothing else meanwhile: not more than a fifth of the time
        now = time.monotonic()
        self.not_before, self.why = now + 4 * (now - begun), "; ".join(failures)
        raise AwayError(self.why)


class Decoder:
    """Keys and values of records as JSON text. Schemas are kept once they were read: an id never changes its meaning."""

    def __init__(self, registry: Registry):
        self.registry = registry
        self.readers: dict[int, Callable[[bytes], Any]] = {}

    def key(self, data: bytes | None) -> str | None:
        """A key as text: as it is when it is text, compact JSON when it is more. None for a record without."""
        return None if data is None else self._checked(self._key, data)

    def value(self, data: bytes | None) -> str | None:
        """A value as JSON text; None for a tombstone."""
        return None if data is None else self._checked(self._value, data)

    @staticmethod
    def _checked(decode: Callable[[bytes], str], data: bytes) -> str:
        try:
            text = decode(data)
            text.encode()  # JSON may hold half a surrogate pair, which no UTF-8 can
            return text
        except (ValueError, RecursionError) as error:
            raise UndecodableError(str(error)) from error

    def _key(self, data: bytes) -> str:
        found = self._framed(data) if self._has_frame(data) else _text(data)
        return found if isinstance(found, str) else dumps(found)

    def _value(self, data: bytes) -> str:
        if self._has_frame(data):
            return dumps(self._framed(data))
        text = _text(data)
        try:
            return dumps(json.loads(text))
        except json.JSONDecodeError:
            return dumps(text)

    @staticmethod
    def _has_frame(data: bytes) -> bool:
        return len(data) >= _FRAME and data[0] == 0

    def _framed(self, data: bytes) -> Any:
        number = int.from_bytes(data[1:_FRAME], "big")
        if number not in self.readers:
            self.readers[number] = self._reader(number)
        try:
            return self.readers[number](data[_FRAME:])
        except UndecodableError:
            raise
        except Exception as error:  # what fastavro raises for bytes that are no Avro is of no one kind
            raise UndecodableError(f"the bytes don't fit schema {number}: {error or type(error).__name__}") from error

    def _reader(self, number: int) -> Callable[[bytes], Any]:
        found = self.registry.schema(number)
        kind = found.get("schemaType") or "AVRO"
        if kind == "JSON":
            return lambda data: json.loads(data)
        if kind != "AVRO":
            raise UndecodableError(f"schema {number} is {kind}, which the live sink can't read")
        named: dict[str, Any] = {}
        try:
            self._parse_references(found, named)
            schema = fastavro.parse_schema(json.loads(found["schema"]), named_schemas=named)
        except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, ValueError, KeyError, TypeError) as error:
            raise UndecodableError(f"schema {number} is no valid Avro schema: {error}") from error
        return lambda data: _avro(schema, data)

    def _parse_references(self, found: dict, named: dict[str, Any]) -> None:
        """Puts what a schema refers to into `named`, what that refers to first."""
        for reference in found.get("references") or ():
            if reference["name"] not in named:
                other = self.registry.version(reference["subject"], reference["version"])
                self._parse_references(other, named)
                fastavro.parse_schema(json.loads(other["schema"]), named_schemas=named)


def _avro(schema: Any, data: bytes) -> Any:
    stream = io.BytesIO(data)
    value = fastavro.schemaless_reader(stream, schema)
    if left := len(data) - stream.tell():
        raise UndecodableError(f"{left} bytes are left over after the Avro record")
    return value


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UndecodableError("neither a registry's frame nor UTF-8 text") from error


def dumps(value: Any) -> str:
    """Compact JSON on one line."""
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))


def plain(value: Any) -> Any:
    """A value as JSON can hold it; see the module's description."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
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
