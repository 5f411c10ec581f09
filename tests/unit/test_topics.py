"""What topics are told as, and what a change of their settings removes."""

import pytest

from venice import human, topics
from venice.errors import InputError
from venice.kafka import Partition, Setting
from venice.kafka_protocol import Replica, _varint, parse_knows_topic
from venice.specs import Difference


class FakeKafka:
    """Topic t: two partitions on brokers 1 to 3, of which 3 is gone; partition 1 is compacted away to its last record."""

    def __init__(self, **settings):
        self.own = settings

    def partitions(self):
        return [
            Partition("__consumer_offsets", 0, 1, (1,), (1,)),
            Partition("t", 0, 1, (1, 2, 3), (1, 2)),
            Partition("t", 1, -1, (3,), (3,)),
        ]

    def topic_config(self, names, lenient):
        return {name: {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"} for name in names}

    def offsets(self, places, lenient):
        assert ("t", 1) not in places
        return dict.fromkeys(places, (5, 25))

    def replicas(self):
        return [Replica("t", 0, 1, 100), Replica("t", 0, 2, 90)], {}

    def settings(self, topic):
        default = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete", "segment.ms": "1000"}
        return [Setting(key, self.own.get(key, value), "topic" if key in self.own else "Kafka", value) for key, value in default.items()]


def test_what_is_not_known_is_not_guessed():
    found = topics.listing(FakeKafka())
    [topic] = found.topics
    assert (topic.partitions, topic.replication, topic.under_replicated, topic.offline) == (2, 3, 1, 1)
    assert (topic.messages, topic.size, topic.disk) == (None, None, None)
    assert list(found.silent) == [3]


def test_internal_topics_only_when_asked_for():
    assert [topic.name for topic in topics.listing(FakeKafka(), every=True).topics] == ["__consumer_offsets", "t"]


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("__consumer_offsets", "Kafka"),
        ("connect-lab.configs", "Kafka Connect"),
        ("connect-my-own", ""),
        ("kafkasql-journal", "the schema registry"),
        ("venice.canary", "Venice"),
        ("dlq.sink", ""),
    ],
)
def test_whose_a_topic_is(name, whose):
    assert topics.owner(name) == whose


@pytest.mark.parametrize(
    ("policy", "ms", "size", "kept"),
    [
        ("delete", -1, -1, "unlimited"),
        ("delete", 604_800_000, -1, "7d"),
        ("delete", -1, 1_500_000_000, "1.5 GB"),
        ("delete", 5_400_000, 1000, "90m, 1.0 kB"),
        ("compact", 604_800_000, -1, "compact"),
        ("compact,delete", 86_400_000, -1, "compact, 1d"),
    ],
)
def test_how_long_records_are_kept(policy, ms, size, kept):
    assert topics.Topic("t", 1, 1, 0, 0, 0, 0, 0, ms, size, policy).kept == kept


def test_only_what_differs_is_changed():
    kafka = FakeKafka(**{"retention.ms": "1000"})
    wanted = {"retention.ms": "", "segment.ms": "", "cleanup.policy": "delete", "retention.bytes": "7"}
    assert topics.changes(kafka, "t", wanted) == [
        Difference("retention.ms", "1000", "-1"),
        Difference("cleanup.policy", "delete", "delete"),  # from now on its own
        Difference("retention.bytes", "-1", "7"),
    ]
    with pytest.raises(InputError, match=r"no setting retention\.s\n  did you mean retention"):
        topics.changes(kafka, "t", {"retention.s": "1"})
    with pytest.raises(InputError, match="topic tt does not exist\n  did you mean t"):
        topics.changes(kafka, "tt", {})


@pytest.mark.parametrize(
    ("now", "change", "lost"),
    [
        ({}, {"retention.ms": "86400000"}, ["records older than 1d"]),
        ({"retention.ms": "1000"}, {"retention.ms": "2000"}, []),
        ({"retention.ms": "2000"}, {"retention.ms": "1000"}, ["records older than 1s"]),
        ({"retention.ms": "2000"}, {"retention.ms": "-1"}, []),
        ({}, {"retention.bytes": "1000"}, ["what a partition has beyond 1.0 kB"]),
        ({}, {"cleanup.policy": "compact"}, ["all records of a key but the newest, and records without a key"]),
        ({"cleanup.policy": "compact"}, {"cleanup.policy": "delete"}, []),
        ({"cleanup.policy": "compact", "retention.ms": "1000"}, {"cleanup.policy": "compact,delete"}, ["records older than 1s"]),
        ({}, {"segment.ms": "5"}, []),
        ({}, {"retention.ms": "soon"}, []),
    ],
)
def test_what_a_change_removes(now, change, lost):
    differences = [Difference(key, None, value) for key, value in change.items()]
    assert topics.losses(FakeKafka(**now), "t", differences) == lost


@pytest.mark.parametrize("name", ["__consumer_offsets", "nope"])
def test_what_may_not_be_deleted(name):
    with pytest.raises(InputError, match=name):
        topics.doomed(FakeKafka(), ["t", name])


def test_one_setting_is_given_once():
    with pytest.raises(InputError, match=r"retention\.ms is given twice"):
        topics.specified("t", 1, None, "7d", None, {"retention.ms": "1"})
    assert topics.specified("t", 2, None, "7d", None, {"a": "b"}).config == {"retention.ms": "604800000", "a": "b"}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (7_000_000_000_000_000, "7000 TB")]
)
def test_sizes(count, text):
    assert human.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0 s"), (59, "59 s"), (61, "1 min"), (7200, "2 h"), (200_000, "2 d")])
def test_ages(seconds, text):
    assert human.age(seconds) == text


@pytest.mark.parametrize(("code", "known"), [(0, True), (5, True), (3, False)])
def test_whether_a_broker_knows_a_topic(code, known):
    broker = (1).to_bytes(4, "big") + b"\x02h" + (9092).to_bytes(4, "big") + b"\0\0"
    answer = bytes(4) + b"\0" + bytes(4) + b"\x02" + broker + b"\x02c" + bytes(4) + b"\x02" + code.to_bytes(2, "big")
    assert parse_knows_topic(answer) is known


@pytest.mark.parametrize(("value", "data"), [(1, b"\x01"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")])
def test_long_names_have_long_lengths(value, data):
    assert _varint(value) == data
