"""What is found on hosts before anything is changed: facts in, findings out."""

import copy
import platform
from pathlib import Path

import pytest

from venice.cluster import Cluster
from venice.preflight import assess, empty

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ["lab-1", "lab-2", "lab-3"]
ADDRESS = {f"lab-{n}": f"192.168.61.1{n}" for n in (1, 2, 3)}


def facts(host: str) -> dict:
    """What `venice_facts` answers for a host on which all is well."""
    return {
        "os": {"id": "debian", "version_id": "12", "pretty": "Debian 12"},
        "arch": platform.machine(),
        "uid": 0,
        "memory": {"total": 8 << 30, "available": 6 << 30},
        "disk": {"/srv/venice": {"free": 50 << 30, "total": 80 << 30}},
        "addresses": ["127.0.0.1", ADDRESS[host]],
        "ports": {"9092": {"free": True, "held_by": "", "container": None}},
        "resolve": {name: [address] for name, address in ADDRESS.items()},
        "records": {},
        "engine": {"installed": True, "running": True, "version": "26.1", "sdk": "7.1"},
        "images": {},
        "containers": [],
        "clock": {"offset": 0.0, "error": 0.05},
    }


def meta(node: int, cluster: str = "abc") -> dict:
    return {"/srv/venice/kafka/meta.properties": f"node.id={node}\ncluster.id={cluster}\n"}


def change(host: str, *path_and_value):
    """A mutation of one host's facts."""
    *path, value = path_and_value

    def apply(all_facts):
        target = all_facts[host]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return apply


def replace(host: str, value: dict):
    return lambda all_facts: all_facts.update({host: value})


CASES = {
    "unreachable": (
        replace("lab-2", {"unreachable": "could not be sent over ssh: No route to host"}),
        ["lab-2", "does not answer over SSH as venice@192.168.61.12:22: No route to host", "--limit '!lab-2'"],
    ),
    "no sudo": (replace("lab-1", {"failed": "sudo: a password is required"}), ["lab-1", "may not use sudo", "ansible_become_password"]),
    "no python": (replace("lab-1", {"failed": "/usr/bin/python3: not found"}), ["lab-1", "cannot be examined", "apt-get install python3"]),
    "not root": (change("lab-1", "uid", 1000), ["did not become root"]),
    "unknown system without engine": (
        lambda f: f["lab-1"].update(os={"id": "arch", "version_id": "", "pretty": "Arch"}, engine={"installed": False, "running": False}),
        ["runs Arch and has no Docker engine", "install Docker yourself"],
    ),
    "other architecture": (change("lab-3", "arch", "riscv64"), ["is a riscv64 machine", "venice_image_registry"]),
    "too little memory": (change("lab-3", "memory", "total", 1 << 30), ["lab-3", "has 1024 MiB of memory", "venice-kafka"]),
    "full disk": (change("lab-3", "disk", "/srv/venice", "free", 1 << 30), ["/srv/venice has 1024 MiB free"]),
    "port taken": (
        change("lab-1", "ports", "9092", {"free": False, "held_by": "nginx (pid 7)", "container": None}),
        ["lab-1", "port 9092 of kafka is held by nginx (pid 7)", "kafka_port"],
    ),
    "port of one of many processes": (
        change("lab-1", "ports", "8082", {"free": False, "held_by": "nginx (pid 7)", "container": None}),
        ["port 8082 of flink-jobmanager is held by nginx (pid 7)", "set flink_ui_port to another"],
    ),
    "port of another container": (
        change("lab-1", "ports", "9092", {"free": False, "held_by": "container redpanda", "container": "redpanda"}),
        ["held by container redpanda"],
    ),
    "clock off": (change("lab-2", "clock", {"offset": 9.0, "error": 0.1}), ["lab-2", "its clock is +9.0 s off", "timedatectl"]),
    "address does not resolve": (
        change("lab-2", "resolve", "lab-3", "Name or service not known"),
        ["lab-2", "cannot resolve", "the address of lab-3"],
    ),
    "address leads to itself": (change("lab-2", "resolve", "lab-3", ["127.0.1.1"]), ["lab-2", "leads to itself"]),
    "address leads to another": (change("lab-2", "resolve", "lab-3", ["192.168.61.11"]), ["leads to lab-1 from there"]),
    "foreign container of our name": (
        change("lab-1", "containers", [{"name": "venice-kafka", "cluster": "production"}]),
        ["venice-kafka is there that belongs to cluster production"],
    ),
    "container nobody labelled": (change("lab-1", "containers", [{"name": "venice-kafka", "cluster": None}]), ["was not made by Venice"]),
    "storage of two clusters": (
        lambda f: (f["lab-1"].update(records=meta(1)), f["lab-2"].update(records=meta(2, "other"))),
        ["different Kafka clusters", "abc on lab-1", "other on lab-2"],
    ),
    "node id twice": (
        lambda f: (f["lab-1"].update(records=meta(1)), f["lab-2"].update(records=meta(1))),
        ["node id 1 is recorded more than once", "a disk was copied"],
    ),
}


