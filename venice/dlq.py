"""Dead letters: records that a sink could not take, why, and sending them once more.

Kafka Connect puts a record that it can't convert into the sink's dead letter topic, as it was, with the reason in its headers. A
replay sends it to the topic that it came from. What was replayed is remembered in the topic `venice.dlq` in the same
transaction that sends the record, so that a command that is repeated, interrupted or run twice at once sends nothing twice.
"""

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import KafkaException

from venice.connect import Connect, root_cause
from venice.errors import InputError, UnreachableError, VeniceError
from venice.kafka import Kafka
from venice.messages import Codec, Decoded, Outgoing, Place, Record, Span, deliver, iso, newest, producer_of, read, spans

MARKS = "venice.dlq"
COUNT = "venice.replay.count"
FROM = "venice.replay.from"
ORIGIN = "venice.replay.origin"
_PREFIX = "dlq."
ERRORS = "__connect.errors."
_CONFIG = "errors.deadletterqueue.topic.name"
# up to so many offsets a queue's records are counted; of a longer one the offsets are: transactions take some of them up
_COUNTED = 2000
# so many of the newest dead letters of a long queue say where its records come from
_LOOKED_AT = 5


@dataclass(frozen=True)
class Failure:
    """What Connect says of a dead letter, from its headers; None for what the sink's configuration leaves out.

    `topic`, `partition`, `offset`: the record that failed. `stage`: where (VALUE_CONVERTER, TRANSFORMATION, TASK_PUT, ...).
    `reason`: the root cause.
    """

    topic: str | None
    partition: int | None
    offset: int | None
    connector: str | None
    task: int | None
    stage: str | None
    exception: str | None
    message: str | None
    reason: str | None

    @classmethod
    def of(cls, record: Record) -> "Failure":
        """The failure that a dead letter's headers describe."""

        def text(name: str) -> str | None:
            return record.header(ERRORS + name)

        def number(name: str) -> int | None:
            found = text(name) or ""
            return int(found) if re.fullmatch(r"-?\d+", found) else None

        exception, message = text("exception.class.name"), text("exception.message")
        trace = text("exception.stacktrace")
        # "org.apache.kafka.connect.errors.DataException: ..." -> "DataException: ..."
        said = root_cause(trace) if trace else ": ".join(part for part in ((exception or "").rpartition(".")[2], message) if part)
        return cls(
            text("topic"),
            number("partition"),
            number("offset"),
            text("connector.name"),
            number("task.id"),
            text("stage"),
            exception,
            message,
            said or None,
        )


@dataclass(frozen=True)
class Mark:
    """A dead letter that was replayed: when (ISO 8601), and where the record that was sent is."""

    time: str
    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic} {self.partition}:{self.offset} at {self.time}"


@dataclass(frozen=True)
class Letter:
    """One dead letter; `mark` None: not replayed yet."""

    record: Record
    failure: Failure
    mark: Mark | None = None

    @property
    def place(self) -> str:
        """PARTITION:OFFSET in the dead letter topic."""
        return f"{self.record.partition}:{self.record.offset}"

    @property
    def replays(self) -> int:
        """How often the record had been replayed when it became this dead letter."""
        text = self.record.header(COUNT) or ""
        return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class Queue:
    """One dead letter topic. `waiting`: records that were not replayed. `timestamp` and `reason` are those of its newest record.

    The time is the record's own, which Connect keeps: that of its failure is not recorded. Of thousands of records their offsets are
    counted, which are more when the topic is written in transactions.
    """

    topic: str
    connectors: tuple[str, ...]
    sources: tuple[str, ...]
    records: int
    waiting: int
    timestamp: int | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "topic": self.topic,
            "connectors": list(self.connectors),
            "sources": list(self.sources),
            "records": self.records,
            "waiting": self.waiting,
            "newest_time": iso(self.timestamp),
            "newest_reason": self.reason,
        }


@dataclass(frozen=True)
class Drop:
    """What a drop removes: of each partition all before an offset. `waiting`: those among them that were not replayed."""

    topic: str
    before: dict[Place, int]
    records: int
    waiting: int

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "topic": self.topic,
            "records": self.records,
            "waiting": self.waiting,
            "partitions": [{"partition": place[1], "before": offset} for place, offset in sorted(self.before.items())],
        }


