"""Reads orders, sends the good ones on as Avro and the bad ones, byte for byte, to a dead letter topic with the reason.

Good is what is framed as the Confluent serializers do (a zero byte, the schema's id in four bytes), names a version of the
topic's own JSON Schema, and fits it. A bad record never holds up the others.

Each record goes on exactly once: what was read and what was sent are committed in one transaction of Kafka's, so a reader
with isolation.level=read_committed sees every order once however often this program dies. Several may run side by side:
they share the partitions.

Environment: BOOTSTRAP_SERVERS, SCHEMA_REGISTRY_URL, TOPIC, VALID_TOPIC, DEAD_LETTER_TOPIC, GROUP (orders_validator).
`validator.py health` exits 0 when records, or while there are none the brokers' answers, went through lately.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

# a tmpfs or the container's own layer: a restart begins without it, hence unhealthy
HEALTHY = Path("/tmp/healthy")  # noqa: S108
HEALTHY_SECONDS = 20.0
RETRY_SECONDS = 1.0
# a transaction holds at most this many records, and waits so long for more once it has one
BATCH = 500
BATCH_SECONDS = 0.1
MESSAGE_LENGTH = 500
# the form in which Kafka Connect says why a record is in a dead letter topic
REASON = "__connect.errors."


class BadRecordError(Exception):
    """Why a record can't go on."""


class RegistryAwayError(Exception):
    """The registry did not answer: no fault of the record's."""


class Orders:
    """What a record's value has to be: JSON by one of the versions of the subject's schema."""

    def __init__(self, registry: Any, subject: str):
        """`registry`: a SchemaRegistryClient."""
        self.registry, self.subject = registry, subject
        self._versions: dict[int, Any] = {}

    def check(self, value: bytes | None) -> dict:
        """The order that a record's value holds. BadRecordError says what is wrong with it; RegistryAwayError that nobody can tell now."""
        if value is None:
            raise BadRecordError("the record has no value")
        if len(value) < 5 or value[0] != 0:
            raise BadRecordError("the value does not begin with a zero byte and a schema's id: no Confluent serializer wrote it")
        validator = self._validator(int.from_bytes(value[1:5], "big"))
        try:
            found = json.loads(value[5:], parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise BadRecordError(f"the value is not JSON: {error}") from error
        from jsonschema.exceptions import best_match

        if (error := best_match(validator.iter_errors(found))) is not None:
            raise BadRecordError(f"{'.'.join(map(str, error.absolute_path)) or 'the order'}: {error.message}")
        return found

    def _validator(self, schema_id: int) -> Any:
        if schema_id not in self._versions:
            self._versions |= self._load()
        if schema_id not in self._versions:
            raise BadRecordError(f"the schema id {schema_id} is no version of {self.subject}")
        return self._versions[schema_id]

    def _load(self) -> dict[int, Any]:
        from jsonschema import Draft7Validator
        from jsonschema.validators import validator_for

        found = {}
        try:
            for version in self.registry.get_versions(self.subject):
                registered = self.registry.get_version(self.subject, version)
                schema = json.loads(registered.schema.schema_str)
                found[registered.schema_id] = validator_for(schema, default=Draft7Validator)(schema)
        except Exception as error:  # whatever is wrong with the registry, it may be right in a moment
            raise RegistryAwayError(f"schema {self.subject}: {error}") from error
        return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def typed(order: dict) -> dict:
    """A checked order as Avro's types want it: money as Decimal, times as datetime. BadRecordError for a date that does not exist."""
    try:
        times = {key: datetime.fromisoformat(order[key]) for key in ("placed_at", "updated_at")}
    except ValueError as error:
        raise BadRecordError(f"no such date: {error}") from error
    return order | times | {"amount": Decimal(order["amount"]), "quantity": int(order["quantity"])}


def reason(message: Any, error: Exception, connector: str) -> list[tuple[str, bytes]]:
    """The headers of a dead letter: the record's own, and in Connect's form where it was and what is wrong with it."""
    text = str(error)
    said = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "connector.name": connector,
        "stage": "VALUE_CONVERTER",
        "exception.class.name": type(error).__name__,
        "exception.message": text if len(text) <= MESSAGE_LENGTH else f"{text[:MESSAGE_LENGTH]}...",
    }
    kept = [(key, value) for key, value in message.headers() or [] if not key.startswith(REASON)]
    return kept + [(REASON + key, str(value).encode(errors="replace")) for key, value in said.items()]


