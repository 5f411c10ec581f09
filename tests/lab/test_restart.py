"""Restarting what runs, on three hosts: in which order, what is waited for, what is never stopped; and watching the status.

The tests share one cluster and each leaves it whole.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pexpect
import pytest
from confluent_kafka import Consumer, Producer

from tests.lab.support import HOSTS, ROOT, VENICE, answered, from_json, on, starts, status, venice
from tests.waiting import PATIENCE, wait_until
from venice import selection
from venice.cluster import Cluster
from venice.errors import VeniceError
from venice.hosts import DockerHost
from venice.kafka import Kafka
from venice.specs import TopicSpec

TOPIC = "restart.records"


@pytest.fixture(scope="module")
def topic(deployed: Cluster):
    kafka = Kafka.of(deployed)
    if any(part.topic == TOPIC for part in kafka.partitions()):  # of a run that was ended
        kafka.delete([TOPIC])
    kafka.ensure_topics([TopicSpec(name=TOPIC, partitions=3)], default_replication=3)
    yield TOPIC
    kafka.delete([TOPIC])


def changed(cluster: Cluster, before: dict) -> set[tuple[str, str]]:
    after = starts(cluster)
    return {key for key in after if after[key] != before[key]}


def test_brokers_one_by_one_the_active_controller_last_and_nothing_lost(deployed, topic):
    """A producer with acks=all and a consumer go on while all brokers are restarted."""
    before, active = starts(deployed), next(b["host"] for b in answered()["brokers"] if b["controller"])
    servers = {"bootstrap.servers": deployed.bootstrap_servers}
    seen: set[str] = set()
    failed: list[str] = []
    ended = threading.Event()

    def consume() -> None:
        consumer = Consumer(servers | {"group.id": "restart.reader", "auto.offset.reset": "earliest", "enable.auto.commit": False})
        consumer.subscribe([topic])
        while not ended.is_set():
            message = consumer.poll(0.2)
            if message and not message.error():
                seen.add(message.value().decode())
        consumer.close()

    reader = threading.Thread(target=consume)
    reader.start()
    producer, total = Producer(servers | {"acks": "all", "enable.idempotence": True}), 0
    try:
        command = [*VENICE, "restart", "-i", "lab", "kafka"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            while running.poll() is None:
                value = str(total)
                producer.produce(topic, value, on_delivery=lambda error, _: failed.append(str(error)) if error else None)
                total += 1
                producer.poll(0)
                time.sleep(0.01)  # as many as brokers take would starve all else
            output = running.stdout.read()
        assert running.returncode == 0, output
        assert producer.flush(120) == 0
        assert not failed
        wait_until(lambda: len(seen) == total, "the consumer has read all")
    finally:
        ended.set()
        reader.join()
    assert changed(deployed, before) == {(host, "venice-kafka") for host in HOSTS}
    times = {host: starts(deployed)[host, "venice-kafka"][1] for host in HOSTS}
    assert max(times, key=times.get) == active, "the active controller goes last"
    assert all(b["in_sync"] == b["replicas"] for b in answered()["brokers"]), "it returns when all replicas are in sync"


def test_no_broker_stops_while_another_is_down_and_a_stopped_one_is_started(deployed):
    stopped = on("lab-2", ["sudo", "docker", "stop", "venice-kafka"])
    assert stopped.returncode == 0
    step = "venice restart kafka@lab-2"
    try:
        before = starts(deployed)
        output = venice("restart", "-i", "lab", "kafka@lab-1", expect=1)
        assert "may not restart while kafka@lab-2 is down" in output
        assert "first: venice restart kafka@lab-2" in output
        assert starts(deployed) == before
        wait_until(lambda: status()["next"][:1] == [step], "the status says what to do")
    finally:
        venice(*step.split()[1:], "-i", "lab")
    assert changed(deployed, before) == {("lab-2", "venice-kafka")}
    assert all(b["registered"] and b["in_sync"] == b["replicas"] for b in answered()["brokers"])


def test_connectors_run_again_when_the_workers_were_restarted(deployed):
    def running() -> set[str]:
        return {c["name"] for c in status()["connectors"] if c["running"]}

    wait_until(lambda: {"bus_locations_latest", "bus_locations_history", "venice_canary"} <= running(), "the connectors run")
    before, ran = starts(deployed), running()
    venice("restart", "-i", "lab", "connect")
    # the worker that came last gets its share of the tasks, which stop for that
    wait_until(lambda: ran <= running(), "they run again")
    assert changed(deployed, before) == {("lab-2", "venice-connect"), ("lab-3", "venice-connect")}


def test_plain_ansible_does_the_same(deployed):
    before = starts(deployed)
    ansible = str(Path(sys.executable).with_name("ansible-playbook"))
    command = [ansible, "-i", "inventory/lab", "playbooks/restart.yml", "-e", '{"venice_restart": ["schema-registry@lab-2"]}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout
    assert changed(deployed, before) == {("lab-2", "venice-schema-registry")}


def test_right_after_a_restart_the_status_is_good(deployed):
    """Though Docker looks at a container first an interval after its start."""

    def good_at_once() -> bool:
        """A status gives nobody much time: where the machine has much to do, it is tried with another restart."""
        venice("restart", "-i", "lab", "producer")
        command = [*VENICE, "status", "-i", "lab"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE, check=False).returncode == 0

    wait_until(good_at_once, "a good status right after a restart")


def test_what_is_not_named_is_chosen_from_a_list(deployed):
    before = starts(deployed)
    child = pexpect.spawn(
        VENICE[0], [*VENICE[1:], "restart", "-i", "lab"], cwd=str(ROOT), dimensions=(40, 100), encoding="utf8", timeout=PATIENCE
    )
    child.expect("Restart what")
    child.expect("all")
    child.send("\x1b[B" * selection.known(deployed).index("producer-bus-locations") + " \r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before
    assert changed(deployed, before) == {("lab-1", "venice-producer-bus-locations")}


def test_nothing_named_and_wrong_names_stop_nothing(deployed):
    before = starts(deployed)
    assert "what to restart is not named" in venice("restart", "-i", "lab", expect=2)
    assert "did you mean connect?" in venice("restart", "-i", "lab", "kafka", "konnect", expect=2)
    assert "it runs on lab-3" in venice("restart", "-i", "lab", "postgres@lab-1", expect=2)
    assert starts(deployed) == before


def test_many_questions_to_one_host_need_one_session(deployed):
    """Its SSH server allows ten; a host may have more containers."""
    with DockerHost(deployed.hosts["lab-1"]) as host:
        for number in range(15):
            with pytest.raises(VeniceError, match="No such container"):
                host.logs(f"nobody-{number}")


def test_status_says_what_its_schema_promises_and_can_be_watched(deployed):
    found = from_json(json.dumps(status()), "status")
    assert {c["host"] for c in found["containers"]} == set(HOSTS)
    assert "--watch needs a terminal" in venice("status", "-i", "lab", "--watch", expect=2)
    command = [*VENICE[1:], "status", "-i", "lab", "--watch", "1"]
    child = pexpect.spawn(VENICE[0], command, cwd=str(ROOT), dimensions=(24, 100), encoding="utf8", timeout=PATIENCE)
    times: set[str] = set()
    while len(times) < 3:  # a picture may be drawn twice; one that stands still ends in the terminal's time limit
        child.expect(r"lab at (\d\d:\d\d:\d\d), every 1 s")
        times.add(child.match[1])
        child.expect("healthy, not shown")  # too many for so few lines
        child.expect("venice_canary")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "bus_locations_latest" in child.before, "the last picture stays on the screen"
