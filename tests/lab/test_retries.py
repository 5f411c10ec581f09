"""`examples/retry_consumer.py` against the lab: retries that do not block, the dead letter topic, kill -9, and an orderly stop."""

import json
import re
import signal
import subprocess
import sys
import threading

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.lab.support import ROOT, from_json, received, venice
from tests.waiting import PATIENCE, wait_until
from venice import groups
from venice.kafka import Kafka
from venice.specs import TopicSpec

EXAMPLE = ROOT / "examples" / "retry_consumer.py"


class Running:
    """The example as a process of its own; `lines` is what it has printed so far."""

    def __init__(self, kafka: Kafka, topic: str, delays: str):
        environment = {"BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "TOPIC": topic, "DELAYS": delays, "PATH": "/usr/bin:/bin"}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen([sys.executable, str(EXAMPLE)], env=environment, **output)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._collect, daemon=True)
        self.reader.start()

    def _collect(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def read(self) -> None:
        """Wait until everything is read that the ended process has printed."""
        self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)

    def stop(self) -> int:
        """Stop it as `docker stop` does: its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.read()
        return self.process.returncode

    def kill(self) -> None:
        """End it without a chance to do anything."""
        self.process.kill()
        self.read()


@pytest.fixture
def kafka(deployed):
    return Kafka.of(deployed)


@pytest.fixture
def topic(kafka, request):
    """A main topic of one partition, so that a record that blocked would hold back all others."""
    name = f"schemas_retry_{request.node.name.removeprefix('test_')[:8]}"
    kafka.create(TopicSpec(name, 1), 3)
    yield name
    kafka.delete([part.topic for part in kafka.partitions() if part.id == 0 and part.topic.removeprefix("dlq.").startswith(name)])
    groups.delete(kafka, f"{name}-retrying")


def send(kafka: Kafka, topic: str, values: list[str]) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 50})
    for n, value in enumerate(values):
        producer.produce(topic, value, key=f"order-{n}", headers=[("mine", b"kept")])
    assert producer.flush(120) == 0


def order(number: int, fails: int = 0) -> str:
    return json.dumps({"id": number, "fails": fails})


def records(kafka: Kafka, topic: str) -> list:
    """All that a topic holds."""
    places = [(part.topic, part.id) for part in kafka.partitions(topic)]
    logs = kafka.offsets(places)
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "schemas_retry_unused", "enable.auto.commit": False})
    consumer.assign([TopicPartition(*place, start) for place, (start, _) in logs.items()])
    found = []
    try:
        while len(found) < sum(end - start for start, end in logs.values()):
            message = received(consumer, f"the records of {topic}")
            assert not message.error()
            found.append(message)
    finally:
        consumer.close()
    return found


def headers(message) -> dict[str, str]:
    return {name: value.decode() for name, value in message.headers()}


def test_failing_records_take_their_way_and_the_others_do_not_wait(kafka, topic):
    # 0 works at once, 1 never, 2 at the second attempt, 3 is no JSON, and twenty more come behind them
    send(kafka, topic, [order(0), order(1, fails=99), order(2, fails=1), "{no order", *(order(n) for n in range(4, 24))])
    running = Running(kafka, topic, "10,3")
    try:
        wait_until(lambda: any("attempt 3" in line for line in running.lines), f"the last attempt: {running.lines}")
        assert running.stop() == 0
    finally:
        running.kill()
    # in the main topic every record had its turn in order, before any was tried again
    attempts = [line for line in running.lines if " attempt " in line]
    assert [int(re.search(rf" {topic}-0@(\d+) .* attempt 1", line)[1]) for line in attempts[:24]] == list(range(24))
    message = "order 1: the payment service does not answer"
    assert sorted(attempts[24:]) == [
        f"failed {topic}.retry-1-0@0 key order-1 attempt 2 -> {topic}.retry-2: {message}",
        f"failed {topic}.retry-2-0@0 key order-1 attempt 3 -> dlq.{topic}: {message}",
        f"processed {topic}.retry-1-0@1 key order-2 attempt 2",
    ]
    assert attempts[1] == f"failed {topic}-0@1 key order-1 attempt 1 -> {topic}.retry-1: {message}"
    assert attempts[3].startswith(f"failed {topic}-0@3 key order-3 attempt 1 -> dlq.{topic}: ")
    assert running.lines[-1] == "stopped"

    # what can't be mended by waiting comes first, and says from where it came and why
    broken, poison = records(kafka, f"dlq.{topic}")
    assert (broken.key(), broken.value()) == (b"order-3", b"{no order")
    assert headers(broken)["__connect.errors.exception.class.name"] == "JSONDecodeError"
    assert headers(poison) == {
        "mine": "kept",
        "__connect.errors.topic": topic,
        "__connect.errors.partition": "0",
        "__connect.errors.offset": "1",
        "__connect.errors.connector.name": f"{topic}-retrying",
        "__connect.errors.exception.class.name": "RetryableError",
        "__connect.errors.exception.message": message,
        "retry.attempts": "3",
    }
    # no attempt came before its time: the copy that follows it carries the time of its failure
    [first, _], [second] = records(kafka, f"{topic}.retry-1"), records(kafka, f"{topic}.retry-2")
    assert second.timestamp()[1] >= int(headers(first)["retry.not-before"])
    assert poison.timestamp()[1] >= int(headers(second)["retry.not-before"])
    # the orderly stop committed all that was done
    group = from_json(venice("groups", "show", f"{topic}-retrying", "-i", "lab", "--json"), "groups-show")
    assert (group["state"], group["lag"]) == ("empty", 0)
    assert [part["topic"] for part in group["partitions"]] == [topic, f"{topic}.retry-1", f"{topic}.retry-2"]


def test_killed_in_the_middle_it_loses_nothing(kafka, topic):
    count = 3000
    # every second fails once, every hundredth always: copies take long enough to be killed among them
    send(kafka, topic, [order(n, fails=99 if n % 100 == 7 else n % 2) for n in range(count)])
    dead = set(range(7, count, 100))
    first = Running(kafka, topic, "1,1")
    try:
        wait_until(lambda: len(done(first)) > count // 20, "a part")
    finally:
        first.kill()
    assert done(first) < set(range(count)) - dead, "it was to be killed in the middle"
    second = Running(kafka, topic, "1,1")
    try:
        wait_until(lambda: done(first, second) | dead == set(range(count)), "every order that can be processed")
        wait_until(lambda: {json.loads(message.value())["id"] for message in records(kafka, f"dlq.{topic}")} == dead, "the others")
        assert second.stop() == 0
    finally:
        second.kill()


def done(*processes: Running) -> set[int]:
    """The orders that they have processed."""
    lines = [line for running in processes for line in running.lines]
    return {int(match[1]) for line in lines if (match := re.match(r"processed \S+ key order-(\d+) ", line))}
