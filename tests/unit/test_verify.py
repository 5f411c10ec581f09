"""Windows recomputed from a topic, and the verdicts on what engines published."""

import io
import json
from types import SimpleNamespace

import fastavro
import pytest
from click.testing import CliRunner

from venice import kafka, paths, registry, verify
from venice.errors import InputError, VeniceError
from venice.messages import Record, Span
from venice.verify import DUPLICATE, EQUAL, MISSING, OPEN, UNCERTAIN, WRONG, Event, Values, Window, compare, expect

PIPELINE = paths.resource("pipelines") / "transactions"
# a window's start
T = 1_500_000_000_000
NOW = T + 3_600_000
SIZE = 3000


class Topic:
    """Events of three partitions, in the order in which they are added; each arrives when it happens unless said otherwise."""

    def __init__(self):
        self.events = []

    def add(self, partition, at, amount=10.0, arrived=None):
        """`at`, `arrived`: ms after T."""
        self.events.append(Event(partition, len(self.events), T + (at if arrived is None else arrived), T + at, amount))
        return self

    def close(self, at, partitions=(0, 1, 2)):
        """A record in each partition that counts in no window."""
        for partition in partitions:
            self.add(partition, at, None)
        return self

    def expected(self, now=NOW):
        return expect(self.events, SIZE, now)


def window(number=0, count=2, total=30.0, average=None, end=None):
    start = T + number * SIZE
    return Window(start, start + SIZE if end is None else end, total, count, total / count if average is None else average)


def verdicts(topic, *published, now=NOW):
    return [judged.verdict for judged in compare(topic.expected(now), published)]


@pytest.fixture
def topic():
    """Two transactions in the first window, in two partitions, and what closes it."""
    return Topic().add(0, 100, 10.0).add(1, 2999, 20.0).add(2, 50, None).close(4000)


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_equal(topic):
    assert verdicts(topic, window()) == [EQUAL]


def test_sums_in_another_order_are_equal():
    topic = Topic()
    for amount in (0.1, 0.2, 0.3):
        topic.add(0, 10, amount)
    assert verdicts(topic.close(4000), window(0, 3, 0.3 + 0.2 + 0.1)) == [EQUAL]


def test_missing(topic):
    assert verdicts(topic) == [MISSING]


@pytest.mark.parametrize("second", [window(), window(0, 1, 10.0)])
def test_duplicate_whether_it_says_the_same_or_not(topic, second):
    assert verdicts(topic, window(), second) == [DUPLICATE]


@pytest.mark.parametrize(
    "published",
    [
        window(0, 2, 30.01),
        window(0, 3, 30.0),
        window(0, 1, 10.0),
        window(0, 2, 30.0, average=30.0),
        window(0, 2, 30.0, end=T + 3001),
    ],
)
def test_wrong_numbers(topic, published):
    assert verdicts(topic, published) == [WRONG]


def test_a_window_without_transactions_is_wrong_and_comes_in_order(topic):
    found = compare(topic.expected(), [window(-1, 1, 10.0), window()])
    assert [(w.start, w.verdict, w.expected is None) for w in found] == [(T - SIZE, WRONG, True), (T, EQUAL, False)]


def test_the_boundary_belongs_to_the_next_window():
    topic = Topic().add(0, 2999, 10.0).add(0, 3000, 20.0).close(8000)
    assert verdicts(topic, window(0, 1, 10.0), window(1, 1, 20.0)) == [EQUAL, EQUAL]


def test_what_is_not_paid_counts_in_no_window_but_moves_the_time_on():
    topic = Topic().add(0, 100, None).close(4000)
    assert topic.expected() == {}
    # without those that are not paid the window would be open
    assert verdicts(Topic().add(0, 100)) == [OPEN]
    assert verdicts(Topic().add(0, 100).add(0, 4000, None)) == [MISSING]


# ---- which windows have to be there ---------------------------------------------------------------------------------


def test_open_until_every_partition_is_a_second_past_its_end():
    topic = Topic().add(0, 100, 10.0).add(1, 200, 20.0).close(4000, [0]).close(3999, [1])
    assert verdicts(topic) == [OPEN]
    assert verdicts(topic, window()) == [EQUAL]
    assert verdicts(topic.close(4000, [1])) == [MISSING]


def test_an_open_window_may_have_less_but_not_more(topic):
    topic = Topic().add(0, 100, 10.0).add(1, 200, 20.0)
    assert verdicts(topic, window(0, 1, 10.0)) == [OPEN]
    assert verdicts(topic, window(0, 3, 40.0)) == [WRONG]


