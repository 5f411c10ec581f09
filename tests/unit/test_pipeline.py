"""Pipeline folders: what is read, what is refused and how, what is compared, what is sent."""

import io
import json
import math
import shutil
import sys
import time

import fastavro
import pytest
from jsonschema import Draft202012Validator

from venice import paths
from venice.cluster import Cluster
from venice.errors import InputError
from venice.masking import masked
from venice.pipeline import config_differences, digest, load, producers, with_sink_defaults

VARIABLES = {
    "bootstrap_servers": "a:9092",
    "registry_url": "http://a:8081",
    "replication_factor": 3,
    "postgres_host": "a",
    "postgres_port": 5432,
    "postgres_db": "venice",
}
AVRO = '{"type": "record", "name": "R", "fields": [{"name": "id", "type": "string"}]}'
SINK = {"name": "sink", "config": {"connector.class": "Sink", "topics": "t", "url": "jdbc:${postgres_host}"}}


def folder(tmp_path, text, **files):
    (tmp_path / "pipeline.yml").write_text(text)
    for name, content in files.items():
        file = tmp_path / name.replace("__", "/").replace("_json", ".json").replace("_avsc", ".avsc")
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    return tmp_path


@pytest.mark.parametrize("shipped", sorted(p.parent.name for p in paths.resource("pipelines").glob("*/pipeline.yml")))
def test_shipped_pipelines_load(shipped):
    found = load(paths.resource("pipelines") / shipped)
    assert found.name == shipped
    for connector in found.connectors:
        name, config = connector.load(VARIABLES)
        if "topics" in config:
            assert config["errors.deadletterqueue.topic.name"] == f"dlq.{name}"
        assert all("${file:" in value for key, value in config.items() if key.endswith((".password", ".user", ".username")))


def test_retention_is_unlimited_unless_the_pipeline_says_otherwise(tmp_path):
    found = load(folder(tmp_path, "topics: [{name: a}, {name: b, retention: 7d, cleanup: compact, config: {x.y: true}}]"))
    assert found.topics[0].config == {"retention.ms": "-1", "cleanup.policy": "delete"}
    assert found.topics[1].config == {"retention.ms": "604800000", "cleanup.policy": "compact", "x.y": "true"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "topics:\n  - name: a\n    partition: 3\n",
            r"pipeline.yml:3: topics.0.partition: unknown key \(known: name, part",
        ),
        ("topics:\n  - partitions: 3\n", r"pipeline.yml:2: topics.0: 'name' is a required property"),
        (
            "topics:\n  - name: a\n    partitions: 0\n",
            r"pipeline.yml:3: topics.0.partitions: 0 is less than the minimum",
        ),
        ("topics:\n  - name: a b\n", r"pipeline.yml:2: topics.0.name: 'a b' does not match"),
        (
            "topics:\n  - name: a\n    retention: a week\n",
            r"pipeline.yml:3: topics.0.retention: 'a week' does not match",
        ),
        ("topics:\n  - name: a\n  - name: a\n", r"pipeline.yml:3: topics: a is already in line 2"),
        ("topics:\n  - name: a\n    name: b\n", r"pipeline.yml:3: name is given twice \(first in line 2\)"),
        ("producers:\n  - name: p\n    on: x\n", r"pipeline.yml:3: producers.0.on: unknown key"),
        ("producers:\n  - name: p\n    7: x\n", r"pipeline.yml:3: YAML does not read the key 7 as a text"),
        ("producers:\n  - name: p\n", r"pipeline.yml:2: producers.0: needs either script .* or image"),
        ("producers:\n  - name: p\n    image: a\n    health: [x]\n", r"pipeline.yml:2: producers.0: needs either script .* or image"),
        ("sql:\n  - file: a.sql\n    on: mysql\n", r"pipeline.yml:3: sql.0.on: 'mysql' is not one of"),
        ("sql:\n  - file: a.sql\n    on: postgres\n", r"pipeline.yml:2: sql.0.file: no file .*a.sql"),
        ("topic: []\n", r"pipeline.yml:1: topic: unknown key"),
        ("topics: [\n", r"pipeline.yml:2: "),
        ("- a\n", r"pipeline.yml:1: the document: \['a'\] is not of type 'object'"),
        ("connectors:\n  - connectors/x.json\n", r"pipeline.yml:2: connectors.0: no file .*x.json"),
        ("schemas:\n  - subject: s\n    file: x.avsc\n", r"pipeline.yml:3: schemas.0.file: no file .*x.avsc"),
        ("producers:\n  - name: P\n    script: p.py\n", r"pipeline.yml:2: producers.0.name: 'P' does not match"),
    ],
)
def test_mistakes_are_named_with_file_line_and_key(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(folder(tmp_path, text))


def test_all_mistakes_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        load(folder(tmp_path, "topics:\n  - name: a\n    partitions: 0\n  - name: 7\n"))
    assert caught.value.message.count("pipeline.yml:") == 2


def test_a_folder_without_a_pipeline(tmp_path):
    with pytest.raises(InputError, match=r"a pipeline is a folder with a pipeline.yml"):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ('{"type":\n', r"s.avsc:2: "),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "wat"}]}', r"no valid Avro schema"),
        ('"nope"', "nope"),
    ],
)
def test_schemas_are_checked(tmp_path, schema, message):
    with pytest.raises(InputError, match=message):
        load(folder(tmp_path, "schemas: [{subject: s, file: s.avsc}]", s_avsc=schema))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"name": }', r"c.json:2: Expecting value"),
        ("[]", "not in the form"),
        ('{"name": "x", "config": {}}', "connector.class"),
        ('{"name": "x",\n"config": {"connector.class": "X",\n"a": {"b": 1}}}', r"c.json:3: a must be a text"),
        (
            '{"name": "x",\n"config": {"connector.class": "X",\n"a": "${nope}"}}',
            r"c.json:3: unknown variable \$\{nope\}",
        ),
    ],
)
def test_connector_files_are_checked(tmp_path, text, message):
    found = load(folder(tmp_path, "connectors: [c.json]", c_json=text))
    with pytest.raises(InputError, match=message):
        found.connectors[0].load(VARIABLES)


