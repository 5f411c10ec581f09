"""The support bundle: all that helps and no secret; made while things are down, and by itself when a deployment fails."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.lab.support import HOSTS, ROOT, from_json, venice
from tests.waiting import wait_until
from venice.cluster import Cluster


def unpacked(path: Path) -> dict[str, str]:
    """The bundle's files by their names within its folder."""
    with tarfile.open(path) as archive:
        return {m.name.split("/", 1)[1]: archive.extractfile(m).read().decode() for m in archive.getmembers()}


def secrets(state_dir: Path) -> list[str]:
    return list(yaml.safe_load((state_dir / "secrets.yml").read_text()).values())


def leaks(files: dict[str, str], values: list[str]) -> list[str]:
    return [name for name, text in files.items() if any(value in text for value in values)]


@pytest.fixture(scope="module")
def spare(spare_host, tmp_path_factory) -> Path:
    """An inventory of the spare host alone: PostgreSQL and nothing else, so that it is there within a minute."""
    folder = tmp_path_factory.mktemp("inventory") / "spare"
    folder.mkdir()
    inventory = yaml.safe_load((ROOT / "inventory/single/hosts.yml").read_text())["all"]
    hosts = {spare_host: {"ansible_host": "192.168.61.14"}}
    group = {"hosts": dict.fromkeys(hosts)}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": inventory["vars"], "hosts": hosts, "children": {"postgres": group}}}))
    return folder


def test_all_that_helps_and_no_secret(deployed: Cluster, tmp_path):
    target = tmp_path / "bundle.tar.gz"

    def all_of_it() -> dict | None:
        """Every part has a time limit, which a machine with much to do may need more than once."""
        target.unlink(missing_ok=True)
        found = from_json(venice("support-bundle", "-i", "lab", "--output", str(target), "--json"), "support-bundle")
        return None if found["missing"] else found

    found = wait_until(all_of_it, "a bundle in which nothing is missing")
    assert target.stat().st_mode & 0o777 == 0o600
    files = unpacked(target)
    assert {f["path"] for f in found["files"]} | {"MANIFEST.json"} == set(files)
    values = secrets(deployed.state_dir)
    assert len(values) >= 2
    assert leaks(files, values) == []
    for host in HOSTS:
        assert "node.id=" in files[f"hosts/{host}/config/kafka/server.properties"]
        assert (
            "KafkaRaftServer" in files[f"hosts/{host}/logs/venice-kafka.log"]
            or files[f"hosts/{host}/logs/venice-kafka.log"].count("\n") > 50
        )
        assert "Server Version" in files[f"hosts/{host}/system.txt"]
    # of secret files the names are left, of connectors' passwords the references
    assert re.search(r"^postgres_password=\*+$", files["hosts/lab-2/config/connect/secrets.properties"], re.MULTILINE)
    assert "${file:" in json.dumps(json.loads(files["connectors.json"])["venice_canary"]["info"]["config"])
    assert json.loads(files["kafka.json"])["topics"]["bus_locations"][0]["isr"]
    assert "bus_locations-value" in json.loads(files["registry.json"])["subjects"]
    assert json.loads(files["status.json"])["cluster"] == "lab"
    assert json.loads(files["versions.json"])["ansible-core"]
    assert any(name.startswith("runs/") for name in files)
    assert "holds no secrets" in files["README.txt"]


def test_what_cannot_be_had_is_named_and_the_rest_is_there(deployed: Cluster, tmp_path):
    """A host at an address where nobody is; and a file that is there is not overwritten."""
    folder = tmp_path / "lab"
    shutil.copytree(deployed.inventory_dir, folder, ignore=shutil.ignore_patterns(".venice"))
    inventory = yaml.safe_load((folder / "hosts.yml").read_text())
    inventory["all"]["hosts"]["lab-9"] = {"ansible_host": "192.168.61.99"}
    inventory["all"]["children"]["connect"]["hosts"]["lab-9"] = None
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    output = venice("support-bundle", "-i", str(folder), "-o", str(tmp_path / "b.tar.gz"))
    assert re.search(r"missing hosts/lab-9: lab-9 .*no answer|missing hosts/lab-9: .*No route", output), output
    files = unpacked(tmp_path / "b.tar.gz")
    assert [entry["what"] for entry in json.loads(files["MANIFEST.json"])["missing"]] == ["hosts/lab-9"]
    assert "hosts/lab-9/desired.json" in files
    assert "hosts/lab-1/logs/venice-kafka.log" in files
    # this inventory has other passwords than the hosts: theirs are known from the hosts' own files
    passwords = [value for value in secrets(deployed.state_dir) if len(value) == 32]
    assert passwords
    assert leaks(files, passwords) == []
    assert "is there already" in venice("support-bundle", "-i", str(folder), "-o", str(tmp_path / "b.tar.gz"), expect=2)


def test_up_deploys_where_nothing_is_and_a_failing_deployment_leaves_a_bundle(spare: Path):
    output = venice("up", "-i", str(spare))
    assert "nothing of spare is on its hosts: it is deployed" in output
    assert "nothing changed on spare" in venice("up", "-i", str(spare))
    bundles = spare / ".venice/spare/bundles"
    assert not bundles.exists()
    # a setting that PostgreSQL refuses: it does not come up, and the deployment ends
    broken = ["-e", '{"postgres_settings": {"shared_buffers": "much"}}', "-e", "venice_wait_timeout=6"]
    output = venice("deploy", "-i", str(spare), *broken, expect=1)
    assert output.index("venice-postgres is not healthy") < output.index("support bundle of this moment")
    [bundle] = bundles.iterdir()
    assert str(bundle) in output
    files = unpacked(bundle)
    assert "much" in files["hosts/lab-4/config/postgres/postgresql.conf"]
    assert "shared_buffers" in files["hosts/lab-4/logs/venice-postgres.log"]
    assert "failed" in "".join(text for name, text in files.items() if name.startswith("runs/"))
    assert leaks(files, secrets(spare / ".venice/spare")) == []
    # wrong input touches nothing and makes none; only the newest five are kept
    venice("deploy", "-i", str(spare), "-e", "postgres_portt=5", expect=2)
    assert list(bundles.iterdir()) == [bundle]
    for number in range(5):
        (bundles / f"venice-spare-2020010{number}.tar.gz").touch()
    output = venice("restart", "-i", str(spare), "postgres", "-e", "venice_wait_timeout=2", expect=1)
    assert "venice-postgres is not healthy" in output
    assert len(list(bundles.iterdir())) == 5
    assert bundle in bundles.iterdir()
