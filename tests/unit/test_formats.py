"""Avro, JSON Schema and Protobuf by the text of a schema."""

import json

import pytest

from venice.formats import FormatError, compiled

AVRO = {
    "type": "record",
    "name": "Reading",
    "namespace": "n",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-millis"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "time", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "price", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}], "default": None},
        {"name": "raw", "type": "bytes"},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 2}},
        {"name": "level", "type": "double"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "number", "type": ["string", "long"]},
        {
            "name": "shape",
            "type": [
                {"type": "record", "name": "Circle", "fields": [{"name": "r", "type": "int"}]},
                {"type": "record", "name": "Box", "fields": [{"name": "w", "type": "int"}, {"name": "h", "type": "int", "default": 1}]},
            ],
        },
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "more", "type": {"type": "map", "values": "boolean"}},
        {"name": "next", "type": ["null", "Reading"], "default": None},
    ],
}
DATA = {
    "id": "x",
    "at": "2026-01-02T03:04:05.678901Z",
    "local": "2026-01-02T03:04:05.678000",
    "day": "2026-01-02",
    "time": "03:04:05.678000",
    "price": "12.50",
    "raw": "0x00ff",
    "hash": "0x0102",
    "level": "NaN",
    "kind": "B",
    "number": 5,
    "shape": {"w": 2, "h": 3},
    "tags": ["a", "b"],
    "more": {"yes": True},
    "next": None,
}


@pytest.fixture(scope="module")
def avro():
    return compiled("AVRO", json.dumps(AVRO), {})


def test_avro_there_and_back_through_json(avro):
    data = json.loads(json.dumps(DATA | {"next": DATA}))
    assert avro.decode(avro.encode(data)) == data


def test_avro_fills_in_defaults(avro):
    given = {key: value for key, value in DATA.items() if key not in ("price", "next")} | {"shape": {"w": 2}}
    assert avro.decode(avro.encode(given)) == DATA | {"price": None, "shape": {"w": 2, "h": 1}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 3}, "id: 3 is no string"),
        ({"at": "yesterday"}, 'at: "yesterday" is no timestamp-micros'),
        ({"raw": "ff"}, "raw: .*0x and hexadecimal digits"),
        ({"hash": "0x01"}, "hash: .*1 bytes, not 2"),
        ({"price": "1.234"}, "does not fit the Avro schema"),
        ({"kind": "C"}, 'kind: "C" is none of A, B'),
        ({"day": 1 << 40}, "day: .* is no date"),
        ({"shape": {"x": 1}}, "shape: .* is none of n.Circle, n.Box"),
        ({"tags": ["a", 1]}, r"tags\[1\]: 1 is no string"),
        ({"more": {"yes": 1}}, "more.yes: 1 is no boolean"),
        ({"next": {"id": "y"}}, "next.at: missing"),
        ({"nope": 1}, "nope: unknown field"),
        ({"level": True}, "level: true is no double"),
    ],
)
def test_avro_names_the_field_that_does_not_fit(avro, change, message):
    with pytest.raises(FormatError, match=message):
        avro.encode(DATA | change)


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[:-1], lambda b: b + b"x", lambda b: b"\xff" * 12])
def test_bytes_that_are_not_of_the_avro_schema(avro, spoil):
    with pytest.raises(FormatError, match="don't fit the Avro schema: "):
        avro.decode(spoil(avro.encode(DATA)))


def test_avro_with_a_referenced_schema():
    inner = json.dumps({"type": "record", "name": "a.Inner", "fields": [{"name": "x", "type": "int"}]})
    outer = json.dumps({"type": "record", "name": "Outer", "fields": [{"name": "i", "type": "a.Inner"}]})
    found = compiled("AVRO", outer, {"a.Inner": inner})
    assert found.decode(found.encode({"i": {"x": 1}})) == {"i": {"x": 1}}


@pytest.mark.parametrize(
    ("kind", "text"), [("AVRO", "{"), ("AVRO", '{"type": "nope"}'), ("JSON", "{"), ("PROTOBUF", "message {"), ("XML", "<x/>")]
)
def test_a_schema_that_is_none(kind, text):
    with pytest.raises(FormatError):
        compiled(kind, text, {})


def test_json_is_validated_when_it_is_written_and_not_when_it_is_read():
    schema = {"type": "object", "required": ["a"], "properties": {"at": {"$ref": "position.json"}}}
    found = compiled("JSON", json.dumps(schema), {"position.json": '{"required": ["lat"]}'})
    assert found.decode(found.encode({"a": "ü", "at": {"lat": 1}})) == {"a": "ü", "at": {"lat": 1}}
    assert found.decode(b'{"b": NaN}') == {"b": "NaN"}
    with pytest.raises(FormatError, match="at: 'lat' is a required property"):
        found.encode({"a": 1, "at": {}})
    with pytest.raises(FormatError, match="no JSON"):
        found.decode(b"{")


@pytest.fixture(scope="module")
def proto():
    text = """
    syntax = "proto3";
    package q;
    import "common/position.proto";
    import "google/protobuf/timestamp.proto";
    message Bus {
      string id = 1;
      int64 number = 2;
      c.Position at = 3;
      google.protobuf.Timestamp seen = 4;
      message Door { bool open = 1; }
    }
    message Stop { string name = 1; }
    """
    return compiled("PROTOBUF", text, {"common/position.proto": 'syntax = "proto3"; package c; message Position { double lat = 1; }'})


def test_protobuf_there_and_back(proto):
    data = {"id": "b", "number": "7", "at": {"lat": 45.5}, "seen": "2026-01-01T00:00:00Z"}
    assert proto.encode(data)[:1] == b"\0"
    assert proto.decode(proto.encode(data)) == data


def test_protobuf_s_message_is_told_by_its_indexes(proto):
    # zigzag: 1 index, the second message; 2 indexes, the first one of the first
    assert proto.decode(bytes([2, 2]) + b"\x0a\x02ab") == {"name": "ab"}
    assert proto.decode(bytes([4, 0, 0]) + b"\x08\x01") == {"open": True}


@pytest.mark.parametrize("data", [b"", b"\x02\x08", b"\0\xff\xff", b"\x04\x00", b"\x01", b"\xff" * 20])
def test_bytes_that_are_no_such_protobuf(proto, data):
    with pytest.raises(FormatError):
        proto.decode(data)


@pytest.mark.parametrize("data", [{"nope": 1}, {"number": "x"}, [1], "x"])
def test_data_that_is_no_such_protobuf(proto, data):
    with pytest.raises(FormatError, match=r"the message q\.Bus"):
        proto.encode(data)


def test_a_reference_can_t_write_outside_its_folder():
    with pytest.raises(FormatError, match="leads out"):
        compiled("PROTOBUF", 'syntax = "proto3";', {"../../x.proto": ""})
