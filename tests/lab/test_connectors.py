"""`venice connectors` on the lab: topics to tables that follow them, what is refused, failures with their causes, a worker that stops."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.lab.support import ROOT, from_json, on, sql, venice, whole
from tests.waiting import PATIENCE, wait_until
from venice import groups
from venice.cluster import Cluster
from venice.connect import Connect
from venice.kafka import Kafka, TopicSpec
from venice.registry import Registry

TOPIC = "conntest_readings"
BUS = {
    "type": "record",
    "name": "Reading",
    "namespace": "venice.conntest",
    "fields": [
        {"name": "sensor", "type": "string"},
        {"name": "value", "type": ["null", "double"], "default": None},
        {"name": "place", "type": {"type": "record", "name": "Place", "fields": [{"name": "city", "type": "string"}]}},
        {"name": "extra", "type": {"type": "map", "values": "string"}},
    ],
}


class Readings:
    """A topic of sensors' readings, and all that the tests make of it."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.kafka = Kafka.of(cluster)
        self.producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
        registry = SchemaRegistryClient({"url": cluster.registry_urls[0]})
        self.serialize = AvroSerializer(registry, json.dumps(BUS))

    def send(self, *readings: tuple[str, float], topic: str = TOPIC) -> None:
        context = SerializationContext(TOPIC, MessageField.VALUE)
        for sensor, value in readings:
            record = {"sensor": sensor, "value": value, "place": {"city": "Mestre"}, "extra": {}}
            self.producer.produce(topic, key=sensor, value=self.serialize(record, context))
        assert self.producer.flush(120) == 0

    def table(self, name: str) -> str:
        """Its rows, as text in order; empty when there is no such table."""
        if sql(self.cluster, f"select to_regclass('{name}') is null") == "t":
            return ""
        return sql(self.cluster, f"select string_agg(sensor || '=' || value, ' ' order by sensor, value) from {name}")  # noqa: S608

    def clean(self) -> None:
        """Remove whatever a run has made or left."""
        connect = Connect.of(self.cluster)
        for name in connect.connectors():
            if name.startswith("conntest"):
                connect.delete(name)
        names = {part.topic for part in self.kafka.partitions()}
        found = [name for name in names if name.startswith(("conntest", "dlq.conntest"))]
        if found:
            self.kafka.delete(found)
        for name in [g.group_id for g in self.kafka.admin.list_consumer_groups().result().valid]:
            if name.startswith("connect-conntest"):
                wait_until(lambda name=name: groups.listing(self.kafka, {}, name)[0].state in ("empty", "dead"), f"{name} has no members")
                groups.delete(self.kafka, name)
        registry = Registry.of(self.cluster)
        for subject in registry.subjects():
            if subject.startswith("conntest"):
                registry.delete(subject)
        tables = "select coalesce(string_agg(tablename, ','), '') from pg_tables where tablename like 'conntest%'"
        if names := sql(self.cluster, tables):
            sql(self.cluster, f"drop table {names}")


@pytest.fixture(scope="module")
def readings(deployed: Cluster) -> Iterator[Readings]:
    found = Readings(deployed)
    found.clean()
    found.kafka.ensure_topics([TopicSpec(TOPIC, 2)], 3)
    found.send(("a", 1.0), ("b", 1.0), ("a", 2.0))
    yield found
    found.clean()


def connectors(*arguments: str, expect: int = 0) -> str:
    return venice("connectors", "-i", "lab", *arguments, expect=expect, timeout=PATIENCE)


def listed(name: str) -> dict:
    found = from_json(connectors("--json"), "connectors")
    return next((c for c in found["connectors"] if c["name"] == name), {})


@pytest.fixture(scope="module")
def latest(readings: Readings, tmp_path_factory) -> tuple[str, Path]:
    """A table with the newest reading of each sensor: what making it printed, and the file that it was saved as."""
    file = tmp_path_factory.mktemp("saved") / "latest.json"
    return connectors("new", "--topic", TOPIC, "--table", "conntest_latest", "--key", "sensor", "--save", str(file)), file


@pytest.fixture(scope="module")
def every(readings: Readings) -> str:
    """A table with every reading."""
    connectors("new", "--topic", TOPIC, "--table", "conntest_all")
    return "conntest_all"


