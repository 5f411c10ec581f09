"""Flink without Flink: tables made of schemas, the clients' reading of answers, what a pipeline's job differs in."""

import importlib.util
import json
import os
from types import SimpleNamespace

import httpx
import pytest
import yaml
from click.testing import CliRunner

from venice import paths
from venice.cluster import Cluster
from venice.errors import InputError, UnreachableError, VeniceError
from venice.flink import Gateway, Job, Jobs, Result, _Service
from venice.flink_tables import table
from venice.pipeline.engines import ENGINES, Statements

BUS = {
    "type": "record",
    "name": "Bus",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "line", "type": ["null", "string"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "fare", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "stops", "type": {"type": "array", "items": "int"}},
        {"name": "where", "type": {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "double"}]}},
        {"name": "next", "type": ["null", "Point"]},
        {"name": "odd", "type": ["int", "string"]},
    ],
}


def avro(schema):
    return {"schemaType": "AVRO", "schema": json.dumps(schema)}


def test_an_avro_record_becomes_columns():
    made = table("bus", avro(BUS), "k:9092", "http://r:8081", keyed=True, bounded=False)
    [ddl] = made.statements
    for line in (
        "`_key` STRING",
        "`id` STRING NOT NULL",
        "`line` STRING,",
        "`at` TIMESTAMP(3) NOT NULL",
        "`fare` DECIMAL(12, 2) NOT NULL",
        "`stops` ARRAY<INT NOT NULL> NOT NULL",
        "`where` ROW<`x` DOUBLE NOT NULL> NOT NULL",
        "`next` ROW<`x` DOUBLE NOT NULL>,",
        "'properties.isolation.level' = 'read_committed'",
        "'value.avro-confluent.url' = 'http://r:8081'",
        "WATERMARK FOR `_timestamp`",
    ):
        assert line in ddl
    assert "odd" not in ddl
    assert "bounded" not in ddl


