"""Log lines become records, records of many instances one log in the order of time."""

import contextlib
import queue
import re
from datetime import UTC, datetime, timedelta

import pytest

from venice import logs
from venice.cluster import Instance
from venice.errors import InputError, UnreachableError
from venice.logs import FOLLOW_TAIL, TAIL, Logs, Query, Record, follow, label, moment, query, read

KAFKA = Instance("kafka", "kafka", "lab-1", "10.0.0.1", {}, "venice-kafka")
OTHER = Instance("kafka", "kafka", "lab-2", "10.0.0.2", {}, "venice-kafka")
PRODUCER = Instance("producer", "producer-x", "lab-2", "10.0.0.2", {}, "venice-producer-x")

TRACE = """
18.537 2026-11-21T18:49:18.537Z INFO  [ReplicaFetcher replicaId=3] Error sending fetch request to node 1: (FetchSessionHandler)
18.538 java.io.IOException: Client was shutdown before response was read
18.538 \tat org.apache.kafka.clients.NetworkClientUtils.sendAndReceive(NetworkClientUtils.java:120)
18.538 Caused by: org.postgresql.util.PSQLException: ERROR: no such table
18.538   Where: somewhere
18.538 \t... 36 more
18.539 2026-11-21T18:49:18.539Z INFO  the next one (Logger)
"""
SETTINGS = """
20.000 2026-11-21T18:49:20.000Z INFO  ConsumerConfig values:
20.000 \tallow.auto.create.topics = true
20.000 \tauto.offset.reset = latest
20.000  (org.apache.kafka.clients.consumer.ConsumerConfig)
20.001 SET x to 1
21.900 WARNING: A restricted method in java.lang.System has been called
21.901 WARNING: Use --enable-native-access=ALL-UNNAMED to avoid a warning
21.902
"""
PYTHON = """
30.000 waiting for schema
30.000 12 buses report every 1 s
30.001 Traceback (most recent call last):
30.001   File "producer.py", line 3, in <module>
30.001     main()
30.001 ValueError: no such bus
30.002 next line
"""
POSTGRES = """
40.100 2026-11-21 18:49:40.100 UTC [45] ERROR:  relation "a
40.100 \tb" does not exist at character 15
40.100 2026-11-21 18:49:40.100 UTC [45] STATEMENT:  select * from "a
40.100 \tb"
"""


def parse(text):
    """(time, text) of sample lines, whose first word is seconds."""
    for line in text.strip("\n").split("\n"):
        seconds, _, rest = line.partition(" ")
        yield f"2026-11-21T18:49:{seconds}000000Z", rest


def records(text, instance=KAFKA):
    builder = logs._Builder(instance)
    made = [builder.add(at, line) for at, line in parse(text)]
    return [r for r in [*made, builder.end(float("inf"))] if r]


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        (TRACE, [6, 1]),
        (SETTINGS, [5, 1, 1]),
        (PYTHON, [1, 1, 4, 1]),
        (POSTGRES, [2, 2]),
    ],
)
def test_lines_become_records(text, lengths):
    assert [len(r.lines) for r in records(text)] == lengths


def test_a_line_much_later_is_a_record_of_its_own():
    assert [r.lines for r in records("01.000 2026-11-21T18:49:01.000Z INFO  first\n02.001  indented")] == [
        ["2026-11-21T18:49:01.000Z INFO  first"],
        [" indented"],
    ]


def test_grep_finds_a_record_by_any_of_its_lines_and_keeps_all():
    [found] = [r for r in records(TRACE) if Query(grep=re.compile("PSQLException")).matches(r)]
    assert found.lines[0].endswith("(FetchSessionHandler)")
    assert found.lines[-1] == "\t... 36 more"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("2026-11-21T18:49:18.537Z INFO  text", "INFO  text"),
        ("2026-11-21 18:49:18.100 UTC [45] LOG:  text", "[45] LOG:  text"),
        # what says something else is left as it is: another time, another zone
        ("2026-11-21T18:40:00.000Z INFO  text", "2026-11-21T18:40:00.000Z INFO  text"),
        ("2026-11-21 19:49:18,537 INFO text", "2026-11-21 19:49:18,537 INFO text"),
        ("text", "text"),
    ],
)
def test_a_line_s_own_time_is_not_shown_twice(line, shown):
    assert Record("2026-11-21T18:49:18.538123456Z", KAFKA, [line, " more"]).shown() == ("2026-11-21T18:49:18.538Z", [shown, " more"])


def test_json_has_lines_as_they_were_logged():
    assert Record("2026-11-21T18:49:18.538123456Z", PRODUCER, ["2026-11-21T18:49:18.537Z a", "\tb"]).to_dict() == {
        "time": "2026-11-21T18:49:18.538123456Z",
        "host": "lab-2",
        "component": "producer",
        "instance": "producer-x",
        "message": "2026-11-21T18:49:18.537Z a\n\tb",
    }