def test_variables_are_replaced_and_references_left_to_connect(tmp_path):
    config = {"connector.class": "X", "a": "${postgres_host}:${postgres_port}", "b": "${file:/f:k}", "c": "$${topic}"}
    text = json.dumps({"name": "x", "config": config | {"n": 3, "t": True}})
    found = load(folder(tmp_path, "connectors: [c.json]", c_json=text))
    _, loaded = found.connectors[0].load(VARIABLES | {"postgres_host": 'a"b'})
    assert loaded == {
        "connector.class": "X",
        "a": 'a"b:5432',
        "b": "${file:/f:k}",
        "c": "${topic}",
        "n": "3",
        "t": "true",
    }


def test_sinks_get_a_dead_letter_queue_unless_they_say_no():
    assert with_sink_defaults("s", {"topics": "t"}, 3)["errors.deadletterqueue.topic.name"] == "dlq.s"
    assert with_sink_defaults("s", {"topics": "t", "errors.tolerance": "none"}, 3) == {
        "topics": "t",
        "errors.tolerance": "none",
    }
    assert with_sink_defaults("s", {"table.include.list": "x"}, 3) == {"table.include.list": "x"}


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("connection.password", "hunter2", "********"),
        ("sasl.jaas.config", "x", "********"),
        ("connection.password", "${file:/etc/kafka/secrets.properties:k}", "${file:/etc/kafka/secrets.properties:k}"),
        (
            "connection.url",
            "jdbc:postgresql://h/d?user=u&password=p&x=1",
            "jdbc:postgresql://h/d?user=u&password=********&x=1",
        ),
        ("connection.url", "mongodb://u:p@h:27017", "mongodb://u:********@h:27017"),
        ("connection.url", "jdbc:postgresql://h:5432/d", "jdbc:postgresql://h:5432/d"),
        ("topics", "t", "t"),
        ("topics", None, None),
    ],
)
def test_secrets_are_masked(key, value, shown):
    assert masked(key, value) == shown


def test_only_what_differs_is_named():
    found = config_differences({"name": "x", "a": "1", "password": "old", "gone": "g"}, {"a": "2", "password": "new"})
    assert [(d.field, d.current, d.desired) for d in found] == [
        ("a", "1", "2"),
        ("gone", "g", ""),
        ("password", "********", "********"),
    ]


def test_producers_environment_is_text(tmp_path):
    found = load(folder(tmp_path, "producers: [{name: p, script: c.json.py, environment: {N: 3, YES_: true}}]", **{"c.json.py": ""}))
    assert found.producers[0].environment == {"N": "3", "YES_": "true"}


def test_producers_are_read_without_the_rest_and_as_with_it(tmp_path):
    text = """
producers:
  - {name: s, script: p.py, topic: orders, environment: {N: 3}, health: [ok]}
  - {name: i, image: "shop/orders:1", command: [run], memory: 64m}
"""
    made = folder(tmp_path, text, **{"p.py": "print()"})
    assert tuple(producers(made)) == load(made).producers
    script, image = producers(made)
    assert script.environment == {"TOPIC": "orders", "N": "3"}
    assert (image.script, image.image, image.command, image.memory) == (None, "shop/orders:1", ("run",), "64m")
    before = script.digest
    (made / "p.py").write_text("print(1)")
    assert script.digest != before
    (made / "p.py").unlink()
    with pytest.raises(InputError, match=r"pipeline.yml:3: producers.0.script: no file"):
        producers(made)


