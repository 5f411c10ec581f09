"""Pinot: paid transactions per three seconds of event time, each window once it is final.

Pinot answers questions and sends nothing, so this asks it every second for the windows that are not yet sent, and sends those that
no more records can fall into: with the time up to which all partitions of INPUT were seen, less a second for what comes late.
What comes later still is not counted; neither does an event more than an hour ahead move the time on.

One query gives both the time and the sums, so they are of the same records, also while a server that was restarted reads the topic
again (only a backlog of more windows than one answer holds takes two). A partition in which nothing comes for a minute does not
hold the others back, if Pinot has all of it.

Each window goes to TOPIC exactly once (key: window_start in milliseconds since 1970; Avro): in a transaction of Kafka's, and after
a start it goes on behind the last one there. So TOPIC has one partition, and only one of these programs writes to it.

Environment: BOOTSTRAP_SERVERS, SCHEMA_REGISTRY_URL, PINOT_BROKER and PINOT_CONTROLLER (URLs), INPUT, TABLE, TOPIC.
`pinot_publisher.py health` exits 0 when Pinot and Kafka answered lately.
"""

import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WINDOW = 3_000
LATENESS = 1_000
AHEAD = 3_600_000
# longer than a broker's failover: what is sent after it is not late
IDLE_SECONDS = 60.0
TICK_SECONDS = 1.0
ANSWER_SECONDS = 10.0
SAY_SECONDS = 10.0
# groups (a window of a segment) that one query gives; what is beyond comes with the next
LIMIT = 50_000
# a tmpfs or the container's own layer: a restart begins without it, hence unhealthy
HEALTHY = Path("/tmp/healthy")  # noqa: S108
HEALTHY_SECONDS = 20.0

QUERY = """
SELECT $segmentName, DATETIMECONVERT(event_time, '1:MILLISECONDS:EPOCH', '1:MILLISECONDS:EPOCH', '3:SECONDS') AS w,
  MAX(event_time), SUM(CASE WHEN status = 'paid' THEN amount ELSE 0 END), SUM(CASE WHEN status = 'paid' THEN 1 ELSE 0 END)
FROM "{table}" WHERE event_time >= {since} AND event_time <= {until} GROUP BY $segmentName, w ORDER BY w LIMIT {limit}
"""
NEWEST = """
SELECT $segmentName, MAX(event_time) FROM "{table}"
WHERE event_time >= {since} AND event_time <= {until} GROUP BY $segmentName LIMIT {limit}
"""


class AwayError(Exception):
    """Pinot did not answer, or not completely."""


@dataclass(frozen=True)
class Window:
    """Paid transactions of [start, start + WINDOW), milliseconds since 1970."""

    start: int
    total: float
    count: int

    def record(self) -> dict[str, Any]:
        """Its Avro record."""
        return {
            "window_start": self.start,
            "window_end": self.start + WINDOW,
            "total_amount": self.total,
            "transactions": self.count,
            "avg_amount": self.total / self.count,
        }


@dataclass
class Idleness:
    """Which partitions have had nothing new for a while. `ends`: offset behind the last record, by partition."""

    ends: dict[int, int] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)

    def see(self, ends: Mapping[int, int], now: float) -> set[int]:
        """The partitions in which nothing came for IDLE_SECONDS, of those whose ends are given."""
        for partition, end in ends.items():
            if self.ends.get(partition) != end:
                self.ends[partition], self.since[partition] = end, now
        return {partition for partition in ends if now - self.since[partition] >= IDLE_SECONDS}


def partition_of(segment: str) -> int:
    """Pinot calls segments TABLE__PARTITION__NUMBER__TIME."""
    return int(segment.rsplit("__", 3)[1])


@dataclass(frozen=True)
class Sight:
    """What Pinot has: the newest event by partition, and windows of all transactions; complete before `end` (None: all are there)."""

    newest: dict[int, int]
    windows: list[Window]
    end: int | None = None