class DeadLetters:
    """The dead letters of one cluster. `problem` says, once it is known, why connectors could not be asked for theirs."""

    def __init__(self, kafka: Kafka, connect: Connect | None, codec: Codec):
        """`connect` None: the inventory has none."""
        self.kafka = kafka
        self.connect = connect
        self.codec = codec
        self.problem = ""

    @classmethod
    def of(cls, cluster: Any) -> "DeadLetters":
        """The cluster's dead letters. InputError when it has no Kafka."""
        return cls(Kafka.of(cluster), Connect.of(cluster) if cluster.instances("connect") else None, Codec.of(cluster))

    # ---- which there are -----------------------------------------------------------------------------------------

    def queues(self) -> list[Queue]:
        """Every dead letter topic: those named `dlq.…`, and those that a connector names."""
        with ThreadPoolExecutor(2) as pool:
            asked = pool.submit(self._connectors)
            parts = self.kafka.partitions()
            connectors = asked.result()
        named: dict[str, list[str]] = {}
        for name, config in connectors.items():
            if topic := config.get(_CONFIG):
                named.setdefault(topic, []).append(name)
        places = [(part.topic, part.id) for part in parts if part.topic.startswith(_PREFIX) or part.topic in named]
        names = sorted({topic for topic, _ in places})
        with ThreadPoolExecutor(2) as pool:
            marked = pool.submit(self.marks, names)
            offsets = self.kafka.offsets(places)
            short = {
                name for name in names if sum(end - start for (topic, _), (start, end) in offsets.items() if topic == name) <= _COUNTED
            }
            looked_at = {
                place: Span(start if place[0] in short else max(start, end - _LOOKED_AT), end) for place, (start, end) in offsets.items()
            }
            seen = list(read(self.kafka, looked_at))
            marks = marked.result()
        queues = []
        for topic in names:
            own = sorted((r for r in seen if r.topic == topic), key=lambda r: (r.timestamp or 0, r.partition, r.offset))
            own_offsets = [(place, span) for place, span in offsets.items() if place[0] == topic]
            records = len(own) if topic in short else sum(end - start for _, (start, end) in own_offsets)
            replayed = sum(start <= offset < end for place, (start, end) in own_offsets for offset in marks.get(place, {}))
            sources = {source for name in named.get(topic, []) for source in _sources(connectors[name])}
            sources |= {failure.topic for failure in map(Failure.of, own) if failure.topic}
            last = own[-1] if own else None
            queues.append(
                Queue(
                    topic,
                    tuple(sorted(named.get(topic, []))),
                    tuple(sorted(sources)),
                    records,
                    records - replayed,
                    last.timestamp if last else None,
                    Failure.of(last).reason if last else None,
                )
            )
        return queues

    def topic_of(self, name: str) -> str:
        """The dead letter topic that a user means by its own name or a connector's. InputError when there is none."""
        there = {part.topic for part in self.kafka.partitions()}
        if name in there and name.startswith(_PREFIX):
            return name
        connectors = self._connectors()
        if name in connectors:
            topic = connectors[name].get(_CONFIG)
            if not topic:
                raise InputError(f"connector {name} has no dead letter topic", f"give it one: {_CONFIG} in its configuration")
            if topic not in there:
                raise InputError(f"connector {name}: its dead letter topic {topic} does not exist", "no record of it has failed yet")
            return topic
        if name in there and name in {config.get(_CONFIG) for config in connectors.values()}:
            return name
        if _PREFIX + name in there:
            return _PREFIX + name
        remedy = "`venice dlq list` shows those that there are"
        raise InputError(
            f"{name} is neither a dead letter topic nor a connector that has one", remedy + (f"; {self.problem}" * bool(self.problem))
        )

    def _connectors(self) -> dict[str, dict[str, str]]:
        """Configurations of all connectors; none, and a `problem`, when Connect does not answer."""
        if self.connect is None:
            return {}
        try:
            return {name: connector.config for name, connector in self.connect.connectors().items()}
        except UnreachableError as error:
            self.problem = error.message
            return {}

    # ---- reading -------------------------------------------------------------------------------------------------

    def newest(self, topic: str, count: int) -> list[Letter]:
        """The newest dead letters of a topic, oldest first."""
        return self._letters(topic, newest(self.kafka, spans(self.kafka, topic), count))

    def every(self, topic: str) -> list[Letter]:
        """All dead letters of a topic, by partition and offset."""
        return self._letters(topic, sorted(read(self.kafka, spans(self.kafka, topic)), key=lambda r: (r.partition, r.offset)))

    def at(self, topic: str, places: Iterable[tuple[int, int]]) -> list[Letter]:
        """The dead letters at these (partition, offset). InputError when one is not there."""
        there = spans(self.kafka, topic)
        found = []
        for partition, offset in dict.fromkeys(places):
            span = there.get((topic, partition))
            records = []
            if span and span.start <= offset < span.end:
                records = list(read(self.kafka, {(topic, partition): Span(offset, offset + 1)}))
            if not records:
                raise InputError(f"{topic} has no record {partition}:{offset}", f"`venice dlq show {topic}` lists them")
            found += records
        return self._letters(topic, found)

    def _letters(self, topic: str, records: list[Record]) -> list[Letter]:
        marks = self.marks([topic])
        return [Letter(record, Failure.of(record), marks.get((topic, record.partition), {}).get(record.offset)) for record in records]

    def describe(self, letter: Letter) -> dict[str, Any]:
        """A dead letter decoded; `docs/json/dlq-show.schema.json` has the form."""
        headers = tuple((name, value) for name, value in letter.record.headers if not name.startswith(ERRORS))
        # its schema's subject is named after the topic that it comes from
        found = self.codec.describe(replace(letter.record, topic=letter.failure.topic or letter.record.topic, headers=headers))
        return found | {
            "topic": letter.record.topic,
            "failure": vars(letter.failure),
            "replays": letter.replays,
            "replayed": vars(letter.mark) if letter.mark else None,
        }

    def decoded(self, letter: Letter) -> Decoded:
        """The value of a dead letter as it was meant for its topic."""
        return self.codec.decode(letter.record.value, letter.failure.topic or letter.record.topic, "value")

    # ---- what was replayed ---------------------------------------------------------------------------------------

    def marks(self, names: list[str]) -> dict[Place, dict[int, Mark]]:
        """Marks by place (topic, partition) and offset. A topic that was made anew under its old name has none of the old one's."""
        if not names or MARKS not in {part.topic for part in self.kafka.partitions()}:
            return {}
        wanted = {id_: name for name, id_ in self.kafka.topic_ids(names).items()}
        found: dict[Place, dict[int, Mark]] = {}
        for record in read(self.kafka, spans(self.kafka, MARKS)):
            id_, partition, offset = (record.key or b"").decode().rsplit("/", 2)
            if id_ not in wanted:
                continue
            own = found.setdefault((wanted[id_], int(partition)), {})
            if record.value is None:
                own.pop(int(offset), None)
            else:
                own[int(offset)] = Mark(**json.loads(record.value))
        return found

    # ---- drop ----------------------------------------------------------------------------------------------------

    def doomed(
        self, topic: str, upto: Iterable[tuple[int, int]] = (), before: datetime.datetime | None = None, every: bool = False
    ) -> Drop:
        """What a drop would remove: up to and with these (partition, offset), or what is before a moment, or all.

        InputError when an offset is not there.
        """
        there = spans(self.kafka, topic)
        ends: dict[Place, int] = {}
        for partition, offset in upto:
            span = there.get((topic, partition))
            if span is None or not span.start <= offset < span.end:
                raise InputError(f"{topic} has no record {partition}:{offset}", f"`venice dlq show {topic}` lists them")
            ends[topic, partition] = max(offset + 1, ends.get((topic, partition), 0))
        if before is not None:
            found = self.kafka.offsets_at(there, int(before.timestamp() * 1000))
            ends = {place: there[place].end if offset < 0 else offset for place, offset in found.items()}
        elif every:
            ends = {place: span.end for place, span in there.items()}
        ends = {place: end for place, end in ends.items() if end > there[place].start}
        marks = self.marks([topic])
        records = sum(end - there[place].start for place, end in ends.items())
        if records <= _COUNTED:
            records = sum(1 for _ in read(self.kafka, {place: Span(there[place].start, end) for place, end in ends.items()}))
        replayed = sum(there[place].start <= offset < end for place, end in ends.items() for offset in marks.get(place, {}))
        return Drop(topic, ends, records, records - replayed)

    def drop(self, doomed: Drop) -> None:
        """Remove them, and forget which of them were replayed."""
        marks = self.marks([doomed.topic])
        self.kafka.delete_records(doomed.before)
        topic_id = self.kafka.topic_ids([doomed.topic])[doomed.topic]
        gone = [mark_key(topic_id, place[1], o) for place, end in doomed.before.items() for o in marks.get(place, {}) if o < end]
        try:
            deliver(self.kafka, producer_of(self.kafka), [Outgoing(MARKS, key, None) for key in gone])
        except KafkaException as error:
            raise VeniceError(
                f"the records are dropped, but not what {MARKS} says of them: {error.args[0].str()}", "`venice status`"
            ) from error


def mark_key(topic_id: str, partition: int, offset: int) -> bytes:
    return f"{topic_id}/{partition}/{offset}".encode()


def _sources(config: Mapping[str, str]) -> list[str]:
    """Topics that a sink reads, as its configuration names them; a pattern as /pattern/."""
    found = [name.strip() for name in config.get("topics", "").split(",") if name.strip()]
    return found + ([f"/{config['topics.regex']}/"] if config.get("topics.regex") else [])
