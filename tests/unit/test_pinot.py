"""Pinot: its client, tables in pipelines, the publisher of final windows; and the numbers of ZooKeeper's nodes."""

import importlib.util
import json
from types import SimpleNamespace

import httpx
import pytest
from ansible.errors import AnsibleFilterError

import venice.pinot
from tests.unit.test_pipeline_plan import apply, cluster, write  # noqa: F401 (a fixture)
from venice import paths
from venice.cluster import Cluster
from venice.errors import InputError, UnreachableError, VeniceError
from venice.pinot import Pinot, flattened
from venice.pipeline.plan import prepare
from venice.pipeline.tables import TableFiles, unknown


def loaded(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


publisher = loaded("pinot_publisher", paths.resource("pipelines") / "transactions" / "pinot_publisher.py")
zookeeper = loaded("venice_zookeeper", paths.resource("plugins") / "filter" / "venice_zookeeper.py")


# ---- ZooKeeper's nodes


def test_zookeeper_nodes_keep_what_is_recorded_beside_their_data():
    records = {"a": {"/srv/venice/zookeeper/myid": "2\n"}, "x": {"/srv/venice/zookeeper/myid": "1"}}
    found = zookeeper.nodes(["c", "a", "b"], records)
    assert found == [{"host": "c", "node_id": 1}, {"host": "a", "node_id": 2}, {"host": "b", "node_id": 3}]
    assert zookeeper.nodes(["a"], {}) == [{"host": "a", "node_id": 1}]
    # one node was moved from a to b; now there are to be three
    records = {"a": {"/srv/venice/zookeeper/myid": "1\n"}, "b": {"/srv/venice/zookeeper/myid": "1\n"}}
    assert [node["node_id"] for node in zookeeper.nodes(["a", "b", "c"], records)] == [1, 2, 3]


def test_two_zookeeper_nodes_are_refused():
    with pytest.raises(AnsibleFilterError, match="has 2 hosts: it takes one, or three"):
        zookeeper.nodes(["a", "b"], {})


def test_pinot_starts_after_zookeeper_and_so_stops_before_it(tmp_path):
    groups = {name: {"hosts": {"h1": {"ansible_host": "192.0.2.1"}}} for name in ("pinot", "zookeeper")}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"vars": {"venice_cluster": "two"}, "children": groups}}))
    assert Cluster.load(tmp_path).order == ["zookeeper", "pinot"]


# ---- the client


def client(answers):
    """A Pinot whose services answer what `answers` has for "METHOD path": (status, document)."""

    def answer(request):
        status, document = answers[f"{request.method} {request.url.path}"]
        return httpx.Response(status, json=document)

    found = Pinot(["http://c:9000"], ["http://b:8099"], names={"http://c:9000": "pinot on a"})
    found._http = httpx.Client(transport=httpx.MockTransport(answer))
    return found


def test_a_query_gives_rows_or_says_what_failed():
    table = {"dataSchema": {"columnNames": ["n"], "columnDataTypes": ["LONG"]}, "rows": [[3]]}
    assert client({"POST /query/sql": (200, {"exceptions": [], "resultTable": table})}).query("q") == [[3]]
    with pytest.raises(VeniceError, match="no server has answered"):
        client({"POST /query/sql": (200, {"exceptions": []})}).query("q")
    wrong = (
        "SQLParsingError:\norg.x.Y: at\n\tat a.b(C.java:1)\nCaused by: org.apache.calcite.runtime.CalciteException: Non-query expression"
    )
    for message, said in ((wrong, "Non-query expression"), ("null:\n3 segments [a] unavailable", "3 segments .a. unavailable")):
        with pytest.raises(VeniceError, match=said) as error:
            client({"POST /query/sql": (200, {"exceptions": [{"errorCode": 1, "message": message}]})}).query("q")
        assert "\tat" not in error.value.message and "\n" not in error.value.message


