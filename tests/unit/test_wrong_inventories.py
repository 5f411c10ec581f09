"""Wrong input is refused with a message that names the place and the remedy, before any host is touched.

The hosts of these inventories are in a documentation network (RFC 5737): a test that tried to reach one would fail differently.
"""

import copy
from pathlib import Path

import pytest
import yaml

from venice import actions, inventory
from venice.cluster import Cluster
from venice.errors import InputError
from venice.runner import Options

RIGHT = {
    "all": {
        "vars": {"ansible_user": "venice", "venice_cluster": "wrong"},
        "hosts": {f"h{n}": {"ansible_host": f"192.0.2.{n}"} for n in (1, 2, 3)},
        "children": {
            "kafka": {"hosts": {"h1": {}, "h2": {}, "h3": {}}},
            "schema_registry": {"hosts": {"h1": {}}},
            "connect": {"hosts": {"h2": {}}},
            "postgres": {"hosts": {"h3": {}}},
        },
    }
}


def variables(**values):
    """A mutation: variables of all hosts."""
    return lambda tree: tree["all"]["vars"].update(values)


def groups(**values):
    """A mutation: groups with these hosts; None removes one."""

    def change(tree):
        for group, hosts in values.items():
            if hosts is None:
                del tree["all"]["children"][group]
            else:
                tree["all"]["children"][group] = {"hosts": {host: {} for host in hosts}}

    return change


def host(name, **values):
    """A mutation: variables of one host."""
    return lambda tree: tree["all"]["hosts"][name].update(values)


