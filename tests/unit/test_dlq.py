"""What dead letters say, and what a replay of them sends."""

import json

import pytest

from tests.unit.test_messages import FRAMED, FakeRegistry
from venice.connect import Connector
from venice.dlq import COUNT, FROM, ORIGIN, DeadLetters, Failure, Letter, Mark
from venice.errors import InputError, UnreachableError
from venice.kafka import Partition
from venice.messages import Codec, Record
from venice.replay import Repair, planned

HEADERS = {
    "topic": "a",
    "partition": "1",
    "offset": "44",
    "connector.name": "sink",
    "task.id": "0",
    "stage": "VALUE_CONVERTER",
    "class.name": "io.apicurio.AvroConverter",
    "exception.class.name": "org.apache.kafka.connect.errors.DataException",
    "exception.message": "outer",
    "exception.stacktrace": "org.apache.DataException: outer\n\tat a(C.java:1)\nCaused by: java.lang.IllegalStateException: inner\n\tat x",
}


def letter(value=b'{"a": "x"}', count=None, mark=None, without=(), own=()):
    headers = [(f"__connect.errors.{name}", text.encode()) for name, text in HEADERS.items() if name not in without]
    headers = [*own, *([(COUNT, str(count).encode())] if count is not None else []), *headers]
    record = Record("dlq.sink", 0, 7, 0, b"key", value, tuple(headers))
    return Letter(record, Failure.of(record), mark)


class FakeKafka:
    def partitions(self, topic=None):
        return [
            Partition(name, n, 1, (1,), (1,))
            for name, count in {"a": 2, "b": 1, "dlq.sink": 1, "dlq.gone": 1, "odd": 1}.items()
            for n in range(count)
        ]


class FakeConnect:
    def __init__(self, error=None):
        self.error = error

    def connectors(self):
        if self.error:
            raise self.error
        config = {"sink": "dlq.sink", "other": "odd", "later": "dlq.later", "none": None}
        return {
            name: Connector(name, "RUNNING", config={"errors.deadletterqueue.topic.name": t} if t else {}) for name, t in config.items()
        }


def dead(connect=None):
    return DeadLetters(FakeKafka(), connect or FakeConnect(), Codec(FakeRegistry()))


def plan_of(*letters, repair=None, to=None, most=3):
    return planned(dead(), "dlq.sink", list(letters), repair or Repair(), to, most)


def test_a_failure_is_read_from_the_headers():
    assert letter().failure == Failure(
        "a", 1, 44, "sink", 0, "VALUE_CONVERTER", HEADERS["exception.class.name"], "outer", "IllegalStateException: inner"
    )
    assert letter(without=("exception.stacktrace",)).failure.reason == "DataException: outer"
    assert letter(without=HEADERS).failure == Failure(*[None] * 9)


@pytest.mark.parametrize(
    ("name", "topic"), [("dlq.sink", "dlq.sink"), ("sink", "dlq.sink"), ("other", "odd"), ("odd", "odd"), ("gone", "dlq.gone")]
)
def test_a_queue_has_its_own_name_and_its_connector_s(name, topic):
    assert dead().topic_of(name) == topic


@pytest.mark.parametrize(
    ("name", "message"), [("a", "a is neither"), ("none", "no dead letter topic"), ("later", "dlq.later does not exist")]
)
def test_what_is_no_queue(name, message):
    with pytest.raises(InputError, match=message):
        dead().topic_of(name)


def test_without_connect_the_topics_named_dlq_are_known():
    found = dead(FakeConnect(UnreachableError("Kafka Connect: away")))
    assert found.topic_of("sink") == "dlq.sink"
    with pytest.raises(InputError, match="Kafka Connect: away"):
        found.topic_of("odd")


def test_sent_as_it_was_without_what_connect_added():
    [sending] = plan_of(letter(value=b"\xff", own=[("trace", b"1")])).sendings
    assert (sending.topic, sending.partition, sending.key, sending.value, sending.repaired) == ("a", 1, b"key", b"\xff", False)
    assert dict(sending.headers) == {"trace": b"1", COUNT: b"1", FROM: b"dlq.sink/0/7", ORIGIN: b"a/1/44"}


def test_the_count_goes_up_and_stands_there_once():
    [sending] = plan_of(letter(count=2)).sendings
    assert [value for name, value in sending.headers if name == COUNT] == [b"3"]
    assert sending.count == 3


def test_a_loop_ends():
    [(_, why)] = plan_of(letter(count=3)).refused
    assert why == "it was replayed 3 times already, and failed again"
    assert plan_of(letter(count=3), most=4).sendings
    assert plan_of(letter(count="many")).sendings[0].count == 1


def test_what_was_replayed_is_not_sent_again():
    plan = plan_of(letter(mark=Mark("now", "a", 0, 1)))
    assert (len(plan.done), plan.sendings, plan.refused) == (1, [], [])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [({"to": "nope"}, "topic nope does not exist"), ({}, "its headers do not say which topic it comes from; name one with --to")],
)
def test_where_to_is_not_known(arguments, why):
    [(_, said)] = plan_of(letter(without=HEADERS), **arguments).refused
    assert said == why


def test_another_topic_or_key_chooses_its_own_partition():
    assert plan_of(letter(), to="b").sendings[0].partition is None
    [sending] = plan_of(letter(), repair=Repair(key="k2")).sendings
    assert (sending.key, sending.partition, sending.repaired) == (b"k2", None, True)


def test_a_repaired_value_is_written_by_the_subject_of_the_topic_that_it_goes_to():
    assert plan_of(letter(), repair=Repair(True, {"a": 2})).sendings[0].value == FRAMED
    # no subject b-value
    assert plan_of(letter(), repair=Repair(True, {"a": 2}), to="b").sendings[0].value == b'{"a": 2}'


def test_fields_are_set_in_what_the_value_says():
    assert plan_of(letter(), repair=Repair(fields=(("a", 2),))).sendings[0].value == FRAMED
    [sending] = plan_of(letter(value=b'{"x": {"y": 1}, "n": null}'), repair=Repair(fields=(("x.z", 2), ("n.m", 3))), to="b").sendings
    assert json.loads(sending.value) == {"x": {"y": 1, "z": 2}, "n": {"m": 3}}


@pytest.mark.parametrize(
    ("value", "repair", "message"),
    [
        (b"\xff", Repair(fields=(("a", 2),)), "dlq.sink 0:7: its value has no fields to set: it is hex"),
        (None, Repair(fields=(("a", 2),)), "it is null"),
        (b'{"a": 1}', Repair(fields=(("a.b", 2),)), "b can't be set: 1 has no fields"),
        (b"\xff", Repair(True, {"a": "x"}), 'dlq.sink 0:7: subject a-value .*: a: "x" is no int'),
    ],
)
def test_a_repair_that_does_not_fit_names_the_letter(value, repair, message):
    with pytest.raises(InputError, match=message):
        plan_of(letter(value=value), repair=repair)


def test_one_value_is_for_one_letter():
    with pytest.raises(InputError, match="one value or key for 2 records"):
        plan_of(letter(), letter(), repair=Repair(True, {}))
