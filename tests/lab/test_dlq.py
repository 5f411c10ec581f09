"""A poison pill in the middle of a topic, and `venice dlq` on the lab."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pexpect
import pytest
from confluent_kafka import Producer

from tests.lab.support import ROOT, VENICE, from_json, sql, venice
from tests.waiting import PATIENCE, wait_until
from venice.connect import Connect
from venice.dlq import COUNT, FROM, MARKS, ORIGIN, DeadLetters
from venice.kafka import Kafka
from venice.messages import Codec, read, spans
from venice.pipeline import ConnectorFile, dead_letter_topic
from venice.registry import Registry
from venice.replay import Repair, planned, send
from venice.specs import TopicSpec

SINK = TOPIC = TABLE = "topics_poison"
DLQ = f"dlq.{SINK}"
SCHEMA = {
    "type": "record",
    "name": "Reading",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "level", "type": "int"},
        {"name": "note", "type": ["null", "string"], "default": None},
    ],
}
CONNECTOR = {
    "name": SINK,
    "config": {
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "topics": TOPIC,
        "connection.url": "jdbc:postgresql://${postgres_host}:${postgres_port}/${postgres_db}",
        "connection.username": "${file:/etc/kafka/secrets.properties:postgres_user}",
        "connection.password": "${file:/etc/kafka/secrets.properties:postgres_password}",
        "connection.pool.min_size": 1,
        "connection.pool.max_size": 2,
        "hibernate.dialect": "org.hibernate.dialect.PostgreSQLDialect",
        "collection.name.format": TABLE,
        "insert.mode": "upsert",
        "primary.key.mode": "record_value",
        "primary.key.fields": "id",
        "schema.evolution": "basic",
    },
}
PILL = b'{"id": "pill", "level": "high"}'


@pytest.fixture(scope="module")
def kafka(deployed):
    return Kafka.of(deployed)


@pytest.fixture(scope="module")
def sink(deployed, kafka, tmp_path_factory):
    """A JDBC sink on a topic of its own, with Venice's defaults for sinks; the codec that writes its records."""
    registry, connect = Registry.of(deployed), Connect.of(deployed)
    _clean(deployed, kafka, registry, connect)
    file = tmp_path_factory.mktemp("sink") / "sink.json"
    file.write_text(json.dumps(CONNECTOR))
    name, config = ConnectorFile(file, file.read_text()).load(deployed.pipeline_vars)
    registry.register(f"{TOPIC}-value", json.dumps(SCHEMA))
    kafka.ensure_topics([TopicSpec(TOPIC, 1), dead_letter_topic(config)], 3)
    connect.put(name, config)
    connect.wait_running([name], 120)
    yield Codec(registry)
    _clean(deployed, kafka, registry, connect)


def _clean(cluster, kafka, registry, connect):
    if connect.config(SINK) is not None:
        connect.delete(SINK)
    there = {part.topic for part in kafka.partitions()}
    if left := [name for name in (TOPIC, DLQ) if name in there]:
        kafka.delete(left)
    if registry.versions(f"{TOPIC}-value"):
        registry.delete(f"{TOPIC}-value", permanent=True)
    sql(cluster, f'DROP TABLE IF EXISTS "{TABLE}"')


def produce(kafka, *values, headers=()):
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "acks": "all"})
    failed = []
    for value in values:
        producer.produce(
            TOPIC, value, "key", partition=0, headers=list(headers), on_delivery=lambda error, _: failed.append(error) if error else None
        )
    assert producer.flush(120) == 0
    assert not failed


def rows(cluster):
    """id -> level of the sink's table; empty before the sink has made it."""
    if sql(cluster, f"SELECT to_regclass('{TABLE}')") == "":
        return {}
    return json.loads(sql(cluster, f"SELECT coalesce(json_object_agg(id, level), '{{}}') FROM {TABLE}"))  # noqa: S608


def letters():
    return [from_json(line, "dlq-show") for line in venice("dlq", "show", SINK, "-i", "lab", "-o", "json").splitlines()]


def queue():
    [found] = [q for q in from_json(venice("dlq", "list", "-i", "lab", "--json"), "dlq-list")["queues"] if q["topic"] == DLQ]
    return found


