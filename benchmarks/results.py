"""What the engines' benchmark sends, and what its observations mean: nothing here asks a service."""

import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from venice.data import DISORDER_MS, closing_ms
from venice.verify import EQUAL, LATENESS_MS, OPEN, Expected, Judged


class Arrival(NamedTuple):
    """A record of the input topic: its partition, when the broker appended it, and its event time (ms since 1970)."""

    partition: int
    arrived: int
    time: int


class Usage(NamedTuple):
    """What a container has used: CPU seconds since it was started, and bytes of memory now (resident, without the page cache)."""

    component: str
    cpu: float
    memory: int


@dataclass
class Turn:
    """One engine's part of one round. Seconds but for `memory` (bytes); `wrong` is empty when every window was right.

    `starting`: from the order to start until the engine read; `catching_up`: from then until the last window of the backlog was
    visible; `visible` and `written`: of each live window, from the event that closes it; `last`: the last one's `visible`.
    """

    engine: str
    round: int
    records: int = 0
    windows: int = 0
    starting: float = 0.0
    catching_up: float = 0.0
    catch_up_cpu: float = 0.0
    brokers_cpu: float = 0.0
    live_seconds: float = 0.0
    live_cpu: float = 0.0
    memory: int = 0
    visible: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    last: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {key: rounded(value) for key, value in asdict(self).items()}


def rounded(value: Any) -> Any:
    """Floats, also in lists, to the millisecond."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


# ---- what is sent, and what has to come out -------------------------------------------------------------------------


def backlog(pipeline: ModuleType, count: int, begin: int, span: int) -> Iterator[dict[str, Any]]:
    """So many transactions with event times from `begin` on, over `span` ms, as far out of order as `venice data` sends them."""
    disorder = random.Random("backlog")  # noqa: S311 (no secret)
    for number, record in enumerate(islice(pipeline.records(0), count)):
        moment = begin + DISORDER_MS + number * span // count - disorder.randrange(DISORDER_MS)
        yield record | {pipeline.TIME: moment}


def closing(pipeline: ModuleType, last: int) -> dict[str, Any]:
    """The record that moves the time on behind the last event."""
    return pipeline.closing() | {pipeline.TIME: last + closing_ms(pipeline)}


def expected(pipeline: ModuleType, records: Iterable[Mapping[str, Any]]) -> dict[int, Expected]:
    """The windows of records none of which is late: all of them have to be published."""
    found: dict[int, Expected] = {}
    for record in records:
        if pipeline.counts(record):
            start = record[pipeline.TIME] // pipeline.WINDOW_MS * pipeline.WINDOW_MS
            window = found.setdefault(start, Expected(start, start + pipeline.WINDOW_MS, closed=True))
            window.amounts.append(record[pipeline.SUMMED])
    return dict(sorted(found.items()))


def closings(arrivals: Iterable[Arrival], partitions: int, ends: Iterable[int]) -> dict[int, int]:
    """When the event arrived that closes each window, by the window's end: the first with which every partition is a second past it."""
    newest: dict[int, int] = {}
    found: dict[int, int] = {}
    waiting = sorted(ends, reverse=True)
    for arrival in sorted(arrivals, key=lambda a: a.arrived):
        newest[arrival.partition] = max(newest.get(arrival.partition, 0), arrival.time)
        watermark = min(newest.values()) - LATENESS_MS if len(newest) == partitions else -math.inf
        while waiting and waiting[-1] <= watermark:
            found[waiting.pop()] = arrival.arrived
    return found


def faults(judged: Iterable[Judged]) -> list[str]:
    """What is not as it has to be, one line each."""
    return [str(window) for window in judged if window.verdict not in (EQUAL, OPEN) or (window.verdict == OPEN and window.found)]


def spent(before: Mapping[Any, Usage], after: Mapping[Any, Usage], components: Sequence[str]) -> float:
    """CPU seconds that the components' containers used between two looks; what was started in between counts from its start."""
    total = 0.0
    for place, now in after.items():
        if now.component in components:
            used = now.cpu - before[place].cpu if place in before else now.cpu
            total += used if used >= 0 else now.cpu
    return total


def resident(look: Mapping[Any, Usage], components: Sequence[str]) -> int:
    """Bytes of memory of the components' containers."""
    return sum(usage.memory for usage in look.values() if usage.component in components)


# ---- what it means --------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below this share of all."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Measure:
    """One line of the table: a number of each turn, and how it is written."""

    key: str
    title: str
    of: Callable[[Turn], float]
    text: str
    pooled: Callable[[list[Turn]], float] | None = None
    """Where the median of the rounds would say less: the number of all turns together."""

    def over(self, turns: list[Turn]) -> float:
        """The engine's number."""
        return self.pooled(turns) if self.pooled else statistics.median(self.of(turn) for turn in turns)