class Validator:
    """Moves records from the one topic to the other two, a transaction at a time, until told to stop."""

    def __init__(self, consumer: Any, producer: Any, convert: Callable[[Any], dict], topics: tuple[str, str, str], group: str):
        """`convert`: a message to the arguments of the record to send; `topics`: from, valid, dead letters."""
        self.consumer, self.producer, self.convert, self.group = consumer, producer, convert, group
        self.source, self.valid, self.dead = topics
        self.stopping = threading.Event()
        self.batch: list[Any] = []
        self.asked_at = 0.0
        self.passed = self.rejected = 0

    def stop(self, *_: object) -> None:
        """Finish the current transaction and end (SIGTERM, SIGINT)."""
        self.stopping.set()

    def run(self) -> None:
        """Validate until stopped. KafkaException for what only a new process can mend."""
        if not self._until_it_works(lambda: self.producer.init_transactions(5)):
            return
        # the next owner of a partition begins at the committed offset: what was read and not committed is its business
        self.consumer.subscribe([self.source], on_revoke=self._forget, on_lost=self._forget)
        print(f"{self.source} -> {self.valid}, {self.dead}", flush=True)
        try:
            while not self.stopping.is_set():
                self._collect()
                if not self.batch:
                    self._ask_brokers()
                elif (records := self._converted()) and self._send(records):
                    _healthy()
        finally:
            self.consumer.close()
        print(f"stopped: {self.passed} records passed, {self.rejected} rejected", flush=True)

    def _forget(self, *_: object) -> None:
        self.batch.clear()

    def _collect(self) -> None:
        """Fill the batch with what there is."""
        self.batch.clear()
        until = 0.0
        while len(self.batch) < BATCH and not self.stopping.is_set():
            message = self.consumer.poll(max(0.0, until - time.monotonic()) if self.batch else 0.5)
            if message is None:
                break
            if message.error():
                print(f"waiting for {self.source}: {message.error().str()}", flush=True)
                continue
            if not self.batch:
                until = time.monotonic() + BATCH_SECONDS
            self.batch.append(message)

    def _converted(self) -> list[dict]:
        """The records to send for the batch; empty when stopped before the registry answered."""
        records = []
        for message in self.batch:
            while not self.stopping.is_set():
                try:
                    records.append(self._record(message))
                    break
                except RegistryAwayError as error:
                    print(f"waiting for the registry: {error}", flush=True)
                    self.stopping.wait(RETRY_SECONDS)
        return records if len(records) == len(self.batch) else []

    def _record(self, message: Any) -> dict:
        same = {"timestamp": message.timestamp()[1]}
        try:
            return same | {"topic": self.valid} | self.convert(message)
        except BadRecordError as error:
            print(f"{message.topic()}-{message.partition()} offset {message.offset()} to {self.dead}: {str(error)[:200]}", flush=True)
            headers = reason(message, error, self.group)
            return same | {"topic": self.dead, "key": message.key(), "value": message.value(), "headers": headers}

    def _send(self, records: list[dict]) -> bool:
        """One transaction: the records, and the offsets after the batch. False when it was taken back, to be done again."""
        from confluent_kafka import KafkaException, TopicPartition

        first: dict[int, int] = {}
        after: dict[int, int] = {}
        for message in self.batch:
            first.setdefault(message.partition(), message.offset())
            after[message.partition()] = message.offset() + 1
        positions = [TopicPartition(self.source, partition, offset) for partition, offset in after.items()]
        try:
            self.producer.begin_transaction()
            for record in records:
                self.producer.produce(**record)
            if not self._until_it_works(
                lambda: self.producer.send_offsets_to_transaction(positions, self.consumer.consumer_group_metadata(), 5)
            ) or not self._until_it_works(lambda: self.producer.commit_transaction(5)):
                return False  # stopped: the transaction ends by its timeout, or with this program's next start
        except KafkaException as error:
            if error.args[0].fatal():
                raise
            print(f"transaction taken back, to be done again: {error.args[0].str()}", flush=True)
            self._until_it_works(lambda: self.producer.abort_transaction(5))
            for partition, offset in first.items():
                self._back_to(TopicPartition(self.source, partition, offset))
            self.stopping.wait(RETRY_SECONDS)
            return False
        rejected = sum(record["topic"] == self.dead for record in records)
        self.passed, self.rejected = self.passed + len(records) - rejected, self.rejected + rejected
        return True

    def _back_to(self, position: Any) -> None:
        from confluent_kafka import KafkaException

        try:
            self.consumer.seek(position)
        except KafkaException as error:  # no longer this program's: its new owner begins there by itself
            print(f"not back to {position}: {error.args[0].str()}", flush=True)

    def _until_it_works(self, call: Callable[[], None]) -> bool:
        """Repeat a call of the transaction for as long as Kafka says that this may help; False when stopped meanwhile."""
        from confluent_kafka import KafkaException

        while True:
            try:
                call()
                return True
            except KafkaException as error:
                if error.args[0].fatal() or not error.args[0].retriable():
                    raise
                print(f"waiting for the brokers: {error.args[0].str()}", flush=True)
            if self.stopping.is_set():
                return False

    def _ask_brokers(self) -> None:
        """No records is healthy when the brokers answer, and unhealthy when they are away."""
        from confluent_kafka import KafkaException

        if time.monotonic() - self.asked_at < HEALTHY_SECONDS / 4:
            return
        self.asked_at = time.monotonic()
        try:
            self.consumer.list_topics(self.source, timeout=3)
            _healthy()
        except KafkaException as error:
            print(f"waiting for the brokers: {error.args[0].str()}", flush=True)