def test_upsert_follows_the_topic(readings, latest):
    output, file = latest
    assert "field extra is left out: a table can't hold a map" in output
    assert "conntest_latest RUNNING, 1/1 tasks running" in output
    assert "table conntest_latest has" in output
    wait_until(lambda: readings.table("conntest_latest").startswith("a=2 b=1"), "the newest reading of each sensor")
    readings.send(("a", 3.0), ("c", 1.0))
    wait_until(lambda: readings.table("conntest_latest").startswith("a=3 b=1 c=1"), "the table follows")
    # nested records are columns of their own
    assert sql(readings.cluster, "select distinct place_city from conntest_latest") == "Mestre"
    assert "${postgres_host}" in file.read_text()
    assert set(json.loads(file.read_text())) == {"name", "config"}


def test_insert_keeps_every_record(readings, every):
    readings.send(("i", 1.0), ("i", 2.0))
    wait_until(lambda: "i=1 i=2" in readings.table(every), "every reading")
    shown = rf"conntest_all +sink +RUNNING +1/1 +lab-[23] +{TOPIC}"
    wait_until(lambda: re.search(shown, connectors()), "it is listed as running")


def test_the_records_own_key_and_what_deleting_leaves(readings):
    connectors("new", "conntest_by_key", "--topic", TOPIC, "--record-key", "sensor_key")
    ends = readings.kafka.offsets((part.topic, part.id) for part in readings.kafka.partitions(TOPIC))
    keys = f"select count(*) = count(distinct sensor_key) and bool_and(sensor_key = sensor) from {TOPIC}"  # noqa: S608
    wait_until(lambda: sql(readings.cluster, keys) == "t", "one row for each key")

    def caught_up() -> bool:
        progress = from_json(connectors("show", "conntest_by_key", "--json"), "connectors-show")["progress"]
        return sum(p["offset"] for p in progress) >= sum(end for _, end in ends.values())

    wait_until(caught_up, "all records committed")
    assert "no terminal" in connectors("delete", "conntest_by_key", expect=2)
    assert listed("conntest_by_key")
    output = connectors("delete", "conntest_by_key", "--yes")
    assert f"drop table {TOPIC}" in output
    assert not listed("conntest_by_key")
    assert readings.table(TOPIC)
    # one of the same name goes on where that one ended, and says so when there is nothing left for it to read
    output = connectors("new", "conntest_by_key", "--topic", TOPIC, "--record-key", "sensor_key")
    assert "an earlier connector conntest_by_key has read all of topic" in output


def test_show_and_plugins(latest):

    def running() -> dict | None:
        found = from_json(connectors("show", "conntest_latest", "--json"), "connectors-show")
        return found if found["running"] else None

    found = wait_until(running, "it runs")
    assert {task["host"] for task in found["tasks"]} <= {"lab-2", "lab-3"}
    assert found["config"]["connection.password"] == "${file:/etc/kafka/secrets.properties:postgres_password}"
    [jdbc] = [p for p in from_json(connectors("plugins", "--json"), "connectors-plugins") if "Jdbc" in p["class"]]
    assert (jdbc["type"], bool(jdbc["version"])) == ("sink", True)


def test_pause_resume_and_restart(readings, latest):
    assert "conntest_latest PAUSED" in connectors("pause", "conntest_latest")
    assert listed("conntest_latest")["state"] == "PAUSED"
    assert "is PAUSED" in connectors("restart", "conntest_latest", expect=2)
    readings.send(("p", 1.0))
    connectors("resume", "conntest_latest")
    wait_until(lambda: "p=1" in readings.table("conntest_latest"), "what came meanwhile")
    assert "conntest_latest RUNNING, 1/1" in connectors("restart", "conntest_latest")


def test_what_is_wrong_is_refused_and_nothing_is_made(readings, latest):
    sql(readings.cluster, "create table conntest_taken (sensor text)")
    for arguments, says in (
        (["conntest_x", "--topic", TOPIC, "--key", "value"], "may be null"),
        (["conntest_x", "--topic", "conntest_reading", "--key", "sensor"], f"did you mean {TOPIC}?"),
        (["conntest_x", "--topic", TOPIC, "--table", "conntest_taken", "--key", "sensor"], "exists and has no primary key"),
        (["conntest_latest", "--topic", TOPIC], "conntest_latest exists already"),
        (["conntest_x", "--topic", TOPIC, "--table", "conntest_x", "--set", "tasks.max=many"], "tasks.max = many: Not a number"),
        (["conntest_x", "--topic", TOPIC, "--table", "conntest_x", "--set", "insert.mod=upsert"], "did you mean insert.mode?"),
        (["conntest_x", "--set", "connector.class=FileStreamSource"], "topic = (not given): Missing required configuration"),
        ([], "no terminal"),
    ):
        assert says in connectors("new", *arguments, expect=2)
    assert not listed("conntest_x")
    assert not [part for part in readings.kafka.partitions() if part.topic == "dlq.conntest_x"]