MEASURES = (
    Measure("latency_median", "live window visible after, s", lambda t: statistics.median(t.visible), "{:.2f}"),
    Measure(
        "latency_p95",
        "  95 of 100 within",
        lambda t: percentile(t.visible, 0.95),
        "{:.2f}",
        lambda turns: percentile([value for turn in turns for value in turn.visible], 0.95),
    ),
    Measure("written_median", "  written after, visible or not", lambda t: statistics.median(t.written), "{:.2f}"),
    Measure("last", "  last event to last window", lambda t: t.last, "{:.2f}"),
    Measure("live_cores", "  CPU, seconds per second", lambda t: t.live_cpu / t.live_seconds, "{:.2f}"),
    Measure("events_per_second", "backlog, events per second", lambda t: t.records / t.catching_up, "{:,.0f}"),
    Measure("catching_up", "  from reading to last window, s", lambda t: t.catching_up, "{:.1f}"),
    Measure("starting", "  from start to reading, s", lambda t: t.starting, "{:.1f}"),
    Measure("catch_up_cpu", "  CPU seconds, with the start", lambda t: t.catch_up_cpu, "{:.1f}"),
    Measure("brokers_cpu", "  CPU seconds of the brokers", lambda t: t.brokers_cpu, "{:.1f}"),
    Measure("memory_mib", "memory, MiB", lambda t: t.memory / 2**20, "{:,.0f}"),
)
ROUNDS = "rounds with every window right"


@dataclass(frozen=True)
class Result:
    """An engine's number, and the median of its ratios to another engine's in the same round (None: nothing to compare with)."""

    value: float
    ratio: float | None
    rounds: tuple[float, ...]


def results(turns: Iterable[Turn], base: str) -> dict[str, dict[str, Result]]:
    """Measure's key -> engine -> result. Only of turns whose windows were all right: a fast wrong engine does not count."""
    right: dict[str, dict[int, Turn]] = {}
    for turn in turns:
        if not turn.wrong:
            right.setdefault(turn.engine, {})[turn.round] = turn
    found: dict[str, dict[str, Result]] = {}
    for measure in MEASURES:
        for engine, by_round in right.items():
            pairs = [(measure.of(turn), measure.of(right[base][n])) for n, turn in by_round.items() if n in right.get(base, {})]
            ratios = [value / other for value, other in pairs if other]
            result = Result(
                measure.over(list(by_round.values())),
                statistics.median(ratios) if ratios else None,
                tuple(measure.of(turn) for turn in by_round.values()),
            )
            found.setdefault(measure.key, {})[engine] = result
    return found


def table(turns: Sequence[Turn], base: str) -> str:
    """The results for a person: in brackets the ratio to `base`."""
    engines = list(dict.fromkeys(turn.engine for turn in turns))
    found = results(turns, base)
    width = max(len(measure.title) for measure in MEASURES)
    lines = [" " * width + "".join(f"{engine:>15}" for engine in engines)]
    for measure in MEASURES:
        cells = []
        for engine in engines:
            result = found[measure.key].get(engine) if measure.key in found else None
            ratio = f" ({result.ratio:.2f})" if result and result.ratio is not None else ""
            cells.append(f"{measure.text.format(result.value) + ratio if result else '-':>15}")
        lines.append(f"{measure.title:<{width}}" + "".join(cells))
    counts = []
    for engine in engines:
        mine = [turn for turn in turns if turn.engine == engine]
        counts.append(f"{f'{sum(not turn.wrong for turn in mine)} of {len(mine)}':>15}")
    lines.append(f"{ROUNDS:<{width}}" + "".join(counts))
    return "\n".join(lines)


_PANELS = (
    ("latency_median", "window visible after its closing event\nseconds, median (line: 95 of 100)"),
    ("events_per_second", "catching up on a backlog\nevents per second"),
    ("catch_up_cpu", "CPU of start and catching up\nseconds"),
    ("memory_mib", "memory of all its containers\nMiB"),
)


def plot(turns: Sequence[Turn], base: str, file: Path, note: str) -> None:
    """Four panels as PNG: medians as bars, single rounds as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = results(turns, base)
    figure, axes = pyplot.subplots(1, len(_PANELS), figsize=(12, 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, _PANELS, strict=True):
        for place, (engine, result) in enumerate(found.get(key, {}).items()):
            axis.bar(place, result.value, width=0.6, color=f"C{place}", alpha=0.65)
            axis.plot([place] * len(result.rounds), result.rounds, "k.", markersize=6)
            if key == "latency_median":
                axis.hlines(found["latency_p95"][engine].value, place - 0.3, place + 0.3, colors="k")
        axis.set_xticks(range(len(found.get(key, {}))), list(found.get(key, {})))
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=8)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
