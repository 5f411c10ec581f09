"""Connectors as an operator works with them, against an answering Connect that is none."""

import json
from pathlib import Path

import httpx
import pytest

from venice import connectors
from venice.connect import Connect, Option, Plugin, Verdict
from venice.connectors import Wanted
from venice.errors import InputError, UnreachableError, VeniceError

A, B = "http://10.0.0.1:8083", "http://10.0.0.2:8083"
HOSTS = {"10.0.0.1:8083": "one", "10.0.0.2:8083": "two"}


def connect(answers, down: tuple[str, ...] = ()) -> Connect:
    """A client whose requests `answers(request)` answers; the workers in `down` do not."""

    def handle(request: httpx.Request) -> httpx.Response:
        if f"http://{request.url.host}:{request.url.port}" in down:
            raise httpx.ConnectError("Connection refused")
        return answers(request)

    found = Connect([A, B], 0.2, {A: "connect on one", B: "connect on two"}, HOSTS)
    found._http = httpx.Client(transport=httpx.MockTransport(handle))
    return found


def listing(*connectors_: dict) -> httpx.Response:
    return httpx.Response(200, json={c["status"]["name"]: c for c in connectors_})


def one(name: str = "sink", state: str = "RUNNING", tasks: tuple = (("RUNNING", "10.0.0.1:8083", ""),), **config: str) -> dict:
    return {
        "status": {
            "name": name,
            "type": "sink",
            "connector": {
                "state": state,
                "worker_id": "10.0.0.2:8083",
                "trace": "java.lang.RuntimeException: no" if state == "FAILED" else "",
            },
            "tasks": [{"id": n, "state": s, "worker_id": w, "trace": t} for n, (s, w, t) in enumerate(tasks)],
        },
        "info": {"config": {"connector.class": "a.b.SomeSink", "topics": "x, y"} | config},
    }


TRACE = "x.ConnectException: outer\n\tat a\nCaused by: org.postgresql.util.PSQLException: FATAL: no such user\n\tat b"


def look(found: Connect, monkeypatch) -> connectors.Overview:
    monkeypatch.setattr(Connect, "of", classmethod(lambda cls, cluster, timeout=0: found))
    return connectors.overview(None)


def test_each_failure_has_its_root_cause_and_its_workers_host(monkeypatch):
    tasks = (("FAILED", "10.0.0.1:8083", TRACE), ("RUNNING", "10.0.0.2:8083", ""), ("FAILED", "10.0.0.2:8083", "y.ZException: other"))
    seen = look(
        connect(lambda request: listing(one(tasks=tasks)) if "expand" in str(request.url) else httpx.Response(200, json={})), monkeypatch
    )
    [row] = seen.connectors
    assert row.failures == [
        "sink, task 0 on one: PSQLException: FATAL: no such user",
        "sink, task 2 on two: ZException: other",
    ]
    assert (row.running, row.topics, row.plugin, row.host) == (1, ["x", "y"], "SomeSink", "two")
    assert [worker.error for worker in seen.workers] == ["", ""]
    assert seen.to_dict()["connectors"][0]["running"] is False


def test_tasks_of_a_worker_that_is_away_do_not_count_as_running(monkeypatch):
    """Connect itself says RUNNING until the others have noticed."""
    seen = look(
        connect(lambda request: listing(one()) if "expand" in str(request.url) else httpx.Response(200, json={}), down=(A,)), monkeypatch
    )
    assert [bool(worker.error) for worker in seen.workers] == [True, False]
    [row] = seen.connectors
    assert row.running == 0
    assert "does not answer; Connect moves the task" in row.failures[0]


def test_no_worker_at_all_is_unreachable_and_names_each(monkeypatch):
    with pytest.raises(UnreachableError, match=r"connect on one.*connect on two") as error:
        look(connect(lambda request: listing(), down=(A, B)), monkeypatch)
    assert "venice up" in error.value.remedy


def test_a_worker_that_has_not_read_the_state_yet_is_not_believed():
    found = connect(lambda request: listing() if request.url.host == "10.0.0.1" else listing(one()))
    assert list(found.connectors()) == ["sink"]
    assert connect(lambda request: listing()).connectors() == {}
    assert connect(lambda request: listing(), down=(B,)).connectors() == {}


def test_an_unknown_connector_names_near_ones():
    with pytest.raises(InputError) as error:
        connectors.known(connect(lambda request: listing(one("orders_table"), one("zebra"))), "order_table")
    assert "orders_table" in error.value.remedy
    assert "zebra" not in error.value.remedy


def test_restarting_a_paused_connector_is_refused(monkeypatch):
    found = connect(lambda request: listing(one(state="PAUSED", tasks=(("PAUSED", "10.0.0.1:8083", ""),))))
    monkeypatch.setattr(Connect, "of", classmethod(lambda cls, cluster, timeout=0: found))
    with pytest.raises(InputError, match="PAUSED") as error:
        connectors.restart(None, "sink")
    assert "resume sink" in error.value.remedy


