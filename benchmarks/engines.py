"""The same transactions through each engine, one after the other on the same hosts: latency, throughput, CPU and memory.

In each round, for each engine:

1. A backlog of N transactions is in its topic before its job starts: how long from when it reads until its last window is there.
2. Then transactions come at a modest rate: how long from the event that closes a window until the window can be read.
3. CPU seconds and memory of all its containers meanwhile, as the hosts' Docker engines count them.

Every window is compared with what was sent. A round in which one is wrong, missing or there twice does not count.

    python -m benchmarks.engines -i INVENTORY [--rounds 3] [-n 200000] [--rate 200] [--seconds 20] [--json FILE] [--plot FILE]
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.engine_jobs import KINDS, PARTITIONS, PIPELINE, SHIPPED, Engine, Place, apply, now_ms, write
from benchmarks.results import Arrival, Turn
from venice import applying, data, inventory, verify
from venice.cluster import Cluster
from venice.errors import InputError, VeniceError
from venice.kafka import Kafka
from venice.messages import Span, read, spans
from venice.registry import Registry
from venice.specs import TopicSpec

# event times of the backlog: 200 windows
SPAN_MS = 600_000
CATCH_UP_SECONDS = 120.0
VISIBLE_SECONDS = 30.0
# of all rounds: none is begun that would probably end later
MINUTES = 15.0
SENDERS = 2
# records that wait in memory for the brokers, at most
QUEUED = 500_000


class Seen(NamedTuple):
    """A window as it came: when the broker appended it, and when a reader of committed records had it (ms since 1970)."""

    window: verify.Window
    written: float
    visible: float


class Watch(threading.Thread):
    """Reads an engine's output topic as it grows, committed records only."""

    def __init__(self, kafka: Kafka, topic: str, values: verify.Values):
        super().__init__(daemon=True)
        self.seen: list[Seen] = []
        self._kafka, self._topic, self._values = kafka, topic, values
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._failure: Exception | None = None

    def run(self) -> None:
        """Until `stop`."""
        from confluent_kafka import Consumer, TopicPartition

        settings = {
            "bootstrap.servers": self._kafka.bootstrap_servers,
            "group.id": PIPELINE,  # the library wants one; nothing is committed
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            # a broker that waits for more would be measured, too
            "fetch.wait.max.ms": 50,
            "log_level": 0,
        }
        consumer = Consumer(settings)
        try:
            consumer.assign([TopicPartition(self._topic, 0, 0)])
            while not self._stopping.is_set():
                message = consumer.poll(0.2)
                if message is not None:
                    self._note(message)
        except Exception as error:  # whatever it is, the other thread says it
            with self._changed:
                self._failure = error
                self._changed.notify()
        finally:
            consumer.close()

    def _note(self, message: Any) -> None:
        visible = now_ms()
        if error := message.error():
            raise VeniceError(f"Kafka: {self._topic}: {error.str()}")
        value = self._values.decode(message.value())
        if value is None:
            raise VeniceError(f"{self._topic}: offset {message.offset()} is no window")
        names = ("window_start", "window_end", "total_amount", "transactions", "avg_amount")
        with self._changed:
            self.seen.append(Seen(verify.Window(*(value[name] for name in names)), message.timestamp()[1], visible))
            self._changed.notify()

    def wait(self, starts: set[int], seconds: float) -> bool:
        """Whether all windows that begin then are there within this time."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or starts <= {seen.window.start for seen in self.seen}, seconds)
            if self._failure:
                raise self._failure
            return starts <= {seen.window.start for seen in self.seen}

    def first(self, starts: set[int]) -> dict[int, Seen]:
        """Of each of these windows what came first."""
        with self._changed:
            return {seen.window.start: seen for seen in reversed(self.seen) if seen.window.start in starts}

    def stop(self) -> None:
        """End the reading."""
        self._stopping.set()
        self.join()


@dataclass(frozen=True)
class Load:
    """What is sent in each turn: the backlog's records, and how many how fast live."""

    pipeline: ModuleType
    backlog: list[dict[str, Any]]
    rate: float
    seconds: float


