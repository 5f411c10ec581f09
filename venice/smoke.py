"""The smoke test: is the cluster whole, and does one real event get from producer to table?

Checks of the cluster and the trace run at the same time. The trace's hops follow one record with a unique id: the first
that breaks says which service stopped it and what that service has to say; the ones after it were not reached.
"""

import getpass
import io
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import fastavro
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from venice import groups
from venice.connect import Connect
from venice.errors import UnreachableError, VeniceError
from venice.hosts import DockerHost, over
from venice.kafka import Kafka
from venice.postgres import Postgres
from venice.registry import Registry

TOPIC = "venice.canary"
TABLE = "venice_canary"
CONNECTOR = "venice_canary"

HOST_SECONDS = 8.0
KAFKA_SECONDS = 5.0
# a replica that fell silent holds records back until it leaves those in sync (Kafka's replica.lag.time.max.ms: 30 s)
ACKNOWLEDGED_SECONDS = 60.0
# a task that has just moved joins its consumer group first: after ten seconds when the one before it could not leave, and three that
# Kafka takes
ROW_SECONDS = 30.0
# after a deployment: a broker that came back a moment ago is healthy before it has caught up, a busy machine answers late
SETTLE_SECONDS = 60.0
_CONNECT_SECONDS = 2.0
_POLL_SECONDS = 0.1
_LOG_LINES = 5

_PROBE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def probe(endpoint):
    try:
        socket.create_connection((endpoint[1], endpoint[2]), timeout=2).close()
    except OSError as error:
        return [*endpoint, str(error)]
endpoints = json.load(sys.stdin)
with ThreadPoolExecutor(len(endpoints) or 1) as pool:
    print(json.dumps([failed for failed in pool.map(probe, endpoints) if failed]))
"""

# The wait is in the database: the row is seen a moment after it is there, at the cost of one command. Each round is
# a transaction of its own: one that lasted would block the connector's ALTER TABLE.
_WAIT_FOR_ROW = """
\\o /dev/null
SELECT set_config('venice.trace', :'trace', false), set_config('venice.seconds', :'seconds', false);
\\o
DO $$
DECLARE
  found boolean := false;
  deadline timestamptz := clock_timestamp() + current_setting('venice.seconds')::float * interval '1 second';
BEGIN
  LOOP
    BEGIN
      EXECUTE 'SELECT EXISTS (SELECT FROM venice_canary WHERE trace_id = $1)'
        INTO found USING current_setting('venice.trace');
    EXCEPTION WHEN undefined_table THEN
      NULL;
    END;
    COMMIT;
    EXIT WHEN found OR clock_timestamp() > deadline;
    PERFORM pg_sleep(0.02);
  END LOOP;
END $$;
SELECT slot, trace_id, sender, number, round(extract(epoch FROM sent_at) * 1000)
  FROM venice_canary WHERE trace_id = :'trace';
"""


@dataclass
class Hop:
    """One step. `ok` None: not reached. `says`: what the service that broke it says, `remedy`: what to run next."""

    name: str
    ok: bool | None
    seconds: float = 0.0
    detail: str = ""
    says: str = ""
    remedy: str = ""


@dataclass
class SmokeResult:
    """All hops in order. `ok` when each one is."""

    trace: str
    hops: list[Hop] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True when every hop succeeded."""
        return all(hop.ok for hop in self.hops)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "ok": self.ok,
            "trace": self.trace,
            "seconds": round(self.seconds, 3),
            "hops": [asdict(hop) | {"seconds": round(hop.seconds, 3)} for hop in self.hops],
        }


class BrokenHopError(VeniceError):
    """A hop that failed; `says` holds what the service says."""

    def __init__(self, message: str, remedy: str = "", says: str = ""):
        super().__init__(message, remedy)
        self.says = says


def run(cluster: Any, report: Callable[[Hop], None] = lambda hop: None, settle: float = 0.0) -> SmokeResult:
    """Run the smoke test; `report` is called with each hop as it ends (checks and trace interleave).

    `settle`: seconds that each check may take to hold, as where brokers have still to catch up; 0 tells what is so now.
    """
    return _Smoke(cluster, report, settle).run()


