"""Test data for a pipeline: exactly so many records from parallel processes, and what was acknowledged of them.

What the records are says the pipeline's `data.py`:

    TOPIC, KEY, TIME        the topic, the field whose text is the key, the field of the event time (ms since 1970)
    COUNTED, SUMMED         the fields by whose values is counted what was sent, and the field that is summed up
    records(process)        records without end and without TIME, always the same ones for the same process
    closing()               the record, without TIME, that moves the time on behind the last of the others

Event times are the clock's, up to half a second out of order, and never late: the processes go in steps, and none begins a
step before all records of the step before are acknowledged. So within a partition no record is more than STEP + DISORDER
behind one that came before it, which is less than the second for which windows wait, however busy the machine is.
"""

import contextlib
import importlib.util
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException, Producer

from venice.errors import InputError, VeniceError
from venice.messages import ACKNOWLEDGED_SECONDS

if TYPE_CHECKING:
    from venice.kafka import Kafka

FILE = "data.py"
STEP = 0.4
DISORDER_MS = 450
# windows wait for a second, and one to spare
_WAITING_MS = 2000
_POLL_SECONDS = 0.1
# what brokers may take where it is better to go on, or to end, without them
_SOON_SECONDS = 20.0
# one process alone would else make more in a step than brokers take in one
_STEP_RECORDS = 5000


@dataclass(frozen=True)
class Plan:
    """What is to be sent: `count` records by `processes`, `rate` per second in all (None: as fast as possible).

    `schema`: id and text of the values' Avro schema, None for plain JSON.
    """

    file: Path
    bootstrap_servers: str
    topic: str
    count: int
    processes: int
    rate: float | None = None
    schema: tuple[int, str] | None = None


