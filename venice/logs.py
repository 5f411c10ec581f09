"""Logs of any containers on any hosts, as one: read over SSH, put into records, merged by time.

A record is a log line with the lines that belong to it: a Java stack trace is one record, whatever else was logged at the time.
"""

import heapq
import itertools
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from venice.cluster import Cluster, Instance
from venice.errors import InputError, UnreachableError, VeniceError
from venice.hosts import DockerHost, over

# what is shown of each instance when nothing says how much
TAIL = 100
FOLLOW_TAIL = 10
# a host that is silent for longer while logs are read is gone; reading itself may last
_SILENCE = 15
_READ_SECONDS = 600
# Following: how long a record is held back for earlier ones of other hosts, and how long it may wait for its next line.
WINDOW = 0.5
_QUIET = 0.2
_AGAIN_SECONDS = 2
# Lines that belong together are written at once; a later one that merely looks as if it continued something does not.
_TOGETHER = timedelta(seconds=1)

_OWN_TIME = re.compile(r"^\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
# a time of the line's own that says that it is UTC: shown once, not twice
_UTC_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)[.,](\d{3})(?:Z| UTC) +")
_CONTINUES = re.compile(r"^(\s|$|Caused by: |Suppressed: |\.\.\. \d+ more|[)}\]]|([\w$]+\.)*[A-Z][\w$]*(Exception|Error|Throwable)\b)")
_STARTS = re.compile(r"^(TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL|SEVERE)\b")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass
class Record:
    """What one container logged at one time: `time` is its engine's, UTC with nanoseconds; `lines` has at least one."""

    time: str
    instance: Instance
    lines: list[str]

    @property
    def label(self) -> str:
        """`kafka@lab-1`."""
        return label(self.instance)

    @property
    def message(self) -> str:
        """All lines, as they were logged."""
        return "\n".join(self.lines)

    def to_dict(self) -> dict[str, str]:
        """Form for `--json`."""
        return {
            "time": self.time,
            "host": self.instance.host,
            "component": self.instance.component,
            "instance": self.instance.name,
            "message": self.message,
        }

    def shown(self) -> tuple[str, list[str]]:
        """Time (UTC, milliseconds) and lines for a person: a line's own time is left out when it says the same."""
        own = _UTC_TIME.match(self.lines[0])
        same = own and abs(_moment(f"{own[1]}T{own[2]}.{own[3]}Z") - _moment(self.time)) < _TOGETHER
        return f"{self.time[:23]}Z", [self.lines[0][own.end() :], *self.lines[1:]] if same else self.lines


@dataclass(frozen=True)
class Query:
    """What is wanted: from when, how many of each instance's last (None is all), and the records that match `grep`.

    `tail` counts lines, or with `grep` the records that match.
    """

    since: datetime | None = None
    tail: int | None = TAIL
    grep: re.Pattern[str] | None = None

    def matches(self, record: Record) -> bool:
        """True for records that are wanted."""
        return self.grep is None or bool(self.grep.search(record.message))


