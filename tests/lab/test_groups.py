"""`venice groups` against the lab's brokers, and a sink connector whose group is set through Kafka Connect."""

import contextlib
import json
import time

import pexpect
import pytest
from confluent_kafka import Consumer, Producer

from tests.lab.support import ROOT, VENICE, from_json, received, sql, venice
from tests.waiting import PATIENCE, wait_until
from venice import groups
from venice.connect import Connect
from venice.kafka import Kafka
from venice.specs import TopicSpec

TOPIC = "schemas_groups"
GROUP = "schemas_groups_reader"
SINK = "schemas_groups_sink"


@pytest.fixture(scope="module")
def kafka(deployed):
    return Kafka.of(deployed)


@pytest.fixture(scope="module")
def written(kafka):
    """A topic of two partitions with ten records each; the time in ms between the fifth and the sixth of each."""
    kafka.create(TopicSpec(TOPIC, 2), 3)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    now = round(time.time() * 1000) - 60_000
    for n in range(10):
        for partition in (0, 1):
            # records carry their own times: five old ones and five new ones
            producer.produce(TOPIC, f"record {n}", partition=partition, timestamp=now + (n - 5) * 1000)
    assert producer.flush(120) == 0
    yield now - 500
    kafka.delete([TOPIC])


@contextlib.contextmanager
def reader(kafka, records: int):
    """A consumer of the group that has read and committed so many records."""
    settings = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": GROUP, "client.id": "schemas-reader"}
    consumer = Consumer(settings | {"enable.auto.commit": False, "auto.offset.reset": "earliest"})
    consumer.subscribe([TOPIC])
    try:
        for _ in range(records):
            message = received(consumer, "a record")
            assert not message.error()
        if records:
            consumer.commit(asynchronous=False)
        yield consumer
    finally:
        consumer.close()


@pytest.fixture(scope="module")
def group(kafka, written):
    """A group without members that has read everything."""
    with reader(kafka, 20):
        pass
    yield GROUP
    groups.delete(kafka, GROUP)


def committed(kafka: Kafka) -> list[int]:
    """What the group has committed, by partition."""
    [found] = groups.listing(kafka, {}, GROUP)
    return [part.committed for part in found.partitions]


def put(kafka: Kafka, to: str) -> None:
    """Bring the group to where a test begins."""
    groups.apply(kafka, None, groups.plan(kafka, None, {}, GROUP, groups.Target.of(to)))


def reset(*arguments: str) -> dict:
    return from_json(venice("groups", "reset", GROUP, "-i", "lab", "--json", *arguments), "groups-reset")


def test_lag_and_members(kafka, group):
    [mine] = [g for g in from_json(venice("groups", "-i", "lab", "--json"), "groups")["groups"] if g["group"] == group]
    assert (mine["state"], mine["members"], mine["topics"], mine["lag"]) == ("empty", 0, [TOPIC], 0)
    put(kafka, "7")
    with reader(kafka, 0) as consumer:
        wait_until(lambda: consumer.poll(0.5) is None and consumer.assignment(), "partitions")
        found = from_json(venice("groups", "show", GROUP, "-i", "lab", "--json"), "groups-show")
        assert [(p["partition"], p["committed"], p["end"], p["lag"], p["client_id"]) for p in found["partitions"]] == [
            (0, 7, 10, 3, "schemas-reader"),
            (1, 7, 10, 3, "schemas-reader"),
        ]


def test_a_dry_run_changes_nothing(kafka, group):
    put(kafka, "latest")
    planned = reset("--to", "earliest", "--dry-run")
    assert [(m["from"], m["to"], m["repeated"]) for m in planned["partitions"]] == [(10, 0, 10), (10, 0, 10)]
    assert (planned["applied"], planned["hindrance"], planned["connector"]) == (False, "", None)
    assert committed(kafka) == [10, 10]


def test_every_way_to_say_where_to(kafka, group, written):
    put(kafka, "latest")
    for to, topic, offsets in (
        ("earliest", TOPIC, [0, 0]),
        ("4", f"{TOPIC}:1", [0, 4]),
        (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(written / 1000)) + f".{written % 1000:03d}Z", TOPIC, [5, 5]),
        ("-1h", TOPIC, [0, 0]),
        ("latest", TOPIC, [10, 10]),
    ):
        assert reset("--to", to, "--topic", topic, "--yes")["applied"]
        assert committed(kafka) == offsets, to
    # outside the log: moved to its end, and said
    said = venice("groups", "reset", GROUP, "-i", "lab", "--to", "999", "--yes")
    assert "the log ends at 10" in said and "nothing to do" in said


