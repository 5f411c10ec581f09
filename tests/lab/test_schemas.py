"""`venice schemas` against the lab's registry."""

import json

import pexpect
import pytest

from tests.lab.support import ROOT, VENICE, from_json, venice
from tests.waiting import PATIENCE
from venice.registry import Registry

SUBJECT = "schemas_test-value"
ID = {"name": "id", "type": "int"}


def avro(*fields: dict) -> str:
    return json.dumps({"type": "record", "name": "T", "namespace": "d", "fields": fields})


@pytest.fixture
def registry(deployed):
    registry = Registry.of(deployed)
    yield registry
    for name in registry.subjects(deleted=True):
        if name.startswith("schemas_test"):
            registry.delete(name, permanent=True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "schemas_test.avsc"
    path.write_text(avro(ID))
    return path


def test_the_life_of_a_subject(registry, file):
    added = from_json(venice("schemas", "add", str(file), "-i", "lab", "--json"), "schemas-add")
    assert (added["subject"], added["version"], added["registered"]) == (SUBJECT, 1, True)
    # the same schema in another form is the same
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4))
    assert f"is already registered as version 1 of {SUBJECT}" in venice("schemas", "add", str(file), "-i", "lab")
    file.write_text(avro(ID, {"name": "more", "type": "string", "default": ""}))
    assert f"registered as version 2 of {SUBJECT}" in venice("schemas", "add", str(file), "-i", "lab")

    [mine] = [s for s in from_json(venice("-s", "-i", "lab", "--json"), "schemas")["subjects"] if s["subject"] == SUBJECT]
    assert (mine["type"], mine["versions"], mine["compatibility"], mine["own_compatibility"]) == ("AVRO", [1, 2], "BACKWARD", False)
    shown = from_json(venice("schemas", "-i", "lab", "show", SUBJECT, "--version", "1", "--json"), "schemas-show")
    assert (shown["version"], shown["versions"], json.loads(shown["schema"])) == (1, [1, 2], json.loads(avro(ID)))
    assert f"{SUBJECT} version 2 of 1-2, id {mine['latest_id']}, AVRO" in venice("schemas", "show", SUBJECT, "-i", "lab")

    deleted = from_json(venice("schemas", "delete", SUBJECT, "-i", "lab", "--yes", "--json"), "schemas-delete")
    assert deleted == {"subject": SUBJECT, "versions": [1, 2], "permanent": False}
    assert SUBJECT not in registry.subjects()
    assert "is deleted softly" in venice("schemas", "show", SUBJECT, "-i", "lab", expect=2)
    [gone] = [s for s in from_json(venice("schemas", "--deleted", "-i", "lab", "--json"), "schemas")["subjects"] if s["subject"] == SUBJECT]
    assert gone["deleted_versions"] == [1, 2]
    # who has records can still read them
    assert json.loads(registry.schema(added["id"])) == json.loads(avro(ID))
    venice("schemas", "delete", SUBJECT, "-i", "lab", "--permanent", "--yes")
    assert SUBJECT not in registry.subjects(deleted=True)


def test_what_is_incompatible_is_explained_and_not_registered(registry, file):
    venice("schemas", "add", str(file), "-i", "lab")
    file.write_text(avro({"name": "id", "type": "string"}, {"name": "currency", "type": "string"}))
    said = venice("schemas", "add", str(file), "-i", "lab", expect=1)
    assert f"incompatible with subject {SUBJECT} (compatibility BACKWARD)" in said
    assert "field id: version 1 writes int, the new schema reads string; keep the type" in said
    assert "field currency: the new schema reads it and has no default for it, version 1 does not write it; give it a default" in said
    assert registry.versions(SUBJECT) == [1]
    # the registry itself refuses the same, with the same explanation
    with pytest.raises(Exception, match="field currency: the new schema reads it"):
        registry.register(SUBJECT, file.read_text())

    # forward: whoever reads with version 1 must be able to go on
    changed = from_json(venice("schemas", "compat", SUBJECT, "forward", "-i", "lab", "--json"), "schemas-compat")
    assert changed == {"subject": SUBJECT, "compatibility": "FORWARD", "own_compatibility": True, "before": "BACKWARD"}
    file.write_text(avro({"name": "currency", "type": "string"}))
    assert "field id: version 1 reads it and has no default" in venice("schemas", "add", str(file), "-i", "lab", expect=1)
    file.write_text(avro(ID, {"name": "currency", "type": "string"}))
    venice("schemas", "add", str(file), "-i", "lab")
    assert registry.versions(SUBJECT) == [1, 2]
    assert "one of BACKWARD, " in venice("schemas", "compat", SUBJECT, "BACK", "-i", "lab", expect=2)


@pytest.mark.parametrize(
    ("ending", "kind", "first", "second", "reason"),
    [
        (
            ".json",
            "JSON",
            '{"type": "object", "properties": {"a": {"type": "string"}}}',
            '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}',
            "required property was added at /required",
        ),
        (
            ".proto",
            "PROTOBUF",
            'syntax = "proto3";\nmessage A { int32 id = 1; }\n',
            'syntax = "proto3";\nmessage A { string id = 1; }\n',
            "Field type changed, message A, before: int32, after string",
        ),
    ],
)
def test_json_and_protobuf(registry, tmp_path, ending, kind, first, second, reason):
    file = tmp_path / f"schemas_test{ending}"
    file.write_text(first)
    assert from_json(venice("schemas", "add", str(file), "-i", "lab", "--json"), "schemas-add")["type"] == kind
    assert "is already registered as version 1" in venice("schemas", "add", str(file), "-i", "lab")
    file.write_text(second)
    assert reason in venice("schemas", "add", str(file), "-i", "lab", expect=1)
    other = tmp_path / "other.avsc"
    other.write_text(avro(ID))
    said = venice("schemas", "add", str(other), "--subject", SUBJECT, "-i", "lab", expect=1)
    assert f"the subject has {kind} schemas, this one is AVRO" in said
    assert registry.versions(SUBJECT) == [1]


def test_a_wrong_file_never_reaches_the_registry(registry, file):
    file.write_text('{"type": "record", "name": "T",\n "fields": [{"name": "a", "type": "dooble"}]}')
    assert "schemas_test.avsc:2: no valid Avro schema: unknown type dooble" in venice("schemas", "add", str(file), "-i", "lab", expect=2)
    assert SUBJECT not in registry.subjects()


def test_deleting_asks(registry, file):
    venice("schemas", "add", str(file), "-i", "lab")
    assert "Nobody can answer" in venice("schemas", "delete", SUBJECT, "-i", "lab", expect=2)
    for answer, left in (("n", [1]), ("y", [])):
        asked = pexpect.spawn(VENICE[0], [*VENICE[1:], "schemas", "delete", SUBJECT, "-i", "lab"], cwd=ROOT, timeout=PATIENCE)
        asked.expect(f"Delete version 1 of {SUBJECT}")
        asked.sendline(answer)
        asked.expect(pexpect.EOF)
        assert registry.versions(SUBJECT) == left
