"""Schemas: why they are incompatible, and the answers of two registries (recorded from Confluent's 7.9 and Apicurio's 3.3)."""

import json

import httpx
import pytest

from venice import schema_files, schemas
from venice.compatibility import Side, explain
from venice.errors import InputError, VeniceError
from venice.registry import IncompatibleError, Registry


def record(*fields, name="T", **more) -> dict:
    return {
        "type": "record",
        "name": name,
        "namespace": "d",
        "fields": [dict(zip(("name", "type", "default"), f, strict=False)) for f in fields],
    } | more


def reasons(new, old, new_reads: bool = True) -> list[str]:
    sides = Side.of("the new schema", json.dumps(new), new=True), Side.of("version 1", json.dumps(old))
    return explain(*sides) if new_reads else explain(*reversed(sides))


ID = ("id", "int")
ENUM = {"type": "enum", "name": "E", "symbols": ["A", "B"]}
NODE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (record(ID), record(ID)),
        (record(ID, ("more", "string", "")), record(ID)),
        (record(ID), record(ID, ("gone", "string"))),
        (record(("id", "double")), record(ID)),
        (record(("id", ["null", "long"])), record(ID)),
        (record(("id", ["null", "int", "string"])), record(("id", ["null", "int"]))),
        (record(("e", ENUM | {"default": "A", "symbols": ["A"]})), record(("e", ENUM))),
        (record(("e", ENUM), ("again", "E")), record(("e", ENUM), ("again", "d.E"))),
        (record(ID, name="U", aliases=["T"]), record(ID)),
        ({**record(), "fields": [{"name": "number", "type": "int", "aliases": ["id"]}]}, record(ID)),
        (NODE, NODE),
        ("long", "int"),
    ],
)
def test_what_can_be_read(new, old):
    assert reasons(new, old) == []


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        (
            record(ID, ("cur", "string")),
            record(ID),
            "field cur: the new schema reads it and has no default for it, version 1 does not write it; give it a default",
        ),
        (
            record(("id", "string")),
            record(ID),
            "field id: version 1 writes int, the new schema reads string; keep the type, or add a field of another name with a default",
        ),
        (
            record(ID),
            record(("id", ["null", "int"])),
            "field id: version 1 may write null, the new schema takes only int; keep that type",
        ),
        (
            record(("id", ["null", "int"])),
            record(("id", "string")),
            "field id: version 1 writes string, the new schema takes only [null, int]; add string to the union",
        ),
        (
            record(("e", ENUM | {"symbols": ["A"]})),
            record(("e", ENUM)),
            "field e: version 1 may write B, which the new schema does not know; keep B, or give the enum a default",
        ),
        (
            record(ID, name="U"),
            record(ID),
            "the schema itself: version 1 calls the record d.T, the new schema calls it d.U; "
            "keep the name, or give its old one as an alias",
        ),
        (
            record(("f", {"type": "fixed", "name": "F", "size": 4})),
            record(("f", {"type": "fixed", "name": "F", "size": 8})),
            "field f: version 1 writes 8 bytes, the new schema reads 4; keep the size",
        ),
        (
            record(("list", {"type": "array", "items": record(("x", "int"), ("y", "int"), name="P")})),
            record(("list", {"type": "array", "items": record(("x", "int"), name="P")})),
            "field list[].y: the new schema reads it and has no default for it, version 1 does not write it; give it a default",
        ),
        (
            record(("m", {"type": "map", "values": "int"})),
            record(("m", {"type": "map", "values": "string"})),
            "field m{}: version 1 writes string, the new schema reads int; keep the type, or add a field of another name with a default",
        ),
    ],
)
def test_why_it_can_not_be_read(new, old, reason):
    assert reasons(new, old) == [reason]


def test_readers_of_the_old_schema_need_its_fields():
    assert reasons(record(ID), record(ID, ("cur", "string")), new_reads=False) == [
        "field cur: version 1 reads it and has no default for it, the new schema does not write it; keep the field"
    ]