def test_pausing_waits_for_all_tasks(monkeypatch):
    states = iter(["RUNNING", "RUNNING", "PAUSED"])
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "PUT":
            return httpx.Response(202)
        if request.url.path.endswith("/status"):
            return httpx.Response(200, json=one(state="PAUSED", tasks=((next(states), "10.0.0.1:8083", ""),))["status"])
        return listing(one())

    found = connect(answer)
    monkeypatch.setattr(Connect, "of", classmethod(lambda cls, cluster, timeout=0: found))
    connectors.pause(None, "sink")
    assert asked[1] == "PUT /connectors/sink/pause"
    assert asked.count("GET /connectors/sink/status") == 3


# ---- what is asked for ----------------------------------------------------------------------------------------------

PLUGINS = [Plugin("io.x.jdbc.JdbcSinkConnector", "sink", "1"), Plugin("org.y.FileStreamSourceConnector", "source", "2")]


def test_deleting_waits_for_every_worker_and_one_that_is_gone_is_no_error():
    """Workers read the cluster's state each in its own time: one may still name what another has forgotten."""
    gone, asked = httpx.Response(404, json={"message": "Connector sink not found"}), []

    def answers(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.host))
        lagging = request.method == "GET" and request.url.host == "10.0.0.2" and asked.count(("GET", "10.0.0.2")) < 3
        return httpx.Response(200, json=one()["status"]) if lagging else gone

    connect(answers).delete("sink")
    assert asked[0] == ("DELETE", "10.0.0.1")
    assert asked.count(("GET", "10.0.0.2")) == 3


def test_deleting_says_what_connect_refuses_and_what_stays():
    refused = httpx.Response(403, json={"message": "not allowed"})
    with pytest.raises(VeniceError, match="DELETE /connectors/sink: 403 not allowed"):
        connect(lambda request: refused).delete("sink")
    stays = {"DELETE": httpx.Response(204), "GET": httpx.Response(200, json=one()["status"])}
    with pytest.raises(VeniceError, match=r"connector sink RUNNING, 1/1 tasks running: not gone within 0\.1 s"):
        connect(lambda request: stays[request.method]).delete("sink", seconds=0.1)


def test_deleting_is_not_done_when_no_worker_can_be_asked_any_more():
    def answers(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(204)
        raise httpx.ConnectError("Connection refused")

    with pytest.raises(UnreachableError, match="Connection refused"):
        connect(answers).delete("sink", 0.1)


@pytest.mark.parametrize("name", ["io.x.jdbc.JdbcSinkConnector", "JdbcSinkConnector", "JdbcSink"])
def test_a_plugin_by_any_of_its_names(name):
    assert connectors.find_plugin(PLUGINS, name) is PLUGINS[0]


def test_a_plugin_that_is_not_installed():
    with pytest.raises(InputError) as error:
        connectors.find_plugin(PLUGINS, "S3Sink")
    assert "JdbcSinkConnector, FileStreamSourceConnector" in error.value.remedy


def option(name: str, type_: str = "STRING", **more) -> Option:
    return Option(name, type_, more.get("required", False), more.get("default"), "HIGH", "")


def test_what_connect_says_is_told_once_and_without_the_value():
    verdicts = [
        Verdict(
            option("tasks.max", "INT"),
            None,
            (
                "Invalid value zz for configuration tasks.max: Not a number of type INT",
                "Invalid value null for configuration tasks.max: Value must be non-null",
            ),
        ),
        Verdict(option("mode"), "q", ("The 'mode' value is invalid: Value must be one of a, b",)),
        Verdict(option("password", "PASSWORD"), None, ("Invalid value hunter2 for configuration password: too short",)),
        Verdict(option("fine"), "x"),
    ]
    assert connectors.problems(verdicts) == {
        "tasks.max": ["Not a number of type INT"],
        "mode": ["Value must be one of a, b"],
        "password": ["too short"],
    }


def test_a_misspelt_option_is_a_mistake_and_a_free_one_is_not():
    known = ["insert.mode", "key.converter", "transforms", "topics"]
    [said] = connectors.misspelt(("insert.mod",), known)
    assert "insert.mode" in said
    assert (
        connectors.misspelt(("insert.mode", "key.converter.schemas.enable", "consumer.override.x", "my.own", "transforms.a.type"), known)
        == []
    )


def test_settings():
    assert connectors.parse_settings(("a=b=c", "d=")) == {"a": "b=c", "d": ""}
    for wrong in ("a", "=b"):
        with pytest.raises(InputError):
            connectors.parse_settings((wrong,))


NOTHING = {"topic": None, "table": None, "mode": None, "key": None, "record_key": None}


@pytest.mark.parametrize(
    ("name", "table", "file", "settings", "says"),
    [
        ("", {"key": "id"}, None, {}, "--key without --topic"),
        ("", {"topic": "t"}, Path("x.json"), {}, "--file and --topic"),
        ("", {}, None, {"a": "b"}, "name the connector and its plugin"),
        ("n", {}, None, {"a": "b"}, "name the connector and its plugin"),
        ("n", {}, None, {"connector.class": "X", "name": "m"}, "name=m"),
        ("", {}, Path("/nonexistent.json"), {}, "can't be read"),
    ],
)
def test_contradictions(name, table, file, settings, says):
    with pytest.raises(InputError, match=says):
        connectors.wanted(None, name, NOTHING | table, file, settings)


def test_nothing_said_is_left_to_the_questions():
    assert connectors.wanted(None, "n", NOTHING, None, {}) is None


class Cluster:
    pipeline_vars = {"postgres_host": "db", "replication_factor": 3}  # noqa: RUF012


def test_a_file_with_settings(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"name": "c", "config": {"connector.class": "X", "topics": "t", "url": "${postgres_host}", "tasks.max": 1}}))
    found = connectors.wanted(Cluster, "", NOTHING, file, {"tasks.max": "2"})
    assert found.by_hand == ("tasks.max",)
    config = connectors.resolve(Cluster, found)
    assert (config["url"], config["tasks.max"], config["errors.deadletterqueue.topic.name"]) == ("db", "2", "dlq.c")
    with pytest.raises(InputError, match="of connector c, not d"):
        connectors.wanted(Cluster, "d", NOTHING, file, {})