def test_lines_that_the_engine_cut_are_put_together():
    chunks = [
        b"2026-11-21T18:49:18.000000001Z short\r\n",
        b"2026-11-21T18:49:18.000000002Z " + b"x" * 16384,
        b"2026-11-21T18:49:18.000000003Z " + b"y" * 16384,
        b"2026-11-21T18:49:18.000000004Z end \xff\n",
        b"2026-11-21T18:49:18.000000005Z \n",
        b"2026-11-21T18:49:18.000000006Z no newline yet",
    ]
    assert list(logs._lines(chunks)) == [
        ("2026-11-21T18:49:18.000000001Z", "short"),
        ("2026-11-21T18:49:18.000000002Z", "x" * 16384 + "y" * 16384 + "end \ufffd"),
        ("2026-11-21T18:49:18.000000005Z", ""),
        ("2026-11-21T18:49:18.000000006Z", "no newline yet"),
    ]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172800)])
def test_since_some_time_ago(text, seconds):
    assert abs(datetime.now(UTC) - timedelta(seconds=seconds) - moment(text)) < timedelta(seconds=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T18:00", "2026-01-31T18:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T18:00:00Z", "2026-01-31T18:00:00+00:00"),
        ("2026-01-31T18:00+02:00", "2026-01-31T16:00:00+00:00"),
    ],
)
def test_since_a_time_which_is_utc(text, expected):
    assert moment(text).astimezone(UTC).isoformat() == expected


@pytest.mark.parametrize("text", ["", "10", "m", "10x", "yesterday", "10m5", "-5m"])
def test_since_what_is_no_time(text):
    with pytest.raises(InputError, match="is no time"):
        moment(text)


def test_how_much_is_shown_when_nothing_says_so():
    assert query(None, None, None, False).tail == TAIL
    assert query(None, None, None, True).tail == FOLLOW_TAIL
    assert query("10m", None, None, False).tail is None
    assert query("10m", 5, None, True).tail == 5
    with pytest.raises(InputError, match="is no regular expression"):
        query(None, None, "(", False)


class FakeCluster:
    name = "test"

    def __init__(self, *hosts):
        self.hosts = {name: type("Host", (), {"name": name, "vars": {}})() for name in hosts}


class Streams:
    """What the engines would answer, by host."""

    def __init__(self, monkeypatch, **answers):
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
        monkeypatch.setattr(logs.DockerHost, "watch", lambda host, seconds: None)
        monkeypatch.setattr(logs, "_stream", self.stream)

    def stream(self, host, instance, since, tail, follow):
        answer = self.answers[host.name]
        if isinstance(answer, Exception):
            raise answer
        lines = [f"{at} {text}\n".encode() for at, text in parse(answer)]
        return lines if tail == "all" else lines[-tail:]


def test_hosts_are_merged_exactly_and_traces_stay_whole(monkeypatch):
    between = "18.538 2026-11-21T18:49:18.538Z INFO  in the middle of the other's stack trace\n18.538 and its second line"
    Streams(monkeypatch, lab_1=TRACE, lab_2=between)
    found = read(FakeCluster("lab-1", "lab-2"), [KAFKA, PRODUCER], Query(tail=None))
    assert [(r.label, len(r.lines)) for r in found.records] == [("kafka@lab-1", 6), ("producer-x@lab-2", 2), ("kafka@lab-1", 1)]
    assert found.exit_code == 0


def test_tail_counts_lines_and_with_grep_the_records_that_match(monkeypatch):
    Streams(monkeypatch, lab_1=TRACE + TRACE.replace("18.5", "19.5").strip("\n"))
    cluster = FakeCluster("lab-1")
    assert sum(len(r.lines) for r in read(cluster, [KAFKA], Query(tail=3)).records) == 3
    assert [len(r.lines) for r in read(cluster, [KAFKA], Query(tail=1, grep=re.compile("Exception"))).records] == [6]
    nothing = read(cluster, [KAFKA], Query(tail=0))
    assert nothing.records == []
    assert nothing.last["kafka@lab-1"].startswith("2026-11-21T18:49:19.539")


def test_what_does_not_answer_is_named_and_the_rest_is_there(monkeypatch):
    import docker.errors

    third = Instance("connect", "connect", "lab-3", "10.0.0.3", {}, "venice-connect")
    Streams(monkeypatch, lab_1=UnreachableError("lab-1: no answer"), lab_2=PYTHON, lab_3=docker.errors.NotFound("gone"))
    found = read(FakeCluster("lab-1", "lab-2", "lab-3"), [KAFKA, PRODUCER, third], Query())
    assert {r.label for r in found.records} == {"producer-x@lab-2"}
    assert found.warnings() == [
        "lab-1 does not answer: lab-1: no answer",
        "connect@lab-3 has no container: `venice deploy` makes it",
    ]
    assert found.exit_code == 3