class _Smoke:
    def __init__(self, cluster: Any, report: Callable[[Hop], None], settle: float = 0.0):
        self.cluster = cluster
        self.report = report
        self.settle = settle
        self.trace = str(uuid.uuid4())
        self.hosts = {name: DockerHost(host) for name, host in cluster.hosts.items() if host.components}
        self.kafka = Kafka(cluster.bootstrap_servers, timeout=KAFKA_SECONDS)
        self.lock = threading.Lock()

    def run(self) -> SmokeResult:
        started = time.monotonic()
        checks = [("from hosts", self.from_hosts), ("from here", self.from_here)]
        # an inventory may run a database alone
        if self.cluster.instances("kafka"):
            checks = [("brokers", self.brokers), ("replicas", self.replicas), *checks]
        with ThreadPoolExecutor(len(checks) + 1) as pool:
            pending = [pool.submit(self.hop, name, lambda check=check: self.settled(check)) for name, check in checks]
            # without a registry, Connect or PostgreSQL there is no way to follow
            traced = pool.submit(self.follow) if self.cluster.has_canary else None
            hops = [future.result() for future in pending] + (traced.result() if traced else [])
        for host in self.hosts.values():
            host.close()
        return SmokeResult(self.trace, hops, time.monotonic() - started)

    def hop(self, name: str, step: Callable[[], str]) -> Hop:
        """Run one step, which returns its detail or raises."""
        started = time.monotonic()
        hop = Hop(name, True)
        try:
            hop.detail = step()
        except VeniceError as error:
            hop.ok, hop.detail, hop.remedy, hop.says = False, error.message, error.remedy, getattr(error, "says", "")
        hop.seconds = time.monotonic() - started
        with self.lock:
            self.report(hop)
        return hop

    # ---- the cluster ---------------------------------------------------------------------------------------------

    def settled(self, check: Callable[[], str]) -> str:
        """A check, asked again until it holds or `settle` seconds are over."""
        deadline = time.monotonic() + self.settle
        while True:
            try:
                return check()
            except VeniceError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def brokers(self) -> str:
        """Every broker of the inventory is registered, and the quorum has a leader."""
        instances = self.cluster.instances("kafka")
        registered = self.kafka.brokers()
        missing = [i for i in instances if i.endpoint("client") not in registered.values()]
        if missing:
            raise BrokenHopError(
                f"{len(registered)} of {len(instances)} registered; missing: "
                + ", ".join(f"{i.name} on {i.host} ({i.endpoint('client')})" for i in missing),
                "`venice up` starts it; `venice logs kafka` shows its log",
                self.says(missing[0]),
            )
        strange = set(registered.values()) - {i.endpoint("client") for i in instances}
        if strange:
            raise BrokenHopError(
                f"brokers that are not in the inventory are registered: {', '.join(sorted(strange))}",
                "add their hosts to the group kafka, or stop them",
            )
        controller = self.kafka.controller()
        if controller < 0:
            raise BrokenHopError("no active controller: the quorum has no majority", "`venice status`", self.says(instances[0]))
        return f"{len(registered)} of {len(instances)} registered, active controller {controller}"

    def replicas(self) -> str:
        """Every replica of every partition is in sync."""
        partitions = self.kafka.partitions()
        behind = [p for p in partitions if len(p.isr) < len(p.replicas) or p.leader < 0]
        if behind:
            first = behind[0]
            raise BrokenHopError(
                f"{len(behind)} of {len(partitions)} partitions under-replicated, as {first}: "
                f"replicas {list(first.replicas)}, in sync {list(first.isr)}, leader {first.leader}",
                "a broker that has just started catches up by itself; otherwise `venice status`",
            )
        return f"all {len(partitions)} partitions have all replicas in sync"

    def endpoints(self) -> list[tuple[str, str, int]]:
        """Every advertised endpoint: whose it is, address, port. Without those on which a healthy instance need not listen."""
        found = self.cluster.instances()
        return [
            (f"{i.component} on {i.host}", i.address, port) for i in found for name, port in sorted(i.ports.items()) if name not in i.idle
        ]

    def from_hosts(self) -> str:
        """Every endpoint accepts connections from every host."""
        endpoints = self.endpoints()

        def probe(host: DockerHost) -> list[list]:
            code, output, errors = host.run(["python3", "-c", _PROBE], json.dumps(endpoints), timeout=HOST_SECONDS)
            if code:
                raise VeniceError(f"{host.name}: python3 ended with {code}: {errors.strip().splitlines()[-1:]}")
            return json.loads(output)

        broken = []
        for name, found in over(self.hosts.values(), probe, timeout=HOST_SECONDS).items():
            if isinstance(found, VeniceError):
                broken.append(found.message)
            else:
                broken += [f"{name} can't reach {who} ({address}:{port}): {why}" for who, address, port, why in found]
        if broken:
            raise BrokenHopError("; ".join(broken), "`venice status` tells what is down; else look for a firewall in between")
        return f"{len(endpoints)} endpoints answer from each of {len(self.hosts)} hosts"

    def from_here(self) -> str:
        """Every endpoint accepts connections from this machine."""
        endpoints = self.endpoints()

        def probe(endpoint: tuple[str, str, int]) -> str:
            who, address, port = endpoint
            try:
                socket.create_connection((address, port), timeout=_CONNECT_SECONDS).close()
            except OSError as error:
                return f"{who} ({address}:{port}): {error}"
            return ""

        with ThreadPoolExecutor(len(endpoints) or 1) as pool:
            broken = [failure for failure in pool.map(probe, endpoints) if failure]
        if broken:
            raise BrokenHopError("; ".join(broken), "`venice status` tells what is down; else this machine has no route to that address")
        return f"{len(endpoints)} endpoints answer from this machine"

    # ---- the trace -----------------------------------------------------------------------------------------------

    def follow(self) -> list[Hop]:
        """Schema, produce, consume, row: in order, each only after the one before."""
        self.record = {
            "slot": self.trace[:2],
            "trace_id": self.trace,
            "sender": f"{getpass.getuser()}@{socket.gethostname()}",
            "number": uuid.UUID(self.trace).int & 0x7FFFFFFFFFFFFFFF,
            "sent_at": int(time.time() * 1000),
        }
        row: Future[list[tuple[str, ...]]] = Future()
        # a daemon: when an earlier hop breaks, nobody waits for it
        threading.Thread(target=self._wait_for_row, args=(row,), daemon=True).start()
        steps = [
            ("schema", lambda: self.settled(self.schema)),
            ("produced", self.produced),
            ("consumed", lambda: self.settled(self.consumed)),
            ("row", lambda: self.row(row)),
        ]
        hops: list[Hop] = []
        for name, step in steps:
            if hops and not hops[-1].ok:
                hop = Hop(name, None, detail="not reached")
                with self.lock:
                    self.report(hop)
                hops.append(hop)
            else:
                hops.append(self.hop(name, step))
        return hops

    def schema(self) -> str:
        """The registry has the canary's schema."""
        registry = Registry(self.cluster.registry_urls)
        subject = f"{TOPIC}-value"
        try:
            latest = registry.latest(subject)
        except VeniceError as error:
            raise self.broken(error, "schema_registry") from error
        if latest is None:
            raise BrokenHopError(f"the registry has no subject {subject}", "`venice deploy` registers it")
        self.schema_id = latest["id"]
        # by id: what every consumer does with the id in a record
        self.avro = fastavro.parse_schema(json.loads(registry.schema(self.schema_id)))
        return f"id {self.schema_id}, {subject} version {latest['version']}"

    def produced(self) -> str:
        """All in-sync replicas acknowledged the record."""
        buffer = io.BytesIO()
        # Confluent's wire format: a zero byte and the schema's id before the Avro body
        buffer.write(b"\0" + self.schema_id.to_bytes(4, "big"))
        fastavro.schemaless_writer(buffer, self.avro, self.record)
        errors: list[KafkaError] = []
        producer = Producer(
            {
                "bootstrap.servers": self.cluster.bootstrap_servers,
                "acks": "all",
                "message.timeout.ms": int(ACKNOWLEDGED_SECONDS * 1000),
                "log_level": 0,
                "error_cb": errors.append,
            }
        )
        answers: list[tuple[KafkaError | None, Any]] = []
        producer.produce(TOPIC, key=self.record["slot"], value=buffer.getvalue(), on_delivery=lambda *answer: answers.append(answer))
        while not answers and not any(error.code() == KafkaError._ALL_BROKERS_DOWN for error in errors):
            producer.poll(_POLL_SECONDS)
        error = answers[0][0] if answers else "no broker answers"
        if error is not None:
            text = error.str() if isinstance(error, KafkaError) else error
            raise self.broken_kafka(f"{TOPIC} does not take the record: {text}")
        self.message = answers[0][1]
        partition = self.kafka.partitions(TOPIC)[self.message.partition()]
        where = f"partition {partition.id} offset {self.message.offset()}"
        if len(partition.isr) < len(partition.replicas):
            # the check of replicas fails for this; the trace tells whether events flow nevertheless
            return f"{where}, acknowledged by the {len(partition.isr)} of {len(partition.replicas)} replicas in sync"
        return f"{where}, acknowledged by all {len(partition.replicas)} replicas"

    def consumed(self) -> str:
        """The record comes back from its offset, equal."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.cluster.bootstrap_servers,
                "group.id": "venice-smoke",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            }
        )
        try:
            consumer.assign([TopicPartition(TOPIC, self.message.partition(), self.message.offset())])
            message = consumer.poll(KAFKA_SECONDS)
        except KafkaException as error:
            raise self.broken_kafka(f"{TOPIC} can't be read: {error}") from error
        finally:
            consumer.close()
        if message is None or message.error():
            why = message.error().str() if message else f"nothing within {KAFKA_SECONDS:g} s"
            raise self.broken_kafka(f"{TOPIC} offset {self.message.offset()}: {why}")
        body = io.BytesIO(message.value()[5:])
        back = fastavro.schemaless_reader(body, self.avro, None)
        back["sent_at"] = round(back["sent_at"].timestamp() * 1000)
        if message.offset() != self.message.offset() or back != self.record:
            raise BrokenHopError(f"offset {message.offset()} holds another record: {back}")
        return f"offset {message.offset()} decodes to the same values"

    def row(self, row: Future[list[tuple[str, ...]]]) -> str:
        """Connect wrote the row with the right values."""
        connect = Connect(self.cluster.connect_urls, timeout=_CONNECT_SECONDS)
        begun = time.monotonic()
        while True:
            with suppress(TimeoutError):
                rows = row.result(timeout=0.5)
                break
            waited = time.monotonic() - begun
            # a failed task explains the missing row long before the wait ends
            silent = self._connector_runs(connect)
            if silent and waited > self.settle:
                raise silent
            if waited > ROW_SECONDS + self.settle:
                rows = []
                break
        if not rows:
            waited = time.monotonic() - begun
            raise self.broken(
                VeniceError(
                    f"no row in {TABLE} after {waited:.0f} s, though connector {CONNECTOR} and its task run{self._group_says()}",
                    f"`venice logs connect`; records it can't write go to dlq.{CONNECTOR}",
                ),
                "connect",
            )
        expected = tuple(str(self.record[key]) for key in ("slot", "trace_id", "sender", "number", "sent_at"))
        if rows[0] != expected:
            raise BrokenHopError(f"the row in {TABLE} is {rows[0]}, sent was {expected}")
        return f"in {TABLE} on {self.cluster.instances('postgres')[0].host} with the same values"

    def _group_says(self) -> str:
        """What the connector's consumer group does instead of reading; nothing when it reads, or nobody knows."""
        with suppress(VeniceError):
            [group] = groups.listing(self.kafka, {}, groups.SINK_PREFIX + CONNECTOR)
            if group.state != "stable":
                return f"; its consumer group is {group.state.replace('_', ' ')} ({len(group.members)} members)"
        return ""

    def _connector_runs(self, connect: Connect) -> BrokenHopError | None:
        """Raises what waiting does not mend; returns what it may: workers that do not answer, or have just started."""
        try:
            connector = connect.status(CONNECTOR)
        except UnreachableError as error:
            return self.broken(error, "connect")
        if connector is None:
            return BrokenHopError(f"connector {CONNECTOR} does not exist", "`venice deploy` creates it")
        if connector.failure:
            raise BrokenHopError(connector.failure, "mend the cause, then `venice deploy` starts the connector again")
        if connector.state in ("PAUSED", "STOPPED"):
            raise BrokenHopError(f"connector {CONNECTOR} is {connector.state}", "`venice deploy` lets it run again")
        return None

    def _wait_for_row(self, row: Future[list[tuple[str, ...]]]) -> None:
        try:
            instance = next(iter(self.cluster.instances("postgres")), None)
            postgres = Postgres.of(self.cluster, self.hosts[instance.host] if instance else None)
            # as long as the earlier hops may take beside its own limit
            seconds = ROW_SECONDS + ACKNOWLEDGED_SECONDS + 2 * KAFKA_SECONDS + 3 * self.settle
            values = {"trace": self.trace, "seconds": seconds}
            try:
                rows = postgres.query(_WAIT_FOR_ROW, values, timeout=seconds + 5)
            except UnreachableError as error:
                raise self.broken(error, "postgres") from error
            row.set_result(rows)
        except Exception as error:
            row.set_exception(error)

    # ---- what the services say -----------------------------------------------------------------------------------

    def broken(self, error: VeniceError, component: str) -> BrokenHopError:
        """The error with what the component's first instance says."""
        instance = next(iter(self.cluster.instances(component)), None)
        return BrokenHopError(error.message, error.remedy, self.says(instance) if instance else "")

    def broken_kafka(self, message: str) -> BrokenHopError:
        """The error with what the broker that leads the canary's partition says."""
        instances = self.cluster.instances("kafka")
        with suppress(VeniceError):
            leader = self.kafka.partitions(TOPIC)[0].leader
            address = self.kafka.brokers().get(leader)
            message += f" (leader: broker {leader})" if leader >= 0 else " (it has no leader)"
            instances = [i for i in instances if i.endpoint("client") == address] or instances
        return BrokenHopError(message, "`venice status` shows the brokers", self.says(instances[0]))

    def says(self, instance: Any) -> str:
        """An instance's container state and last log lines; why not, when its host does not answer."""
        where = f"{instance.container} on {instance.host}"

        def ask(host: DockerHost) -> str:
            with host.asking():
                container = host.docker.containers.get(instance.container)
                lines = container.logs(tail=_LOG_LINES).decode(errors="replace").rstrip()
                return f"{where}: {container.status}\n{lines}"

        answer = over([self.hosts[instance.host]], ask, timeout=HOST_SECONDS)[instance.host]
        return f"{where}: {answer.message}" if isinstance(answer, VeniceError) else answer
