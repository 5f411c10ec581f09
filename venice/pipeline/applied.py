"""What was applied to a cluster, kept in the cluster itself, so that all who operate it see the same: a compacted topic."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING

from venice.errors import UnreachableError, VeniceError
from venice.specs import TopicSpec

if TYPE_CHECKING:
    from venice.kafka import Kafka

TOPIC = TopicSpec("venice.pipelines", 1, None, {"cleanup.policy": "compact", "retention.ms": "-1"})
KINDS = ("topic", "schema", "sql", "table", "connector", "producer", "job")
_SECONDS = 20.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Applied:
    """One pipeline as it was applied: when (ISO 8601), by whom, with which Venice, from what (`files.digest`), and what it made."""

    name: str
    at: str
    by: str
    version: str
    digest: str
    resources: Mapping[str, list[str]] = field(default_factory=dict)

    def has(self, kind: str, name: str) -> bool:
        """Whether it made this thing."""
        return name in self.resources.get(kind, ())


def read(kafka: "Kafka") -> dict[str, Applied]:
    """All pipelines that were applied, by name. UnreachableError when no broker answers."""
    return {name: record for name, value in latest(kafka, TOPIC.name).items() if (record := _record(value))}


def latest(kafka: "Kafka", topic: str) -> dict[str, bytes]:
    """The newest value of each key of a compacted topic with one partition; nothing when there is no such topic."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "venice", "enable.auto.commit": False, "log_level": 0})
    place = TopicPartition(topic, 0, OFFSET_BEGINNING)
    found: dict[str, bytes] = {}
    deadline = time.monotonic() + _SECONDS
    try:
        # a leader that is being elected has not lost what is remembered
        while (error := consumer.list_topics(topic, timeout=_SECONDS).topics[topic].error) is not None:
            if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return {}
            if time.monotonic() > deadline:
                raise UnreachableError(f"Kafka: topic {topic} can't be read: {error.str()}", "`venice status` shows the brokers")
            time.sleep(_POLL_SECONDS)
        low, end = consumer.get_watermark_offsets(place, timeout=_SECONDS)
        consumer.assign([place])
        at = low
        while at < end:
            message = consumer.poll(0.5)
            if message is None or message.error():
                if time.monotonic() > deadline:
                    why = message.error().str() if message else "no answer"
                    raise UnreachableError(f"Kafka: topic {topic} can't be read: {why}", "`venice status` shows the brokers")
                # what was compacted away at the end is never delivered; the position tells
                at = max(at, consumer.position([place])[0].offset)
                continue
            at = message.offset() + 1
            key = (message.key() or b"").decode(errors="replace")
            found.pop(key, None)
            if value := message.value():
                found[key] = value
    except KafkaException as error:
        raise UnreachableError(f"Kafka: topic {topic}: {error.args[0].str()}", "`venice status` shows the brokers") from error
    finally:
        consumer.close()
    return found


def _record(value: bytes) -> Applied | None:
    """What a record says; None for one that nobody of Venice's has written."""
    try:
        said = json.loads(value)
        return Applied(**{field.name: said[field.name] for field in fields(Applied)})
    except (ValueError, KeyError, TypeError):
        return None


def write(kafka: "Kafka", record: Applied, replication: int) -> None:
    """Keep a pipeline's record; one that has made nothing (any more) is forgotten. VeniceError when it was not acknowledged."""
    keep(kafka, TOPIC, record.name, json.dumps(asdict(record)).encode() if any(record.resources.values()) else None, replication)


def keep(kafka: "Kafka", topic: TopicSpec, key: str, value: bytes | None, replication: int) -> None:
    """Make a key's newest value this one (None: forget the key); the topic is made when need be. VeniceError when not acknowledged."""
    from confluent_kafka import Producer

    kafka.ensure_topics([topic], replication)
    failures: list[str] = []
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "acks": "all", "message.timeout.ms": 10_000, "log_level": 0})
    producer.produce(topic.name, key=key.encode(), value=value, on_delivery=lambda error, _: error and failures.append(error.str()))
    if producer.flush(12) or failures:
        raise VeniceError(f"Kafka: topic {topic.name}: {failures[0] if failures else 'not acknowledged'}", "apply the pipeline again")
