"""What differs between a container and its description, and what that needs: state in, actions out."""

from __future__ import annotations

import ast
import copy

import pytest
from ansible.module_utils.venice_compare import (
    current_fields,
    decide,
    desired_fields,
    engine_config,
    field_differences,
    file_differences,
)
from ansible.module_utils.venice_document import DocumentError, complete, decode_document, encode_document

from venice import paths

IMAGE = {
    "Id": "sha256:" + "a" * 64,
    "Config": {"Env": ["PATH=/bin", "LANG=C"], "Cmd": ["serve"], "User": "7101", "Labels": {"made.by": "us"}},
}
NEW_IMAGE = {"Id": "sha256:" + "b" * 64, "Config": {**IMAGE["Config"], "Env": ["PATH=/bin:/sbin"], "Labels": {}}}

FULL = {
    "name": "venice-kafka",
    "component": "kafka",
    "instance": "kafka-1",
    "image": "venice/kafka:1",
    "command": ["kafka-broker", "/etc/kafka/server.properties"],
    "env": {"KAFKA_HEAP": "512m", "KAFKA_PASSWORD": "geheim"},
    "user": "7101:7101",
    "mounts": [
        {"source": "/srv/venice/kafka", "target": "/data"},
        {"source": "/etc/venice/kafka", "target": "/etc/kafka", "read_only": True},
    ],
    "ports": [{"host": 9092, "container": 9092}, {"host": 19092, "container": 9092, "address": "10.0.0.1"}],
    "aliases": ["kafka"],
    "hosts": {"db": "10.0.0.9"},
    "memory": 1 << 30,
    "cpu_shares": 2048,
    "ulimits": {"nofile": 100000},
    "health": {"command": ["kafka-health", "localhost:9092"]},
    "stop_timeout": 60,
    "log": {"driver": "json-file", "options": {"max-size": "20m"}},
    "labels": {"venice.endpoints": "{}"},
}


def described(**changes) -> dict:
    document = {"cluster": "lab", "containers": [{**FULL, **changes}]}
    return complete(document)["containers"][0]


def running(container: dict, image: dict = IMAGE) -> dict:
    """What an engine says of a container made from `container`: its configuration merged with the image's."""
    config = copy.deepcopy(engine_config("lab", container))
    host = config.pop("HostConfig")
    networking = config.pop("NetworkingConfig")["EndpointsConfig"]
    own = image["Config"]
    identity = "c" * 64
    config["Env"] = [*config["Env"], *(e for e in own["Env"] if e.split("=")[0] not in container["env"])]
    config["Labels"] = {**own["Labels"], **config["Labels"]}
    config.setdefault("Cmd", own["Cmd"])
    config.setdefault("User", own["User"])
    networks = {name: {"Aliases": [*entry["Aliases"], identity[:12]]} for name, entry in networking.items()}
    return {
        "Id": identity,
        "Name": f"/{container['name']}",
        "Image": image["Id"],
        "Config": config,
        "HostConfig": host,
        "NetworkSettings": {"Networks": networks},
    }


def differences(before: dict, after: dict, image: dict = IMAGE, new_image: dict = IMAGE) -> list[dict]:
    return field_differences(desired_fields("lab", after, new_image), current_fields(running(before, image), image))


def test_a_container_equals_its_own_description():
    assert differences(described(), described()) == []


def test_what_a_description_leaves_open_is_the_images():
    container = {"name": "plain", "component": "x", "image": "venice/x:1"}
    plain = complete({"cluster": "lab", "containers": [container]})["containers"][0]
    assert differences(plain, plain) == []


