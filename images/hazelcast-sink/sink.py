"""Keeps Hazelcast's maps in step with compacted topics: a record sets its key's value, a tombstone removes the key.

How far a map is lies in Hazelcast itself, written after the records that it covers. So what was read and what is known of it are
lost together or not at all, and a map is filled again from its topic's start when

- nothing is known of it: it is new, or all members were restarted;
- some of the memory was lost: more members died at once than there are backups. Each of Hazelcast's partitions holds a mark, and
  is lost with its mark;
- the topic is another one of the same name, or no longer has the offset at which to go on.

What was decoded is stored as JSON, in the forms that `venice topics show` shows: bytes as `0x` and hexadecimal digits, decimals as
their digits, timestamps as ISO 8601. A record that can't be decoded is logged, counted and skipped: its key stays as it was.

Environment: CLUSTER, MEMBERS and BOOTSTRAP_SERVERS (host:port, comma-separated), SCHEMA_REGISTRY_URLS (comma-separated),
MAPS ([{"topic": ..., "map": ...}] as JSON), PORT.

    GET /health     200 when members and brokers answered lately and all partitions are read
    GET /maps       [{map, topic, partitions, in_step, written, removed, skipped}]
"""

import datetime
import io
import json
import math
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OFFSETS, MARKS = "venice.offsets", "venice.marks"
BATCH = 500
POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0
HEALTHY_SECONDS = 30.0
ANSWER_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0


class BadRecordError(Exception):
    """Why a record can't be decoded."""


class AwayError(Exception):
    """What does not answer now and may in a moment."""


class AgainError(Exception):
    """Why to begin again from what Hazelcast holds."""


