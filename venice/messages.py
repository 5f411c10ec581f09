"""Kafka records: reading and sending them, and what their keys and values mean by the schemas of the registry.

Reading assigns partitions itself, so it leaves no consumer group behind, and ends at offsets that are known when it begins. A record
that can't be decoded is shown as hexadecimal digits with the reason: it never stops the others.
"""

import datetime
import itertools
import json
import logging
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from venice import formats
from venice.errors import InputError, UnreachableError, VeniceError
from venice.formats import Format, FormatError

if TYPE_CHECKING:
    from confluent_kafka import Producer

    from venice.kafka import Kafka
    from venice.registry import Registry

# a frame: this byte, then the schema's id in four
_MAGIC = 0
_FRAME_BYTES = 5
# brokers answer each fetch within half a second: this long without any answer, nobody leads the partitions
STALL_SECONDS = 20.0
# as long as librdkafka itself tries (message.timeout.ms): a replica that fell silent holds records back for 30 s
# (replica.lag.time.max.ms), and small machines may hardly move on for longer than that
ACKNOWLEDGED_SECONDS = 300.0
# what a producer that was killed began holds up those who read only what is committed for so long
TRANSACTION_SECONDS = 120.0
_POLL_SECONDS = 0.3
_BATCH = 500
_WINDOW_GROWTH = 8
_NEWEST = 10

_SILENT = logging.getLogger("venice.librdkafka")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False

Place = tuple[str, int]  # topic, partition


