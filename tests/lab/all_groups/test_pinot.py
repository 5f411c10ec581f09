"""ZooKeeper and Pinot on lab hosts: a table declared by a pipeline, windows counted and sent once, also when a server is killed."""

import random
import shutil
import time
from collections import defaultdict
from pathlib import Path

import httpx
import pytest
import yaml

from tests.lab.support import ROOT, from_json, kill, on, starts, venice
from tests.waiting import PATIENCE, wait_until
from venice.cluster import Cluster
from venice.errors import VeniceError
from venice.pinot import Pinot

TABLE, RESULTS = "pinot_transactions", "pinot_aggregates"
SHIPPED = ROOT / "pipelines" / "transactions"
PIPELINE = f"""
topics:
  - {{name: {TABLE}, partitions: 3}}
  - {{name: {RESULTS}}}
schemas:
  - {{subject: {TABLE}-value, file: transaction.avsc}}
  - {{subject: {RESULTS}-value, file: aggregate.avsc}}
pinot:
  - {{schema: table.schema.json, table: table.json}}
producers:
  - name: pinot-check
    script: publisher.py
    topic: {RESULTS}
    environment:
      PINOT_BROKER: ${{pinot_broker_url}}
      PINOT_CONTROLLER: ${{pinot_controller_url}}
      TABLE: {TABLE}
      INPUT: {TABLE}
    health: [health]
"""
WINDOW = 3_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pipeline transactions has for Pinot, under names of these tests."""
    found = tmp_path_factory.mktemp("pipelines") / "pinot_check"
    found.mkdir()
    (found / "pipeline.yml").write_text(PIPELINE)
    for schema in ("transaction.avsc", "aggregate.avsc"):
        shutil.copy(SHIPPED / "schemas" / schema, found)
    shutil.copy(SHIPPED / "pinot_publisher.py", found / "publisher.py")
    for name, of in (("table.schema.json", "transactions.schema.json"), ("table.json", "transactions.table.json")):
        text = (SHIPPED / "pinot" / of).read_text()
        (found / name).write_text(text.replace('"transactions"', f'"{TABLE}"'))
    return found


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster, inventory: Path, folder: Path):
    """The folder, applied; afterwards all that it made is removed."""
    venice("apply", str(folder), "-i", str(inventory))
    yield folder
    (folder / "pipeline.yml").write_text("description: emptied\n")
    venice("apply", str(folder), "-i", str(inventory), "--prune", "--yes")
    for subject in (f"{TABLE}-value", f"{RESULTS}-value"):
        venice("schemas", "delete", subject, "-i", str(inventory), "--permanent", "--yes")


class Feed:
    """Sends transactions and remembers what their windows have to be."""

    def __init__(self, cluster: Cluster):
        from confluent_kafka import Producer
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.avro import AvroSerializer

        self.producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
        settings = {"auto.register.schemas": False, "use.latest.version": True}
        self.serializer = AvroSerializer(SchemaRegistryClient({"url": cluster.registry_urls[0]}), conf=settings)
        self.expected: dict[int, list[float]] = defaultdict(list)
        self.sent = 0
        self.random = random.Random(7)  # noqa: S311 (no secret)

    def send(self, at: int, amount: float, status: str = "paid", partition: int = -1) -> None:
        """One transaction with this time (ms)."""
        from confluent_kafka.serialization import MessageField, SerializationContext

        user = f"user-{self.random.randrange(40)}"
        record = {"user_id": user, "amount": amount, "status": status, "event_time": at}
        value = self.serializer(record, SerializationContext(TABLE, MessageField.VALUE))
        self.producer.produce(TABLE, value, user, partition)
        self.sent += 1
        if status == "paid":
            self.expected[at // WINDOW * WINDOW].append(amount)

    def stream(self, begin: int, seconds: int, per_second: int = 20) -> int:
        """Transactions from `begin` on, up to 900 ms out of order, and one in each partition that closes their windows."""
        for n in range(seconds * per_second):
            at = begin + 1_000 + n * 1_000 // per_second - self.random.randrange(900)
            self.send(at, round(self.random.uniform(1, 500), 2), self.random.choice(("paid", "paid", "pending", "failed")))
        end = (begin // WINDOW + seconds // 3 + 2) * WINDOW
        for partition in range(3):
            self.send(end + 1_000, 1.0, "pending", partition)
        assert self.producer.flush(120) == 0
        return end


def results(cluster: Cluster) -> list[tuple[int, dict]]:
    """(key, value) of all that the publisher has sent and committed, oldest first."""
    from confluent_kafka import Consumer, TopicPartition
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer

    decode = AvroDeserializer(SchemaRegistryClient({"url": cluster.registry_urls[0]}))
    settings = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": "pinot-check", "isolation.level": "read_committed"}
    consumer = Consumer(settings | {"enable.auto.commit": False, "enable.partition.eof": True})
    consumer.assign([TopicPartition(RESULTS, 0, 0)])
    found = []
    while (message := consumer.poll(10)) and not message.error():
        found.append((int(message.key()), decode(message.value(), None)))
    consumer.close()
    return found


def rows(cluster: Cluster) -> int | None:
    """How many rows the table has; None while Pinot can't say."""
    try:
        return Pinot.of(cluster).query(f"SELECT count(*) FROM {TABLE}")[0][0]  # noqa: S608
    except VeniceError:
        return None