def complete(seen: Sight, partitions: Iterable[int], idle: set[int]) -> tuple[int | None, list[Window]]:
    """Up to when windows are final (None: nobody knows), and those of them that have paid transactions.

    `idle`: partitions that may be left out: Pinot has all of them, and nothing new comes.
    """
    awaited = set(partitions) - idle
    if not seen.newest or not awaited <= seen.newest.keys():
        return None, []
    # where all are idle, nothing is awaited from any
    time = min(seen.newest[partition] for partition in awaited) if awaited else max(seen.newest.values())
    until = (time - LATENESS) // WINDOW * WINDOW
    if seen.end is not None:
        until = min(until, seen.end)
    return until, [window for window in seen.windows if window.start + WINDOW <= until and window.count]


# ---- Pinot ----------------------------------------------------------------------------------------------------------


def ask(url: str, body: Any = None) -> Any:
    """The JSON that an address answers. AwayError when it does not, or says that something failed."""
    request = urllib.request.Request(url, body and json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 (an http address of Venice's own)
            found = json.load(answer)
    except (OSError, ValueError) as error:
        raise AwayError(f"{url}: {error}") from error
    if found.get("exceptions"):
        raise AwayError(f"{url}: {' '.join(found['exceptions'][0]['message'].split())[:300]}")
    return found


def rows(broker: str, query: str, **values: Any) -> list[list]:
    """What the broker answers; AwayError when not all servers did."""
    found = ask(f"{broker}/query/sql", {"sql": query.format(**values)})
    if found["numServersResponded"] < found["numServersQueried"]:
        raise AwayError(f"{broker}: {found['numServersResponded']} of {found['numServersQueried']} servers answered")
    return found["resultTable"]["rows"] if "resultTable" in found else []


def newest_of(found: Iterable[tuple[str, float]]) -> dict[int, int]:
    """The newest event by partition, out of segments' names and newest events."""
    newest: dict[int, int] = {}
    for segment, latest in found:
        newest[partition_of(segment)] = max(newest.get(partition_of(segment), 0), int(latest))
    return newest


def look(broker: str, table: str, since: int, limit: int = LIMIT) -> Sight:
    """What Pinot has from `since` on; `limit` groups of it at most."""
    values = {"table": table, "since": since, "until": int(time.time() * 1000) + AHEAD, "limit": limit}
    found, newest = rows(broker, QUERY, **values), None
    if len(found) >= limit:
        # this first: what the sums hold may be newer than it, never older
        newest = newest_of(rows(broker, NEWEST, **values))
        found = rows(broker, QUERY, **values)
    totals: dict[int, list[float]] = {}
    for _, window, _, total, count in found:
        sums = totals.setdefault(int(window), [0.0, 0])
        sums[0] += total
        sums[1] += count
    windows = [Window(start, total, int(count)) for start, (total, count) in sorted(totals.items())]
    if newest is None:
        return Sight(newest_of((segment, latest) for segment, _, latest, _, _ in found), windows)
    return Sight(newest, windows, windows[-1].start if len(found) >= limit else None)


def consumed(controller: str, table: str) -> dict[int, int]:
    """The offset up to which all of Pinot's replicas have a partition."""
    found: dict[int, int] = {}
    for servers in ask(f"{controller}/tables/{table}/consumingSegmentsInfo")["_segmentToConsumingInfoMap"].values():
        for server in servers:
            for partition, offset in server["partitionToOffsetMap"].items():
                found[int(partition)] = min(found.get(int(partition), int(offset)), int(offset))
    return found


# ---- Kafka ----------------------------------------------------------------------------------------------------------


class Topics:
    """The input topic's ends, and the output topic."""

    def __init__(self, servers: str, registry: str, source: str, target: str):
        from confluent_kafka import Consumer, Producer
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.avro import AvroSerializer

        self.source, self.target = source, target
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": f"pinot_publisher.{target}",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "log_level": 3,
            }
        )
        # what another one with this id has begun is ended, before the last window is looked for
        self._producer = Producer(
            {"bootstrap.servers": servers, "transactional.id": f"pinot_publisher.{target}", "compression.type": "zstd", "log_level": 3}
        )
        # as the pipeline declares it; read again for each record that does not fit it any more
        settings = {"auto.register.schemas": False, "use.latest.version": True}
        self._serializer = AvroSerializer(SchemaRegistryClient({"url": registry}), conf=settings)

    def start(self) -> int:
        """The end of the last window that was sent, 0 when none was. Ends the program when the topic is not as it has to be."""
        partitions = self._partitions(self.target)
        if len(partitions) != 1:
            sys.exit(f"{self.target} has {len(partitions)} partitions: it must have one, else nobody knows which window was the last")
        self._producer.init_transactions(30)
        last = self._last_key()
        return int(last) + WINDOW if last else 0

    def _partitions(self, topic: str) -> list[int]:
        found = self._consumer.list_topics(topic, timeout=ANSWER_SECONDS).topics[topic]
        if found.error:
            from confluent_kafka import KafkaException

            raise KafkaException(found.error)
        return list(found.partitions)

    def _last_key(self) -> bytes | None:
        """The key of the newest committed record; behind it there may be any number of marks of transactions."""
        from confluent_kafka import TopicPartition

        low, high = self._consumer.get_watermark_offsets(TopicPartition(self.target, 0), timeout=ANSWER_SECONDS)
        span = 16
        while True:
            begin = max(low, high - span)
            self._consumer.assign([TopicPartition(self.target, 0, begin)])
            last, ended = None, begin >= high
            while not ended:
                message = self._consumer.poll(ANSWER_SECONDS)
                if message is None:
                    raise TimeoutError(f"{self.target}: no answer within {ANSWER_SECONDS:g} s")
                if message.error():
                    ended = message.error().name() == "_PARTITION_EOF"
                else:
                    last = message.key()
            if last is not None or begin == low:
                self._consumer.unassign()
                return last
            span *= 16

    def ends(self) -> dict[int, int]:
        """The offset behind the last record of each partition of the input."""
        from confluent_kafka import TopicPartition

        return {
            partition: self._consumer.get_watermark_offsets(TopicPartition(self.source, partition), timeout=ANSWER_SECONDS)[1]
            for partition in self._partitions(self.source)
        }

    def send(self, windows: list[Window]) -> None:
        """All of them or none. Any failure ends the program: the next one goes on where the topic says."""
        from confluent_kafka.serialization import MessageField, SerializationContext

        context = SerializationContext(self.target, MessageField.VALUE)
        self._producer.begin_transaction()
        for window in windows:
            self._producer.produce(self.target, self._serializer(window.record(), context), str(window.start))
        self._producer.commit_transaction(30)