# ---- the registries


class Answers:
    """A registry that gives recorded answers by method and path, and 404 for the rest; `asked` is what it was asked."""

    def __init__(self, answers: dict[str, tuple[int, object]]):
        self.answers, self.asked = answers, []
        self.registry = Registry(["http://r:8081"])
        self.registry._http = httpx.Client(transport=httpx.MockTransport(self.handle))

    def handle(self, request: httpx.Request) -> httpx.Response:
        question = f"{request.method} {request.url.raw_path.decode()}"
        self.asked.append(question)
        status, body = self.answers.get(question, (404, {"error_code": 40401, "message": "Subject 's' not found."}))
        return httpx.Response(status, json=body)


APICURIO = {"GET /apis/registry/v3/system/info": (200, {"name": "Apicurio Registry (KafkaSQL)", "version": "3.3.3"})}
RULES = "GET /apis/registry/v3/groups/default/artifacts/s/rules/COMPATIBILITY"
OLD = json.dumps(record(ID))
NEW = json.dumps(record(ID, ("cur", "string")))


def test_a_level_of_its_own_or_the_default():
    answers = {
        "GET /config/own": (200, {"compatibilityLevel": "FULL"}),
        "GET /config": (200, {"compatibilityLevel": "BACKWARD"}),
        "GET /config/other": (
            404,
            {"error_code": 40408, "message": "Subject 'other' does not have subject-level compatibility configured"},
        ),
    }
    confluent = Answers(answers).registry
    assert [confluent.compatibility("own"), confluent.compatibility("other")] == ["FULL", None]
    assert confluent.effective_compatibility("other") == "BACKWARD"


def test_apicurio_says_itself_whether_a_level_is_the_subjects_own():
    # its Confluent API gives the default for subjects that have none
    answers = APICURIO | {"GET /config/s": (200, {"compatibilityLevel": "BACKWARD"})}
    assert Answers(answers).registry.compatibility("s") is None
    assert Answers(answers | {RULES: (200, {"config": "FULL", "ruleType": "COMPATIBILITY"})}).registry.compatibility("s") == "FULL"


def incompatible(level: str, verdict: dict, schema: str = OLD, **more) -> dict:
    return {
        "POST /compatibility/subjects/s/versions?verbose=true": (200, {"is_compatible": False} | verdict),
        "GET /config/s": (200, {"compatibilityLevel": level}),
        RULES: (200, {"config": level, "ruleType": "COMPATIBILITY"}),
        "GET /subjects/s/versions": (200, [1, 2]),
        "GET /subjects/s/versions/1": (200, {"subject": "s", "version": 1, "id": 1, "schema": json.dumps(record())}),
        "GET /subjects/s/versions/2": (200, {"subject": "s", "version": 2, "id": 2, "schema": schema, **more}),
        "GET /subjects/s/versions/latest": (200, {"subject": "s", "version": 2, "id": 2, "schema": schema, **more}),
    }


def test_reasons_name_the_version_that_counts():
    found = Answers(incompatible("BACKWARD", {})).registry.check("s", NEW)
    assert [reason.split(";")[0] for reason in found] == [
        "field cur: the new schema reads it and has no default for it, version 2 does not write it"
    ]
    found = Answers(incompatible("BACKWARD_TRANSITIVE", {})).registry.check("s", NEW)
    assert [reason.split(":")[0] for reason in found] == ["field id", "field cur", "field cur"]
    assert "version 1 does not write it" in found[0]


def test_forward_asks_whether_the_old_reads_the_new():
    found = Answers(incompatible("FORWARD", {}, NEW)).registry.check("s", OLD)
    assert found == ["field cur: version 2 reads it and has no default for it, the new schema does not write it; keep the field"]


def test_another_type_than_the_subjects():
    found = Answers(incompatible("BACKWARD", {}, schemaType="PROTOBUF")).registry.check("s", NEW)
    assert found == ["the subject has PROTOBUF schemas, this one is AVRO; take another subject"]


