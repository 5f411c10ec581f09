"""The model: who runs where, at which address, and what a host's document holds."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from venice.cluster import Cluster, component_roles, roles, size
from venice.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lab() -> Cluster:
    return Cluster.load(ROOT / "inventory" / "lab")


@pytest.fixture
def single() -> Cluster:
    return Cluster.load(ROOT / "inventory" / "single")


def container(cluster: Cluster, host: str, name: str) -> dict:
    return next(c for c in cluster.desired(host)["containers"] if c["name"] == name)


def file(cluster: Cluster, host: str, path: str) -> str:
    return next(f["content"] for f in cluster.desired(host)["files"] if f["path"] == path)


def test_a_group_is_a_component(lab):
    assert set(lab.hosts["lab-3"].components) == {"kafka", "schema_registry", "connect", "postgres", "flink"}
    assert [i.host for i in lab.instances("connect")] == ["lab-2", "lab-3"]


def test_three_nodes_on_one_host_take_consecutive_ports(single):
    nodes = single.instances("kafka")
    assert [n.ports["client"] for n in nodes] == [9092, 9093, 9094]
    assert [n.ports["controller"] for n in nodes] == [9192, 9193, 9194]
    assert len({n.container for n in nodes}) == 3
    assert len({m["source"] for n in nodes for m in container(single, "lab-1", n.container)["mounts"]}) == 6


def test_brokers_advertise_the_address_that_everybody_uses(lab):
    address = lab.hosts["lab-2"].address
    text = file(lab, "lab-2", "/etc/venice/kafka/server.properties")
    assert f"advertised.listeners=PLAINTEXT://{address}:9092,CONTROLLER://{address}:9192" in text
    assert f"controller.quorum.bootstrap.servers={','.join(lab.endpoint_list('kafka', 'controller'))}" in text


def test_defaults_of_a_broker(lab):
    lines = set(file(lab, "lab-1", "/etc/venice/kafka/server.properties").splitlines())
    wanted = {"log.retention.ms=-1", "min.insync.replicas=2", "default.replication.factor=3", "auto.create.topics.enable=false"}
    assert wanted <= lines


def test_settings_of_the_user_come_last(tmp_path):
    cluster = Cluster.load(ROOT / "inventory" / "lab", {"kafka_settings": {"log.retention.ms": 5}})
    settings = dict(
        line.split("=", 1)
        for line in file(cluster, "lab-1", "/etc/venice/kafka/server.properties").splitlines()
        if "=" in line and line[0] != "#"
    )
    assert settings["log.retention.ms"] == "5"


def test_recorded_node_ids_hold_without_facts(tmp_path):
    """With --limit the other hosts are not asked: what was last seen of them counts."""
    folder = tmp_path / "staging"
    hosts = {name: {"ansible_host": f"192.0.2.{n}"} for n, name in enumerate("cab", 1)}
    folder.mkdir()
    (folder / "hosts.yml").write_text(yaml.safe_dump({"kafka": {"hosts": hosts}}))
    assert [n.vars["node_id"] for n in Cluster.load(folder).instances("kafka")] == [1, 2, 3]
    records = folder / ".venice" / "staging" / "records"
    records.mkdir(parents=True)
    for host, node in (("a", 1), ("b", 2), ("c", 3)):
        (records / f"{host}.json").write_text(json.dumps({"/srv/venice/kafka/meta.properties": f"node.id={node}\ncluster.id=x\n"}))
    assert {n.host: n.vars["node_id"] for n in Cluster.load(folder).instances("kafka")} == {"a": 1, "b": 2, "c": 3}


def test_dependency_order(lab):
    order = lab.order
    assert order.index("kafka") < order.index("schema_registry") < order.index("connect")
    assert order.index("postgres") < order.index("connect")


@pytest.mark.parametrize("name", ["postgres_password", "postgres_replication_password"])
def test_secret_files_are_marked_and_nobody_else_holds_the_password(lab, name):
    document = lab.desired("lab-3")
    lines = next(f for f in document["files"] if f["path"].endswith("secrets.properties"))["content"].splitlines()
    secret = dict(line.split("=", 1) for line in lines)[name]
    assert len(secret) == 32
    for entry in document["files"]:
        assert entry["secret"] or secret not in entry["content"]
        assert not entry["secret"] or entry["mode"] == "0400"
    assert secret not in json.dumps(document["containers"])


def test_secrets_are_made_once(lab):
    assert lab.var("lab-1", "postgres_password") == Cluster.load(ROOT / "inventory" / "lab").var("lab-3", "postgres_password")
    assert (lab.state_dir / "secrets.yml").stat().st_mode & 0o777 == 0o600


def test_database_lets_in_the_hosts_of_workers_only(lab):
    text = file(lab, "lab-3", "/etc/venice/postgres/pg_hba.conf")
    remote = [line.split()[2:4] for line in text.splitlines() if line.startswith("host ")]
    assert [address for _, address in remote] == ["samenet", "192.168.61.12/32", "192.168.61.13/32", "192.168.61.11/32"]
    # lab-1 has no worker of Connect's, but one of Flink's
    assert [users for users, _ in remote] == ["venice,venice_replication"] * 3 + ["venice"]


def test_only_change_data_capture_may_read_the_log(lab):
    statements = file(lab, "lab-3", "/etc/venice/postgres/bootstrap.sql").split(";")
    roles = {s.split('"')[1]: s for s in statements if "ALTER ROLE" in s}
    assert "NOSUPERUSER" in roles["venice"] and "NOREPLICATION" in roles["venice"]
    assert "NOSUPERUSER" in roles["venice_replication"] and " REPLICATION " in roles["venice_replication"]


def test_producers_get_the_addresses(lab):
    assert container(lab, "lab-1", "venice-producer-bus-locations")["env"] == {
        "BOOTSTRAP_SERVERS": lab.bootstrap_servers,
        "SCHEMA_REGISTRY_URL": lab.registry_urls[0],
        "TOPIC": "bus_locations",
        "BUSES": "12",
        "INTERVAL_SECONDS": "1",
    }


def test_containers_are_unprivileged_and_bounded(lab, single):
    for cluster in (lab, single):
        for host in cluster.hosts:
            for c in cluster.desired(host)["containers"]:
                assert int(c["user"].split(":")[0]) > 1000
                assert c["memory"] > 64 << 20
                assert c["health"]["command"]


@pytest.mark.parametrize("role", component_roles())
def test_every_default_is_documented(role):
    """Validation knows a variable by its spec: a default without one would be refused in an inventory."""
    found = roles()[role]
    assert set(found.defaults) - {f"{role}_component"} == set(found.options)
    assert all(option["description"] and option["type"] for option in found.options.values())


@pytest.mark.parametrize(("text", "expected"), [("512m", 512 << 20), ("2g", 2 << 30), ("1.5G", 3 << 29), (1024, 1024), ("64MiB", 64 << 20)])
def test_sizes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1m", "1x"])
def test_no_sizes(text):
    with pytest.raises(InputError, match="is not a size"):
        size(text)


def test_the_page_of_variables_is_up_to_date():
    spec = importlib.util.spec_from_file_location("variables", ROOT / "tools" / "variables.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (ROOT / "docs" / "variables.md").read_text() == tool.document(), "run `make docs`"