# ---- the program ----------------------------------------------------------------------------------------------------


def health() -> None:
    """Exit 0 when both answered lately."""
    age = time.time() - HEALTHY.stat().st_mtime if HEALTHY.exists() else None
    if age is None or age > HEALTHY_SECONDS:
        print("Pinot did not answer yet" if age is None else f"the last answer of Pinot's was {age:.0f} s ago")
        sys.exit(1)
    print(HEALTHY.read_text())


def main() -> None:
    """Send windows until SIGTERM."""
    broker, controller = os.environ["PINOT_BROKER"], os.environ["PINOT_CONTROLLER"]
    table = os.environ.get("TABLE", "transactions")
    source, target = os.environ.get("INPUT", "transactions"), os.environ.get("TOPIC", "transactions_aggregate_pinot")
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    topics = Topics(os.environ["BOOTSTRAP_SERVERS"], os.environ["SCHEMA_REGISTRY_URL"], source, target)
    done, idleness, said = topics.start(), Idleness(), -SAY_SECONDS
    print(f"sending windows of {source} from {done} on to {target}", flush=True)
    while not stopping.wait(TICK_SECONDS):
        try:
            # in this order: what Pinot has is asked for after what there is
            ends = topics.ends()
            idle = idleness.see(ends, time.monotonic())
            if idle:
                offsets = consumed(controller, table)
                idle = {partition for partition in idle if offsets.get(partition, -1) >= ends[partition]}
            until, windows = complete(look(broker, table, done), ends, idle)
        except AwayError as error:
            # while Pinot starts, the reason changes all the time
            if time.monotonic() - said > SAY_SECONDS:
                print(f"waiting for Pinot: {error}", flush=True)
                said = time.monotonic()
            continue
        if windows:
            topics.send(windows)
            print(f"sent {len(windows)} windows up to {windows[-1].start + WINDOW}", flush=True)
        done = max(done, until or 0)
        HEALTHY.write_text(f"windows are sent up to {done}")


if __name__ == "__main__":
    health() if sys.argv[1:] == ["health"] else main()
