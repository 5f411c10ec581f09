"""What the thin clients make of the services' answers."""

import struct
from concurrent.futures import Future

import httpx
import pytest

from venice.connect import Connect, root_cause
from venice.errors import InputError, UnreachableError, VeniceError
from venice.kafka import (
    Kafka,
    Partition,
    Quorum,
    partitions_allow,
    quorum_allows,
    topic_differences,
)
from venice.kafka_protocol import Replica, parse_log_dirs, parse_offsets, parse_quorum
from venice.postgres import Postgres, quote
from venice.registry import Registry
from venice.specs import TopicSpec, retention_ms

# ---- Connect


TRACE = """org.apache.kafka.connect.errors.ConnectException: Exiting WorkerSinkTask due to unrecoverable exception.
\tat org.apache.kafka.connect.runtime.WorkerSinkTask.deliverMessages(WorkerSinkTask.java:636)
\tSuppressed: java.io.IOException: beside the point
\t\tat a.B.c(B.java:1)
\tCaused by: java.io.IOException: nested, not the root
\t\tat a.B.c(B.java:1)
Caused by: org.hibernate.exception.GenericJDBCException: unable to obtain isolated JDBC connection
\tat org.hibernate.X.y(X.java:1)
\t... 12 more
Caused by: org.postgresql.util.PSQLException: FATAL: password authentication failed for user "venice"
  Where: in a galaxy
\tat org.postgresql.core.v3.ConnectionFactoryImpl.doAuthentication(ConnectionFactoryImpl.java:704)
\t... 36 more
"""


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        ("", ""),
        (TRACE, 'PSQLException: FATAL: password authentication failed for user "venice" Where: in a galaxy'),
        ("java.lang.NullPointerException\n\tat a.B.c(B.java:1)\n", "NullPointerException"),
        ("java.lang.IllegalStateException: no", "IllegalStateException: no"),
        ("a.b.Outer$Inner: x: y\n\tat q", "Outer$Inner: x: y"),
    ],
)
def test_root_cause(trace, expected):
    assert root_cause(trace) == expected


def connect_answering(*answers):
    """A Connect client whose requests get these answers in order (status, body); the last one again and again."""
    asked = []

    def handle(request):
        asked.append(f"{request.method} {request.url.path}")
        status, body = answers[min(len(asked), len(answers)) - 1]
        return httpx.Response(status, json=body)

    client = Connect(["http://c:8083"])
    client._http = httpx.Client(transport=httpx.MockTransport(handle))
    return client, asked


def status(state, *tasks, trace=""):
    return {
        "name": "sink",
        "type": "sink",
        "connector": {"state": state, "worker_id": "w:8083"},
        "tasks": [{"id": n, "state": s, "worker_id": "w:8083", "trace": trace} for n, s in enumerate(tasks)],
    }


def test_a_failed_task_ends_the_wait_with_its_root_cause():
    client, _ = connect_answering((200, status("RUNNING", "FAILED", trace=TRACE)))
    with pytest.raises(VeniceError, match=r"connector sink, task 0 on w:8083: PSQLException: FATAL: password"):
        client.wait_running(["sink"], 5)


def test_running_means_connector_and_every_task():
    client, asked = connect_answering(
        (404, {}), (200, status("RUNNING")), (200, status("RUNNING", "UNASSIGNED")), (200, status("RUNNING", "RUNNING"))
    )
    lines = []
    client.wait_running(["sink"], 5, lines.append)
    assert lines == ["sink RUNNING, 1/1 tasks running"]
    assert len(asked) == 4


def test_settled_means_that_no_look_saw_it_stopped(monkeypatch):
    monkeypatch.setattr("venice.connect._POLL_SECONDS", 0.01)
    runs, moves = (200, status("RUNNING", "RUNNING")), (200, status("RUNNING", "UNASSIGNED"))
    client, asked = connect_answering(runs, moves, runs)
    client.wait_running(["sink"], 5, settled=0.1)
    assert len(asked) > 4, "what ran before the move does not count"


def test_of_many_questions_one_may_go_unanswered(monkeypatch):
    """Busy workers are not gone; who stays silent is named at the end."""
    monkeypatch.setattr("venice.connect._POLL_SECONDS", 0.01)
    answers = iter([(200, status("RUNNING")), None, (200, status("RUNNING", "RUNNING"))])

    def answer(request: httpx.Request) -> httpx.Response:
        if (found := next(answers, None)) is None:
            raise httpx.ReadTimeout("timed out")
        return httpx.Response(found[0], json=found[1])

    client = Connect(["http://w:8083"])
    client._http = httpx.Client(transport=httpx.MockTransport(answer))
    client.wait_running(["sink"], 5)
    with pytest.raises(UnreachableError, match="timed out"):
        client.wait_running(["sink"], 0.1)


def test_no_connector_is_not_waited_for():
    client, asked = connect_answering((500, {}))
    client.wait_running([], 0, settled=60)
    assert asked == []