@dataclass
class Sent:
    """What was acknowledged: by the values of COUNTED, how many records and what they sum up to. Times are ms since 1970."""

    topic: str
    requested: int
    seconds: float = 0.0
    counts: Counter = field(default_factory=Counter)
    sums: Counter = field(default_factory=Counter)
    first: int | None = None
    last: int | None = None
    closing: int = 0
    closed_at: int | None = None
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False
    counted: tuple[str, ...] = ()

    @property
    def acknowledged(self) -> int:
        """How many records, those that close the last window not among them."""
        return self.counts.total()

    @property
    def complete(self) -> bool:
        """True when each record was acknowledged, and those that close the last window, too."""
        return self.acknowledged == self.requested and self.closing > 0 and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON; `docs/json/data.schema.json`."""
        from venice.messages import iso

        return {
            "topic": self.topic,
            "requested": self.requested,
            "acknowledged": self.acknowledged,
            "complete": self.complete,
            "seconds": round(self.seconds, 3),
            "first_event_time": iso(self.first),
            "last_event_time": iso(self.last),
            "closing": {"records": self.closing, "event_time": iso(self.closed_at)},
            "sent": [
                {"of": dict(zip(self.counted, group, strict=True)), "records": self.counts[group], "sum": self.sums[group]}
                for group in sorted(self.counts)
            ],
            "failures": self.failures,
        }


def load(folder: Path) -> ModuleType:
    """The pipeline's `data.py`. InputError when it has none, or one that lacks something."""
    file = folder / FILE
    if not file.is_file():
        raise InputError(f"{folder}: there is no {FILE}: nobody knows what to send", "docs/transactions.md says what one holds")
    spec = importlib.util.spec_from_file_location(f"venice_data_{folder.name}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is a user's program
        raise InputError(f"{file}: {type(error).__name__}: {error}", "correct the program") from error
    wanted = ("TOPIC", "KEY", "TIME", "COUNTED", "SUMMED", "records", "closing")
    if missing := [name for name in wanted if not hasattr(module, name)]:
        raise InputError(f"{file}: lacks {', '.join(missing)}", "docs/transactions.md says what it holds")
    return module


def plan(cluster: Any, folder: Path, count: int, processes: int, rate: float | None, kind: str) -> Plan:
    """Checked against the cluster: the topic is there, and the schema of its values. JSON goes to the topic `TOPIC_json`."""
    from venice.kafka import Kafka
    from venice.registry import Registry

    found = load(folder)
    topic = found.TOPIC if kind == "avro" else f"{found.TOPIC}_json"
    remedy = f"`venice apply {folder.name}` makes what the pipeline needs"
    try:
        Kafka.of(cluster).partitions(topic)
    except VeniceError as error:
        if error.exit_code == 1:
            error.remedy = remedy
        raise
    schema = None
    if kind == "avro":
        latest = Registry.of(cluster).latest(f"{topic}-value")
        if latest is None:
            raise VeniceError(f"the schema registry has no subject {topic}-value", remedy)
        schema = (latest["id"], latest["schema"])
    return Plan(folder / FILE, cluster.bootstrap_servers, topic, count, min(processes, count), rate, schema)


def encoder(schema: tuple[int, str] | None) -> Callable[[dict[str, Any]], bytes]:
    """What turns a record into the bytes of its value."""
    if schema is None:
        return lambda record: json.dumps(record, separators=(",", ":")).encode()
    import fastavro

    ident, text = schema
    parsed = fastavro.parse_schema(json.loads(text))
    frame = b"\0" + struct.pack(">I", ident)

    def encode(record: dict[str, Any]) -> bytes:
        stream = io.BytesIO()
        stream.write(frame)
        fastavro.schemaless_writer(stream, parsed, record)
        return stream.getvalue()

    return encode


# ---- one process ----------------------------------------------------------------------------------------------------


class _Clock:
    """What the processes share: when the step began, when the first did (seconds since 1970), and whether there is another one."""

    def __init__(self, context: Any, plan: Plan):
        self.step = context.Value("d", 0.0, lock=False)
        self.began = context.Value("d", 0.0, lock=False)
        self.going = context.Value("b", 1, lock=False)
        self.stopping = context.Event()
        self.left = context.Array("q", [share(plan, number) for number in range(plan.processes)], lock=False)
        self.acknowledged = context.Array("q", plan.processes, lock=False)
        self.barrier = context.Barrier(plan.processes, action=self._next)

    def _next(self) -> None:
        """Done by one process while all others wait."""
        # time may stand still or go on between two steps, never back
        self.step.value = max(time.time(), self.step.value)
        self.began.value = self.began.value or self.step.value
        self.going.value = any(self.left) and not self.stopping.is_set()


def share(plan: Plan, number: int) -> int:
    """How many records a process sends."""
    return plan.count // plan.processes + (number < plan.count % plan.processes)


class _Sender:
    """One process's part."""

    def __init__(self, plan: Plan, number: int, clock: _Clock):
        self.plan, self.number, self.clock = plan, number, clock
        self.pipeline = load(plan.file.parent)
        self.records: Iterator[dict[str, Any]] = self.pipeline.records(number)
        self.encode = encoder(plan.schema)
        self.disorder = random.Random(f"disorder {number}")  # noqa: S311
        self.done = Sent(plan.topic, share(plan, number))
        self.sent = 0
        self.producer = Producer(
            {
                "bootstrap.servers": plan.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                # the one of Java's producers: a key goes where theirs puts it
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.timeout.ms": int(ACKNOWLEDGED_SECONDS * 1000),
                "client.id": f"venice-data-{number}",
                "log_level": 0,
            }
        )

    def run(self) -> None:
        """Step by step until all processes have sent their share, one failed, or Ctrl-C."""
        # else the first step would wait for all processes' connections; it does where brokers take longer than this
        with contextlib.suppress(KafkaException):
            self.producer.list_topics(self.plan.topic, timeout=_SOON_SECONDS)
        try:
            while True:
                self.clock.barrier.wait()
                if not self.clock.going.value:
                    break
                self.step()
                if self.done.failures:
                    self.clock.barrier.abort()
                    break
        except threading.BrokenBarrierError:
            pass  # another one failed: what it was, it says itself

    def step(self) -> None:
        """What belongs to one step, acknowledged."""
        began, requested = self.clock.step.value, self.done.requested
        pace = self.plan.rate * requested / self.plan.count if self.plan.rate else None
        end = min(requested, self.sent + _STEP_RECORDS)
        # one process after the other, not all at once
        turn = self.number / self.plan.processes
        while self.sent < end and not self.clock.stopping.is_set():
            now = max(time.time(), began)
            due = self.clock.began.value + (self.sent + turn) / pace if pace else now
            if max(now, due) >= began + STEP:
                break
            if due > now:
                self.producer.poll(due - now)
                continue
            self.send(int(min(now, began + STEP) * 1000) - self.disorder.randrange(DISORDER_MS))
        self.clock.left[self.number] = requested - self.sent
        self.flush()
        if pace and (rest := began + STEP - time.time()) > 0:
            time.sleep(rest)

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged; after Ctrl-C not as long."""
        began = time.monotonic()
        while self.producer.flush(1.0):
            waited = time.monotonic() - began
            if waited > (_SOON_SECONDS if self.clock.stopping.is_set() else ACKNOWLEDGED_SECONDS):
                self.done.failures.append("not acknowledged in time")
                break

    def send(self, event_time: int) -> None:
        """The next record, with this time."""
        record = next(self.records)
        group = tuple(record[name] for name in self.pipeline.COUNTED)
        amount = record[self.pipeline.SUMMED]
        record[self.pipeline.TIME] = event_time

        def acknowledged(error: Any, _: Any) -> None:
            if error:
                self.done.failures.append(error.str())
                return
            self.done.counts[group] += 1
            self.done.sums[group] += amount
            self.done.first = min(self.done.first or event_time, event_time)
            self.done.last = max(self.done.last or event_time, event_time)
            self.clock.acknowledged[self.number] += 1

        while True:
            try:
                self.producer.produce(self.plan.topic, self.encode(record), record[self.pipeline.KEY], on_delivery=acknowledged)
                break
            except BufferError:  # the queue is full: wait for acknowledgements
                self.producer.poll(_POLL_SECONDS)
        self.sent += 1
        self.producer.poll(0)


def _end_with_parent() -> None:
    """A command that was killed can't end its processes; they would go on sending."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _process(plan: Plan, number: int, clock: _Clock, answer: Any) -> None:
    # Ctrl-C reaches all processes of a terminal; the first one says when to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sender, done = None, Sent(plan.topic, share(plan, number))
    try:
        sender = _Sender(plan, number, clock)
        done = sender.done
        sender.run()
    except Exception as error:  # what it is, is said in the other process
        clock.barrier.abort()
        if sender:  # what it sent before that was sent all the same
            sender.flush()
        done.failures.append(f"process {number}: {type(error).__name__}: {error}")
    answer.send(done)


# ---- all of them ----------------------------------------------------------------------------------------------------


def send(kafka: "Kafka", plan: Plan, progress: Callable[[int], None] = lambda acknowledged: None) -> Sent:
    """Send what is planned; what was acknowledged of it, whatever happened. `progress` is told how many are, again and again."""
    # not forked from here: the libraries' threads would not be there
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["venice.data", "fastavro"])
    clock = _Clock(context, plan)
    pipes, processes = [], []
    total = Sent(plan.topic, plan.count, counted=tuple(load(plan.file.parent).COUNTED))
    began = time.monotonic()
    for number in range(plan.processes):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(plan, number, clock, there), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    waiting = dict(zip(pipes, processes, strict=True))
    while waiting:
        try:
            for pipe in multiprocessing.connection.wait(list(waiting), _POLL_SECONDS):
                process = waiting.pop(pipe)
                try:
                    _add(total, pipe.recv())
                except EOFError:
                    clock.barrier.abort()  # the others would wait for it
                    process.join()
                    total.failures.append(f"a process ended with {process.exitcode}")
            progress(sum(clock.acknowledged))
        except KeyboardInterrupt:
            total.interrupted = True
            clock.stopping.set()
    now = time.time()
    for process in processes:
        process.join()
    total.seconds = now - clock.began.value if clock.began.value else time.monotonic() - began
    if total.last is not None and not total.failures:
        try:
            close(kafka, plan, total)
        except KeyboardInterrupt:
            total.interrupted = True
    return total


