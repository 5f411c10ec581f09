"""The programs of orders_to_postgres: what the generator sends, what the validator lets pass, and that nothing is lost or doubled."""

import importlib.util
import io
import itertools
import json
from collections import Counter
from decimal import Decimal
from types import SimpleNamespace

import fastavro
import pytest
from confluent_kafka import KafkaError, KafkaException
from jsonschema import Draft7Validator

from venice import paths

FOLDER = paths.resource("pipelines") / "orders_to_postgres"
SCHEMA = json.loads((FOLDER / "schemas" / "order.schema.json").read_text())
AVRO = fastavro.parse_schema(json.loads((FOLDER / "schemas" / "order_validated.avsc").read_text()))
ORDER = {
    "order_id": "o-1",
    "customer_id": "c-1",
    "sku": "mask",
    "quantity": 2,
    "amount": "49.80",
    "currency": "EUR",
    "status": "placed",
    "placed_at": "2026-01-02T03:04:05.678Z",
    "updated_at": "2026-01-02T04:04:05+01:00",
}


def program(name):
    spec = importlib.util.spec_from_file_location(f"orders_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def validator():
    return program("validator")


@pytest.fixture(scope="module")
def generator():
    return program("generator")


class FakeRegistry:
    """Versions of one subject by id; `away`: nobody answers."""

    def __init__(self):
        self.versions, self.away, self.asked = {7: SCHEMA}, False, 0

    def get_versions(self, subject):
        self.asked += 1
        if self.away:
            raise ConnectionError("refused")
        return list(range(1, len(self.versions) + 1))

    def get_version(self, subject, version):
        schema_id = list(self.versions)[version - 1]
        return SimpleNamespace(schema_id=schema_id, schema=SimpleNamespace(schema_str=json.dumps(self.versions[schema_id])))


def framed(value, schema_id=7):
    return b"\0" + schema_id.to_bytes(4, "big") + (value if isinstance(value, bytes) else json.dumps(value).encode())


def avro_bytes(order):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, AVRO, order)
    return out.getvalue()


# ---- what passes


def test_a_good_order_gets_exact_money_and_times(validator):
    order = validator.typed(validator.Orders(FakeRegistry(), "orders-value").check(framed(ORDER | {"quantity": 2.0})))
    back = fastavro.schemaless_reader(io.BytesIO(avro_bytes(order)), AVRO)
    assert back["amount"] == Decimal("49.80")
    assert back["quantity"] == 2
    assert back["placed_at"].isoformat() == "2026-01-02T03:04:05.678000+00:00"
    assert back["updated_at"].isoformat() == "2026-01-02T03:04:05+00:00"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no value"),
        (b"", "no Confluent serializer wrote it"),
        (b"garbage", "no Confluent serializer wrote it"),
        (json.dumps(ORDER).encode(), "no Confluent serializer wrote it"),
        (framed(ORDER, 8), "the schema id 8 is no version of orders-value"),
        (framed(b"{not json"), "not JSON: Expecting property name"),
        (framed(b"\xff\xfe"), "not JSON"),
        (framed(b"NaN"), "NaN is no JSON number"),
        (framed(b"[" * 100_000), "not JSON"),
        (framed([]), r"the order: \[\] is not of type 'object'"),
        (framed({k: v for k, v in ORDER.items() if k != "sku"}), "the order: 'sku' is a required property"),
        (framed(ORDER | {"quantity": 0}), "quantity: 0 is less than the minimum of 1"),
        (framed(ORDER | {"quantity": "2"}), "quantity: '2' is not of type 'integer'"),
        (framed(ORDER | {"amount": 49.8}), "amount: 49.8 is not of type 'string'"),
        (framed(ORDER | {"amount": "12345678901.00"}), "amount: .* does not match"),
        (framed(ORDER | {"customer_id": "a\0b"}), "customer_id: .* does not match"),  # PostgreSQL can't store it
        (framed(ORDER | {"status": "lost"}), "status: 'lost' is not one of"),
        (framed(ORDER | {"updated_at": "2026-02-30T00:00:00Z"}), "no such date"),
        (framed(ORDER | {"updated_at": "2026-02-01T00:00:00"}), "updated_at: .* does not match"),  # of which zone?
    ],
)
def test_bad_orders_are_refused_with_the_reason(validator, value, message):
    with pytest.raises(validator.BadRecordError, match=message):
        validator.typed(validator.Orders(FakeRegistry(), "orders-value").check(value))


