"""Tests on lab hosts: real machines as far as software can tell, over SSH."""

import time
from collections.abc import Iterator
from contextlib import suppress

import docker
import pytest

from tests.lab.support import ROOT, starts, venice, whole
from tests.waiting import wait_until
from venice import lab as lab_module
from venice.cluster import Cluster

COMES_BACK_SECONDS = 120
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
    """The names of three lab hosts that are up, without what a run that was interrupted left. They stay up after the tests."""
    lab_module.up(3)
    names = ["lab-1", "lab-2", "lab-3"]
    _clear(names)
    yield names


@pytest.fixture(scope="module")
def undeployed(lab: list[str]) -> None:
    """Lab hosts without a deployment; their Docker and images, when there are any, stay."""
    _clear(lab)


def _clear(names: list[str]) -> None:
    for name in names:
        left = lab_module.run(name, ["sudo", "sh", "-c", _REMOVE])
        assert left.returncode == 0, left.stderr


@pytest.fixture(scope="session")
def left() -> set[str]:
    """The ids of the containers that the last deployment for the fixture `deployed` left."""
    return set()


@pytest.fixture(scope="module")
def deployed(lab: list[str], left: set[str]) -> Cluster:
    """The lab's cluster as `inventory/lab` says, whatever was there before. It is not deployed again where it still stands."""
    cluster = Cluster.load(ROOT / "inventory" / "lab")

    def containers() -> set[str]:
        return {identity for identity, _ in starts(cluster).values()}

    def comes_back() -> bool:
        """What the tests before have restarted, or cut off, needs no deployment."""
        deadline = time.monotonic() + COMES_BACK_SECONDS
        while not (found := whole()) and time.monotonic() < deadline:
            pass  # the question takes its time
        return found

    if not left or containers() != left or not comes_back():
        venice("deploy", "-i", "lab")
        wait_until(whole, "everything healthy")
        left.clear()
        left.update(containers())
    return cluster


@pytest.fixture(scope="session")
def spare_host(lab: list[str]) -> Iterator[str]:
    """A fourth host for what would disturb the other three, as bare as it was made; removed after the tests."""

    def remove() -> None:
        client = docker.from_env()
        with suppress(docker.errors.NotFound):
            client.containers.get("lab-4").remove(force=True)
        with suppress(docker.errors.NotFound):
            client.volumes.get("lab-4-docker").remove()

    remove()  # what a run that was interrupted left
    lab_module.up(4)
    yield "lab-4"
    remove()
