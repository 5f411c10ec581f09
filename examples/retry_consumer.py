"""A consumer that retries without blocking: main topic -> retry-1 (5 s) -> retry-2 (30 s) -> dead letter topic.

A record that fails for a reason that may pass is written to the first retry topic, and the main topic goes on at once. Each retry
topic has one delay, so its records become due in the order in which they stand in it: when the first is not due yet, its partition
is paused, and nothing is waiting behind it that could be processed sooner. After the last attempt, or at once when retrying can't
help, the record goes to `dlq.<topic>`. docs/retries.md explains the pattern, and what it costs.

At least once: an offset is stored for committing only when the record has been processed, or when all in-sync replicas have its
copy in the next topic. A crash in between means that a record is processed again, never that it is lost.

Environment: BOOTSTRAP_SERVERS, TOPIC; optional GROUP (TOPIC-retrying), DELAYS (5,30: seconds, one retry topic for each).
"""

import argparse
import json
import os
import signal
import sys
import time

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

# Connect's names for what went wrong: whatever reads Connect's dead letter queues, as `venice dlq`, reads this one too
ERROR = "__connect.errors."
NOT_BEFORE = "retry.not-before"
ATTEMPTS = "retry.attempts"
RETRY_SECONDS = 1.0


class RetryableError(Exception):
    """A failure that may pass: a service that does not answer, a row that is not there yet."""


def process(value: bytes | None, attempt: int) -> None:
    """The work on one record: put yours here. It may see a record twice, so doing it twice must do no harm.

    Raise RetryableError for what may work later; after any other exception the record goes to the dead letter topic at once.
    """
    order = json.loads(value or b"")  # what can't be read now never can: ValueError
    if attempt <= order.get("fails", 0):
        raise RetryableError(f"order {order['id']}: the payment service does not answer")


