"""Consumer groups: where to, what that means for each partition, and a connector that is stopped for it."""

import contextlib
import datetime
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from venice import groups
from venice.connect import Connector
from venice.errors import InputError, VeniceError
from venice.groups import Group, Member, Move, Plan, Progress, Target

NOW = datetime.datetime(2026, 11, 21, 18, 0, tzinfo=datetime.UTC)
MS = round(NOW.timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("earliest", Target("earliest")),
        ("latest", Target("latest")),
        ("12", Target("offset", 12)),
        ("-1h", Target("time", MS - 3_600_000)),
        ("-2d", Target("time", MS - 2 * 86_400_000)),
        ("2026-11-21T18:00:00Z", Target("time", MS)),
        ("2026-11-21T19:00:00+01:00", Target("time", MS)),
        ("2026-11-21T18:00", Target("time", MS)),
    ],
)
def test_where_to(text, target):
    assert Target.of(text, NOW) == target


@pytest.mark.parametrize("text", ["yesterday", "-5", "1h", "", "2026-13-01"])
def test_what_is_no_place_to_go(text):
    with pytest.raises(InputError, match="neither earliest, latest, an offset nor a time"):
        Target.of(text, NOW)


@pytest.mark.parametrize(
    ("current", "target", "at", "move"),
    [
        (50, Target("earliest"), None, Move("t", 0, 50, 10, 0, 40)),
        (50, Target("latest"), None, Move("t", 0, 50, 100, 50, 0)),
        (50, Target("offset", 60), None, Move("t", 0, 50, 60, 10, 0)),
        (50, Target("offset", 5), None, Move("t", 0, 50, 10, 0, 40, "the log begins at 10")),
        (50, Target("offset", 500), None, Move("t", 0, 50, 100, 50, 0, "the log ends at 100")),
        (50, Target("time", MS), 30, Move("t", 0, 50, 30, 0, 20)),
        (50, Target("time", MS), -1, Move("t", 0, 50, 100, 50, 0, "no record that late")),
        (None, Target("latest"), None, Move("t", 0, None, 100, 0, 0, "no offset yet")),
        # what retention has removed can neither be skipped nor read again
        (2, Target("offset", 20), None, Move("t", 0, 2, 20, 10, 0)),
        (2, Target("earliest"), None, Move("t", 0, 2, 10, 0, 0)),
    ],
)
def test_a_partitions_step(current, target, at, move):
    assert groups._move("t", 0, current, (10, 100), target, at) == move


THERE = {"t": [0, 1, 2], "a:1": [0]}


@pytest.mark.parametrize(
    ("text", "places"), [("t", [("t", 0), ("t", 1), ("t", 2)]), ("t:1", [("t", 1)]), ("a:1", [("a:1", 0)]), ("a:1:0", [("a:1", 0)])]
)
def test_a_topic_or_one_of_its_partitions(text, places):
    assert groups._places(text, THERE) == places


@pytest.mark.parametrize(("text", "message"), [("nope", "there is no topic nope"), ("t:7", "topic t has no partition 7")])
def test_a_topic_that_is_not_there(text, message):
    with pytest.raises(InputError, match=message):
        groups._places(text, THERE)


def test_lag_is_the_sum_of_what_is_known():
    parts = [Progress("t", 0, 5, 0, 12, None), Progress("t", 1, None, 0, 9, None), Progress("gone", 0, 3, None, None, None)]
    assert Group("g", "empty", "classic", "", (), tuple(parts)).lag == 7
    assert Group("g", "empty", "classic", "", (), tuple(parts[1:])).lag is None


MEMBER = Member("id", "reader", "lab-2", (("t", 0),))


def plan(state="empty", connector: str = "", members=()) -> Plan:
    group = Group("connect-sink", state, "classic", "", members, ())
    return Plan(group, "", (Move("t", 0, 5, 2, 0, 3),), Connector("sink", connector, "sink") if connector else None)


class FakeConnect:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args: self.calls.append(name)


