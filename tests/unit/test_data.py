"""What `venice data` sends, and what it says of it."""

import io
import itertools
import json
from collections import Counter
from types import SimpleNamespace

import fastavro
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from venice import data, kafka, paths, registry
from venice.data import Plan, Sent
from venice.errors import InputError, UnreachableError, VeniceError

FOLDER = paths.resource("pipelines") / "transactions"
SCHEMA = (FOLDER / "schemas" / "transaction.avsc").read_text()


@pytest.fixture(scope="module")
def pipeline():
    return data.load(FOLDER)


def some(pipeline, process, count=2000):
    return list(itertools.islice(pipeline.records(process), count))


# ---- transactions ---------------------------------------------------------------------------------------------------


def test_ten_users_each_with_a_digit_of_its_own_pay_what_it_says(pipeline):
    found = {record["user_id"]: record["amount"] for record in some(pipeline, 1)}
    assert {user[0]: amount for user, amount in found.items()} == {"0": 10.0} | {str(d): 10.0 * d for d in range(1, 10)}
    assert len(found) == 10


def test_most_are_paid_and_some_are_not(pipeline):
    found = Counter(record["status"] for record in some(pipeline, 1))
    assert set(found) == {"paid", "pending", "failed", "refunded"}
    assert 0.65 < found["paid"] / found.total() < 0.75


def test_the_same_process_always_sends_the_same_and_another_one_something_else(pipeline):
    assert some(pipeline, 3) == some(data.load(FOLDER), 3) != some(pipeline, 4)


@pytest.mark.parametrize(("given", "behind"), [({}, 5000), ({"WINDOW_MS": 60_000}, 62_000)])
def test_what_closes_the_last_window_comes_behind_it(given, behind):
    assert data.closing_ms(SimpleNamespace(**given)) == behind


def test_a_closing_record_that_does_not_fit_hides_nothing_of_what_was_sent(pipeline, monkeypatch):
    monkeypatch.setattr(data, "load", lambda folder: pipeline)
    monkeypatch.setattr(pipeline, "closing", lambda: {"user_id": 1})
    plan = Plan(FOLDER / "data.py", "k:1", "t", 1, 1, schema=(1, SCHEMA))
    sent = Sent("t", 1, last=0)
    data.close(None, plan, sent)
    assert sent.closing == 0 and sent.failures[0].startswith("closing: ")


def test_what_closes_the_last_window_counts_in_none(pipeline):
    assert pipeline.closing()["status"] == "closing"
    assert not pipeline.counts(pipeline.closing())
    assert pipeline.counts({"status": "paid"}) and not pipeline.counts({"status": "refunded"})


def test_values_are_by_the_registered_schema(pipeline):
    record = some(pipeline, 0)[0] | {"event_time": 1_500_000_000_123}
    value = data.encoder((258, SCHEMA))(record)
    assert value[:5] == b"\0\0\0\x01\x02"
    decoded = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(json.loads(SCHEMA)))
    assert decoded.pop("event_time").isoformat() == "2017-07-14T02:40:00.123000+00:00"
    assert decoded == {key: record[key] for key in ("user_id", "amount", "status")}


def test_json_is_plain(pipeline):
    record = some(pipeline, 0)[0] | {"event_time": 1_500_000_000_123}
    assert json.loads(data.encoder(None)(record)) == record


# ---- the plan -------------------------------------------------------------------------------------------------------


def plan_of(count=10, processes=3):
    return Plan(FOLDER / "data.py", "nowhere:1", "t", count, processes)


@pytest.mark.parametrize(("count", "processes"), [(10, 3), (9, 3), (3, 3), (1, 1), (100_001, 64)])
def test_shares_add_up(count, processes):
    plan = plan_of(count, processes)
    shares = [data.share(plan, number) for number in range(processes)]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


class FakeKafka:
    def partitions(self, topic):
        if topic not in ("transactions", "transactions_json"):
            raise VeniceError(f"Kafka: topic {topic} does not exist")
        return []


@pytest.fixture
def cluster(monkeypatch):
    found = SimpleNamespace(bootstrap_servers="a:1", schemas={"transactions-value": {"id": 7, "schema": SCHEMA}})
    monkeypatch.setattr(kafka.Kafka, "of", lambda cluster: FakeKafka())
    monkeypatch.setattr(registry.Registry, "of", lambda cluster: SimpleNamespace(latest=lambda subject: found.schemas.get(subject)))
    return found


def test_a_plan_never_has_more_processes_than_records(cluster):
    plan = data.plan(cluster, FOLDER, 4, 10, 2.5, "avro")
    assert (plan.topic, plan.count, plan.processes, plan.rate, plan.schema) == ("transactions", 4, 4, 2.5, (7, SCHEMA))


def test_json_goes_to_a_topic_of_its_own_and_needs_no_schema(cluster):
    cluster.schemas.clear()
    plan = data.plan(cluster, FOLDER, 4, 10, None, "json")
    assert (plan.topic, plan.schema) == ("transactions_json", None)