def test_a_file_with_an_option_changed(readings, tmp_path):
    file = tmp_path / "lines.json"
    config = {"connector.class": "FileStreamSink", "topics": TOPIC, "file": "/tmp/conntest", "value.converter": "a.B"}
    file.write_text(json.dumps({"name": "conntest_file", "config": config}))
    assert "value.converter = a.B: Class a.B could not be found" in connectors("new", "--file", str(file), expect=2)
    converter = "value.converter=org.apache.kafka.connect.converters.ByteArrayConverter"
    output = connectors("new", "--file", str(file), "--set", converter)
    assert "conntest_file RUNNING, 1/1 tasks running" in output
    assert "dlq.conntest_file: created" in output
    connectors("delete", "conntest_file", "--yes")


def test_dlq_shows_what_a_sink_could_not_take(readings, latest):
    readings.producer.produce(TOPIC, key="bad", value=b"no Avro")
    assert readings.producer.flush(120) == 0
    output = wait_until(lambda: (said := connectors("dlq", "conntest_latest", "-n", "1")) and TOPIC in said and said, "the dead letter")
    assert "bad" in output
    assert "exception" in output.lower()


def test_a_wrong_password_shows_the_cause(readings):
    output = connectors(
        "new", "conntest_password", "--topic", TOPIC, "--table", "conntest_password", "--set", "connection.password=wrong", expect=1
    )
    cause = 'PSQLException: FATAL: password authentication failed for user "venice"'
    assert cause in output
    assert "venice connectors delete conntest_password" in output
    row = wait_until(lambda: (row := listed("conntest_password")).get("failures") and row, "the task has failed")
    assert re.fullmatch(rf"conntest_password, task 0 on lab-[23]: {re.escape(cause)}", row["failures"][0])
    # while it is tried again there is none for a moment
    wait_until(lambda: cause in connectors(), "the cause is listed")
    assert json.loads(connectors("show", "conntest_password", "--json"))["config"]["connection.password"] == "********"
    connectors("delete", "conntest_password", "--yes")


DOWN, CLEAR = "\x1b[B", "\x15"


def guided(log: Path, *steps: tuple[str, str]) -> str:
    """Answers each question that is awaited; returns all that was on the terminal."""
    with log.open("w+") as screen:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "venice", "connectors", "new", "-i", "lab"],
            cwd=str(ROOT),
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=(50, 120),
        )
        child.logfile_read = screen
        for question, answer in steps:
            child.expect_exact(question)
            child.send(answer)
        child.expect(pexpect.EOF, timeout=PATIENCE)
        child.close()
        seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", log.read_text())
        assert child.exitstatus == 0, seen
        return seen


def test_guided_to_a_table_that_updates_live(readings, tmp_path):
    file = tmp_path / "guided.json"
    seen = guided(
        tmp_path / "screen",
        ("What is to be made?", "\r"),
        ("Topic (type to search)", f"{TOPIC}\r"),
        ("Table:", f"{CLEAR}conntest_guided\r"),
        ("Which rows?", "\r"),
        ("Key: one row", " \r"),
        ("Name of the connector:", "\r"),
        ("Save it as a file", "y"),
        ("File:", f"{CLEAR}{file}\r"),
        ("Create connector conntest_guided?", "y\r"),
    )
    assert "value       double, may be null" in seen
    assert "conntest_guided RUNNING, 1/1 tasks running" in seen
    assert "venice psql -c 'table conntest_guided limit 10'" in seen
    readings.send(("live", 1.0))
    wait_until(lambda: "live=1" in readings.table("conntest_guided"), "the new record")
    readings.send(("live", 2.0))
    wait_until(lambda: "live=2" in readings.table("conntest_guided"), "its newer value")
    assert "live=1" not in readings.table("conntest_guided")
    # what was saved makes the same connector
    connectors("delete", "conntest_guided", "--yes")
    assert "conntest_guided RUNNING" in connectors("new", "--file", str(file))


