"""Schemas as a person handles them: read and check a file, list and show subjects, add, delete, change compatibility."""

import difflib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from venice.errors import InputError, VeniceError
from venice.registry import LEVELS, IncompatibleError, Registry

TYPES = {".avsc": "AVRO", ".json": "JSON", ".proto": "PROTOBUF"}
# registries answer in milliseconds; this many at once list hundreds of subjects within a second or two
_AT_ONCE = 16


@dataclass(frozen=True)
class Subject:
    """One subject. `versions` and `latest_id` without softly deleted versions; `own`: the level is its own, not the default."""

    subject: str
    type: str
    versions: list[int]
    latest_id: int | None
    compatibility: str
    own_compatibility: bool
    deleted_versions: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


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


@dataclass(frozen=True)
class Added:
    """A schema's place in its subject; `registered` False when it was there before."""

    subject: str
    version: int
    id: int
    type: str
    registered: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


# ---- asking


def listing(registry: Registry, deleted: bool = False) -> list[Subject]:
    """All subjects in order of name; with `deleted` only those that have softly deleted versions."""
    default = registry.default_compatibility()
    names = registry.subjects(deleted)

    def look(name: str) -> Subject | None:
        versions = registry.versions(name)
        gone = sorted(set(registry.versions(name, deleted=True)) - set(versions)) if deleted else []
        if not (gone if deleted else versions):
            return None
        latest = registry.latest(name) if versions else None
        own = registry.compatibility(name)
        found = (latest["schemaType"], latest["id"]) if latest else ("", None)
        return Subject(name, found[0], versions, found[1], own or default, own is not None, gone)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [found for found in pool.map(look, sorted(names)) if found]


def show(registry: Registry, subject: str, version: int | None = None) -> dict[str, Any]:
    """One version (the latest) with what its subject says: the form of `docs/json/schemas-show.schema.json`."""
    found = registry.version(subject, version or "latest")
    if found is None:
        versions = _existing(registry, subject)
        raise InputError(f"subject {subject} has no version {version}", f"it has {spans(versions)}")
    own = registry.compatibility(subject)
    return {
        "subject": subject,
        "version": found["version"],
        "id": found["id"],
        "type": found["schemaType"],
        "versions": registry.versions(subject),
        "compatibility": own or registry.default_compatibility(),
        "own_compatibility": own is not None,
        "references": found["references"],
        "schema": found["schema"],
    }


def pretty(schema: str, type: str) -> str:
    """A schema's text as a person reads it: Avro and JSON indented, Protobuf as it is."""
    return schema.strip() if type == "PROTOBUF" else json.dumps(json.loads(schema), indent=2, ensure_ascii=False)


def spans(numbers: list[int]) -> str:
    """`1-3, 7` of 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _existing(registry: Registry, subject: str, deleted: bool = False) -> list[int]:
    """The subject's versions. InputError with names like it when there is no such subject."""
    versions = registry.versions(subject, deleted)
    if not versions:
        near = difflib.get_close_matches(subject, registry.subjects(), 3, 0.5)
        softly = not deleted and registry.versions(subject, deleted=True)
        raise InputError(
            f"subject {subject} is deleted softly" if softly else f"there is no subject {subject}",
            f"`venice schemas delete {subject} --permanent` removes it for good, adding a schema brings it back"
            if softly
            else f"did you mean {' or '.join(near)}?"
            if near
            else "`venice schemas` lists them",
        )
    return versions


# ---- changing


def add(registry: Registry, subject: str, file: SchemaFile) -> Added:
    """Register the file's schema unless the subject has it. IncompatibleError with the reasons, then nothing was registered."""
    version = registry.version_of(subject, file.text, file.type)
    if version is not None:
        found = registry.version(subject, version)
        return Added(subject, version, found["id"] if found else 0, file.type, False)
    if reasons := registry.check(subject, file.text, file.type):
        raise IncompatibleError(subject, registry.effective_compatibility(subject), reasons)
    schema_id = registry.register(subject, file.text, file.type)
    version = registry.version_of(subject, file.text, file.type)
    if version is None:
        raise VeniceError(f"subject {subject}: the registry took the schema (id {schema_id}) and does not have it now", "add it again")
    return Added(subject, version, schema_id, file.type, True)


def doomed(registry: Registry, subject: str, version: int | None, permanent: bool) -> list[int]:
    """The versions that `delete` will remove; InputError when there are none."""
    versions = _existing(registry, subject, deleted=permanent)
    if version is None:
        return versions
    if version not in versions:
        raise InputError(f"subject {subject} has no version {version}", f"it has {spans(versions)}")
    return [version]


def set_compatibility(registry: Registry, subject: str | None, level: str) -> str:
    """Set a subject's level, or the default (None); the level that counted before. InputError when either is not known."""
    level = known_level(level)
    if subject is not None:
        _existing(registry, subject)
        before = registry.effective_compatibility(subject)
    else:
        before = registry.default_compatibility()
    registry.set_compatibility(subject, level)
    return before


def compatibility(registry: Registry, subject: str | None) -> tuple[str, bool]:
    """A subject's level (None: the default) and whether it is its own. InputError when there is no such subject."""
    if subject is None:
        return registry.default_compatibility(), True
    _existing(registry, subject)
    own = registry.compatibility(subject)
    return own or registry.default_compatibility(), own is not None


def known_level(text: str) -> str:
    """A compatibility level, in whichever case it is written."""
    level = text.upper()
    if level not in LEVELS:
        raise InputError(f"there is no compatibility {text}", f"one of {', '.join(LEVELS)}")
    return level


# ---- files


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
            raise InputError(f"{path}:{error.lineno}:{error.colno}: {error.msg}", "correct the JSON there") from error
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
