"""The shipped pipeline orders_to_postgres: validated exactly once, bad records aside and repaired, a table and an audit table."""
# ruff: noqa: S608 (statements are put together from names that stand in this file)

import io
import json
import uuid
from collections import Counter

import fastavro
import httpx
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.lab.support import from_json, on, sql, status, take_away, venice
from tests.waiting import PATIENCE, wait_until
from venice import paths
from venice.connect import Connect
from venice.kafka import Kafka
from venice.registry import Registry

FOLDER = paths.resource("pipelines") / "orders_to_postgres"
UNDO = "DROP TABLE IF EXISTS orders, orders_audit CASCADE; DROP FUNCTION IF EXISTS orders_keep_newest, orders_audit_once"
PROGRAMS = {"producer-orders-validator", "producer-orders-generator"}
DEAD = "dlq.orders_validator"


@pytest.fixture(scope="module")
def applied(deployed, tmp_path_factory):
    """The cluster with the pipeline applied; `first` and `second` are what the two applies said."""
    empty = tmp_path_factory.mktemp("empty")
    take_away(deployed, FOLDER, empty, UNDO)
    deployed.first = venice("apply", str(FOLDER), "-i", "lab")
    deployed.second = venice("apply", str(FOLDER), "-i", "lab")
    yield deployed
    take_away(deployed, FOLDER, empty, UNDO)


@pytest.fixture(scope="module")
def shop(applied):
    return Shop(applied)


class Shop:
    """Sends orders, good and bad, beside those of the generator."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.registry = Registry.of(cluster)
        self.producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
        self.run = f"t{uuid.uuid4().hex[:8]}"

    def order(self, name, **fields):
        return {
            "order_id": f"{self.run}-{name}",
            "customer_id": "c-1",
            "sku": "mask",
            "quantity": 2,
            "amount": "49.80",
            "currency": "EUR",
            "status": "placed",
            "placed_at": "2026-01-02T03:04:05.678Z",
            "updated_at": "2026-01-02T03:04:05.678Z",
        } | fields

    def send(self, value, key="", topic="orders", partition=0):
        """A dict is framed and encoded by the topic's own schema; bytes go as they are."""
        if isinstance(value, dict):
            latest = self.registry.latest(f"{topic}-value")
            key = key or value["order_id"]
            value = b"\0" + latest["id"].to_bytes(4, "big") + self._encode(latest, value)
        self.producer.produce(topic, key=key, value=value, partition=partition)

    @staticmethod
    def _encode(latest, value):
        if latest.get("schemaType", "AVRO") == "JSON":
            return json.dumps(value).encode()
        out = io.BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(latest["schema"])), value)
        return out.getvalue()

    def acknowledged(self):
        assert self.producer.flush(120) == 0


def row(cluster, order_id, table="orders"):
    fields = "quantity || '|' || amount || '|' || status || '|' || to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')"
    return sql(cluster, f"SELECT string_agg({fields}, ' ' ORDER BY updated_at) FROM {table} WHERE order_id = '{order_id}'")


def arrives(cluster, order_id, table="orders"):
    return wait_until(lambda: row(cluster, order_id, table), f"{order_id} is in {table}")


def letters(queue=DEAD):
    lines = venice("dlq", "show", queue, "-i", "lab", "-n", "100", "-o", "json").splitlines()
    return [from_json(line, "dlq-show") for line in lines]


def test_the_second_apply_changes_nothing(applied):
    for thing in (
        *("topic orders", "topic orders_validated", f"topic {DEAD}", "schema orders-value", "schema orders_validated-value"),
        *("sql sql/tables.sql", "connector orders_table", "connector orders_audit"),
    ):
        assert f"+ {thing}" in applied.first
    assert applied.second.startswith("nothing changed on lab"), applied.second

    def healthy() -> bool:
        return {c["instance"] for c in status()["containers"] if c["health"] == "healthy"} >= PROGRAMS

    wait_until(healthy, "its programs are healthy")


def test_generated_orders_are_in_both_tables(applied):
    wait_until(lambda: sql(applied, "SELECT count(*) > 10 FROM orders WHERE order_id LIKE 'o-%'") == "t", "orders come")
    statuses = "SELECT count(DISTINCT status) > 2 FROM orders_by_status"
    wait_until(lambda: sql(applied, statuses) == "t", "orders go their way")
    # the newest state in the one table is the newest in the other; what is on its way between the two is left out
    differing = """
        SELECT count(*) FROM orders AS o JOIN orders_audit AS a USING (order_id)
        WHERE a.updated_at = o.updated_at
            AND (a.status, a.amount, a.sku, a.placed_at) IS DISTINCT FROM (o.status, o.amount, o.sku, o.placed_at)"""
    assert sql(applied, differing) == "0"
    both = "SELECT count(*) > 10 FROM orders AS o JOIN orders_audit AS a USING (order_id, status, updated_at, amount)"
    wait_until(lambda: sql(applied, both) == "t", "orders are in both")


