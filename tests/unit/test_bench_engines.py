"""The engines' benchmark: what it sends and expects, when windows are closed, and what numbers make of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.engine_jobs import KINDS, SHIPPED, Pinot, Place, Spark, renamed, write
from benchmarks.results import Arrival, Turn, Usage
from venice import data, ksqldb, pipeline
from venice.verify import ENGINES, Window, compare

BEGIN = 1_700_000_001_000 // 3000 * 3000
MIB = 2**20


@pytest.fixture(scope="module")
def transactions():
    return data.load(SHIPPED)


def windows(found) -> list[Window]:
    return [Window(w.start, w.end, sum(w.amounts), len(w.amounts), sum(w.amounts) / len(w.amounts)) for w in found.values()]


def turn(engine: str, number: int, **values) -> Turn:
    base = Turn(engine, number, 1000, 10, 1.0, 10.0, 20.0, 5.0, 30.0, 6.0, 100 * MIB, [1.0, 2.0, 3.0], [0.1, 0.2, 0.3], 3.0)
    return replace(base, **values)


def test_the_backlog_is_always_the_same_and_never_late(transactions):
    sent = list(results.backlog(transactions, 5000, BEGIN, 60_000))
    assert sent == list(results.backlog(transactions, 5000, BEGIN, 60_000))
    times = [record["event_time"] for record in sent]
    assert min(times) >= BEGIN and max(times) <= BEGIN + 60_000 + data.DISORDER_MS
    newest = 0
    for moment in times:
        assert moment > newest - 1000
        newest = max(newest, moment)
    assert times != sorted(times)


def test_what_closes_the_backlog_counts_in_no_window(transactions):
    sent = list(results.backlog(transactions, 1000, BEGIN, 9000))
    last = results.closing(transactions, max(record["event_time"] for record in sent))
    assert last["event_time"] >= max(record["event_time"] for record in sent) + 3000 + 1000
    found = results.expected(transactions, [*sent, last])
    assert sum(len(window.amounts) for window in found.values()) == sum(record["status"] == "paid" for record in sent)
    assert all(window.closed for window in found.values())


def test_wrong_missing_and_double_windows_are_named(transactions):
    found = results.expected(transactions, results.backlog(transactions, 1000, BEGIN, 12_000))
    right = windows(found)
    assert results.faults(compare(found, right)) == []
    [missing] = results.faults(compare(found, right[1:]))
    assert "missing" in missing
    [double] = results.faults(compare(found, [*right, right[0]]))
    assert "duplicate" in double
    first = right[0]
    [wrong] = results.faults(compare(found, [Window(first.start, first.end, first.total + 10, first.count, first.average), *right[1:]]))
    assert "wrong" in wrong


def test_a_window_that_need_not_be_there_may_not_be_wrong(transactions):
    found = results.expected(transactions, results.backlog(transactions, 1000, BEGIN, 12_000))
    found[max(found)].closed = False
    *right, last = windows(found)
    assert results.faults(compare(found, right)) == []
    assert results.faults(compare(found, [*right, Window(last.start, last.end, 1.0, 1, 1.0)]))


def test_a_window_is_closed_when_the_last_partition_is_a_second_past_it():
    arrivals = [
        Arrival(0, 100, 3900),
        Arrival(1, 200, 4500),
        Arrival(0, 300, 4000),  # the partition that was behind
        Arrival(1, 400, 9000),
        Arrival(0, 500, 3500),  # out of order: takes nothing back
        Arrival(0, 600, 7000),
    ]
    assert results.closings(arrivals, 2, [3000, 6000, 9000]) == {3000: 300, 6000: 600}
    assert results.closings(arrivals, 3, [3000]) == {}, "a third partition may still have events of it"


def test_cpu_counts_what_was_started_meanwhile_and_only_the_engines_own():
    before = {
        ("a", "worker"): Usage("spark", 50.0, 10),
        ("a", "kafka"): Usage("kafka", 100.0, 500),
        ("b", "again"): Usage("spark", 80.0, 1),
    }
    after = {
        ("a", "worker"): Usage("spark", 54.0, 20),
        ("a", "kafka"): Usage("kafka", 101.5, 500),
        ("a", "driver"): Usage("spark_job", 7.0, 30),
        ("b", "again"): Usage("spark", 2.0, 4),  # restarted: counts from its start
    }
    assert results.spent(before, after, ("spark", "spark_job")) == 4.0 + 7.0 + 2.0
    assert results.spent(before, after, ("kafka",)) == 1.5
    assert results.resident(after, ("spark", "spark_job")) == 54


def test_ratios_are_taken_within_a_round():
    # the machine was half as fast in the second round, for both
    turns = [
        turn("flink", 1, catching_up=10.0),
        turn("spark", 1, catching_up=20.0),
        turn("flink", 2, catching_up=20.0),
        turn("spark", 2, catching_up=40.0),
    ]
    found = results.results(turns, "flink")["catching_up"]
    assert found["spark"].ratio == 2.0 and found["flink"].ratio == 1.0
    assert found["spark"].value == 30.0 and found["spark"].rounds == (20.0, 40.0)
    assert results.results(turns, "flink")["events_per_second"]["spark"].ratio == 0.5


def test_a_wrong_round_counts_in_nothing_but_the_count_of_rounds():
    turns = [turn("flink", 1), turn("flink", 2, catching_up=1.0, wrong=["one is missing"]), turn("pinot", 1), turn("pinot", 2)]
    found = results.results(turns, "flink")["catching_up"]
    assert found["flink"].rounds == (10.0,)
    assert found["pinot"].ratio == 1.0
    last = results.table(turns, "flink").splitlines()[-1]
    assert last.startswith(results.ROUNDS) and last.split("right")[1].split() == ["1", "of", "2", "2", "of", "2"]


def test_an_engine_that_was_never_right_has_no_numbers():
    turns = [turn("flink", 1, wrong=["no"]), turn("spark", 1)]
    text = results.table(turns, "flink")
    row = next(line for line in text.splitlines() if line.startswith("backlog"))
    assert row.split()[-2:] == ["-", "100"], "and nobody a ratio to it"
    assert max(map(len, text.splitlines())) <= 80


def test_a_percentile_is_one_of_the_values():
    assert results.percentile([5.0, 1.0, 3.0], 0.5) == 3.0
    assert results.percentile([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert results.percentile([7.0], 0.95) == 7.0


def test_the_plot_is_a_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "engines.png"
    results.plot([turn("flink", 1), turn("spark", 1), turn("pinot", 1, wrong=["no"])], "flink", file, "note")
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("engine", ["flink", "ksqldb"])
def test_sql_is_the_shipped_one_under_names_of_its_own(engine: str):
    text = (SHIPPED / "sql" / f"{engine}.sql").read_text()
    found = renamed(text, "bench_")
    assert f"'bench_transactions_aggregate_{ENGINES[engine]}'" in found and "'bench_transactions'" in found
    assert "'transactions" not in found and "'dlq.transactions" not in found
    assert found.replace("bench_", "") == text, "nothing else is changed"
    statements = [s.text for s in ksqldb.split(found)]
    made = [s for s in statements if s.startswith("CREATE")]
    assert made and all("bench_transactions" in s.splitlines()[0] or "dead_letters" in s.splitlines()[0] for s in made)


def test_its_pipeline_has_the_programs_and_an_empty_one_has_none(tmp_path: Path):
    place = Place.__new__(Place)
    write(tmp_path / "bench", [KINDS[name](place, name) for name in KINDS])
    found = pipeline.load(tmp_path / "bench")
    [job], [producer] = found.jobs, found.producers
    spark, pinot = Spark(place, "spark"), Pinot(place, "pinot")
    assert job.environment == {"INPUT": spark.input, "OUTPUT": spark.output, "DEAD_LETTERS": f"dlq.{spark.input}"}
    assert (producer.environment["INPUT"], producer.environment["TOPIC"]) == (pinot.input, pinot.output)
    write(tmp_path / "bench", [])
    empty = pipeline.load(tmp_path / "bench")
    assert not empty.jobs and not empty.producers
