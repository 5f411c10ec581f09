"""A simulated shop: every tick an order is placed, and earlier orders are paid, shipped, delivered or cancelled.

Key: the order's id as a string. Value: JSON, by the schema that the pipeline registered. What happens depends on SEED and
the time alone, so a restarted generator goes on where the clock is.

Environment: BOOTSTRAP_SERVERS, SCHEMA_REGISTRY_URL, TOPIC, INTERVAL_SECONDS (1), SEED (1).
`generator.py health` exits 0 when a record was acknowledged lately.
`generator.py bad` sends one order that is wrong, as a shop with a mistake in it would, and ends.
"""

import os
import random
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

# a tmpfs or the container's own layer: a restart begins without it, hence unhealthy
HEALTHY = Path("/tmp/healthy")  # noqa: S108
RETRY_SECONDS = 1.0
# status -> ticks after the order was placed
STEPS = {"placed": 0, "paid": 3, "shipped": 8, "delivered": 20}
CANCELLED = {"placed": 0, "cancelled": 3}
PRICES = {"mask": Decimal("24.90"), "lantern": Decimal("59.00"), "oar": Decimal("180.50"), "glass": Decimal("12.35")}


def happens(tick: int, interval: float, seed: int) -> list[dict]:
    """The orders that change at this tick (seconds since 1970 / interval), as they are then."""
    found = []
    for steps in (STEPS, CANCELLED):
        for status, after in steps.items():
            placed = tick - after
            if _is_cancelled(placed, seed) == (steps is CANCELLED):
                found.append(order(placed, interval, seed) | {"status": status, "updated_at": _iso(tick * interval)})
    return found


def order(tick: int, interval: float, seed: int) -> dict:
    """What was ordered at a tick; the same seed and tick always give the same order."""
    draw = random.Random(f"{seed} {tick}")  # noqa: S311 (nothing secret about an order)
    sku, quantity = draw.choice(list(PRICES)), draw.randint(1, 5)
    return {
        "order_id": f"o-{tick}",
        "customer_id": f"c-{draw.randint(1, 200):03d}",
        "sku": sku,
        "quantity": quantity,
        "amount": str(PRICES[sku] * quantity),
        "currency": "EUR",
        "placed_at": _iso(tick * interval),
    }


def _is_cancelled(tick: int, seed: int) -> bool:
    return random.Random(f"{seed} {tick} cancelled").random() < 0.1  # noqa: S311


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def health(limit: float) -> int:
    """Exit code 0 when the last acknowledged record is at most `limit` seconds old."""
    try:
        age = time.time() - float(HEALTHY.read_text())
    except (OSError, ValueError):
        print("no record has been acknowledged yet")
        return 1
    print(f"last record acknowledged {age:.1f} s ago")
    return 0 if age <= limit else 1


class Shop:
    """Sends what happens, tick by tick, until told to stop."""

    def __init__(self, bootstrap_servers: str, registry_url: str, topic: str):
        self.bootstrap_servers, self.registry_url, self.topic = bootstrap_servers, registry_url, topic
        self.stopping = threading.Event()
        self.acknowledged = 0
        self.healthy_at = 0.0

    def stop(self, *_: object) -> None:
        """Finish the current tick, flush and end (SIGTERM, SIGINT)."""
        self.stopping.set()

    def serializer(self, validate: bool = True):
        """JSON serializer with the registered schema; waits until registry and subject answer. None when stopped.

        Without `validate` it takes what does not fit the schema.
        """
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.json_schema import JSONSerializer

        registry = SchemaRegistryClient({"url": self.registry_url, "timeout": 5})
        subject = f"{self.topic}-value"
        while not self.stopping.is_set():
            try:
                schema = registry.get_latest_version(subject).schema
                conf = {"auto.register.schemas": False, "use.latest.version": True, "validate": validate}
                return JSONSerializer(schema, registry, conf=conf)
            except Exception as error:  # whatever is wrong, it may be right in a moment
                print(f"waiting for schema {subject} at {self.registry_url}: {error}", flush=True)
                self.stopping.wait(RETRY_SECONDS)
        return None

    def producer(self):
        """What sends the orders."""
        from confluent_kafka import Producer

        return Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                # an order is worth sending however late: only the queue's size bounds what waits
                "message.timeout.ms": 0,
                "linger.ms": 5,
                "compression.type": "lz4",
                "client.id": "orders-generator",
            }
        )

    def send_bad(self, interval: float, seed: int) -> int:
        """Send one order of no thing at all; exit code 0 when it was acknowledged."""
        from confluent_kafka.serialization import MessageField, SerializationContext

        tick = int(time.time() / interval)
        now = {"status": "placed", "updated_at": _iso(tick * interval)}
        wrong = order(tick, interval, seed) | now | {"order_id": f"bad-{tick}", "quantity": 0}
        producer = self.producer()
        value = self.serializer(validate=False)(wrong, SerializationContext(self.topic, MessageField.VALUE))
        failures = []
        producer.produce(self.topic, key=wrong["order_id"], value=value, on_delivery=lambda error, _: error and failures.append(error))
        if producer.flush(10) or failures:
            print(f"not delivered: {failures or 'no broker answers'}")
            return 1
        print(f"sent {wrong['order_id']} with quantity 0")
        return 0

    def run(self, interval: float, seed: int) -> None:
        """Send until stopped. The first records wait in the producer's queue until broker and topic answer."""
        from confluent_kafka.serialization import MessageField, SerializationContext

        serialize = self.serializer()
        if serialize is None:
            return
        producer = self.producer()
        context = SerializationContext(self.topic, MessageField.VALUE)
        print(f"an order every {interval:g} s to {self.topic}", flush=True)
        tick = int(time.time() / interval)
        while not self.stopping.is_set():
            for happened in happens(tick, interval, seed):
                self._send(producer, happened["order_id"], serialize(happened, context))
            tick += 1
            while not self.stopping.is_set() and (rest := tick * interval - time.time()) > 0:
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
    """Run the shop, or its health check."""
    interval = float(os.environ.get("INTERVAL_SECONDS", "1"))
    if sys.argv[1:] == ["health"]:
        return health(max(15.0, 3 * interval))
    seed = int(os.environ.get("SEED", "1"))
    shop = Shop(os.environ["BOOTSTRAP_SERVERS"], os.environ["SCHEMA_REGISTRY_URL"], os.environ["TOPIC"])
    signal.signal(signal.SIGTERM, shop.stop)
    signal.signal(signal.SIGINT, shop.stop)
    if sys.argv[1:] == ["bad"]:
        return shop.send_bad(interval, seed)
    shop.run(interval, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