MOUNTS = FULL["mounts"]
CASES = [
    # field changed, new value, fields that differ, what it needs
    ("command", ["other"], ["command"], "recreate"),
    ("command", [], ["command"], "recreate"),
    ("entrypoint", ["other"], ["entrypoint"], "recreate"),
    ("env", {"KAFKA_HEAP": "1g", "KAFKA_PASSWORD": "geheim"}, ["env.KAFKA_HEAP"], "recreate"),
    ("env", {"KAFKA_HEAP": "512m"}, ["env.KAFKA_PASSWORD"], "recreate"),
    ("env", {**FULL["env"], "NEW": 1}, ["env.NEW"], "recreate"),
    ("env", {**FULL["env"], "PATH": "/opt"}, ["env.PATH"], "recreate"),
    ("env", {**FULL["env"], "PATH": "/bin"}, [], ""),
    ("user", "7102:7102", ["user"], "recreate"),
    ("user", "", ["user"], "recreate"),
    ("mounts", MOUNTS[:1], ["mounts./etc/kafka"], "recreate"),
    ("mounts", MOUNTS[::-1], [], ""),
    ("mounts", [{**MOUNTS[0], "read_only": True}, MOUNTS[1]], ["mounts./data"], "recreate"),
    ("mounts", [{**MOUNTS[0], "source": "/data"}, MOUNTS[1]], ["mounts./data"], "recreate"),
    ("ports", FULL["ports"][::-1], [], ""),
    ("ports", FULL["ports"][:1], ["ports.9092/tcp"], "recreate"),
    ("ports", [], ["ports.9092/tcp"], "recreate"),
    ("network", "other", ["network"], "recreate"),
    ("aliases", ["kafka", "broker"], ["aliases"], "recreate"),
    ("hosts", {"db": "10.0.0.8"}, ["hosts.db"], "recreate"),
    ("hosts", {}, ["hosts.db"], "recreate"),
    ("hosts", {"db": "fd00::1"}, ["hosts.db"], "recreate"),
    ("memory", 2 << 30, ["memory"], "update"),
    ("memory", 0, ["memory"], "recreate"),
    ("cpu_shares", 512, ["cpu_shares"], "update"),
    ("cpu_shares", 0, ["cpu_shares"], "recreate"),
    ("ulimits", {"nofile": 65536}, ["ulimits.nofile"], "recreate"),
    ("ulimits", {"nofile": 100000, "nproc": 10}, ["ulimits.nproc"], "recreate"),
    ("ulimits", {}, [], ""),  # the engine may have defaults of its own
    ("health", {"command": ["other"]}, ["health.command"], "recreate"),
    ("health", {**FULL["health"], "interval": 2.5}, ["health.interval"], "recreate"),
    ("health", {**FULL["health"], "retries": 9, "timeout": 9}, ["health.retries", "health.timeout"], "recreate"),
    ("restart", "always", ["restart"], "update"),
    ("restart", "on-failure:3", ["restart"], "update"),
    ("stop_timeout", 90, ["stop_timeout"], "recreate"),
    ("log", {"driver": "json-file", "options": {"max-size": "9m"}}, ["log.options.max-size"], "recreate"),
    ("log", {"driver": "local", "options": {"max-size": "20m"}}, ["log.driver"], "recreate"),
    ("labels", {"venice.endpoints": "{1}"}, ["labels.venice.endpoints"], "recreate"),
    ("labels", {}, ["labels.venice.endpoints"], "recreate"),
    ("instance", "kafka-2", ["labels.venice.instance"], "recreate"),
]


@pytest.mark.parametrize(("field", "value", "fields", "need"), CASES)
def test_each_field(field, value, fields, need):
    found = differences(described(), described(**{field: value}))
    if field == "network":
        found = [entry for entry in found if entry["field"] != "aliases"]  # those of the network it is not on
    assert [entry["field"] for entry in found] == fields
    assert {entry["need"] for entry in found} == ({need} if need else set())
    assert all(entry["reason"] and entry["current"] != entry["desired"] for entry in found if "PASS" not in entry["field"])


# an engine may have ulimits of its own, so one that is no longer described is let be
ONE_WAY = ("ulimits",)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, value, fields, _ in CASES if fields and field not in ONE_WAY])
def test_each_field_back(field, value):
    """From the changed value back: what was added is found when it goes."""
    assert differences(described(**{field: value}), described())