@dataclass(frozen=True)
class Record:
    """A record as Kafka has it. `timestamp`: milliseconds since 1970, None without one."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def time(self) -> str | None:
        """The timestamp as ISO 8601 in UTC, with milliseconds; None without one."""
        return iso(self.timestamp)

    def header(self, name: str) -> str | None:
        """Text of the last header of this name; None without one."""
        found = [value for key, value in self.headers if key == name]
        return (found[-1] or b"").decode(errors="replace") if found else None

    def __str__(self) -> str:
        return f"{self.topic} {self.partition}:{self.offset}"


@dataclass(frozen=True)
class Decoded:
    """A key or value as JSON can hold it.

    `format`: avro, json-schema or protobuf (by the schema named in the bytes), json or text (without one), hex (the bytes of what
    can't be decoded, with the reason in `error` when they name a schema), or null. `subject`, `schema_id` and `type` (AVRO, ...)
    are the schema's.
    """

    value: Any
    format: str
    subject: str | None = None
    schema_id: int | None = None
    type: str | None = None
    error: str | None = None

    def to_dict(self, part: str) -> dict[str, Any]:
        """Plain form for JSON, the fields' names beginning with `part` (key or value)."""
        schema = {"subject": self.subject, "id": self.schema_id, "type": self.type} if self.schema_id is not None else None
        return {part: self.value, f"{part}_format": self.format, f"{part}_schema": schema, f"{part}_error": self.error}


_FORMAT_NAMES = {formats.AVRO: "avro", formats.JSON: "json-schema", formats.PROTOBUF: "protobuf"}


def iso(timestamp: int | None) -> str | None:
    """ISO 8601 in UTC of milliseconds since 1970."""
    if timestamp is None:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(timestamp / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):  # Kafka takes any number
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- decoding and encoding ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Schema:
    subject: str
    id: int
    type: str
    format: Format


class Codec:
    """Decodes and encodes by the schemas of one registry; asks for each schema once.

    Without an answer of the registry it goes on, with hexadecimal digits in place of what it could not decode: `problem` then says
    why, as a user should read it (once).
    """

    def __init__(self, registry: "Registry | None"):
        """`registry` None: the inventory has none."""
        self.registry = registry
        self.problem = ""
        self._by_id: dict[tuple[int, str], _Schema | str] = {}
        self._latest: dict[str, _Schema | None] = {}

    @classmethod
    def of(cls, cluster: Any) -> "Codec":
        """The codec of the cluster's registry, when it has one."""
        from venice.registry import Registry

        return cls(Registry.of(cluster) if cluster.instances("schema_registry") else None)

    def decode(self, data: bytes | None, topic: str = "", part: str = "value") -> Decoded:
        """What a key or value (`part`) of a topic says. Never raises for what the bytes are."""
        if data is None:
            return Decoded(None, "null")
        if len(data) < _FRAME_BYTES or data[0] != _MAGIC:
            return _unframed(data)
        (schema_id,) = struct.unpack_from(">I", data, 1)
        schema = self._schema(schema_id, f"{topic}-{part}")
        if isinstance(schema, str):
            return Decoded(f"0x{data.hex()}", "hex", error=schema)
        try:
            value = schema.format.decode(data[_FRAME_BYTES:])
        except FormatError as error:
            return Decoded(f"0x{data.hex()}", "hex", schema.subject, schema.id, schema.type, str(error))
        return Decoded(value, _FORMAT_NAMES[schema.type], schema.subject, schema.id, schema.type)

    def describe(self, record: Record) -> dict[str, Any]:
        """A record with its key, value and headers decoded; `docs/json/topics-show.schema.json` has the form."""
        return {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.time,
            **self.decode(record.key, record.topic, "key").to_dict("key"),
            **self.decode(record.value, record.topic, "value").to_dict("value"),
            "headers": [{"name": name, "value": _unframed(value).value if value is not None else None} for name, value in record.headers],
        }

    def encode(self, subject: str, data: Any) -> bytes:
        """Framed bytes of `data` (as `decode` gives it) by the subject's latest schema.

        InputError when the data does not fit or there is no such subject, UnreachableError when the registry does not answer.
        """
        schema = self.latest(subject)
        if schema is None:
            raise InputError(f"the schema registry has no subject {subject}", "register its schema first, as pipelines do")
        try:
            return bytes([_MAGIC]) + struct.pack(">I", schema.id) + schema.format.encode(data)
        except FormatError as error:
            raise InputError(f"subject {subject} ({schema.type}, id {schema.id}): {error}", "correct the data") from error

    def latest(self, subject: str) -> _Schema | None:
        """The subject's latest schema, None without one. Raises what the registry raises, InputError for a schema of no use."""
        if self.registry is None:
            return None
        if subject not in self._latest:
            found = self.registry.latest(subject)
            try:
                self._latest[subject] = self._compiled(subject, found["id"], found) if found else None
            except FormatError as error:
                raise InputError(f"subject {subject}: {error}", "correct its schema") from error
        return self._latest[subject]

    def _schema(self, schema_id: int, expected: str) -> _Schema | str:
        """The schema with this id, or why there is none. Of its subjects the expected one is named, else the first."""
        if self.registry is None:
            return f"names the schema {schema_id}, and the inventory has no schema registry"
        place = (schema_id, expected)
        if place not in self._by_id:
            if self.problem:
                return f"schema {schema_id} can't be asked for: the schema registry does not answer"
            try:
                self._by_id[place] = self._asked(schema_id, expected)
            except UnreachableError as error:
                self.problem = f"{error.message}: what needs its schemas is shown as hexadecimal digits"
                return f"schema {schema_id} can't be asked for: the schema registry does not answer"
            except (FormatError, VeniceError) as error:
                self._by_id[place] = f"schema {schema_id}: {error.message if isinstance(error, VeniceError) else error}"
        return self._by_id[place]

    def _asked(self, schema_id: int, expected: str) -> _Schema | str:
        found = self.registry.by_id(schema_id)
        if found is None:
            return f"the schema registry has no schema with the id {schema_id}"
        subjects = self.registry.subjects_of(schema_id)
        subject = expected if expected in subjects or not subjects else subjects[0]
        return self._compiled(subject, schema_id, found)

    def _compiled(self, subject: str, schema_id: int, found: Mapping[str, Any]) -> _Schema:
        kind = found.get("schemaType") or formats.AVRO
        references: dict[str, str] = {}
        self._collect(found.get("references") or [], references)
        return _Schema(subject, schema_id, kind, formats.compiled(kind, found["schema"], references))

    def _collect(self, references: list[dict[str, Any]], collected: dict[str, str]) -> None:
        """Adds the texts of schemas by the names that others call them, those first that others need."""
        for reference in references:
            if reference["name"] in collected:
                continue
            found = self.registry.version(reference["subject"], reference["version"])
            if found is None:
                raise FormatError(f"it needs {reference['subject']} version {reference['version']}, which the registry does not have")
            self._collect(found.get("references") or [], collected)
            collected[reference["name"]] = found["schema"]


def encode(registry: "Registry", subject: str, data: Any) -> bytes:
    """Framed bytes of `data` by the subject's latest schema; see Codec.encode, which is quicker for many."""
    return Codec(registry).encode(subject, data)


def _unframed(data: bytes) -> Decoded:
    """Objects and arrays of JSON, other text as it is, else hexadecimal digits."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return Decoded(f"0x{data.hex()}", "hex")
    if not all(char.isprintable() or char in "\n\r\t" for char in text):
        return Decoded(f"0x{data.hex()}", "hex")
    if text.lstrip()[:1] in ("{", "["):
        try:
            return Decoded(formats.plain(json.loads(text)), "json")
        except (ValueError, RecursionError):
            pass
    return Decoded(text, "text")


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass
class Span:
    """The offsets of a partition that are to be read: from `start` up to, not with, `end` (None: without end)."""

    start: int
    end: int | None = None


def spans(kafka: "Kafka", topic: str, partition: int | None = None, offset: int | None = None) -> dict[Place, Span]:
    """All that a topic (or one partition of it, from an offset on) has now. VeniceError when there is no such topic or partition."""
    known = [part.id for part in kafka.partitions(topic)]
    if partition is not None and partition not in known:
        raise InputError(f"topic {topic} has no partition {partition}", f"it has {len(known)}: 0 to {len(known) - 1}")
    found = kafka.offsets([(topic, id_) for id_ in known if partition in (None, id_)])
    return {place: Span(max(start, offset or 0), end) for place, (start, end) in found.items()}


def read(kafka: "Kafka", wanted: Mapping[Place, Span]) -> Iterator[Record]:
    """Records of these spans, as they come; each partition's in order.

    UnreachableError when no broker answers, or (but for spans without end) when nobody leads a partition.
    """
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    pending = {place: span for place, span in wanted.items() if span.end is None or span.start < span.end}
    if not pending:
        return
    endless = any(span.end is None for span in pending.values())
    failures: list[str] = []

    def failed(error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            failures.append(error.str())

    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": "venice",  # the library wants one; nothing joins it and nothing is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",  # where records were deleted since the offsets were asked for
            "log_level": 0,
            "error_cb": failed,
        }
    )
    try:
        consumer.assign([TopicPartition(*place, span.start) for place, span in pending.items()])
        heard = time.monotonic()
        while pending:
            messages = consumer.consume(_BATCH, _POLL_SECONDS)
            if messages:
                heard = time.monotonic()
            elif failures:
                raise kafka.unreachable(failures[-1])
            elif not endless and time.monotonic() - heard > STALL_SECONDS:
                names = ", ".join(f"{topic}-{partition}" for topic, partition in pending)
                raise kafka.unreachable(f"nothing came of {names}")
            failures.clear()
            for message in messages:
                place = (message.topic(), message.partition())
                span = pending.get(place)
                if span is None:
                    continue
                if error := message.error():
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise VeniceError(f"Kafka: {place[0]}-{place[1]}: {error.str()}", "`venice logs kafka` shows the brokers' side")
                    ended = span.end is not None
                else:
                    if span.end is None or message.offset() < span.end:
                        yield _record(message)
                    ended = span.end is not None and message.offset() + 1 >= span.end
                if ended:
                    del pending[place]
                    consumer.pause([TopicPartition(*place)])
    finally:
        consumer.close()


def newest(
    kafka: "Kafka", wanted: Mapping[Place, Span], count: int, chosen: Callable[[Record], bool] = lambda record: True
) -> list[Record]:
    """The newest `count` records of these spans for which `chosen` says yes, oldest first.

    Reads backwards in growing steps, each record once: compacted topics have fewer records than offsets.
    """
    found: dict[Place, list[Record]] = {place: [] for place in wanted}
    todo = {place: Span(span.start, span.end) for place, span in wanted.items()}
    window = count
    while todo and count:
        step = {place: Span(max(span.start, span.end - window), span.end) for place, span in todo.items()}
        seen: dict[Place, list[Record]] = {place: [] for place in step}
        for record in read(kafka, step):
            if chosen(record):
                kept = seen[record.topic, record.partition]
                kept.append(record)
                if len(kept) > count:
                    del kept[0]
        for place, part in step.items():
            found[place] = (seen[place] + found[place])[-count:]
            todo[place].end = part.start
            if len(found[place]) >= count or part.start <= todo[place].start:
                del todo[place]
        window *= _WINDOW_GROWTH
    every = [record for records in found.values() for record in records]
    every.sort(key=lambda r: (r.timestamp or 0, r.topic, r.partition, r.offset))
    return every[-count:] if count else []


@dataclass(frozen=True)
class Choice:
    """Which records of a topic are wanted; the options of `venice topics show`.

    Without `from_beginning`, `follow` or `offset`: the newest `count` (10). With one of them: as they come, `count` at most.
    """

    count: int | None = None
    from_beginning: bool = False
    follow: bool = False
    key: str | None = None
    partition: int | None = None
    offset: int | None = None


def selected(kafka: "Kafka", codec: Codec, topic: str, choice: Choice) -> Iterator[Record]:
    """The chosen records of a topic. InputError for a choice that means nothing; see `read` for what else is raised."""
    if choice.offset is not None and choice.partition is None:
        raise InputError("--offset needs --partition", "each partition has offsets of its own")
    if choice.offset is not None and choice.from_beginning:
        raise InputError("--offset and --from-beginning name two beginnings", "give one of them")
    wanted = spans(kafka, topic, choice.partition, choice.offset)
    chosen = has_key(codec, choice.key) if choice.key is not None else lambda record: True
    return _selected(kafka, wanted, choice, chosen)


def _selected(kafka: "Kafka", wanted: dict[Place, Span], choice: Choice, chosen: Callable[[Record], bool]) -> Iterator[Record]:
    begins = choice.from_beginning or choice.offset is not None
    if not begins and not choice.follow:
        yield from newest(kafka, wanted, choice.count or _NEWEST, chosen)
        return
    if choice.follow:
        wanted = {place: Span(span.start if begins else span.end) for place, span in wanted.items()}
    records = read(kafka, wanted)
    yield from itertools.islice((record for record in records if chosen(record)), choice.count)


def has_key(codec: Codec, key: str) -> Callable[[Record], bool]:
    """Whether a record has this key: as text, or as what the registry's schemas make of it (JSON when it is no text)."""

    def answer(record: Record) -> bool:
        if record.key is None:
            return False
        if record.key == key.encode():
            return True
        decoded = codec.decode(record.key, record.topic, "key").value
        return decoded == key or (not isinstance(decoded, str) and _same_json(decoded, key))

    return answer


def _same_json(value: Any, text: str) -> bool:
    try:
        return json.loads(text) == value
    except ValueError:
        return False


def _record(message: Any) -> Record:
    kind, timestamp = message.timestamp()
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        timestamp if kind else None,
        message.key(),
        message.value(),
        tuple(message.headers() or ()),
    )