def test_on_is_a_key_and_only_true_and_false_are_booleans(tmp_path):
    found = load(folder(tmp_path, "sql: [{file: a.sql, on: postgres}]\ndescription: yes", **{"a.sql": "SELECT 1"}))
    assert (found.sql[0].on, found.description) == ("postgres", "yes")


def test_schemas_of_all_kinds(tmp_path):
    text = "schemas: [{subject: a, file: a.avsc}, {subject: b, file: b.json}, {subject: c, file: c.proto}]"
    files = {"a.avsc": AVRO, "b.json": '{\n"type": "object"}', "c.proto": 'syntax = "proto3";\n'}
    found = load(folder(tmp_path, text, **files))
    assert [(s.type, s.text) for s in found.schemas] == [
        ("AVRO", json.dumps(json.loads(AVRO))),
        ("JSON", '{"type": "object"}'),
        ("PROTOBUF", 'syntax = "proto3";\n'),
    ]
    (tmp_path / "b.json").write_text('{"type": "nothing"}')
    with pytest.raises(InputError, match=r"b.json:1: no valid JSON Schema: type"):
        load(tmp_path)


def test_the_digest_is_of_what_the_folder_holds(tmp_path):
    made = folder(tmp_path, "topics: []", **{"a.sql": "x"})
    before = digest(made)
    (made / "__pycache__").mkdir()
    (made / "__pycache__" / "x.pyc").write_text("")
    assert digest(made) == before
    (made / "a.sql").write_text("y")
    assert digest(made) != before


def test_every_key_has_a_description_and_an_example():
    schema = json.loads((paths.resource("pipelines") / "pipeline.schema.json").read_text())
    Draft202012Validator.check_schema(schema)

    def keys(part, place):
        for name, value in part.get("properties", {}).items():
            yield (*place, name), value
            yield from keys(value.get("items", value), (*place, name))

    found = dict(keys(schema, ()))
    assert len(found) > 20
    for place, key in found.items():
        assert key.get("description"), place
        assert key.get("examples"), place
        for example in key["examples"]:
            Draft202012Validator(key).validate(example)


def test_pipelines_beside_the_inventory_are_no_inventory(tmp_path):
    """Ansible reads a folder's files as inventories, each a mistake that it would not skip."""
    shutil.copytree(paths.resource("inventory") / "single", tmp_path / "mine", ignore=shutil.ignore_patterns(".venice"))
    made = tmp_path / "mine" / "pipelines" / "own"
    made.mkdir(parents=True)
    folder(made, "producers: [{name: own, script: p.py}]", **{"p.py": "import os, time", "c.json": '{"name": "x"}'})
    cluster = Cluster.load(tmp_path / "mine", {"venice_pipelines": ["own"]})
    assert made in cluster.pipelines
    assert [p["name"] for p in cluster.raw_vars("lab-1")["venice_producers"]] == ["producer-own"]


# ---- the sample producer


@pytest.fixture
def producer():
    sys.path.insert(0, str(paths.resource("pipelines") / "bus_locations"))
    import producer as module

    yield module
    sys.path.pop(0)


def test_the_same_seed_gives_the_same_fleet(producer):
    first, second = producer.fleet(12, 1), producer.fleet(12, 1)
    assert [b.report(1e9) for b in first] == [b.report(1e9) for b in second]
    assert producer.fleet(12, 2)[0].report(1e9) != first[0].report(1e9)
    assert len({b.vehicle_id for b in first}) == 12


def test_buses_move_as_fast_as_they_say_and_where_they_head(producer):
    for bus in producer.fleet(12, 1):
        before, after = bus.report(1e9), bus.report(1e9 + 1)
        north = (after["latitude"] - before["latitude"]) * 111_320
        east = (after["longitude"] - before["longitude"]) * 111_320 * math.cos(math.radians(before["latitude"]))
        assert math.hypot(north, east) * 3.6 == pytest.approx(before["speed_kmh"], abs=1)
        assert 3 < before["speed_kmh"] < 60
        turned = abs(math.degrees(math.atan2(east, north)) % 360 - before["heading"])
        assert min(turned, 360 - turned) < 5


def test_reports_fit_the_schema(producer):
    (schema,) = load(paths.resource("pipelines") / "bus_locations").schemas
    fastavro.schemaless_writer(io.BytesIO(), fastavro.parse_schema(json.loads(schema.text)), producer.fleet(1, 1)[0].report(1e9))


def test_health_is_the_age_of_the_last_acknowledgement(producer, tmp_path, monkeypatch):
    monkeypatch.setattr(producer, "HEALTHY", tmp_path / "healthy")
    assert producer.health(15) == 1
    (tmp_path / "healthy").write_text(str(time.time() - 5))
    assert producer.health(15) == 0
    assert producer.health(4) == 1
