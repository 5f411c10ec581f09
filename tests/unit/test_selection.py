"""The names that people give to what they mean."""

from pathlib import Path

import pytest

from venice.cluster import Cluster
from venice.errors import InputError
from venice.selection import known, select

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lab() -> Cluster:
    return Cluster.load(ROOT / "inventory" / "lab")


@pytest.fixture(scope="module")
def single() -> Cluster:
    return Cluster.load(ROOT / "inventory" / "single")


def where(cluster: Cluster, *names: str) -> list[str]:
    return [f"{i.name}@{i.host}" for i in select(cluster, names)]


def test_a_component_an_instance_a_host_and_one_of_several(lab, single):
    assert where(lab, "kafka") == ["kafka@lab-1", "kafka@lab-2", "kafka@lab-3"]
    assert where(lab, "connect@lab-3") == ["connect@lab-3"]
    assert where(lab, "lab-3") == ["kafka@lab-3", "schema-registry@lab-3", "postgres@lab-3", "connect@lab-3", "flink-taskmanager@lab-3"]
    assert where(single, "kafka-2") == where(single, "venice-kafka-2") == where(single, "kafka-2@lab-1") == ["kafka-2@lab-1"]
    assert where(lab, "schema_registry") == where(lab, "schema-registry") == ["schema-registry@lab-2", "schema-registry@lab-3"]


def test_each_once_and_in_dependency_order(lab):
    chosen = where(lab, "connect", "kafka", "lab-2")
    assert len(chosen) == len(set(chosen))
    assert chosen.index("kafka@lab-3") < chosen.index("connect@lab-2")
    assert select(lab, ["all"]) == [i for c in lab.order for i in lab.instances(c)]
    assert select(lab, []) == []


def test_unknown_names_suggest_the_nearest(lab):
    with pytest.raises(InputError, match="did you mean kafka"):
        select(lab, ["kafak"])
    with pytest.raises(InputError, match="postgres does not run on lab-1\n  it runs on lab-3"):
        select(lab, ["postgres@lab-1"])
    with pytest.raises(InputError, match="did you mean lab-1"):
        select(lab, ["lab1"])
    with pytest.raises(InputError, match="no component, instance or host"):
        select(lab, ["kafka", "zookeeper"])


def test_every_name_that_is_offered_is_understood(lab, single):
    for cluster in (lab, single):
        assert all(select(cluster, [name]) for name in known(cluster))
    assert {"kafka", "lab-3", "connect@lab-3", "all"} <= set(known(lab))
    assert {"kafka-1", "kafka-3"} <= set(known(single))