def test_a_refused_table_and_a_controller_that_is_away():
    with pytest.raises(InputError, match="no such column"):
        client({"POST /tableConfigs/validate": (400, {"code": 400, "error": "no such column"})}).validated({})

    def away(request):
        raise httpx.ConnectError("refused")

    pinot = client({})
    pinot._http = httpx.Client(transport=httpx.MockTransport(away))
    with pytest.raises(UnreachableError, match="pinot on a: refused"):
        pinot.tables()


def test_segments_that_nobody_consumes_are_idle():
    found = {"t__0": [{"consumerState": "CONSUMING"}], "t__1": [], "t__2": [{"consumerState": "NOT_CONSUMING"}]}
    answers = {"GET /tables/t/consumingSegmentsInfo": (200, {"_segmentToConsumingInfoMap": found})}
    assert client(answers).idle("t") == ["t__1", "t__2"]
    with pytest.raises(VeniceError, match="table t is not ready after 0 s: not consumed: t__1, t__2"):
        client(answers).wait_consuming("t", 0)


def test_fields_are_told_apart_by_path_and_column():
    table = {"schema": {"d": [{"name": "a", "type": "LONG"}], "none": None}, "realtime": {"tenants": {}, "on": True, "tags": ["x"]}}
    assert flattened(table) == {
        "schema.d.a.name": "a",
        "schema.d.a.type": "LONG",
        "realtime.on": "true",
        "realtime.tags": '["x"]',
    }


# ---- tables in pipelines

SCHEMA = '{\n "schemaName": "orders",\n "dimensionFieldSpecs": [\n  {"name": "id", "dataType": "STRING"}\n ]\n}'
TABLE = """{
 "tableName": "orders",
 "tableType": "REALTIME",
 "tableIndexConfig": {
  "streamConfigs": {"stream.kafka.broker.list": "${bootstrap_servers}", "rows": "10"}
 }
}"""


class FakePinot:
    def __init__(self):
        self.there, self.idle_segments, self.calls, self.refuses = {}, [], [], ""

    def tables(self):
        return list(self.there)

    def table(self, name):
        return self.there[name]

    def validated(self, table):
        if self.refuses:
            raise InputError(f"Pinot: {self.refuses}")
        found = json.loads(json.dumps(table))
        found["realtime"].pop("tpyo", None)
        found["realtime"].setdefault("quota", {"storage": "none"})
        return found

    def create(self, table):
        self.calls.append("create")
        # Pinot's own, not in any file
        self.there[table["tableName"]] = table | {"realtime": table["realtime"] | {"tenants": {"broker": "Default"}}}

    def update(self, table):
        self.create(table)
        self.calls[-1] = "update"

    def restart(self, name):
        self.calls.append("restart")
        self.idle_segments = []

    def idle(self, name):
        return self.idle_segments

    def wait_consuming(self, name):
        self.calls.append("wait")

    def delete(self, name):
        del self.there[name]


@pytest.fixture
def pinot(cluster, monkeypatch):  # noqa: F811
    found = FakePinot()
    cluster.groups["pinot"] = ["h"]
    cluster.pipeline_vars["bootstrap_servers"] = "a:9092"
    monkeypatch.setattr(venice.pinot, "Pinot", SimpleNamespace(of=lambda cluster: found))
    return found


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "orders"
    found.mkdir()
    write(found, **{"pipeline.yml": "pinot:\n  - {schema: s.json, table: t.json}\n", "s.json": SCHEMA, "t.json": TABLE})
    return found