def test_it_asks(kafka, group):
    put(kafka, "latest")
    assert "Nobody can answer" in venice("groups", "reset", GROUP, "-i", "lab", "--to", "earliest", expect=2)
    for answer, offset in (("n", 10), ("y", 0)):
        asked = pexpect.spawn(
            VENICE[0], [*VENICE[1:], "groups", "reset", GROUP, "-i", "lab", "--to", "earliest"], cwd=ROOT, timeout=PATIENCE
        )
        asked.expect("10 again")
        asked.expect(f"Set these offsets of {GROUP}")
        asked.sendline(answer)
        asked.expect(pexpect.EOF)
        assert committed(kafka) == [offset, offset]


def test_a_group_in_use_is_refused(kafka, group):
    put(kafka, "3")
    with reader(kafka, 1):
        before = committed(kafka)
        said = venice("groups", "reset", GROUP, "-i", "lab", "--to", "earliest", "--yes", expect=2)
        assert f"group {GROUP} is in use" in said and "schemas-reader on" in said and "stop these consumers" in said
        assert committed(kafka) == before
        assert reset("--to", "earliest", "--dry-run")["hindrance"] == f"group {GROUP} is in use"
        assert "is in use" in venice("groups", "delete", GROUP, "-i", "lab", "--yes", expect=2)


def test_wrong_input(group):
    assert "did you mean" in venice("groups", "show", GROUP[:-1], "-i", "lab", expect=2)
    assert "neither earliest" in venice("groups", "reset", GROUP, "-i", "lab", "--to", "soon", expect=2)
    assert f"topic {TOPIC} has no partition 7" in venice(
        "groups", "reset", GROUP, "-i", "lab", "--to", "0", "--topic", f"{TOPIC}:7", expect=2
    )


def test_delete(kafka, written):
    name = "schemas_groups_gone"
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": name, "auto.offset.reset": "earliest"})
    consumer.subscribe([TOPIC])
    received(consumer, "a record")
    consumer.close()
    assert "Nobody can answer" in venice("groups", "delete", name, "-i", "lab", expect=2)
    assert f"deleted group {name}" in venice("groups", "delete", name, "-i", "lab", "--yes")
    assert f"there is no group {name}" in venice("groups", "show", name, "-i", "lab", expect=2)


@pytest.fixture(scope="module")
def sink(deployed, written):
    """A sink that has written the topic's twenty records into a table, each as a row of its own."""
    connect = Connect.of(deployed)
    source = json.loads((ROOT / "pipelines" / "bus_locations" / "connectors" / "bus_locations_latest.json").read_text())["config"]
    variables = deployed.pipeline_vars
    config = {key: source[key] for key in source if key.startswith(("connector.class", "connection.", "hibernate."))}
    for name in ("postgres_host", "postgres_port", "postgres_db"):
        config["connection.url"] = config["connection.url"].replace(f"${{{name}}}", str(variables[name]))
    connect.put(
        SINK,
        config
        | {
            "topics": TOPIC,
            "collection.name.format": SINK,
            "insert.mode": "insert",
            "primary.key.mode": "none",
            "schema.evolution": "basic",
            "value.converter": "org.apache.kafka.connect.storage.StringConverter",
            "transforms": "row",
            "transforms.row.type": "org.apache.kafka.connect.transforms.HoistField$Value",
            "transforms.row.field": "text",
        },
    )
    connect.wait_running([SINK], 60)
    wait_until(lambda: rows(deployed) == "20", "twenty rows")
    yield SINK
    connect.delete(SINK)
    venice("groups", "delete", f"connect-{SINK}", "-i", "lab", "--yes")
    sql(deployed, f'drop table if exists "{SINK}"')


def rows(cluster) -> str:
    there = sql(cluster, f"select to_regclass('{SINK}') is not null") == "t"
    return sql(cluster, f"select count(*) from {SINK}") if there else ""  # noqa: S608 (a name of this module)


def test_a_sinks_group_is_set_through_connect(deployed, sink):
    name = f"connect-{sink}"
    assert f"belongs to connector {sink}" in venice("groups", "delete", name, "-i", "lab", "--yes", expect=2)
    said = venice("groups", "reset", name, "-i", "lab", "--to", "5", "--yes")
    assert f"connector {sink} will be stopped for it and resumed afterwards" in said
    assert f"stopping connector {sink}" in said and f"resumed connector {sink}" in said and f"{sink} RUNNING" in said
    # five of each partition's ten records are written again
    wait_until(lambda: rows(deployed) == "30", "thirty rows")
    Connect.of(deployed).wait_running([sink], 30)
    # one that somebody has stopped stays stopped
    Connect.of(deployed).stop(sink)
    assert f"connector {sink} is stopped, and stays so" in venice("groups", "reset", name, "-i", "lab", "--to", "9", "--yes")
    assert Connect.of(deployed).status(sink).state == "STOPPED"
    Connect.of(deployed).resume(sink)
    wait_until(lambda: rows(deployed) == "32", "thirty-two rows")
