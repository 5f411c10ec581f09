"""ksqlDB's REST API, from answers recorded from ksqlDB 7.9.0 and given again by an HTTP server of this process."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from tests.unit.recorded import closed_port, recording, server, statement
from venice.cli import cli
from venice.cluster import Instance
from venice.errors import InputError, UnreachableError, VeniceError
from venice.ksqldb import KsqlDb, Statement, property_of, split

HERE = Path(__file__).parent
SCHEMA = json.loads((HERE.parents[1] / "docs" / "json" / "ksql.schema.json").read_text())


# ---- scripts


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", []),
        (" ;; -- nothing\n/* at ; all */", []),
        ("SHOW STREAMS", [("SHOW STREAMS;", 1)]),
        ("SHOW STREAMS;\n\nSHOW TABLES;\n", [("SHOW STREAMS;", 1), ("SHOW TABLES;", 3)]),
        ("INSERT INTO t VALUES ('a;b', 'it''s; ok');SELECT 1;", [("INSERT INTO t VALUES ('a;b', 'it''s; ok');", 1), ("SELECT 1;", 1)]),
        ('SELECT "a;b", `c;d` FROM t;', [('SELECT "a;b", `c;d` FROM t;', 1)]),
        ("-- it's; a comment\nSHOW /* ; ' */ TABLES; -- end", [("SHOW /* ; ' */ TABLES;", 2)]),
        ("SHOW TABLES -- all of them; really", [("SHOW TABLES -- all of them; really\n;", 1)]),
        ("SELECT '--' FROM t;SELECT 2;", [("SELECT '--' FROM t;", 1), ("SELECT 2;", 1)]),
    ],
)
def test_scripts_are_split_where_statements_end(script, expected):
    assert [(s.text, s.line) for s in split(script)] == expected


@pytest.mark.parametrize("script", ["SELECT 1;\nSELECT 'a;\n", 'SELECT 1;\nSELECT "a', "SELECT 1;\n/* a", "SELECT 1;\nSELECT `a"])
def test_what_is_not_closed_is_named_with_its_line(script):
    with pytest.raises(InputError, match=r"statements\.sql: line 2: .* is not closed"):
        split(script, "statements.sql")


@pytest.mark.parametrize(
    ("text", "query", "push"),
    [
        ("SELECT * FROM t;", True, False),
        ("-- comment\nselect * from t emit\n changes;", True, True),
        ("SELECT 'EMIT CHANGES' FROM t; ", True, False),
        ("SELECT a -- EMIT CHANGES\nFROM t;", True, False),
        ("SELECT a FROM t WINDOW TUMBLING (SIZE 3 SECONDS) GROUP BY a EMIT FINAL;", True, True),
        ("CREATE TABLE t AS SELECT * FROM s EMIT CHANGES;", False, False),
    ],
)
def test_kinds_of_statements(text, query, push):
    assert (Statement(text).is_query, Statement(text).is_push) == (query, push)


# ---- statements


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("016", "Stream created"),
        ("017", "Cannot add stream `TRANSACTIONS`: A stream with the same name already exists."),
        ("020", "Created query with ID CTAS_TRANSACTIONS_AGG_5"),
        ("056", "Source `NOPE` does not exist."),
        ("112", "done"),
        ("122", "Query terminated."),
    ],
)
def test_what_a_statement_did(number, message):
    with server(number) as (url, asked):
        answer = KsqlDb([url]).execute(statement(number))
    assert answer.message == message
    assert asked[0].path == "/ksql"
    assert asked[0].headers["Accept"] == "application/vnd.ksql.v1+json"
    assert asked[0].body == {"ksql": statement(number), "streamsProperties": {}}


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("018", "Cannot add stream 'TRANSACTIONS': A stream with the same name already exists"),
        ("026", "Failed to insert values into 'TRANSACTIONS'"),
        ("043", "NOPE does not exist"),
        ("046", "Syntax Error"),
        ("052", "Not recognizable as ksql, streams, consumer, or producer property"),
        ("053", "Cannot drop TRANSACTIONS"),
        ("161", "KSQL is not configured to use a schema registry"),
        ("170", "Unauthorized"),
        ("176", "Forbidden"),
    ],
)
def test_what_the_server_refuses(number, says):
    with server(number) as (url, _), pytest.raises(VeniceError) as caught:
        KsqlDb([url]).execute(statement(number))
    assert says in caught.value.message
    assert caught.value.exit_code == 1


def test_a_statement_that_is_still_running_is_waited_for(monkeypatch):
    """The first answer as a busy server gives it, then the recorded status."""
    monkeypatch.setattr("venice.ksqldb._POLL_SECONDS", 0)
    busy = recording("016")
    busy["response"]["body"][0]["commandStatus"] = {"status": "QUEUED", "message": "Statement written to command topic", "queryId": None}
    executing = recording("023")
    executing["response"]["body"] = {"status": "EXECUTING", "message": "Executing statement", "queryId": None}
    with server(busy, executing, "023", "030") as (url, asked):
        ksqldb = KsqlDb([url])
        assert ksqldb.execute("CREATE ...;").message == "Stream created"
        ksqldb.execute("SHOW STREAMS;")
    assert [a.path for a in asked] == ["/ksql", *["/status/stream/`TRANSACTIONS`/create"] * 2, "/ksql"]
    assert asked[-1].body["commandSequenceNumber"] == 2

    executing["response"]["body"] = {"status": "ERROR", "message": "out of disk", "queryId": None}
    with server(busy, executing) as (url, _), pytest.raises(VeniceError, match="out of disk"):
        KsqlDb([url]).execute("CREATE ...;")


def test_a_server_that_does_not_answer_in_time_is_not_asked_again():
    """With Kafka down ksqlDB answers nothing for minutes: the client's own limit ends it, and no second server does it twice."""
    with server("143", silent=True) as (url, asked), server("016") as (other, others), pytest.raises(UnreachableError) as caught:
        KsqlDb([url, other], timeout=0.5).execute("CREATE ...;")
    assert "no answer within 0.5 s" in caught.value.message
    assert "may still be done" in caught.value.remedy
    assert (len(asked), len(others)) == (1, 0)


