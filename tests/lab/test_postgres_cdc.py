"""The shipped pipeline postgres_cdc: a table's changes in a topic and in a second table."""
# ruff: noqa: S608 (statements are put together from names that stand in this file, and from what the database answered)

import pytest
from confluent_kafka import Producer

from tests.lab.support import from_json, sql, take_away, venice
from tests.waiting import wait_until
from venice import paths
from venice.connect import Connect
from venice.kafka import Kafka

FOLDER = paths.resource("pipelines") / "postgres_cdc"
SOURCE, SINK = "customers_source", "customers_copy"
# the slot is free a moment after its connector was deleted
UNDO = """
DROP PUBLICATION IF EXISTS venice_customers;
DROP TABLE IF EXISTS customers, customers_copy;
SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'venice_customers' AND active;
"""
DROP_SLOT = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_name = 'venice_customers'"
FREE = "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'venice_customers' AND active)"


@pytest.fixture(scope="module")
def applied(deployed, tmp_path_factory):
    """The cluster with the pipeline applied; `first` and `second` are what the two applies said."""
    empty = tmp_path_factory.mktemp("empty")

    def away():
        take_away(deployed, FOLDER, empty, UNDO)
        drop_slot(deployed)

    away()
    deployed.first = venice("apply", str(FOLDER), "-i", "lab")
    deployed.second = venice("apply", str(FOLDER), "-i", "lab")
    yield deployed
    away()


def drop_slot(cluster):
    wait_until(lambda: sql(cluster, FREE) == "t", "the slot is free")
    sql(cluster, DROP_SLOT)


def change(cluster, statements):
    """Changes the source table as the pipelines' own role."""
    sql(cluster, f"SET ROLE venice; {statements}")


def same(cluster):
    """Waits until both tables hold the same rows: every column of the source's."""
    columns = sql(cluster, "SELECT string_agg(column_name, ', ') FROM information_schema.columns WHERE table_name = 'customers'")
    one, two = f"SELECT {columns} FROM customers", f"SELECT {columns} FROM customers_copy"
    query = f"SELECT count(*) FROM (({one} EXCEPT {two}) UNION ALL ({two} EXCEPT {one})) AS different"
    wait_until(lambda: sql(cluster, query) == "0", "the copy holds what the source holds")


def test_the_second_apply_changes_nothing(applied):
    for thing in ("topic customers", "sql sql/tables.sql", f"connector {SOURCE}", f"connector {SINK}"):
        assert f"+ {thing}" in applied.first
    assert applied.second.startswith("nothing changed on lab")


def test_inserts_updates_and_deletes_reach_the_copy(applied):
    change(
        applied,
        "INSERT INTO customers (name, email, credit, notes) VALUES ('Ada', 'ada@example.org', 12.30,"
        " (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) AS n)), ('Bob', NULL, 0, NULL), ('Cy', NULL, -0.01, '')",
    )
    wait_until(lambda: sql(applied, "SELECT to_regclass('customers_copy') IS NOT NULL") == "t", "the copy is made")
    same(applied)
    types = "SELECT string_agg(data_type, ',' ORDER BY column_name) FROM information_schema.columns WHERE table_name = '{}'"
    assert sql(applied, types.format("customers_copy")) == sql(applied, types.format("customers"))
    # Ada's long text is not in the log again: it must not be lost by an update of something else
    change(applied, "UPDATE customers SET credit = 99.99 WHERE name = 'Ada'; DELETE FROM customers WHERE name = 'Bob'")
    same(applied)
    assert sql(applied, "SELECT count(*), max(length(notes)), max(credit) FROM customers_copy") == "2|32000|99.99"


def test_any_client_can_read_the_topic(applied):
    """The connector writes as Confluent's serializers do: Avro, the schema's id before it, key and value."""
    lines = venice("topics", "show", "customers", "-i", "lab", "-n", "1", "-o", "json").splitlines()
    [record] = [from_json(line, "topics-show") for line in lines]
    assert (record["key_format"], record["key"]) == ("avro", {"id": 2})  # Bob was the last: deleted
    assert record["value"] is None
    lines = venice("topics", "show", "customers", "-i", "lab", "-n", "3", "--from-beginning", "-o", "json").splitlines()
    ada, bob, _ = [from_json(line, "topics-show") for line in lines]
    assert (ada["value_format"], ada["value_schema"]["subject"]) == ("avro", "customers-value")
    assert (ada["value"]["name"], ada["value"]["credit"], bob["value"]["name"]) == ("Ada", "12.30", "Bob")


def test_a_new_column_comes_along(applied):
    change(applied, "ALTER TABLE customers ADD COLUMN phone text; INSERT INTO customers (name, phone) VALUES ('Di', '555')")
    wait_until(lambda: sql(applied, "SELECT count(*) FROM customers_copy WHERE name = 'Di'") == "1", "Di is there")
    same(applied)


def test_a_bad_record_stops_nothing(applied):
    kafka = Kafka.of(applied)
    (before,) = [end for _, end in kafka.offsets([("dlq.customers_copy", 0)]).values()]
    producer = Producer({"bootstrap.servers": applied.bootstrap_servers})
    producer.produce("customers", key=b"no key of Debezium's", value=b"poison")
    assert producer.flush(120) == 0
    change(applied, "UPDATE customers SET name = 'Cyrus' WHERE name = 'Cy'")
    same(applied)
    wait_until(lambda: [end for _, end in kafka.offsets([("dlq.customers_copy", 0)]).values()] == [before + 1], "it is a dead letter")


def test_a_lost_slot_is_mended_by_reading_the_table_again(applied):
    """As after a gigabyte of log that nobody read, or when the pipeline was taken away and comes back."""
    connect = Connect.of(applied)
    connect.stop(SOURCE)
    drop_slot(applied)
    change(applied, "INSERT INTO customers (name) VALUES ('Eve'); UPDATE customers SET credit = 1 WHERE name = 'Di'")
    venice("apply", str(FOLDER), "-i", "lab")
    same(applied)
    change(applied, "DELETE FROM customers WHERE name = 'Eve'")
    same(applied)


def test_a_quiet_table_holds_no_log_back(applied):
    """The buses write to the same database all the time; nothing happens to the customers."""
    here = sql(applied, "SELECT pg_current_wal_lsn()")
    passed = f"SELECT confirmed_flush_lsn >= '{here}'::pg_lsn FROM pg_replication_slots WHERE slot_name = 'venice_customers'"
    wait_until(lambda: sql(applied, passed) == "t", "the slot moves on")


def test_the_reader_of_the_log_may_do_nothing_else(applied):
    role = "venice_replication"
    assert sql(applied, f"SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls FROM pg_roles WHERE rolname = '{role}'") == "f"
    may = "SELECT string_agg(table_name || ' ' || privilege_type, ',') FROM information_schema.role_table_grants WHERE grantee = '{}'"
    assert sql(applied, may.format(role)) == "customers SELECT"
    assert sql(applied, f"SELECT has_schema_privilege('{role}', 'public', 'CREATE')") == "f"
