"""The sink: topics -> Redis. Where it stands is in Redis too, written with the data; Kafka knows nothing of it, and needs not.

GET /health    200 when every topic is followed and all services answer; else 503, and `problems` says what is wrong
"""

import json
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from venice_live import settings as configuration
from venice_live.decode import AwayError, Decoder, Registry, UndecodableError
from venice_live.settings import Settings, log
from venice_live.store import Record, Store

LOOK_SECONDS = 5.0
ASK_SECONDS = 5.0
STUCK_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
BATCH_RECORDS, BATCH_BYTES = 500, 1 << 20
_GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
_OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class StoppedError(Exception):
    """The process was told to end."""


class AheadError(Exception):
    """Redis has records that Kafka has lost."""


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1))


@dataclass
class Partition:
    """A partition that is followed. `last`: the offset that Redis accounts for; `low`: the one before the first that Kafka has.

    `held`: records that wait, until `not_before`, for a registry that is away.
    """

    last: int
    low: int
    failures: int = 0
    not_before: float = 0.0
    held: list[Any] = field(default_factory=list)


@dataclass
class Topic:
    id: str
    partitions: dict[int, Partition] = field(default_factory=dict)


class Sink:
    """Follows topics. One thread does the work; `report` may be asked from others."""

    def __init__(self, topics: list[str], consumer: Consumer, admin: AdminClient, store: Store, decoder: Decoder):
        self.wanted = topics
        self.consumer, self.admin, self.store, self.decoder = consumer, admin, store, decoder
        self.topics: dict[str, Topic] = {}
        self.problems: dict[str, str] = {}
        self.applied: dict[str, int] = defaultdict(int)
        self.skipped: dict[str, int] = defaultdict(int)
        self.stopped = threading.Event()
        self.beat = time.monotonic()
        self.next_look = 0.0
        self.tidied = False

    def run(self) -> None:
        """Works until `stopped` is set."""
        try:
            while not self.stopped.is_set():
                self.step()
        except StoppedError:
            pass
        finally:
            self.consumer.close()

    def step(self) -> None:
        """Looks at the topics when it is time, then takes what Kafka has and writes it."""
        self.beat = time.monotonic()
        if self.beat >= self.next_look:
            self.next_look = self.beat + LOOK_SECONDS
            self.look()
        self.retry_held()
        if not any(topic.partitions for topic in self.topics.values()):
            self.stopped.wait(0.5)  # nothing to consume: librdkafka would return at once
            return
        batches: dict[tuple[str, int], list[Any]] = defaultdict(list)
        for message in self.consumer.consume(BATCH_RECORDS, 0.5):
            if message.error():
                self.failed(message)
            else:
                batches[message.topic(), message.partition()].append(message)
        for (topic, partition), messages in batches.items():
            self.take(topic, partition, messages)

    # ---- which partitions -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Begins what has appeared (topics, partitions), ends what has gone. A topic that was made anew is another one."""
        if not self.tidied:
            for topic in self.persist(lambda: self.store.forget_others(self.wanted)):
                log(f"{topic}: no longer followed, removed from Redis")
            self.tidied = True
        problems = {}
        asked = self.admin.describe_topics(TopicCollection(self.wanted), request_timeout=ASK_SECONDS) if self.wanted else {}
        for name, future in asked.items():
            try:
                found = future.result()
                # as Kafka's own tools write it, and as it can stand in an address
                topic_id = str(found.topic_id).replace("+", "-").replace("/", "_")
                self.follow(name, topic_id, [p.id for p in found.partitions])
            except AheadError as error:
                problems[name] = str(error)
            except KafkaException as error:
                if error.args[0].code() in _GONE:
                    self.forget(name)
                    problems[name] = f"topic {name} does not exist"
                else:
                    problems["kafka"] = f"Kafka: {error.args[0].str()}"
        for what, text in problems.items():
            if self.problems.get(what) != text:
                log(text)
        waiting = {what: text for what, text in self.problems.items() if what == "registry"}
        self.problems = problems | waiting

    def follow(self, name: str, topic_id: str, numbers: list[int]) -> None:
        """Reads these partitions of a topic from where Redis is. KafkaException when a broker does not answer; AheadError."""
        topic = self.topics.get(name)
        if topic and topic.id != topic_id:
            self.forget(name)
        # also asked when nothing is new: Redis may have been emptied while no record came
        offsets = self.persist(lambda: self.store.begin(name, topic_id))
        topic = self.topics.get(name)
        if topic and any(offsets.get(n, -1) != partition.last for n, partition in topic.partitions.items()):
            log(f"{name}: Redis is not where it was any more: going on from where it is")
            self.begin_again(name)
        topic = self.topics.setdefault(name, Topic(topic_id))
        added = sorted(set(numbers) - set(topic.partitions))
        if not added:
            return
        lows, highs = self.before(OffsetSpec.earliest(), name, added), self.before(OffsetSpec.latest(), name, added)
        for number in added:
            if offsets.get(number, -1) > highs[number]:
                # Kafka would refuse the next offset, again and again; and what clients have of the lost ones no other offset can undo
                raise AheadError(
                    f"topic {name}: Redis has partition {number} up to offset {offsets[number]}, Kafka only up to {highs[number]}: "
                    f"it has lost records; `redis-cli hset offsets:{name} id other` fills Redis again"
                )
        for number, low in lows.items():
            last = offsets.get(number, -1)
            topic.partitions[number] = Partition(last, low)
            start = max(last, low) + 1
            self.consumer.incremental_assign([TopicPartition(name, number, start)])
            # one that waited for the registry when it was unassigned is still paused: librdkafka remembers
            self.consumer.resume([TopicPartition(name, number)])
            log(f"{name} {number}: from offset {start}")

    def before(self, which: OffsetSpec, name: str, numbers: list[int]) -> dict[int, int]:
        """Of each partition the offset before the one that Kafka names."""
        asked = self.admin.list_offsets({TopicPartition(name, number): which for number in numbers}, request_timeout=ASK_SECONDS)
        return {place.partition: future.result().offset - 1 for place, future in asked.items()}

    def forget(self, name: str) -> None:
        if topic := self.topics.pop(name, None):
            self.consumer.incremental_unassign([TopicPartition(name, number) for number in topic.partitions])
            log(f"{name}: gone, or made anew")

    def begin_again(self, name: str) -> None:
        """Asks Redis where this topic is, and goes on from there, at the next step."""
        if topic := self.topics.pop(name, None):
            self.consumer.incremental_unassign([TopicPartition(name, number) for number in topic.partitions])
        self.next_look = 0.0

    def failed(self, message: Any) -> None:
        """What to do about an error that came instead of a record."""
        error = message.error()
        if error.code() in _GONE:
            self.next_look = 0.0
        elif error.code() in _OUT_OF_RANGE:
            # Kafka's retention was faster, or the topic is another one by now
            log(f"{message.topic()} {message.partition()}: {error.str()}")
            self.begin_again(message.topic())
        else:
            log(f"Kafka: {error.str()}")  # librdkafka tries again by itself

    # ---- records ---------------------------------------------------------------------------------------------------

    def take(self, name: str, number: int, messages: list[Any]) -> None:
        """Writes what follows; what is there already is left out."""
        topic = self.topics.get(name)
        partition = topic.partitions.get(number) if topic else None
        if partition is None:
            return  # it was unassigned while these were on their way
        batch: list[Record] = []
        size = 0
        if partition.held:
            partition.held += messages
            return
        for position, message in enumerate(messages):
            if message.offset() <= partition.last:
                continue
            try:
                batch.append(self.record(message))
            except AwayError as error:
                if not batch or self.write(name, number, batch):
                    self.hold(name, number, partition, messages[position:], str(error))
                return
            partition.failures = 0
            size += len(message.value() or b"")
            if size > BATCH_BYTES:
                if not self.write(name, number, batch):
                    return
                batch, size = [], 0
        if batch:
            self.write(name, number, batch)

    def record(self, message: Any) -> Record:
        """A message as it is written. AwayError when the registry can't be asked now."""
        try:
            key, value = self.decoder.key(message.key()), self.decoder.value(message.value())
        except UndecodableError as error:
            self.skipped[message.topic()] += 1
            log(f"{message.topic()} {message.partition()} offset {message.offset()}: skipped: {error}")
            return Record(message.offset(), skipped=True)
        return Record(message.offset(), key, value, message.timestamp()[1])

    def write(self, name: str, number: int, batch: list[Record]) -> bool:
        """Writes records of a partition, however long Redis is away. False when Redis was not where it was thought to be."""
        topic = self.topics[name]
        partition = topic.partitions[number]
        if not self.persist(lambda: self.store.apply(name, topic.id, number, partition.last, partition.low, batch)):
            log(f"{name} {number}: Redis is not at offset {partition.last} any more")
            self.begin_again(name)
            return False
        partition.last = batch[-1].offset
        self.applied[name] += len(batch)
        return True

    def hold(self, name: str, number: int, partition: Partition, messages: list[Any], why: str) -> None:
        """The registry is away: this partition waits, longer each time; the others go on."""
        partition.failures += 1
        partition.not_before = time.monotonic() + pause_after(partition.failures)
        partition.held = messages
        self.consumer.pause([TopicPartition(name, number)])
        text = f"registry: {why}"
        if self.problems.get("registry") != text:
            log(f"{name} {number} offset {messages[0].offset()}: waiting for the {text}")
        self.problems["registry"] = text

    def retry_held(self) -> None:
        """Tries again what waits for the registry and whose time has come."""
        held = [(n, number, p) for n, topic in self.topics.items() for number, p in topic.partitions.items() if p.held]
        for name, number, partition in held:
            if time.monotonic() >= partition.not_before:
                messages, partition.held = partition.held, []
                self.take(name, number, messages)
                if not partition.held and name in self.topics:
                    self.consumer.resume([TopicPartition(name, number)])
        if not any(p.held for topic in self.topics.values() for p in topic.partitions.values()):
            self.problems.pop("registry", None)

    def persist(self, act: Callable[[], Any]) -> Any:
        """The result of something done in Redis, tried until it works; StoppedError when the process is to end."""
        failures = 0
        while True:
            try:
                result = act()
            except redis.RedisError as error:
                failures += 1
                text = f"Redis: {error}"
                if self.problems.get("redis") != text:
                    log(text)
                self.problems["redis"] = text
                self.beat = time.monotonic()
                if self.stopped.wait(pause_after(failures)):
                    raise StoppedError from error
                continue
            if failures:
                log(f"Redis answers again, after {failures} failures")
            self.problems.pop("redis", None)
            return result

    # ---- what is asked from outside -----------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """How it is; `healthy` only when every wanted topic is followed and all services answer."""
        problems = list(self.problems.values())
        if time.monotonic() - self.beat > STUCK_SECONDS:
            problems.append("the sink is stuck")
        topics = dict(self.topics)
        problems += [f"topic {name} is not followed yet" for name in self.wanted if name not in topics and name not in self.problems]
        return {
            "healthy": not problems,
            "problems": problems,
            "topics": {
                name: {
                    "partitions": {str(number): partition.last for number, partition in sorted(topic.partitions.items())},
                    "applied": self.applied[name],
                    "skipped": self.skipped[name],
                }
                for name, topic in topics.items()
            },
        }