def replay(*arguments, expect=0):
    return venice("dlq", "replay", SINK, "-i", "lab", *arguments, expect=expect)


@pytest.fixture(scope="module")
def poisoned(deployed, kafka, sink):
    """Good records, the pill, good records: all sent, the good ones in the table."""
    good = [sink.encode(f"{TOPIC}-value", {"id": f"good-{n}", "level": n}) for n in range(6)]
    produce(kafka, *good[:3], PILL, *good[3:], headers=[("trace", b"t-1")])
    wait_until(lambda: len(rows(deployed)) == 6, "the six good records are in the table")
    return good


def test_a_bad_record_stops_no_other_and_its_reason_is_kept(deployed, poisoned):
    assert rows(deployed) == {f"good-{n}": n for n in range(6)}
    [letter] = wait_until(letters, "the pill is in the dead letter topic")
    assert letter["value"] == json.loads(PILL)
    assert letter["headers"] == [{"name": "trace", "value": "t-1"}]
    failure = letter["failure"]
    assert (failure["topic"], failure["partition"], failure["offset"]) == (TOPIC, 0, 3)
    assert (failure["connector"], failure["stage"]) == (SINK, "VALUE_CONVERTER")
    assert failure["reason"]
    found = queue()
    assert (found["connectors"], found["sources"], found["records"], found["waiting"]) == ([SINK], [TOPIC], 1, 1)
    assert found["newest_reason"] == failure["reason"]
    text = venice("dlq", "show", DLQ, "-i", "lab")
    assert f"from {TOPIC} 0:3 ({SINK}, VALUE_CONVERTER)" in text
    assert failure["reason"] in text