class Bench:
    """The benchmark on one cluster."""

    def __init__(self, place: Place, engines: list[Engine], load: Load):
        self.place, self.engines, self.load = place, engines, load
        self.kafka, self.registry = Kafka.of(place.cluster), Registry.of(place.cluster)
        self.values = verify.Values(self.registry)
        self.replication = int(place.cluster.pipeline_vars["replication_factor"])

    @contextmanager
    def prepared(self, path: Path) -> Iterator[None]:
        """With its schemas and containers, all stopped; in the end all that it made is gone, and what an earlier run left."""
        with tempfile.TemporaryDirectory() as folder:
            pipeline = Path(folder) / PIPELINE
            self.clear(pipeline, path)
            try:
                for subject, file in {s: f for engine in self.engines for s, f in engine.subjects.items()}.items():
                    self.registry.register(subject, (SHIPPED / "schemas" / file).read_text())
                self.fresh([topic for engine in self.engines for topic in engine.topics])
                write(pipeline, self.engines)
                apply(pipeline, path)
                self.place.cluster = applying.choose(path, [str(pipeline)]).cluster
                for engine in self.engines:
                    engine.stop()
                yield
            finally:
                self.clear(pipeline, path)

    def clear(self, pipeline: Path, path: Path) -> None:
        """Remove all that this benchmark makes, whichever run made it."""
        write(pipeline, [])
        apply(pipeline, path)
        for engine in self.engines:
            engine.remove()
        there = {part.topic for part in self.kafka.partitions()}
        if topics := there & {topic for engine in self.engines for topic in engine.topics}:
            self.kafka.delete(topics)
        for subject in set(self.registry.subjects()) & {subject for engine in self.engines for subject in engine.subjects}:
            self.registry.delete(subject, permanent=True)

    def fresh(self, topics: list[str]) -> None:
        """Make these topics anew. The brokers' clock says when a record came, not the one who sent it."""
        there = {part.topic for part in self.kafka.partitions()} & set(topics)
        if there:
            self.kafka.delete(there)
        inputs = {engine.input for engine in self.engines}
        for topic in topics:
            spec = TopicSpec(topic, PARTITIONS if topic in inputs else 1, None, {"message.timestamp.type": "LogAppendTime"})
            self.kafka.create(spec, self.replication)

    def turn(self, engine: Engine, number: int) -> Turn:
        """One engine's part of a round."""
        turn = Turn(engine.name, number, len(self.load.backlog))
        self.fresh(list(engine.topics))
        watch = Watch(self.kafka, engine.output, self.values)
        watch.start()
        try:
            engine.prepare()
            self.fill(engine)
            wanted = results.expected(self.load.pipeline, self.load.backlog)
            if self.catch_up(engine, turn, watch, set(wanted)):
                wanted |= self.live(engine, turn, watch)
            turn.windows = len(wanted)
            turn.wrong += results.faults(verify.compare(wanted, (seen.window for seen in watch.seen)))
        finally:
            engine.stop()
            watch.stop()
        return turn

    def fill(self, engine: Engine) -> None:
        """The backlog into the engine's topic, and behind it, in each partition, what closes its last window."""
        from confluent_kafka import Producer

        latest = self.registry.latest(f"{engine.input}-value")
        pipeline, encode = self.load.pipeline, data.encoder((latest["id"], latest["schema"]))
        settings = {"bootstrap.servers": self.kafka.bootstrap_servers, "acks": "all", "enable.idempotence": True, "log_level": 0}
        # as `venice data` does it
        settings |= {"partitioner": "murmur2_random", "compression.type": "lz4", "linger.ms": 5, "queue.buffering.max.messages": 1_000_000}
        producer, failures = Producer(settings), []

        def acknowledged(error: Any, _: Any) -> None:
            if error:
                failures.append(error.str())

        for number, record in enumerate(self.load.backlog):
            producer.produce(engine.input, encode(record), record[pipeline.KEY], on_delivery=acknowledged)
            if number % 1000 == 0:
                producer.poll(0)
                while len(producer) > QUEUED:  # the queue's own limit would be an error
                    producer.poll(0.1)
        producer.flush(data.ACKNOWLEDGED_SECONDS)
        last = results.closing(pipeline, max(record[pipeline.TIME] for record in self.load.backlog))
        for partition in range(PARTITIONS):
            producer.produce(engine.input, encode(last), last[pipeline.KEY], partition, on_delivery=acknowledged)
        if producer.flush(data.ACKNOWLEDGED_SECONDS) or failures:
            raise VeniceError(f"the backlog was not acknowledged: {'; '.join(dict.fromkeys(failures)) or 'in time'}")

    def catch_up(self, engine: Engine, turn: Turn, watch: Watch, starts: set[int]) -> bool:
        """Start the job and wait until the backlog's windows are there: whether they are in time."""
        if engine.last_stays_open:
            starts = starts - {max(starts)}
        before = self.place.look()
        told = engine.start()
        there = watch.wait(starts, CATCH_UP_SECONDS)
        after = self.place.look()
        if there:
            since = engine.reading_since(told)
            turn.starting = (since - told) / 1000
            turn.catching_up = (max(seen.visible for seen in watch.first(starts).values()) - since) / 1000
        else:
            turn.wrong.append(f"the backlog's windows were not all there within {CATCH_UP_SECONDS:g} s")
        turn.catch_up_cpu = results.spent(before, after, engine.components)
        turn.brokers_cpu = results.spent(before, after, ["kafka"])
        turn.memory = results.resident(after, engine.components)
        return there

    def live(self, engine: Engine, turn: Turn, watch: Watch) -> dict[int, verify.Expected]:
        """Send at a modest rate; the windows that have to come of it."""
        behind = {place: span.end for place, span in spans(self.kafka, engine.input).items()}
        latest = self.registry.latest(f"{engine.input}-value")
        count = int(self.load.rate * self.load.seconds)
        plan = data.Plan(
            SHIPPED / data.FILE,
            self.kafka.bootstrap_servers,
            engine.input,
            count,
            SENDERS,
            self.load.rate,
            (latest["id"], latest["schema"]),
        )
        before, began = self.place.look(), time.monotonic()
        sent = data.send(self.kafka, plan)
        if sent.interrupted:
            raise KeyboardInterrupt
        if not sent.complete:
            raise VeniceError(f"{data.summary(sent)}")
        ends = spans(self.kafka, engine.input)
        records = list(read(self.kafka, {place: Span(start, ends[place].end) for place, start in behind.items()}))
        pipeline, decoded = self.load.pipeline, [self.values.decode(record.value) for record in records]
        wanted = results.expected(pipeline, decoded)
        starts = set(wanted) - ({max(wanted)} if engine.last_stays_open else set())
        if not watch.wait(starts, VISIBLE_SECONDS):
            turn.wrong.append(f"the live windows were not all there {VISIBLE_SECONDS:g} s after the last record")
        after, turn.live_seconds = self.place.look(), time.monotonic() - began
        turn.live_cpu = results.spent(before, after, engine.components)
        turn.memory = max(turn.memory, results.resident(after, engine.components))
        arrivals = [Arrival(r.partition, r.timestamp, value[pipeline.TIME]) for r, value in zip(records, decoded, strict=True)]
        closed = results.closings(arrivals, PARTITIONS, (window.end for window in wanted.values()))
        for start, seen in sorted(watch.first(starts).items()):
            moment = closed[wanted[start].end]
            turn.visible.append((seen.visible - moment) / 1000)
            turn.written.append((seen.written - moment) / 1000)
            turn.last = turn.visible[-1]
        if engine.last_stays_open:
            wanted[max(wanted)].closed = False
        return wanted