def test_a_table_is_made_waited_for_changed_and_removed(cluster, pinot, folder):  # noqa: F811
    assert apply(cluster, folder) == ["+ table orders"]
    assert pinot.there["orders"]["realtime"]["tableIndexConfig"]["streamConfigs"]["stream.kafka.broker.list"] == "a:9092"
    assert pinot.calls == ["create", "wait"]
    assert apply(cluster, folder) == [], "what Pinot adds itself is no difference"
    write(folder, **{"t.json": TABLE.replace('"10"', '"20"')})
    [change] = prepare(cluster, [folder]).changes
    assert str(change) == "~ table orders: tableIndexConfig.streamConfigs.rows: 10 -> 20"
    assert apply(cluster, folder) == ["~ table orders: tableIndexConfig.streamConfigs.rows: 10 -> 20"]
    write(folder, **{"pipeline.yml": "description: none\n"})
    plans = prepare(cluster, [folder], prune=True)
    assert plans.questions == ["table orders is removed with all its rows"]
    assert apply(cluster, folder, prune=True) == ["- table orders"]
    assert not pinot.there


def test_a_table_that_does_not_consume_is_started_again(cluster, pinot, folder):  # noqa: F811
    apply(cluster, folder)
    pinot.calls.clear()
    pinot.idle_segments = ["orders__0"]
    assert apply(cluster, folder) == ["~ table orders: state: does not consume orders__0 -> CONSUMING"]
    assert pinot.calls == ["update", "restart", "wait"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.json", TABLE.replace('"rows"', '"rows", "x"'), "t.json:5: Expecting ':' delimiter"),
        ("t.json", TABLE.replace("REALTIME", "BOTH"), "t.json:3: tableType must be REALTIME or OFFLINE"),
        ("s.json", SCHEMA.replace("orders", "other"), "s.json:2: schemaName is other, the table in"),
        ("s.json", "[]", "s.json: must be an object with schemaName"),
        ("t.json", TABLE.replace("bootstrap_servers", "bootstrap"), r"t.json:5: unknown variable \${bootstrap}"),
        ("t.json", TABLE.replace('"tableIndexConfig"', '"tpyo": 1,\n "tableIndexConfig"'), "t.json:4: Pinot knows no tpyo"),
        ("pipeline.yml", "pinot:\n  - {schema: s.json}\n", "pipeline.yml:2: pinot.0: 'table' is a required property"),
        (
            "pipeline.yml",
            "pinot:\n" + "  - {schema: s.json, table: t.json}\n" * 2,
            "pipeline.yml:3: pinot: there is already a table orders",
        ),
    ],
)
def test_mistakes_are_named_with_file_and_line(cluster, pinot, folder, name, text, said):  # noqa: F811
    write(folder, **{name: text})
    with pytest.raises(InputError, match=said):
        prepare(cluster, [folder])
    assert not pinot.calls


def test_what_pinot_refuses_names_the_files(cluster, pinot, folder):  # noqa: F811
    pinot.refuses = "no time column"
    with pytest.raises(InputError, match=r"t\.json with .*s\.json: Pinot: no time column"):
        prepare(cluster, [folder])


def test_fields_that_pinot_leaves_out_are_found_also_in_lists():
    given = {"schema": {"d": [{"name": "a", "tpye": "LONG"}]}}
    assert unknown(given, {"schema": {"d": [{"name": "a", "type": "STRING"}]}}) == "schema.d.a.tpye"
    assert unknown(given, given) is None
    assert unknown({"metadata": {}, "x": None}, {}) is None, "what says nothing may be left out"


def test_the_pipelines_own_table_is_read():
    folder = paths.resource("pipelines") / "transactions" / "pinot"
    files = [folder / "transactions.schema.json", folder / "transactions.table.json"]
    table = TableFiles.of(*files, *(file.read_text() for file in files))
    document = table.load({"bootstrap_servers": "a:1", "registry_url": "http://r"})
    assert document["realtime"]["segmentsConfig"]["timeColumnName"] == "event_time"
    assert "${" not in json.dumps(document)


# ---- the publisher