def test_a_new_version_of_the_schema_is_noticed(validator):
    registry = FakeRegistry()
    orders = validator.Orders(registry, "orders-value")
    orders.check(framed(ORDER))
    registry.versions[9] = SCHEMA | {"properties": SCHEMA["properties"] | {"gift": {"type": "boolean"}}}
    assert orders.check(framed(ORDER | {"gift": True}, 9))["gift"] is True
    with pytest.raises(validator.BadRecordError, match="gift"):
        orders.check(framed(ORDER | {"gift": True}, 7))
    assert registry.asked == 2, "known ids ask nobody"


def test_a_registry_that_is_away_is_no_fault_of_the_records(validator):
    registry = FakeRegistry()
    registry.away = True
    with pytest.raises(validator.RegistryAwayError, match="refused"):
        validator.Orders(registry, "orders-value").check(framed(ORDER))


# ---- where it goes, against a Kafka that remembers


class Message:
    def __init__(self, partition, offset, value, headers=None):
        self._ = SimpleNamespace(partition=partition, offset=offset, value=value, headers=headers)

    def topic(self):
        return "orders"

    def partition(self):
        return self._.partition

    def offset(self):
        return self._.offset

    def key(self):
        return b"k"

    def value(self):
        return self._.value

    def headers(self):
        return self._.headers

    def timestamp(self):
        return (1, 1234)

    def error(self):
        return None


class FakeKafka:
    """Consumer and transactional producer in one: `sent` and `committed` change only by a commit. `trouble`: what calls raise, in turn."""

    def __init__(self, *values, headers=None):
        self.log = [Message(0, offset, value, headers) for offset, value in enumerate(values)]
        self.position, self.committed, self.sent = 0, 0, []
        self.open, self.offsets, self.trouble, self.calls = [], None, {}, []

    def _may(self, name):
        self.calls.append(name)
        if failures := self.trouble.get(name):
            raise KafkaException(failures.pop(0))

    def subscribe(self, topics, on_revoke, on_lost):
        self.revoke = on_revoke

    def poll(self, timeout):
        if self.position == len(self.log):
            return None
        self.position += 1
        return self.log[self.position - 1]

    def seek(self, position):
        self.position = position.offset

    def consumer_group_metadata(self):
        return "metadata"

    def list_topics(self, topic, timeout):
        self.validator.stop()  # all was read

    def close(self):
        pass

    def init_transactions(self, timeout):
        self._may("init")

    def begin_transaction(self):
        assert not self.open
        self._may("begin")

    def produce(self, **record):
        self._may("produce")
        self.open.append(record)

    def send_offsets_to_transaction(self, positions, metadata, timeout):
        self._may("offsets")
        self.offsets = positions[0].offset

    def commit_transaction(self, timeout):
        self._may("commit")
        self.sent, self.committed, self.open = self.sent + self.open, self.offsets, []

    def abort_transaction(self, timeout):
        self._may("abort")
        self.open = []


@pytest.fixture
def ran(validator, monkeypatch, tmp_path):
    monkeypatch.setattr(validator, "HEALTHY", tmp_path / "healthy")
    monkeypatch.setattr(validator, "RETRY_SECONDS", 0)

    def run(kafka, registry=None):
        convert = validator.converter(validator.Orders(registry or FakeRegistry(), "orders-value"), avro_bytes)
        kafka.validator = validator.Validator(kafka, kafka, convert, ("orders", "valid", "dead"), "orders_validator")
        kafka.validator.run()
        return kafka

    return run


def good(number):
    return framed(ORDER | {"order_id": f"o-{number}"})


def keys(kafka):
    return [record["key"] if record["topic"] == "valid" else record["value"] for record in kafka.sent]


def test_a_bad_record_in_the_middle_holds_up_nobody(ran):
    kafka = ran(FakeKafka(good(1), b"poison", good(2), headers=[("trace", b"t"), ("__connect.errors.topic", b"older")]))
    assert keys(kafka) == [b"o-1", b"poison", b"o-2"]
    assert kafka.committed == 3
    dead = kafka.sent[1]
    assert (dead["topic"], dead["key"], dead["timestamp"]) == ("dead", b"k", 1234)
    headers = dict(dead["headers"])
    assert len(headers) == len(dead["headers"]), "the reason of an earlier failure is replaced"
    assert headers["trace"] == b"t"
    assert headers["__connect.errors.topic"] == b"orders"
    assert headers["__connect.errors.partition"] == b"0"
    assert headers["__connect.errors.offset"] == b"1"
    assert headers["__connect.errors.connector.name"] == b"orders_validator"
    assert headers["__connect.errors.exception.class.name"] == b"BadRecordError"
    assert b"no Confluent serializer" in headers["__connect.errors.exception.message"]