def test_what_flink_can_not_read_is_left_out():
    kinds = {
        "enum": {"type": "enum", "name": "E", "symbols": ["A"]},
        "same": "E",
        "maybe": ["null", {"type": "enum", "name": "F", "symbols": ["A"]}],
        "fixed": {"type": "fixed", "name": "X", "size": 4},
        "exact": {"type": "fixed", "name": "Y", "size": 4, "logicalType": "decimal", "precision": 5},
        "unique": {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"},
        "_offset": "long",
    }
    numbers = {
        "micros": {"type": "long", "logicalType": "timestamp-micros"},
        "huge": {"type": "bytes", "logicalType": "decimal", "precision": 39},
        "vague": {"type": "bytes", "logicalType": "decimal"},
    }
    fields = [{"name": name, "type": kind} for name, kind in (kinds | numbers).items()]
    made = table("t", avro({"type": "record", "name": "T", "fields": fields}), "k:9092", "u", keyed=True, bounded=False)
    assert not any(f"`{name}` " in made.statements[0] for name in kinds.keys() - {"_offset"})
    assert "`micros` BIGINT NOT NULL" in made.statements[0] and "`huge` BYTES NOT NULL" in made.statements[0]
    assert "`vague` BYTES NOT NULL" in made.statements[0]
    assert made.statements[0].count("`_offset`") == 1


@pytest.mark.parametrize("names", [{"name": "P"}, {"name": "P", "namespace": "other"}, {"name": "other.P"}])
@pytest.mark.parametrize("written", ["short", "full"])
def test_a_record_s_type_is_known_by_its_names(names, written):
    point = {"type": "record", **names, "fields": [{"name": "x", "type": "double"}]}
    space = "a.b" if names == {"name": "P"} else "other"
    # a short name belongs to the namespace around it
    name = f"{space}.P" if written == "full" else "P"
    fields = [{"name": "first", "type": point}, {"name": "next", "type": ["null", name]}]
    schema = avro({"type": "record", "name": "T", "namespace": "a.b", "fields": fields})
    [ddl] = table("t", schema, "k:9092", "u", keyed=True, bounded=False).statements
    assert ("`next` ROW<`x` DOUBLE NOT NULL>," in ddl) == (written == "full" or space == "a.b")


def test_a_bounded_table_ends_with_what_is_there():
    [ddl] = table("bus", avro(BUS), "k:9092", "http://r:8081", keyed=False, bounded=True).statements
    assert "'scan.bounded.mode' = 'latest-offset'" in ddl
    assert "_key" not in ddl


def test_json_schema_records_are_read_behind_their_frame():
    schema = {"type": "object", "properties": {"id": {"type": "string"}, "n": {"type": ["integer", "null"]}, "odd name": {}}}
    schema["properties"] |= {"parts": {"type": "array"}, "place": {"type": ["null", "object"]}}
    raw, view = table("o", {"schemaType": "JSON", "schema": json.dumps(schema)}, "k:9092", "u", keyed=True, bounded=False).statements
    assert "'value.format' = 'raw'" in raw
    assert "TRIM(LEADING '{' FROM SUBSTRING(`_value`, POSITION('{' IN `_value`)))), '$.n') AS BIGINT) AS `n`" in view
    assert """'$["odd name"]') AS STRING)""" in view
    assert "parts" not in view and "place" not in view


@pytest.mark.parametrize("schema", [None, avro("string"), {"schemaType": "PROTOBUF", "schema": "message A {}"}])
def test_anything_else_is_text(schema):
    [ddl] = table("a`b", schema, "k:9092", "u", keyed=True, bounded=False).statements
    assert "`_value` STRING" in ddl
    assert "`a``b`" in ddl


def service(*answers):
    """A service that gives these answers (status, body) in order, and the list of what was asked."""
    asked = []

    def handle(request):
        asked.append((request.method, request.url.path, json.loads(request.content) if request.content else None))
        status, body = answers[min(len(asked), len(answers)) - 1]
        return httpx.Response(status, json=body)

    found = _Service("http://f:8084", "flink-gateway on lab-1")
    found._http = httpx.Client(transport=httpx.MockTransport(handle))
    return found, asked


def test_a_statement_s_rows_are_read_page_by_page():
    columns = [{"name": "n", "logicalType": {"type": "BIGINT"}}]
    page = {"resultType": "PAYLOAD", "results": {"columns": columns, "data": [{"kind": "INSERT", "fields": [1]}]}, "nextResultUri": "/next"}
    changed = {"columns": columns, "data": [{"kind": "UPDATE_BEFORE", "fields": [1]}, {"kind": "UPDATE_AFTER", "fields": [2]}]}
    found, asked = service(
        (200, {"sessionHandle": "s"}),
        (200, {"operationHandle": "o"}),
        (200, {"status": "RUNNING"}),
        (200, {"status": "FINISHED"}),
        (200, {"resultType": "NOT_READY", "nextResultUri": "/first"}),
        (200, page),
        (200, {"resultType": "EOS", "results": changed, "jobID": "j"}),
    )
    with Gateway(found).session({"a": "b"}) as session:
        result = session.run("SELECT 1")
    assert result.columns == [("n", "BIGINT")]
    assert result.rows == [[1], [2]]
    assert asked[0] == ("POST", "/v1/sessions", {"properties": {"a": "b"}})
    assert asked[-1][:2] == ("DELETE", "/v1/sessions/s")


def test_the_root_cause_is_what_is_said():
    trace = "<Exception on server side:\norg.apache.flink.X: no\n\tat a.B.c\nCaused by: org.calcite.Y: Object 'nothere' not found\n\tat d"
    found, _ = service((500, {"errors": ["Internal server error.", trace]}))
    with pytest.raises(VeniceError, match=r"^Flink: Y: Object 'nothere' not found$"):
        Jobs(found).all()


def test_who_does_not_answer_is_named():
    found, _ = service((200, {}))
    found._http = httpx.Client(transport=httpx.MockTransport(lambda request: (_ for _ in ()).throw(httpx.ConnectError("refused"))))
    with pytest.raises(UnreachableError, match="flink-gateway on lab-1: refused"):
        Jobs(found).all()


def test_values_with_brackets_are_shown_as_they_are(monkeypatch):
    from venice import inventory, sql
    from venice.cli.sql import command

    monkeypatch.setattr(inventory, "resolve", lambda name: name)
    monkeypatch.setattr(Cluster, "load", classmethod(lambda cls, path: SimpleNamespace(required=lambda *_: None)))
    rows = [["[paid] x", None], ["[/b]", 1]]
    monkeypatch.setattr(sql, "run", lambda cluster, script, name: [("SELECT 1", Result([("a", "STRING"), ("b", "INT")], rows))])
    done = CliRunner().invoke(command, ["-e", "SELECT 1"])
    assert done.exit_code == 0, done.output
    assert [line.split() for line in done.output.splitlines()] == [["a", "b"], ["[paid]", "x", "NULL"], ["[/b]", "1"]]


def test_a_query_may_take_as_long_as_its_topic_is_large(monkeypatch):
    from venice import flink, sql

    pages = [{"resultType": "NOT_READY", "nextResultUri": "/next"}] * 20
    started = ({"sessionHandle": "s"}, {"operationHandle": "o"}, {"status": "RUNNING"}, {"status": "FINISHED"})
    found, _ = service(*((200, body) for body in (*started, *pages, {"resultType": "EOS"}, {})))
    monkeypatch.setattr(Gateway, "of", classmethod(lambda cls, cluster: cls(found)))
    monkeypatch.setattr(sql, "tables", lambda cluster, bounded: [])
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + 60))
    monkeypatch.setattr(flink, "time", clock)
    assert [statement for statement, _ in sql.run(None, "SELECT 1")] == ["SELECT 1"]
    assert clock.now > 20 * 60


