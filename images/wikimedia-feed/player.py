"""Plays a recorded feed of changes to wikis into a topic, over and over, in the rhythm in which it was recorded.

Which change comes when follows from the clock alone: the recording's laps are counted from 1970 on, each change has a number that
is larger than that of the one before, and the same number always is the same change with the same ids and the same time. So after a
restart the topic itself says what is still to be sent: nothing is sent twice, and what happened meanwhile follows, up to one
lap back. A topic that is empty begins with the last minutes.

Key: the wiki. Value: Avro, by the schema that the pipeline registered. Environment: BOOTSTRAP_SERVERS, SCHEMA_REGISTRY_URL,
TOPIC, SPEED (1; 10 plays ten times as fast), HISTORY_SECONDS (300).
`player.py health` exits 0 when a record was acknowledged lately.
"""

import bisect
import gzip
import json
import math
import os
import signal
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

RECORDING = Path(__file__).with_name("recentchange.jsonl.gz")
# says when a record was acknowledged
HEALTHY = Path("/tmp/healthy")  # noqa: S108
HEALTHY_SECONDS = 30.0
RETRY_SECONDS = 1.0
MINUTE_MS = 60_000
# so many of each partition's last records are looked at for what was sent
LOOK_BACK = 2000
# numbers of revisions in different laps are so far apart
REVISIONS = 1_000_000


