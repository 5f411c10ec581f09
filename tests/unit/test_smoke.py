"""The smoke test's own logic: order, what is not reached, what a broken hop says, the form for --json."""

import json
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from venice import groups, smoke
from venice.connect import Connector, Task
from venice.errors import UnreachableError
from venice.smoke import BrokenHopError, Hop, SmokeResult


class Instance(SimpleNamespace):
    idle = frozenset()

    def endpoint(self, port):
        return f"{self.address}:{self.ports[port]}"


def broker(number):
    return Instance(
        component="kafka",
        name=f"kafka-{number}",
        host=f"lab-{number}",
        address=f"10.0.0.{number}",
        ports={"client": 9092},
        container="venice-kafka",
    )


@pytest.fixture
def test(monkeypatch):
    brokers = [broker(1), broker(2), broker(3)]
    cluster = SimpleNamespace(
        has_canary=True, hosts={}, bootstrap_servers="127.0.0.1:1", instances=lambda c=None: brokers if c in (None, "kafka") else []
    )
    hops = []
    one = smoke._Smoke(cluster, hops.append)
    one.reported = hops
    one.says = lambda instance: f"{instance.container} on {instance.host}: exited"
    return one


def test_after_the_first_broken_hop_the_rest_is_not_reached(test, monkeypatch):
    monkeypatch.setattr(test, "_wait_for_row", lambda row: None)
    monkeypatch.setattr(test, "schema", lambda: "id 1")

    def broken():
        raise BrokenHopError("no broker took it", "`venice up`", "venice-kafka on lab-1: exited")

    monkeypatch.setattr(test, "produced", broken)
    hops = test.follow()
    assert [(h.name, h.ok) for h in hops] == [("schema", True), ("produced", False), ("consumed", None), ("row", None)]
    assert (hops[1].detail, hops[1].remedy, hops[1].says) == (
        "no broker took it",
        "`venice up`",
        "venice-kafka on lab-1: exited",
    )
    assert test.reported == hops


def test_a_missing_broker_is_named_with_its_host_and_what_it_says(test):
    test.kafka = SimpleNamespace(brokers=lambda: {1: "10.0.0.1:9092", 3: "10.0.0.3:9092"})
    hop = test.hop("brokers", test.brokers)
    assert hop.ok is False
    assert hop.detail == "2 of 3 registered; missing: kafka-2 on lab-2 (10.0.0.2:9092)"
    assert hop.says == "venice-kafka on lab-2: exited"


def test_a_stranger_among_the_brokers(test):
    there = {n: f"10.0.0.{n}:9092" for n in (1, 2, 3, 9)}
    test.kafka = SimpleNamespace(brokers=lambda: there)
    assert "10.0.0.9:9092" in test.hop("brokers", test.brokers).detail


def test_no_active_controller(test):
    there = {n: f"10.0.0.{n}:9092" for n in (1, 2, 3)}
    test.kafka = SimpleNamespace(brokers=lambda: there, controller=lambda: -1)
    assert "no active controller" in test.hop("brokers", test.brokers).detail


def test_brokers_that_come_back_are_waited_for_when_asked_to(test, monkeypatch):
    monkeypatch.setattr(smoke.time, "sleep", lambda seconds: None)
    answers = iter([BrokenHopError("2 of 3 registered"), BrokenHopError("4 of 9 partitions under-replicated"), "all in sync"])

    def check():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(BrokenHopError, match="2 of 3"):
        test.settled(check)
    test.settle = 60
    assert test.settled(check) == "all in sync"


@pytest.mark.parametrize(
    ("state", "says"), [("stable", ""), ("preparing_rebalance", "; its consumer group is preparing rebalance (2 members)")]
)
def test_a_group_that_does_not_read_explains_the_missing_row(test, monkeypatch, state, says):
    group = groups.Group("connect-venice_canary", state, "classic", "range", ("gone", "new"), ())
    monkeypatch.setattr(groups, "listing", lambda kafka, hosts, only: [group] if only == group.name else [])
    assert test._group_says() == says


def test_a_failed_task_explains_the_missing_row(test):
    failed = Connector("venice_canary", "RUNNING", tasks=(Task(0, "FAILED", "w:8083", "PSQLException: no"),))
    connect = SimpleNamespace(status=lambda name: failed)
    with pytest.raises(BrokenHopError, match="connector venice_canary, task 0 on w:8083: PSQLException: no"):
        test._connector_runs(connect)


def test_connect_that_does_not_answer(test, monkeypatch):
    def status(name):
        raise UnreachableError("Kafka Connect: refused")

    silent = SimpleNamespace(status=status)
    assert "Kafka Connect: refused" in test._connector_runs(silent).message
    monkeypatch.setattr(smoke, "Connect", lambda urls, timeout: silent)
    test.cluster.connect_urls = []
    with pytest.raises(BrokenHopError, match="Kafka Connect: refused"):
        test.row(Future())
    # after a deployment workers may be late
    row, test.settle, test.record = Future(), 60, dict.fromkeys(("slot", "trace_id", "sender", "number", "sent_at"), 0)
    threading.Timer(0.6, row.set_result, ([("another",)],)).start()
    with pytest.raises(BrokenHopError, match="the row in venice_canary is"):
        test.row(row)


def test_unreachable_endpoints_are_named(test):
    test.cluster.instances = lambda c=None: [Instance(component="connect", host="lab-1", address="127.0.0.1", ports={"http": 1})]
    hop = test.hop("from here", test.from_here)
    assert hop.detail.startswith("connect on lab-1 (127.0.0.1:1): ")


def test_plain_form():
    result = SmokeResult("id", [Hop("a", True, 0.12345, "fine"), Hop("b", None)], 1.23456)
    assert not result.ok
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["seconds"] == 1.235
    assert plain["hops"][0] == {"name": "a", "ok": True, "seconds": 0.123, "detail": "fine", "says": "", "remedy": ""}


def test_ports_on_which_a_healthy_instance_need_not_listen_are_not_asked_for(test, monkeypatch):
    ports = {"client": 2181, "peer": 2888, "election": 3888}
    node = Instance(component="zookeeper", host="lab-1", address="10.0.0.1", ports=ports, idle=frozenset({"peer"}))
    monkeypatch.setattr(test.cluster, "instances", lambda component=None: [node])
    assert test.endpoints() == [("zookeeper on lab-1", "10.0.0.1", 2181), ("zookeeper on lab-1", "10.0.0.1", 3888)]