def test_an_image_brings_its_own_environment_and_labels():
    found = differences(described(), described(), IMAGE, NEW_IMAGE)
    assert [(entry["field"], entry["need"]) for entry in found] == [("image", "recreate")]


def test_secret_values_are_masked():
    found = differences(described(), described(env={"KAFKA_HEAP": "512m", "KAFKA_PASSWORD": "other"}))
    assert found[0]["field"] == "env.KAFKA_PASSWORD"
    assert (found[0]["current"], found[0]["desired"]) == ("<secret>", "<secret>")
    found = differences(described(), described(env={**FULL["env"], "API_TOKEN": "tok"}))
    assert (found[0]["current"], found[0]["desired"]) == (None, "<secret>")


@pytest.mark.parametrize(
    ("needs", "status", "rolling", "rolled", "action"),
    [
        ([], None, False, False, "create"),
        ([], None, True, False, "create"),
        ([], "running", False, False, ""),
        ([], "paused", False, False, ""),
        ([], "restarting", False, False, ""),
        ([], "exited", False, False, "start"),
        ([], "created", True, False, "start"),
        ([], "dead", False, False, "recreate"),
        (["update"], "running", False, False, "update"),
        (["update"], "running", True, False, "update"),
        (["update"], "exited", False, False, "start"),
        (["restart"], "running", False, False, "restart"),
        (["restart"], "running", True, False, "pending"),
        (["restart"], "running", True, True, "restart"),
        (["restart"], "paused", True, False, "pending"),
        (["restart"], "restarting", True, False, "restart"),
        (["restart"], "exited", True, False, "start"),
        (["recreate"], "running", False, False, "recreate"),
        (["recreate"], "running", True, False, "pending"),
        (["recreate"], "running", True, True, "recreate"),
        (["recreate"], "exited", True, False, "recreate"),
        (["update", "recreate", "restart"], "running", False, False, "recreate"),
        (["update", "restart"], "running", False, False, "restart"),
    ],
)
def test_decide(needs, status, rolling, rolled, action):
    assert decide([{"need": need} for need in needs], status, rolling, rolled) == action


@pytest.mark.parametrize(
    ("wanted", "seen", "fields"),
    [
        ({}, None, []),
        ({}, {"/a": "1"}, []),
        ({"/a": "1"}, {"/a": "1"}, []),
        ({"/a": "1"}, {"/a": "1", "/b": "2"}, []),
        ({"/a": "1"}, {"/a": "2"}, ["files./a"]),
        ({"/a": "1", "/b": "2"}, {"/a": "1"}, ["files./b"]),
        ({"/a": "1"}, None, ["files./a"]),
    ],
)
def test_files_that_a_container_has_not_read(wanted, seen, fields):
    found = file_differences(wanted, seen, set())
    assert [entry["field"] for entry in found] == fields
    assert all(entry["need"] == "restart" for entry in found)


def test_a_secret_files_hash_is_not_shown():
    found = file_differences({"/a": "1" * 64}, {"/a": "2" * 64}, {"/a"})
    assert (found[0]["current"], found[0]["desired"]) == ("<secret>", "<secret>")


def test_a_document_survives_packing():
    document = {"cluster": "lab", "files": [{"path": "/a", "content": "ä\n" * 1000, "component": "x"}]}
    packed = encode_document(document)
    assert decode_document(packed) == document
    assert len(packed) < 300
    with pytest.raises(DocumentError, match="not a packed document"):
        decode_document("x")


