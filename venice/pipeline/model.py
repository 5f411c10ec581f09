"""What a pipeline folder says, and what differs from it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from venice.pipeline.connectors import ConnectorFile
from venice.pipeline.tables import TableFiles
from venice.specs import Difference, TopicSpec

MARKS = {"create": "+", "update": "~", "remove": "-"}


@dataclass(frozen=True)
class Schema:
    """One subject's schema: `text` is the file's, `type` AVRO, JSON or PROTOBUF. `compatibility` None leaves the registry's level."""

    subject: str
    file: Path
    type: str
    text: str
    compatibility: str | None = None


@dataclass(frozen=True)
class Sql:
    """A file of statements. `name` is what `pipeline.yml` calls it; `on` the engine, None for the inventory's stream processor.

    `text` is the file before `${...}` are replaced.
    """

    name: str
    file: Path
    text: str
    on: str | None = None
    only_with: str = ""


@dataclass(frozen=True)
class Producer:
    """A program that Venice runs as a container: a Python `script` in Venice's producer image, or an `image` (then `script` is None).

    `environment` has TOPIC, too; the role `producer` adds the brokers' and the registry's addresses. `health`: arguments of a
    script's health check, empty without one. `memory` None: the role's limit.
    """

    name: str
    pipeline: str
    script: Path | None = None
    image: str = ""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    health: tuple[str, ...] = ()
    memory: str | None = None
    only_with: str = ""

    @property
    def instance(self) -> str:
        """The name of its instance, as `venice status` shows it."""
        return f"producer-{self.name}"

    @property
    def digest(self) -> str:
        """What tells this program from another, its script's text included: 12 hex digits."""
        text = self.script.read_text() if self.script else ""
        said = [text, self.image, self.command, sorted(self.environment.items()), self.health, self.memory]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """A streaming job: a Python `script` that Venice submits to a stream processor, with its driver in a container."""

    name: str
    pipeline: str
    script: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    only_with: str = ""

    @property
    def instance(self) -> str:
        """The name of its driver's instance, as `venice status` shows it."""
        return f"spark-job-{self.name}"

    @property
    def digest(self) -> str:
        """What tells this job from another, its script's text included: 12 hex digits."""
        said = [self.script.read_text(), sorted(self.environment.items())]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


Part = TypeVar("Part", Sql, TableFiles, Producer, Job)


def belonging(parts: Iterable[Part], groups: Mapping[str, Any]) -> list[Part]:
    """Those that an inventory with these groups (component -> hosts) is to have."""
    return [part for part in parts if not part.only_with or groups.get(part.only_with)]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline folder, read and checked. `places`: where each thing stands, `file:line` by kind and name (and key).

    What has `only_with` is left out where the inventory has no host for that component: see `within`.
    """

    name: str
    folder: Path
    description: str = ""
    topics: tuple[TopicSpec, ...] = ()
    schemas: tuple[Schema, ...] = ()
    sql: tuple[Sql, ...] = ()
    tables: tuple[TableFiles, ...] = ()
    connectors: tuple[ConnectorFile, ...] = ()
    producers: tuple[Producer, ...] = ()
    jobs: tuple[Job, ...] = ()
    places: Mapping[tuple[str, ...], str] = field(default_factory=dict)

    def within(self, groups: Mapping[str, Any]) -> "Pipeline":
        """What of it an inventory with these groups (component -> hosts) is to have."""
        parts = ("sql", "tables", "producers", "jobs")
        return replace(self, **{part: tuple(belonging(getattr(self, part), groups)) for part in parts})

    def place(self, *what: str) -> str:
        """`file:line` of a thing (kind, name) or of one key of it; the file alone for what is implied, as a dead letter topic."""
        return self.places.get(what) or self.places.get(what[:2]) or str(self.folder / "pipeline.yml")


@dataclass(frozen=True)
class Change:
    """One thing of a pipeline that was (or would be) created, updated or removed. Secrets in it are masked."""

    kind: str
    name: str
    action: str
    differences: tuple[Difference, ...] = ()

    def __str__(self) -> str:
        """`+ topic orders (partitions 3, ...)`, `~ connector x: field: a -> b`, `- schema s`."""
        return f"{self.headline}: {', '.join(self.details)}" if self.details else self.headline

    @property
    def headline(self) -> str:
        """What happens to what: `+ topic orders (partitions 3, ...)`, `~ connector x`."""
        head = f"{MARKS[self.action]} {self.kind} {self.name}"
        if self.action == "remove" and self.kind == "sql":
            return f"{head} (drops {self.differences[0].current})" if self.differences else f"{head} (forgotten; what it did stays)"
        # a connector's or a table's whole configuration would say less than its file, a text's digest nothing
        if self.action != "create" or self.kind in ("connector", "sql", "table"):
            return head
        said = ", ".join(f"{d.field} {d.desired}" for d in self.differences if d.desired)
        return f"{head} ({said})" if said else head

    @property
    def details(self) -> list[str]:
        """Each field of an update: `field: a -> b`."""
        if self.action != "update":
            return []
        return [f"{d.field}: {d.current or '(none)'} -> {d.desired or '(none)'}" for d in self.differences]

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "differences": [{"field": d.field, "current": d.current, "desired": d.desired} for d in self.differences],
        }
