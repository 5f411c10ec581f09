"""What pipelines need: compared, checked before anything is sent, carried out in order, remembered."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import venice.connect
import venice.kafka
import venice.registry
from venice import applying
from venice.connect import Connector, Plugin, Task
from venice.errors import InputError, UnreachableError, VeniceError
from venice.pipeline import applied, engines, running
from venice.pipeline.engines import OnPostgres, Statements, _explained
from venice.pipeline.plan import prepare
from venice.specs import Difference

AVRO = '{"type": "record", "name": "R", "fields": [{"name": "id", "type": "string"}]}'
OTHER = AVRO.replace("id", "key")
SINK = {"name": "sink", "config": {"connector.class": "Sink", "topics": "t", "url": "jdbc:${postgres_host}"}}
TEXT = """topics:
  - name: t
    partitions: 2
schemas:
  - {subject: t-value, file: s.avsc, compatibility: FULL}
sql:
  - {file: a.sql, on: postgres}
connectors: [c.json]
"""


class FakeKafka:
    bootstrap_servers = "a:9092"

    def __init__(self):
        self.specs = {}

    def partitions(self):
        return [SimpleNamespace(topic=s.name, replicas=(1,)) for s in self.specs.values() for _ in range(s.partitions)]

    def topic_config(self, topics):
        return {name: dict(self.specs[name].config) for name in topics}

    def ensure_topics(self, specs, default_replication, check=False):
        self.specs |= {s.name: s for s in specs}
        return {}

    def delete(self, topics):
        for name in topics:
            del self.specs[name]


class FakeRegistry:
    def __init__(self):
        self.schemas, self.levels, self.refuses = {}, {}, []

    def latest(self, subject):
        return {"version": len(self.schemas[subject])} if self.schemas.get(subject) else None

    def version_of(self, subject, text, kind):
        return 1 if text in self.schemas.get(subject, []) else None

    def check(self, subject, text, kind):
        return self.refuses

    def register(self, subject, text, kind):
        if self.refuses and self.schemas.get(subject):
            raise venice.registry.IncompatibleError(subject, self.levels.get(subject), self.refuses)
        self.schemas.setdefault(subject, []).append(text)

    def compatibility(self, subject):
        return self.levels.get(subject)

    def default_compatibility(self):
        return "BACKWARD"

    def set_compatibility(self, subject, level):
        self.levels[subject] = level

    def delete(self, subject):
        del self.schemas[subject]


class FakeConnect:
    def __init__(self):
        self.configs, self.states, self.calls, self.verdicts, self.awaited = {}, {}, [], {}, []

    def wait_ready(self, seconds):
        pass

    def plugins(self):
        return [Plugin("Sink", "sink", "1")]

    def validate(self, plugin, config):
        self.calls.append("validate")
        return [SimpleNamespace(option=SimpleNamespace(name=k), errors=v) for k, v in self.verdicts.items()]

    def connectors(self):
        return {name: self.status(name) for name in self.configs}

    def status(self, name):
        return Connector(name, "RUNNING", tasks=(Task(0, self.states.get(name, "RUNNING"), "w", "boom"),), config=self.configs[name])

    def put(self, name, config):
        self.calls.append(f"put {name}")
        self.configs[name] = config

    def stop(self, name):
        self.calls.append(f"stop {name}")

    def resume(self, name):
        self.calls.append(f"resume {name}")
        self.states[name] = "RUNNING"

    def delete(self, name):
        self.calls.append(f"delete {name}")
        del self.configs[name]

    def wait_running(self, names, seconds, report):
        self.awaited += names
        for name in names:
            if failure := self.status(name).failure:
                raise VeniceError(failure)


class FakeEngine:
    component, stream = "postgres", False

    def __init__(self):
        self.done, self.broken, self.things, self.remarks = {}, "", [], []

    def differences(self, cluster, files):
        new = [f for f in files if self.done.get((f.pipeline, f.name)) != f.sha256]
        return {(f.pipeline, f.name): (Difference("text", self.done.get((f.pipeline, f.name)), f.sha256),) for f in new}

    def apply(self, cluster, file):
        if self.broken:
            raise VeniceError(f"{file.file}:{self.broken}")
        self.done[file.pipeline, file.name] = file.sha256
        return self.remarks

    def made(self, cluster, pipeline, name):
        return self.things

    def forget(self, cluster, pipeline, name):
        del self.done[pipeline, name]


@pytest.fixture
def cluster(monkeypatch):
    services = SimpleNamespace(
        name="c",
        kafka=FakeKafka(),
        registry=FakeRegistry(),
        connect=FakeConnect(),
        engine=FakeEngine(),
        records={},
        pipeline_vars={"replication_factor": 1, "postgres_host": "a"},
        groups={name: ["h"] for name in ("kafka", "schema_registry", "connect", "postgres")},
        inventory_dir="inventory/x",
        hosts={},
        instances=lambda component: [],
        required=lambda component, port: {},
    )
    for module, name, service in (
        (venice.kafka, "Kafka", services.kafka),
        (venice.registry, "Registry", services.registry),
        (venice.connect, "Connect", services.connect),
    ):
        monkeypatch.setattr(module, name, SimpleNamespace(of=lambda cluster, service=service: service))
    monkeypatch.setitem(engines.ENGINES, "postgres", services.engine)
    monkeypatch.setattr(applied, "read", lambda kafka: dict(services.records))
    monkeypatch.setattr("venice.pipeline.plan.write", lambda kafka, record, replication: services.records.update({record.name: record}))
    monkeypatch.setattr(running, "_workers_say", lambda cluster, since: [])
    return services


@pytest.fixture
def sample(tmp_path) -> Path:
    folder = tmp_path / "orders"
    folder.mkdir()
    write(folder, **{"pipeline.yml": TEXT, "s.avsc": AVRO, "a.sql": "CREATE TABLE x ();", "c.json": json.dumps(SINK, indent=1)})
    return folder


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def apply(cluster, folder: Path, prune: bool = False) -> list[str]:
    """Applies as `venice apply --yes` does: the lines that it says."""
    lines: list[str] = []
    plans = prepare(cluster, [folder], prune=prune)
    plans.apply(lines.append)
    plans.record("me")
    plans.remove(lines.append)
    plans.record("me", removed=True)
    return [line.split(" (")[0] for line in lines]


EVERYTHING = ["+ topic t", "+ topic dlq.sink", "+ schema t-value", "+ sql a.sql", "+ connector sink"]


def test_everything_is_made_in_order_then_nothing_is(cluster, sample):
    assert apply(cluster, sample) == EVERYTHING
    cluster.connect.calls.clear()
    before = dict(cluster.records)
    assert apply(cluster, sample) == []
    assert cluster.connect.calls == [], "what does not change is not even validated"
    assert cluster.records == before, "and not recorded again"


def test_comparing_sends_nothing(cluster, sample):
    plans = prepare(cluster, [sample])
    assert [str(c).split(" (")[0] for c in plans.changes] == EVERYTHING
    assert (cluster.kafka.specs, cluster.registry.schemas, cluster.engine.done, cluster.connect.calls) == ({}, {}, {}, ["validate"])


def test_one_changed_field_changes_that_connector_only(cluster, sample):
    apply(cluster, sample)
    cluster.connect.calls.clear()
    write(sample, **{"c.json": json.dumps({"name": "sink", "config": SINK["config"] | {"url": "other"}})})
    assert apply(cluster, sample) == ["~ connector sink: url: jdbc:a -> other"]
    assert cluster.connect.calls == ["validate", "stop sink", "put sink", "resume sink"]


def test_a_failed_connector_is_started_again(cluster, sample):
    apply(cluster, sample)
    cluster.connect.states["sink"] = "FAILED"
    assert apply(cluster, sample) == ["~ connector sink: state: FAILED -> RUNNING"]
    assert cluster.connect.calls[-1] == "resume sink"


def test_a_connector_whose_tasks_are_nowhere_is_no_difference_but_waited_for(cluster, sample):
    apply(cluster, sample)
    cluster.connect.awaited.clear()
    assert apply(cluster, sample) == []
    assert cluster.connect.awaited == []
    cluster.connect.states["sink"] = "UNASSIGNED"
    assert apply(cluster, sample) == []
    assert cluster.connect.awaited == ["sink"]


def test_a_connector_that_fails_names_its_pipeline(cluster, sample):
    cluster.connect.states["sink"] = "FAILED"
    with pytest.raises(VeniceError, match=r"^pipeline orders: connector sink, task 0 on w: boom"):
        apply(cluster, sample)


def test_a_refused_configuration_leaves_the_connector_running(cluster, sample):
    apply(cluster, sample)
    write(sample, **{"c.json": json.dumps({"name": "sink", "config": SINK["config"] | {"url": "bad"}}, indent=1)})

    def refuse(name, config):
        raise InputError("connector sink: url is bad")

    cluster.connect.put = refuse
    with pytest.raises(InputError, match=r"c.json:6: connector sink: url is bad"):
        apply(cluster, sample)
    assert cluster.connect.calls[-1] == "resume sink"


def held(cluster) -> str:
    """All that the services hold."""
    return repr((cluster.kafka.specs, cluster.registry.schemas, cluster.engine.done, cluster.connect.configs))


def refused(cluster, sample, message: str, kind=InputError) -> VeniceError:
    """The error, which left everything as it was."""
    before = held(cluster)
    with pytest.raises(kind, match=message) as caught:
        apply(cluster, sample)
    assert held(cluster) == before
    return caught.value


def test_connects_validation_names_the_line_before_anything_is_sent(cluster, sample):
    cluster.connect.verdicts = {"url": ["must be a URL"], "hidden.option": ["is missing"]}
    error = refused(cluster, sample, r"c.json:6: must be a URL")
    assert "c.json:1: is missing" in error.message


def test_an_unknown_plugin_is_named_with_those_there_are(cluster, sample):
    write(sample, **{"c.json": json.dumps({"name": "sink", "config": {"connector.class": "Snik"}}, indent=1)})
    assert "Sink" in refused(cluster, sample, r"c.json:4: no worker has the plugin Snik").remedy


def test_fewer_partitions_are_refused_with_the_line(cluster, sample):
    apply(cluster, sample)
    write(sample, **{"pipeline.yml": TEXT.replace("partitions: 2", "partitions: 1").replace("FULL", "NONE")})
    refused(cluster, sample, r"pipeline.yml:3: topic t has 2 partitions, the pipeline says 1")


def test_more_partitions_are_asked_for(cluster, sample):
    apply(cluster, sample)
    write(sample, **{"pipeline.yml": TEXT.replace("partitions: 2", "partitions: 4")})
    plans = prepare(cluster, [sample])
    assert len(plans.questions) == 1
    assert "pipeline.yml:3: topic t gets 4 partitions instead of 2" in plans.questions[0]
    with pytest.raises(InputError) as caught:
        applying.refuse_questions(plans)
    assert "venice apply orders --yes" in caught.value.remedy


def test_an_incompatible_schema_is_explained_before_anything_is_sent(cluster, sample):
    apply(cluster, sample)
    cluster.registry.refuses = ["key is new and has no default"]
    write(sample, **{"s.avsc": OTHER, "pipeline.yml": TEXT.replace("topics:", "topics:\n  - name: new")})
    error = refused(cluster, sample, r"s.avsc: incompatible with subject t-value \(FULL\)")
    assert "key is new and has no default" in error.message


def test_a_level_that_changes_with_the_schema_is_set_first_and_put_back_when_refused(cluster, sample):
    apply(cluster, sample)
    cluster.registry.refuses = ["no"]
    write(sample, **{"s.avsc": OTHER, "pipeline.yml": TEXT.replace("FULL", "BACKWARD").replace("topics:", "topics:\n  - name: new")})
    refused(cluster, sample, r"s.avsc: incompatible", VeniceError)
    assert cluster.registry.levels == {"t-value": "FULL"}
    cluster.registry.refuses = []
    lines = apply(cluster, sample)
    assert lines[0].startswith("~ schema t-value: schema: version 1 -> version 2, compatibility: FULL -> BACKWARD")
    assert cluster.registry.levels == {"t-value": "BACKWARD"}


def test_a_failed_statement_leaves_what_comes_after_it(cluster, sample):
    cluster.engine.broken = "7: ERROR: no"
    with pytest.raises(VeniceError, match=r"^\S*/a.sql:7: ERROR: no$"):
        apply(cluster, sample)
    assert cluster.kafka.specs
    assert cluster.connect.configs == {}
    cluster.engine.broken = ""
    assert apply(cluster, sample) == ["+ sql a.sql", "+ connector sink"], "the next apply goes on from there"


def test_what_belongs_to_a_component_is_left_out_without_it(cluster, sample):
    write(sample, **{"pipeline.yml": "sql:\n  - file: a.sql\n    on: postgres\n    only_with: postgres\n"})
    assert apply(cluster, sample)[-1] == "+ sql a.sql"
    write(sample, **{"a.sql": "SELECT 2;"})
    cluster.groups["postgres"] = []
    assert apply(cluster, sample) == []
    write(sample, **{"pipeline.yml": "sql:\n  - file: a.sql\n    only_with: postgras\n"})
    refused(cluster, sample, r"pipeline.yml:3: sql.0.only_with: no component postgras")


def test_sql_without_an_engine_names_line_and_group(cluster, sample):
    write(sample, **{"pipeline.yml": "sql:\n  - file: a.sql\n"})
    assert "on: postgres" in refused(cluster, sample, r"pipeline.yml:2: a.sql: the inventory has no stream processor").remedy
    cluster.groups |= {"flink": ["h"], "ksqldb": ["h"]}
    refused(cluster, sample, r"pipeline.yml:2: a.sql: the inventory has flink and ksqldb")
    cluster.groups |= {"flink": [], "ksqldb": []}
    write(sample, **{"pipeline.yml": "sql:\n  - file: a.sql\n    on: flink\n"})
    refused(cluster, sample, r"pipeline.yml:2: a.sql: nothing runs flink")
    cluster.groups["postgres"] = []
    write(sample, **{"pipeline.yml": "sql:\n  - file: a.sql\n    on: postgres\n"})
    refused(cluster, sample, r"pipeline.yml:2: a.sql: nothing runs postgres")


def test_jobs_without_spark_are_refused(cluster, sample):
    write(sample, **{"pipeline.yml": "jobs:\n  - {name: j, on: spark, script: j.py}\n", "j.py": ""})
    refused(cluster, sample, r"pipeline.yml:2: nothing can run job j: the group spark")


def test_producers_without_a_host_are_refused(cluster, sample):
    write(sample, **{"pipeline.yml": "producers:\n  - {name: p, image: i}\n"})
    refused(cluster, sample, r"pipeline.yml:2: nothing can run producer p: the group producer")


def test_nothing_is_sent_when_a_file_is_wrong(cluster, sample):
    write(sample, **{"c.json": "{"})
    refused(cluster, sample, r"c.json:1: ")


def test_what_the_folder_no_longer_has_is_told_then_pruned(cluster, sample):
    apply(cluster, sample)
    write(sample, **{"pipeline.yml": "topics: [{name: t, partitions: 2}]"})
    plans = prepare(cluster, [sample])
    assert plans.changes == []
    assert plans.all[0].left == [("topic", "dlq.sink"), ("schema", "t-value"), ("sql", "a.sql"), ("connector", "sink")]
    assert apply(cluster, sample) == []
    assert apply(cluster, sample, prune=True) == ["- connector sink", "- schema t-value", "- topic dlq.sink", "- sql a.sql"]
    assert (list(cluster.kafka.specs), cluster.registry.schemas, cluster.connect.configs) == (["t"], {}, {})
    assert apply(cluster, sample, prune=True) == []
    write(sample, **{"pipeline.yml": "description: empty"})
    apply(cluster, sample, prune=True)
    assert cluster.records["orders"].resources == {kind: [] for kind in applied.KINDS}, "which is how it is forgotten"


def test_pruning_sql_says_what_its_engine_drops(cluster, sample):
    apply(cluster, sample)
    write(sample, **{"pipeline.yml": "description: empty"})
    cluster.engine.things = ["table PAID", "stream ORDERS"]
    plans = prepare(cluster, [sample], prune=True)
    assert "sql a.sql is forgotten and table PAID, stream ORDERS dropped; topics stay" in plans.questions
    assert "- sql a.sql (drops table PAID, stream ORDERS)" in [str(step.change) for step in plans.all[0].removals]


def test_an_engines_remarks_are_told(cluster, sample):
    cluster.engine.remarks = ["dropped table PAID"]
    plans = prepare(cluster, [sample])
    lines = []
    plans.apply(lines.append)
    assert lines[lines.index("+ sql a.sql") + 1] == "    dropped table PAID"


def test_pruning_asks_and_says_that_records_go(cluster, sample):
    apply(cluster, sample)
    write(sample, **{"pipeline.yml": "description: empty"})
    assert prepare(cluster, [sample]).questions == []
    assert "topic t is removed with all its records" in prepare(cluster, [sample], prune=True).questions


def test_what_another_pipeline_has_is_not_pruned(cluster, sample, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write(other, **{"pipeline.yml": "topics: [{name: t, partitions: 2}]"})
    apply(cluster, sample)
    apply(cluster, other)
    write(sample, **{"pipeline.yml": "description: empty"})
    assert "- topic t" not in apply(cluster, sample, prune=True)
    assert "t" in cluster.kafka.specs


def test_sql_is_pruned_though_another_pipeline_has_a_file_of_that_name(cluster, sample, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write(other, **{"pipeline.yml": "sql: [{file: a.sql, on: postgres}]", "a.sql": "SELECT 1;"})
    apply(cluster, sample)
    apply(cluster, other)
    write(sample, **{"pipeline.yml": "description: empty"})
    assert "- sql a.sql" in apply(cluster, sample, prune=True)
    assert cluster.records["other"].resources["sql"] == ["a.sql"]


def test_what_a_moved_file_made_is_not_pruned(cluster, sample):
    apply(cluster, sample)
    cluster.engine.things = ["job orders.a"]
    (sample / "sql").mkdir()
    (sample / "a.sql").rename(sample / "sql" / "a.sql")
    write(sample, **{"pipeline.yml": (sample / "pipeline.yml").read_text().replace("a.sql", "sql/a.sql")})
    assert "+ sql sql/a.sql" in apply(cluster, sample)
    assert prepare(cluster, [sample]).all[0].left == []
    assert cluster.records["orders"].resources["sql"] == ["sql/a.sql"], "nobody is told for ever that it is left"


def test_a_file_that_another_engine_runs_from_now_on_is_forgotten_where_it_ran(cluster, sample, monkeypatch):
    apply(cluster, sample)
    old, new = cluster.engine, FakeEngine()
    old.things, new.component = ["table A"], "flink"
    monkeypatch.setitem(engines.ENGINES, "flink", new)
    cluster.groups["flink"] = ["h"]
    write(sample, **{"pipeline.yml": (sample / "pipeline.yml").read_text().replace("on: postgres", "on: flink")})
    [question] = prepare(cluster, [sample]).questions
    assert question.endswith("pipeline.yml:7: a.sql runs on flink now: table A is dropped; topics stay")
    assert "+ sql a.sql" in apply(cluster, sample)
    assert not old.done and new.done
    assert apply(cluster, sample) == []


# ---- PostgreSQL's complaints


FILE = Statements("p", "a.sql", Path("sql/a.sql"), "CREATE TABLE a (\n  id text\n);\n\nINSERT INTO b\nVALUES (\n  1\n);\n", "postgres")


def test_the_line_is_the_one_that_the_server_quotes():
    errors = 'psql:<stdin>:8: ERROR:  relation "b" does not exist\nLINE 1: INSERT INTO b\n                    ^\n'
    assert _explained(FILE, errors) == 'sql/a.sql:5: ERROR: relation "b" does not exist'


def test_without_a_quote_it_is_the_end_of_the_statement():
    errors = 'psql:<stdin>:3: ERROR:  relation "a" already exists\n'
    assert _explained(FILE, errors) == 'sql/a.sql:3: ERROR: relation "a" already exists'


@pytest.mark.parametrize(("code", "kind"), [(2, UnreachableError), (3, VeniceError)])
def test_psqls_exit_codes(monkeypatch, code, kind):
    class Host:
        name = "h"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def exec(self, container, argv, stdin, timeout):
            assert 'SET ROLE "venice"' in argv
            assert stdin == FILE.text
            return code, "", "psql:<stdin>:3: ERROR:  no"

    monkeypatch.setattr("venice.postgres.Postgres.of", lambda cluster: SimpleNamespace(host=Host(), container="c", database="d"))
    with pytest.raises(kind):
        OnPostgres().apply(SimpleNamespace(pipeline_vars={"postgres_user": "venice"}), FILE)