def choose(cluster: Cluster, names: str | None) -> list[str]:
    """The engines to be measured: those named, else all that the inventory has."""
    present = [name for name in KINDS if cluster.groups.get(name)]
    wanted = [name.strip() for name in names.split(",")] if names else present
    if missing := [name for name in wanted if name not in present]:
        raise InputError(f"{cluster.inventory_dir} runs no {', '.join(missing)}", f"it runs {', '.join(present) or 'no engine'}")
    if not wanted:
        raise InputError(f"{cluster.inventory_dir} runs no engine", f"add hosts to the groups {', '.join(KINDS)}, then `venice deploy`")
    return wanted


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--inventory", help="name or path; its engines have to be deployed")
    parser.add_argument("--engines", help="separated by commas; default: all of the inventory, in brackets ratios to the first")
    parser.add_argument("--rounds", type=int, default=3, help="each engine once per round (3)")
    parser.add_argument("-n", "--records", type=int, default=200_000, help="transactions of the backlog (200000)")
    parser.add_argument("--rate", type=float, default=200, help="transactions per second, live (200)")
    parser.add_argument("--seconds", type=float, default=20, help="how long live (20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all rounds as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG; needs matplotlib (pip install 'venice[bench]')")
    found = parser.parse_args()
    if found.rounds < 1 or found.records < 1000 or found.rate * found.seconds < 1000 or found.seconds < 8:
        raise InputError("too little to measure", "at least 1 round, 1000 records, and 1000 live ones in 8 seconds or more")
    return found