def log(text: str) -> None:
    """One line of the container's log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, flush=True)


# ---- what records hold ------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A decoded value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray):
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


class Decoder:
    """Bytes to data: by the registry's schema when a Confluent serializer framed them, else JSON, else text."""

    def __init__(self, registries: Iterable[str]):
        self.registries = [url for url in registries if url]
        self._schemas: dict[int, Any] = {}

    def key(self, data: bytes | None) -> str:
        """The key in the map: text; of a key that is no plain text, its JSON."""
        if data is None:
            raise BadRecordError("the record has no key")
        if data[:1] != b"\0":
            return _text(data, "key")
        found = self._framed(data)
        text = _json(found, sort_keys=True)
        return found if isinstance(found, str) else text

    def value(self, data: bytes) -> str:
        """The value in the map: the text of its JSON. BadRecordError, or AwayError while no registry answers."""
        if data[:1] == b"\0":
            found = self._framed(data)
        else:
            text = _text(data, "value")
            try:
                found = json.loads(text, parse_constant=str)
            except (ValueError, RecursionError):
                found = text
        return _json(found, separators=(",", ":"))

    def _framed(self, data: bytes) -> Any:
        if len(data) < 5:
            raise BadRecordError("a zero byte begins a schema's id, of which there is too little")
        number, content = int.from_bytes(data[1:5], "big"), data[5:]
        if number not in self._schemas:
            self._schemas[number] = self._parsed(number)
        schema = self._schemas[number]
        try:
            if schema is None:
                return json.loads(content, parse_constant=str)
            import fastavro

            stream = io.BytesIO(content)
            found = plain(fastavro.schemaless_reader(stream, schema))
        except Exception as error:  # what fastavro raises for bytes that are no Avro is of no one kind
            raise BadRecordError(f"does not fit schema {number}: {error or type(error).__name__}") from error
        if stream.tell() < len(content):
            raise BadRecordError(f"does not fit schema {number}: bytes are left over")
        return found

    def _parsed(self, number: int) -> Any:
        """An Avro schema, ready to read with; None for a JSON Schema, which is not needed to read."""
        answer = self._ask(f"/schemas/ids/{number}")
        kind = answer.get("schemaType", "AVRO")
        if kind == "JSON":
            return None
        if kind != "AVRO":
            raise BadRecordError(f"schema {number} is {kind}: only Avro, JSON Schema, JSON and text are decoded")
        import fastavro

        named: dict[str, Any] = {}
        try:
            for text in self._references(answer):
                fastavro.parse_schema(json.loads(text), named_schemas=named)
            return fastavro.parse_schema(json.loads(answer["schema"]), named_schemas=named)
        except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, ValueError, KeyError, TypeError) as error:
            raise BadRecordError(f"schema {number} can't be used: {error}") from error

    def _references(self, answer: Mapping[str, Any]) -> list[str]:
        """The schemas that one names, each after those that it names itself."""
        found: list[str] = []
        for reference in answer.get("references") or []:
            other = self._ask(f"/subjects/{urllib.request.quote(reference['subject'], safe='')}/versions/{reference['version']}")
            found += [text for text in [*self._references(other), other["schema"]] if text not in found]
        return found

    def _ask(self, path: str) -> dict:
        """JSON from the first registry that answers; the others are asked, too, before one is said to lack something."""
        lacking, failures = 0, []
        for url in self.registries:
            try:
                with urllib.request.urlopen(url + path, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 (an address of Venice's own)
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                lacking += error.code == 404
                failures.append(f"{url}: {error}")
            except (OSError, ValueError) as error:
                failures.append(f"{url}: {getattr(error, 'reason', error)}")
        if lacking == len(self.registries):
            raise BadRecordError(f"no registry has {path.strip('/')}")
        raise AwayError(f"schema registry: {'; '.join(failures)}")


def _json(found: Any, **form: Any) -> str:
    """JSON that Hazelcast can store: what it refuses would be sent again for ever."""
    try:
        text = json.dumps(plain(found), ensure_ascii=False, **form)
        text.encode()  # JSON may hold half a surrogate pair, which no UTF-8 can
        return text
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"it has no form as JSON: {error}") from error


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadRecordError(f"the {what} is neither framed by a Confluent serializer nor UTF-8 text") from error


# ---- what is kept in step ---------------------------------------------------------------------------------------------


@dataclass
class Feed:
    """A map and the topic that fills it. `offsets`: the next one to read, by partition; `kept`: how Hazelcast has this.

    `answered`: the partitions of which a record, or that there is none, has come since they were assigned.
    """

    topic: str
    map: str
    topic_id: str = ""
    partitions: int = 0
    offsets: dict[int, int] = field(default_factory=dict)
    kept: str | None = None
    answered: set[int] = field(default_factory=set)
    at_end: set[int] = field(default_factory=set)
    written: int = 0
    removed: int = 0
    skipped: int = 0

    def text(self) -> str:
        """What is written to the map of offsets."""
        offsets = {str(partition): offset for partition, offset in sorted(self.offsets.items())}
        return json.dumps({"topic": self.topic, "topic_id": self.topic_id, "offsets": offsets})

    def goes_on(self, kept: str | None) -> bool:
        """Take over what was kept; False when it is of no use: there is none, or it is of another topic."""
        known = json.loads(kept) if kept else {}
        if (known.get("topic"), known.get("topic_id")) != (self.topic, self.topic_id):
            return False
        self.offsets = {int(partition): offset for partition, offset in known["offsets"].items()}
        self.kept = kept
        return True

    def shown(self) -> dict[str, Any]:
        """One item of /maps."""
        return {
            "map": self.map,
            "topic": self.topic,
            "partitions": self.partitions,
            "in_step": bool(self.partitions) and len(self.at_end) == self.partitions,
            "written": self.written,
            "removed": self.removed,
            "skipped": self.skipped,
        }


class Store:
    """What is asked of Hazelcast; `client` is its Python client. All calls return when it is done."""

    def __init__(self, client: Any):
        from hazelcast.core import HazelcastJsonValue

        self._json = HazelcastJsonValue
        self.client = client
        self.offsets, self.marks = self._map(OFFSETS), self._map(MARKS)

    def _map(self, name: str) -> Any:
        return self.client.get_map(name).blocking()

    def partitions(self) -> int:
        """How many partitions the cluster has: known once the first question was answered."""
        self.marks.size()
        if count := self.client.partition_service.get_partition_count():
            return count
        raise AwayError("Hazelcast has not shared out its partitions yet")

    def lost(self) -> int:
        """How many of Hazelcast's partitions are new since they were marked, all at the first start."""
        return self.partitions() - self.marks.size()

    def forget(self) -> None:
        """Nothing is known of any map, and what will be is marked. In this order: a mark must not vouch for what was before it."""
        self.offsets.clear()
        self.marks.clear()
        missing, number, found = set(range(self.partitions())), 0, {}
        while missing:
            key = f"mark-{number}"
            partition = self.client.partition_service.get_partition_id(key)
            if partition in missing:
                missing.remove(partition)
                found[key] = True
            number += 1
        self.marks.put_all(found)

    def begin(self, feed: Feed) -> bool:
        """Ready to go on where the map stands; True when that is the start, with the map emptied."""
        if feed.goes_on(self.offsets.get(feed.map)):
            return False
        self._map(feed.map).clear()
        feed.offsets, feed.kept = {}, feed.text()
        self.offsets.put(feed.map, feed.kept)
        return True

    def write(self, feed: Feed, changes: Mapping[str, str | None]) -> None:
        """Key -> JSON text, None removes it; then the offsets after it."""
        target = self._map(feed.map)
        if values := {key: self._json(text) for key, text in changes.items() if text is not None}:
            target.put_all(values)
        for removal in [self.client.get_map(feed.map).delete(key) for key, text in changes.items() if text is None]:
            removal.result()
        text = feed.text()
        if text != feed.kept and not self.offsets.replace_if_same(feed.map, feed.kept, text):
            raise AgainError(f"{feed.map}: its offsets in Hazelcast are not those that were written last")
        feed.kept = text

    def check(self, feeds: Iterable[Feed]) -> None:
        """AgainError when Hazelcast no longer holds what was written to it."""
        if self.lost():
            raise AgainError("Hazelcast has lost memory")
        feeds = list(feeds)
        kept = self.offsets.get_all([feed.map for feed in feeds])
        for feed in feeds:
            if kept.get(feed.map) != feed.kept:
                raise AgainError(f"{feed.map}: its offsets in Hazelcast are not those that were written last")

    def restart(self, feed: Feed) -> None:
        """The map will be filled from its topic's start."""
        self.offsets.delete(feed.map)


class Source:
    """What is asked of Kafka."""

    def __init__(self, bootstrap_servers: str):
        from confluent_kafka import Consumer
        from confluent_kafka.admin import AdminClient

        common = {"bootstrap.servers": bootstrap_servers, "client.id": "hazelcast-sink", "log_level": 3}
        self.admin = AdminClient(common)
        self.consumer = Consumer(
            common
            | {
                # assigned by hand and never committed: the offsets are in Hazelcast
                "group.id": "hazelcast-sink",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "queued.max.messages.kbytes": 8192,
                "fetch.message.max.bytes": 262144,
            }
        )

    def look(self, feeds: Iterable[Feed]) -> dict[str, tuple[str, int]]:
        """Topic -> its id and number of partitions, of those topics that there are."""
        from confluent_kafka import KafkaError, KafkaException, TopicCollection

        names = [feed.topic for feed in feeds]
        found = {}
        for name, future in self.admin.describe_topics(TopicCollection(names), request_timeout=ANSWER_SECONDS).items():
            try:
                description = future.result(ANSWER_SECONDS + 5)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                continue
            found[name] = (str(description.topic_id), len(description.partitions))
        return found

    def assign(self, feeds: Iterable[Feed]) -> None:
        """Read all partitions from where their maps stand."""
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        self.consumer.assign(
            [
                TopicPartition(feed.topic, partition, feed.offsets.get(partition, OFFSET_BEGINNING))
                for feed in feeds
                for partition in range(feed.partitions)
            ]
        )

    def read(self) -> list[Any]:
        """What has come, in order."""
        return self.consumer.consume(BATCH, POLL_SECONDS)

    def close(self) -> None:
        """Leave no connection."""
        self.consumer.close()


# ---- the program ------------------------------------------------------------------------------------------------------


class Sink:
    """Reads topics and writes maps until told to stop; begins again, with growing pauses, whenever something is away."""

    def __init__(self, maps: Iterable[Mapping[str, str]], decoder: Decoder):
        self.feeds = {item["topic"]: Feed(item["topic"], item["map"]) for item in maps}
        self.decoder = decoder
        self.stopping = threading.Event()
        self.looked = 0.0
        self.says = "starting"
        self.pause = FIRST_PAUSE

    def stop(self, *_: object) -> None:
        """Finish the batch and end (SIGTERM, SIGINT)."""
        self.stopping.set()

    @property
    def healthy(self) -> bool:
        """Members and brokers answered lately, and all partitions of the topics that there are are read."""
        return bool(self.looked) and time.monotonic() - self.looked < HEALTHY_SECONDS

    def run(self, connect: Any, source: Any) -> None:
        """`connect` makes a Store that is a client's, `source` a Source; both are made anew after each failure."""
        from confluent_kafka import KafkaException
        from hazelcast.errors import HazelcastError

        while not self.stopping.is_set():
            store = reader = None
            try:
                store = connect()
                reader = source()
                self.follow(store, reader)
            except AgainError as error:
                self.says = f"begins again: {error}"
            except (AwayError, HazelcastError, KafkaException, OSError) as error:
                self.says = f"waits {self.pause:.0f} s: {type(error).__name__}: {error}"
            finally:
                for feed in self.feeds.values():
                    feed.answered.clear()
                    feed.at_end.clear()
                if reader:
                    reader.close()
                if store:
                    store.client.shutdown()
            if not self.stopping.is_set():
                log(self.says)
                self.stopping.wait(self.pause)
                self.pause = min(self.pause * 2, LONGEST_PAUSE)
        log("stopped")

    def follow(self, store: Any, source: Any) -> None:
        """Keep the maps in step until something is not as it was."""
        if lost := store.lost():
            log(f"{lost} of Hazelcast's {store.partitions()} partitions are new: all maps are filled from their topics' start")
            store.forget()
        there = source.look(self.feeds.values())
        feeds = [self.feeds[topic] for topic in there]
        for feed in feeds:
            feed.topic_id, feed.partitions = there[feed.topic]
            begins = store.begin(feed)
            log(f"{feed.topic} -> {feed.map}: {'filled from the start' if begins else f'goes on at {feed.offsets}'}")
        for feed in self.feeds.values():
            if feed not in feeds:
                log(f"{feed.topic} -> {feed.map}: there is no such topic yet")
        source.assign(feeds)
        self.says = f"reads {', '.join(sorted(there)) or 'nothing yet'}"
        checked = 0.0
        while not self.stopping.is_set():
            self.handle(store, source.read())
            if time.monotonic() - checked >= LOOK_SECONDS:
                store.check(feeds)
                if source.look(self.feeds.values()) != there:
                    raise AgainError("topics or their partitions are not those that are read")
                checked = time.monotonic()
                # not before: a record that can't be written ends this again, and neither health nor pauses may begin anew each time
                if all(len(feed.answered) == feed.partitions for feed in feeds):
                    self.looked, self.pause = checked, FIRST_PAUSE

    def handle(self, store: Any, messages: Iterable[Any]) -> None:
        """Write a batch: of each key only its last record."""
        from confluent_kafka import KafkaError, KafkaException

        changes: dict[str, dict[str, str | None]] = {}
        skipped: list[tuple[Feed, str]] = []
        for message in messages:
            feed, error = self.feeds.get(message.topic()), message.error()
            if error is not None:
                if feed is None:
                    raise KafkaException(error)
                if error.code() == KafkaError._PARTITION_EOF:
                    feed.answered.add(message.partition())
                    feed.at_end.add(message.partition())
                    continue
                if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    store.restart(feed)
                    raise AgainError(f"{feed.topic}-{message.partition()} no longer has offset {feed.offsets.get(message.partition())}")
                raise KafkaException(error)
            feed.answered.add(message.partition())
            feed.at_end.discard(message.partition())
            batch = changes.setdefault(feed.topic, {})
            try:
                key = self.decoder.key(message.key())
                batch[key] = None if message.value() is None else self.decoder.value(message.value())
            except BadRecordError as error:
                skipped.append((feed, f"{feed.topic}-{message.partition()} offset {message.offset()}: {str(error)[:200]}"))
            feed.offsets[message.partition()] = message.offset() + 1
        for topic, batch in changes.items():
            feed = self.feeds[topic]
            store.write(feed, batch)
            removed = sum(text is None for text in batch.values())
            feed.written, feed.removed = feed.written + len(batch) - removed, feed.removed + removed
        for feed, what in skipped:  # only now: a batch that can't be written is read again
            feed.skipped += 1
            log(f"skipped {what}")


def connected(cluster: str, members: list[str]) -> Store:
    """A Store with a client that is connected. HazelcastError when no member answers in time."""
    import hazelcast

    client = hazelcast.HazelcastClient(
        cluster_name=cluster,
        cluster_members=members,
        # beyond that a client is made anew, with this program's own pauses
        cluster_connect_timeout=ANSWER_SECONDS,
        invocation_timeout=2 * ANSWER_SECONDS,
        # all writes may be repeated
        redo_operation=True,
    )
    try:
        return Store(client)
    except Exception:
        client.shutdown()  # else it would go on trying beside its successors
        raise


class Handler(BaseHTTPRequestHandler):
    """What others may ask."""

    sink: Sink

    def do_GET(self) -> None:
        """See the module's description."""
        if self.path == "/health":
            self.answer(200 if self.sink.healthy else 503, {"healthy": self.sink.healthy, "says": self.sink.says})
        elif self.path == "/maps":
            self.answer(200, [feed.shown() for feed in self.sink.feeds.values()])
        else:
            self.answer(404, {"message": "there is /health and /maps"})

    def answer(self, status: int, body: object) -> None:
        """A JSON answer."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Health checks ask every few seconds: no access log."""


def main() -> int:
    """Serve /health and /maps, and run until stopped."""
    sink = Sink(json.loads(os.environ["MAPS"]), Decoder(os.environ["SCHEMA_REGISTRY_URLS"].split(",")))
    signal.signal(signal.SIGTERM, sink.stop)
    signal.signal(signal.SIGINT, sink.stop)
    Handler.sink = sink
    server = ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler)  # noqa: S104 the operator asks it from outside
    threading.Thread(target=server.serve_forever, daemon=True).start()
    members = os.environ["MEMBERS"].split(",")
    sink.run(lambda: connected(os.environ["CLUSTER"], members), lambda: Source(os.environ["BOOTSTRAP_SERVERS"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