def test_what_confluent_says_of_a_json_schema():
    said = [
        "{errorType:'REQUIRED_ATTRIBUTE_ADDED', description:'The new schema requires '#/properties/a'', additionalInfo:''}",
        "{oldSchemaVersion: 1}",
        "{validateFields: 'false', compatibility: 'BACKWARD'}",
    ]
    found = Answers(incompatible("BACKWARD", {"messages": said}, "{}", schemaType="JSON")).registry.check("s", "{}", "JSON")
    assert found == ["The new schema requires '#/properties/a'"]


def test_what_apicurio_says_of_a_json_schema_when_nothing_is_registered():
    dry = "POST /apis/registry/v3/groups/default/artifacts/s/versions?dryRun=true"
    causes = [{"description": "A new required property was added", "context": "/required"}]
    answers = APICURIO | incompatible("BACKWARD", {}, "{}", schemaType="JSON") | {dry: (400, {"causes": causes})}
    asked = Answers(answers)
    assert asked.registry.check("s", "{}", "JSON") == ["A new required property was added at /required"]
    assert "POST /subjects/s/versions" not in asked.asked


def test_a_subject_that_is_not_there_forbids_nothing():
    assert Answers({}).registry.check("s", NEW) == []


def test_a_refused_registration_is_explained():
    refusal = (409, {"error_code": 409, "message": "Schema being registered is incompatible with an earlier schema"})
    with pytest.raises(IncompatibleError) as caught:
        Answers(incompatible("BACKWARD", {}) | {"POST /subjects/s/versions": refusal}).registry.register("s", NEW)
    assert caught.value.exit_code == 1
    assert "subject s (compatibility BACKWARD):\n  - field cur: the new schema reads it" in caught.value.message


def test_a_schema_that_the_registry_does_not_take_is_wrong_input():
    refusal = (422, {"error_code": 42201, "message": "Invalid schema"})
    with pytest.raises(InputError, match="s: the registry refuses the schema: 422 Invalid schema"):
        Answers({"POST /subjects/s/versions": refusal}).registry.register("s", OLD)


def test_deleting_for_good_deletes_softly_first():
    answers = {"DELETE /subjects/s": (200, [1, 2]), "DELETE /subjects/s?permanent=true": (200, [1, 2])}
    asked = Answers(answers)
    assert asked.registry.delete("s") == [1, 2]
    assert asked.asked == ["DELETE /subjects/s"]
    assert asked.registry.delete("s", permanent=True) == [1, 2]
    assert asked.asked[1:] == ["DELETE /subjects/s", "DELETE /subjects/s?permanent=true"]


def test_deleting_for_good_what_is_deleted_softly_already():
    answers = {
        "DELETE /subjects/s/versions/3": (404, {"error_code": 40406, "message": "Subject 's' Version 3 was soft deleted."}),
        "DELETE /subjects/s/versions/3?permanent=true": (200, 3),
    }
    assert Answers(answers).registry.delete("s", permanent=True, version=3) == [3]


def test_deleting_what_others_refer_to():
    answers = {"DELETE /subjects/s": (422, {"error_code": 42206, "message": "There are subjects referencing s"})}
    with pytest.raises(VeniceError, match="There are subjects referencing s") as caught:
        Answers(answers).registry.delete("s", permanent=True)
    assert "refer to it" in caught.value.remedy


# ---- files


