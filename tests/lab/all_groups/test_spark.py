"""Spark on lab hosts: a pipeline's job, its windows against a recomputation, records that must not be counted, and kill -9."""

import io
import json
import random
import shutil
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import fastavro
import httpx
import pytest
import yaml
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.lab.support import HOSTS, ROOT, all_healthy, from_json, on, received, venice
from tests.waiting import PATIENCE, wait_until
from venice.cluster import Cluster
from venice.kafka import Kafka

SHIPPED = ROOT / "pipelines" / "transactions"
INPUT, OUTPUT, DEAD = "sparktest_transactions", "sparktest_windows", "dlq.sparktest"
JOB = "venice-spark-job-sparktest"
WINDOW_MS, LATENESS_MS = 3000, 1000
TRANSACTION = json.loads((SHIPPED / "schemas" / "transaction.avsc").read_text())
AGGREGATE = json.loads((SHIPPED / "schemas" / "aggregate.avsc").read_text())
PIPELINE = {
    "topics": [{"name": INPUT, "partitions": 3}, {"name": OUTPUT}, {"name": DEAD}],
    "schemas": [
        {"subject": f"{INPUT}-value", "file": "transaction.avsc"},
        {"subject": f"{OUTPUT}-value", "file": "aggregate.avsc"},
    ],
    "jobs": [
        {
            "name": "sparktest",
            "on": "spark",
            "script": "aggregate.py",
            "environment": {"INPUT": INPUT, "OUTPUT": OUTPUT, "DEAD_LETTERS": DEAD},
        }
    ],
}


class Transactions:
    """Sends framed transactions and remembers what their windows must hold."""

    def __init__(self, cluster: Cluster):
        self.kafka = Kafka.of(cluster)
        self.producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers, "linger.ms": 10})
        self.ident = httpx.get(f"{cluster.registry_urls[0]}/subjects/{INPUT}-value/versions/latest", timeout=PATIENCE).json()["id"]
        self.random = random.Random(7)  # noqa: S311 (no secret)
        self.paid: dict[int, list[float]] = defaultdict(list)
        self.newest = 0

    def frame(self, status: str, amount: float, event_ms: int) -> bytes:
        body = io.BytesIO()
        record = {"user_id": str(self.random.randrange(10**6)), "amount": amount, "status": status, "event_time": event_ms}
        fastavro.schemaless_writer(body, fastavro.parse_schema(dict(TRANSACTION)), record)
        return b"\0" + struct.pack(">I", self.ident) + body.getvalue()

    def send(self, seconds: float, per_second: int = 40, status: str = "") -> None:
        """Events of any status, up to 300 ms out of order, as time goes by: what is a second late is no window's any more."""
        begin = time.time()
        for number in range(int(seconds * per_second)):
            time.sleep(max(0.0, begin + number / per_second - time.time()))
            event = int(time.time() * 1000) - self.random.randrange(300)
            said, amount = status or self.random.choice(["paid", "pending", "cancelled"]), round(self.random.uniform(1, 500), 2)
            self.producer.produce(INPUT, key=str(number % 50), value=self.frame(said, amount, event))
            self.newest = max(self.newest, event)
            if said == "paid":
                self.paid[event // WINDOW_MS * WINDOW_MS].append(amount)
        assert self.producer.flush(120) == 0

    def final(self) -> dict[int, list[float]]:
        """Paid amounts of the windows that the newest event closes."""
        return {start: amounts for start, amounts in self.paid.items() if start + WINDOW_MS <= self.newest - LATENESS_MS}

    def read(self, topic: str) -> list:
        """All records of a topic."""
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "sparktest", "enable.auto.commit": False})
        try:
            ends = {
                p: consumer.get_watermark_offsets(TopicPartition(topic, p))[1] for p in consumer.list_topics(topic).topics[topic].partitions
            }
            consumer.assign([TopicPartition(topic, p, 0) for p in ends])
            found = []
            while len(found) < sum(ends.values()):
                message = received(consumer, f"the next of {sum(ends.values())} records")
                assert not message.error(), (message.error(), ends, len(found))
                found.append(message)
            return found
        finally:
            consumer.close()

    def windows(self) -> dict[int, list[dict]]:
        """What the job has written, by key."""
        found: dict[int, list[dict]] = defaultdict(list)
        for message in self.read(OUTPUT):
            found[int(message.key())].append(fastavro.schemaless_reader(io.BytesIO(message.value()[5:]), AGGREGATE))
        return found

    def wrong(self) -> dict[int, object]:
        """Windows that are not there or not as they must be, in any of the records of their key."""
        found, wrong = self.windows(), {}
        for start in found.keys() - self.final().keys():
            wrong[start] = ("not to be there yet", found[start])
        for start, amounts in self.final().items():
            right = {"total_amount": sum(amounts), "transactions": len(amounts), "avg_amount": sum(amounts) / len(amounts)}
            for row in found.get(start) or [None]:
                if row is None or any(row[key] != pytest.approx(value) for key, value in right.items()):
                    wrong[start] = (row, right)
                elif (row["window_start"].timestamp() * 1000, row["window_end"].timestamp() * 1000) != (start, start + WINDOW_MS):
                    wrong[start] = row
        return wrong