def statements(tmp_path, text="INSERT INTO a SELECT 1;\n"):
    file = tmp_path / "agg.sql"
    file.write_text(text)
    return Statements("shop", "sql/agg.sql", file, text, "flink")


@pytest.fixture
def jobs(monkeypatch):
    """Stands for the keeper: `there` is what it lists, `sent` what it was told."""
    kept = SimpleNamespace(there={}, sent=[], refuse=None)

    def put(name, texts, sha256):
        if kept.refuse:
            raise kept.refuse
        kept.sent.append((name, texts, sha256))

    keeper = SimpleNamespace(all=lambda: kept.there, put=put, delete=lambda name: kept.sent.append(("delete", name)))
    monkeypatch.setattr(Jobs, "of", classmethod(lambda cls, cluster: keeper))
    return kept


def test_a_file_is_one_job(jobs, tmp_path):
    file = statements(tmp_path, "CREATE TABLE a (x INT) WITH ('connector'='print');\nINSERT INTO a SELECT 1;\n")
    flink = ENGINES["flink"]
    assert set(flink.differences(None, [file])) == {("shop", "sql/agg.sql")}
    flink.apply(None, file)
    assert jobs.sent == [("shop.agg", ["CREATE TABLE a (x INT) WITH ('connector'='print')", "INSERT INTO a SELECT 1"], file.sha256)]
    jobs.there = {"shop.agg": Job("shop.agg", "RUNNING", file.sha256)}
    assert flink.differences(None, [file]) == {}


def test_a_job_that_does_not_run_differs(jobs, tmp_path):
    file = statements(tmp_path)
    jobs.there = {"shop.agg": Job("shop.agg", "FAILED", file.sha256)}
    [differences] = ENGINES["flink"].differences(None, [file]).values()
    assert [(d.field, d.current, d.desired) for d in differences] == [("state", "FAILED", "RUNNING")]


