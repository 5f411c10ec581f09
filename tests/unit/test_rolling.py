"""What a restart is made of, when a broker may go down, and when it counts as back."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from venice import kafka, rolling
from venice.cli import cli
from venice.cluster import Cluster
from venice.errors import InputError, VeniceError
from venice.kafka import Partition
from venice.selection import select

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lab() -> Cluster:
    found = Cluster.load(ROOT / "inventory" / "lab")
    for host in found.hosts:
        containers = [{"name": i.container, "cluster": "lab", "status": "running"} for i in found.instances() if i.host == host]
        found.facts[host] = {"containers": containers}
    return found


def broker(cluster: Cluster, host: str) -> dict:
    """What the facts say of a host's broker."""
    return next(c for c in cluster.facts[host]["containers"] if c["name"] == "venice-kafka")


class Brokers:
    """Stands for the brokers: who is registered, who is in sync, and whether a broker may go."""

    def __init__(self, registered=(1, 2, 3), isr=(1, 2, 3), allowed=True):
        self.registered, self.isr, self.allowed = registered, isr, allowed

    def controller(self):
        return 2

    def can_restart(self, node):
        return self.allowed, "a-0 would have too few"

    def brokers(self):
        return dict.fromkeys(self.registered, "")

    def partitions(self):
        return [Partition("a", 0, 1, (1, 2, 3), self.isr)]


def asked(monkeypatch, brokers: Brokers) -> None:
    monkeypatch.setattr(kafka, "Kafka", SimpleNamespace(of=lambda cluster: brokers))


def test_what_is_stopped_is_started_and_the_rest_restarted_in_dependency_order(lab):
    broker(lab, "lab-2")["status"] = "exited"
    found = rolling.parts(lab, select(lab, ["connect", "kafka"]))
    assert found == [
        {"component": "kafka", "stopped": {"lab-2": ["venice-kafka"]}, "running": {"lab-1": ["venice-kafka"], "lab-3": ["venice-kafka"]}},
        {"component": "connect", "stopped": {}, "running": {"lab-2": ["venice-connect"], "lab-3": ["venice-connect"]}},
    ]


def test_a_container_that_was_never_made_is_named_before_anything_stops(lab):
    lab.facts["lab-3"]["containers"] = []
    with pytest.raises(InputError, match=r"there is no venice-kafka on lab-3\n  nothing was restarted"):
        rolling.parts(lab, select(lab, ["kafka"]))


def test_another_cluster_s_container_does_not_count(lab):
    broker(lab, "lab-3")["cluster"] = "other"
    with pytest.raises(InputError, match="venice-kafka on lab-3"):
        rolling.parts(lab, select(lab, ["kafka@lab-3"]))


def test_the_active_controller_goes_last(lab, monkeypatch):
    asked(monkeypatch, Brokers())
    assert [i.host for i in rolling.order(lab, select(lab, ["kafka"]))] == ["lab-1", "lab-3", "lab-2"]


def test_a_broker_that_may_not_go_names_the_one_that_is_down(lab, monkeypatch):
    asked(monkeypatch, Brokers(registered=(1, 3), allowed=False))
    with pytest.raises(VeniceError, match="while kafka@lab-2 is down: a-0 would") as error:
        rolling.wait_may_restart(lab, select(lab, ["kafka@lab-1"])[0], timeout=0)
    assert "venice restart kafka@lab-2" in error.value.remedy


def test_replicas_that_catch_up_are_another_reason(lab, monkeypatch):
    asked(monkeypatch, Brokers(allowed=False))
    with pytest.raises(VeniceError, match="may not restart: a-0"):
        rolling.wait_may_restart(lab, select(lab, ["kafka@lab-1"])[0], timeout=0)


def test_a_broker_is_back_when_its_replicas_are_in_sync(lab, monkeypatch):
    [chosen] = select(lab, ["kafka@lab-1"])
    asked(monkeypatch, Brokers())
    rolling.wait_back(lab, chosen, None, timeout=0)
    asked(monkeypatch, Brokers(isr=(2, 3)))
    with pytest.raises(VeniceError, match=r"healthy, but 1 of its replicas are not in sync \(a-0\)"):
        rolling.wait_back(lab, chosen, None, timeout=0)
    asked(monkeypatch, Brokers(registered=(2, 3)))
    with pytest.raises(VeniceError, match="healthy, but is not registered"):
        rolling.wait_back(lab, chosen, None, timeout=0)


def test_hosts_outside_the_run_are_left_out(lab):
    chosen = select(lab, ["kafka"])
    assert [i.host for i in rolling.chosen_on(chosen, ["lab-3"])] == ["lab-3"]
    with pytest.raises(InputError, match="none of what was named"):
        rolling.chosen_on(chosen, ["lab-9"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], "what to restart is not named"), (["konnect"], "did you mean connect"), (["kafka", "postgres@lab-1"], "it runs on lab-3")],
)
def test_without_a_terminal_what_is_meant_must_be_named(names, expected):
    result = CliRunner().invoke(cli, ["restart", "-i", str(ROOT / "inventory" / "lab"), *names])
    assert isinstance(result.exception, InputError)
    assert expected in str(result.exception)