def serve(sink: Sink, port: int) -> None:
    """Answers /health in threads of their own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            report = sink.report()
            data = json.dumps(report).encode()
            self.send_response(404 if self.path != "/health" else 200 if report["healthy"] else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Health checks ask every few seconds: no access log."""

    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104 the operator asks it from outside
    threading.Thread(target=server.serve_forever, daemon=True).start()


def build(settings: Settings) -> Sink:
    common = {"bootstrap.servers": settings.bootstrap_servers, "client.id": "venice-live-sink"}
    consumer = Consumer(
        {
            **common,
            # asked for by the client; nothing is ever committed under it
            "group.id": "venice-live-sink",
            "enable.auto.commit": False,
            # an offset that Kafka no longer has is looked at, not jumped over in silence
            "auto.offset.reset": "error",
            "queued.max.messages.kbytes": 8192,
            "reconnect.backoff.max.ms": int(LONGEST_PAUSE * 1000),
        },
        logger=_quiet(),
    )
    store = Store(settings.redis, settings.stream_length)
    return Sink(settings.topics, consumer, AdminClient(common, logger=_quiet()), store, Decoder(Registry(settings.registries)))


def _quiet() -> Any:
    """A logger for librdkafka, whose lines about brokers that are away repeat what the sink says itself."""
    import logging

    logger = logging.getLogger("librdkafka")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def main() -> None:
    settings = configuration.load()
    sink = build(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sink.stopped.set())
    serve(sink, settings.port)
    log(f"following {', '.join(settings.topics) or 'no topics: live_topics is empty'}; /health on port {settings.port}")
    sink.run()