@pytest.fixture(scope="module")
def here(cluster: Cluster, inventory: Path) -> Iterator[Cluster]:
    """The cluster with one pipeline more, named by the inventory; it and all that it made are gone afterwards."""
    pipeline = inventory / "pipelines" / "sparktest"
    pipeline.mkdir(parents=True)
    for file in ("spark/aggregate.py", "schemas/transaction.avsc", "schemas/aggregate.avsc"):
        shutil.copy(SHIPPED / file, pipeline)
    (pipeline / "pipeline.yml").write_text(yaml.safe_dump(PIPELINE))
    variables = inventory / "group_vars" / "all.yml"
    text = variables.read_text()
    variables.write_text(text.replace("venice_pipelines: [bus_locations]", "venice_pipelines: [bus_locations, sparktest]"))
    try:
        venice("apply", "sparktest", "-i", str(inventory))
        yield Cluster.load(inventory)
    finally:
        (pipeline / "pipeline.yml").write_text("description: emptied\n")
        venice("apply", "sparktest", "-i", str(inventory), "--prune", "--yes")
        variables.write_text(text)
        shutil.rmtree(pipeline)


@pytest.fixture(scope="module")
def transactions(here: Cluster) -> Transactions:
    return Transactions(here)


def kill(host: str, container: str, process: str) -> None:
    """`kill -9` of the Java process of a container whose command line has `process`."""
    matching = f'grep -q "^java" $p/comm && grep -q {process} $p/cmdline'
    script = f"found=1; for p in /proc/[0-9]*; do {matching} && kill -9 ${{p#/proc/}} && found=0; done 2>/dev/null; exit $found"
    done = on(host, ["sudo", "docker", "exec", container, "sh", "-c", script])
    assert done.returncode == 0, done.stderr or f"nothing of {process} runs in {container}"


def job_host(cluster: Cluster) -> str:
    [job] = cluster.instances("spark_job")
    return job.host


def restarts(host: str, container: str) -> int:
    return int(on(host, ["sudo", "docker", "inspect", "--format", "{{.RestartCount}}", container]).stdout)


def healthy(host: str, container: str) -> bool:
    return on(host, ["sudo", "docker", "inspect", "--format", "{{.State.Health.Status}}", container]).stdout.strip() == "healthy"


def test_all_of_it_is_shown(here):
    place = str(here.inventory_dir)
    wanted = [("spark-master", "lab-1"), *(("spark-worker", host) for host in HOSTS), ("spark-job-sparktest", job_host(here))]
    wait_until(lambda: all_healthy(place, wanted), "all of Spark is healthy")
    pages = {page["name"]: page["url"] for page in from_json(venice("open", "-i", place, "--json"), "open")}
    assert httpx.get(pages["spark"], timeout=PATIENCE).status_code == 200
    assert "Active Streaming Queries" in httpx.get(pages["spark-jobs"], follow_redirects=True, timeout=PATIENCE).text
    [mine] = [p for p in from_json(venice("pipelines", "-i", place, "--json"), "pipelines")["pipelines"] if p["name"] == "sparktest"]
    assert (mine["state"], mine["differences"]) == ("in step", [])


def test_the_executor_runs_beside_its_driver(here):
    state = httpx.get(f"http://{here.instances('spark')[0].endpoint('ui')}/json/", timeout=PATIENCE).json()
    used = {worker["host"]: worker["coresused"] for worker in state["workers"] if worker["state"] == "ALIVE"}
    host = job_host(here)
    assert used == {f"{name}.spark": 2 if name == host else 0 for name in HOSTS}


def test_windows_are_those_of_a_recomputation(transactions):
    transactions.send(12)
    # whoever pays nothing moves the time on, too
    transactions.send(5, status="pending")
    assert len(transactions.final()) >= 4
    wait_until(lambda: transactions.wrong() == {}, "the windows that are closed, and no other")


def test_what_can_not_be_counted_stops_nothing(transactions):
    year = 365 * 86_400_000
    future = transactions.frame("paid", 1e6, int(time.time() * 1000) + year)
    for key, value in (
        ("future", future),
        ("garbage", b"no Avro"),
        ("cut", future[:9]),
        ("strange", b"\0\0\0\0\1" + future[5:]),
        ("empty", None),
    ):
        transactions.producer.produce(INPUT, key=key, value=value)
    transactions.send(8)
    wait_until(lambda: transactions.wrong() == {}, "the windows after them")
    wait_until(lambda: len(transactions.read(DEAD)) >= 5, "five dead letters")
    found = {m.key().decode(): (m.value(), dict(m.headers())["error"].decode()) for m in transactions.read(DEAD)}
    assert found["future"] == (future, "event_time is more than an hour ahead")
    assert {"garbage", "cut", "strange", "empty"} <= {key for key, (_, error) in found.items() if error.startswith("not Avro")}


@pytest.mark.parametrize(
    ("component", "process"),
    [("spark-job-sparktest", "SparkSubmit"), ("spark-worker", "CoarseGrainedExecutorBackend"), ("spark-worker", "deploy.worker.Worker")],
)
def test_a_killed_process_costs_no_window(here, transactions, component, process):
    host, container = job_host(here), f"venice-{component}"
    before = restarts(host, container)
    transactions.send(4)
    kill(host, container, process)
    transactions.send(4)
    if process != "CoarseGrainedExecutorBackend":
        wait_until(lambda: restarts(host, container) > before, "Docker starts it again")
    transactions.send(5)
    wait_until(lambda: transactions.wrong() == {}, "every window, each of its records right")
    wait_until(lambda: healthy(host, container) and healthy(host, JOB), "all healthy")


def test_logs_have_what_executors_say(here):
    said = venice("logs", "spark-worker", "-i", str(here.inventory_dir), "--tail", "200")
    assert "Launching executor" in said or "Asked to launch executor" in said