def test_another_server_is_asked_when_one_is_down_or_starting():
    down = closed_port()
    with server("003") as (starting, asked), server("030") as (ready, _):
        answer = KsqlDb([down, starting, ready]).execute("SHOW STREAMS;")
        assert answer.kind == "streams"
        assert len(asked) == 1
        with pytest.raises(UnreachableError, match=r"box: .*; .* it is starting") as caught:
            KsqlDb([down, starting], names={down: "box"}).execute("SHOW STREAMS;")
        assert caught.value.exit_code == 3
        with pytest.raises(UnreachableError, match="box"):
            KsqlDb([down], names={down: "box"}).query("SELECT 1;")


def test_lists_and_descriptions_as_tables():
    def table(number):
        with server(number) as (url, _):
            return KsqlDb([url]).execute(statement(number)).table()

    columns, rows = table("030")
    assert columns == ["type", "name", "topic", "keyFormat", "valueFormat", "isWindowed"]
    assert ["STREAM", "TRANSACTIONS", "transactions", "KAFKA", "AVRO", "false"] in rows
    assert table("011") == ([], [])
    columns, rows = table("032")
    assert dict(zip(columns, rows[0], strict=True))["sinks"] == "TRANSACTIONS_AGG"
    assert table("035") == (
        ["column", "type", "key"],
        [["ID", "STRING", "KEY"], ["USER_ID", "INTEGER", ""], ["AMOUNT", "DOUBLE", ""], ["STATUS", "STRING", ""], ["TS", "BIGINT", ""]],
    )
    assert ["TOTAL_AMOUNT", "DOUBLE", ""] in table("039")[1]


# ---- queries


