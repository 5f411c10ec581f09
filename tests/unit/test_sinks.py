"""What a sink to a PostgreSQL table has to be, from the topic's values and the user's choices."""

import json

import pytest

from venice.errors import InputError
from venice.pipeline import ConnectorFile
from venice.sinks import CLASS, Field, Values, fits_table, table_name, table_sink, values_of

BUS = {
    "type": "record",
    "name": "Bus",
    "namespace": "v",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "speed", "type": ["null", "double"], "default": None},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
VALUES = Values(
    "bus-value", 1, (Field("id", "string"), Field("speed", "double", True), Field("at", "timestamp"), Field("l", "array of int"))
)


def registered(schema, kind: str = "AVRO") -> dict:
    return {"subject": "t-value", "version": 3, "schema": json.dumps(schema), "schemaType": kind}


def record(*fields, name="R") -> dict:
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields]}


def test_fields_of_a_schema():
    found = values_of("t", registered(BUS))
    assert found == Values("t-value", 3, (Field("id", "string"), Field("speed", "double", True), Field("at", "timestamp")))
    assert values_of("t", None) is None


def test_nested_records_become_columns_of_their_own():
    position = record(("lat", "double"), ("lon", ["null", "double"]), name="Position")
    found = values_of("t", registered(record(("id", "string"), ("pos", position), ("last", ["null", "Position"]))))
    assert found.nested
    assert found.fields == (
        Field("id", "string"),
        Field("pos_lat", "double"),
        Field("pos_lon", "double", True),
        Field("last_lat", "double", True),
        Field("last_lon", "double", True),
    )


def test_what_a_table_cannot_hold_is_left_out_with_its_reason():
    tree = {"type": "record", "name": "Tree", "fields": [{"name": "left", "type": ["null", "Tree"]}]}
    found = values_of(
        "t",
        registered(
            record(
                ("id", "string"),
                ("m", {"type": "map", "values": "int"}),
                ("u", ["int", "string"]),
                ("inner", record(("m", {"type": "map", "values": "int"}), name="I")),
                ("many", {"type": "array", "items": record(("x", "int"), name="X")}),
                ("tags", {"type": "array", "items": "string"}),
                ("kind", {"type": "enum", "name": "K", "symbols": ["A"]}),
                ("tree", tree),
            )
        ),
    )
    assert [(f.name, f.type) for f in found.fields] == [("id", "string"), ("tags", "array of string"), ("kind", "enum")]
    assert found.left_out == {
        "m": "a map",
        "u": "a union of several types",
        "inner": "a map",
        "many": "an array of something that is no simple type",
        "tree": "a record that holds itself",
    }
    assert not found.nested


@pytest.mark.parametrize(("schema", "kind"), [("string", "AVRO"), ({"type": "object"}, "JSON"), ("message X {}", "PROTOBUF")])
def test_values_that_can_be_no_rows_are_refused(schema, kind):
    with pytest.raises(InputError) as error:
        values_of("t", registered(schema, kind))
    assert "t-value" in error.value.message
    assert "--file" in error.value.remedy


def test_upsert_by_a_field():
    sink = table_sink("bus", VALUES, key=("id",))
    assert (sink.name, sink.table, sink.mode) == ("bus", "bus", "upsert")
    config = sink.document()["config"]
    assert config["connector.class"] == CLASS
    assert (config["insert.mode"], config["primary.key.mode"], config["primary.key.fields"]) == ("upsert", "record_value", "id")
    assert "transforms" not in config
    # no password, and nothing that only one cluster has
    assert config["connection.password"].startswith("${file:")
    assert "${postgres_host}" in config["connection.url"]


def test_every_record():
    config = table_sink("bus", VALUES, table="history").document()["config"]
    assert (config["insert.mode"], config["primary.key.mode"]) == ("insert", "none")
    assert "primary.key.fields" not in config


def test_record_key_is_hoisted_after_the_value_was_made_fit():
    values = Values("t-value", 1, (Field("a_b", "int"),), {"m": "a map", "n": "a map"}, nested=True)
    config = table_sink("t", values, record_key="k").document()["config"]
    assert config["primary.key.mode"] == "record_key"
    assert config["transforms"] == "leaveout,flatten,key"
    assert config["transforms.leaveout.exclude"] == "m,n"
    assert config["transforms.key.field"] == "k"
    assert config["transforms.key.type"].endswith("HoistField$Key")


def test_document_is_a_connector_file(tmp_path):
    text = json.dumps(table_sink("bus", VALUES, name="mine", key=("id",)).document())
    variables = {"postgres_host": "db", "postgres_port": 5432, "postgres_db": "venice", "replication_factor": 3}
    name, config = ConnectorFile(tmp_path / "x.json", text).load(variables)
    assert name == "mine"
    assert config["connection.url"] == "jdbc:postgresql://db:5432/venice"
    assert config["errors.deadletterqueue.topic.name"] == "dlq.mine"


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"mode": "upsert"}, "which key"),
        ({"mode": "insert", "key": ("id",)}, "has no key"),
        ({"mode": "delete"}, "upsert and insert"),
        ({"key": ("nope",)}, "no such field"),
        ({"key": ("speed",)}, "may be null"),
        ({"key": ("l",)}, "array of int"),
        ({"key": ("id",), "record_key": "k"}, "both"),
        ({"record_key": "id"}, "a field of that name"),
        ({"record_key": "The Key"}, "column"),
        ({"table": "Bus; drop"}, "table"),
        ({"table": "x" * 64}, "table"),
    ],
)
def test_choices_that_cannot_work(choice, says):
    with pytest.raises(InputError) as error:
        table_sink("bus", VALUES, **choice)
    assert says in error.value.message


def test_without_a_schema_the_user_is_believed():
    assert table_sink("bus", None, key=("whatever",)).key == ("whatever",)


@pytest.mark.parametrize(("topic", "table"), [("venice.canary", "venice_canary"), ("A-b", "a_b"), ("9x", "_9x"), ("x" * 70, "x" * 63)])
def test_table_name(topic, table):
    assert table_name(topic) == table


def test_existing_table_must_have_the_key():
    fits_table(table_sink("bus", None, key=("Id",)), ("id",))
    fits_table(table_sink("bus", None), ())
    for sink, key in (
        (table_sink("bus", None, key=("id",)), ()),
        (table_sink("bus", None), ("id",)),
        (table_sink("b", None, record_key="k"), ("id",)),
    ):
        with pytest.raises(InputError, match="exists and has"):
            fits_table(sink, key)