def test_the_wait_ends_with_the_states():
    client, _ = connect_answering((200, status("UNASSIGNED")))
    with pytest.raises(VeniceError, match="sink UNASSIGNED, 0/0 tasks running"):
        client.wait_running(["sink"], 0)


def test_a_rebalance_is_waited_for():
    client, asked = connect_answering((409, {"message": "rebalance in progress"}), (200, {}))
    client.put("sink", {})
    assert len(asked) == 2


def test_a_worker_that_starts_is_waited_for():
    answers = iter([httpx.Response(404, html="<h1>Not Found</h1>"), httpx.Response(200, json={})])
    client = Connect(["http://c:8083"])
    client._http = httpx.Client(transport=httpx.MockTransport(lambda request: next(answers)))
    client.wait_ready(5)


def test_what_connect_s_validation_says_is_kept():
    message = (
        "Connector configuration is invalid and contains the following 1 error(s):\n"
        "Invalid value x for configuration insert.mode\nYou can also find the above list of errors at the endpoint `/x`"
    )
    client, _ = connect_answering((400, {"error_code": 400, "message": message}))
    with pytest.raises(InputError, match=r"^connector sink: Invalid value x for configuration insert.mode\n"):
        client.put("sink", {})


def test_the_next_worker_is_asked_when_one_does_not_answer():
    def handle(request):
        if request.url.host == "a":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"k": "v"})

    client = Connect(["http://a:8083", "http://b:8083"])
    client._http = httpx.Client(transport=httpx.MockTransport(handle))
    assert client.config("sink") == {"k": "v"}


def test_no_worker_is_one_message_with_all_addresses():
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:1: .*http://127.0.0.1:2: "):
        Connect(["http://127.0.0.1:1", "http://127.0.0.1:2"]).wait_ready(0)


# ---- registry


def test_a_missing_subject_is_none():
    registry = Registry(["http://r:8081"])
    registry._http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(404, json={})))
    assert registry.latest("s-value") is None


# ---- Kafka


@pytest.mark.parametrize(
    ("value", "expected"),
    [("unlimited", -1), ("7d", 604_800_000), ("12h", 43_200_000), ("90 s", 90_000), (1000, 1000), ("-1", -1)],
)
def test_retention(value, expected):
    assert retention_ms(value) == expected


def test_a_retention_that_is_no_time():
    with pytest.raises(InputError, match="'a week'"):
        retention_ms("a week")


def partition(replicas, isr, topic="t", id_=0):
    return Partition(topic, id_, isr[0] if isr else -1, tuple(replicas), tuple(isr))


@pytest.mark.parametrize(
    ("replicas", "isr", "minimum", "broker", "allowed"),
    [
        ([1, 2, 3], [1, 2, 3], 2, 1, True),
        ([1, 2, 3], [1, 2], 2, 1, False),
        ([1, 2, 3], [1, 2], 2, 3, True),  # out of sync: it serves nothing
        ([1], [1], 1, 1, True),  # could never keep it
        ([1, 2], [1, 2], 2, 1, True),
        ([1, 2, 3], [1], 1, 1, False),
    ],
)
def test_partitions_allow_a_restart(replicas, isr, minimum, broker, allowed):
    assert partitions_allow([partition(replicas, isr)], broker, {"t": minimum})[0] is allowed


def test_the_reason_names_the_partitions():
    parts = [partition([1, 2, 3], [1, 2], id_=n) for n in range(5)]
    allowed, why = partitions_allow(parts, 1, {"t": 2})
    assert not allowed
    assert why == (
        "without broker 1 these fall below min.insync.replicas: t-0 (in sync: 1, 2), t-1 (in sync: 1, 2), t-2 (in sync: 1, 2) and 2 more"
    )


@pytest.mark.parametrize(
    ("quorum", "node", "allowed"),
    [
        (Quorum(1, {1: 0, 2: 100, 3: 200}), 1, True),
        (Quorum(1, {1: 0, 2: 100, 3: 60_000}), 2, False),
        (Quorum(1, {1: 0, 2: 100, 3: 60_000}), 3, True),
        (Quorum(-1, {1: 0, 2: 0, 3: 0}), 1, False),
        (Quorum(1, {1: 0, 2: 0, 3: 0}, (4,)), 4, True),
        (Quorum(1, {1: 0, 2: 0}), 2, False),
    ],
)
def test_quorum_allows_a_restart(quorum, node, allowed):
    assert quorum_allows(quorum, node)[0] is allowed


def test_describe_quorum_s_answer_is_read():
    def replica(node, caught_up):
        return struct.pack(">iqqq", node, 10, 0, caught_up) + b"\0"

    body = struct.pack(">ihiiq", 0, 0, 2, 5, 10) + b"\x03" + replica(2, 5000) + replica(1, 4700)
    body += b"\x02" + replica(4, 4000) + b"\0"
    topic = b"\x13" + b"__cluster_metadata" + b"\x02" + body + b"\0"
    answer = struct.pack(">i", 1) + b"\0" + struct.pack(">h", 0) + b"\x02" + topic + b"\0"
    assert parse_quorum(answer) == Quorum(2, {2: 0, 1: 300}, (4,))


