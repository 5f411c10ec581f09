"""Topics as a user sees them: what there is and how much, and changes to them."""

import difflib
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from venice import human
from venice.errors import InputError, VeniceError
from venice.kafka import Kafka, Setting
from venice.specs import Difference, TopicSpec, retention_ms

# how long a broker may take to hear of a changed setting
_HEARD_SECONDS = 10.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Topic:
    """One topic. Sizes in bytes: `size` of its leaders' replicas, `disk` of all replicas; None when not all could be asked.

    `messages`: from the first to the last offset, which is more than there are in a compacted topic; None without all leaders.
    `owner`: who made it for itself (Kafka, Kafka Connect, ...), empty for a user's.
    """

    name: str
    partitions: int
    replication: int
    under_replicated: int
    offline: int
    messages: int | None
    size: int | None
    disk: int | None
    retention_ms: int
    retention_bytes: int
    cleanup: str
    owner: str = ""

    @property
    def kept(self) -> str:
        """How long records are kept: `unlimited`, `7d`, `7d, 1.0 GB`, `compact`, `compact, 7d`."""
        policies = self.cleanup.split(",")
        parts = ["compact"] if "compact" in policies else []
        if "delete" in policies:
            limits = [human.retention(self.retention_ms)] if self.retention_ms >= 0 or self.retention_bytes < 0 else []
            parts += limits + ([human.size(self.retention_bytes)] if self.retention_bytes >= 0 else [])
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "name": self.name,
            "partitions": self.partitions,
            "replication": self.replication,
            "under_replicated": self.under_replicated,
            "offline": self.offline,
            "messages": self.messages,
            "size_bytes": self.size,
            "disk_bytes": self.disk,
            "retention_ms": self.retention_ms,
            "retention_bytes": self.retention_bytes,
            "cleanup_policy": self.cleanup,
            "owner": self.owner or None,
        }


@dataclass(frozen=True)
class Listing:
    """Topics in order of their names; `silent`: brokers that hold replicas and did not answer, with the reason."""

    topics: list[Topic]
    silent: dict[int, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "topics": [topic.to_dict() for topic in self.topics],
            "silent_brokers": [{"id": node, "reason": reason} for node, reason in sorted(self.silent.items())],
        }


def owner(topic: str) -> str:
    """Who uses a topic for itself and would break without it; empty for a user's topic."""
    if topic.startswith("__debezium") or (topic.startswith("connect-") and topic.endswith((".configs", ".offsets", ".status"))):
        return "Kafka Connect"
    if topic.startswith("__"):
        return "Kafka"
    if topic.startswith("kafkasql-") or topic in ("registry-events", "_schemas"):
        return "the schema registry"
    if topic.startswith("_confluent"):
        return "ksqlDB"
    return "Venice" if topic.startswith("venice.") else ""


def listing(kafka: Kafka, every: bool = False) -> Listing:
    """All topics; those that services and Venice use for themselves only with `every`."""
    shown = [part for part in kafka.partitions() if every or not owner(part.topic)]
    names = list(dict.fromkeys(part.topic for part in shown))
    with ThreadPoolExecutor(3) as pool:
        asked = pool.submit(kafka.topic_config, names, True), pool.submit(kafka.replicas)
        offsets = kafka.offsets([(part.topic, part.id) for part in shown if part.leader >= 0], lenient=True)
        config, (replicas, failed) = (answer.result() for answer in asked)
    sizes = {(r.topic, r.partition, r.broker): r.size for r in replicas}
    answered = {r.broker for r in replicas}
    stopped = {node for part in shown for node in part.replicas} - answered - set(failed)
    topics = []
    for name in sorted(config):
        parts = [part for part in shown if part.topic == name]
        settings = config[name]
        spans = [offsets.get((name, part.id)) for part in parts]
        leaders = [sizes.get((name, part.id, part.leader)) for part in parts]
        every_replica = [sizes.get((name, part.id, node)) for part in parts for node in part.replicas]
        topics.append(
            Topic(
                name,
                len(parts),
                len(parts[0].replicas),
                sum(len(part.isr) < len(part.replicas) for part in parts),
                sum(part.leader < 0 for part in parts),
                _sum([span and span[1] - span[0] for span in spans]),
                _sum(leaders),
                _sum(every_replica),
                int(settings["retention.ms"]),
                int(settings["retention.bytes"]),
                settings["cleanup.policy"],
                owner(name),
            )
        )
    return Listing(topics, failed | dict.fromkeys(stopped, "it is not registered: it does not run"))


def _sum(values: list[int | None]) -> int | None:
    return None if None in values else sum(values)


