"""A simulated fleet: every bus reports its position again and again.

Key: the vehicle's id as a string. Value: Avro, by the schema that the pipeline registered. Nothing is lost while a
broker is away: acks=all, an idempotent producer, and retries for as long as the process lives.

Environment: BOOTSTRAP_SERVERS, SCHEMA_REGISTRY_URL, TOPIC, BUSES (12), INTERVAL_SECONDS (1), SEED (1).
`producer.py health` exits 0 when a record was acknowledged lately.
"""

import math
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# a tmpfs or the container's own layer: a restart begins without it, hence unhealthy
HEALTHY = Path("/tmp/healthy")  # noqa: S108
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Bus:
    """One bus on its line: an oval loop, driven in `lap` seconds from the phase it starts with."""

    vehicle_id: str
    line: str
    latitude: float
    longitude: float
    radius_north_km: float
    radius_east_km: float
    tilt: float
    lap: float
    phase: float

    def report(self, now: float) -> dict:
        """Position at `now` (seconds since 1970): the same time always gives the same position."""
        # buses slow down twice a lap, as at the ends of a line; the term keeps the angle monotonous
        turn = now / self.lap + self.phase
        angle = 2 * math.pi * turn + 0.35 * math.sin(4 * math.pi * turn)
        rate = 2 * math.pi / self.lap * (1 + 0.7 * math.cos(4 * math.pi * turn))
        north, east = self._tilted(self.radius_north_km * math.sin(angle), self.radius_east_km * math.cos(angle))
        move_north, move_east = self._tilted(self.radius_north_km * math.cos(angle) * rate, -self.radius_east_km * math.sin(angle) * rate)
        return {
            "vehicle_id": self.vehicle_id,
            "line": self.line,
            "latitude": round(self.latitude + north / 111.32, 6),
            "longitude": round(self.longitude + east / (111.32 * math.cos(math.radians(self.latitude))), 6),
            "speed_kmh": round(math.hypot(move_north, move_east) * 3600, 1),
            "heading": round(math.degrees(math.atan2(move_east, move_north))) % 360,
            "recorded_at": int(now * 1000),
        }

    def _tilted(self, north: float, east: float) -> tuple[float, float]:
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return north * cos - east * sin, north * sin + east * cos


def fleet(size: int, seed: int) -> list[Bus]:
    """`size` buses on loops around Mestre; the same seed gives the same fleet."""
    draw = random.Random(seed)  # noqa: S311 (nothing secret about a bus)
    lines = []
    for number in range(max(1, math.ceil(size / 4))):
        north, east = draw.uniform(1.0, 3.0), draw.uniform(1.5, 4.0)
        # the circumference of an oval, roughly, at 24 km/h
        lap = math.pi * (north + east) / 24 * 3600
        centre = (45.49 + draw.uniform(-0.03, 0.03), 12.24 + draw.uniform(-0.04, 0.04))
        lines.append((str(2 + 2 * number), *centre, north, east, draw.uniform(0, math.pi), lap))
    return [Bus(f"bus-{n + 1:03d}", *lines[n % len(lines)], phase=(n // len(lines)) / 4 + draw.uniform(0, 0.1)) for n in range(size)]


def health(limit: float) -> int:
    """Exit code 0 when the last acknowledged record is at most `limit` seconds old."""
    try:
        age = time.time() - float(HEALTHY.read_text())
    except (OSError, ValueError):
        print("no record has been acknowledged yet")
        return 1
    print(f"last record acknowledged {age:.1f} s ago")
    return 0 if age <= limit else 1


class Fleet:
    """Sends every bus's position each interval until told to stop."""

    def __init__(self, bootstrap_servers: str, registry_url: str, topic: str):
        self.bootstrap_servers, self.registry_url, self.topic = bootstrap_servers, registry_url, topic
        self.stopping = threading.Event()
        self.acknowledged = 0
        self.healthy_at = 0.0

    def stop(self, *_: object) -> None:
        """Finish the current round, flush and end (SIGTERM, SIGINT)."""
        self.stopping.set()

    def serializer(self):
        """Avro serializer with the registered schema; waits until registry and subject answer. None when stopped."""
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.avro import AvroSerializer

        registry = SchemaRegistryClient({"url": self.registry_url, "timeout": 5})
        subject = f"{self.topic}-value"
        while not self.stopping.is_set():
            try:
                schema = registry.get_latest_version(subject).schema
                return AvroSerializer(registry, schema, conf={"auto.register.schemas": False, "use.latest.version": True})
            except Exception as error:  # whatever is wrong, it may be right in a moment
                print(f"waiting for schema {subject} at {self.registry_url}: {error}", flush=True)
                self.stopping.wait(RETRY_SECONDS)
        return None

    def run(self, buses: list[Bus], interval: float) -> None:
        """Report until stopped. The first records wait in the producer's queue until broker and topic answer."""
        from confluent_kafka import Producer
        from confluent_kafka.serialization import MessageField, SerializationContext

        serialize = self.serializer()
        if serialize is None:
            return
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                # a position is worth sending however late: only the queue's size bounds what waits
                "message.timeout.ms": 0,
                "linger.ms": 5,
                "compression.type": "lz4",
                "client.id": "bus-locations",
            }
        )
        context = SerializationContext(self.topic, MessageField.VALUE)
        print(f"{len(buses)} buses report to {self.topic} every {interval:g} s", flush=True)
        next_round = time.monotonic()
        while not self.stopping.is_set():
            now = time.time()
            for bus in buses:
                self._send(producer, bus.vehicle_id, serialize(bus.report(now), context))
            next_round = max(next_round + interval, time.monotonic())
            while not self.stopping.is_set() and (rest := next_round - time.monotonic()) > 0:
                producer.poll(min(rest, 0.2))
        left = producer.flush(8)
        print(f"stopped: {self.acknowledged} records acknowledged, {left} not", flush=True)

    def _send(self, producer, key: str, value: bytes) -> None:
        while not self.stopping.is_set():
            try:
                return producer.produce(self.topic, key=key, value=value, on_delivery=self._delivered)
            except BufferError:  # the brokers are away and the queue is full: wait for room
                producer.poll(0.2)

    def _delivered(self, error, message) -> None:
        if error is not None:
            print(f"not delivered: {error}", flush=True)
            return
        self.acknowledged += 1
        now = time.time()
        if now - self.healthy_at >= 1:
            if not self.healthy_at:
                print(f"first record acknowledged: partition {message.partition()} offset {message.offset()}", flush=True)
            self.healthy_at = now
            # written whole or not at all: the health check may read at any time
            fresh = HEALTHY.with_suffix(".new")
            fresh.write_text(str(now))
            fresh.replace(HEALTHY)


def main() -> int:
    """Run the fleet, or its health check."""
    interval = float(os.environ.get("INTERVAL_SECONDS", "1"))
    if sys.argv[1:] == ["health"]:
        return health(max(15.0, 3 * interval))
    fleet_ = Fleet(os.environ["BOOTSTRAP_SERVERS"], os.environ["SCHEMA_REGISTRY_URL"], os.environ["TOPIC"])
    signal.signal(signal.SIGTERM, fleet_.stop)
    signal.signal(signal.SIGINT, fleet_.stop)
    fleet_.run(fleet(int(os.environ.get("BUSES", "12")), int(os.environ.get("SEED", "1"))), interval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
