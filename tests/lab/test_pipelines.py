"""Pipelines as code, end to end: applied, compared, changed, pruned, deployed; producers that wait and come back.

The tests share one pipeline and run in the order of this file.
"""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import docker
import pexpect
import pytest

from tests.lab.support import ROOT, VENICE, from_json, on, sql, starts, status, venice
from tests.waiting import PATIENCE, wait_until
from venice import images
from venice.cluster import Cluster
from venice.connect import Connect
from venice.kafka import Kafka
from venice.registry import Registry
from venice.shipping import provide

NAME = "pl_test"
IMAGE = "pl-test/foreign:1"
PIPELINE = """description: A pipeline of the tests
topics:
  - name: pl_test
    partitions: 2
schemas:
  - subject: pl_test-value
    file: value.avsc
    compatibility: BACKWARD
sql:
  - file: tables.sql
    on: postgres
connectors:
  - a.json
  - b.json
producers:
  - name: pl-feed
    script: feed.py
    topic: pl_test
"""
HALF = "CREATE TABLE pl_test_half (id text);\n\nINSERT INTO pl_test_half\n  SELECT nothing\n  FROM pl_test_half;\n"
FIELDS = [{"name": "id", "type": "string"}, {"name": "n", "type": "int"}]
FEED = """
import os, time
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

registry, topic = SchemaRegistryClient({"url": os.environ["SCHEMA_REGISTRY_URL"]}), os.environ["TOPIC"]
schema = registry.get_latest_version(f"{topic}-value").schema
serialize = AvroSerializer(registry, schema, conf={"auto.register.schemas": False, "use.latest.version": True})
producer = Producer({"bootstrap.servers": os.environ["BOOTSTRAP_SERVERS"]})
print("feeding", flush=True)
n = 0
while True:
    n += 1
    producer.produce(topic, key="one", value=serialize({"id": "one", "n": n}, SerializationContext(topic, MessageField.VALUE)))
    producer.flush()
    time.sleep(0.5)
"""


def schema(fields: list[dict]) -> str:
    return json.dumps({"type": "record", "name": "PlTest", "fields": fields})


def connector(name: str, **changes: str) -> str:
    shipped = json.loads((ROOT / "pipelines/bus_locations/connectors/bus_locations_latest.json").read_text())["config"]
    own = {"topics": NAME, "collection.name.format": f"pl_test_{name}", "primary.key.fields": "id"}
    return json.dumps({"name": f"pl_test_{name}", "config": shipped | own | changes}, indent=2)


@pytest.fixture(scope="module")
def pipeline(deployed, tmp_path_factory):
    """The folder of the pipeline; all that it made is gone afterwards, and what an earlier run left before."""
    folder = tmp_path_factory.mktemp("pipelines") / NAME
    folder.mkdir()
    removed(deployed, folder)
    write(folder, "pipeline.yml", PIPELINE)
    write(folder, "value.avsc", schema(FIELDS))
    write(folder, "tables.sql", "-- where it comes from\nCREATE TABLE pl_test_source (\n  id text PRIMARY KEY\n);\n")
    write(folder, "feed.py", FEED)
    write(folder, "a.json", connector("a"))
    write(folder, "b.json", connector("b"))
    yield folder
    removed(deployed, folder)
    assert sql(deployed, "SELECT count(*) FROM venice_pipelines.sql WHERE pipeline = 'pl_test'") == "0"
    assert NAME not in [row["name"] for row in listed()]


def removed(cluster: Cluster, folder: Path) -> None:
    """Nothing of the pipeline is left: neither what it made, nor the tables that its connectors and statements made."""
    write(folder, "pipeline.yml", "description: empty")
    venice("apply", str(folder), "-i", "lab", "--prune", "--yes")
    sql(cluster, "DROP TABLE IF EXISTS pl_test_source, pl_test_a, pl_test_b")


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def apply(folder: Path, *arguments: str, expect: int = 0) -> str:
    return venice("apply", str(folder), "-i", "lab", *arguments, expect=expect)