def existing(kafka: Kafka, names: Iterable[str]) -> None:
    """InputError when one of these topics does not exist, with the name that is nearest."""
    known = {part.topic for part in kafka.partitions()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise InputError(f"topic {name} does not exist", f"did you mean {near[0]}?" if near else "`venice topics` lists them")


def create(kafka: Kafka, spec: TopicSpec, default_replication: int) -> None:
    """Make a topic; returns once every broker knows it. InputError when it exists, or for what Kafka does not accept."""
    there = [part for part in kafka.partitions() if part.topic == spec.name]
    if there:
        raise InputError(
            f"topic {spec.name} exists already: {len(there)} partitions, {len(there[0].replicas)} replicas",
            f"`venice topics config {spec.name}` shows and changes its settings",
        )
    kafka.create(spec, default_replication)


def specified(
    name: str, partitions: int, replication: int | None, retention: str | None, cleanup: str | None, settings: Mapping[str, str]
) -> TopicSpec:
    """What these options ask for. InputError when two of them say the same setting."""
    named = {"retention.ms": None if retention is None else str(retention_ms(retention)), "cleanup.policy": cleanup}
    own = {key: value for key, value in named.items() if value is not None}
    if doubled := own.keys() & settings.keys():
        raise InputError(f"{', '.join(sorted(doubled))} is given twice", "give the option or --config, not both")
    return TopicSpec(name, partitions, replication, own | dict(settings))


def doomed(kafka: Kafka, names: Iterable[str]) -> list[Topic]:
    """The topics that would be deleted. InputError when one does not exist, or when a service or Venice needs it."""
    names = list(dict.fromkeys(names))
    existing(kafka, names)
    for name in names:
        if whose := owner(name):
            raise InputError(f"topic {name} belongs to {whose}, which would not work without it", "nothing was deleted")
    return [topic for topic in listing(kafka).topics if topic.name in names]


# ---- settings -------------------------------------------------------------------------------------------------------


def settings(kafka: Kafka, name: str, every: bool = False) -> list[Setting]:
    """The settings that a topic has of its own; with `every` those as well that it has from the brokers and from Kafka."""
    existing(kafka, [name])
    return [setting for setting in kafka.settings(name) if every or setting.source == "topic"]


def changes(kafka: Kafka, name: str, wanted: Mapping[str, str]) -> list[Difference]:
    """What setting these would change; an empty value takes the topic's own away, so that the cluster's counts."""
    existing(kafka, [name])
    now = {setting.name: setting for setting in kafka.settings(name)}
    found = []
    for key, value in wanted.items():
        if key not in now:
            near = difflib.get_close_matches(key, now, 1)
            raise InputError(
                f"topics have no setting {key}", f"did you mean {near[0]}?" if near else f"`venice topics config {name} --all` lists them"
            )
        if value == "" and now[key].source == "topic":
            found.append(Difference(key, now[key].value, now[key].inherited))
        elif value not in ("", now[key].value) or (value and now[key].source != "topic"):
            found.append(Difference(key, now[key].value, value))
    return found


def losses(kafka: Kafka, name: str, differences: Iterable[Difference]) -> list[str]:
    """What Kafka would remove, now or soon, because of these changes; empty when it removes nothing that it would not without."""
    before = {setting.name: setting.value for setting in kafka.settings(name)}
    after = before | {difference.field: difference.desired for difference in differences}
    policies, earlier = after["cleanup.policy"].split(","), before["cleanup.policy"].split(",")
    found = []
    if "compact" in policies and "compact" not in earlier:
        found.append("all records of a key but the newest, and records without a key")
    if "delete" in policies:
        for key, unit in (("retention.ms", human.retention), ("retention.bytes", human.size)):
            was = int(before[key]) if "delete" in earlier else -1
            try:
                now = int(after[key])
            except ValueError:
                continue  # Kafka will refuse it, with its reason
            if now >= 0 and (was < 0 or now < was):
                found.append(f"records older than {unit(now)}" if key == "retention.ms" else f"what a partition has beyond {unit(now)}")
    return found


def change(kafka: Kafka, name: str, differences: Iterable[Difference], wanted: Mapping[str, str]) -> None:
    """Make these changes; returns once a broker answers with them. InputError for what Kafka does not accept."""
    asked = {difference.field: wanted[difference.field] or None for difference in differences}
    kafka.alter(name, asked)
    deadline = time.monotonic() + _HEARD_SECONDS
    while not _heard(kafka.settings(name), asked):
        if time.monotonic() > deadline:
            raise VeniceError(f"topic {name}: no broker has the new settings after {_HEARD_SECONDS:g} s", "`venice status`")
        time.sleep(_POLL_SECONDS)


def _heard(now: list[Setting], asked: Mapping[str, str | None]) -> bool:
    own = {setting.name: setting.value for setting in now if setting.source == "topic"}
    return all(own.get(key) == value for key, value in asked.items())
