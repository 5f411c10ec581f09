"""Pipelines' SQL on ksqlDB, against answers recorded from ksqlDB 7.9.0; the cluster's topic is a dict."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.recorded import recording, server, statement
from venice import ksqldb
from venice.errors import InputError, UnreachableError, VeniceError
from venice.pipeline import applied, on_ksqldb
from venice.pipeline.connectors import replaced
from venice.pipeline.engines import ENGINES, Statements
from venice.pipeline.on_ksqldb import OnKsqlDb, creates, digest

ROOT = Path(__file__).resolve().parents[2]
STREAM, TABLE = statement("016"), statement("020")
SET = "SET 'ksql.streams.auto.offset.reset' = 'earliest';"
# what it asks before it does anything: ready?, streams, tables, queries
EMPTY = ("005", "010", "011", "012")
BOTH = ("005", "030", "031", "032")
ENGINE = OnKsqlDb()


def script(text, name="sql/a.sql"):
    return Statements("p", name, Path("p") / name, text, "ksqldb")


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose ksqlDB is at `url` (set by the test), and whose topic is `kept`."""
    found = SimpleNamespace(
        url="",
        kept={},
        inventory_dir="inventory/x",
        groups={"ksqldb": ["h"]},
        instances=lambda component: [component],
        pipeline_vars={"replication_factor": 1},
    )
    found.required = lambda component, port: {found.url: "ksqldb on h"}

    def keep(kafka, topic, key, value, replication):
        assert topic.config["cleanup.policy"] == "compact"
        found.kept.update({key: value}) if value else found.kept.pop(key, None)

    monkeypatch.setattr(on_ksqldb, "_kafka", lambda cluster: None)
    monkeypatch.setattr(applied, "latest", lambda kafka, topic: dict(found.kept))
    monkeypatch.setattr(applied, "keep", keep)
    monkeypatch.setattr(ksqldb, "_POLL_SECONDS", 0.01)
    return found


def said(asked):
    """The statements that were sent, without what is only asked."""
    sent = [a.body["ksql"] for a in asked if a.method == "POST"]
    return [text for text in sent if not text.startswith("SHOW ")]


def apply(cluster, file, *answers):
    """Applies with these recordings as answers: the remarks, the statements that were sent."""
    with server(*answers) as (cluster.url, asked):
        remarks = ENGINE.apply(cluster, file)
    return list(remarks), said(asked)


def differences(cluster, file, *answers):
    with server(*answers) as (cluster.url, asked):
        found = ENGINE.differences(cluster, [file])
    assert said(asked) == [], "comparing sends nothing"
    return [(d.field, d.current, d.desired) for d in found.get((file.pipeline, file.name), ())]


def no_answer_to(monkeypatch, statement):
    """As a server that is waiting for its brokers: nobody knows whether the statement will be done."""
    execute = ksqldb.KsqlDb.execute

    def giving_up(self, text, properties=None):
        if text == statement:
            raise UnreachableError("ksqlDB: no answer within 60 s")
        return execute(self, text, properties)

    monkeypatch.setattr(ksqldb.KsqlDb, "execute", giving_up)


def remembered(cluster, key="p/sql/a.sql"):
    return json.loads(cluster.kept[key])


def test_a_new_file_is_run_and_then_in_step(cluster):
    file = script(f"{SET}\n{STREAM}\n{TABLE}\n")
    assert differences(cluster, file, *EMPTY) == [("text", None, file.sha256[:12])]
    with server(*EMPTY, "016", "020") as (cluster.url, asked):
        assert ENGINE.apply(cluster, file) == []
    assert said(asked) == [STREAM, TABLE]
    assert asked[-1].body["streamsProperties"] == {"ksql.streams.auto.offset.reset": "earliest"}
    assert asked[-1].body["commandSequenceNumber"] == 2, "another server waits until it knows the stream"
    assert [(d["kind"], d["name"], d["query"]) for d in remembered(cluster)["statements"]] == [
        ("stream", "TRANSACTIONS", ""),
        ("table", "TRANSACTIONS_AGG", "CTAS_TRANSACTIONS_AGG_5"),
    ]
    assert differences(cluster, file, *BOTH) == []
    assert apply(cluster, file, *BOTH) == ([], [])


