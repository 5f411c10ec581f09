"""Tests on lab hosts: real machines as far as software can tell, over SSH."""

from collections.abc import Iterator

import docker
import pytest

from tests.lab.support import ROOT, venice, wait_until, whole
from venice import lab as lab_module
from venice.cluster import Cluster

# Whatever cluster an earlier run or another checkout left there: `venice destroy` knows only its own.
_REMOVE = """
if command -v docker > /dev/null; then
  docker ps --all --quiet --filter label=venice.cluster | xargs --no-run-if-empty docker rm --force > /dev/null
  docker network ls --quiet --filter label=venice.cluster | xargs --no-run-if-empty docker network rm > /dev/null
fi
rm -rf /etc/venice /srv/venice /var/lib/venice
"""


@pytest.fixture(scope="session")
def lab() -> Iterator[list[str]]:
    """The names of three lab hosts that are up. They stay up after the tests."""
    lab_module.up(3)
    yield ["lab-1", "lab-2", "lab-3"]


@pytest.fixture(scope="module")
def undeployed(lab: list[str]) -> None:
    """Lab hosts without a deployment; their Docker and images, when there are any, stay."""
    for name in lab:
        left = lab_module.run(name, ["sudo", "sh", "-c", _REMOVE])
        assert left.returncode == 0, left.stderr


@pytest.fixture(scope="module")
def deployed(lab: list[str]) -> Cluster:
    """The lab's cluster as `inventory/lab` says, whatever was there before; a deployment that finds it whole takes seconds."""
    venice("deploy", "-i", "lab")
    wait_until(whole, 60, "everything healthy")
    return Cluster.load(ROOT / "inventory" / "lab")


@pytest.fixture(scope="session")
def spare_host(lab: list[str]) -> Iterator[str]:
    """A fourth host for what would disturb the other three; removed after the tests."""
    lab_module.up(4)
    yield "lab-4"
    client = docker.from_env()
    client.containers.get("lab-4").remove(force=True)
    client.volumes.get("lab-4-docker").remove()