def test_what_makes_no_sense_sends_nothing(kafka, poisoned):
    before = kafka.offsets([(TOPIC, 0)])
    assert "0:7" in replay("--offset", "0:7", "--yes", expect=2)
    assert "level: missing" in replay("--offset", "0:0", "--value", '{"id": "pill"}', "--yes", expect=2)
    assert 'level: "high" is no int' in replay("--offset", "0:0", "--set", "note=x", "--yes", expect=2)
    assert "the value is no JSON" in replay("--offset", "0:0", "--value", "{", "--yes", expect=2)
    assert "give one of them" in replay("--offset", "0:0", "--all", expect=2)
    asked = subprocess.run(
        [*VENICE, "dlq", "replay", SINK, "-i", "lab", "--all"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert asked.returncode == 2
    assert b"add --yes" in asked.stderr
    dry = from_json(replay("--all", "--set", "level=7", "--dry-run", "--json"), "dlq-replay")
    assert (dry["sent"], [r["to"]["topic"] for r in dry["replayed"]], dry["replayed"][0]["repaired"]) == (False, [TOPIC], True)
    assert kafka.offsets([(TOPIC, 0)]) == before


def test_a_record_that_fails_again_comes_back_with_its_count_and_is_refused_then(kafka, poisoned):
    [sent] = from_json(replay("--offset", "0:0", "--yes", "--json"), "dlq-replay")["replayed"]
    assert (sent["count"], sent["repaired"]) == (1, False)
    again = wait_until(lambda: found[1] if len(found := letters()) == 2 else None, "it is a dead letter again")
    assert again["replays"] == 1
    assert {h["name"]: h["value"] for h in again["headers"]} == {"trace": "t-1", COUNT: "1", FROM: f"{DLQ}/0/0", ORIGIN: f"{TOPIC}/0/3"}
    # the letter that was replayed is told apart from the new one
    assert letters()[0]["replayed"]["offset"] == sent["to"]["offset"]
    assert (queue()["records"], queue()["waiting"]) == (2, 1)
    before = kafka.offsets([(TOPIC, 0)])
    assert f"{DLQ} 0:1: it was replayed once already" in replay("--offset", "0:1", "--max", "1", "--yes", expect=2)
    assert "nothing was sent" in replay("--all", "--max", "1", "--yes", expect=2)
    assert kafka.offsets([(TOPIC, 0)]) == before


def test_a_repaired_record_arrives_once(deployed, kafka, poisoned):
    value = '{"id": "pill", "level": 42}'
    [sent] = from_json(replay("--offset", "0:1", "--value", value, "--yes", "--json"), "dlq-replay")["replayed"]
    wait_until(lambda: rows(deployed).get("pill") == 42, "the repaired record is in the table")
    [record] = [r for r in read(kafka, spans(kafka, TOPIC)) if r.offset == sent["to"]["offset"]]
    assert (record.key, record.header(COUNT), record.header("trace")) == (b"key", "2", "t-1")
    assert not [name for name, _ in record.headers if name.startswith("__connect.errors.")]
    before = kafka.offsets([(TOPIC, 0)])
    assert "was replayed already" in replay("--offset", "0:1", "--value", value, "--yes")
    assert "nothing to send" in replay("--all", "--yes")
    assert kafka.offsets([(TOPIC, 0)]) == before
    assert queue()["waiting"] == 0


def test_records_are_picked_on_a_terminal(deployed, kafka, poisoned):
    count = len(letters())
    produce(kafka, b"not at all", b'{"id": "picked", "level": 1}')
    wait_until(lambda: len(letters()) == count + 2, "both are dead letters")
    command = [*VENICE, "dlq", "replay", SINK, "-i", "lab", "--set", "level=77"]
    child = pexpect.spawn(command[0], command[1:], cwd=ROOT, encoding="utf-8", timeout=PATIENCE, dimensions=(40, 160))
    child.expect("Which records")
    child.expect(f"0:{count + 1} ")
    child.send("\x1b[B \r")  # the second one
    child.expect("Send 1 record")
    child.sendline("y")
    child.expect(f"0:{count + 1}: sent as {TOPIC}")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    wait_until(lambda: rows(deployed).get("picked") == 77, "the repaired record is in the table")
    assert [letter["offset"] for letter in letters() if not letter["replayed"]] == [count]


def test_two_replays_at_once_send_a_record_once(deployed, kafka, poisoned):
    count = len(letters())
    produce(kafka, b"{}")
    wait_until(lambda: len(letters()) == count + 1, "it is a dead letter")
    repair = Repair(True, {"id": "both", "level": 5})
    both = [DeadLetters.of(deployed), DeadLetters.of(deployed)]
    plans = [planned(dead, DLQ, [dead.every(DLQ)[-1]], repair, None, 3) for dead in both]
    with ThreadPoolExecutor(2) as pool:
        outcomes = [pool.submit(send, dead, plan) for dead, plan in zip(both, plans, strict=True)]
        failed = [str(error) for outcome in outcomes if (error := outcome.exception())]
    assert all("another replay" in error for error in failed)
    assert len(failed) < 2
    wait_until(lambda: rows(deployed).get("both") == 5, "the repaired record is in the table")
    sent = [record for record in read(kafka, spans(kafka, TOPIC)) if record.header(FROM) == f"{DLQ}/0/{count}"]
    assert len(sent) == 1


def test_dropped_up_to_an_offset_and_all(kafka, poisoned):
    there = letters()
    refused = subprocess.run(
        [*VENICE, "dlq", "drop", SINK, "-i", "lab", "--all"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "neither a dead letter topic nor a connector" in venice("dlq", "drop", "bus_locations", "-i", "lab", "--all", "--yes", expect=2)
    assert "nothing to drop" in venice("dlq", "drop", SINK, "-i", "lab", "--before", "2020-01-01")
    dropped = from_json(venice("dlq", "drop", SINK, "-i", "lab", "--offset", "0:1", "--yes", "--json"), "dlq-drop")
    assert (dropped["records"], dropped["waiting"]) == (2, 0)
    assert [letter["offset"] for letter in letters()] == [letter["offset"] for letter in there[2:]]
    assert "1 of them not replayed" in venice("dlq", "drop", DLQ, "-i", "lab", "--all", "--yes")
    assert letters() == []
    assert (queue()["records"], queue()["waiting"]) == (0, 0)
    # nothing is remembered of what is gone
    topic_id = kafka.topic_ids([DLQ])[DLQ]
    kept = {record.key: record.value for record in read(kafka, spans(kafka, MARKS)) if record.key.startswith(topic_id.encode())}
    assert set(kept.values()) == {None}
