"""Kafka as an operator asks it: brokers, quorum, topics, and whether a broker may restart now."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from venice import kafka_protocol
from venice.errors import InputError, UnreachableError, VeniceError
from venice.kafka_protocol import Quorum, Replica
from venice.specs import Difference, TopicSpec

TIMEOUT = 10.0
# for a change: busy brokers need longer for it than for an answer (Kafka's own request.timeout.ms)
_CHANGE_SECONDS = 30.0
_CHANGE = {"request_timeout": _CHANGE_SECONDS, "operation_timeout": _CHANGE_SECONDS}
# a controller that has not caught up with the active one for this long does not count in its quorum
_BEHIND_MS = 5000
# how long brokers may take to hear of a topic made or deleted
_SETTLED_SECONDS = 60.0
_POLL_SECONDS = 0.1
# a broker's answer about its disks: a listing goes on without one that hangs
_DISK_SECONDS = 2.0
# who says that a setting has its value
_SOURCES = {
    ConfigSource.DYNAMIC_TOPIC_CONFIG.value: "topic",
    ConfigSource.DYNAMIC_BROKER_CONFIG.value: "brokers",
    ConfigSource.DYNAMIC_DEFAULT_BROKER_CONFIG.value: "brokers",
    ConfigSource.STATIC_BROKER_CONFIG.value: "brokers",
}
# Kafka's names for: ask somebody else
_MOVED = ("NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH")
# Kafka's names for: what you ask for can't be
_REFUSALS = (
    "INVALID_CONFIG",
    "INVALID_PARTITIONS",
    "INVALID_REPLICATION_FACTOR",
    "INVALID_REQUEST",
    "POLICY_VIOLATION",
    "TOPIC_ALREADY_EXISTS",
    "TOPIC_EXCEPTION",
    "UNKNOWN_TOPIC_OR_PART",
)


@dataclass(frozen=True)
class Partition:
    """One partition's replicas as broker ids; leader -1 when it has none."""

    topic: str
    id: int
    leader: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.topic}-{self.id}"


@dataclass(frozen=True)
class Setting:
    """One setting of a topic; `source`: topic (set for it), brokers (of the whole cluster) or Kafka (its default).

    `inherited`: the value that it would have if the topic had none of its own.
    """

    name: str
    value: str
    source: str
    inherited: str


