"""Tests on lab hosts: real machines as far as software can tell, over SSH."""

from collections.abc import Iterator

import docker
import pytest

from venice import lab as lab_module


@pytest.fixture(scope="session")
def lab() -> Iterator[list[str]]:
    """The names of three lab hosts that are up. They stay up after the tests."""
    lab_module.up(3)
    yield ["lab-1", "lab-2", "lab-3"]


@pytest.fixture(scope="session")
def spare_host(lab: list[str]) -> Iterator[str]:
    """A fourth host for what would disturb the other three; removed after the tests."""
    lab_module.up(4)
    yield "lab-4"
    client = docker.from_env()
    client.containers.get("lab-4").remove(force=True)
    client.volumes.get("lab-4-docker").remove()