def changes(folder: Path, *arguments: str) -> list[str]:
    """What was changed, as `kind name`, by the documented JSON."""
    done = from_json(stdout("apply", str(folder), "-i", "lab", "--json", *arguments), "apply")
    return [f"{c['kind']} {c['name']}" for c in done["pipelines"][0]["changes"]]


def stdout(*arguments: str, expect: int = 0) -> str:
    """Standard output alone: the run's progress goes to the other."""
    done = subprocess.run([*VENICE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def listed() -> list[dict]:
    return from_json(stdout("pipelines", "-i", "lab", "--json"), "pipelines")["pipelines"]


def topics(cluster: Cluster) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in Kafka.of(cluster).partitions():
        found[part.topic] = found.get(part.topic, 0) + 1
    return found


def feed(cluster: Cluster) -> tuple[str, str]:
    """Host and container of the producer."""
    [host] = cluster.groups["producer"]
    return host, "venice-producer-pl-feed"


def health(instance: str) -> str:
    return next((c["health"] for c in status()["containers"] if c["instance"] == instance), "")


def as_root(host: str, *argv: str) -> str:
    done = on(host, ["sudo", *argv])
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_check_shows_everything_and_changes_nothing(deployed, pipeline):
    output = apply(pipeline, "--check")
    wanted = ["topic pl_test", "topic dlq.pl_test_a", "topic dlq.pl_test_b", "schema pl_test-value", "sql tables.sql"]
    wanted += ["connector pl_test_a", "connector pl_test_b", "producer pl-feed"]
    assert [line[4:].split(" (")[0] for line in output.splitlines() if line.startswith("  + ")] == wanted
    assert NAME not in topics(deployed)
    assert NAME not in [row["name"] for row in listed()]


def test_apply_makes_everything_then_nothing(deployed, pipeline):
    output = apply(pipeline)
    assert "applied pl_test to lab: 8 changes" in output
    assert f"`venice install {pipeline}` names it there" in output
    wait_until(lambda: int(sql(deployed, "SELECT coalesce(max(n), 0) FROM pl_test_a") or 0) > 1, "rows that go on")
    assert sql(deployed, "SELECT tableowner FROM pg_tables WHERE tablename = 'pl_test_source'") == "venice"
    wait_until(lambda: health("producer-pl-feed") == "healthy", "the producer's health check was asked")
    before = starts(deployed)
    assert "nothing changed on lab" in apply(pipeline)
    assert changes(pipeline) == []
    assert starts(deployed) == before
    assert "apply" in venice("history", "-i", "lab", "last")


def test_one_field_changes_that_connector_only(deployed, pipeline):
    since = str(int(time.time()))
    write(
        pipeline,
        "a.json",
        connector(
            "a", **{"connection.pool.max_size": "3", "connection.password": "${file:/etc/kafka/secrets.properties:postgres_password}"}
        ),
    )
    found = from_json(stdout("diff", str(pipeline), "-i", "lab", "--json", expect=1), "diff")
    [change] = found["pipelines"][0]["changes"]
    assert (change["kind"], change["name"], change["action"]) == ("connector", "pl_test_a", "update")
    assert change["differences"] == [{"field": "connection.pool.max_size", "current": "4", "desired": "3"}]
    assert changes(pipeline) == ["connector pl_test_a"]
    venice("diff", str(pipeline), "-i", "lab")
    logs = "".join(as_root(w.host, "docker", "logs", "--since", since, w.container) for w in deployed.instances("connect"))
    assert "Creating task pl_test_a-0" in logs
    assert "Creating task pl_test_b-0" not in logs


def test_more_partitions_are_asked_for_and_fewer_refused(deployed, pipeline):
    write(pipeline, "pipeline.yml", PIPELINE.replace("partitions: 2", "partitions: 3"))
    asked = pexpect.spawn(VENICE[0], [*VENICE[1:], "apply", str(pipeline), "-i", "lab"], cwd=str(ROOT), timeout=PATIENCE, encoding="utf-8")
    asked.expect("pipeline.yml:4: topic pl_test gets 3 partitions instead of 2")
    asked.expect("Go on?")
    asked.sendline("n")
    asked.expect(pexpect.EOF)
    asked.close()
    assert asked.exitstatus == 130
    assert "--yes" in apply(pipeline, expect=2), "no terminal"
    assert topics(deployed)[NAME] == 2
    assert changes(pipeline, "--yes") == ["topic pl_test"]
    assert topics(deployed)[NAME] == 3
    write(pipeline, "pipeline.yml", PIPELINE)
    assert "pipeline.yml:4: topic pl_test has 3 partitions, the pipeline says 2" in apply(pipeline, expect=2)
    write(pipeline, "pipeline.yml", PIPELINE.replace("partitions: 2", "partitions: 3"))


def test_what_is_refused_leaves_all_as_it_was(deployed, pipeline):
    """An incompatible schema, then a configuration that Connect refuses: the new topic beside them is not made."""
    good = (pipeline / "pipeline.yml").read_text()
    write(pipeline, "pipeline.yml", good.replace("schemas:", "  - name: pl_test_new\nschemas:"))
    write(pipeline, "value.avsc", schema([*FIELDS, {"name": "m", "type": "int"}]))
    output = apply(pipeline, expect=2)
    assert "value.avsc: incompatible with subject pl_test-value (BACKWARD)" in output
    assert "field m" in output
    write(pipeline, "value.avsc", schema(FIELDS))
    write(pipeline, "b.json", connector("b", **{"tasks.max": "none"}))
    line = (pipeline / "b.json").read_text().splitlines().index('    "tasks.max": "none",') + 1
    assert f"b.json:{line}: Invalid value none" in apply(pipeline, expect=2)
    write(pipeline, "b.json", connector("b"))
    write(pipeline, "pipeline.yml", good)
    assert "pl_test_new" not in topics(deployed)
    assert changes(pipeline) == []


def test_failing_statements_name_their_line_and_keep_nothing(deployed, pipeline):
    write(
        pipeline, "tables.sql", "CREATE TABLE pl_test_half (id text);\n\nINSERT INTO pl_test_half\n  SELECT nothing\n  FROM pl_test_half;\n"
    )
    output = apply(pipeline, expect=1)
    assert 'tables.sql:4: ERROR: column "nothing" does not exist' in output
    assert sql(deployed, "SELECT to_regclass('pl_test_half') IS NULL") == "t"
    write(pipeline, "tables.sql", "CREATE ROLE pl_test;\n")
    assert "tables.sql:1: ERROR: permission denied" in apply(pipeline, expect=1)
    write(pipeline, "tables.sql", "COMMENT ON TABLE pl_test_source IS 'in ${postgres_db}, since 12:30:00';\n")
    assert changes(pipeline) == ["sql tables.sql"]
    assert sql(deployed, "SELECT obj_description('pl_test_source'::regclass)") == "in venice, since 12:30:00"
    assert changes(pipeline) == []


def test_a_killed_producer_comes_back_and_waits_for_the_registry(deployed, pipeline):
    host, container = feed(deployed)
    pid = as_root(host, "docker", "inspect", "-f", "{{.State.Pid}}", container).strip()
    registries = deployed.instances("schema_registry")
    for registry in registries:
        as_root(registry.host, "docker", "pause", registry.container)
    try:
        since = str(int(time.time()))
        as_root(host, "kill", "-9", pid)
        wait_until(lambda: "waiting for schema registry" in as_root(host, "docker", "logs", "--since", since, container), "it waits")
        assert "feeding" not in as_root(host, "docker", "logs", "--since", since, container)
    finally:
        for registry in registries:
            as_root(registry.host, "docker", "unpause", registry.container)
    wait_until(lambda: "feeding" in as_root(host, "docker", "logs", "--since", since, container), "it feeds again")
    wait_until(lambda: health("producer-pl-feed") == "healthy", "healthy again")


def test_what_somebody_changed_is_seen_and_put_right(deployed, pipeline):
    # in the current folder's pipelines/, where a name is looked for
    here = deployed.inventory_dir / "pipelines"
    shutil.rmtree(here, ignore_errors=True)  # of a run that was ended
    shutil.copytree(pipeline, here / NAME)
    try:
        config = Connect.of(deployed).config("pl_test_b") | {"connection.pool.max_size": "9"}
        Connect.of(deployed).put("pl_test_b", config)
        # each worker reads of it in its own time
        wait_until(lambda: "connection.pool.max_size: 9 -> 4" in venice("pipelines", "-i", "lab"), "the difference is seen")
        [row] = [row for row in listed() if row["name"] == NAME]
        assert row["state"] == "differs"
        assert [(d["kind"], d["name"]) for d in row["differences"]] == [("connector", "pl_test_b")]
        assert changes(Path(NAME)) == ["connector pl_test_b"]
        [row] = [row for row in listed() if row["name"] == NAME]
        assert row["state"] == "in step"
        assert row["applied"]["digest"] == row["digest"]
        assert "@" in row["applied"]["by"]
    finally:
        shutil.rmtree(here)


def test_prune_removes_what_the_folder_no_longer_has(deployed, pipeline):
    kept = re.sub(r"  - b.json\n", "", (pipeline / "pipeline.yml").read_text())
    write(pipeline, "pipeline.yml", kept)
    assert "connector pl_test_b: `venice apply pl_test --prune` removes" in apply(pipeline)
    assert "pl_test_b" in Connect.of(deployed).connectors()
    assert "add --yes" in apply(pipeline, "--prune", expect=2)
    assert changes(pipeline, "--prune", "--yes") == ["connector pl_test_b", "topic dlq.pl_test_b"]
    assert "pl_test_b" not in Connect.of(deployed).connectors()
    assert "dlq.pl_test_b" not in topics(deployed)
    assert Registry.of(deployed).latest("pl_test-value")
    wait_until(lambda: Connect.of(deployed).connectors()["pl_test_a"].running, "the other one runs, wherever")


@pytest.fixture
def foreign():
    """An image that is not Venice's own as far as it knows, on this machine only."""
    own = images.refs()["producer"]
    with provide([own], print):
        engine = docker.from_env()
        engine.images.get(own).tag(IMAGE)
    yield IMAGE
    engine.images.remove(IMAGE)


def test_a_deployment_applies_named_pipelines_and_starts_producers_after_them(deployed, pipeline, foreign):
    """A producer from an image, too, that has no health check."""
    more = f"  - name: pl-image\n    image: {foreign}\n    command: [sleep, infinity]\n    memory: 32m\n"
    write(pipeline, "pipeline.yml", (pipeline / "pipeline.yml").read_text() + more)
    write(pipeline, "a.json", connector("a", **{"connection.pool.max_size": "2"}))
    named = json.dumps({"venice_pipelines": ["bus_locations", str(pipeline)]})
    output = venice("deploy", "-i", "lab", "-e", named)
    assert output.index("connector pl_test_a") < output.index("create venice-producer-pl-image")
    host, _ = feed(deployed)
    found = json.loads(as_root(host, "docker", "inspect", "venice-producer-pl-image"))[0]
    assert (found["Config"]["Cmd"], found["HostConfig"]["Memory"]) == (["sleep", "infinity"], 32 << 20)
    assert found["Config"]["Labels"]["venice.pipeline"] == NAME
    assert health("producer-pl-image") == "none"
    before = starts(deployed)
    output = venice("deploy", "-i", "lab", "-e", named)
    # two remote tasks per host: nothing looks again at what is there
    assert "Make what needs the pipelines" not in output
    assert starts(deployed) == before
    write(pipeline, "pipeline.yml", (pipeline / "pipeline.yml").read_text().replace("partitions: 3", "partitions: 5"))
    assert "venice apply pl_test --yes" in venice("deploy", "-i", "lab", "-e", named, expect=2)
    write(pipeline, "pipeline.yml", (pipeline / "pipeline.yml").read_text().replace("partitions: 5", "partitions: 3"))