@dataclass
class Logs:
    """Records in order of time, and what is missing: hosts that did not answer (and why), instances without a container."""

    records: list[Record] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    # label -> time of the last line that was read, wanted or not
    last: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 all is there, 1 a container is missing, 3 a host did not answer."""
        return 3 if self.unreachable else 1 if self.missing else 0

    def warnings(self) -> list[str]:
        """What is not shown, and why."""
        hosts = [f"{host} does not answer: {why}" for host, why in self.unreachable.items()]
        return [*hosts, *(f"{name} has no container: `venice deploy` makes it" for name in self.missing)]


def label(instance: Instance) -> str:
    """`kafka@lab-1`: names one container of a cluster."""
    return f"{instance.name}@{instance.host}"


def query(since: str | None, tail: int | None, grep: str | None, follow: bool) -> Query:
    """A query from what a user gave. Without `tail`: everything since `since`, else the last 100 (10 when following).

    InputError for a time or an expression that can't be understood.
    """
    if tail is None and since is None:
        tail = FOLLOW_TAIL if follow else TAIL
    try:
        pattern = re.compile(grep) if grep is not None else None
    except re.error as error:
        raise InputError(
            f"--grep {grep!r} is no regular expression: {error}", r"write \ before a character that is meant literally"
        ) from error
    return Query(moment(since) if since else None, tail, pattern)


def moment(text: str) -> datetime:
    """The time meant by `10m`, `1h30m`, `2d` (ago), or by an ISO time (UTC unless it says otherwise). InputError for others."""
    parts = re.findall(r"(\d+)([smhd])", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return datetime.now(UTC) - sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts), timedelta())
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"--since {text!r} is no time", "write 90s, 10m, 2h or 1d, or a time such as 2026-01-31T18:00 (UTC)") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def read(cluster: Cluster, instances: Iterable[Instance], wanted: Query) -> Logs:
    """What the instances have logged so far. Asks all hosts at once; those that do not answer are named in the result."""
    by_host: dict[str, list[Instance]] = {}
    for instance in instances:
        by_host.setdefault(instance.host, []).append(instance)

    def look(host: DockerHost) -> dict[str, tuple[list[Record], str] | None]:
        return {label(i): _past(host, i, wanted) for i in by_host[host.name]}

    found = Logs()
    for host, answer in over([cluster.hosts[name] for name in by_host], look, timeout=_READ_SECONDS).items():
        if isinstance(answer, UnreachableError):
            found.unreachable[host] = answer.message
        elif isinstance(answer, VeniceError):
            raise answer
        else:
            for name, past in answer.items():
                if past is None:
                    found.missing.append(name)
                    continue
                found.records += past[0]
                found.last[name] = past[1]
    found.records.sort(key=lambda r: r.time)
    return found


def follow(cluster: Cluster, instances: Iterable[Instance], wanted: Query, before: Logs, notice: Callable[[str], None]) -> Iterator[Record]:
    """What the instances log after what `before` holds, for ever, in the order of time within `WINDOW` seconds.

    A container that restarts or is replaced, and a host that goes away and comes back, are followed on; `notice` is told.
    """
    lines: queue.Queue[tuple[str, str, str]] = queue.Queue()
    notices: queue.Queue[str] = queue.Queue()
    builders = {}
    for instance in instances:
        name = label(instance)
        builders[name] = _Builder(instance)
        last = before.last.get(name, "")
        down = name in before.missing or instance.host in before.unreachable
        follower = _Follower(DockerHost(cluster.hosts[instance.host]), instance, wanted.since, last, down, lines, notices)
        threading.Thread(target=follower.run, daemon=True).start()
    held: list[tuple[str, int, float, Record]] = []
    number = itertools.count()
    while True:
        now = time.monotonic()
        complete = [r for builder in builders.values() if (r := builder.end(now - _QUIET))]
        for name, at, text in _drain(lines, 0.1):
            complete += [r] if (r := builders[name].add(at, text)) else []
        for record in complete:
            if wanted.matches(record):
                heapq.heappush(held, (record.time, next(number), now + WINDOW, record))
        while not notices.empty():
            notice(notices.get())
        while held and held[0][2] <= now:
            yield heapq.heappop(held)[3]


def pick(cluster: Cluster) -> list[Instance]:
    """The instances that a person at a terminal ticks; at least one."""
    import questionary

    from venice import selection

    instances = selection.select(cluster, [selection.ALL])
    choices = [questionary.Choice(label(i), i) for i in instances]
    return questionary.checkbox(
        "Whose logs?",
        choices=choices,
        instruction="(space ticks, a ticks all, enter shows)",
        validate=lambda ticked: bool(ticked) or "tick at least one",
    ).unsafe_ask()


class _Builder:
    """Puts one instance's lines together to records."""

    def __init__(self, instance: Instance):
        self._instance = instance
        self._open: Record | None = None
        self._before = ""
        self._touched = 0.0

    def add(self, at: str, text: str) -> Record | None:
        """Takes the next line; the record before when this line begins another."""
        before, self._before, self._touched = self._before, at, time.monotonic()
        if self._open and _moment(at) - _moment(before) <= _TOGETHER and _continues(self._open.lines[0], text):
            self._open.lines.append(text)
            return None
        done, self._open = self._open, Record(at, self._instance, [text])
        return _trimmed(done)

    def end(self, touched: float) -> Record | None:
        """The record that is open when its last line came before `touched` (monotonic)."""
        if not self._open or self._touched > touched:
            return None
        done, self._open = self._open, None
        return _trimmed(done)


def _trimmed(record: Record | None) -> Record | None:
    """Without empty lines at its end; None when nothing is left."""
    while record and record.lines and not record.lines[-1].strip():
        record.lines.pop()
    return record if record and record.lines else None


def _continues(first: str, line: str) -> bool:
    """True when a line goes on with the record that `first` began."""
    if _OWN_TIME.match(line):
        return False
    # where lines have times, one without is text of the record before; else only its form can tell
    return bool(_CONTINUES.match(line)) or (bool(_OWN_TIME.match(first)) and not _STARTS.match(line))


