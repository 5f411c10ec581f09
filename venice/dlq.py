"""Dead letters: records that a sink could not take, why, and sending them once more.

Kafka Connect puts a record that it can't convert into the sink's dead letter topic, as it was, with the reason in its headers. A
replay sends it to the topic that it came from. What was replayed is remembered in the topic `venice.dlq` in the same
transaction that sends the record, so that a command that is repeated, interrupted or run twice at once sends nothing twice.
"""

import contextlib
import datetime
import json
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import KafkaException, Producer

from venice.connect import Connect, root_cause
from venice.errors import InputError, UnreachableError, VeniceError
from venice.kafka import Kafka
from venice.messages import Codec, Decoded, Place, Record, Span, iso, newest, read, spans
from venice.specs import TopicSpec

MARKS = "venice.dlq"
COUNT = "venice.replay.count"
FROM = "venice.replay.from"
ORIGIN = "venice.replay.origin"
MAX_REPLAYS = 3
_PREFIX = "dlq."
_ERRORS = "__connect.errors."
_CONFIG = "errors.deadletterqueue.topic.name"
# so many of the newest dead letters say where a queue's records come from
_LOOKED_AT = 5
# records of one transaction
_BATCH = 500
# the very first transaction of a cluster waits for its brokers to make the topic that they keep transactions in
_TRANSACTION_SECONDS = 30.0


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
            return record.header(_ERRORS + name)

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
    """One dead letter topic. `waiting`: records that were not replayed. `time` and `reason` are those of its newest record.

    The time is the record's own, which Connect keeps: that of its failure is not recorded.
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
class Repair:
    """What a replay changes: the whole value, single fields of it, the key. `value` counts when `whole` is set."""

    whole: bool = False
    value: Any = None
    fields: tuple[tuple[str, Any], ...] = ()
    key: str | None = None

    @property
    def of_value(self) -> bool:
        """True when the value is changed at all."""
        return self.whole or bool(self.fields)


@dataclass(frozen=True)
class Sending:
    """A record that a replay will send, or has sent. `offset`: where it is then; `partition` None: by its key."""

    letter: Letter
    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    repaired: bool
    offset: int | None = None

    @property
    def count(self) -> int:
        """Which replay of the record it is."""
        return self.letter.replays + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "partition": self.letter.record.partition,
            "offset": self.letter.record.offset,
            "to": {"topic": self.topic, "partition": self.partition, "offset": self.offset},
            "count": self.count,
            "repaired": self.repaired,
        }


@dataclass
class Plan:
    """What a replay does. `done`: replayed before; `refused`: why a letter is not sent."""

    topic: str
    sendings: list[Sending] = field(default_factory=list)
    done: list[Letter] = field(default_factory=list)
    refused: list[tuple[Letter, str]] = field(default_factory=list)

    def to_dict(self, sent: bool) -> dict[str, Any]:
        """Plain form for JSON; `sent`: whether it was carried out."""
        return {
            "topic": self.topic,
            "sent": sent,
            "replayed": [sending.to_dict() for sending in self.sendings],
            "already": [{"partition": letter.record.partition, "offset": letter.record.offset} for letter in self.done],
            "refused": [
                {"partition": letter.record.partition, "offset": letter.record.offset, "reason": why} for letter, why in self.refused
            ],
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
            marked = pool.submit(self._marks, names)
            offsets = self.kafka.offsets(places)
            seen = list(read(self.kafka, {place: Span(max(start, end - _LOOKED_AT), end) for place, (start, end) in offsets.items()}))
            marks = marked.result()
        queues = []
        for topic in names:
            own = sorted((r for r in seen if r.topic == topic), key=lambda r: (r.timestamp or 0, r.partition, r.offset))
            own_offsets = [(place, span) for place, span in offsets.items() if place[0] == topic]
            records = sum(end - start for _, (start, end) in own_offsets)
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
        marks = self._marks([topic])
        return [Letter(record, Failure.of(record), marks.get((topic, record.partition), {}).get(record.offset)) for record in records]

    def describe(self, letter: Letter) -> dict[str, Any]:
        """A dead letter decoded; `docs/json/dlq-show.schema.json` has the form."""
        headers = tuple((name, value) for name, value in letter.record.headers if not name.startswith(_ERRORS))
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

    def _marks(self, names: list[str]) -> dict[Place, dict[int, Mark]]:
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

    # ---- replay --------------------------------------------------------------------------------------------------

    def plan(self, topic: str, letters: list[Letter], repair: Repair, to: str | None, most: int) -> Plan:
        """What replaying these letters of a topic sends, nothing sent yet.

        `to`: another topic than the one that a letter comes from; `most`: how often one record may be replayed. InputError for a
        repair that does not fit, naming the letter.
        """
        if (repair.whole or repair.key is not None) and len(letters) > 1:
            raise InputError(
                f"one value or key for {len(letters)} records", "choose one record with --offset; --set changes fields of many"
            )
        plan = Plan(topic)
        known: dict[str, int] = {}
        for part in self.kafka.partitions():
            known[part.topic] = known.get(part.topic, 0) + 1
        for letter in letters:
            target = to or letter.failure.topic
            if letter.mark:
                plan.done.append(letter)
            elif letter.replays >= most:
                plan.refused.append((letter, f"it was replayed {letter.replays} times already, and failed again each time"))
            elif target is None:
                plan.refused.append((letter, "its headers do not say which topic it comes from; name one with --to"))
            elif target not in known:
                plan.refused.append((letter, f"topic {target} does not exist"))
            else:
                plan.sendings.append(self._sending(topic, letter, target, known[target], repair))
        return plan

    def _sending(self, topic: str, letter: Letter, target: str, partitions: int, repair: Repair) -> Sending:
        record, failure = letter.record, letter.failure
        try:
            value = self._value(letter, target, repair) if repair.of_value else record.value
            key = self._key(target, repair.key) if repair.key is not None else record.key
        except InputError as error:
            raise InputError(f"{topic} {letter.place}: {error.message}", error.remedy) from error
        # where it was, its order among the records of its key stays
        stays = target == failure.topic and key == record.key and failure.partition is not None and failure.partition < partitions
        kept = [(name, data) for name, data in record.headers if not name.startswith(_ERRORS) and name not in (COUNT, FROM, ORIGIN)]
        origin = f"{failure.topic}/{failure.partition}/{failure.offset}" if failure.topic else ""
        own = [(COUNT, str(letter.replays + 1)), (FROM, f"{topic}/{record.partition}/{record.offset}"), (ORIGIN, origin)]
        return Sending(
            letter,
            target,
            failure.partition if stays else None,
            key,
            value,
            (*kept, *((name, text.encode()) for name, text in own if text)),
            repair.of_value or repair.key is not None,
        )

    def _value(self, letter: Letter, target: str, repair: Repair) -> bytes:
        data = repair.value
        if not repair.whole:
            decoded = self.decoded(letter)
            if not isinstance(decoded.value, dict):
                raise InputError(f"its value has no fields to set: it is {decoded.format}", "give all of it with --value or --edit")
            data = decoded.value
        for path, value in repair.fields:
            data = _with(data, path.split("."), value)
        subject = f"{target}-value"
        if self.codec.latest(subject) is None:
            return json.dumps(data, ensure_ascii=False).encode()
        return self.codec.encode(subject, data)

    def _key(self, target: str, text: str) -> bytes:
        subject = f"{target}-key"
        if self.codec.latest(subject) is None:
            return text.encode()
        try:
            return self.codec.encode(subject, text)
        except InputError:
            try:
                return self.codec.encode(subject, json.loads(text))
            except json.JSONDecodeError:
                pass
            raise

    def send(self, plan: Plan) -> None:
        """Carry a plan out: afterwards each sending has its partition and offset, and what was replayed meanwhile is `done`.

        Returns when all are acknowledged by all in-sync replicas, and remembered as replayed.
        """
        if not plan.sendings:
            return
        self.kafka.ensure_topics(
            [TopicSpec(MARKS, 1, None, {"cleanup.policy": "compact"})], len(self.kafka.partitions(plan.topic)[0].replicas)
        )
        producer = self._producer({"transactional.id": f"venice-dlq-{plan.topic}", "transaction.timeout.ms": 60_000})
        try:
            # another replay of the topic that still runs can commit nothing from here on, so its marks are all read
            producer.init_transactions(_TRANSACTION_SECONDS)
            marks = self._marks([plan.topic])
            still: list[Sending] = []
            for sending in plan.sendings:
                record = sending.letter.record
                mark = marks.get((plan.topic, record.partition), {}).get(record.offset)
                if mark:
                    plan.done.append(replace(sending.letter, mark=mark))
                else:
                    still.append(sending)
            plan.sendings = []
            topic_id = self.kafka.topic_ids([plan.topic])[plan.topic]
            for start in range(0, len(still), _BATCH):
                plan.sendings += self._transaction(producer, topic_id, still[start : start + _BATCH])
        except KafkaException as error:
            raise self._failed(plan, error) from error

    def _failed(self, plan: Plan, error: KafkaException) -> VeniceError:
        answer = error.args[0]
        sent = f"{len(plan.sendings)} records were replayed before, and are remembered"
        if answer.name() in ("_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH"):
            return VeniceError(f"another replay of {plan.topic} took over; {sent}", "wait until it has ended, then run this again")
        if answer.name() in ("_TIMED_OUT", "_TRANSPORT", "_ALL_BROKERS_DOWN", "_MSG_TIMED_OUT"):
            return self.kafka.unreachable(f"replay of {plan.topic}: {answer.str()}; {sent}")
        return VeniceError(f"replay of {plan.topic}: {answer.str()}; {sent}", "run it again: only what was not replayed is sent")

    def _transaction(self, producer: Producer, topic_id: str, batch: list[Sending]) -> list[Sending]:
        """Send these and their marks, both or neither."""
        producer.begin_transaction()
        try:
            sent = self._deliver(producer, [(s.topic, s.partition, s.key, s.value, s.headers) for s in batch])
            found = [replace(s, partition=at.partition(), offset=at.offset()) for s, at in zip(batch, sent, strict=True)]
            now = iso(int(time.time() * 1000)) or ""
            marks = [Mark(now, s.topic, s.partition or 0, s.offset or 0) for s in found]
            keys = [_mark_key(topic_id, s.letter.record.partition, s.letter.record.offset) for s in found]
            self._deliver(
                producer, [(MARKS, None, key, json.dumps(vars(mark)).encode(), ()) for key, mark in zip(keys, marks, strict=True)]
            )
            producer.commit_transaction(_TRANSACTION_SECONDS)
        except (KafkaException, VeniceError):
            # what can't be aborted now (no broker answers, another replay took over) the brokers abort
            with contextlib.suppress(KafkaException):
                producer.abort_transaction(_TRANSACTION_SECONDS)
            raise
        return found

    def _producer(self, settings: Mapping[str, Any]) -> Producer:
        own = {
            "bootstrap.servers": self.kafka.bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
            # the one of Java's producers: a key goes where theirs puts it
            "partitioner": "murmur2_random",
            "message.timeout.ms": int(_TRANSACTION_SECONDS * 1000),
            "log_level": 0,
        }
        return Producer({**own, **settings})

    def _deliver(self, producer: Producer, records: list[tuple]) -> list[Any]:
        """Send records (topic, partition or None, key, value, headers); what was acknowledged, in the same order."""
        answers: list[Any] = [None] * len(records)
        failures: list[Any] = []

        def answered(number: int):
            def note(error: Any, message: Any) -> None:
                if error:
                    failures.append(error)
                answers[number] = message

            return note

        for number, (topic, partition, key, value, headers) in enumerate(records):
            where = {} if partition is None else {"partition": partition}
            producer.produce(topic, value, key, headers=list(headers), on_delivery=answered(number), **where)
            producer.poll(0)
        producer.flush(_TRANSACTION_SECONDS)
        if failures:
            raise KafkaException(failures[0])
        if None in answers:
            raise self.kafka.unreachable(f"{records[0][0]}: not acknowledged")
        return answers

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
        marks = self._marks([topic])
        records = sum(end - there[place].start for place, end in ends.items())
        replayed = sum(there[place].start <= offset < end for place, end in ends.items() for offset in marks.get(place, {}))
        return Drop(topic, ends, records, records - replayed)

    def drop(self, doomed: Drop) -> None:
        """Remove them, and forget which of them were replayed."""
        marks = self._marks([doomed.topic])
        self.kafka.delete_records(doomed.before)
        topic_id = self.kafka.topic_ids([doomed.topic])[doomed.topic]
        gone = [_mark_key(topic_id, place[1], o) for place, end in doomed.before.items() for o in marks.get(place, {}) if o < end]
        try:
            self._deliver(self._producer({}), [(MARKS, None, key, None, ()) for key in gone])
        except KafkaException as error:
            raise VeniceError(
                f"the records are dropped, but not what {MARKS} says of them: {error.args[0].str()}", "`venice status`"
            ) from error


def _mark_key(topic_id: str, partition: int, offset: int) -> bytes:
    return f"{topic_id}/{partition}/{offset}".encode()


def _sources(config: Mapping[str, str]) -> list[str]:
    """Topics that a sink reads, as its configuration names them; a pattern as /pattern/."""
    found = [name.strip() for name in config.get("topics", "").split(",") if name.strip()]
    return found + ([f"/{config['topics.regex']}/"] if config.get("topics.regex") else [])


def _with(data: Any, path: list[str], value: Any) -> dict[str, Any]:
    """`data` with the field at a path set; objects in between that are missing or null are made."""
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise InputError(f"{path[0]} can't be set: {json.dumps(data)} has no fields", "--set takes FIELD=VALUE, or OUTER.INNER=VALUE")
    head, *rest = path
    return data | {head: _with(data.get(head), rest, value) if rest else value}