def test_what_closes_a_window_has_to_be_there_for_a_while(topic):
    assert verdicts(topic, now=T + 4000 + 9_999) == [OPEN]
    assert verdicts(topic, now=T + 4000 + 10_000) == [MISSING]


def test_a_partition_that_goes_idle_holds_nothing_back():
    topic = Topic().add(2, 100, 10.0).add(0, 100, 20.0).close(70_000, [0, 1])
    assert verdicts(topic) == [OPEN]  # it was not quiet for long enough
    topic.close(70_101, [0, 1])
    assert verdicts(topic) == [MISSING]
    assert verdicts(topic, window()) == [EQUAL]


def test_a_partition_that_never_had_anything_holds_nothing_back():
    assert verdicts(Topic().add(0, 100).close(4000, [0])) == [MISSING]


def test_an_idle_topic_closes_nothing_by_itself():
    assert verdicts(Topic().add(0, 100).add(1, 2000), now=NOW + 86_400_000) == [OPEN]


# ---- out of order and late ------------------------------------------------------------------------------------------


def test_out_of_order_within_a_second_counts():
    # the newest one is not yet a second past the window's end
    topic = Topic().add(0, 2000, 10.0).add(0, 3998, None).add(0, 2999, 20.0, arrived=3999).close(8000)
    assert verdicts(topic, window()) == [EQUAL]
    assert verdicts(topic, window(0, 1, 10.0)) == [WRONG]


@pytest.mark.parametrize(
    ("published", "verdict"),
    [
        (window(0, 1, 10.0), UNCERTAIN),
        (window(0, 2, 30.0), UNCERTAIN),
        (window(0, 2, 31.0), WRONG),
        (window(0, 1, 20.0), WRONG),
        (window(0, 3, 30.0), WRONG),
    ],
)
def test_late_may_or_may_not_count(published, verdict):
    topic = Topic().add(0, 100, 10.0).add(0, 3999, None).add(0, 200, 20.0, arrived=4100).close(8000)
    assert verdicts(topic, published) == [verdict]
    assert topic.expected()[T].count == (1, 2) and topic.expected()[T].total == (10.0, 30.0)


def test_of_several_late_ones_any_number_may_count():
    topic = Topic().add(0, 100, 10.0).add(0, 9000, None)
    for amount in (20.0, 30.0, 40.0):
        topic.add(0, 200, amount, arrived=9100)
    topic.close(20_000)
    assert verdicts(topic, window(0, 3, 80.0)) == [UNCERTAIN]
    assert verdicts(topic, window(0, 3, 101.0)) == [WRONG]
    # the others must be there all the same
    assert verdicts(topic) == [MISSING]


def test_a_window_of_late_ones_alone_may_be_there_or_not():
    topic = Topic().add(0, 9000, None).add(0, 200, 20.0, arrived=9100).close(20_000)
    assert verdicts(topic) == [UNCERTAIN]
    assert verdicts(topic, window(0, 1, 20.0)) == [UNCERTAIN]
    assert verdicts(topic, window(0, 1, 21.0)) == [WRONG]


def test_late_by_another_partition_that_was_ahead():
    # what an engine that has one time for all partitions, or that took this one for idle, does not count
    topic = Topic().add(1, 100, 10.0).add(0, 9000, None).add(1, 200, 20.0, arrived=9001).close(20_000)
    assert verdicts(topic, window(0, 1, 10.0)) == [UNCERTAIN]


def test_not_late_by_what_came_to_another_partition_at_the_same_time_or_after():
    topic = Topic().add(1, 100, 10.0).add(0, 9000, None, arrived=500).add(1, 200, 20.0, arrived=500).close(20_000)
    assert verdicts(topic, window()) == [EQUAL]
    assert verdicts(topic, window(0, 1, 10.0)) == [WRONG]


def test_late_ones_that_do_not_count_make_nothing_uncertain():
    topic = Topic().add(0, 100, 10.0).add(1, 200, 20.0).add(0, 9000, None).add(0, 300, None, arrived=9100).close(20_000)
    assert verdicts(topic, window()) == [EQUAL]


# ---- a whole cluster, but for Kafka ---------------------------------------------------------------------------------

