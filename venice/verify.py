"""Each engine's windows against those recomputed from the input topic itself.

What all engines share, and what is recomputed here:

- A record more than an hour ahead of its own Kafka timestamp, or one that can't be decoded, does not count and does not move the
  time on.
- An event is late when a window's end is not after the watermark that its arrival finds: a second less than the newest event
  so far, per partition, of all partitions the least; one in which nothing comes for a while is left out. Late events do not count.

When an engine read what is not known, so an event counts for sure only when nothing that came before it could have closed its
window: no earlier record of its partition, no record of another partition with an earlier Kafka timestamp. One that may be
late makes its window uncertain: it may or may not be among what the engine counted.
"""

import json
import math
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from venice.errors import InputError, VeniceError
from venice.messages import Record, iso, read, spans

if TYPE_CHECKING:
    from venice.registry import Registry

# component -> how its output topic ends: TOPIC_aggregate_...
ENGINES = {"flink": "flink", "ksqldb": "ksql", "spark": "spark", "pinot": "pinot"}
LATENESS_MS = 1000
AHEAD_MS = 3_600_000
# how long an engine may take from the record that closes a window to what it publishes
SETTLED_MS = 10_000
# a partition without records for so long while others have some does not hold them back: the engines' minute, and then as above
IDLE_MS = 60_000 + SETTLED_MS

EQUAL, MISSING, DUPLICATE, WRONG, UNCERTAIN, OPEN = VERDICTS = ("equal", "missing", "duplicate", "wrong", "uncertain", "open")
BAD = (MISSING, DUPLICATE, WRONG)


class Event(NamedTuple):
    """A record of the input topic; times in ms since 1970. `amount` None: it does not count in any window."""

    partition: int
    offset: int
    arrived: int
    time: int
    amount: float | None


@dataclass(frozen=True)
class Window:
    """What an engine says of one window."""

    start: int
    end: int
    total: float
    count: int
    average: float

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {"total_amount": self.total, "transactions": self.count, "avg_amount": self.average}

    def __str__(self) -> str:
        return f"{self.count} transactions, sum {self.total:.2f}, average {self.average:.2f}"


@dataclass
class Expected:
    """What the topic says of one window: events that count for sure, and those that may be late. `closed`: it has to be published."""

    start: int
    end: int
    amounts: list[float] = field(default_factory=list)
    perhaps: list[float] = field(default_factory=list)
    closed: bool = False

    @property
    def count(self) -> tuple[int, int]:
        """The least and the most transactions."""
        return len(self.amounts), len(self.amounts) + len(self.perhaps)

    @property
    def total(self) -> tuple[float, float]:
        """The least and the largest sum."""
        sure = math.fsum(self.amounts)
        return sure + math.fsum(min(a, 0) for a in self.perhaps), sure + math.fsum(max(a, 0) for a in self.perhaps)

    def has(self, window: Window) -> bool:
        """Whether the window's numbers are possible."""
        (few, many), (low, high) = self.count, self.total
        if self.perhaps and few < window.count < many:
            return low - _slack(low) <= window.total <= high + _slack(high)
        sums = {few: math.fsum(self.amounts), many: math.fsum(self.amounts + self.perhaps)}
        return window.count in sums and _same(window.total, sums[window.count])

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        (few, many), (low, high) = self.count, self.total
        return {"transactions": {"least": few, "most": many}, "total_amount": {"least": low, "most": high}}

    def __str__(self) -> str:
        (few, many), (low, high) = self.count, self.total
        if not self.perhaps:
            return f"{few} transactions, sum {low:.2f}, average {low / few:.2f}"
        return f"{few} to {many} transactions, sum {low:.2f} to {high:.2f}"


@dataclass(frozen=True)
class Judged:
    """One window of one engine. `expected` None: the topic has no transaction that counts in it."""

    start: int
    end: int
    verdict: str
    expected: Expected | None
    found: tuple[Window, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "window_start": iso(self.start),
            "window_end": iso(self.end),
            "verdict": self.verdict,
            "expected": self.expected.to_dict() if self.expected else None,
            "found": [window.to_dict() for window in self.found],
        }

    def __str__(self) -> str:
        found = "; ".join(map(str, self.found)) or "none"
        return f"{iso(self.start)} {self.verdict}: expected {self.expected or 'none'}; found {found}"


@dataclass
class Engine:
    """One engine's windows."""

    name: str
    topic: str
    windows: list[Judged] = field(default_factory=list)

    @property
    def counts(self) -> Counter:
        """How many windows of each verdict."""
        return Counter(window.verdict for window in self.windows)

    @property
    def ok(self) -> bool:
        """True when nothing is missing, duplicate or wrong, and something was compared."""
        found = self.counts
        return not any(found[verdict] for verdict in BAD) and found[EQUAL] + found[UNCERTAIN] > 0

    @property
    def remarkable(self) -> list[Judged]:
        """Windows that are neither equal nor open."""
        return [window for window in self.windows if window.verdict not in (EQUAL, OPEN)]

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        found = self.counts
        return {
            "engine": self.name,
            "topic": self.topic,
            "ok": self.ok,
            **{verdict: found[verdict] for verdict in VERDICTS},
            "windows": [window.to_dict() for window in self.remarkable],
        }