def _healthy() -> None:
    # written whole or not at all: the health check may read at any time
    fresh = HEALTHY.with_suffix(".new")
    fresh.write_text(str(time.time()))
    fresh.replace(HEALTHY)


def health() -> int:
    """Exit code 0 when it worked lately."""
    try:
        age = time.time() - float(HEALTHY.read_text())
    except (OSError, ValueError):
        print("it has not begun yet")
        return 1
    print(f"worked {age:.1f} s ago")
    return 0 if age <= HEALTHY_SECONDS else 1


def converter(orders: Orders, serialize: Callable[[dict], bytes]) -> Callable[[Any], dict]:
    """A function from a message to the valid record: key and value."""

    def convert(message: Any) -> dict:
        order = typed(orders.check(message.value()))
        try:
            # by order_id, whatever its key was: an order's changes stay in order
            return {"key": order["order_id"].encode(), "value": serialize(order)}
        except (TypeError, ValueError, OverflowError) as error:
            raise BadRecordError(f"the order does not fit the Avro schema: {error}") from error

    return convert


def avro(registry: Any, topic: str, stopping: threading.Event) -> Callable[[dict], bytes] | None:
    """Avro serializer with the registered schema; waits until registry and subject answer. None when stopped."""
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    subject, context = f"{topic}-value", SerializationContext(topic, MessageField.VALUE)
    while not stopping.is_set():
        try:
            schema = registry.get_latest_version(subject).schema
            serializer = AvroSerializer(registry, schema, conf={"auto.register.schemas": False, "use.latest.version": True})
            return lambda order: serializer(order, context)
        except Exception as error:  # whatever is wrong, it may be right in a moment
            print(f"waiting for schema {subject}: {error}", flush=True)
            stopping.wait(RETRY_SECONDS)
    return None


def main() -> int:
    """Run the validator, or its health check."""
    if sys.argv[1:] == ["health"]:
        return health()
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.schema_registry import SchemaRegistryClient

    source, valid, dead = (os.environ[name] for name in ("TOPIC", "VALID_TOPIC", "DEAD_LETTER_TOPIC"))
    group = os.environ.get("GROUP", "orders_validator")
    common = {"bootstrap.servers": os.environ["BOOTSTRAP_SERVERS"], "client.id": group}
    consumer = Consumer(
        common
        | {
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            # one that died is noticed, and its partitions taken over, after ten seconds
            "session.timeout.ms": 10000,
        }
    )
    producer = Producer(
        common
        | {
            # its own for each container, and the same after a restart: what it left open then is taken back at once
            "transactional.id": f"{group}-{socket.gethostname()}",
            "transaction.timeout.ms": 30000,
            "linger.ms": 5,
            "compression.type": "lz4",
            # a dead letter is larger than its record
            "message.max.bytes": 2097152,
        }
    )
    registry = SchemaRegistryClient({"url": os.environ["SCHEMA_REGISTRY_URL"], "timeout": 5})
    orders = Orders(registry, f"{source}-value")
    validator = Validator(consumer, producer, lambda message: {}, (source, valid, dead), group)
    signal.signal(signal.SIGTERM, validator.stop)
    signal.signal(signal.SIGINT, validator.stop)
    if (serialize := avro(registry, valid, validator.stopping)) is None:
        return 0
    validator.convert = converter(orders, serialize)
    validator.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