TRANSACTION = (PIPELINE / "schemas" / "transaction.avsc").read_text()
AGGREGATE = (PIPELINE / "schemas" / "aggregate.avsc").read_text()
# as ksqlDB writes it: fields that may be null, and no logical types
_FIELDS = {"window_start": "long", "window_end": "long", "total_amount": "double", "transactions": "long", "avg_amount": "double"}
KSQL = json.dumps({"type": "record", "name": "Ksql", "fields": [{"name": n, "type": ["null", kind]} for n, kind in _FIELDS.items()]})
SCHEMAS = {1: TRANSACTION, 2: AGGREGATE, 3: KSQL}


def avro(ident, value):
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(json.loads(SCHEMAS[ident])), value)
    return b"\0" + ident.to_bytes(4, "big") + stream.getvalue()


class FakeRegistry:
    def by_id(self, ident):
        return {"schema": SCHEMAS[ident], "schemaType": "AVRO"} if ident in SCHEMAS else None


class Cluster:
    """Topics by name: lists of (partition, timestamp, value)."""

    inventory_dir = "inventory/test"

    def __init__(self, monkeypatch, **groups):
        self.groups = {name: ["host"] for name in groups}
        self.topics = {"transactions": []} | {topic: [] for topic in groups.values()}
        monkeypatch.setattr(kafka.Kafka, "of", lambda cluster: None)
        monkeypatch.setattr(registry.Registry, "of", lambda cluster: FakeRegistry())
        monkeypatch.setattr(verify, "spans", lambda kafka, topic: {(topic, 0): Span(0)})
        monkeypatch.setattr(verify, "read", lambda kafka, wanted: self.records(next(iter(wanted))[0]))

    def records(self, topic):
        for offset, (partition, timestamp, value) in enumerate(self.topics[topic]):
            yield Record(topic, partition, offset, timestamp, b"key", value)

    def pipeline_folder(self, name):
        return PIPELINE

    def transaction(self, at, amount=10.0, status="paid", partition=0, arrived=None):
        value = {"user_id": "1-x", "amount": amount, "status": status, "event_time": T + at}
        self.topics["transactions"].append((partition, T + (at if arrived is None else arrived), avro(1, value)))

    def window(self, topic, number, count, total, ident=2):
        start = T + number * SIZE
        value = {
            "window_start": start,
            "window_end": start + SIZE,
            "total_amount": total,
            "transactions": count,
            "avg_amount": total / count,
        }
        self.topics[topic].append((0, T, avro(ident, value)))


@pytest.fixture
def cluster(monkeypatch):
    """Flink and ksqlDB, one window that both have right, and what closes it."""
    found = Cluster(monkeypatch, flink="transactions_aggregate_flink", ksqldb="transactions_aggregate_ksql")
    found.transaction(100)
    found.transaction(200, 20.0)
    found.transaction(300, 999.0, "refunded")
    found.transaction(5000, status="closing")
    found.window("transactions_aggregate_flink", 0, 2, 30.0)
    found.window("transactions_aggregate_ksql", 0, 2, 30.0, ident=3)
    return found


def test_all_engines_of_the_inventory_are_compared(cluster):
    report = verify.verify(cluster, PIPELINE)
    assert report.ok
    assert (report.records, report.counted, report.ahead, report.malformed, report.windows) == (4, 2, 0, 0, 1)
    assert [(engine.name, dict(engine.counts)) for engine in report.engines] == [("flink", {EQUAL: 1}), ("ksqldb", {EQUAL: 1})]


def test_an_engine_that_the_pipeline_has_nothing_for_is_left_out(cluster, tmp_path):
    folder = tmp_path / "transactions"
    folder.mkdir()
    (folder / "data.py").write_text((PIPELINE / "data.py").read_text())
    (folder / "pipeline.yml").write_text("topics: [{name: transactions_aggregate_flink}]\n")
    assert [engine.name for engine in verify.verify(cluster, folder).engines] == ["flink"]
    (folder / "pipeline.yml").write_text("topics: [{name: transactions}]\n")
    with pytest.raises(InputError, match="no engine that computes windows of transactions"):
        verify.verify(cluster, folder)


def test_the_far_future_and_what_is_malformed_do_not_count_and_make_nothing_late(cluster):
    first = cluster.topics["transactions"]
    cluster.topics["transactions"] = []
    cluster.transaction(100 + 3_600_001, 500.0, arrived=100)
    cluster.topics["transactions"] += [
        (0, T, None),
        (0, T, b"no avro"),
        (0, T, avro(1, {"user_id": "1", "amount": 1.0, "status": "paid", "event_time": T})[:-1]),
        (0, T, b"\0\0\0\0\x63rest"),
        (0, T, avro(2, {"window_start": T, "window_end": T, "total_amount": 1.0, "transactions": 1, "avg_amount": 1.0})),
    ]
    cluster.topics["transactions"] += first
    report = verify.verify(cluster, PIPELINE)
    assert report.ok
    assert (report.records, report.counted, report.ahead, report.malformed) == (10, 2, 1, 5)