def test_describe_log_dirs_answer_is_read():
    def partition(number, size, future=0):
        return struct.pack(">iqqb", number, size, 0, future) + b"\0"

    topic = b"\x02t" + b"\x04" + partition(0, 100) + partition(1, 5_000_000_000) + partition(1, 7, future=1) + b"\0"
    disk = struct.pack(">h", 0) + b"\x05/log" + b"\x02" + topic + struct.pack(">qq", 10, 5) + b"\0"
    empty = struct.pack(">h", 56) + b"\x05/bad" + b"\x01" + struct.pack(">qq", -1, -1) + b"\0"
    answer = struct.pack(">i", 1) + b"\0" + struct.pack(">ih", 0, 0) + b"\x03" + disk + empty + b"\0"
    assert parse_log_dirs(answer, 2) == [Replica("t", 0, 2, 100), Replica("t", 1, 2, 5_000_000_000)]


def test_offset_fetch_answer_is_read():
    def partition(number, offset, metadata=b"\0", error=0):
        return struct.pack(">iqi", number, offset, -1) + metadata + struct.pack(">h", error) + b"\0"

    # version 8: offset, leader's epoch, metadata (none, empty, or text), error code
    topic = b"\x02t" + b"\x05" + partition(0, 12) + partition(1, -1) + partition(2, 5, b"\x02x") + partition(3, 9, b"\x01", 3) + b"\0"
    reads = b"\x02g" + b"\x02" + topic + struct.pack(">h", 0) + b"\0"
    moved = b"\x02m" + b"\x01" + struct.pack(">h", 16) + b"\0"
    answer = struct.pack(">i", 1) + b"\0" + struct.pack(">i", 0) + b"\x03" + reads + moved + b"\0"
    assert parse_offsets(answer) == {"g": (0, {("t", 0): 12, ("t", 2): 5}), "m": (16, {})}


def test_a_new_topic_is_all_difference():
    found = topic_differences(TopicSpec("t", 3, None, {"retention.ms": "-1"}), None, {}, 3)
    assert [(d.field, d.current, d.desired) for d in found] == [
        ("partitions", None, "3"),
        ("replication", None, "3"),
        ("retention.ms", None, "-1"),
    ]


def test_only_what_differs_in_a_topic():
    there = [partition([1, 2, 3], [1, 2, 3])]
    spec = TopicSpec("t", 2, None, {"retention.ms": "-1", "cleanup.policy": "delete"})
    found = topic_differences(spec, there, {"retention.ms": "1000", "cleanup.policy": "delete"}, 3)
    assert [(d.field, d.current, d.desired) for d in found] == [
        ("partitions", "1", "2"),
        ("retention.ms", "1000", "-1"),
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TopicSpec("t", 1), "topic t has 2 partitions, the pipeline says 1"),
        (TopicSpec("t", 2, 1), "topic t has 3 replicas, the pipeline says 1"),
    ],
)
def test_what_kafka_can_t_change_is_refused(spec, message):
    there = [partition([1, 2, 3], [1, 2, 3], id_=n) for n in range(2)]
    with pytest.raises(InputError, match=message):
        topic_differences(spec, there, {}, 3)


# ---- PostgreSQL


@pytest.mark.parametrize(
    ("value", "expected"),
    [("x", "'x'"), ("o'hara", "'o''hara'"), ("a\\b", "'a\\\\b'"), ("a\nb", "'a\\nb'"), ("`id`", "'`id`'"), (3, "'3'")],
)
def test_values_are_quoted_for_psql(value, expected):
    assert quote(value) == expected


class FakeHost:
    name = "db-1"

    def __init__(self, *answer):
        self.answer = answer

    def exec(self, container, argv, stdin, timeout):
        self.argv, self.stdin = argv, stdin
        return self.answer


def test_values_travel_on_standard_input_only():
    host = FakeHost(0, 'a,"b, c"\n', "")
    assert Postgres(host, "pg", "venice").query("SELECT :'x'", {"x": "s3cret"}) == [("a", "b, c")]
    assert "s3cret" not in " ".join(host.argv)
    assert host.stdin == "\\set x 's3cret'\nSELECT :'x'"


def test_the_server_s_error_is_shown():
    host = FakeHost(3, "", 'psql:<stdin>:1: ERROR:  relation "x" does not exist\nLINE 1: ...\n')
    with pytest.raises(VeniceError, match=r'postgres on db-1: .*relation "x" does not exist'):
        Postgres(host, "pg", "venice").query("SELECT 1")


def test_brokers_that_do_not_answer_in_time_are_said_to_be_away(monkeypatch):
    kafka = Kafka("127.0.0.1:1", timeout=0.01)
    monkeypatch.setattr(kafka.admin, "list_offsets", lambda asked, request_timeout: {place: Future() for place in asked}, raising=False)
    with pytest.raises(UnreachableError, match="offsets of t-0: timed out"):
        kafka.offsets([("t", 0)])
    assert kafka.offsets([("t", 0)], lenient=True) == {}