CONTAINER = {"name": "a", "component": "x", "image": "i"}
WRONG = [
    ({}, "document.cluster: is missing"),
    ({"cluster": "l b"}, "'l b' is not a name"),
    ({"cluster": "lab", "container": []}, "document.container: is unknown"),
    ({"cluster": "lab", "containers": {}}, "document.containers: is a mapping, not a list"),
    ({"cluster": "lab", "containers": ["a"]}, r"containers\[0\]: is text, not a mapping"),
    ({"cluster": "lab", "containers": [{"name": "ab", "component": "x"}]}, "containers.ab.image: is missing"),
    ({"cluster": "lab", "files": [{"path": "a", "content": "", "component": "x"}]}, "'a' is not an absolute path"),
    ({"cluster": "lab", "files": [{"path": "/a/../b", "content": "", "component": "x"}]}, "not an absolute path"),
    ({"cluster": "lab", "files": [{"path": "/a", "content": 5, "component": "x"}]}, "files./a.content: is a number"),
    ({"cluster": "lab", "directories": [{"path": "/a", "mode": 493, "component": "x"}]}, "493 is not a mode"),
]
WRONG_CONTAINERS = [
    ({"memory": "1g"}, "containers.ab.memory: '1g' is not a whole number"),
    ({"memory": True}, "True is not a whole number"),
    ({"ports": [{"host": 70000, "container": 80}]}, "70000 is not a port"),
    ({"ports": [{"host": 80}]}, r"ports\[0\].container: is missing"),
    ({"ports": [{"host": 80, "container": 80, "protocol": "sctp"}]}, "'sctp' is none of tcp, udp"),
    ({"ports": [{"host": 80, "container": 80}, {"host": 80, "container": 81}]}, "80 is published by ab too"),
    ({"restart": "sometimes"}, "'sometimes' is not no, always"),
    ({"files": {"/a": "reload"}}, "'reload' is none of restart, none"),
    ({"env": ["A=1"]}, "containers.ab.env: is a list, not a mapping"),
    ({"env": {"A": {}}}, "is a mapping, not text"),
    ({"command": "run it"}, "containers.ab.command: is text, not a list"),
    ({"health": {"command": ["x"], "interval": "10s"}}, "'10s' is not a number of seconds"),
    ({"health": {"cmd": ["x"]}}, "containers.ab.health.cmd: is unknown"),
    ({"rolling": "yes"}, "'yes' is not true or false"),
    ({"name": "ab.old"}, "are kept for replacing a container"),
]


@pytest.mark.parametrize(
    ("document", "message"),
    WRONG
    + [
        ({"cluster": "lab", "containers": [{"name": "ab", "component": "x", "image": "i", **change}]}, message)
        for change, message in WRONG_CONTAINERS
    ],
)
def test_a_wrong_document_is_refused(document, message):
    with pytest.raises(DocumentError, match=message):
        complete(document)


def test_all_problems_are_told_at_once():
    container = {"name": "ab", "component": "x", "memory": "1g", "enviroment": {}}
    with pytest.raises(DocumentError) as caught:
        complete({"cluster": "lab", "containers": [container, container]})
    assert len(caught.value.problems) == 6


def test_what_runs_on_hosts_is_python_3_9():
    for path in [*paths.resource("plugins").glob("modules/*.py"), *paths.resource("plugins").glob("module_utils/*.py")]:
        ast.parse(path.read_text(), feature_version=(3, 9))


def test_an_entrypoint_takes_the_images_command_away_as_engines_do():
    image = {**IMAGE, "Config": {**IMAGE["Config"], "Entrypoint": ["/start.sh"]}}
    own = described(entrypoint=["bash", "-c", "exec serve"], command=[])
    wanted = desired_fields("lab", own, image)
    assert (wanted["entrypoint"], wanted["command"]) == (["bash", "-c", "exec serve"], [])
    assert engine_config("lab", own)["Entrypoint"] == ["bash", "-c", "exec serve"]
    assert "Cmd" not in engine_config("lab", own)
    plain = described(command=[])
    assert (desired_fields("lab", plain, image)["entrypoint"], desired_fields("lab", plain, image)["command"]) == (["/start.sh"], ["serve"])
    assert "Entrypoint" not in engine_config("lab", plain)
