"""Flink without Flink: tables made of schemas, the clients' reading of answers, what a pipeline's job differs in."""

import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from venice.errors import InputError, UnreachableError, VeniceError
from venice.flink import Gateway, Job, Jobs, _Service
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
        "'value.avro-confluent.url' = 'http://r:8081'",
        "WATERMARK FOR `_timestamp`",
    ):
        assert line in ddl
    assert made.left_out == ("odd",)
    assert "bounded" not in ddl


def test_a_bounded_table_ends_with_what_is_there():
    [ddl] = table("bus", avro(BUS), "k:9092", "http://r:8081", keyed=False, bounded=True).statements
    assert "'scan.bounded.mode' = 'latest-offset'" in ddl
    assert "_key" not in ddl


def test_json_schema_records_are_read_behind_their_frame():
    schema = {"type": "object", "properties": {"id": {"type": "string"}, "n": {"type": ["integer", "null"]}, "odd name": {}}}
    raw, view = table("o", {"schemaType": "JSON", "schema": json.dumps(schema)}, "k:9092", "u", keyed=True, bounded=False).statements
    assert "'value.format' = 'raw'" in raw
    assert "JSON_VALUE(SUBSTRING(`_value`, POSITION('{' IN `_value`)), '$.n' RETURNING BIGINT) AS `n`" in view
    assert """'$["odd name"]' RETURNING STRING""" in view


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

    found = _Service("http://f:8084", "flink-gateway on lab-1", 5)
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
    assert result.job_id == "j"
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


def statements(tmp_path, text="INSERT INTO a SELECT 1;\n"):
    file = tmp_path / "agg.sql"
    file.write_text(text)
    return Statements("shop", "sql/agg.sql", file, text, "flink")


@pytest.fixture
def jobs(monkeypatch):
    """Stands for the keeper: `there` is what it lists, `sent` what it was told."""
    kept = SimpleNamespace(there={}, sent=[], refuse="")

    def put(name, texts, sha256):
        if kept.refuse:
            raise VeniceError(kept.refuse)
        kept.sent.append((name, texts, sha256))

    keeper = SimpleNamespace(all=lambda: kept.there, put=put, delete=lambda name: kept.sent.append(("delete", name)))
    monkeypatch.setattr(Jobs, "of", classmethod(lambda cls, cluster, timeout=0: keeper))
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
    jobs.refuse = "Flink: INSERT INTO nothere SELECT 1: ValidationException: no such table"
    file = statements(tmp_path, "SET 'a' = 'b';\n\nINSERT INTO nothere SELECT 1;\n")
    with pytest.raises(VeniceError, match=rf"^{file.file}:3: INSERT INTO nothere"):
        ENGINES["flink"].apply(None, file)


def test_a_file_without_insert_is_refused(jobs, tmp_path):
    with pytest.raises(InputError, match="no INSERT INTO"):
        ENGINES["flink"].apply(None, statements(tmp_path, "SELECT 1;"))


def test_forgetting_cancels_the_job(jobs):
    jobs.there = {"shop.agg": Job("shop.agg", "RUNNING", "x")}
    ENGINES["flink"].forget(None, "shop", "sql/agg.sql")
    ENGINES["flink"].forget(None, "shop", "sql/other.sql")
    assert jobs.sent == [("delete", "shop.agg")]


def test_the_keeper_s_script_is_python_that_loads_nothing_else():
    script = Path("roles/flink/files/jobs.py").read_text()
    compile(script, "jobs.py", "exec")
    assert "confluent" not in script
