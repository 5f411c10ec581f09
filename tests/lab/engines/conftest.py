"""The lab with every engine on it at once: Flink as the inventory has it, Spark, ZooKeeper and Pinot on all three hosts."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab.support import ROOT, venice
from venice import lab as machines
from venice.cluster import Cluster

ADDED = ("zookeeper", "pinot", "spark")
# Only what is theirs: others may have containers of their own there.
_REMOVE = """
for component in zookeeper pinot spark spark_job; do
  docker ps --all --quiet --filter label=venice.component=$component | xargs --no-run-if-empty docker rm --force > /dev/null
done
for folder in /srv/venice /etc/venice; do rm -rf $folder/zookeeper $folder/pinot* $folder/spark-*; done
"""


@pytest.fixture(scope="package")
def inventory(lab: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's inventory with more groups: the same cluster, with its secrets and records."""
    original = ROOT / "inventory" / "lab"
    folder = tmp_path_factory.mktemp("inventory") / "lab"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns(".venice"))
    (folder / ".venice").symlink_to((original / ".venice").resolve())
    document = yaml.safe_load((folder / "hosts.yml").read_text())
    for group in ADDED:
        document["all"]["children"][group] = {"hosts": dict.fromkeys(document["all"]["hosts"])}
    (folder / "hosts.yml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture(scope="package")
def cluster(inventory: Path) -> Iterator[Cluster]:
    """The cluster with all engines; afterwards without those that were added, and without their data."""
    found = Cluster.load(inventory)
    try:
        venice("deploy", "-i", str(inventory))
        yield found
    finally:
        for host in found.hosts:
            done = machines.run(host, ["sudo", "sh", "-c", _REMOVE])
            assert done.returncode == 0, done.stderr