def test_what_somebody_dropped_is_a_difference_and_made_again(cluster):
    file = script(f"{STREAM}\n{TABLE}")
    apply(cluster, file, *EMPTY, "016", "020")
    # the stream is there, its table and query are not
    gone = ("005", "030", "011", "012")
    assert differences(cluster, file, *gone) == [("table TRANSACTIONS_AGG", "missing", "there")]
    assert apply(cluster, file, *gone, "020") == ([], [TABLE])
    # the table is there, its query was terminated: nothing writes there any more
    stopped = ("005", "030", "031", "012")
    assert differences(cluster, file, *stopped) == [("table TRANSACTIONS_AGG", "missing", "there")]
    assert apply(cluster, file, *stopped, "054", "020") == (
        ["dropped table TRANSACTIONS_AGG"],
        ["DROP TABLE IF EXISTS `TRANSACTIONS_AGG`;", TABLE],
    )


def test_a_changed_statement_and_those_after_it_are_dropped_backwards_and_run_again(cluster):
    apply(cluster, script(f"{STREAM}\n{TABLE}"), *EMPTY, "016", "020")
    file = script(f"{STREAM.replace('amount DOUBLE', 'amount DECIMAL(9, 2)')}\n{TABLE}")
    assert [d[0::2] for d in differences(cluster, file, *BOTH)] == [
        ("text", file.sha256[:12]),
        ("stream TRANSACTIONS", "dropped, made again"),
        ("table TRANSACTIONS_AGG", "dropped, made again"),
    ]
    remarks, sent = apply(cluster, file, *BOTH, "054", "054", "016", "020")
    assert remarks == ["dropped table TRANSACTIONS_AGG", "dropped stream TRANSACTIONS"]
    assert [text.split(" (")[0] for text in sent][:3] == [
        "DROP TABLE IF EXISTS `TRANSACTIONS_AGG`;",
        "DROP STREAM IF EXISTS `TRANSACTIONS`;",
        "CREATE STREAM transactions",
    ]


def test_what_was_only_added_or_laid_out_anew_leaves_the_rest_alone(cluster):
    apply(cluster, script(STREAM), *EMPTY, "016")
    file = script(f"-- all of them\n{STREAM.replace(', ', ',  ')}\n\n{TABLE}")
    only_stream = ("005", "030", "011", "012")
    assert [d[0] for d in differences(cluster, file, *only_stream)] == ["text"]
    assert apply(cluster, file, *only_stream, "020") == ([], [TABLE])


def test_another_property_is_another_statement(cluster):
    apply(cluster, script(f"{STREAM}\n{TABLE}"), *EMPTY, "016", "020")
    file = script(f"{STREAM}\n{SET}\n{TABLE}")
    assert apply(cluster, file, *BOTH, "054", "020")[1] == ["DROP TABLE IF EXISTS `TRANSACTIONS_AGG`;", TABLE]


def test_or_replace_changes_in_place_what_it_made(cluster):
    apply(cluster, script(f"{STREAM}\n{TABLE}"), *EMPTY, "016", "020")
    file = script(f"{STREAM.replace('CREATE', 'CREATE OR REPLACE')}\n{TABLE}")
    assert differences(cluster, file, *BOTH)[1:] == [("stream TRANSACTIONS", "there", "replaced")]
    _, sent = apply(cluster, file, *BOTH, "016")
    assert [text[:30] for text in sent] == ["CREATE OR REPLACE STREAM trans"]


def test_the_servers_warnings_are_passed_on_and_what_others_made_is_not_ours(cluster):
    file = script(f"\n\n{statement('017')}")
    remarks, _ = apply(cluster, file, *BOTH, "017")
    assert remarks == ["p/sql/a.sql:3: Cannot add stream `TRANSACTIONS`: A stream with the same name already exists."]
    assert ENGINE.made(cluster, "p", "sql/a.sql") == []


def test_a_refused_statement_names_its_line_and_what_was_made_is_remembered(cluster):
    file = script(f"{STREAM}\n\n{statement('022')}\n")
    with pytest.raises(VeniceError, match=r"^p/sql/a\.sql:3: ksqlDB: Could not determine output schema .* same name already exists"):
        apply(cluster, file, *EMPTY, "016", "022")
    assert remembered(cluster)["sha256"] == ""
    assert [d["name"] for d in remembered(cluster)["statements"]] == ["TRANSACTIONS"]
    only_stream = ("005", "030", "011", "012")
    assert differences(cluster, file, *only_stream) == [("text", "unfinished", file.sha256[:12])]
    # repeated, it goes on from there
    assert apply(cluster, file, *only_stream, "020")[1] == [statement("022")]


