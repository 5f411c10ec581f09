"""What records mean by the schemas of a registry, and which of them are read."""

import json
from types import SimpleNamespace

import pytest

from venice import messages
from venice.errors import InputError, UnreachableError, VeniceError
from venice.messages import Choice, Codec, Record, Span, has_key, iso, newest, selected

SCHEMA = json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]})


class FakeRegistry:
    """Schema 7 in the subjects a-value and b-value; counts the questions."""

    def __init__(self, broken=None):
        self.asked, self.broken = 0, broken

    def _answer(self, answer):
        self.asked += 1
        if self.broken:
            raise self.broken
        return answer

    def by_id(self, schema_id):
        return self._answer({"schema": SCHEMA, "schemaType": "AVRO", "references": []} if schema_id == 7 else None)

    def subjects_of(self, schema_id):
        return ["a-value", "b-value"]

    def latest(self, subject):
        return self._answer({"id": 7, "schema": SCHEMA} if subject == "a-value" else None)


FRAMED = b"\0\0\0\0\x07\x04"


def test_by_the_schema_that_the_bytes_name():
    registry = FakeRegistry()
    codec = Codec(registry)
    found = codec.decode(FRAMED, "b")
    assert (found.value, found.format, found.subject, found.schema_id, found.type) == ({"a": 2}, "avro", "b-value", 7, "AVRO")
    assert codec.decode(FRAMED, "elsewhere").subject == "a-value"
    codec.decode(FRAMED, "b")
    assert registry.asked == 2


@pytest.mark.parametrize(
    ("data", "value", "form"),
    [
        (None, None, "null"),
        (b"", "", "text"),
        (b"{not json", "{not json", "text"),
        (b'{"a": [1]}', {"a": [1]}, "json"),
        (b"42", "42", "text"),
        ("Zürich\n".encode(), "Zürich\n", "text"),
        (b"\xff\xfe", "0xfffe", "hex"),
        (b"a\x1b[31m", "0x611b5b33316d", "hex"),
        (b"\0\0\0\0", "0x00000000", "hex"),
    ],
)
def test_without_a_schema(data, value, form):
    found = Codec(FakeRegistry()).decode(data)
    assert (found.value, found.format, found.error) == (value, form, None)


@pytest.mark.parametrize(
    ("registry", "data", "error"),
    [
        (FakeRegistry(), b"\0\0\0\0\x08x", "the schema registry has no schema with the id 8"),
        (FakeRegistry(), FRAMED + b"more", "the bytes don't fit the Avro schema: 4 are left over"),
        (None, FRAMED, "names the schema 7, and the inventory has no schema registry"),
        (FakeRegistry(VeniceError("it is upset")), FRAMED, "schema 7: it is upset"),
    ],
)
def test_what_can_t_be_decoded_is_hex_with_the_reason(registry, data, error):
    found = Codec(registry).decode(data)
    assert (found.value, found.format, found.error) == (f"0x{data.hex()}", "hex", error)


def test_a_registry_that_is_away_is_asked_once_and_named_once():
    registry = FakeRegistry(UnreachableError("schema registry: schema-registry on lab-1: refused"))
    codec = Codec(registry)
    assert codec.problem == ""
    assert {codec.decode(FRAMED).format, codec.decode(b"\0\0\0\0\x09x").format} == {"hex"}
    assert registry.asked == 1
    assert codec.problem.startswith("schema registry: schema-registry on lab-1: refused")


def test_encoded_by_the_subject_s_latest_schema():
    codec = Codec(FakeRegistry())
    assert codec.encode("a-value", {"a": 2}) == FRAMED
    with pytest.raises(InputError, match=r"subject a-value \(AVRO, id 7\): a: \"x\" is no int"):
        codec.encode("a-value", {"a": "x"})
    with pytest.raises(InputError, match="no subject c-value"):
        codec.encode("c-value", {})


