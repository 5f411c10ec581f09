"""What a deployment leaves on a host, seen with the host's own tools."""

import json
import time

import pytest


@pytest.fixture
def containers(host):
    """Venice's containers on the host, as `docker inspect` has them once Docker itself has looked at their health."""
    with host.sudo():
        names = host.check_output("docker ps --all --filter label=venice.cluster --format '{{.Names}}'").split()
        while True:
            found = json.loads(host.check_output(f"docker inspect {' '.join(names)}"))
            # its first look comes an interval after the start; one that stays ill is unhealthy in the end
            if all(container["State"]["Health"]["Status"] != "starting" for container in found):
                return found
            time.sleep(1)


def test_every_container_is_healthy_unprivileged_and_bounded(containers):
    assert containers
    for container in containers:
        name = container["Name"]
        assert container["State"]["Health"]["Status"] == "healthy", name
        assert container["Config"]["User"] not in ("", "0", "root"), name
        assert container["HostConfig"]["Memory"] > 0, name
        assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped", name
        assert container["HostConfig"]["LogConfig"]["Config"]["max-size"], name
        assert list(container["NetworkSettings"]["Networks"]) == ["venice"], name
        assert not container["HostConfig"]["Privileged"], name


def test_data_is_on_the_host(host, containers):
    with host.sudo():
        for container in containers:
            for mount in container["Mounts"]:
                assert mount["Type"] == "bind", container["Name"]
                folder = host.file(mount["Source"])
                assert folder.is_directory
                assert folder.mode == 0o750
                assert f"{folder.uid}:{folder.gid}" == container["Config"]["User"]


def test_three_brokers_hold_storage_of_one_cluster(host):
    """All brokers that are on this host were formatted with an id of their own and the same cluster id."""
    with host.sudo():
        text = host.check_output("cat /srv/venice/kafka*/meta.properties")
        nodes = host.check_output("ls -d /srv/venice/kafka*").split()
    ids = [line for line in text.splitlines() if line.startswith("node.id=")]
    assert len(set(ids)) == len(nodes)
    assert len({line for line in text.splitlines() if line.startswith("cluster.id=")}) == 1


def test_every_published_port_answers(host, containers):
    for container in containers:
        for port in container["HostConfig"]["PortBindings"] or {}:
            assert host.socket(f"tcp://0.0.0.0:{port.split('/')[0]}").is_listening, f"{container['Name']} {port}"


def test_secrets_are_only_the_containers_own_to_read(host):
    with host.sudo():
        for path in host.check_output("find /etc/venice -name secrets.properties -o -name bootstrap.sql").split():
            assert host.file(path).mode == 0o400, path