@dataclass
class Report:
    """What the topic has, and how each engine's windows compare."""

    topic: str
    records: int
    counted: int
    ahead: int
    malformed: int
    windows: int
    engines: list[Engine]

    @property
    def ok(self) -> bool:
        """True when all engines' windows are right, and there are some."""
        return all(engine.ok for engine in self.engines)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON; `docs/json/verify.schema.json`."""
        return {
            "ok": self.ok,
            "topic": self.topic,
            "records": self.records,
            "counted": self.counted,
            "ahead": self.ahead,
            "malformed": self.malformed,
            "windows": self.windows,
            "engines": [engine.to_dict() for engine in self.engines],
        }


# ---- what has to come out -------------------------------------------------------------------------------------------


def expect(events: Iterable[Event], window_ms: int, now: int) -> dict[int, Expected]:
    """The windows of these events, by start. `now`: when the engines were asked, ms since 1970."""
    events = sorted(events, key=lambda e: (e.partition, e.offset))
    perhaps = _perhaps_late(events, window_ms)
    low = _lowest(events, now)
    found: dict[int, Expected] = {}
    for event in events:
        if event.amount is None:
            continue
        start = event.time // window_ms * window_ms
        end = start + window_ms
        window = found.setdefault(start, Expected(start, end, closed=end + LATENESS_MS <= low))
        (window.perhaps if (event.partition, event.offset) in perhaps else window.amounts).append(event.amount)
    return dict(sorted(found.items()))


def _perhaps_late(events: Sequence[Event], window_ms: int) -> set[tuple[int, int]]:
    """(partition, offset) of events whose window a record that came before them may have closed. `events` by partition and offset."""

    def closes(newest: float, event: Event) -> bool:
        # engines differ by a millisecond: some close a window with its last one
        return newest >= event.time // window_ms * window_ms + window_ms + LATENESS_MS - 1

    found = set()
    newest: dict[int, int] = {}
    for event in events:
        before = newest.get(event.partition, -1)
        if closes(before, event):
            found.add((event.partition, event.offset))
        newest[event.partition] = max(before, event.time)
    before = latest = -1
    arrived = None
    for event in sorted(events, key=lambda e: e.arrived):
        if event.arrived != arrived:
            before, arrived = latest, event.arrived
        if closes(before, event):
            found.add((event.partition, event.offset))
        latest = max(latest, event.time)
    return found


def _lowest(events: Iterable[Event], now: int) -> float:
    """How far the time has come for certain: of the partitions' newest events the earliest, idle partitions left out."""
    newest: dict[int, int] = {}
    arrived: dict[int, int] = {}
    for event in events:
        if event.arrived <= now - SETTLED_MS:
            newest[event.partition] = max(newest.get(event.partition, event.time), event.time)
            arrived[event.partition] = max(arrived.get(event.partition, event.arrived), event.arrived)
    if not newest:
        return -math.inf
    last = max(arrived.values())
    return min(newest[partition] for partition in newest if arrived[partition] >= last - IDLE_MS)


def compare(expected: Mapping[int, Expected], published: Iterable[Window]) -> list[Judged]:
    """A verdict on each window that is expected or published, in order."""
    found: dict[int, list[Window]] = defaultdict(list)
    for window in published:
        found[window.start].append(window)
    judged = []
    for start in sorted(expected.keys() | found.keys()):
        wanted, there = expected.get(start), tuple(found.get(start, ()))
        end = wanted.end if wanted else there[0].end
        judged.append(Judged(start, end, _verdict(wanted, there), wanted, there))
    return judged


def _verdict(wanted: Expected | None, there: tuple[Window, ...]) -> str:
    if len(there) > 1:
        return DUPLICATE
    if wanted is None:
        return WRONG
    if not there:
        if not wanted.closed:
            return OPEN
        return MISSING if wanted.amounts else UNCERTAIN
    [window] = there
    if window.end != wanted.end or not _same(window.average * window.count, window.total):
        return WRONG
    if wanted.has(window):
        return UNCERTAIN if wanted.perhaps else EQUAL
    # more than there is can't become right; less can, as long as events may come that are not here yet
    return WRONG if wanted.closed or window.count > wanted.count[1] else OPEN


def _slack(value: float) -> float:
    return 1e-9 * max(abs(value), 1.0)


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


# ---- what there is --------------------------------------------------------------------------------------------------