def test_a_wrong_statement_names_file_and_line(jobs, tmp_path):
    jobs.refuse = VeniceError("Flink: INSERT INTO nothere SELECT 1: ValidationException: no such table")
    file = statements(tmp_path, "SET 'a' = 'b';\n\nINSERT INTO nothere SELECT 1;\n")
    with pytest.raises(VeniceError, match=rf"^{file.file}:3: INSERT INTO nothere"):
        ENGINES["flink"].apply(None, file)


def test_the_statement_that_failed_is_not_taken_for_one_that_begins_alike(jobs, tmp_path):
    jobs.refuse = VeniceError("Flink: INSERT INTO ab SELECT 1: ValidationException: no such table")
    file = statements(tmp_path, "INSERT INTO a\nSELECT 1;\nINSERT INTO ab SELECT 1;\n")
    with pytest.raises(VeniceError, match=rf"^{file.file}:3: "):
        ENGINES["flink"].apply(None, file)


def test_who_is_away_does_not_make_a_statement_wrong(jobs, tmp_path):
    jobs.refuse = VeniceError("Flink: Flink does not answer: refused", exit_code=3)
    with pytest.raises(VeniceError, match="does not answer") as error:
        ENGINES["flink"].apply(None, statements(tmp_path))
    assert "correct the statement" not in error.value.remedy


def test_a_file_whose_name_can_not_be_a_job_s_is_refused_before_anything(jobs, tmp_path):
    file = Statements("shop", "sql/my job.sql", tmp_path / "my job.sql", "INSERT INTO a SELECT 1;", "flink")
    with pytest.raises(InputError, match=r"my job.sql: can't be a job's name"):
        ENGINES["flink"].differences(None, [file])


def test_two_files_of_one_name_would_be_one_job(jobs, tmp_path):
    files = [Statements("shop", name, tmp_path / name, "INSERT INTO a SELECT 1;", "flink") for name in ("sql/agg.sql", "more/agg.sql")]
    with pytest.raises(InputError, match=r"more/agg.sql: would be the same job as .*sql/agg.sql"):
        ENGINES["flink"].differences(None, files)


def test_a_file_without_insert_is_refused(jobs, tmp_path):
    with pytest.raises(InputError, match="no INSERT INTO"):
        ENGINES["flink"].apply(None, statements(tmp_path, "SELECT 1;"))


def test_forgetting_cancels_the_job(jobs):
    jobs.there = {"shop.agg": Job("shop.agg", "RUNNING", "x")}
    ENGINES["flink"].forget(None, "shop", "sql/agg.sql")
    ENGINES["flink"].forget(None, "shop", "sql/other.sql")
    assert jobs.sent == [("delete", "shop.agg")]


def test_settings_of_the_user_replace_venice_s_own(tmp_path):
    told = {"venice_cluster": "fl", "flink_settings": {"state.backend.type": "rocksdb", "rest.port": 1}}
    hosts = {"h-1": {"ansible_host": "192.0.2.1"}}
    children = {group: {"hosts": hosts} for group in ("kafka", "schema_registry", "flink")}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": told, "children": children}}))
    files = Cluster.load(tmp_path / "hosts.yml").desired("h-1")["files"]
    texts = [file["content"] for file in files if file["path"].endswith("/config.yaml")]
    assert len(texts) == 3
    for text in texts:
        lines = [line.partition(": ")[0] for line in text.splitlines() if not line.startswith("#")]
        # Flink refuses a file that has a key twice
        assert len(lines) == len(set(lines))
        assert yaml.safe_load(text)["state.backend.type"] == "rocksdb" and yaml.safe_load(text)["rest.port"] == 1


# ---- the keeper of declared jobs -------------------------------------------------------------------------------------