def _past(host: DockerHost, instance: Instance, wanted: Query) -> tuple[list[Record], str] | None:
    """An instance's wanted records and the time of its last line; None when it has no container."""
    import docker.errors

    # at least one line: its time is where following goes on
    ask = "all" if wanted.tail is None or wanted.grep else max(1, wanted.tail)
    kept: deque[Record] = deque(maxlen=wanted.tail if wanted.grep else None)
    builder, last = _Builder(instance), ""
    host.watch(_SILENCE)
    try:
        for at, text in _read(host, instance, wanted.since, ask, False):
            last = at
            if (record := builder.add(at, text)) and wanted.matches(record):
                kept.append(record)
    except VeniceError as error:
        if isinstance(error.__cause__, docker.errors.NotFound):
            return None
        raise
    if (record := builder.end(float("inf"))) and wanted.matches(record):
        kept.append(record)
    return ([] if wanted.tail == 0 else list(kept)), last


def _read(host: DockerHost, instance: Instance, since: datetime | None, tail: int | str, follow: bool) -> Iterator[tuple[str, str]]:
    """(time, text) of each line. UnreachableError when the connection is lost, which the SDK takes for the log's end."""
    with host.asking():
        yield from _lines(_stream(host, instance, since, tail, follow))
    if host.lost:
        raise UnreachableError(f"{host.name}: the SSH connection was lost", "is the host on, and still on the network?")


def _stream(host: DockerHost, instance: Instance, since: datetime | None, tail: int | str, follow: bool) -> Iterable[bytes]:
    # an SDK's stream has no time limit of its own; `watch` ends it when the host is gone
    options: dict[str, Any] = {"since": since.timestamp()} if since else {}
    return host.docker.api.logs(instance.container, stream=True, follow=follow, timestamps=True, tail=tail, **options)


def _lines(stream: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(time, text) of each line. The engine cuts lines after 16 KiB and puts a time before every part."""
    begun: tuple[str, bytes] | None = None
    for chunk in stream:
        at, _, text = chunk.partition(b" ")
        if begun:
            text = begun[1] + text
        stamp = begun[0] if begun else at.decode()
        if text.endswith(b"\n"):
            yield stamp, text.rstrip(b"\r\n").decode(errors="replace")
            begun = None
        else:
            begun = (stamp, text)
    if begun:
        yield begun[0], begun[1].decode(errors="replace")


class _Follower:
    """Reads one instance's lines for ever, over a connection of its own: sshd allows few sessions on one."""

    def __init__(
        self,
        host: DockerHost,
        instance: Instance,
        since: datetime | None,
        last: str,
        down: bool,
        lines: "queue.Queue[tuple[str, str, str]]",
        notices: "queue.Queue[str]",
    ):
        self._host = host
        self._instance = instance
        self._name = label(instance)
        self._since = since
        self._last = last
        self._down = down
        self._lines = lines
        self._notices = notices

    def run(self) -> None:
        """Never returns; a daemon thread's."""
        while True:
            try:
                self._wait_running()
                self._read()
                self._lost("has stopped; going on when it runs again")
            except VeniceError as error:
                self._lost(f"can't be followed: {error.message}; trying again")
                self._host.close()
                time.sleep(_AGAIN_SECONDS)

    def _wait_running(self) -> None:
        while True:
            with self._host.asking():
                self._host.watch(_SILENCE)
                running = self._host.docker.api.inspect_container(self._instance.container)["State"]["Running"]
            if running:
                break
            time.sleep(_AGAIN_SECONDS / 2)
        if self._down:
            self._notices.put(f"{self._name} runs again")
            self._down = False

    def _read(self) -> None:
        """Until the container stops."""
        # the engine gets a time that is surely before the last line; what was seen already is left out here
        since = _moment(self._last) - timedelta(milliseconds=1) if self._last else self._since
        for at, text in _read(self._host, self._instance, since, "all", True):
            if at > self._last:
                self._last = at
                self._lines.put((self._name, at, text))

    def _lost(self, what: str) -> None:
        if not self._down:
            self._notices.put(f"{self._name} {what}")
            self._down = True


def _drain(lines: "queue.Queue[tuple[str, str, str]]", seconds: float) -> Iterator[tuple[str, str, str]]:
    """What is in the queue, after waiting up to `seconds` for a first."""
    try:
        yield lines.get(timeout=seconds)
        while True:
            yield lines.get_nowait()
    except queue.Empty:
        return


def _moment(stamp: str) -> datetime:
    """Time of an engine's timestamp, whose nanoseconds Python cuts to microseconds."""
    return datetime.fromisoformat(stamp)