class RetryingConsumer:
    """Reads the main topic and its retry topics as one consumer; start several to share their partitions."""

    def __init__(self, bootstrap_servers: str, topic: str, group: str, delays: list[float]):
        """`delays`: seconds before each retry."""
        self.topic, self.group, self.delays = topic, group, delays
        self.stages = [topic, *(f"{topic}.retry-{n}" for n in range(1, len(delays) + 1))]
        self.dead = f"dlq.{topic}"
        self.running = True
        # the first record of each paused partition, read and not due yet
        self.waiting: dict[tuple[str, int], Message] = {}
        self.servers = {"bootstrap.servers": bootstrap_servers}
        self.consumer = Consumer(
            self.servers
            | {
                "group.id": group,
                "client.id": group,
                "auto.offset.reset": "earliest",
                # commits in the background, but only what `done` has stored
                "enable.auto.commit": True,
                "auto.commit.interval.ms": 1000,
                "enable.auto.offset.store": False,
                "partition.assignment.strategy": "cooperative-sticky",
                # how soon the others take over from a consumer that was killed
                "session.timeout.ms": 10_000,
            }
        )
        self.producer = Producer(self.servers | {"acks": "all", "enable.idempotence": True, "delivery.timeout.ms": 60_000})

    def stop(self, *_: object) -> None:
        """End after the record at hand (SIGTERM, SIGINT)."""
        self.running = False

    def run(self) -> None:
        """Process until stopped. Waits for brokers and the main topic; makes the other topics when they are missing."""
        self.make_topics()
        self.consumer.subscribe(self.stages, on_revoke=self.forget)
        try:
            while self.running:
                for place, message in list(self.waiting.items()):
                    if self.due(message) <= time.time():
                        del self.waiting[place]
                        self.handle(message)
                        self.consumer.resume([_partition(message)])
                # never long: a consumer that does not poll is taken for dead (max.poll.interval.ms)
                message = self.consumer.poll(0.2)
                if message is None:
                    continue
                if message.error():
                    if message.error().fatal():
                        raise KafkaException(message.error())
                    print(f"consumer: {message.error().str()}", flush=True)
                elif self.due(message) > time.time():
                    self.consumer.pause([_partition(message)])
                    self.waiting[message.topic(), message.partition()] = message
                else:
                    self.handle(message)
        finally:
            self.consumer.close()  # commits what is stored
        print("stopped", flush=True)

    def forget(self, _: Consumer, partitions: list) -> None:
        """Partitions go to another consumer, which gets their waiting records again: they are not stored."""
        for part in partitions:
            self.waiting.pop((part.topic, part.partition), None)

    def due(self, message: Message) -> float:
        """When a record may be processed, in seconds since 1970. On the main topic always: there the header is from before a replay."""
        return 0.0 if message.topic() == self.topic else int(_header(message, NOT_BEFORE) or 0) / 1000

    def handle(self, message: Message) -> None:
        """One attempt; a failed record is in its next topic when this returns."""
        attempt = self.stages.index(message.topic()) + 1
        key = (message.key() or b"").decode(errors="replace")
        place = f"{message.topic()}-{message.partition()}@{message.offset()} key {key} attempt {attempt}"
        try:
            process(message.value(), attempt)
            print(f"processed {place}", flush=True)
        except Exception as error:
            last = attempt == len(self.stages) or not isinstance(error, RetryableError)
            target = self.dead if last else self.stages[attempt]
            self.send(message, target, attempt, error)
            print(f"failed {place} -> {target}: {error}", flush=True)
        self.consumer.store_offsets(message=message)

    def send(self, message: Message, target: str, attempt: int, error: Exception) -> None:
        """Copy a record to the next topic; returns once all in-sync replicas have it. KafkaException when they do not."""
        failures = []
        self.producer.produce(
            target,
            key=message.key(),
            value=message.value(),
            headers=self.headers(message, target, attempt, error),
            on_delivery=lambda failure, _: failures.append(failure) if failure else None,
        )
        self.producer.flush()
        if failures:
            # nothing is stored: whoever runs next gets the record again
            raise KafkaException(failures[0])

    def headers(self, message: Message, target: str, attempt: int, error: Exception) -> list[tuple[str, bytes | None]]:
        """The record's own headers, where it was first, and what went wrong now."""
        ours: dict[str, str] = {
            f"{ERROR}connector.name": self.group,
            f"{ERROR}exception.class.name": type(error).__name__,
            f"{ERROR}exception.message": str(error),
            ATTEMPTS: str(attempt),
        }
        if message.topic() == self.topic:
            ours |= {f"{ERROR}topic": self.topic, f"{ERROR}partition": str(message.partition()), f"{ERROR}offset": str(message.offset())}
        if target != self.dead:
            ours[NOT_BEFORE] = str(round((time.time() + self.delays[attempt - 1]) * 1000))
        kept = [(name, value) for name, value in message.headers() or [] if name not in {*ours, NOT_BEFORE}]
        return kept + [(name, value.encode()) for name, value in ours.items()]

    def make_topics(self) -> None:
        """Make the missing topics, with as many partitions as the main one has; returns early when stopped."""
        admin = AdminClient(self.servers)
        while self.running:
            try:
                there = admin.list_topics(timeout=5).topics
                if self.topic in there:
                    partitions = len(there[self.topic].partitions)
                    missing = [NewTopic(name, partitions) for name in self.stages[1:] if name not in there]
                    if self.dead not in there:
                        missing.append(NewTopic(self.dead, 1, config={"retention.ms": "-1"}))
                    for answer in (admin.create_topics(missing) if missing else {}).values():
                        answer.result(10)
                    return
                print(f"waiting for topic {self.topic}", flush=True)
            except KafkaException as error:  # brokers that do not answer yet, or another consumer that makes them too
                print(f"waiting for {self.servers['bootstrap.servers']}: {error}", flush=True)
            time.sleep(RETRY_SECONDS)


def _partition(message: Message) -> TopicPartition:
    return TopicPartition(message.topic(), message.partition())


def _header(message: Message, name: str) -> bytes | None:
    return dict(message.headers() or []).get(name)


def main() -> int:
    """Run until SIGTERM or SIGINT."""
    options = argparse.ArgumentParser(description="Consume a topic with non-blocking retries.")
    options.add_argument("--bootstrap-servers", default=os.environ.get("BOOTSTRAP_SERVERS"))
    options.add_argument("--topic", default=os.environ.get("TOPIC"))
    options.add_argument("--group", default=os.environ.get("GROUP"), help="default: TOPIC-retrying")
    options.add_argument("--delays", default=os.environ.get("DELAYS", "5,30"), help="seconds before each retry (5,30)")
    given = options.parse_args()
    if not given.bootstrap_servers or not given.topic:
        options.error("give --bootstrap-servers and --topic, or set BOOTSTRAP_SERVERS and TOPIC")
    delays = [float(delay) for delay in given.delays.split(",")]
    consumer = RetryingConsumer(given.bootstrap_servers, given.topic, given.group or f"{given.topic}-retrying", delays)
    signal.signal(signal.SIGTERM, consumer.stop)
    signal.signal(signal.SIGINT, consumer.stop)
    consumer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
