"""A deployment on three real hosts over SSH, end to end: what it leaves, what a second one changes, what it survives.

The tests share one cluster and run in the order of this file: each leaves it whole for the next.
"""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.lab.support import HOSTS, ROOT, VENICE, answered, on, received, sql, starts, status, venice, whole
from tests.waiting import PATIENCE, wait_until
from venice.cluster import Cluster
from venice.connect import Connect
from venice.kafka import Kafka
from venice.specs import TopicSpec


@pytest.fixture(scope="module")
def cluster(undeployed) -> Cluster:
    """The lab's cluster, deployed from nothing: Ctrl-C while hosts converge, then the same command again."""
    with subprocess.Popen(
        [*VENICE, "deploy", "-i", "lab"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        seen = []
        for line in running.stdout:
            seen.append(line)
            if "Converge" in line:
                os.kill(running.pid, signal.SIGINT)
                break
        seen += running.stdout
    assert running.returncode == 130, "".join(seen)
    assert "interrupted during" in "".join(seen)
    assert "venice status" in "".join(seen)
    output = venice("deploy", "-i", "lab")
    assert "smoke test" in output
    assert "broken" not in output
    return Cluster.load(ROOT / "inventory" / "lab")


def test_three_brokers_on_three_hosts(cluster):
    brokers = answered()["brokers"]
    assert sorted(b["host"] for b in brokers) == list(HOSTS)
    assert sorted(b["id"] for b in brokers) == [1, 2, 3]
    assert sum(b["controller"] for b in brokers) == 1
    wait_until(whole, "everything healthy")


def test_positions_keep_changing(cluster):
    there = "SELECT to_regclass('bus_locations') IS NOT NULL AND to_regclass('bus_locations_history') IS NOT NULL"
    wait_until(lambda: sql(cluster, there) == "t", "the sinks have made their tables")
    wait_until(lambda: int(sql(cluster, "SELECT count(*) FROM bus_locations")) == 12, "a row for each bus")
    before = sql(cluster, "SELECT md5(string_agg(b::text, ',' ORDER BY vehicle_id)) FROM bus_locations b")
    rows = int(sql(cluster, "SELECT count(*) FROM bus_locations_history"))
    wait_until(
        lambda: sql(cluster, "SELECT md5(string_agg(b::text, ',' ORDER BY vehicle_id)) FROM bus_locations b") != before, "new positions"
    )
    wait_until(lambda: int(sql(cluster, "SELECT count(*) FROM bus_locations_history")) > rows, "more history")
    assert int(sql(cluster, "SELECT count(*) FROM bus_locations")) == 12, "upsert keeps one row per bus"


def test_second_deployment_changes_and_restarts_nothing(cluster):
    before = starts(cluster)
    output = venice("deploy", "-i", "lab")
    assert "nothing changed on lab" in output
    assert starts(cluster) == before


def test_plain_ansible_does_the_same(cluster):
    before = starts(cluster)
    playbook = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory/lab", "playbooks/deploy.yml"]
    done = subprocess.run(playbook, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0", "0", "0"], done.stdout
    assert starts(cluster) == before


def test_plan_shows_and_changes_nothing(cluster):
    before = starts(cluster)
    output = venice("plan", "-i", "lab", "-e", '{"kafka_settings": {"log.segment.bytes": 268435456}}')
    assert "+log.segment.bytes=268435456" in output
    assert "venice-kafka" in output
    assert starts(cluster) == before
    assert "log.segment.bytes" not in on("lab-1", ["sudo", "cat", "/etc/venice/kafka/server.properties"]).stdout


def test_secrets_are_nowhere_but_where_they_belong(cluster):
    secret = next(
        line.split(": ")[1] for line in (cluster.state_dir / "secrets.yml").read_text().splitlines() if line.startswith("postgres_password")
    )
    assert (cluster.state_dir / "secrets.yml").stat().st_mode & 0o777 == 0o600
    for record in (cluster.state_dir / "runs").glob("*.json"):
        assert secret not in record.read_text()
    assert secret not in venice("plan", "-i", "lab", "-e", "postgres_password=another", "-vv")
    assert secret not in json.dumps(status())
    ignored = subprocess.run(["git", "check-ignore", str(cluster.state_dir / "secrets.yml")], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0
    for host in HOSTS:
        assert secret not in on(host, ["sudo", "sh", "-c", "docker inspect $(docker ps -aq); ps axww"]).stdout


def test_connect_has_no_superuser_and_strangers_no_access(cluster):
    assert sql(cluster, "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = 'venice'") == "f"
    [postgres] = cluster.instances("postgres")
    # the protocol's first message (PostgreSQL's documentation, StartupMessage)
    hello = struct.pack("!i", 196608) + b"user\0venice\0database\0venice\0\0"
    with socket.create_connection((postgres.address, postgres.ports["sql"]), 5) as connection:
        connection.sendall(struct.pack("!i", len(hello) + 4) + hello)
        assert b"no pg_hba.conf entry" in connection.recv(400), "this machine runs neither Connect nor Flink"


def test_killed_broker_loses_no_acknowledged_record(cluster):
    """kill -9 of a broker while records with acks=all are produced; Docker restarts it."""
    topic, total = _topic(cluster, "killed"), 6000
    acknowledged: list[str] = []
    producer = _producer(cluster)
    for number in range(total):
        value = str(number)
        producer.produce(
            topic, key=value, value=value, on_delivery=lambda error, m: None if error else acknowledged.append(m.value().decode())
        )
        producer.poll(0)
        if number == total // 3:
            killed = on("lab-2", ["sudo", "pkill", "-9", "-f", "[k]afka[.]Kafka"])
            assert killed.returncode == 0
    assert producer.flush(120) == 0
    assert len(acknowledged) == total
    assert set(acknowledged) <= set(_values(cluster, topic))
    wait_until(whole, "the killed broker is back in sync")


def test_rebooted_host_comes_back_by_itself(cluster):
    venice("lab", "reboot", "lab-3")
    wait_until(whole, "lab-3 (broker, Connect worker, PostgreSQL) is back")
    # deployed again it waits for what is still on its way, and changes nothing
    output = venice("deploy", "-i", "lab")
    assert "nothing changed on lab" in output and "broken" not in output


def test_smoke_alone_and_its_json(cluster):
    hops = json.loads(venice("smoke", "-i", "lab", "--json"))["hops"]
    assert all(hop["ok"] for hop in hops)
    assert any("postgres" in hop["name"].lower() or "row" in hop["name"].lower() for hop in hops)


def test_smoke_names_the_broken_hop(cluster):
    """Without PostgreSQL the trace ends there, and says so."""
    stopped = on("lab-3", ["sudo", "docker", "stop", "venice-postgres"])
    assert stopped.returncode == 0
    try:
        output = venice("smoke", "-i", "lab", expect=1)
        assert "broken" in output
        assert "lab-3" in output
        assert "postgres" in output.lower()
    finally:
        venice("up", "-i", "lab")
    wait_until(whole, "PostgreSQL is back and the connectors with it")


def test_host_down_is_named_before_anything_is_touched(cluster):
    venice("lab", "power", "off", "lab-2")
    try:
        others = {n: h for n, h in cluster.hosts.items() if n != "lab-2"}
        before = starts(cluster, others)
        output = venice("deploy", "-i", "lab", "-e", "connect_heap_mb=500", expect=2)
        assert "lab-2: does not answer over SSH" in output
        assert "no host was changed" in output
        assert starts(cluster, others) == before
        found = wait_until(lambda: list((found := status())["unreachable"]) == ["lab-2"] and found, "lab-2 alone is missing")
        assert {c["state"] for c in found["containers"] if c["host"] == "lab-2"} == {"unknown"}
        assert {c["state"] for c in found["containers"] if c["host"] != "lab-2"} == {"running"}
    finally:
        venice("lab", "power", "on", "lab-2")
    wait_until(whole, "lab-2 is back")


def test_failing_connector_ends_the_deployment_with_its_cause(cluster, tmp_path):
    """A sink with a wrong password: Connect accepts it, its task fails, and the deployment says why."""
    folder = tmp_path / "wrong_password"
    (folder / "connectors").mkdir(parents=True)
    (folder / "pipeline.yml").write_text("topics: [{name: wrong_password}]\nconnectors: [connectors/wrong_password.json]\n")
    latest = json.loads((ROOT / "pipelines/bus_locations/connectors/bus_locations_latest.json").read_text())["config"]
    config = latest | {"topics": "wrong_password", "connection.password": "not-the-password"}
    (folder / "connectors/wrong_password.json").write_text(json.dumps({"name": "wrong_password", "config": config}))
    before = starts(cluster)
    try:
        output = venice("deploy", "-i", "lab", "-e", json.dumps({"venice_pipelines": ["bus_locations", str(folder)]}), expect=1)
        assert "wrong_password" in output
        assert "password authentication failed" in output
        assert "not-the-password" not in output
    finally:
        Connect.of(cluster).delete("wrong_password")
    assert starts(cluster) == before
    assert "nothing changed on lab" in venice("deploy", "-i", "lab")


def test_wrong_inventory_touches_no_host(cluster):
    before = starts(cluster)
    output = venice("deploy", "-i", "lab", "-e", "kafka_retention_mss=5", expect=2)
    assert "kafka_retention_mss" in output
    assert "did you mean kafka_retention_ms?" in output
    assert starts(cluster) == before


def test_rolling_change_loses_no_acknowledged_record(cluster):
    """A changed broker setting restarts one broker at a time; a producer with acks=all never notices."""
    topic, total = _topic(cluster, "rolling"), 0
    before = starts(cluster)
    change = [*VENICE, "deploy", "-i", "lab", "-e", '{"kafka_settings": {"log.segment.bytes": 268435456}}']
    failed: list[str] = []
    producer = _producer(cluster)
    with subprocess.Popen(change, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as deployment:
        while deployment.poll() is None:
            producer.produce(
                topic, key=str(total), value=str(total), on_delivery=lambda error, _: failed.append(str(error)) if error else None
            )
            total += 1
            producer.poll(0)
            time.sleep(0.01)  # as many as brokers take would starve all else
        output = deployment.stdout.read()
    assert deployment.returncode == 0, output
    assert producer.flush(120) == 0
    assert not failed
    assert set(_values(cluster, topic)) == {str(n) for n in range(total)}
    after = starts(cluster)
    assert {key for key in after if after[key] != before[key]} == {(host, "venice-kafka") for host in HOSTS}
    # One at a time: each broker was up again before the next went down.
    ups = sorted(after[host, "venice-kafka"][1] for host in HOSTS)
    assert len(set(ups)) == 3
    assert [line for line in output.splitlines() if "it may go down" in line]


def test_down_keeps_data_and_up_starts(cluster):
    topic = _topic(cluster, "kept")
    producer = _producer(cluster)
    producer.produce(topic, key="k", value="kept")
    assert producer.flush(120) == 0
    venice("down", "-i", "lab")
    wait_until(lambda: {c["state"] for c in status()["containers"]} == {"exited"}, "everything has stopped")
    venice("up", "-i", "lab")
    assert _values(cluster, topic) == ["kept"]
    wait_until(whole, "everything runs again")


def test_history_tells_all_of_it(cluster):
    runs = json.loads(venice("history", "-i", "lab", "--json"))
    deployments = [r for r in runs if r["command"] == "deploy"]
    interrupted = max(number for number, r in enumerate(deployments) if r["outcome"] == "interrupted")
    finished = deployments[interrupted + 1]
    assert finished["outcome"] == "changed"
    assert {"Converge every host"} <= {p["task"] for p in finished["phases"]}
    assert runs[-1]["id"] in venice("history", "-i", "lab", "last")


def _topic(cluster: Cluster, name: str) -> str:
    """A new topic, replicated three times."""
    topic = f"test.{name}.{int(time.time())}"
    Kafka(cluster.bootstrap_servers).ensure_topics([TopicSpec(name=topic, partitions=3)], default_replication=3)
    return topic


def _producer(cluster: Cluster) -> Producer:
    return Producer({"bootstrap.servers": cluster.bootstrap_servers, "acks": "all", "enable.idempotence": True})


def _values(cluster: Cluster, topic: str) -> list[str]:
    """All values of a topic, read from its beginning to its present end."""
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": f"read-{topic}", "enable.auto.commit": False})
    partitions = [TopicPartition(topic, p) for p in consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions]
    ends = {p.partition: consumer.get_watermark_offsets(p, timeout=PATIENCE)[1] for p in partitions}
    consumer.assign([TopicPartition(topic, p.partition, 0) for p in partitions])
    values: list[str] = []
    while len(values) < sum(ends.values()):
        message = received(consumer, f"the next of {sum(ends.values())} records")
        assert message.error() is None
        values.append(message.value().decode())
    consumer.close()
    return values