class Values:
    """Decodes Avro values by the schemas that they name; times stay numbers."""

    def __init__(self, registry: "Registry"):
        self._registry = registry
        self._schemas: dict[int, Any] = {}

    def decode(self, value: bytes | None) -> dict[str, Any] | None:
        """A record; None for what is none. Raises what the registry raises when it does not answer."""
        import fastavro

        if value is None or len(value) < 5 or value[0] != 0:
            return None
        (ident,) = struct.unpack_from(">I", value, 1)
        if ident not in self._schemas:
            found = self._registry.by_id(ident)
            # another kind of schema's values can't be meant
            avro = found is not None and found["schemaType"] == "AVRO"
            self._schemas[ident] = fastavro.parse_schema(_plain(json.loads(found["schema"]))) if avro else None
        if self._schemas[ident] is None:
            return None
        stream = BytesIO(value[5:])
        try:
            decoded = fastavro.schemaless_reader(stream, self._schemas[ident])
        except Exception:  # what fastavro raises for bytes that are no Avro is of no one kind
            return None
        return decoded if isinstance(decoded, dict) and stream.tell() == len(value) - 5 else None


def _plain(schema: Any) -> Any:
    """A schema without logical types: their values are the numbers that are written."""
    if isinstance(schema, dict):
        return {key: _plain(part) for key, part in schema.items() if key != "logicalType"}
    return [_plain(part) for part in schema] if isinstance(schema, list) else schema


def _event(record: Record, value: dict[str, Any] | None, pipeline: Any) -> Event | None:
    """A record of the input topic; None when it is malformed."""
    if value is None:
        return None
    moment, amount = value.get(pipeline.TIME), value.get(pipeline.SUMMED)
    if type(moment) is not int or not isinstance(amount, int | float):
        return None
    try:
        counts = pipeline.counts(value)
    except KeyError:
        return None
    return Event(record.partition, record.offset, record.timestamp or 0, moment, float(amount) if counts else None)


def _window(record: Record, value: dict[str, Any] | None) -> Window:
    """What an engine published. VeniceError for a record that is none of its form."""
    try:
        found = Window(value["window_start"], value["window_end"], value["total_amount"], value["transactions"], value["avg_amount"])
    except (KeyError, TypeError):
        found = None
    if found is None or None in (found.start, found.end, found.total, found.count, found.average):
        raise VeniceError(
            f"{record}: no window: an Avro record with window_start, window_end, total_amount, transactions and avg_amount",
            f"`venice topics show {record.topic} --partition {record.partition} --offset {record.offset}` shows what it is",
        )
    return found


def verify(cluster: Any, folder: Path) -> Report:
    """Compare the windows of all engines in the inventory that the pipeline has a topic for with the pipeline's input topic.

    InputError when the inventory runs none, or the pipeline has no windows; VeniceError when topics are missing or the input has
    nothing that counts.
    """
    from venice import data
    from venice.kafka import Kafka
    from venice.pipeline import files
    from venice.registry import Registry

    pipeline = data.load(folder)
    if not hasattr(pipeline, "WINDOW_MS") or not hasattr(pipeline, "counts"):
        raise InputError(f"{folder / data.FILE}: has no WINDOW_MS and counts(): there are no windows to verify", "docs/transactions.md")
    topics = {topic.name for topic in files.load(folder).topics}
    engines = [Engine(name, f"{pipeline.TOPIC}_aggregate_{suffix}") for name, suffix in ENGINES.items() if cluster.groups.get(name)]
    engines = [engine for engine in engines if engine.topic in topics]
    if not engines:
        raise InputError(
            f"{cluster.inventory_dir} runs no engine that computes windows of {folder.name}",
            f"the groups {', '.join(ENGINES)} do, into topics {pipeline.TOPIC}_aggregate_... that the pipeline has",
        )
    kafka, values = Kafka.of(cluster), Values(Registry.of(cluster))
    now = int(time.time() * 1000)
    # first what the engines say: what is in it is in the input by then
    published = {e.name: [_window(r, values.decode(r.value)) for r in read(kafka, spans(kafka, e.topic))] for e in engines}
    report = Report(pipeline.TOPIC, 0, 0, 0, 0, 0, engines)
    expected = expect(_events(read(kafka, spans(kafka, pipeline.TOPIC)), values, pipeline, report), pipeline.WINDOW_MS, now)
    if not expected and not any(published.values()):
        raise VeniceError(
            f"topic {pipeline.TOPIC} has nothing that counts: there is nothing to verify", f"`venice data {folder.name} -n 1000` sends some"
        )
    report.windows = len(expected)
    for engine in engines:
        engine.windows = compare(expected, published[engine.name])
    return report


def _events(records: Iterable[Record], values: Values, pipeline: Any, report: Report) -> list[Event]:
    """Records that move the time on; all are counted in the report."""
    found = []
    for record in records:
        report.records += 1
        event = _event(record, values.decode(record.value), pipeline)
        if event is None:
            report.malformed += 1
        elif event.time > event.arrived + AHEAD_MS:
            report.ahead += 1
        else:
            report.counted += event.amount is not None
            found.append(event)
    return found
