"""`venice topics` on the lab: what it lists, records of every format, changes, and a broker that is down."""

import json
import os
import signal
import subprocess
import uuid

import pexpect
import pytest
from confluent_kafka import Producer

from tests.lab.support import ROOT, VENICE, from_json, on, status, venice
from tests.waiting import PATIENCE, wait_until
from venice.kafka import Kafka
from venice.messages import Codec
from venice.registry import Registry

TOPIC = "topics_formats"
COMPACTED = "topics_compacted"
AVRO = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "paid_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "raw", "type": ["null", "bytes"], "default": None},
    ],
}
PAYMENT = {"id": "p-1", "amount": "12.50", "paid_at": "2026-01-02T03:04:05.678000Z", "raw": "0x00ff"}
POSITION = 'syntax = "proto3"; package topics; message Position { double lat = 1; double lon = 2; }'
BUS = """
syntax = "proto3";
package topics;
import "topics_position.proto";
message Bus { string id = 1; Position at = 2; int64 number = 3; }
"""
SUBJECTS = ("topics_avro-value", "topics_json-value", "topics_bus-value", "topics_position.proto")


def registered(registry):
    """The subjects of the test, in the registry."""
    registry.register("topics_avro-value", json.dumps(AVRO))
    registry.register(
        "topics_json-value", json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}), "JSON"
    )
    registry.register("topics_position.proto", POSITION, "PROTOBUF")
    reference = {"name": "topics_position.proto", "subject": "topics_position.proto", "version": 1}
    registry.register("topics_bus-value", BUS, "PROTOBUF", [reference])