def test_pull_query():
    with server("070") as (url, asked):
        rows = KsqlDb([url]).query(statement("070"))
        assert rows.columns == ["USER_ID", "WINDOWSTART", "WINDOWEND", "TOTAL_AMOUNT", "TX_COUNT", "AVG_AMOUNT"]
        assert list(rows) == [[1, 1795272120000, 1795272123000, 30.5, 2, 15.25], [1, 1795272123000, 1795272126000, 5.0, 1, 5.0]]
        assert not rows.endless
    assert asked[0].path == "/query-stream"
    assert asked[0].body == {"sql": statement("070"), "properties": {}}


def test_a_value_may_have_any_character(monkeypatch):
    """Also those that Python takes for the end of a line, which JSON leaves as they are."""
    answer = recording("070")
    header, row, *_ = answer["response"]["body_lines"]
    answer["response"]["body_lines"] = [header, json.dumps(["a\u2028b\x85c", *json.loads(row)[1:]], ensure_ascii=False)]
    with server(answer) as (url, _):
        assert [row[0] for row in KsqlDb([url]).query("SELECT 1;")] == ["a\u2028b\x85c"]


@pytest.mark.parametrize("text", ["SET 'a' = 'b';", "SET 'a' = 'b' -- why\n;", "SET /* x */ 'a' = 'b';"])
def test_a_setting_may_have_a_comment(text):
    assert property_of(Statement(text))({"c": "d"}) == {"a": "b", "c": "d"}


def test_push_queries_with_a_limit_and_closed_by_the_server():
    with server("071", "082") as (url, _):
        ksqldb = KsqlDb([url])
        limited = ksqldb.query(statement("071"), {"auto.offset.reset": "earliest"})
        assert limited.endless
        assert [row[0] for row in limited] == ["a1", "a2", "a3"]
        assert len(list(ksqldb.query(statement("082")))) == 8


@pytest.mark.parametrize(("number", "says"), [("074", "NOPE does not exist"), ("075", "Syntax Error")])
def test_queries_that_the_server_refuses(number, says):
    with server(number) as (url, _), pytest.raises(VeniceError, match=says):
        KsqlDb([url]).query(statement(number))


def test_an_answer_that_breaks_off_is_no_end():
    with server("071", broken=True) as (url, _), pytest.raises(UnreachableError, match="the connection was lost"):
        list(KsqlDb([url]).query(statement("071")))


# ---- readiness


def test_ready_once_the_server_says_so(monkeypatch):
    monkeypatch.setattr("venice.ksqldb._POLL_SECONDS", 0)
    with server("001", "142", "005") as (url, asked):
        KsqlDb([closed_port(), url]).wait_ready(20)
    assert [a.path for a in asked] == ["/healthcheck"] * 3
    with server("142") as (url, _):
        assert "kafka, commandRunner not healthy" in KsqlDb([url]).ready()
    with server("001") as (url, _), pytest.raises(UnreachableError, match=r"not ready after 0 s: .* not yet ready to serve requests"):
        KsqlDb([url]).wait_ready(0)


# ---- the command


@pytest.fixture
def ksql(monkeypatch):
    """Runs `venice ksql` against a server at a URL: its output, and the error that ended it."""

    def run(url, *arguments, stdin=""):
        address, port = url.removeprefix("http://").split(":")
        instance = Instance("ksqldb", "ksqldb", "box", address, {"http": int(port)}, "venice-ksqldb")
        cluster = SimpleNamespace(
            hosts={"box": SimpleNamespace(name="box", vars={})},
            inventory_dir="inventory/x",
            instances=lambda c: [instance] if url else [],
            required=lambda c, p: {url: f"ksqldb on box ({url})"},
            var=lambda host, name: ["ksql"],
        )
        monkeypatch.setattr("venice.cluster.Cluster.load", lambda path: cluster)
        monkeypatch.setattr("venice.inventory.resolve", lambda name: None)
        done = CliRunner().invoke(cli, ["ksql", *arguments], input=stdin)
        return done.output, done.exception

    return run


def test_statements_of_a_pipe_hold_their_settings(ksql):
    script = "SET 'auto.offset.reset' = 'earliest';\nSHOW STREAMS;\nUNSET 'auto.offset.reset';\nSELECT * FROM t;"
    with server("030", "070") as (url, asked):
        output, error = ksql(url, stdin=script)
    assert error is None
    assert "TRANSACTIONS_INFERRED" in output
    assert [a.body.get("streamsProperties", a.body.get("properties")) for a in asked] == [{"auto.offset.reset": "earliest"}, {}]