def published(cluster: Cluster, feed: Feed, end: int) -> list[tuple[int, dict]] | None:
    """The windows in the topic once all before `end` are there."""
    found = results(cluster)
    wanted = [start for start in feed.expected if start + WINDOW <= end]
    return found if len(found) >= len(wanted) else None


def check(found: list[tuple[int, dict]], feed: Feed, end: int) -> None:
    """Each window of before `end` once, in order, with the numbers that a plain count gives."""
    assert [start for start, _ in found] == sorted(start for start in feed.expected if start + WINDOW <= end)
    for start, value in found:
        amounts = feed.expected[start]
        assert value["transactions"] == len(amounts)
        assert value["total_amount"] == pytest.approx(sum(amounts), rel=1e-9)
        assert value["avg_amount"] == pytest.approx(sum(amounts) / len(amounts), rel=1e-9)


@pytest.fixture(scope="module")
def feed(cluster: Cluster, pipeline: Path) -> Feed:
    """The table's topic, once it is there."""
    return Feed(cluster)


def test_the_services_are_spread_and_one_zookeeper_leads(cluster: Cluster):
    names = {(i.name, i.host) for i in cluster.instances("pinot")}
    assert names == {("pinot-controller", "lab-1"), ("pinot-broker", "lab-2"), ("pinot-server", "lab-3")}
    modes = []
    for node in cluster.instances("zookeeper"):
        done = on(node.host, ["sudo", "docker", "exec", node.container, "zookeeper-health", "localhost:2181"])
        assert done.returncode == 0, done.stdout
        modes.append(done.stdout.split()[-1])
    assert sorted(modes) == ["follower", "follower", "leader"]
    [page] = from_json(venice("open", "pinot", "-i", str(cluster.inventory_dir), "--json"), "open")
    assert httpx.get(page["url"], trust_env=False, timeout=PATIENCE).status_code == 200


def test_a_second_deployment_changes_nothing(cluster: Cluster, inventory: Path):
    before = starts(cluster)
    venice("deploy", "-i", str(inventory))
    assert starts(cluster) == before


def test_windows_are_those_of_a_plain_count(cluster: Cluster, feed: Feed):
    begin = (int(time.time() * 1000) - 3_600_000) // WINDOW * WINDOW
    end = feed.stream(begin, 12)
    # far ahead: moves nothing on
    feed.send(int(time.time() * 1000) + 86_400_000, 5.0, "pending")
    feed.producer.flush(120)
    wait_until(lambda: rows(cluster) == feed.sent, "all rows in the table")
    found = wait_until(lambda: published(cluster, feed, end), "all windows in the topic")
    check(found, feed, end)