def test_bad_orders_hold_up_nobody_and_a_repaired_one_goes_through(applied, shop):
    before = len(letters())
    shop.send(shop.order("1"))
    shop.send(b"poison", key="nobody")
    shop.send(shop.order("2", quantity=-3))
    shop.send(shop.order("3"))
    # meanwhile the second order is paid: its repaired first state will come late
    shop.send(shop.order("2", status="paid", updated_at="2026-01-03T00:00:00Z"))
    shop.acknowledged()
    assert arrives(applied, shop.order("3")["order_id"]) == "2|49.80|placed|2026-01-02 03:04:05.678"
    wait_until(lambda: row(applied, shop.order("1")["order_id"]) == "2|49.80|placed|2026-01-02 03:04:05.678", "the first order")
    poison, negative = wait_until(lambda: len(found := letters()[before:]) >= 2 and found, "dead letters")
    assert (poison["key"], poison["failure"]["topic"], poison["failure"]["connector"]) == ("nobody", "orders", "orders_validator")
    assert "no Confluent serializer wrote it" in poison["failure"]["message"]
    assert "quantity: -3 is less than the minimum of 1" in negative["failure"]["message"]

    # what would fail again is not sent
    replay = ["dlq", "replay", DEAD, "-i", "lab", "--offset", f"{negative['partition']}:{negative['offset']}"]
    assert "less than the minimum" in venice(*replay, "--set", "quantity=0", "--yes", expect=2)
    venice(*replay, "--set", "quantity=3", "--yes")
    repaired = shop.order("2")["order_id"]
    wait_until(lambda: "3|49.80|placed" in row(applied, repaired, "orders_audit"), "the repaired order is in the audit table")
    assert row(applied, repaired, "orders_audit") == "3|49.80|placed|2026-01-02 03:04:05.678 2|49.80|paid|2026-01-03 00:00:00.000"
    wait_until(lambda: row(applied, repaired), "the order is in the table")
    assert row(applied, repaired) == "2|49.80|paid|2026-01-03 00:00:00.000", "an older state does not undo a newer one"
    assert len(letters()) == before + 2, "it did not fail again"


def test_a_bad_record_among_the_validated_stops_no_sink(applied, shop):
    kafka = Kafka.of(applied)
    dead = [("dlq.orders_table", 0), ("dlq.orders_audit", 0)]
    before = {place: end for place, (_, end) in kafka.offsets(dead).items()}
    shop.send(b"poison", key="nobody", topic="orders_validated")
    shop.acknowledged()
    shop.send(shop.order("4"))
    shop.acknowledged()
    arrives(applied, shop.order("4")["order_id"])
    arrives(applied, shop.order("4")["order_id"], "orders_audit")
    for place in dead:
        wait_until(lambda p=place: kafka.offsets([p])[p][1] == before[p] + 1, f"one record more in {place[0]}")


def test_a_killed_validator_loses_and_doubles_nothing(applied, shop):
    """kill -9 while records go through it; Docker restarts it, and it takes up what was committed."""
    [host] = [c["host"] for c in status()["containers"] if c["instance"] == "producer-orders-validator"]
    its_pid = ["sudo", "docker", "inspect", "-f", "{{.State.Pid}}", "venice-producer-orders-validator"]
    total = 3000
    for number in range(total):
        if number % 500:
            shop.send(shop.order(f"k{number}"), partition=number % 3)
        else:
            shop.send(b"poison %d" % number, key=f"{shop.run}-k{number}", partition=number % 3)
        if number == total // 2:
            shop.acknowledged()
            pid = on(host, its_pid).stdout.strip()
            assert on(host, ["sudo", "kill", "-9", pid]).returncode == 0
    shop.acknowledged()
    found: Counter = Counter()
    with_prefix = f"{shop.run}-k".encode()
    settings = {"group.id": "orders_test", "enable.auto.commit": False, "isolation.level": "read_committed"}
    consumer = Consumer(settings | {"bootstrap.servers": applied.bootstrap_servers})
    consumer.assign([TopicPartition("orders_validated", n, 0) for n in range(3)] + [TopicPartition(DEAD, 0, 0)])

    def all_there():
        for message in consumer.consume(5000, timeout=1):
            if (message.key() or b"").startswith(with_prefix):
                found[message.key()] += 1
        return len(found) == total

    wait_until(all_there, "every record went somewhere")
    # what comes after them was read, too: nothing is on its way any more
    assert set(found.values()) == {1}
    consumer.close()
    audited = f"SELECT count(*) = {total - total // 500} FROM orders_audit WHERE order_id LIKE '{shop.run}-k%'"
    wait_until(lambda: sql(applied, audited) == "t", "all of them are in the audit table, once")


def test_delivered_again_is_in_the_audit_table_once(applied, shop):
    """As after a crash of a worker, only of everything: the sink begins at the first record again."""
    connect = Connect.of(applied)
    count = f"SELECT count(*) FROM orders_audit WHERE order_id LIKE '{shop.run}-%'"
    before = sql(applied, count)
    connect.stop("orders_audit")
    address = f"{applied.connect_urls[0]}/connectors/orders_audit/offsets"
    # its consumer leaves the group a moment after its task has ended; until then Connect refuses
    wait_until(lambda: httpx.delete(address, timeout=PATIENCE, trust_env=False).status_code == 200, "its offsets are deleted")
    connect.resume("orders_audit")
    shop.send(shop.order("last"))
    shop.acknowledged()
    arrives(applied, shop.order("last")["order_id"], "orders_audit")
    assert sql(applied, count) == str(int(before) + 1)
    assert connect.status("orders_audit").running
