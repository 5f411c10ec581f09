"""The same transactions through Flink, Spark and Pinot at once, judged by `venice verify`; records that come late, or from the future."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.support import ROOT, VENICE, kill, sql, take_away, venice, verified
from tests.waiting import PATIENCE, wait_until
from venice.cluster import Cluster
from venice.kafka import Kafka

SHIPPED = ROOT / "pipelines" / "transactions"
ENGINES = ("flink", "spark", "pinot")
TABLES = [f"transactions_aggregate_{engine}" for engine in ("flink", "ksql", "spark", "pinot")]
UNDO = f"DROP TABLE IF EXISTS {', '.join(TABLES)}"
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def applied(cluster: Cluster, inventory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The inventory, with the pipeline `transactions` on all of its engines; all that it made is gone afterwards."""
    empty = tmp_path_factory.mktemp("empty")
    take_away(cluster, SHIPPED, empty, UNDO, inventory)
    venice("apply", "pipelines/transactions", "-i", str(inventory))
    yield str(inventory)
    take_away(cluster, SHIPPED, empty, UNDO, inventory)


def ends(cluster: Cluster, topic: str) -> int:
    """The sum of a topic's newest offsets."""
    # three engines and ten senders share the brokers' two cores
    kafka = Kafka.of(cluster, timeout=PATIENCE)
    return sum(end for _, end in kafka.offsets((topic, part.id) for part in kafka.partitions(topic)).values())


def right(inventory: str) -> dict | None:
    """The verdict once every engine has published all windows; fails as soon as one is wrong."""
    found = verified(inventory)
    for engine in found["engines"]:
        assert not engine["wrong"] and not engine["duplicate"], engine
    return found if found["exit"] == 0 and not any(engine["open"] for engine in found["engines"]) else None


def test_it_is_in_step_on_every_engine(applied):
    assert "in step" in venice("diff", "pipelines/transactions", "-i", applied)
    assert "nothing changed" in venice("apply", "pipelines/transactions", "-i", applied)


def test_every_window_is_equal_on_every_engine_though_the_jobmanager_is_killed(cluster, applied):
    command = [*VENICE, "data", "transactions", "-i", applied, "-n", "20000", "--rate", "800", "--json"]
    sending = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def half_sent() -> bool:
        assert sending.poll() in (None, 0), sending.communicate()
        return ends(cluster, "transactions") > 10_000

    wait_until(half_sent, "half of the records are sent")
    [manager] = [i for i in cluster.instances("flink") if i.vars["kind"] == "jobmanager"]
    kill(manager.host, manager.container)
    output, _ = sending.communicate(timeout=PATIENCE)
    sent = json.loads(output)
    assert sending.returncode == 0 and sent["acknowledged"] == 20_000
    found = wait_until(lambda: right(applied), "all windows of all engines")
    assert {engine["engine"] for engine in found["engines"]} == set(ENGINES)
    paid = sum(row["records"] for row in sent["sent"] if row["of"]["status"] == "paid")
    assert found["counted"] == paid
    assert {engine["equal"] for engine in found["engines"]} == {found["windows"]}, "no window was only possibly right"
    for engine in ENGINES:
        table = f"transactions_aggregate_{engine}"
        wait_until(lambda table=table: sql(cluster, f"SELECT sum(transactions) FROM {table}") == str(paid), f"all in {table}")  # noqa: S608
    [row] = json.loads(venice("sql", "-i", applied, "--json", "-e", "SELECT COUNT(*) AS n FROM transactions"))["rows"]
    assert row["n"] == found["records"]


def test_late_events_a_quiet_partition_and_the_far_future(cluster, applied):
    from confluent_kafka import Producer
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "linger.ms": 0})
    settings = {"auto.register.schemas": False, "use.latest.version": True}
    serializer = AvroSerializer(SchemaRegistryClient({"url": cluster.registry_urls[0]}), conf=settings)

    def send(partition: int, at: float, status: str = "paid") -> None:
        record = {"user_id": "1-test", "amount": 10.0, "status": status, "event_time": round(at)}
        producer.produce("transactions", serializer(record, SerializationContext("transactions", MessageField.VALUE)), "1-test", partition)
        assert producer.flush(120) == 0

    before = verified(applied)
    earlier = {engine["engine"]: engine["equal"] + engine["uncertain"] for engine in before["engines"]}

    def came(found: dict) -> bool:
        """Whether all engines have published some of it."""
        return all(e["equal"] + e["uncertain"] >= earlier[e["engine"]] + 6 for e in found["engines"])

    def go_on() -> bool:
        """Sends to all partitions but the last for some seconds; whether it came."""
        for _ in range(24):
            now = time.time() * 1000
            for partition in (0, 1):
                # up to 800 ms out of order
                send(partition, now)
                send(partition, now - 800)
            if not round(now / 1000) % 6:
                send(0, now - 15_000)  # too late on its own partition for certain
                send(1, now + DAY_MS)  # moves nothing on
            time.sleep(0.25)
        return came(verified(applied))

    wait_until(go_on, "windows that a quiet partition does not hold back")
    for partition in range(3):
        send(partition, time.time() * 1000 + 5_000, "closing")
    found = wait_until(lambda: right(applied), "all windows of all engines")
    assert found["ahead"] > before["ahead"]
    assert came(found), found
    for dlq in ("dlq.transactions", "dlq.transactions_spark"):
        assert ends(cluster, dlq) >= found["ahead"], dlq