def test_what_the_pipeline_needs_has_to_be_applied(cluster, monkeypatch, tmp_path):
    cluster.schemas.clear()
    with pytest.raises(VeniceError, match="no subject transactions-value") as error:
        data.plan(cluster, FOLDER, 4, 10, None, "avro")
    assert error.value.remedy.startswith("`venice apply transactions`")
    monkeypatch.setattr(FakeKafka, "partitions", lambda self, topic: (_ for _ in ()).throw(VeniceError("no topic")))
    with pytest.raises(VeniceError, match="no topic") as error:
        data.plan(cluster, FOLDER, 4, 10, None, "avro")
    assert error.value.remedy.startswith("`venice apply transactions`")
    # who does not answer says itself what to do
    away = UnreachableError("away", "`venice up`")
    monkeypatch.setattr(FakeKafka, "partitions", lambda self, topic: (_ for _ in ()).throw(away))
    with pytest.raises(UnreachableError) as error:
        data.plan(cluster, FOLDER, 4, 10, None, "avro")
    assert error.value.remedy == "`venice up`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no data.py"),
        ("TOPIC = 'x'", "lacks KEY, TIME, COUNTED, SUMMED, records, closing"),
        ("import nothing_at_all", "ModuleNotFoundError"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_folder_that_can_not_say_what_to_send(tmp_path, text, message):
    if text:
        (tmp_path / "data.py").write_text(text)
    with pytest.raises(InputError, match=message):
        data.load(tmp_path)


# ---- what is said ---------------------------------------------------------------------------------------------------


def sent(**changes):
    paid, failed = ("1-x", "paid"), ("1-x", "failed")
    found = Sent("transactions", 5, 2.0, Counter({paid: 3, failed: 2}), Counter({paid: 30.0, failed: 20.0}), counted=("user_id", "status"))
    found.first, found.last, found.closing, found.closed_at = 1_500_000_000_000, 1_500_000_001_000, 3, 1_500_000_006_000
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_json_is_as_documented():
    schema = json.loads((FOLDER.parents[1] / "docs" / "json" / "data.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    for found in (sent(), sent(first=None, last=None, closing=0, closed_at=None, failures=["no"]), Sent("t", 1)):
        Draft202012Validator(schema).validate(found.to_dict())
    assert sent().to_dict()["sent"] == [
        {"of": {"user_id": "1-x", "status": "failed"}, "records": 2, "sum": 20.0},
        {"of": {"user_id": "1-x", "status": "paid"}, "records": 3, "sum": 30.0},
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [({}, 0), ({"failures": ["no"]}, 1), ({"requested": 6}, 1), ({"requested": 6, "interrupted": True}, 130)],
)
def test_the_exit_code_says_whether_it_is_all_of_it(monkeypatch, cluster, changes, code):
    from venice import inventory
    from venice.cli.data import command
    from venice.cluster import Cluster

    cluster.pipeline_folder = lambda name: FOLDER
    monkeypatch.setattr(inventory, "resolve", lambda name: name)
    monkeypatch.setattr(Cluster, "load", classmethod(lambda cls, path: cluster))
    monkeypatch.setattr(data, "send", lambda kafka, plan, progress: progress(3) or sent(**changes))
    done = CliRunner().invoke(command, ["transactions", "-n", "5"])
    assert done.exit_code == code, done.output
    assert ["1-x", "failed", "2", "20.00"] in [line.split() for line in done.output.splitlines()]


@pytest.mark.parametrize(
    ("changes", "complete"),
    [
        ({}, True),
        ({"requested": 6}, False),
        ({"closing": 0}, False),
        ({"failures": ["no"]}, False),
    ],
)
def test_complete_is_all_of_it(changes, complete):
    assert sent(**changes).complete is complete


def test_parts_add_up():
    total = Sent("transactions", 10)
    data._add(total, sent(first=5, last=9, failures=["no"]))
    data._add(total, Sent("transactions", 0))
    data._add(total, sent(first=3, last=7, failures=["no"]))
    assert (total.acknowledged, total.first, total.last, total.failures) == (10, 3, 9, ["no"])
    assert total.sums["1-x", "paid"] == 60.0


def test_what_a_process_sent_before_it_failed_is_counted(monkeypatch):
    class Failing:
        def __init__(self, plan, number, clock):
            self.done = Sent(plan.topic, data.share(plan, number))

        def flush(self):
            self.done.counts.update({("1-x", "paid"): 2})

        def run(self):
            self.done.counts["1-x", "paid"] += 3
            raise ValueError("no")

    monkeypatch.setattr(data, "_Sender", Failing)
    monkeypatch.setattr(data.signal, "signal", lambda *_: None)
    monkeypatch.setattr(data, "_end_with_parent", lambda: None)
    aborted, answers = [], []
    clock = SimpleNamespace(barrier=SimpleNamespace(abort=lambda: aborted.append(True)))
    data._process(plan_of(), 1, clock, SimpleNamespace(send=answers.append))
    [found] = answers
    assert aborted and (found.acknowledged, found.failures) == (5, ["process 1: ValueError: no"])


@pytest.mark.parametrize(("stopping", "seconds"), [(False, 300), (True, 20)])
def test_after_ctrl_c_acknowledgements_are_not_waited_for_as_long(monkeypatch, stopping, seconds):
    waited = []
    monkeypatch.setattr(data.time, "monotonic", lambda: float(len(waited)))
    producer = SimpleNamespace(flush=lambda limit: waited.append(limit) or 1)
    clock = SimpleNamespace(stopping=SimpleNamespace(is_set=lambda: stopping))
    sender = SimpleNamespace(producer=producer, clock=clock, done=sent())
    data._Sender.flush(sender)
    assert sum(waited) == seconds + 1 and sender.done.failures == ["not acknowledged in time"]


def test_the_summary_names_what_was_not_sent():
    assert data.summary(sent()) == (
        "5 of 5 records to transactions acknowledged in 2.0 s, 2 per second\n"
        "and 3 more that close the last window, one per partition, 5 s after the last event"
    )
    text = data.summary(sent(requested=7, closing=0, failures=["Broker: Message size too large"]))
    assert "5 of 7" in text and "it stays open" in text and "failed: Broker: Message size too large" in text