def test_following_puts_late_lines_where_they_belong(monkeypatch):
    arriving = [
        ("kafka@lab-2", "2026-11-21T18:49:01.200000000Z", "2026-11-21T18:49:01.200Z second"),
        ("kafka@lab-1", "2026-11-21T18:49:01.100000000Z", "2026-11-21T18:49:01.100Z first"),
        ("kafka@lab-2", "2026-11-21T18:49:01.200000001Z", "\tat second"),
        ("kafka@lab-1", "2026-11-21T18:49:01.300000000Z", "2026-11-21T18:49:01.300Z dropped"),
        ("kafka@lab-1", "2026-11-21T18:49:01.400000000Z", "2026-11-21T18:49:01.400Z third"),
    ]

    def run(self):
        for line in arriving:
            if line[0] == label(self._instance):
                self._lines.put(line)
        if self._instance is KAFKA:
            self._notices.put("something")

    monkeypatch.setattr(logs._Follower, "run", run)
    told = []
    wanted = Query(grep=re.compile("first|second|third"))
    following = follow(FakeCluster("lab-1", "lab-2"), [OTHER, KAFKA], wanted, Logs(), told.append)
    assert [next(following).message for _ in range(3)] == [
        "2026-11-21T18:49:01.100Z first",
        "2026-11-21T18:49:01.200Z second\n\tat second",
        "2026-11-21T18:49:01.400Z third",
    ]
    assert told == ["something"]


class Engine:
    """One container that stops, is replaced, and whose host goes away: an answer for each time it is asked."""

    def __init__(self, monkeypatch, streams):
        self.streams = list(streams)
        self.asked = []
        self.docker = self.api = self
        monkeypatch.setattr(logs, "_stream", self.stream)
        monkeypatch.setattr(logs, "_AGAIN_SECONDS", 0)

    name = "lab-1"
    lost = False

    def watch(self, seconds):
        pass

    close = asking = None

    def inspect_container(self, name):
        return {"State": {"Running": True}}

    def stream(self, host, instance, since, tail, follow):
        self.asked.append(since)
        if not self.streams:
            raise SystemExit  # ends the thread, which would go on for ever
        answer = self.streams.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [f"{at} {text}\n".encode() for at, text in parse(answer)]


def test_a_container_that_restarts_and_a_host_that_comes_back_are_followed_on(monkeypatch):
    engine = Engine(monkeypatch, ["01.000 one\n02.000 two", UnreachableError("lab-1: gone"), "02.000 two\n03.000 three"])
    engine.asking, engine.close = contextlib.nullcontext, lambda: None
    lines, notices = queue.Queue(), queue.Queue()
    follower = logs._Follower(engine, KAFKA, None, "2026-11-21T18:49:01.000000000Z", False, lines, notices)
    with pytest.raises(SystemExit):
        follower.run()
    assert [text for _, _, text in lines.queue] == ["two", "three"]
    assert list(notices.queue) == [
        "kafka@lab-1 has stopped; going on when it runs again",
        "kafka@lab-1 runs again",
        "kafka@lab-1 can't be followed: lab-1: gone; trying again",
        "kafka@lab-1 runs again",
        "kafka@lab-1 has stopped; going on when it runs again",
        "kafka@lab-1 runs again",
    ]
    assert [since.second for since in engine.asked] == [0, 1, 1, 2]


def test_what_the_inventory_does_not_know_is_looked_for_on_the_hosts(monkeypatch):
    from venice import hosts, selection

    asked = []
    left = Instance("producer", "producer-y", "lab-2", "", {}, "venice-producer-y")
    cluster = FakeCluster("lab-1", "lab-2")
    cluster.order, cluster.instances = ["kafka"], lambda component=None: [i for i in (KAFKA, OTHER) if component in (None, i.component)]

    def over(hosts, function):
        asked.append([h.name for h in hosts])
        return {"lab-1": UnreachableError("off"), "lab-2": [OTHER, left]}

    monkeypatch.setattr(hosts, "over", over)
    assert selection.select(selection.with_running(cluster, ["kafka@lab-2"]), ["kafka@lab-2"]) == [OTHER]
    assert asked == []
    assert selection.select(selection.with_running(cluster, ["producer-y"]), ["producer-y", "kafka"]) == [KAFKA, OTHER, left]
    assert asked == [["lab-1", "lab-2"]]
    with pytest.raises(InputError, match="'produser-y' is no component"):
        selection.select(selection.with_running(cluster, ["produser-y"]), ["produser-y"])