WRONG = {
    "misspelt component variable": (
        variables(kafka_portt=9092),
        ["hosts.yml:", "kafka_portt", "unknown variable", "did you mean kafka_port?"],
    ),
    "misspelt shared variable": (variables(venice_data_dri="/srv/x"), ["venice_data_dri", "did you mean venice_data_dir?"]),
    "variable nobody knows": (variables(connect_magic=1), ["connect_magic", "unknown variable", "docs/variables.md"]),
    "port is a word": (variables(kafka_port="many"), ["hosts.yml:", "kafka_port", "'many' is not of type int"]),
    "port out of range": (variables(connect_port=70000), ["connect_port", "70000 is no port"]),
    "settings are no mapping": (variables(kafka_settings="a=b=c,d"), ["kafka_settings", "not of type dict"]),
    "even number of controllers": (variables(kafka_controllers=2), ["kafka_controllers", "2 is not one of 1, 3, 5"]),
    "no nodes": (variables(kafka_nodes_per_host=0), ["kafka_nodes_per_host", "0 is less than 1"]),
    "port in words": (variables(connect_port="many"), ["ports of connect must be numbers: http many", "*_port"]),
    "user by name": (
        lambda tree: (variables(ksqldb_user="appuser")(tree), groups(ksqldb=["h1"])(tree)),
        ["ksqldb_user", "'appuser' is not of type int"],
    ),
    "number in words": (variables(kafka_replication_factor="three"), ["kafka_replication_factor", "'three' is not of type int"]),
    "text for a list": (variables(ksqldb_command="start it"), ["ksqldb_command", "a text is not of type list"]),
    "text for a dict": (variables(connect_settings="a=b"), ["connect_settings", "a text is not of type dict"]),
    "no executors": (variables(spark_executors=0), ["spark_executors", "0 is less than 1"]),
    "memory is a word": (variables(kafka_memory="plenty"), ["kafka_memory", "'plenty' is not a size such as 512m or 2g"]),
    "heap larger than memory": (
        variables(connect_heap_mb=900, connect_memory="512m"),
        ["heap of 900 MiB", "limit of 512 MiB", "connect_memory"],
    ),
    "data folder is relative": (variables(venice_data_dir="data"), ["venice_data_dir", "not a folder of Venice's own"]),
    "data folder is the root": (variables(venice_data_dir="/"), ["venice_data_dir", "use an absolute path"]),
    "group misspelt": (groups(conect=["h2"]), ["group conect", "did you mean connect?"]),
    "empty group of a strange name": (groups(databases=[]), ["group databases", "has no hosts"]),
    "two Kafka hosts": (groups(kafka=["h1", "h2"]), ["2 nodes make a quorum of 2 controllers"]),
    "more replicas than nodes": (variables(kafka_replication_factor=5), ["3 nodes cannot hold 5 replicas"]),
    "min ISR equals replicas": (variables(kafka_min_insync_replicas=3), ["no broker could ever be restarted"]),
    "min ISR above replicas": (variables(kafka_min_insync_replicas=4), ["4 in-sync replicas of 3 can never be reached"]),
    "two databases": (groups(postgres=["h1", "h3"]), ["group postgres", "at most 1"]),
    "Connect without Kafka": (groups(kafka=None), ["group connect", "needs kafka"]),
    "producers without a registry": (
        groups(schema_registry=None, producer=["h1"]),
        ["group producer", "needs schema_registry", "add a host to the group schema_registry"],
    ),
    "duplicate address": (host("h2", ansible_host="192.0.2.1"), ["h1, h2", "all have the address 192.0.2.1"]),
    "loopback address": (host("h2", venice_address="127.0.0.1"), ["h2: venice_address", "127.0.0.1 means another machine"]),
    "localhost": (host("h2", venice_address="localhost"), ["localhost means another machine"]),
    "port wanted twice": (variables(postgres_port=9092), ["h3", "port 9092 is wanted by", "*_port"]),
    "unknown pipeline": (
        variables(venice_pipelines=["tram_locations"]),
        ["tram_locations", "no tram_locations/pipeline.yml", "bus_locations"],
    ),
    "a pipeline's producer without a host": (
        variables(venice_pipelines=["bus_locations"]),
        ["pipeline bus_locations", "pipeline.yml:", "nothing can run producer bus-locations", "add a host to the group producer"],
    ),
    "cluster name with spaces": (variables(venice_cluster="My Cluster"), ["'My Cluster' is no name for a cluster"]),
    "cluster name differs": (host("h3", venice_cluster="other"), ["venice_cluster differs between hosts"]),
    "undefined variable in a value": (variables(kafka_heap_mb="{{ nothing_of_that_name }}"), ["nothing_of_that_name"]),
    "group without components": (
        groups(kafka=None, schema_registry=None, connect=None, postgres=None, web=["h1"]),
        ["no component's group has a host"],
    ),
}


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Checks an inventory tree (or text) as every command does, and returns the refusal's whole text."""
    monkeypatch.chdir(tmp_path)

    def check(content):
        folder = tmp_path / "inventory" / "wrong"
        folder.mkdir(parents=True)
        (folder / "hosts.yml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        with pytest.raises(InputError) as raised:
            actions.checked(Options(inventory.resolve("wrong")))
        assert raised.value.exit_code == 2
        return " ".join(str(raised.value).split())

    return check


@pytest.mark.parametrize("name", WRONG)
def test_refused(name, refused):
    change, expected = WRONG[name]
    tree = copy.deepcopy(RIGHT)
    change(tree)
    text = refused(tree)
    for part in expected:
        assert part in text, text


def test_the_unchanged_inventory_is_accepted(tmp_path, monkeypatch):
    """Without this, all of the above could be refused for one and the same other reason."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "inventory" / "right"
    folder.mkdir(parents=True)
    (folder / "hosts.yml").write_text(yaml.safe_dump(RIGHT))
    assert actions.checked(Options(inventory.resolve("right"))).bootstrap_servers == "192.0.2.1:9092,192.0.2.2:9092,192.0.2.3:9092"


def test_all_findings_at_once(refused):
    tree = copy.deepcopy(RIGHT)
    for change in (variables(kafka_portt=1, connect_port=0), host("h2", ansible_host="192.0.2.1")):
        change(tree)
    text = refused(tree)
    assert "3 findings; no host was touched" in text
    assert all(part in text for part in ("kafka_portt", "connect_port", "192.0.2.1"))


def test_file_that_is_no_yaml(refused):
    assert "hosts.yml" in refused("all:\n  hosts: {h1: [\n")


def test_no_hosts(refused):
    assert "has no hosts" in refused({"all": {"children": {"kafka": {}}}})


def test_unknown_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no inventory 'stagging'"):
        inventory.resolve("stagging")


def test_folder_without_hosts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"it has no hosts\.yml"):
        inventory.resolve("empty")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("nonsense", "names no variable"), ("@missing.yml", "missing.yml"), ("{kafka_port", "kafka_port"), ("[1, 2]", "names no variable")],
)
def test_extra_variables(given, expected):
    with pytest.raises(InputError, match=expected):
        actions.checked(Options(Path("inventory/lab"), extra_vars=(given,)))


def test_misspelt_extra_variable():
    with pytest.raises(InputError, match=r"kafka_prot(.|\n)*did you mean kafka_port"):
        actions.checked(Options(Path(__file__).parents[2] / "inventory" / "lab", extra_vars=("kafka_prot=9092",)))


def test_encrypted_secrets_without_password(tmp_path, monkeypatch):
    from ansible.parsing.vault import VaultLib, VaultSecret

    monkeypatch.chdir(tmp_path)
    state = tmp_path / "inventory" / "right" / ".venice" / "wrong"
    state.mkdir(parents=True)
    (state.parents[1] / "hosts.yml").write_text(yaml.safe_dump(RIGHT))
    (state / "secrets.yml").write_bytes(VaultLib([("default", VaultSecret(b"known"))]).encrypt(b"postgres_password: x\n"))
    with pytest.raises(InputError, match=r"secrets\.yml is encrypted with ansible-vault"):
        actions.checked(Options(inventory.resolve("right")))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hosts.yml", "all:\n  hosts: [a\n", "hosts.yml:3: YAML parsing failed"),
        ("hosts.yml", "all:\n  hosts: [a]\n", 'hosts.yml: Invalid "hosts" entry for "all" group, requires a dictionary, found a list'),
        ("group_vars/all.yml", "a: [\n", "group_vars/all.yml:2: YAML parsing failed"),
        ("hosts.ini", "[kafka:nonsense]\na\n", "hosts.ini: Failed to parse inventory"),
    ],
)
def test_a_file_that_can_not_be_read_is_named_once_with_its_line(tmp_path, monkeypatch, capfd, name, text, message):
    """Ansible's own three warnings, one for each of its parsers, are not printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / "group_vars").mkdir(parents=True)
    if not name.startswith("hosts"):
        (tmp_path / "x" / "hosts.yml").write_text("all:\n  hosts:\n    a:\n")
    (tmp_path / "x" / name).write_text(text)
    with pytest.raises(InputError) as caught:
        Cluster.load(Path("x"))
    assert message in caught.value.message
    assert capfd.readouterr() == ("", "")