def produce(kafka, topic, *records):
    """Sends (key, value) to partition 0, one after the other."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "acks": "all"})
    failed = []
    for key, value in records:
        producer.produce(topic, value, key, partition=0, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(120) == 0
    assert not failed


def shown(*arguments):
    """What `topics show --output json` prints, each line checked against its schema."""
    return [from_json(line, "topics-show") for line in venice("topics", "show", *arguments, "-i", "lab", "-o", "json").splitlines()]


def in_sync():
    """Every broker is there, and in sync with all it holds."""
    brokers = status()["brokers"]
    return len(brokers) == 3 and all(broker["registered"] and broker["in_sync"] == broker["replicas"] for broker in brokers)


@pytest.fixture(scope="module")
def kafka(deployed):
    return Kafka.of(deployed)


@pytest.fixture(scope="module")
def records(deployed, kafka):
    """A topic with a record of every kind, in this order; the bytes by what they are."""
    registry = Registry.of(deployed)
    _clean(kafka, registry)
    registered(registry)
    venice("topics", "new", TOPIC, "-i", "lab", "--partitions", "2")
    codec = Codec(registry)
    sent = {
        "avro": codec.encode("topics_avro-value", PAYMENT),
        "json-schema": codec.encode("topics_json-value", {"a": "ü"}),
        "protobuf": codec.encode("topics_bus-value", {"id": "b", "at": {"lat": 45.5}, "number": "7"}),
        "json": b'{"plain": [1, 2.5, null]}',
        "text": "Zürich".encode(),
        "hex": bytes(range(250, 256)),
        "null": None,
        "unknown": b"\0\x7f\xff\xff\xff" + b"x",
        "broken": codec.encode("topics_avro-value", PAYMENT)[:-1],
    }
    produce(kafka, TOPIC, *((name, value) for name, value in sent.items()))
    yield sent
    _clean(kafka, registry)


def _clean(kafka, registry):
    there = {part.topic for part in kafka.partitions()}
    if left := [name for name in (TOPIC, COMPACTED) if name in there]:
        kafka.delete(left)
    for subject in SUBJECTS:
        if registry.versions(subject):
            registry.delete(subject, permanent=True)


def test_the_listing_counts_messages_and_bytes(records):
    [topic] = [t for t in from_json(venice("topics", "-i", "lab", "--json"), "topics")["topics"] if t["name"] == TOPIC]
    sizes = topic.pop("size_bytes"), topic.pop("disk_bytes")
    assert topic == {
        "name": TOPIC,
        "partitions": 2,
        "replication": 3,
        "under_replicated": 0,
        "offline": 0,
        "messages": len(records),
        "retention_ms": -1,
        "retention_bytes": -1,
        "cleanup_policy": "delete",
        "owner": None,
    }
    assert sum(len(value or b"") for value in records.values()) < sizes[0] < 10_000
    assert sizes[1] == 3 * sizes[0]


def test_internal_topics_are_listed_only_when_asked_for(records):
    assert "__consumer_offsets" not in venice("-t", "-i", "lab")
    assert "__consumer_offsets" in venice("topics", "-i", "lab", "--all")


def test_records_of_every_format(records):
    found = {record["key"]: record for record in shown(TOPIC, "--from-beginning")}
    assert list(found) == list(records)
    assert {name: r["value_format"] for name, r in found.items()} == {name: name for name in records} | {"unknown": "hex", "broken": "hex"}
    assert found["avro"]["value"] == PAYMENT
    assert found["avro"]["value_schema"]["subject"] == "topics_avro-value"
    assert found["json-schema"]["value"] == {"a": "ü"}
    assert found["protobuf"]["value"] == {"id": "b", "at": {"lat": 45.5, "lon": 0.0}, "number": "7"}
    assert found["json"]["value"] == {"plain": [1, 2.5, None]}
    assert found["text"]["value"] == "Zürich"
    assert found["hex"]["value"] == "0xfafbfcfdfeff"
    assert found["null"]["value"] is None
    assert found["unknown"]["value_error"] == "the schema registry has no schema with the id 2147483647"
    assert found["broken"]["value_error"].startswith("the bytes don't fit the Avro schema")
    assert found["broken"]["value"] == "0x" + records["broken"].hex()


def test_the_newest_records_one_key_and_one_offset(records):
    assert [r["key"] for r in shown(TOPIC, "-n", "2")] == ["unknown", "broken"]
    assert [r["key"] for r in shown(TOPIC, "--key", "text")] == ["text"]
    assert [r["key"] for r in shown(TOPIC, "--partition", "0", "--offset", "1", "-n", "2")] == ["json-schema", "protobuf"]
    assert shown(TOPIC, "--partition", "1") == []


def test_people_read_the_reason(records):
    text = venice("topics", "show", TOPIC, "-i", "lab", "-n", "2")
    assert "0:7" in text
    assert "value not decoded: the schema registry has no schema with the id 2147483647" in text


def test_showing_leaves_no_consumer_group(records, kafka):
    before = {group.group_id for group in kafka.admin.list_consumer_groups().result().valid}
    shown(TOPIC, "-n", "1")
    after = {group.group_id for group in kafka.admin.list_consumer_groups().result().valid}
    assert "venice" not in before | after


def test_a_registry_that_is_away_is_one_warning(records, kafka):
    codec = Codec(Registry(["http://127.0.0.1:1"], names={"http://127.0.0.1:1": "schema-registry on lab-1"}))
    first, second = codec.decode(records["avro"], TOPIC), codec.decode(records["json-schema"], TOPIC)
    assert (first.format, second.format) == ("hex", "hex")
    assert "schema-registry on lab-1" in codec.problem
    assert codec.decode(records["text"]).value == "Zürich"


def test_following_prints_new_records_and_ends_with_130(records, kafka):
    child = pexpect.spawn(
        VENICE[0], [*VENICE[1:], "topics", "show", TOPIC, "-i", "lab", "--follow"], cwd=ROOT, encoding="utf-8", timeout=PATIENCE
    )
    key = f"followed-{uuid.uuid4()}"

    def seen():
        produce(kafka, TOPIC, (key, "now"))
        return child.expect([key, pexpect.TIMEOUT], timeout=1) == 0

    # the first ones may come before it reads
    wait_until(seen, "the record is printed")
    child.kill(signal.SIGINT)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_following_ends_after_n(records, kafka):
    done = venice("topics", "show", TOPIC, "-i", "lab", "--follow", "--from-beginning", "-n", "3", "-o", "json")
    assert [json.loads(line)["key"] for line in done.splitlines()] == ["avro", "json-schema", "protobuf"]


def test_made_changed_and_deleted(deployed, kafka):
    options = ("--partitions", "2", "--retention", "7d", "--config", "max.message.bytes=200000")
    assert "2 partitions, 3 replicas" in venice("topics", "new", COMPACTED, "-i", "lab", *options)
    assert "exists already: 2 partitions" in venice("topics", "new", COMPACTED, "-i", "lab", expect=2)

    def own():
        found = from_json(venice("topics", "config", COMPACTED, "-i", "lab", "--json"), "topics-config")
        return {setting["name"]: setting["value"] for setting in found["settings"]}

    assert own() == {"retention.ms": "604800000", "max.message.bytes": "200000"}
    # what makes Kafka remove records is asked for, and here nobody answers
    refused = subprocess.run(
        [*VENICE, "topics", "retain", COMPACTED, "1d", "-i", "lab"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "remove from topics_compacted records older than 1d" in refused.stderr
    assert own()["retention.ms"] == "604800000"
    venice("topics", "retain", COMPACTED, "unlimited", "-i", "lab")
    venice("topics", "config", COMPACTED, "max.message.bytes=", "-i", "lab")
    assert own() == {"retention.ms": "-1", "cleanup.policy": "delete"}
    assert "cleanup.policy: delete -> compact" in venice("topics", "compact", COMPACTED, "-i", "lab", "--yes")
    assert "nothing to change" in venice("topics", "compact", COMPACTED, "-i", "lab")
    assert "did you mean retention.ms" in venice("topics", "config", COMPACTED, "retention.m=1", "-i", "lab", expect=2)
    assert "belongs to Kafka" in venice("topics", "delete", COMPACTED, "__consumer_offsets", "-i", "lab", "--yes", expect=2)
    child = pexpect.spawn(
        VENICE[0], [*VENICE[1:], "topics", "delete", COMPACTED, "-i", "lab"], cwd=ROOT, encoding="utf-8", timeout=PATIENCE
    )
    child.expect("Delete it")
    child.sendline("y")
    child.expect("deleted")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    # gone on every broker: it can be made anew at once
    venice("topics", "new", COMPACTED, "-i", "lab")
    venice("topics", "delete", COMPACTED, "-i", "lab", "--yes")
    assert "does not exist" in venice("topics", "show", COMPACTED, "-i", "lab", expect=2)


def test_nothing_is_left_out_in_80_columns(records):
    done = subprocess.run(
        [*VENICE, "topics", "-i", "lab"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert TOPIC in done.stdout


def test_the_listing_with_a_broker_down(records, deployed):
    """Under-replicated is shown, and what the broker has on its disk is said to be unknown."""
    stop = on("lab-2", ["sudo", "docker", "stop", "venice-kafka"])
    assert stop.returncode == 0, stop.stderr
    try:

        def listed():
            found = from_json(venice("topics", "-i", "lab", "--json"), "topics")
            [topic] = [t for t in found["topics"] if t["name"] == TOPIC]
            return (topic, found["silent_brokers"]) if topic["under_replicated"] == 2 and not topic["offline"] else None

        topic, silent = wait_until(listed, "the topic is under-replicated")
        assert topic["size_bytes"] > 0
        assert topic["disk_bytes"] is None
        assert [broker["id"] for broker in silent] == [2]
        assert "broker 2 did not answer" in venice("topics", "-i", "lab")
        assert shown(TOPIC, "--key", "text")[0]["value"] == "Zürich"
    finally:
        on("lab-2", ["sudo", "docker", "start", "venice-kafka"])
        wait_until(in_sync, "the broker is back and in sync")
