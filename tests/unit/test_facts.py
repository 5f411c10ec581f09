"""What `venice_facts` and `venice_wait` make of a host's tables and an engine's answers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import tarfile

import pytest
import venice_facts
import venice_image_load
import venice_wait
from ansible.module_utils import venice_ports
from ansible.module_utils.venice_docker import Engine, EngineError, demultiplex

NO_ENGINE = "/nonexistent/docker.sock"
ASKED = {
    "ports": [],
    "resolve": [{"name": "here", "address": "localhost"}, {"name": "nowhere", "address": "nowhere.invalid"}],
    "records": [],
    "disk_paths": ["/nonexistent/deep/down"],
    "images": True,
}


def test_a_host_without_docker_is_described(tmp_path):
    (tmp_path / "kafka.json").write_text("{}")
    asked = {**ASKED, "records": [f"{tmp_path}/*.json", f"{tmp_path}/*.none"]}
    found = venice_facts.gather(asked, Engine(NO_ENGINE))
    assert found["engine"]["running"] is False
    assert "No such file" in found["engine"]["error"]
    assert (found["images"], found["layers"], found["containers"]) == ({}, [], [])
    assert found["records"] == {f"{tmp_path}/kafka.json": "{}"}
    assert found["disk"]["/nonexistent/deep/down"]["free"] > 0
    assert found["memory"]["total"] >= found["memory"]["available"] > 0
    assert "127.0.0.1" in found["addresses"]
    assert found["resolve"]["here"]
    assert isinstance(found["resolve"]["nowhere"], str)
    assert found["time"] > 1e9


def test_a_port_held_by_a_process_names_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = venice_facts.look_at_ports([{"port": port, "container": "x"}], [])[str(port)]
    assert found["free"] is False
    assert found["container"] is None
    assert "pid" in found["held_by"]


def test_a_free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert venice_facts.look_at_ports([{"port": port}], [])[str(port)]["free"] is True


LISTED = [
    {"Names": ["/venice-kafka"], "Ports": [{"IP": "10.0.0.1", "PublicPort": 9092, "Type": "tcp"}, {"PrivatePort": 1}]},
    {"Names": ["/stopped"], "Ports": []},
]


@pytest.mark.parametrize(
    ("port", "address", "container"),
    [
        (9092, "", "venice-kafka"),
        (9092, "10.0.0.1", "venice-kafka"),
        (9092, "10.0.0.2", None),
        (9093, "", None),
    ],
)
def test_a_published_port_names_its_container(port, address, container):
    held = venice_ports.holder(port, address, "tcp", {}, venice_ports.published(LISTED))
    assert (held["container"] if held else None) == container


@pytest.mark.parametrize(
    ("status", "policy", "code", "restarts", "hopeless"),
    [
        ("running", "no", 0, 0, False),
        ("restarting", "always", 1, 9, False),
        ("paused", "no", 0, 0, False),
        ("created", "always", 0, 0, True),
        ("dead", "always", 0, 0, True),
        ("exited", "no", 1, 0, True),
        ("exited", "unless-stopped", 0, 0, True),
        ("exited", "on-failure:3", 1, 2, False),
        ("exited", "on-failure:3", 1, 3, True),
        ("exited", "on-failure:0", 1, 3, False),
        ("exited", "on-failure:3", 0, 0, True),
    ],
)
def test_when_waiting_is_hopeless(status, policy, code, restarts, hopeless):
    name, _, limit = policy.partition(":")
    current = {
        "State": {"Status": status, "ExitCode": code},
        "RestartCount": restarts,
        "HostConfig": {"RestartPolicy": {"Name": name, "MaximumRetryCount": int(limit or 0)}},
    }
    assert venice_wait.hopeless(current) is hopeless


@pytest.mark.parametrize(
    ("check", "command"),
    [
        ({}, None),
        ({"Test": ["NONE"]}, None),
        ({"Test": ["CMD", "a", "b"]}, ["a", "b"]),
        ({"Test": ["CMD-SHELL", "a b"]}, ["/bin/sh", "-c", "a b"]),
    ],
)
def test_health_command(check, command):
    assert venice_wait.health_command(check) == command


def test_an_explanation_has_cause_and_log():
    entry = {"healthy": False, "seconds": 9, "output": "no leader", "status": "exited", "exit_code": 137}
    entry.update(oom_killed=True, restarts=2, log=["one", "two"])
    text = venice_wait.explain({"good": {"healthy": True}, "kafka": entry})
    assert text.startswith("kafka is not healthy after 9 s (exited with code 137, killed for lack of memory, restarted 2 ")
    assert text.endswith("    one\n    two")
    assert "memory" in venice_wait.remedy({"kafka": entry})


@pytest.mark.parametrize(
    ("stacks", "there", "needed"),
    [
        ([["a", "b"]], set(), ["a", "b"]),
        ([["sha256:a", "sha256:b"]], {("a",)}, ["b"]),
        ([["a", "b"], ["a", "c"]], set(), ["a", "b", "c"]),
        ([["a", "b"]], {("a",), ("a", "b")}, []),
        # a layer on other parents is of no use to the engine
        ([["a", "b"]], {("b",)}, ["a", "b"]),
    ],
)
def test_layers_that_an_engine_needs(stacks, there, needed):
    assert venice_image_load.needed_layers([{"layers": stack} for stack in stacks], there) == needed


def test_an_archive_has_no_empty_piece(tmp_path):
    """One would end the request on hosts with an older requests library, and the archive half way."""
    config, layer = b"{}", b"x" * 1024
    digest = hashlib.sha256(layer).hexdigest()
    (tmp_path / f"{digest}.tar").write_bytes(layer)
    image = {"ref": "a:1", "id": hashlib.sha256(config).hexdigest(), "config": base64.b64encode(config).decode()}
    image["layers"] = [f"sha256:{digest}"]
    pieces = list(venice_image_load.archive([image], [tmp_path / f"{digest}.tar"]))
    assert all(pieces)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        assert tar.getnames() == [f"{image['id']}.json", f"{digest}.tar", "manifest.json"]
        manifest = json.loads(tar.extractfile("manifest.json").read())
    assert manifest == [{"Config": f"{image['id']}.json", "RepoTags": ["a:1"], "Layers": [f"{digest}.tar"]}]


def test_frames_of_a_stream():
    assert demultiplex(b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\x03two") == b"onetwo"


def test_no_engine_is_an_engine_error():
    with pytest.raises(EngineError, match="no Docker engine answers at /nonexistent"):
        Engine(NO_ENGINE).containers()