def test_a_file_says_type_and_subject(tmp_path):
    (tmp_path / "bus.avsc").write_text(OLD)
    (tmp_path / "bus.json").write_text('{"type": "object"}')
    (tmp_path / "bus.proto").write_text('syntax = "proto3";\nmessage Bus { int32 id = 1; }\n')
    found = [schema_files.load(tmp_path / f"bus{ending}") for ending in (".avsc", ".json", ".proto")]
    assert [(file.type, file.subject) for file in found] == [("AVRO", "bus-value"), ("JSON", "bus-value"), ("PROTOBUF", "bus-value")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.avsc", '{"type": "record",\n "name": "T",\n}', r"s.avsc:3: Expecting property name"),
        ("s.avsc", '{"type": "record", "name": "T", "fields": [\n{"name": "a", "type": "dooble"}]}', r"s.avsc:2: .* unknown type dooble"),
        ("s.avsc", '{"type": "record", "name": "T", "fields": [\n{"nam": "a", "type": "int"}]}', r"s.avsc:2: .* missing 'name'"),
        ("s.avsc", '{"type": "record", "name": "T", "fields": [\n{"name": "a-b", "type": "int"}]}', r"s.avsc:2: .* the name a-b has"),
        ("s.json", '{"type": "object",\n"properties": {"a": {\n"type": "strin"}}}', r"s.json:3: .* properties.a.type: 'strin' is not"),
        ("s.proto", 'syntax = "proto3";\nmessage A {\n int32 id = \n}\n', r"s.proto:4:1: Expected field number"),
        ("s.txt", "", r"s.txt: its ending does not tell its type"),
    ],
)
def test_a_wrong_file_says_where_and_why(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        schema_files.load(tmp_path / name)


# ---- what commands do


def test_a_schema_that_is_there_is_not_registered_again(tmp_path):
    (tmp_path / "s.avsc").write_text(OLD)
    answers = {
        "POST /subjects/s": (200, {"subject": "s", "version": 2, "id": 7, "schema": OLD}),
        "GET /subjects/s/versions/2": (200, {"subject": "s", "version": 2, "id": 7, "schema": OLD}),
    }
    asked = Answers(answers)
    added = schemas.add(asked.registry, "s", schema_files.load(tmp_path / "s.avsc"))
    assert added == schemas.Added("s", 2, 7, "AVRO", registered=False)
    assert asked.asked == ["POST /subjects/s", "GET /subjects/s/versions/2"]


def test_what_is_incompatible_is_not_sent(tmp_path):
    (tmp_path / "s.avsc").write_text(NEW)
    asked = Answers(incompatible("BACKWARD", {}))
    with pytest.raises(IncompatibleError, match="field cur"):
        schemas.add(asked.registry, "s", schema_files.load(tmp_path / "s.avsc"))
    assert "POST /subjects/s/versions" not in asked.asked


def test_a_listing_says_whose_the_compatibility_is():
    answers = {
        "GET /subjects": (200, ["b", "a"]),
        "GET /config": (200, {"compatibilityLevel": "BACKWARD"}),
        "GET /config/a": (200, {"compatibilityLevel": "FULL"}),
        "GET /subjects/a/versions": (200, [1, 2]),
        "GET /subjects/a/versions/latest": (200, {"subject": "a", "version": 2, "id": 7, "schema": "{}", "schemaType": "JSON"}),
        "GET /subjects/b/versions": (200, [1]),
        "GET /subjects/b/versions/latest": (200, {"subject": "b", "version": 1, "id": 3, "schema": "{}"}),
    }
    assert schemas.listing(Answers(answers).registry) == [
        schemas.Subject("a", "JSON", [1, 2], 7, "FULL", True, []),
        schemas.Subject("b", "AVRO", [1], 3, "BACKWARD", False, []),
    ]


def test_an_unknown_subject_is_answered_with_names_like_it():
    with pytest.raises(InputError, match="there is no subject bus-valeu") as caught:
        schemas.show(Answers({"GET /subjects": (200, ["bus-value", "canary"])}).registry, "bus-valeu")
    assert caught.value.remedy == "did you mean bus-value?"


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([1], "1"), ([1, 2, 3], "1-3"), ([1, 2, 4, 6, 7], "1-2, 4, 6-7")])
def test_spans(numbers, text):
    assert schemas.spans(numbers) == text