def test_what_was_made_after_the_client_had_given_up_is_made_anew(cluster, monkeypatch):
    """Else the next apply could only say that it is there already."""
    file = script(STREAM)
    with monkeypatch.context() as patched, pytest.raises(UnreachableError):
        no_answer_to(patched, STREAM)
        apply(cluster, file, *EMPTY)
    only_stream = ("005", "030", "011", "012")
    assert [d[0::2] for d in differences(cluster, file, *only_stream)] == [
        ("text", file.sha256[:12]),
        ("stream TRANSACTIONS", "dropped, made again"),
    ]
    assert apply(cluster, file, *only_stream, "054", "016")[1] == ["DROP STREAM IF EXISTS `TRANSACTIONS`;", STREAM]
    # never done: nothing to drop
    cluster.kept.clear()
    with monkeypatch.context() as patched, pytest.raises(UnreachableError):
        no_answer_to(patched, STREAM)
        apply(cluster, file, *EMPTY)
    assert apply(cluster, file, *EMPTY, "016") == ([], [STREAM])


def test_what_was_done_is_remembered_though_the_brokers_go_away_then(cluster, monkeypatch):
    """The record is in the same Kafka: what can't be kept any more was kept before."""
    file = script(f"{STREAM}\n{TABLE}")
    keep = applied.keep
    with monkeypatch.context() as patched, pytest.raises(UnreachableError, match="ksqlDB: no answer"):
        no_answer_to(patched, TABLE)
        # after the stream, and what is about to be done
        kept = iter([keep, keep])

        def gone(*_):
            raise UnreachableError("Kafka: no broker")

        patched.setattr(applied, "keep", lambda *arguments: next(kept, gone)(*arguments))
        apply(cluster, file, *EMPTY, "016")
    assert [(d["kind"], d["name"], bool(d["sha256"])) for d in remembered(cluster)["statements"]] == [
        ("stream", "TRANSACTIONS", True),
        ("table", "TRANSACTIONS_AGG", False),
    ]


def test_what_if_not_exists_had_left_to_somebody_is_made_when_it_is_gone(cluster):
    file = script(f"{statement('017')}\n{TABLE}")
    only_stream = ("005", "030", "011", "012")
    apply(cluster, file, *only_stream, "017", "020")
    assert ENGINE.made(cluster, "p", "sql/a.sql") == ["table TRANSACTIONS_AGG"]
    assert apply(cluster, file, *EMPTY, "016", "020")[1] == [statement("017"), TABLE]


def test_what_was_there_before_a_statement_without_an_answer_is_not_ours(cluster, monkeypatch):
    no_answer_to(monkeypatch, STREAM)
    with pytest.raises(UnreachableError):
        apply(cluster, script(STREAM), *BOTH)
    assert ENGINE.made(cluster, "p", "sql/a.sql") == []


def test_a_syntax_error_names_the_line_within_the_statement(cluster):
    # ksqlDB counts lines from the statement's beginning
    answer = recording("046")
    answer["response"]["body"]["message"] = "line 2:1: Syntax Error\nUnknown statement 'SELEC'"
    with pytest.raises(VeniceError, match=r"^p/sql/a\.sql:4: ksqlDB: Syntax Error"):
        apply(cluster, script("\n\nINSERT INTO x\nSELEC * FROM transactions;"), *EMPTY, answer)


def test_an_insert_query_is_terminated_when_it_changes(cluster):
    insert = statement("120")
    apply(cluster, script(insert), *EMPTY, "120")
    assert [(d["kind"], d["name"]) for d in remembered(cluster)["statements"]] == [("query", "INSERTQUERY_19")]
    # it is not among the queries any more: made again, with nothing to terminate
    assert apply(cluster, script(insert), *EMPTY, "120") == ([], [insert])


def test_a_query_that_takes_its_time_is_known_by_its_id(cluster):
    """Else it could not be terminated: the statement, run again, would write everything twice."""
    busy = recording("120")
    busy["response"]["body"][0]["commandStatus"] = {"status": "QUEUED", "message": "Statement written to command topic", "queryId": None}
    done = recording("023")
    done["response"]["body"] |= {"queryId": "INSERTQUERY_19", "message": "Created query with ID INSERTQUERY_19"}
    apply(cluster, script(statement("120")), *EMPTY, busy, done)
    assert [(d["kind"], d["name"]) for d in remembered(cluster)["statements"]] == [("query", "INSERTQUERY_19")]