def test_an_hour_ahead_is_not_the_far_future(cluster):
    cluster.transaction(100 + 3_600_000, 500.0, arrived=100)
    assert verify.verify(cluster, PIPELINE).ahead == 0


def test_one_engine_that_is_wrong_fails_all(cluster):
    cluster.window("transactions_aggregate_ksql", 0, 2, 30.0, ident=3)
    report = verify.verify(cluster, PIPELINE)
    assert not report.ok
    assert [engine.ok for engine in report.engines] == [True, False]
    [duplicate] = report.engines[1].remarkable
    assert str(duplicate) == (
        "2017-07-14T02:40:00.000Z duplicate: expected 2 transactions, sum 30.00, average 15.00; "
        "found 2 transactions, sum 30.00, average 15.00; 2 transactions, sum 30.00, average 15.00"
    )


def test_nothing_compared_is_not_right(monkeypatch):
    cluster = Cluster(monkeypatch, flink="transactions_aggregate_flink")
    with pytest.raises(VeniceError, match="nothing to verify") as error:
        verify.verify(cluster, PIPELINE)
    assert error.value.exit_code == 1
    cluster.transaction(100)
    report = verify.verify(cluster, PIPELINE)
    assert report.engines[0].counts == {OPEN: 1} and not report.ok


def test_an_inventory_without_engines_and_a_pipeline_without_windows(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="runs no engine"):
        verify.verify(Cluster(monkeypatch), PIPELINE)
    names = ["TOPIC", "KEY", "TIME", "SUMMED"]
    lines = [f"{name} = 'x'" for name in names] + ["COUNTED = ()", "records = closing = None"]
    (tmp_path / "data.py").write_text("\n".join(lines))
    with pytest.raises(InputError, match="no windows to verify"):
        verify.verify(Cluster(monkeypatch, flink="x"), tmp_path)


def test_an_output_that_is_no_window_is_named(cluster):
    cluster.topics["transactions_aggregate_flink"].append((0, T, b"{}"))
    with pytest.raises(VeniceError, match="transactions_aggregate_flink 0:1: no window"):
        verify.verify(cluster, PIPELINE)


def test_values_of_other_kinds_of_schemas_are_malformed():
    values = Values(SimpleNamespace(by_id=lambda ident: {"schema": '{"type": "object"}', "schemaType": "JSON"}))
    assert values.decode(b'\0\0\0\0\x01{"a": 1}') is None


@pytest.fixture
def venice(cluster, monkeypatch):
    """Runs `venice verify transactions` on that cluster."""
    from venice import inventory
    from venice.cli.verify import command
    from venice.cluster import Cluster as Model

    monkeypatch.setattr(inventory, "resolve", lambda name: name)
    monkeypatch.setattr(Model, "load", classmethod(lambda cls, path: cluster))
    return lambda *arguments: CliRunner().invoke(command, ["transactions", *arguments])


def test_the_command_shows_what_is_not_equal_and_its_exit_code_says_so(cluster, venice):
    done = venice()
    assert done.exit_code == 0, done.output
    assert "4 records, 2 count" in done.output and "duplicate" in done.output
    cluster.window("transactions_aggregate_flink", 4, 1, 10.0)
    done = venice()
    assert done.exit_code == 1
    assert "flink 2017-07-14T02:40:12.000Z wrong: expected none; found 1 transactions, sum 10.00, average 10.00" in done.output
    done = venice("--json")
    assert done.exit_code == 1 and json.loads(done.output)["engines"][1]["ok"]


def test_json_is_as_documented(cluster):
    from jsonschema import Draft202012Validator

    cluster.transaction(3100)
    cluster.transaction(20_000, status="closing")
    cluster.window("transactions_aggregate_flink", 4, 1, 10.0)
    cluster.transaction(200, arrived=20_001)
    found = verify.verify(cluster, PIPELINE).to_dict()
    schema = json.loads((PIPELINE.parents[1] / "docs" / "json" / "verify.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(json.loads(json.dumps(found)))
    assert [(w["window_start"], w["verdict"]) for w in found["engines"][0]["windows"]] == [
        ("2017-07-14T02:40:00.000Z", UNCERTAIN),
        ("2017-07-14T02:40:03.000Z", MISSING),
        ("2017-07-14T02:40:12.000Z", WRONG),
    ]