class Kafka:
    """A cluster reached through `bootstrap_servers` ("a:9092,b:9092"); questions are answered or fail in `timeout` seconds."""

    def __init__(self, bootstrap_servers: str, timeout: float = TIMEOUT, hosts: str = ""):
        """`hosts`: where messages say that the brokers are."""
        self.bootstrap_servers = bootstrap_servers
        self._where = f"{bootstrap_servers} ({hosts})" if hosts else bootstrap_servers
        self.timeout = timeout
        self.renew()

    @classmethod
    def of(cls, cluster: Any, timeout: float = TIMEOUT) -> "Kafka":
        """The cluster's brokers. InputError when the inventory has none."""
        return cls(cluster.bootstrap_servers, timeout, ", ".join(cluster.required("kafka", "client").values()))

    def renew(self) -> None:
        """Begin with a new client: librdkafka's goes on asking a group's coordinator that is none any more (it remembers it)."""
        # the library's own lines about single connections would stand between Venice's; failures are raised here
        settings = {"bootstrap.servers": self.bootstrap_servers, "log_level": 0, "socket.connection.setup.timeout.ms": 2000}
        self.admin = AdminClient(settings)

    def _metadata(self):
        try:
            return self.admin.list_topics(timeout=self.timeout)
        except KafkaException as error:
            raise self.unreachable(error) from error

    def unreachable(self, error: object, seconds: float = 0.0) -> UnreachableError:
        """What is raised when no broker answers in these seconds, or in a question's."""
        return UnreachableError(
            f"Kafka: no broker of {self._where} answered within {seconds or self.timeout:g} s ({error})",
            "`venice status` shows the brokers, `venice up` starts them",
        )

    def brokers(self) -> dict[int, str]:
        """Registered brokers: node id -> advertised "host:port"."""
        return {broker.id: f"{broker.host}:{broker.port}" for broker in self._metadata().brokers.values()}

    def partitions(self, topic: str | None = None) -> list[Partition]:
        """All partitions (or one topic's) in order of topic and id; VeniceError when that topic does not exist."""
        topics = self._metadata().topics
        if topic is not None and topic not in topics:
            raise VeniceError(f"Kafka: topic {topic} does not exist", "`venice deploy` applies the pipelines' topics")
        return [
            Partition(name, id_, part.leader, tuple(part.replicas), tuple(part.isrs))
            for name, meta in sorted(topics.items())
            if topic in (None, name)
            for id_, part in sorted(meta.partitions.items())
        ]

    def under_replicated(self) -> list[Partition]:
        """Partitions that have a replica out of sync, or no leader."""
        return [part for part in self.partitions() if len(part.isr) < len(part.replicas) or part.leader < 0]

    def topic_config(self, topics: Iterable[str], lenient: bool = False) -> dict[str, dict[str, str]]:
        """Effective configuration of topics: name -> key -> value. With `lenient` those are left out that are gone meanwhile."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
        if not resources:
            return {}
        answers = self.admin.describe_configs(resources, request_timeout=self.timeout)
        result = {}
        for resource, answer in answers.items():
            refused = InputError if lenient else VeniceError
            with contextlib.suppress(InputError), self.asking(f"configuration of topic {resource.name}", refused):
                result[resource.name] = {key: entry.value for key, entry in answer.result(self.timeout).items()}
        return result

    def settings(self, topic: str) -> list[Setting]:
        """All of a topic's settings by name."""
        [answer] = self.admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)], request_timeout=self.timeout).values()
        with self.asking(f"configuration of topic {topic}"):
            entries = answer.result(self.timeout)
        return [_setting(entry) for _, entry in sorted(entries.items())]

    def alter(self, topic: str, settings: Mapping[str, str | None]) -> None:
        """Set a topic's settings; None takes the topic's own value away. InputError for what Kafka does not accept."""
        entries = [
            ConfigEntry(key, value or "", incremental_operation=AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET)
            for key, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        [answer] = self.admin.incremental_alter_configs([resource], request_timeout=_CHANGE_SECONDS).values()
        with self.changing(f"topic {topic}", InputError):
            answer.result(2 * _CHANGE_SECONDS)

    def create(self, spec: TopicSpec, default_replication: int) -> None:
        """Create a topic; returns once every broker knows it. InputError for what Kafka does not accept."""
        new = NewTopic(spec.name, spec.partitions, spec.replication or default_replication, config=spec.config)
        [answer] = self.admin.create_topics([new], **_CHANGE).values()
        with self.changing(f"topic {spec.name}", InputError):
            answer.result(2 * _CHANGE_SECONDS)
        self._wait_for({spec.name}, True)

    def delete(self, topics: Iterable[str]) -> None:
        """Delete topics; returns once no broker knows them any longer and their files are away."""
        names = set(topics)
        answers = self.admin.delete_topics(sorted(names), **_CHANGE)
        for name, answer in answers.items():
            with self.changing(f"topic {name}"):
                answer.result(2 * _CHANGE_SECONDS)
        self._wait_for(names, False)

    def _wait_for(self, topics: set[str], there: bool) -> None:
        """Return once all brokers that run agree that these topics are there or not; brokers learn of it one by one."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        for node, address in self.brokers().items():
            while not self._settled(node, address, topics, there):
                if time.monotonic() > deadline:
                    state = "does not know" if there else "still has"
                    raise VeniceError(f"Kafka: broker {node} {state} {', '.join(sorted(topics))}", "`venice logs kafka` shows what it does")
                time.sleep(_POLL_SECONDS)

    def _settled(self, node: int, address: str, topics: set[str], there: bool) -> bool:
        try:
            if any(kafka_protocol.knows_topic(address, topic, self.timeout) is not there for topic in topics):
                return False
            return there or not any(r.topic in topics for r in kafka_protocol.describe_log_dirs(address, node, self.timeout))
        except OSError:
            return True  # it has stopped meanwhile: it will learn of it when it starts
        except ValueError as error:
            raise VeniceError(f"Kafka: broker {node}: {error}", "`venice logs kafka` shows its side") from error

    def offsets(self, places: Iterable[tuple[str, int]], lenient: bool = False) -> dict[tuple[str, int], tuple[int, int]]:
        """First offset of each partition (topic, id) and the one that its next record gets, all asked for at once.

        With `lenient` partitions are left out whose leaders do not answer; else they are an error.
        """
        wanted = list(places)
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(self._offsets, wanted, spec, lenient) for spec in (OffsetSpec.earliest(), OffsetSpec.latest())]
            first, last = (answer.result() for answer in asked)
        return {place: (first[place], last[place]) for place in wanted if place in first and place in last}

    def _offsets(self, places: list[tuple[str, int]], spec: OffsetSpec, lenient: bool = False) -> dict[tuple[str, int], int]:
        """Each partition's offset that `spec` means. A leader that has just changed is looked for again while there is time."""
        found: dict[tuple[str, int], int] = {}
        deadline = time.monotonic() + self.timeout
        while left := [place for place in places if place not in found]:
            answers = self.admin.list_offsets({TopicPartition(*place): spec for place in left}, request_timeout=self.timeout)
            moved = False
            for part, answer in answers.items():
                try:
                    found[part.topic, part.partition] = answer.result(2 * self.timeout).offset
                except (KafkaException, TimeoutError) as error:
                    if isinstance(error, KafkaException) and error.args[0].name() in _MOVED and time.monotonic() < deadline:
                        moved = True
                    elif not lenient:
                        with self.asking(f"offsets of {part.topic}-{part.partition}"):
                            raise
            if not moved:
                break
            time.sleep(_POLL_SECONDS)
            self._metadata()  # the library asks the leaders that it knows of
        return found

    def offsets_at(self, places: Iterable[tuple[str, int]], timestamp: int) -> dict[tuple[str, int], int]:
        """Of each partition the first offset whose record is of that time (ms since 1970) or later; -1 where there is none."""
        return self._offsets(list(places), OffsetSpec.for_timestamp(timestamp))

    def delete_records(self, before: Mapping[tuple[str, int], int]) -> None:
        """Delete all records of these partitions that stand before the given offsets."""
        wanted = [TopicPartition(*place, offset) for place, offset in before.items()]
        answers = self.admin.delete_records(wanted, **_CHANGE) if wanted else {}
        for part, answer in answers.items():
            with self.changing(f"deleting records of {part.topic}-{part.partition}"):
                answer.result(2 * _CHANGE_SECONDS)

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Kafka's own id of each topic: a topic that is made anew under its old name has another."""
        names = list(topics)
        answers = self.admin.describe_topics(TopicCollection(names), request_timeout=self.timeout) if names else {}
        found = {}
        for name, answer in answers.items():
            with self.asking(f"topic {name}"):
                found[name] = str(answer.result(2 * self.timeout).topic_id)
        return found

    def replicas(self) -> tuple[list[Replica], dict[int, str]]:
        """What every broker has on its disks, and which brokers could not be asked: node id -> why."""
        addresses = self.brokers()
        sizes: list[Replica] = []
        failed = {}
        with ThreadPoolExecutor(len(addresses) or 1) as pool:
            timeout = min(self.timeout, _DISK_SECONDS)
            asked = {node: pool.submit(kafka_protocol.describe_log_dirs, address, node, timeout) for node, address in addresses.items()}
        for node, answer in asked.items():
            try:
                sizes += answer.result()
            except (OSError, ValueError) as error:
                failed[node] = str(error)
        return sizes, failed

    def committed(self, coordinator: str, groups: list[str]) -> dict[str, tuple[int, dict[tuple[str, int], int]]]:
        """What groups have committed, as `fetch_offsets` tells. VeniceError when their coordinator does not answer."""
        try:
            return kafka_protocol.fetch_offsets(coordinator, groups, self.timeout)
        except (OSError, ValueError) as error:
            raise self.unreachable(f"{coordinator}, which coordinates {', '.join(groups)}: {error}") from error

    def changing(self, what: str, refused: type[VeniceError] = VeniceError):
        """As `asking`, around a change."""
        return self.asking(what, refused, _CHANGE_SECONDS)

    @contextlib.contextmanager
    def asking(self, what: str, refused: type[VeniceError] = VeniceError, seconds: float = 0.0):
        """Turns what goes wrong inside into VeniceErrors; `what` says for messages what is asked.

        `refused`: what is raised for what Kafka does not accept. `seconds`: how long brokers had, when not a question's time.
        """
        try:
            yield
        except TimeoutError as error:
            raise self.unreachable(f"{what}: timed out", seconds) from error
        except KafkaException as error:
            answer = error.args[0]
            if answer.name() in ("_TIMED_OUT", "_TRANSPORT", "_ALL_BROKERS_DOWN", "REQUEST_TIMED_OUT"):
                raise self.unreachable(f"{what}: {answer.str()}", seconds) from error
            if answer.name() in _REFUSALS and refused is InputError:
                raise InputError(f"{what}: {answer.str()}") from error
            raise VeniceError(f"Kafka: {what}: {answer.str()}", "`venice logs kafka` shows the brokers' side") from error

    def quorum(self) -> Quorum:
        """The controllers' quorum, from the first broker that answers."""
        failures = []
        for address in self.bootstrap_servers.split(","):
            try:
                return kafka_protocol.describe_quorum(address, self.timeout)
            except (OSError, ValueError) as error:
                failures.append(f"{address}: {error}")
        raise self.unreachable("; ".join(failures))

    def controller(self) -> int:
        """Node id of the active controller, -1 when the quorum has no leader.

        Metadata can't tell: in KRaft mode brokers name a random live broker as the controller.
        """
        return self.quorum().leader

    def can_restart(self, broker_id: int) -> tuple[bool, str]:
        """Whether this broker may stop now: every partition keeps min.insync.replicas, and the quorum its majority.

        Partitions that could never keep them (no more replicas than min.insync.replicas) do not hold it back: their
        owner accepted that when the topic was made; they are named in the reason. The only broker of a cluster may
        always restart.
        """
        metadata = self._metadata()
        if set(metadata.brokers) <= {broker_id}:
            return True, "the only broker: the cluster pauses while it restarts"
        allowed, why = quorum_allows(self.quorum(), broker_id)
        if not allowed:
            return False, why
        mine = [
            Partition(name, id_, part.leader, tuple(part.replicas), tuple(part.isrs))
            for name, meta in sorted(metadata.topics.items())
            for id_, part in sorted(meta.partitions.items())
            if broker_id in part.replicas
        ]
        config = self.topic_config(sorted({part.topic for part in mine}))
        return partitions_allow(mine, broker_id, {topic: int(c["min.insync.replicas"]) for topic, c in config.items()})

    def ensure_topics(self, specs: list[TopicSpec], default_replication: int, check: bool = False) -> dict[str, list[Difference]]:
        """Create and change topics so that they are as described: topic -> what differed (only topics that did).

        Sends only differences; with `check` none. Fewer partitions, or another explicit replication factor, is an
        InputError before anything is sent.
        """
        existing: dict[str, list[Partition]] = {}
        for part in self.partitions():
            existing.setdefault(part.topic, []).append(part)
        config = self.topic_config([spec.name for spec in specs if spec.name in existing])
        differences = {}
        for spec in specs:
            found = topic_differences(spec, existing.get(spec.name), config.get(spec.name, {}), default_replication)
            if found:
                differences[spec.name] = found
        if not check:
            self._send(specs, differences, set(existing), default_replication)
        return differences

    def _send(self, specs, differences, existing: set[str], default_replication: int) -> None:
        changed = [spec for spec in specs if spec.name in differences]
        new = [
            NewTopic(s.name, s.partitions, s.replication or default_replication, config=s.config) for s in changed if s.name not in existing
        ]
        wider = [
            NewPartitions(s.name, s.partitions)
            for s in changed
            if s.name in existing and any(d.field == "partitions" for d in differences[s.name])
        ]
        altered = [
            ConfigResource(
                ResourceType.TOPIC,
                s.name,
                incremental_configs=[
                    ConfigEntry(d.field, d.desired, incremental_operation=AlterConfigOpType.SET)
                    for d in differences[s.name]
                    if d.field != "partitions"
                ],
            )
            for s in changed
            if s.name in existing and any(d.field != "partitions" for d in differences[s.name])
        ]
        answers: list[tuple[object, object]] = []
        if new:
            answers += self.admin.create_topics(new, **_CHANGE).items()
        if wider:
            answers += self.admin.create_partitions(wider, **_CHANGE).items()
        if altered:
            answers += self.admin.incremental_alter_configs(altered, request_timeout=_CHANGE_SECONDS).items()
        for topic, answer in answers:
            with self.changing(f"topic {getattr(topic, 'name', topic)}"):
                answer.result(2 * _CHANGE_SECONDS)
        if new:
            self._wait_for({topic.topic for topic in new}, True)


def _setting(entry: ConfigEntry) -> Setting:
    source = _SOURCES.get(entry.source, "Kafka")
    # in the order in which they count
    others = [other.value for other in entry.synonyms.values() if _SOURCES.get(other.source) != "topic"]
    return Setting(entry.name, entry.value, source, entry.value if source != "topic" or not others else others[0])


def quorum_allows(quorum: Quorum, node: int) -> tuple[bool, str]:
    """Whether the quorum keeps a majority of caught-up voters without `node`."""
    if quorum.leader < 0:
        return False, "the quorum has no active controller"
    if node not in quorum.voters:
        return True, "no controller"
    rest = [voter for voter, behind in quorum.voters.items() if voter != node and behind <= _BEHIND_MS]
    majority = len(quorum.voters) // 2 + 1
    if len(rest) < majority:
        caught_up = f"{len(rest)} of {len(quorum.voters)} controllers are caught up"
        return False, f"without controller {node} only {caught_up}, the quorum needs {majority}"
    return True, f"controllers {', '.join(map(str, sorted(rest)))} keep the quorum"


def partitions_allow(partitions: list[Partition], broker: int, min_isr: dict[str, int]) -> tuple[bool, str]:
    """Whether all `partitions` keep min.insync.replicas without `broker`; the reason names those that do not."""
    held, never = [], []
    for part in partitions:
        minimum = min_isr[part.topic]
        if broker not in part.isr or len(part.isr) - 1 >= minimum:
            # a broker that is out of sync serves nothing: stopping it takes nothing away
            continue
        (never if len(part.replicas) <= minimum else held).append(part)
    if held:
        names = ", ".join(f"{p} (in sync: {', '.join(map(str, p.isr))})" for p in held[:3])
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        return False, f"without broker {broker} these fall below min.insync.replicas: {names}{more}"
    if never:
        return True, f"{never[0]} and {len(never) - 1} more pause: they have too few replicas to lose one"
    return True, f"all {len(partitions)} partitions keep min.insync.replicas"


def topic_differences(
    spec: TopicSpec, existing: list[Partition] | None, config: dict[str, str], default_replication: int
) -> list[Difference]:
    """What differs between `spec` and the topic as it is (`existing` None: it does not exist)."""
    if existing is None:
        made = {"partitions": spec.partitions, "replication": spec.replication or default_replication} | spec.config
        return [Difference(key, None, str(value)) for key, value in made.items()]
    if spec.partitions < len(existing):
        raise InputError(
            f"topic {spec.name} has {len(existing)} partitions, the pipeline says {spec.partitions}",
            "Kafka can't remove partitions: write the number it has, or delete the topic and its data first",
        )
    factor = len(existing[0].replicas)
    if spec.replication not in (None, factor):
        raise InputError(
            f"topic {spec.name} has {factor} replicas, the pipeline says {spec.replication}",
            "move its replicas with kafka-reassign-partitions, or write the factor that it has",
        )
    found = []
    if spec.partitions > len(existing):
        found.append(Difference("partitions", str(len(existing)), str(spec.partitions)))
    found += [Difference(key, str(config.get(key)), value) for key, value in spec.config.items() if config.get(key) != value]
    return found