class Flink:
    """Jobmanager and gateway as the keeper asks them: `jobs` by id, `away` which of the two does not answer."""

    def __init__(self, keeper):
        self.keeper, self.jobs, self.session, self.ran, self.away, self.refuse = keeper, {}, {}, [], "", ""
        self.moment, self.made = 1_000_000, 0

    def ask(self, method, url, body=None, timeout=30):
        service, _, path = url.removeprefix("http://").partition("/")
        if service == self.away:
            raise ConnectionRefusedError("refused")
        parts = path.split("/")
        if service == "gateway":
            return self.gateway(method, parts[2:], body)
        if parts[1] == "overview":
            tasks = {"running": 1, "finished": 0, "total": 1}
            return {"jobs": [{"jid": id_, "name": j["name"], "state": j["state"], "tasks": tasks} for id_, j in self.jobs.items()]}
        found = self.jobs[parts[1].partition("?")[0]]
        if method == "PATCH":
            found["state"] = "CANCELED"
        elif parts[2:] == ["stop"]:
            found["state"] = "FINISHED"
            self.state(f"savepoints/savepoint-{parts[1][:6]}-x")
            return {"request-id": "r"}
        elif parts[2:3] == ["savepoints"]:
            return {"status": {"id": "COMPLETED"}, "operation": {"location": "s3://..."}}
        elif parts[2:3] and parts[2].startswith("exceptions"):
            return {}
        return {"state": found["state"], "vertices": [{"status": found["state"]}]}

    def gateway(self, method, parts, body):
        if (method, parts) == ("POST", []):
            self.session = dict(body["properties"])
            return {"sessionHandle": "s"}
        if parts[1:] == ["statements"]:
            statement = body["statement"]
            self.ran.append(statement)
            if self.refuse and self.refuse in statement:
                raise self.keeper.RefusedError("no")
            if statement.startswith("SET "):
                _, key, _, value, _ = statement.split("'")
                self.session[key] = value
            return {"operationHandle": "o"}
        if parts[-1] == "status":
            return {"status": "FINISHED"}
        if method == "GET" and self.ran[-1].startswith("INSERT"):
            self.made += 1
            ident = f"{self.made:06}{'0' * 26}"
            self.jobs[ident] = {"name": self.session["pipeline.name"], "state": "RUNNING"}
            return {"jobID": ident}
        return {}

    def state(self, folder):
        """A complete checkpoint or savepoint; each is newer than the one before."""
        file = self.keeper.STORE / folder / "_metadata"
        file.parent.mkdir(parents=True)
        file.touch()
        self.moment += 1
        os.utime(file, (self.moment, self.moment))


@pytest.fixture
def flink(tmp_path, monkeypatch):
    for name, value in {"JOBMANAGER": "http://manager", "GATEWAY": "http://gateway", "PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("flink_jobs", paths.resource("roles") / "flink" / "files" / "jobs.py")
    keeper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keeper)
    keeper.DATA, keeper.STORE, keeper.PROPERTIES = tmp_path / "data", tmp_path / "store", tmp_path / "secrets.properties"
    keeper.DATA.mkdir()
    keeper.PROPERTIES.write_text("postgres_password=it's\n")
    found = Flink(keeper)
    keeper.ask = found.ask
    return found


INSERT = ["INSERT INTO a SELECT 1"]


def live(flink):
    return [(id_, job["name"]) for id_, job in flink.jobs.items() if job["state"] == "RUNNING"]


def test_a_job_of_a_dead_jobmanager_goes_on_from_the_newest_state(flink):
    keeper = flink.keeper.Jobs()
    first = keeper.put("a.b", INSERT, "1")["job_id"]
    flink.state(f"checkpoints/{first}/chk-1")
    second = keeper.put("a.b", INSERT, "2")
    assert second["restored_from"] == f"s3://flink/savepoints/savepoint-{first[:6]}-x"
    # before the keeper looks, so that it can't have noticed the checkpoint: going back to the savepoint would repeat records
    flink.state(f"checkpoints/{second['job_id']}/chk-2")
    flink.jobs.clear()
    flink.jobs["other"] = {"name": "other", "state": "RUNNING"}
    keeper.look()
    assert keeper.jobs["a.b"].restored_from == f"s3://flink/checkpoints/{second['job_id']}/chk-2"
    assert len(live(flink)) == 2