def test_a_killed_server_reads_again_and_no_window_comes_twice(cluster: Cluster, feed: Feed, pipeline: Path):
    [server] = [i for i in cluster.instances("pinot") if i.name == "pinot-server"]
    begin = (int(time.time() * 1000) - 1_800_000) // WINDOW * WINDOW
    kill(server.host, server.container)
    end = feed.stream(begin, 9)
    found = wait_until(lambda: published(cluster, feed, end), "all windows in the topic")
    check(found, feed, end)


def test_a_changed_table_is_shown_and_changed(cluster: Cluster, inventory: Path, pipeline: Path):
    assert "in step" in venice("diff", str(pipeline), "-i", str(inventory))
    table = pipeline / "table.json"
    text = table.read_text()
    table.write_text(text.replace('"200000"', '"150000"'))
    said = venice("diff", str(pipeline), "-i", str(inventory), expect=1)
    assert f"~ table {TABLE}" in said and "flush.threshold.rows: 200000 -> 150000" in said
    plan = from_json(venice("diff", str(pipeline), "-i", str(inventory), "--json", expect=1), "diff")
    assert [c["kind"] for p in plan["pipelines"] for c in p["changes"]] == ["table"]
    venice("apply", str(pipeline), "-i", str(inventory))
    assert "in step" in venice("diff", str(pipeline), "-i", str(inventory))
    table.write_text(text.replace('"timeColumnName": "event_time"', '"timeColumnName": "when"'))
    assert "table.json" in (said := venice("diff", str(pipeline), "-i", str(inventory), expect=2)) and "when" in said
    table.write_text(text.replace('"loadMode"', '"laodMode"'))
    said = venice("diff", str(pipeline), "-i", str(inventory), expect=2)
    line = next(n for n, line in enumerate(table.read_text().splitlines(), 1) if "laodMode" in line)
    assert f"table.json:{line}:" in said and "laodMode" in said
    table.write_text(text)
    venice("apply", str(pipeline), "-i", str(inventory))


@pytest.fixture
def these_two(inventory: Path, tmp_path: Path) -> str:
    """The same cluster as if it had only Pinot and ZooKeeper: what else runs there need not stop and start with them."""
    folder = tmp_path / "lab"
    shutil.copytree(inventory, folder, symlinks=True)
    document = yaml.safe_load((folder / "hosts.yml").read_text())
    groups = document["all"]["children"]
    document["all"]["children"] = {name: groups[name] for name in ("zookeeper", "pinot")}
    (folder / "hosts.yml").write_text(yaml.safe_dump(document))
    variables = folder / "group_vars" / "all.yml"
    variables.write_text(variables.read_text().replace("venice_pipelines: [bus_locations]", "venice_pipelines: []"))
    return str(folder)


# the order alone is in tests/unit
@pytest.mark.long
def test_pinot_stops_before_zookeeper_and_comes_back(cluster: Cluster, feed: Feed, these_two: str):
    before = rows(cluster)
    assert before == feed.sent
    assert cluster.order.index("zookeeper") < cluster.order.index("pinot")
    venice("down", "-i", these_two)
    stopped = {}
    for instance in (*cluster.instances("pinot"), *cluster.instances("zookeeper")):
        done = on(instance.host, ["sudo", "docker", "inspect", "--format", "{{.State.ExitCode}} {{.State.FinishedAt}}", instance.container])
        code, at = done.stdout.split()
        # 143: ended in order on SIGTERM; 137 would be killed, its time was over
        assert code in ("0", "143"), (instance.name, done.stdout)
        stopped.setdefault(instance.component, []).append(at)
    assert max(stopped["pinot"]) <= min(stopped["zookeeper"])
    venice("up", "-i", these_two)
    wait_until(lambda: rows(cluster) == before, "the same rows again")
