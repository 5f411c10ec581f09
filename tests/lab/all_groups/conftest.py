"""The lab with every group filled that its images can be built for: Spark, ZooKeeper, Pinot and Hazelcast on all three hosts, Redis and
live state on one each, beside what the lab's inventory has."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab.support import HOSTS, ROOT, on, venice
from venice.cluster import Cluster

ADDED = {"zookeeper": HOSTS, "pinot": HOSTS, "spark": HOSTS, "hazelcast": HOSTS, "redis": ["lab-1"], "live": ["lab-2"]}
MAPS = [{"topic": name, "map": name} for name in ("hz_check_latest", "wikimedia_latest")]
# Only what is theirs: others may have containers of their own there.
_REMOVE = f"""
for component in {" ".join(ADDED)} spark_job; do
  docker ps --all --quiet --filter label=venice.component=$component | xargs --no-run-if-empty docker rm --force > /dev/null
done
for folder in /srv/venice /etc/venice; do
  for name in {" ".join(ADDED)}; do rm -rf $folder/$name $folder/$name-*; done
done
"""


@pytest.fixture(scope="package")
def inventory(lab: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's inventory with more groups: the same cluster, with its secrets and records."""
    original = ROOT / "inventory" / "lab"
    folder = tmp_path_factory.mktemp("inventory") / "lab"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns(".venice"))
    state = original / ".venice"
    state.mkdir(exist_ok=True)  # a new checkout has none
    (folder / ".venice").symlink_to(state.resolve())
    document = yaml.safe_load((folder / "hosts.yml").read_text())
    for group, hosts in ADDED.items():
        document["all"]["children"][group] = {"hosts": dict.fromkeys(hosts)}
    (folder / "hosts.yml").write_text(yaml.safe_dump(document))
    with (folder / "group_vars" / "all.yml").open("a") as variables:
        variables.write("\n" + yaml.safe_dump({"live_topics": ["bus_locations"], "hazelcast_maps": MAPS}))
    return folder


@pytest.fixture(scope="package")
def cluster(inventory: Path) -> Iterator[Cluster]:
    """The cluster with all of them; afterwards without those that were added, and without their data."""
    found = Cluster.load(inventory)
    try:
        venice("deploy", "-i", str(inventory))
        yield found
    finally:
        for host in found.hosts:
            done = on(host, ["sudo", "sh", "-c", _REMOVE])
            assert done.returncode == 0, done.stderr