def measure(given: argparse.Namespace) -> list[Turn]:
    """All turns of all rounds that there was time for."""
    path = inventory.resolve(given.inventory)
    cluster = Cluster.load(path)
    place = Place(cluster)
    try:
        engines = [KINDS[name](place, name) for name in choose(cluster, given.engines)]
        others = [job for name, kind in KINDS.items() if cluster.groups.get(name) for job in kind(place, name).others()]
        if others:
            raise InputError(
                f"others' jobs run there and would be measured, too: {', '.join(others)}",
                "take their pipelines away first: `venice apply --prune` of the emptied folder",
            )
        pipeline = data.load(SHIPPED)
        begin = (int(now_ms()) - SPAN_MS - 60_000) // pipeline.WINDOW_MS * pipeline.WINDOW_MS
        backlog = list(results.backlog(pipeline, given.records, begin, SPAN_MS))
        bench = Bench(place, engines, Load(pipeline, backlog, given.rate, given.seconds))
        say(f"{', '.join(engine.name for engine in engines)} on {cluster.name}: making topics and containers")
        with bench.prepared(path):
            return rounds(bench, given.rounds)
    finally:
        place.close()


def rounds(bench: Bench, count: int) -> list[Turn]:
    """Engines by turns, each round beginning with another one, so that a slow moment of the machine meets all."""
    turns: list[Turn] = []
    began = time.monotonic()
    for number in range(count):
        elapsed = time.monotonic() - began
        if number and elapsed / number * (number + 1) > MINUTES * 60:
            say(f"stopped after {number} rounds: {elapsed / 60:.0f} minutes have passed")
            break
        first = number % len(bench.engines)
        for engine in bench.engines[first:] + bench.engines[:first]:
            try:
                turn = bench.turn(engine, number + 1)
            except VeniceError as error:  # the other engines go on
                turn = Turn(engine.name, number + 1, wrong=[str(error)])
            turns.append(turn)
            say(outcome(turn))
    order = [engine.name for engine in bench.engines]
    return sorted(turns, key=lambda turn: (turn.round, order.index(turn.engine)))


def outcome(turn: Turn) -> str:
    """A turn in one line."""
    name = f"round {turn.round} {turn.engine}"
    if turn.wrong:
        return f"{name}: does not count: {'; '.join(turn.wrong[:3])}{f'; and {len(turn.wrong) - 3} more' if turn.wrong[3:] else ''}"
    live = results.percentile(turn.visible, 0.5)
    return f"{name}: all {turn.windows} windows right; the backlog's after {turn.catching_up:.1f} s, live ones after {live:.2f} s"


def say(line: str) -> None:
    """How far it is, beside the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, write; exit code 1 when a round did not count."""
    try:
        given = arguments()
        if given.plot:
            import matplotlib  # noqa: F401 (missing is said now, not in the end)
        turns = measure(given)
    except ImportError as error:
        print(f"--plot: {error}; pip install 'venice[bench]'", file=sys.stderr)
        return 2
    except VeniceError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: what it made is removed", file=sys.stderr)
        return 130
    base = turns[0].engine
    what = f"{given.records:,} transactions as backlog, {given.rate:g} per second live for {given.seconds:g} s"
    print(f"{what}; medians of {max(turn.round for turn in turns)} rounds, in brackets ratios to {base}\n\n{results.table(turns, base)}")
    if given.json:
        found = results.results(turns, base)
        summary = {key: {e: {"value": r.value, "ratio": r.ratio} for e, r in by.items()} for key, by in found.items()}
        document = {"records": given.records, "rate": given.rate, "seconds": given.seconds, "base": base}
        given.json.write_text(json.dumps(document | {"results": summary, "turns": [turn.to_dict() for turn in turns]}, indent=2) + "\n")
    if given.plot:
        results.plot(turns, base, given.plot, what)
    return 1 if any(turn.wrong for turn in turns) else 0


if __name__ == "__main__":
    sys.exit(main())