def group(partition, at, total=0.0, count=0):
    """A row of the publisher's query: one window of one segment."""
    return [f"t__x__{partition}__0__20260101T0000Z", at // 3000 * 3000, float(at), total, count]


def seen(monkeypatch, *found, limit=publisher.LIMIT, newest=()):
    answers = [list(found), [list(pair) for pair in newest], list(found)]
    monkeypatch.setattr(publisher, "rows", lambda broker, query, **values: answers.pop(0))
    return publisher.look("b", "t", 0, limit)


def test_a_window_is_final_when_all_partitions_are_past_it(monkeypatch):
    rows = [group(0, 2_500, 5.0, 2), group(1, 2_900, 1.0, 1), group(0, 4_100), group(1, 3_999)]
    assert publisher.complete(seen(monkeypatch, *rows), [0, 1], set()) == (0, []), "one may still get what is a second late"
    rows[-1] = group(1, 4_000)
    until, windows = publisher.complete(seen(monkeypatch, *rows), [0, 1], set())
    assert until == 3_000
    assert [w.record() for w in windows] == [
        {"window_start": 0, "window_end": 3_000, "total_amount": 6.0, "transactions": 3, "avg_amount": 2.0}
    ]


def test_a_partition_without_rows_is_waited_for_unless_it_is_idle(monkeypatch):
    sight = seen(monkeypatch, group(0, 2_500, 5.0, 1), group(0, 9_000))
    assert publisher.complete(sight, [0, 1], set()) == (None, [])
    assert publisher.complete(sight, [0, 1], {1})[0] == 6_000
    assert publisher.complete(sight, [0, 1], {0, 1})[0] == 6_000
    assert publisher.complete(publisher.Sight({}, []), [0], {0}) == (None, [])


def test_an_idle_partition_that_is_behind_holds_nothing_back(monkeypatch):
    sight = seen(monkeypatch, group(0, 2_500, 5.0, 1), group(1, 2_600, 1.0, 1), group(0, 9_000))
    assert publisher.complete(sight, [0, 1], set())[1] == []
    assert [w.count for w in publisher.complete(sight, [0, 1], {1})[1]] == [2]


def test_windows_without_paid_transactions_are_not_sent(monkeypatch):
    assert publisher.complete(seen(monkeypatch, group(0, 100), group(0, 9_000)), [0], set()) == (6_000, [])


def test_a_backlog_of_more_than_one_answer_is_sent_up_to_its_last_window(monkeypatch):
    rows = [group(0, 1_000, 1.0, 1), group(1, 1_000, 1.0, 1), group(0, 4_000, 2.0, 1)]
    newest = [(group(0, 0)[0], 90_000.0), (group(1, 0)[0], 80_000.0)]
    until, windows = publisher.complete(seen(monkeypatch, *rows, limit=3, newest=newest), [0, 1], set())
    assert until == 3_000, "the last window may be cut"
    assert [(w.start, w.count) for w in windows] == [(0, 2)]


def test_partitions_are_idle_after_a_minute_without_anything_new():
    idleness = publisher.Idleness()
    assert idleness.see({0: 5, 1: 0}, 100.0) == set()
    assert idleness.see({0: 6, 1: 0}, 159.0) == set()
    assert idleness.see({0: 6, 1: 0}, 160.0) == {1}
    assert idleness.see({0: 6, 1: 1}, 219.0) == {0}


def test_the_offset_that_all_replicas_have_counts(monkeypatch):
    found = {"t__0": [{"partitionToOffsetMap": {"0": "7"}}, {"partitionToOffsetMap": {"0": "5"}}], "t__1": []}
    monkeypatch.setattr(publisher, "ask", lambda url: {"_segmentToConsumingInfoMap": found})
    assert publisher.consumed("c", "t") == {0: 5}


def test_an_incomplete_answer_is_none(monkeypatch):
    answer = {"numServersQueried": 2, "numServersResponded": 1, "resultTable": {"rows": [[1]]}}
    monkeypatch.setattr(publisher, "ask", lambda url, body: answer)
    with pytest.raises(publisher.AwayError, match="1 of 2 servers"):
        publisher.rows("b", "q")