def test_rows_for_people_and_for_programs(ksql):
    with server("070") as (url, _):
        output, error = ksql(url, "-e", statement("070"))
        assert error is None
        assert output.splitlines()[0].split() == ["USER_ID", "WINDOWSTART", "WINDOWEND", "TOTAL_AMOUNT", "TX_COUNT", "AVG_AMOUNT"]
        assert output.splitlines()[1].split() == ["1", "1795272120000", "1795272123000", "30.5", "2", "15.25"]
    with server("071") as (url, _):
        assert ksql(url, "-e", statement("071"))[0].splitlines()[:2] == [
            "ID\tUSER_ID\tAMOUNT\tSTATUS\tTS",
            "a1\t1\t10.0\tpaid\t1795272120000",
        ]
    with server("070", "016", "112", "030") as (url, _):
        output, error = ksql(url, "--json", "-e", "SELECT 1; CREATE ...;", "-e", "INSERT ...; SHOW STREAMS;")
    assert error is None
    documents = [json.loads(line) for line in output.splitlines()]
    for document in documents:
        Draft202012Validator(SCHEMA).validate(document)
    assert documents[0]["row"]["TOTAL_AMOUNT"] == 30.5
    assert [d["kind"] for d in documents[2:]] == ["currentStatus", "done", "streams"]


def test_each_of_several_may_lack_its_semicolon(ksql):
    with server("030", "031") as (url, asked):
        _, error = ksql(url, "-e", "SHOW STREAMS -- all", "-e", "SHOW TABLES", "-e", "SHOW TABLES;")
    assert error is None
    assert [a.body["ksql"].split()[1] for a in asked] == ["STREAMS", "TABLES", "TABLES;"]


def test_the_statement_that_fails_ends_the_run_and_is_named(ksql, tmp_path):
    file = tmp_path / "statements.sql"
    file.write_text("SHOW STREAMS;\n\n-- twice\nCREATE STREAM transactions\n  (id STRING KEY);\nSHOW TABLES;\n")
    with server("030", "018", "031") as (url, asked):
        output, error = ksql(url, "-f", str(file))
    assert "TRANSACTIONS_INFERRED" in output
    assert f"{file} line 4: ksqlDB: Cannot add stream 'TRANSACTIONS'" in error.message
    assert error.exit_code == 1
    assert len(asked) == 2


def test_what_only_the_command_line_knows_is_refused_before_anything_is_done(ksql):
    with server("030") as (url, asked):
        _, error = ksql(url, "-e", "SHOW STREAMS;\nPRINT 'topic';")
    assert isinstance(error, InputError)
    assert error.message == "line 2: PRINT is a command of ksqlDB's own command line"
    assert asked == []


def test_on_a_terminal_it_opens_the_command_line_where_ksqldb_runs(ksql, monkeypatch):
    opened = []
    monkeypatch.setattr("venice.terminal.on_terminal", lambda: True)
    monkeypatch.setattr("venice.terminal.attach", lambda host, *arguments: opened.append((host.name, *arguments)) or 4)
    _, error = ksql("http://127.0.0.1:8088")
    assert error.code == 4
    assert opened == [("box", "venice-ksqldb", ["ksql", "http://localhost:8088"], True)]


def test_without_ksqldb_it_names_sql(ksql, monkeypatch):
    monkeypatch.setattr("venice.inventory.resolve", lambda name: None)
    cluster = SimpleNamespace(inventory_dir="inventory/x", instances=lambda component: [])
    monkeypatch.setattr("venice.cluster.Cluster.load", lambda path: cluster)
    done = CliRunner().invoke(cli, ["ksql", "-e", "SHOW STREAMS;"])
    assert isinstance(done.exception, InputError)
    assert "nothing runs ksqlDB" in done.exception.message
    assert "`venice sql`" in done.exception.remedy