def test_failed_submissions_do_not_push_out_the_one_that_has_a_checkpoint(flink):
    keeper = flink.keeper.Jobs()
    first = keeper.put("a.b", INSERT, "1")["job_id"]
    flink.state(f"checkpoints/{first}/chk-1")
    job = keeper.jobs["a.b"]
    for _ in range(9):
        flink.jobs[job.ids[-1]]["state"] = "FAILED"
        job.not_before = 0
        keeper.look()
    again = flink.keeper.Jobs().jobs["a.b"]
    assert again.newest_state() == f"s3://flink/checkpoints/{first}/chk-1"
    assert again.ids == [first, job.ids[-1]]


def test_what_a_file_sets_does_not_rename_its_job(flink):
    keeper = flink.keeper.Jobs()
    keeper.put("a.b", ["SET 'pipeline.name' = 'mine'", *INSERT], "1")
    assert [name for _, name in live(flink)] == ["a.b"]
    keeper.look()
    assert len(flink.jobs) == 1


@pytest.mark.parametrize("died", [False, True])
def test_a_job_that_was_ended_for_a_change_comes_back_when_the_gateway_is_away(flink, died):
    keeper = flink.keeper.Jobs()
    first = keeper.put("a.b", INSERT, "1")["job_id"]
    flink.away = "gateway"
    with pytest.raises(OSError, match="refused"):
        keeper.put("a.b", ["INSERT INTO changed SELECT 1"], "2")
    assert not live(flink)
    flink.away = ""
    if died:
        keeper = flink.keeper.Jobs()
    keeper.look()
    job = keeper.jobs["a.b"]
    assert (job.sha256, job.restored_from) == ("1", f"s3://flink/savepoints/savepoint-{first[:6]}-x")
    assert flink.ran[-1] == INSERT[0] and len(live(flink)) == 1


def test_what_somebody_cancels_stays_cancelled_until_it_is_declared_again(flink):
    keeper = flink.keeper.Jobs()
    flink.jobs[keeper.put("a.b", INSERT, "1")["job_id"]]["state"] = "CANCELED"
    keeper.look()
    assert keeper.jobs["a.b"].state == "CANCELED" and not live(flink)
    # a jobmanager that is started again knows nothing of it, nor does a keeper
    flink.jobs.clear()
    keeper = flink.keeper.Jobs()
    keeper.look()
    assert keeper.jobs["a.b"].state == "CANCELED" and not flink.jobs
    keeper.put("a.b", INSERT, "1")
    assert len(live(flink)) == 1
    flink.jobs.clear()
    keeper.look()
    assert len(live(flink)) == 1


def test_of_two_jobs_of_one_name_the_last_stays(flink):
    """As when Flink accepts a submission after all whose answer did not come in time."""
    keeper = flink.keeper.Jobs()
    flink.jobs["late"] = {"name": "a.b", "state": "RUNNING"}
    mine = keeper.put("a.b", INSERT, "1")["job_id"]
    keeper.look()
    assert live(flink) == [(mine, "a.b")]


def test_a_wrong_change_leaves_the_job_as_it_was(flink):
    keeper = flink.keeper.Jobs()
    keeper.put("a.b", INSERT, "1")
    flink.refuse = "wrong"
    with pytest.raises(flink.keeper.RefusedError, match=r"the job runs on as it was"):
        keeper.put("a.b", ["INSERT INTO wrong SELECT 1"], "2")
    assert keeper.jobs["a.b"].sha256 == "1" and len(live(flink)) == 1
    # the new statement's error is said, whatever else goes wrong
    flink.refuse = "INSERT"
    with pytest.raises(flink.keeper.RefusedError, match=r"^no \(the job as it was does not begin either"):
        keeper.put("a.b", ["INSERT INTO wrong SELECT 1"], "2")
    assert not live(flink)
    flink.refuse = ""
    keeper.look()
    assert flink.ran[-1] == INSERT[0] and len(live(flink)) == 1