def _add(total: Sent, part: Sent) -> None:
    total.counts.update(part.counts)
    total.sums.update(part.sums)
    total.failures = list(dict.fromkeys(total.failures + part.failures))
    times = [moment for moment in (total.first, total.last, part.first, part.last) if moment is not None]
    total.first, total.last = (min(times), max(times)) if times else (None, None)


def closing_ms(pipeline: ModuleType) -> int:
    """How far behind the last event the record is that closes its window; without a WINDOW_MS, one of three seconds."""
    return getattr(pipeline, "WINDOW_MS", 3000) + _WAITING_MS


def close(kafka: "Kafka", plan: Plan, sent: Sent) -> None:
    """Send one record to each partition that moves the time on behind the last event, once that time has come.

    Earlier it would make those late that the next run sends.
    """
    from venice.messages import Outgoing, deliver, producer_of

    pipeline = load(plan.file.parent)
    moment = sent.last + closing_ms(pipeline)
    while (rest := moment / 1000 - time.time()) > 0:
        time.sleep(rest)
    try:
        record = pipeline.closing() | {pipeline.TIME: moment}
        value, key = encoder(plan.schema)(record), record[pipeline.KEY].encode()
        partitions = [part.id for part in kafka.partitions(plan.topic)]
        deliver(kafka, producer_of(kafka), [Outgoing(plan.topic, key, value, partition=id_) for id_ in partitions])
    except KafkaException as error:
        sent.failures.append(f"closing: {error.args[0].str()}")
    except VeniceError as error:
        sent.failures.append(f"closing: {error.message}")
    except Exception as error:  # closing() is a user's program; what was sent is told nevertheless
        sent.failures.append(f"closing: {type(error).__name__}: {error}")
    else:
        sent.closing, sent.closed_at = len(partitions), moment


def summary(sent: Sent) -> str:
    """What was sent, in lines for people."""
    rate = f", {sent.acknowledged / sent.seconds:,.0f} per second" if sent.seconds else ""
    lines = [f"{sent.acknowledged} of {sent.requested} records to {sent.topic} acknowledged in {sent.seconds:.1f} s{rate}"]
    if sent.closing:
        behind = (sent.closed_at - sent.last) / 1000
        lines.append(f"and {sent.closing} more that close the last window, one per partition, {behind:g} s after the last event")
    elif sent.last is not None:
        lines.append("nothing was sent that closes the last window: it stays open until the next records come")
    lines += [f"failed: {failure}" for failure in sent.failures]
    return "\n".join(lines)