def test_a_wrong_variable_is_named_with_its_line(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"name": "c", "config": {\n"connector.class": "X",\n"url": "${nope}"}}')
    with pytest.raises(InputError, match=r"c.json:3: unknown variable \$\{nope\}"):
        connectors.resolve(Cluster, connectors.wanted(Cluster, "", NOTHING, file, {}))


def test_saved_without_passwords_only(tmp_path):
    config = {"connector.class": "X", "database.password": "${file:/etc/kafka/secrets.properties:x}", "url": "${postgres_host}"}
    connectors.save({"name": "c", "config": config}, tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text()) == {"name": "c", "config": config}
    with pytest.raises(InputError, match="exists already"):
        connectors.save({"name": "c", "config": config}, tmp_path / "c.json")
    for plain, secret in (
        ({"database.password": "hunter2"}, set()),
        ({"pin": "1234"}, {"pin"}),
        ({"url": "jdbc:x?password=hunter2"}, set()),
    ):
        with pytest.raises(InputError, match="plain text") as error:
            connectors.save({"name": "c", "config": config | plain}, tmp_path / "d.json", secret)
        assert "hunter2" not in str(error.value)
    assert not (tmp_path / "d.json").exists()


def test_a_failure_of_what_exists_says_what_to_run(monkeypatch):
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/status"):
            return httpx.Response(200, json=one(tasks=(("FAILED", "10.0.0.1:8083", TRACE),))["status"])
        return listing(one()) if request.method == "GET" else httpx.Response(202)

    class NoHosts:
        hosts: dict = {}  # noqa: RUF012

        def instances(self, component: str) -> list:
            return []

    found = connect(answer)
    monkeypatch.setattr(Connect, "of", classmethod(lambda cls, cluster, timeout=0: found))
    with pytest.raises(VeniceError, match="PSQLException: FATAL: no such user") as error:
        connectors.resume(NoHosts(), "sink")
    assert "venice connectors restart sink" in error.value.remedy


def test_wanted_keeps_what_was_typed():
    wanted = Wanted({"name": "c", "config": {"a": "1"}})
    wanted.set({"a": "2"})
    assert wanted.document == {"name": "c", "config": {"a": "2"}}
    assert wanted.by_hand == ("a",)


def test_a_connector_that_has_failed_itself_is_restarted_not_stopped(monkeypatch):
    """Connect can't stop one that has failed; its old FAILED is not taken for the new state."""
    states = iter(["FAILED", "FAILED", "RUNNING", "RUNNING"])
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "POST":
            return httpx.Response(202, json={})
        if request.url.path.endswith("/status"):
            return httpx.Response(200, json=one(state=next(states))["status"])
        return listing(one(state="FAILED"))

    found, said = connect(answer), []
    monkeypatch.setattr(Connect, "of", classmethod(lambda cls, cluster, timeout=0: found))
    connectors.restart(None, "sink", said.append)
    assert [line for line in asked if not line.startswith("GET")] == ["POST /connectors/sink/restart"]
    assert said == ["sink RUNNING, 1/1 tasks running"]


def test_check_names_option_value_and_reason_and_hides_passwords(monkeypatch):
    definition = {"name": "pin", "type": "PASSWORD"}
    verdict = {"definition": definition, "value": {"name": "pin", "value": None, "errors": ["too short"], "recommended_values": []}}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/connector-plugins":
            return httpx.Response(200, json=[{"class": "a.FileSinkConnector", "type": "sink", "version": "1"}])
        if request.url.path.endswith("/validate"):
            return httpx.Response(200, json={"configs": [verdict]})
        return httpx.Response(404, json={"error_code": 404, "message": "no"})

    found = connect(answer)
    monkeypatch.setattr(Connect, "of", classmethod(lambda cls, cluster, timeout=0: found))
    with pytest.raises(InputError, match="nothing was created") as error:
        connectors.check(None, "c", {"connector.class": "FileSink", "pin": "12"})
    assert "pin = ********: too short" in error.value.message