def test_guided_with_another_plugin(readings, tmp_path):
    seen = guided(
        tmp_path / "screen",
        ("What is to be made?", f"{DOWN}\r"),
        ("Plugin:", f"{DOWN}{DOWN}{DOWN}\r"),
        ("Name of the connector:", "conntest_lines\r"),
        ("topic (string, required)", f"{TOPIC}_lines\r"),
        ("More options?", "batch.size\r"),
        ("batch.size (int)", f"{CLEAR}many\r"),
        ("batch.size: Not a number of type INT", ""),
        ("batch.size (int)", f"{CLEAR}7\r"),
        ("More options?", "\r"),
        ("Save it as a file", "n"),
        ("Create connector conntest_lines?", "y\r"),
    )
    assert "FileStreamSourceConnector" in seen
    assert json.loads(connectors("show", "conntest_lines", "--json"))["config"]["batch.size"] == "7"
    connectors("delete", "conntest_lines", "--yes")


def docker(host: str, *arguments: str) -> None:
    done = on(host, ["sudo", "docker", *arguments])
    assert done.returncode == 0, done.stderr


def test_tasks_move_to_the_other_worker(readings, every):
    host = listed(every)["tasks"][0]["host"]
    other = {"lab-2": "lab-3", "lab-3": "lab-2"}[host]
    docker(host, "stop", "venice-connect")
    try:
        output = connectors()
        assert f"connect on {host}" in output
        assert "does not answer" in output
        assert "venice up" in output

        def answers() -> dict:
            return {w["host"]: w["answers"] for w in from_json(connectors("--json"), "connectors")["workers"]}

        wait_until(lambda: answers() == {host: False, other: True}, "one answers")

        def moved() -> bool:
            row = listed(every)
            return row.get("running") and {task["host"] for task in row["tasks"]} == {other}

        wait_until(moved, f"the task on {other}")
        readings.send(("moved", 1.0))
        wait_until(lambda: "moved=1" in readings.table(every), "written by the other worker")
    finally:
        docker(host, "start", "venice-connect")
        wait_until(whole, "everything healthy")
    wait_until(lambda: all(w["answers"] for w in json.loads(connectors("--json"))["workers"]), "all workers answer")


def test_a_task_whose_state_is_lost_is_noticed_and_started_anew(deployed):
    connect, name = Connect.of(deployed), "bus_locations_latest"
    # as Connect's workers do when they leave and come back at the wrong moment
    producer = Producer({"bootstrap.servers": deployed.bootstrap_servers})
    producer.produce("connect-lab.status", key=f"status-task-{name}-0", value=None)
    assert producer.flush(PATIENCE) == 0
    wait_until(lambda: not connect.status(name).tasks, "its state is gone")
    assert "nothing changed" in venice("deploy", "-i", "lab")
    assert connect.status(name).running


def test_a_sink_goes_on_while_the_host_that_leads_its_group_is_cut_off(deployed, readings, every):
    group = f"connect-{every}"

    def leader() -> str | None:
        kafka = Kafka.of(deployed)  # each time anew: a client remembers the coordinator that it has found
        try:
            description = kafka.admin.describe_consumer_groups([group])[group].result(30)
        except KafkaException:  # it moves
            return None
        return next((i.host for i in deployed.instances("kafka") if i.address == description.coordinator.host), None)

    if wait_until(leader, "the group has a coordinator") == "lab-3":  # the table's own host
        venice("restart", "kafka@lab-3", "-i", "lab")
    host = wait_until(lambda: (found := leader()) != "lab-3" and found, "another host coordinates it")
    [before] = groups.listing(readings.kafka, {}, group)
    venice("lab", "cut", host)
    try:
        readings.send(("cut", 1.0))
        wait_until(lambda: "cut=1" in readings.table(every), f"written without {host}")
    finally:
        venice("lab", "mend", host)
        wait_until(whole, f"{host} is back")
    # the client that has asked it before is told that it is the coordinator no more, and finds the one that is
    [after] = groups.listing(readings.kafka, {}, group)
    assert sum(part.committed or 0 for part in after.partitions) >= sum(part.committed or 0 for part in before.partitions)