class Recording:
    """The recorded changes, and which of them comes when."""

    def __init__(self, events: list[dict], speed: float):
        times = [int(datetime.fromisoformat(event["meta"]["dt"]).timestamp() * 1000) for event in events]
        begin = times[0] // MINUTE_MS * MINUTE_MS
        self.events, self.speed = events, speed
        self.offsets = [at - begin for at in times]
        self.length = -(-(self.offsets[-1] + 1) // MINUTE_MS) * MINUTE_MS

    @classmethod
    def read(cls, path: Path, speed: float) -> "Recording":
        """From a gzipped file of one JSON text per line, in the order of their times."""
        with gzip.open(path, "rt") as lines:
            return cls([json.loads(line) for line in lines], speed)

    def time(self, number: int) -> int:
        """When the change of this number happens, in ms since 1970."""
        lap, place = divmod(number, len(self.events))
        return int((lap * self.length + self.offsets[place]) / self.speed)

    def next(self, at: float) -> int:
        """The number of the first change that happens at a time (ms since 1970) or later."""
        lap, rest = divmod(at * self.speed, self.length)
        return int(lap) * len(self.events) + bisect.bisect_left(self.offsets, rest)

    def change(self, number: int) -> dict:
        """The change of this number as the topic's schema has it."""
        lap, place = divmod(number, len(self.events))
        event, at = self.events[place], self.time(number)
        meta = event["meta"]
        moved = {key: str(uuid.uuid5(uuid.UUID(meta[key]), str(lap))) for key in ("id", "request_id")}
        revision = {key: value + lap * REVISIONS for key, value in event["revision"].items()} if "revision" in event else None
        return event | {"id": number, "meta": meta | moved | {"dt": at}, "timestamp": at // 1000, "revision": revision}


def start(recording: Recording, sent: Iterable[Iterable[int]], now: float, history_ms: float) -> tuple[int, set[int]]:
    """The number to begin with, and those after it that were sent already.

    `sent`: the last numbers in each partition of the topic. Each partition is in order, and may lack what others already have.
    """
    # numbers that are yet to come are another speed's
    coming = recording.next(now)
    partitions = [[number for number in numbers if number < coming] for numbers in sent]
    known = {number for numbers in partitions for number in numbers}
    if not known:
        return recording.next(now - history_ms), known
    begin = max(
        min(numbers[-1] for numbers in partitions if numbers),
        max(known) - LOOK_BACK,
        coming - len(recording.events),
    )
    return begin, {number for number in known if number >= begin}


class Player:
    """Sends each change when its time has come, until told to stop."""

    def __init__(self, bootstrap_servers: str, registry_url: str, topic: str, recording: Recording):
        self.bootstrap_servers, self.registry_url, self.topic, self.recording = bootstrap_servers, registry_url, topic, recording
        self.stopping = threading.Event()
        self.acknowledged = 0
        self.healthy_at = 0.0

    def stop(self, *_: object) -> None:
        """Flush what was sent and end (SIGTERM, SIGINT)."""
        self.stopping.set()

    def patiently(self, what: str, call: Callable[[], Any]) -> Any:
        """The call's answer, once it has one; None when stopped."""
        while not self.stopping.is_set():
            try:
                return call()
            except Exception as error:  # whatever is wrong, it may be right in a moment
                print(f"waiting for {what}: {error}", flush=True)
                self.stopping.wait(RETRY_SECONDS)
        return None

    def registry(self) -> tuple[Any, Any]:
        """Serializer with the registered schema, and deserializer."""
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer

        registry = SchemaRegistryClient({"url": self.registry_url, "timeout": 5})
        schema = registry.get_latest_version(f"{self.topic}-value").schema
        serializer = AvroSerializer(registry, schema, conf={"auto.register.schemas": False, "use.latest.version": True})
        return serializer, AvroDeserializer(registry)

    def sent(self, deserialize: Any) -> list[list[int]]:
        """The numbers of the last records in each partition of the topic."""
        from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
        from confluent_kafka.schema_registry import SchemaRegistryError
        from confluent_kafka.serialization import SerializationError

        # what a record of somebody else's raises, which has no number; all else is the registry's, and tried again
        not_ours = (SerializationError, EOFError, IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error)

        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": "wikimedia-feed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )
        try:
            found: dict[int, list[int]] = {p: [] for p in consumer.list_topics(self.topic, 10).topics[self.topic].partitions}
            if not found:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
            places = []
            for partition in found:
                low, high = consumer.get_watermark_offsets(TopicPartition(self.topic, partition), 10)
                places.append(TopicPartition(self.topic, partition, max(low, high - LOOK_BACK)))
            consumer.assign(places)
            left = set(found)
            while left and not self.stopping.is_set():
                if (message := consumer.poll(0.5)) is None:
                    continue
                if (error := message.error()) is None:
                    try:
                        found[message.partition()].append(deserialize(message.value(), None)["id"])
                    except SchemaRegistryError as error:
                        if error.http_status_code != HTTPStatus.NOT_FOUND:
                            raise
                    except not_ours:
                        pass
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                else:
                    raise KafkaException(error)
            return list(found.values())
        finally:
            consumer.close()

    def run(self, history_ms: float) -> None:
        """Play until stopped."""
        from confluent_kafka import Producer
        from confluent_kafka.serialization import MessageField, SerializationContext

        if (codecs := self.patiently(f"schema {self.topic}-value at {self.registry_url}", self.registry)) is None:
            return
        serialize, deserialize = codecs
        if (sent := self.patiently(f"topic {self.topic}", lambda: self.sent(deserialize))) is None:
            return
        number, already = start(self.recording, sent, time.time() * 1000, history_ms)
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                # sent however late, and then in order: only the queue's size bounds what waits
                "message.timeout.ms": 0,
                "linger.ms": 5,
                "compression.type": "lz4",
                "client.id": "wikimedia-feed",
            }
        )
        context = SerializationContext(self.topic, MessageField.VALUE)
        said = f"{len(self.recording.events)} changes in {self.recording.length / 1000 / self.recording.speed:g} s, over and over"
        print(f"{said}, to {self.topic}; begins with {number}", flush=True)
        while not self.stopping.is_set():
            rest = self.recording.time(number) / 1000 - time.time()
            if rest > 0:
                producer.poll(min(rest, 0.2))
                continue
            if number not in already:
                change = self.recording.change(number)
                self._send(producer, change["wiki"], serialize(change, context))
            number += 1
        left = producer.flush(8)
        print(f"stopped: {self.acknowledged} records acknowledged, {left} not", flush=True)

    def _send(self, producer: Any, key: str, value: bytes) -> None:
        while not self.stopping.is_set():
            try:
                producer.produce(self.topic, key=key, value=value, on_delivery=self._delivered)
                producer.poll(0)
                return
            except BufferError:  # the brokers are away and the queue is full: wait for room
                producer.poll(0.2)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            print(f"not delivered: {error}", flush=True)
            return
        self.acknowledged += 1
        now = time.time()
        if now - self.healthy_at >= 1:
            self.healthy_at = now
            # written whole or not at all: the health check may read at any time
            fresh = HEALTHY.with_suffix(".new")
            fresh.write_text(str(now))
            fresh.replace(HEALTHY)


def health() -> int:
    """Exit code 0 when a record was acknowledged lately."""
    try:
        age = time.time() - float(HEALTHY.read_text())
    except (OSError, ValueError):
        print("no record has been acknowledged yet")
        return 1
    print(f"last record acknowledged {age:.1f} s ago")
    return 0 if age <= HEALTHY_SECONDS else 1


def main() -> int:
    """Play, or the health check."""
    if sys.argv[1:] == ["health"]:
        return health()
    try:
        speed, history = float(os.environ.get("SPEED", "1")), float(os.environ.get("HISTORY_SECONDS", "300"))
        if not (0 < speed < math.inf and 0 <= history < math.inf):
            raise ValueError("the first is above 0, the second at least 0")
    except ValueError as error:
        print(f"SPEED and HISTORY_SECONDS are numbers: {error}", flush=True)
        return 2
    recording = Recording.read(RECORDING, speed)
    player = Player(os.environ["BOOTSTRAP_SERVERS"], os.environ["SCHEMA_REGISTRY_URL"], os.environ["TOPIC"], recording)
    signal.signal(signal.SIGTERM, player.stop)
    signal.signal(signal.SIGINT, player.stop)
    player.run(history * 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