def test_a_group_in_use_is_refused_with_its_members():
    with pytest.raises(InputError, match="group connect-sink is in use\n  reader on lab-2, 1 partitions; nothing was changed") as caught:
        groups.apply(None, None, plan("stable", members=(MEMBER,)))
    assert caught.value.exit_code == 2


@pytest.fixture
def altered(monkeypatch):
    done = []
    monkeypatch.setattr(groups, "_wait_empty", lambda kafka, name: None)
    monkeypatch.setattr(groups, "_alter", lambda kafka, planned: done.append(planned))
    return done


@pytest.mark.parametrize(
    ("state", "calls"), [("RUNNING", ["stop", "resume", "wait_running"]), ("PAUSED", ["stop", "pause"]), ("STOPPED", [])]
)
def test_a_connector_is_afterwards_as_it_was(altered, state, calls):
    connect = FakeConnect()
    groups.apply(None, connect, plan("stable", state, (MEMBER,)))
    assert (connect.calls, len(altered)) == (calls, 1)


def test_a_connector_runs_again_when_setting_fails(altered, monkeypatch):
    def fail(kafka, planned):
        raise VeniceError("no")

    monkeypatch.setattr(groups, "_alter", fail)
    connect = FakeConnect()
    with pytest.raises(VeniceError, match="no"):
        groups.apply(None, connect, plan("stable", "RUNNING", (MEMBER,)))
    assert connect.calls == ["stop", "resume"]


def test_a_failed_connector_is_mended_first(altered):
    connect = FakeConnect()
    with pytest.raises(InputError, match="connector sink has failed"):
        groups.apply(None, connect, plan("empty", "FAILED"))
    assert (connect.calls, altered) == ([], [])


class FakeKafka:
    """Raises what `asking` raises; futures are prepared by the test."""

    timeout = 5
    clients = 1

    def asking(self, what):
        return contextlib.nullcontext()

    def renew(self):
        self.clients += 1


def failed(code: int) -> Future:
    future: Future = Future()
    future.set_exception(KafkaException(KafkaError(code)))
    return future


def test_a_coordinator_that_moves_is_asked_again(monkeypatch):
    monkeypatch.setattr(groups, "_POLL_SECONDS", 0)
    right: Future = Future()
    right.set_result("answer")
    answers = [{"g": failed(KafkaError.NOT_COORDINATOR), "h": right}, {"g": failed(KafkaError.COORDINATOR_LOAD_IN_PROGRESS)}, {"g": right}]
    asked = []

    def ask(names):
        asked.append(names)
        return answers.pop(0)

    kafka = FakeKafka()
    assert groups._answers(kafka, "group", ask, ["g", "h"]) == {"g": "answer", "h": "answer"}
    assert asked == [["g", "h"], ["g"], ["g"]]
    # a client remembers the coordinator that it has found
    assert kafka.clients == 3
    with pytest.raises(KafkaException):
        groups._answers(kafka, "group", lambda names: {"g": failed(KafkaError.GROUP_AUTHORIZATION_FAILED)}, ["g"])


def test_offsets_are_asked_of_each_coordinator_once(monkeypatch):
    monkeypatch.setattr(groups, "_POLL_SECONDS", 0)

    def described(host: str) -> Future:
        future: Future = Future()
        future.set_result(SimpleNamespace(coordinator=SimpleNamespace(host=host, port=9092)))
        return future

    places = {"a": ["one", "two"], "b": ["one"], "c": ["two"]}
    asked = []

    class Kafka(FakeKafka):
        admin = SimpleNamespace(describe_consumer_groups=lambda names, request_timeout: {n: described(places[n].pop(0)) for n in names})

        def committed(self, coordinator, its):
            asked.append((coordinator, its))
            # the first that was asked for group a has just handed it over
            return {n: (16, {}) if (n, coordinator) == ("a", "one:9092") else (0, {("t", 0): 7}) for n in its}

    found = groups._committed(Kafka(), ["a", "b", "c"])
    assert {name: offsets for name, (_, offsets) in found.items()} == {name: {("t", 0): 7} for name in "abc"}
    assert asked == [("one:9092", ["a", "b"]), ("two:9092", ["c"]), ("two:9092", ["a"])]