# ---- sending --------------------------------------------------------------------------------------------------------


class Outgoing(NamedTuple):
    """A record to be sent; `partition` None: by its key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    partition: int | None = None


def producer_of(kafka: "Kafka", transactional_id: str | None = None) -> "Producer":
    """A producer whose records are acknowledged by all in-sync replicas, each written once; with an id, in transactions."""
    from confluent_kafka import Producer

    own: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "acks": "all",
        "enable.idempotence": True,
        # the one of Java's producers: a key goes where theirs puts it
        "partitioner": "murmur2_random",
        "message.timeout.ms": int(ACKNOWLEDGED_SECONDS * 1000),
        # fatal errors are logged at every level, and raised as well
        "logger": _SILENT,
    }
    if transactional_id:
        # librdkafka refuses records that may take longer than their transaction
        limit = int(TRANSACTION_SECONDS * 1000)
        own |= {"transactional.id": transactional_id, "transaction.timeout.ms": limit, "message.timeout.ms": limit}
    return Producer(own)


def deliver(kafka: "Kafka", producer: "Producer", records: Iterable[Outgoing]) -> list[tuple[int, int]]:
    """Send records; the (partition, offset) of each, in order, once all are acknowledged.

    KafkaException when one is not, UnreachableError when nothing is heard of it.
    """
    from confluent_kafka import KafkaException

    records = list(records)
    places: list[tuple[int, int] | None] = [None] * len(records)
    failures: list[Any] = []

    def answered(number: int) -> Callable[[Any, Any], None]:
        def note(error: Any, message: Any) -> None:
            if error:
                failures.append(error)
            else:
                places[number] = (message.partition(), message.offset())

        return note

    try:
        _enqueue(producer, records, answered)
        producer.flush(ACKNOWLEDGED_SECONDS)
    except SystemError as error:
        # how the library raises a fatal error that comes while it calls back
        if isinstance(error.__cause__, KafkaException):
            raise error.__cause__ from None
        raise
    if failures:
        raise KafkaException(failures[0])
    if None in places:
        raise kafka.unreachable(f"{records[places.index(None)].topic}: not acknowledged")
    return places


def _enqueue(producer: "Producer", records: list[Outgoing], answered: Callable[[int], Callable[[Any, Any], None]]) -> None:
    for number, record in enumerate(records):
        where = {} if record.partition is None else {"partition": record.partition}
        while True:
            try:
                producer.produce(
                    record.topic, record.value, record.key, headers=list(record.headers), on_delivery=answered(number), **where
                )
                break
            except BufferError:  # the queue is full: wait for acknowledgements
                producer.poll(_POLL_SECONDS)
        producer.poll(0)
