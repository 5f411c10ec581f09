"""Subjects as a person handles them: list and show them, add a file's schema, delete, change compatibility."""

import difflib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from venice.errors import InputError, VeniceError
from venice.registry import LEVELS, IncompatibleError, Registry
from venice.schema_files import SchemaFile

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