def seen(mutation=lambda f: None) -> Cluster:
    """The lab's cluster with facts of hosts on which all is well but for the mutation."""
    all_facts = {host: copy.deepcopy(facts(host)) for host in HOSTS}
    mutation(all_facts)
    plain = Cluster.load(ROOT / "inventory" / "lab")
    return Cluster({h: plain.given(h) for h in HOSTS}, plain.groups, plain._loader, all_facts)


def judged(mutation=lambda f: None, purpose: str = "deploy") -> list:
    return assess(seen(mutation), HOSTS, purpose)


def test_nothing_stands_against_good_hosts():
    assert judged() == []


@pytest.mark.parametrize("name", CASES)
def test_finding(name):
    mutation, expected = CASES[name]
    text = "\n".join(f"{f.where}: {f.what} → {f.remedy}" for f in judged(mutation))
    for part in expected:
        assert part in text


def test_all_findings_at_once():
    def mutation(f):
        for name in ("unreachable", "port taken", "full disk"):
            CASES[name][0](f)

    assert {f.where for f in judged(mutation)} == set(HOSTS)


def test_own_container_may_hold_its_port():
    held = {"free": False, "held_by": "container venice-kafka", "container": "venice-kafka"}
    assert judged(change("lab-1", "ports", "9092", held)) == []


def test_a_slow_answer_is_no_wrong_clock():
    assert judged(change("lab-2", "clock", {"offset": 2.0, "error": 1.5})) == []


def test_stopping_asks_for_contact_and_engine_only():
    assert judged(CASES["full disk"][0], "stop") == []
    assert "no running Docker engine" in judged(change("lab-1", "engine", "running", False), "stop")[0].what


def test_starting_asks_for_the_containers_too():
    found = judged(change("lab-3", "containers", [{"name": "venice-kafka", "cluster": "lab"}]), "start")
    what = next(f for f in found if f.where == "lab-3").what
    assert what == "has no venice-connect, venice-flink-taskmanager, venice-postgres, venice-schema-registry"


def test_where_nothing_is_starting_asks_for_what_a_deployment_does():
    assert empty(seen(), HOSTS)
    assert judged(purpose="start") == []
    assert "free" in judged(CASES["full disk"][0], "start")[0].remedy
    assert empty(seen(change("lab-1", "containers", [{"name": "x", "cluster": "other"}])), HOSTS)
    assert empty(seen(change("lab-1", "engine", {"installed": False, "running": False})), HOSTS)


@pytest.mark.parametrize(
    "mutation",
    [
        change("lab-1", "containers", [{"name": "venice-kafka", "cluster": "lab"}]),
        change("lab-2", "engine", {"installed": True, "running": False}),
        replace("lab-2", {"unreachable": "no route"}),
    ],
)
def test_a_host_that_has_or_may_have_containers_is_not_empty(mutation):
    assert not empty(seen(mutation), HOSTS)


def test_some_hosts_alone_do_not_tell_that_nothing_is_there():
    assert not empty(seen(), HOSTS[:2])
