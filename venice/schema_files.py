"""Schema files: read and checked before anything is sent; no service is asked, and none of their clients loaded."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from venice.errors import InputError

TYPES = {".avsc": "AVRO", ".json": "JSON", ".proto": "PROTOBUF"}


@dataclass(frozen=True)
class SchemaFile:
    """A schema file, read and found right."""

    path: Path
    text: str
    type: str

    @property
    def subject(self) -> str:
        """Subject that the file's name stands for: the values of the topic of that name."""
        return f"{self.path.stem}-value"


def load(path: Path, type: str | None = None) -> SchemaFile:
    """Read a schema file and check it; `type` None: by the file's ending. InputError names line and cause."""
    type = type or TYPES.get(path.suffix)
    if type is None:
        endings = ", ".join(f"{ending} ({name})" for ending, name in TYPES.items())
        raise InputError(f"{path}: its ending does not tell its type", f"name it {endings}, or give --type")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error})", "give a text file that can be read") from error
    if type == "PROTOBUF":
        _check_protobuf(path)
    else:
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: {error.msg}", "correct the JSON there") from error
        (_check_avro if type == "AVRO" else _check_json)(path, text, document)
    return SchemaFile(path, text, type)


def _check_avro(path: Path, text: str, document: Any) -> None:
    import fastavro

    try:
        fastavro.parse_schema(document)
        message = _wrong_name(document)
    except fastavro.schema.UnknownType as error:
        message = f"unknown type {error}"
    except (fastavro.schema.SchemaParseException, KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{'without ' if isinstance(error, KeyError) else ''}{error}"
    if message:
        # the library does not say where: the rarest of its words that stands in the file does
        words = [f'"{word}"' for word in re.findall(r"[\w-]+", message) if f'"{word}"' in text]
        at = text.find(min(words[::-1], key=text.count)) if words else 0
        raise InputError(f"{path}:{_line(text, at)}: no valid Avro schema: {message}", "correct the schema there")


def _wrong_name(schema: Any) -> str:
    """What is wrong with the names in an Avro schema; empty when nothing is. The library takes any."""
    if isinstance(schema, list):
        return next((wrong for part in schema if (wrong := _wrong_name(part))), "")
    if not isinstance(schema, dict):
        return ""
    name = schema.get("name")
    if isinstance(name, str) and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name, re.ASCII):
        return f"the name {name} has other characters than letters, digits and _, or begins with a digit"
    parts = [schema.get(key) for key in ("type", "items", "values", "fields")]
    return _wrong_name([part for part in parts if isinstance(part, dict | list)])


def _check_json(path: Path, text: str, document: Any) -> None:
    import jsonschema

    checker = jsonschema.validators.validator_for(document, jsonschema.Draft202012Validator)
    error = jsonschema.exceptions.best_match(checker(checker.META_SCHEMA).iter_errors(document))
    if error is not None:
        place = list(error.absolute_path)
        at = 0
        for key in place:
            at = max(at, text.find(f'"{key}"', at))
        where = ".".join(map(str, place)) or "the document"
        raise InputError(f"{path}:{_line(text, at)}: no valid JSON Schema: {where}: {error.message}", "correct the schema there")


def _check_protobuf(path: Path) -> None:
    # protoc ends its process on some mistakes, and writes to the file descriptor 2: hence a process of its own
    argv = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{path.parent}",
        "--descriptor_set_out=/dev/null",
        str(path),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "warning:" not in line]
        # protoc names the file as seen from its folder
        message = "\n".join(re.sub(rf"^{re.escape(path.name)}:", f"{path}:", line) for line in said)
        raise InputError(message or f"{path}: no valid Protobuf schema", "correct the schema there")


def _line(text: str, at: int) -> int:
    return text[:at].count("\n") + 1