def test_a_reason_is_short_however_large_the_record(ran):
    kafka = ran(FakeKafka(framed(ORDER | {"sku": "x" * 100_000})))
    assert len(dict(kafka.sent[0]["headers"])["__connect.errors.exception.message"]) < 1000


@pytest.mark.parametrize("where", ["produce", "offsets", "commit"])
def test_a_transaction_that_fails_is_taken_back_and_done_again(ran, where):
    kafka = FakeKafka(good(1), b"poison", good(2))
    kafka.trouble[where] = [KafkaError(KafkaError._FAIL, "no", False, False, True)]
    ran(kafka)
    assert kafka.calls.count("abort") == 1
    assert keys(kafka) == [b"o-1", b"poison", b"o-2"]
    assert kafka.committed == 3


@pytest.mark.parametrize("where", ["init", "offsets", "commit"])
def test_brokers_that_are_away_for_a_while_are_waited_for(ran, where):
    kafka = FakeKafka(good(1))
    kafka.trouble[where] = [KafkaError(KafkaError._TIMED_OUT, "away", False, True, False)] * 3
    ran(kafka)
    assert kafka.calls.count(where) == 4
    assert "abort" not in kafka.calls
    assert keys(kafka) == [b"o-1"]


def test_what_only_a_new_process_mends_ends_this_one(ran):
    kafka = FakeKafka(good(1))
    kafka.trouble["commit"] = [KafkaError(KafkaError._FENCED, "another has my id", True, False, False)]
    with pytest.raises(KafkaException):
        ran(kafka)
    assert kafka.sent == []


def test_a_partition_that_goes_to_another_takes_its_unsent_records_along(ran):
    kafka = FakeKafka(good(1), good(2))
    poll = kafka.poll

    def rebalance_after_the_first(timeout):
        message = poll(timeout)
        if message and message.offset() == 1:
            kafka.revoke(None, None)  # o-1 was read, not sent; the new owner begins at the committed offset 0
        return message

    kafka.poll = rebalance_after_the_first
    assert keys(ran(kafka)) == [b"o-2"]


def test_the_registry_is_waited_for(ran, monkeypatch):
    registry = FakeRegistry()
    registry.away = True
    load = registry.get_versions

    def back_at_the_third(subject):
        registry.away = registry.asked < 2
        return load(subject)

    monkeypatch.setattr(registry, "get_versions", back_at_the_third)
    assert keys(ran(FakeKafka(good(1)), registry)) == [b"o-1"]


# ---- the generator


def test_the_same_seed_and_time_give_the_same_orders(generator):
    assert generator.happens(1000, 1, 1) == generator.happens(1000, 1, 1)
    assert generator.happens(1000, 1, 1) != generator.happens(1000, 1, 2)


def test_what_is_generated_passes_the_validator(generator, validator):
    checker = Draft7Validator(SCHEMA)
    for order in itertools.chain.from_iterable(generator.happens(tick, 0.5, 1) for tick in range(2000, 2100)):
        checker.validate(order)
        avro_bytes(validator.typed(order))


def test_each_order_goes_its_way_once(generator):
    seen: dict[str, list[dict]] = {}
    for order in itertools.chain.from_iterable(generator.happens(tick, 1, 1) for tick in range(1000, 1200)):
        seen.setdefault(order["order_id"], []).append(order)
    whole = [changes for number in range(1000, 1170) if (changes := seen[f"o-{number}"])]
    ways = Counter(tuple(order["status"] for order in changes) for changes in whole)
    assert set(ways) == {("placed", "paid", "shipped", "delivered"), ("placed", "cancelled")}
    assert ways["placed", "cancelled"] < 40
    for changes in whole:
        assert [o["updated_at"] for o in changes] == sorted(o["updated_at"] for o in changes)
        assert len({(o["sku"], o["amount"], o["placed_at"]) for o in changes}) == 1