def test_forgetting_drops_the_last_first(cluster):
    apply(cluster, script(f"{STREAM}\n{TABLE}"), *EMPTY, "016", "020")
    assert ENGINE.made(cluster, "p", "sql/a.sql") == ["table TRANSACTIONS_AGG", "stream TRANSACTIONS"]
    with server(*BOTH, "054", "054") as (cluster.url, asked):
        ENGINE.forget(cluster, "p", "sql/a.sql")
    assert said(asked) == ["DROP TABLE IF EXISTS `TRANSACTIONS_AGG`;", "DROP STREAM IF EXISTS `TRANSACTIONS`;"]
    assert cluster.kept == {}
    ENGINE.forget(cluster, "p", "sql/a.sql")  # nothing to ask a server for


def test_what_others_read_is_not_dropped_and_stays_remembered(cluster):
    apply(cluster, script(STREAM), *EMPTY, "016")
    with (
        server(*BOTH, "053") as (cluster.url, _),
        pytest.raises(VeniceError, match=r"following streams and/or tables read from this source"),
    ):
        ENGINE.forget(cluster, "p", "sql/a.sql")
    assert ENGINE.made(cluster, "p", "sql/a.sql") == ["stream TRANSACTIONS"]


def test_it_waits_until_the_server_is_ready(cluster):
    with server("001", "001", *EMPTY, "016") as (cluster.url, asked):
        ENGINE.apply(cluster, script(STREAM))
    assert [a.path for a in asked[:3]] == ["/healthcheck"] * 3


def test_a_server_without_brokers_is_told_as_unreachable(cluster, monkeypatch):
    monkeypatch.setattr(on_ksqldb, "_ASK_SECONDS", 0.05)
    with server("142") as (cluster.url, _), pytest.raises(UnreachableError, match="kafka, commandRunner not healthy"):
        ENGINE.differences(cluster, [script(STREAM)])


def test_what_makes_nothing_is_refused_with_its_line(cluster):
    with pytest.raises(InputError, match=r"^p/sql/a\.sql:2: SELECT makes nothing"):
        apply(cluster, script(f"{SET}\nSELECT * FROM transactions EMIT CHANGES;"), *EMPTY)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("create stream a (x int);", ("stream", "A")),
        ("CREATE OR REPLACE TABLE `b-c` AS SELECT 1;", ("table", "b-c")),
        ('CREATE SOURCE TABLE IF NOT EXISTS "Q" (x INT PRIMARY KEY);', ("table", "Q")),
        ("CREATE -- really\n STREAM /* x */ s AS SELECT 1;", ("stream", "S")),
        ("INSERT INTO s SELECT 1;", ("", "")),
        ("DROP STREAM s;", ("", "")),
    ],
)
def test_what_a_statement_makes(text, made):
    assert creates(text) == made


def test_layout_and_comments_are_not_the_statement_but_quoted_texts_are():
    assert digest("SELECT  1 -- x\n;", {}) == digest("SELECT 1 ;", {})
    assert digest("SELECT 'a  b';", {}) != digest("SELECT 'a b';", {})
    assert digest("SELECT 1;", {}) != digest("SELECT 1;", {"a": "b"})


def test_the_shipped_aggregation_is_two_statements_that_the_client_understands():
    file = ROOT / "pipelines" / "transactions" / "sql" / "ksqldb.sql"
    text = replaced(file.read_text(), {"replication_factor": 3}, file)
    statements = on_ksqldb._statements(Statements("transactions", "sql/ksqldb.sql", file, text, "ksqldb"))
    assert [creates(s.text) for s, _ in statements] == [("stream", "TRANSACTIONS"), ("table", "TRANSACTIONS_AGGREGATE_KSQL")]
    assert all(properties == {"ksql.streams.auto.offset.reset": "earliest"} for _, properties in statements)
    table = " ".join(statements[1][0].text.split())
    for part in (
        "KAFKA_TOPIC = 'transactions_aggregate_ksql'",
        "WINDOW TUMBLING (SIZE 3 SECONDS, GRACE PERIOD 1 SECONDS) WHERE status = 'paid'",
        "EMIT FINAL;",
        "AS `window_start`",
        "AS `window_end`",
        "AS `total_amount`",
        "AS `transactions`",
        "AS `avg_amount`",
        "REPLICAS = 3",
    ):
        assert part in table


def test_ksqldb_is_an_engine_for_streams():
    assert ENGINES["ksqldb"].stream
    assert ENGINES["ksqldb"].component == "ksqldb"