def test_a_wrong_change_does_not_begin_what_somebody_cancelled(flink):
    keeper = flink.keeper.Jobs()
    flink.jobs[keeper.put("a.b", INSERT, "1")["job_id"]]["state"] = "CANCELED"
    keeper.look()
    flink.refuse = "wrong"
    with pytest.raises(flink.keeper.RefusedError, match=r"the job is CANCELED, as it was"):
        keeper.put("a.b", ["INSERT INTO wrong SELECT 1"], "2")
    keeper.look()
    flink.keeper.Jobs().look()
    assert not live(flink)


def test_tasks_that_restart_after_an_outage_are_waited_for(flink, monkeypatch):
    keeper = flink.keeper.Jobs()
    found = flink.jobs[keeper.put("a.b", INSERT, "1")["job_id"]]
    found["state"] = "RESTARTING"
    monkeypatch.setattr(flink.keeper.time, "sleep", lambda seconds: found.update(state="RUNNING"))
    assert keeper.put("a.b", INSERT, "1")["state"] == "RUNNING"
    assert len(flink.jobs) == 1


def test_a_job_of_which_nothing_is_known_is_submitted_when_it_is_declared_again(flink):
    keeper = flink.keeper.Jobs()
    keeper.put("a.b", INSERT, "1")
    keeper.asked -= flink.keeper.SILENT_SECONDS + 1
    keeper.doubt(OSError("refused"))
    flink.jobs.clear()
    assert keeper.put("a.b", INSERT, "1")["state"] == "RUNNING"


def test_a_missing_job_is_submitted_when_it_is_declared_again(flink):
    keeper = flink.keeper.Jobs()
    keeper.put("a.b", INSERT, "1")
    flink.jobs.clear()
    flink.away = "gateway"
    keeper.look()
    assert keeper.jobs["a.b"].state == "MISSING" and "refused" in keeper.jobs["a.b"].error
    flink.away = ""
    assert keeper.put("a.b", INSERT, "1")["state"] == "RUNNING"


def test_nothing_is_said_to_run_when_the_jobmanager_is_silent(flink):
    keeper = flink.keeper.Jobs()
    keeper.put("a.b", INSERT, "1")
    keeper.look()
    keeper.doubt(OSError("refused"))
    assert keeper.jobs["a.b"].state == "RUNNING"
    keeper.asked -= flink.keeper.SILENT_SECONDS + 1
    keeper.doubt(OSError("refused"))
    assert keeper.jobs["a.b"].shown()["state"] == "UNKNOWN"


def test_a_job_is_forgotten_only_when_it_is_ended(flink):
    keeper = flink.keeper.Jobs()
    keeper.put("a.b", INSERT, "1")
    flink.away = "manager"
    with pytest.raises(OSError, match="refused"):
        keeper.delete("a.b")
    assert "a.b" in keeper.jobs
    flink.away = ""
    keeper.delete("a.b")
    assert not live(flink) and not flink.keeper.Jobs().jobs


def test_secrets_are_put_in_and_one_that_is_not_there_holds_up_no_other_job(flink):
    reference = "'${file:/etc/flink/secrets.properties:%s}'"
    keeper = flink.keeper.Jobs()
    keeper.put("a.b", [f"CREATE TABLE a WITH ('p' = {reference % 'postgres_password'})", *INSERT], "1")
    assert flink.ran[0] == "CREATE TABLE a WITH ('p' = 'it''s')"
    keeper.put("c.d", INSERT, "1")
    flink.keeper.PROPERTIES.write_text("")
    flink.jobs.clear()
    keeper.look()
    assert "has no postgres_password" in keeper.jobs["a.b"].error
    assert [name for _, name in live(flink)] == ["c.d"]