@pytest.mark.parametrize("transactional_id", [None, "some"])
def test_the_client_accepts_what_producers_are_told(transactional_id):
    """librdkafka refuses limits that contradict each other, before it looks for a broker."""
    messages.producer_of(SimpleNamespace(bootstrap_servers="127.0.0.1:1"), transactional_id)


def test_times():
    assert iso(1_767_323_045_678) == "2026-01-02T03:04:05.678Z"
    assert iso(None) is None
    assert iso(1 << 62) is None


def test_a_key_is_compared_as_text_and_as_what_it_means():
    codec = Codec(FakeRegistry())

    def record(key):
        return Record("b", 0, 0, None, key, None)

    assert has_key(codec, "x")(record(b"x"))
    assert has_key(codec, '{"a": 2}')(record(FRAMED))
    assert not has_key(codec, "x")(record(None))
    assert not has_key(codec, "x")(record(b"y"))


class FakeKafka:
    """Partitions as lists of records' keys, None where compaction left a gap; what was read is in `reads`."""

    def __init__(self, *partitions):
        self.logs, self.reads = partitions, []

    def partitions(self, topic):
        return [type("Part", (), {"id": n}) for n in range(len(self.logs))]

    def offsets(self, places):
        return {place: (0, len(self.logs[place[1]])) for place in places}


@pytest.fixture
def reading(monkeypatch):
    def read(kafka, wanted):
        for (topic, partition), span in wanted.items():
            kafka.reads.append((partition, span.start, span.end))
            for offset, key in list(enumerate(kafka.logs[partition]))[span.start : span.end]:
                if key is not None:
                    yield Record(topic, partition, offset, offset * 10 + partition, key, b"")

    monkeypatch.setattr(messages, "read", read)


def spans_of(kafka):
    return {("t", n): Span(0, len(log)) for n, log in enumerate(kafka.logs)}


def test_the_newest_over_all_partitions(reading):
    kafka = FakeKafka([b"a"] * 5, [b"b"] * 20)
    assert [(r.partition, r.offset) for r in newest(kafka, spans_of(kafka), 3)] == [(1, 17), (1, 18), (1, 19)]
    assert kafka.reads == [(0, 2, 5), (1, 17, 20)]


def test_the_newest_where_compaction_left_gaps(reading):
    kafka = FakeKafka([b"a", b"b", *[None] * 97, b"c"])
    assert [r.key for r in newest(kafka, spans_of(kafka), 2)] == [b"b", b"c"]
    # in growing steps, and nothing twice
    assert kafka.reads == [(0, 98, 100), (0, 82, 98), (0, 0, 82)]


def test_the_newest_of_one_key(reading):
    kafka = FakeKafka([b"k", *[b"x"] * 50], [b"x"] * 50)
    assert [(r.partition, r.offset) for r in newest(kafka, spans_of(kafka), 2, lambda r: r.key == b"k")] == [(0, 0)]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), [(0, 0), (1, 0), (0, 1), (1, 1)]),
        (Choice(count=1), [(1, 1)]),
        (Choice(from_beginning=True), [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (Choice(from_beginning=True, count=3), [(0, 0), (0, 1), (1, 0)]),
        (Choice(partition=1), [(1, 0), (1, 1)]),
        (Choice(partition=1, offset=1), [(1, 1)]),
        (Choice(follow=True, from_beginning=True, count=2), [(0, 0), (0, 1)]),
        (Choice(follow=True), []),
    ],
)
def test_which_records_are_chosen(reading, choice, expected):
    kafka = FakeKafka([b"a", b"b"], [b"c", b"d"])
    assert [(r.partition, r.offset) for r in selected(kafka, Codec(None), "t", choice)] == expected


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(offset=1), "--offset needs --partition"),
        (Choice(offset=1, partition=0, from_beginning=True), "two beginnings"),
        (Choice(partition=9), "no partition 9"),
    ],
)
def test_a_choice_that_means_nothing(reading, choice, message):
    with pytest.raises(InputError, match=message):
        selected(FakeKafka([b"a"]), Codec(None), "t", choice)
