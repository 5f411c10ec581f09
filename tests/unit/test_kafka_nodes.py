"""Node ids, the quorum's first members and the cluster id: what hosts recorded wins over the inventory's order."""

import importlib.util
import uuid

import pytest

from venice import paths

_SPEC = importlib.util.spec_from_file_location("venice_kafka", paths.resource("plugins") / "filter" / "venice_kafka.py")
kafka = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(kafka)


def recorded(host: str, node: int, name: str = "kafka", cluster: str = "abc") -> dict:
    return {host: {f"/srv/venice/{name}/meta.properties": f"#\nversion=1\nnode.id={node}\ncluster.id={cluster}\n"}}


def ids(nodes: list[dict]) -> dict:
    return {(n["host"], n["name"]): n["node_id"] for n in nodes}


@pytest.mark.parametrize(
    ("hosts", "per_host", "records", "expected"),
    [
        (["a", "b", "c"], 1, {}, {("a", "kafka"): 1, ("b", "kafka"): 2, ("c", "kafka"): 3}),
        (["a"], 3, {}, {("a", "kafka-1"): 1, ("a", "kafka-2"): 2, ("a", "kafka-3"): 3}),
        # reordered hosts keep their ids
        (
            ["c", "a", "b"],
            1,
            recorded("a", 1) | recorded("b", 2) | recorded("c", 3),
            {("c", "kafka"): 3, ("a", "kafka"): 1, ("b", "kafka"): 2},
        ),
        # a host that is new gets the lowest free id, wherever it stands
        (["d", "a", "c"], 1, recorded("a", 1) | recorded("c", 3), {("d", "kafka"): 2, ("a", "kafka"): 1, ("c", "kafka"): 3}),
        # a host that left the inventory holds no id
        (["a", "b"], 1, recorded("a", 7) | recorded("x", 1), {("a", "kafka"): 7, ("b", "kafka"): 1}),
    ],
)
def test_ids(hosts, per_host, records, expected):
    assert ids(kafka.nodes(hosts, per_host, 3, records)) == expected


def test_only_the_lowest_ids_are_controllers():
    nodes = kafka.nodes(["a", "b", "c", "d"], 1, 3, recorded("d", 1))
    assert {n["host"] for n in nodes if n["controller"]} == {"d", "a", "b"}


def test_offsets_are_consecutive():
    assert [n["offset"] for n in kafka.nodes(["a"], 3, 3, {})] == [0, 1, 2]


def test_cluster_id_is_the_recorded_one():
    assert kafka.cluster_id(recorded("a", 1, cluster="xyz")) == "xyz"
    assert kafka.cluster_id({}) == ""


@pytest.mark.parametrize("text", ["ffffffff-ffff-4fff-bfff-ffffffffffff", "f8000000-0000-4000-8000-000000000000"])
def test_uuids_never_begin_with_a_hyphen(text):
    found = kafka.kafka_uuid(uuid.UUID(text))
    assert len(found) == 22
    assert not found.startswith("-")


def test_every_node_computes_the_same_first_quorum():
    voters = [{"node_id": n, "address": f"h{n}", "ports": {"controller": 9192}} for n in (1, 2, 3)]
    text = kafka.initial_controllers(voters, "cluster")
    assert text == kafka.initial_controllers(voters, "cluster")
    assert [part.rsplit(":", 1)[0] for part in text.split(",")] == ["1@h1:9192", "2@h2:9192", "3@h3:9192"]
    assert len({part.rsplit(":", 1)[1] for part in text.split(",")}) == 3
    assert text != kafka.initial_controllers(voters, "another")
