"""Consumer groups: how far they are, and setting them to another place."""

import datetime
import difflib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition

from venice.connect import Connect, Connector
from venice.errors import InputError, VeniceError
from venice.kafka import Kafka

# how long members take to be gone once their connector is stopped, and its tasks to run again
_EMPTY_SECONDS = 60.0
_RUNNING_SECONDS = 120.0
_POLL_SECONDS = 0.25
# Connect's: a sink connector reads as the group of this and its name
SINK_PREFIX = "connect-"
_MOVING = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS")
_IDLE = ("empty", "dead")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class Member:
    """One consumer; `host`: the inventory's name of where it connects from, else the address as the broker sees it."""

    id: str
    client_id: str
    host: str
    partitions: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Progress:
    """How far a group is in one partition. `committed` None: nothing yet; `start`, `end` None: the partition does not exist any more,
    or has no leader. `member` reads it now."""

    topic: str
    partition: int
    committed: int | None
    start: int | None
    end: int | None
    member: Member | None

    @property
    def lag(self) -> int | None:
        """Offsets between the committed one and the end; None when either is not known."""
        return None if self.committed is None or self.end is None else max(0, self.end - self.committed)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "topic": self.topic,
            "partition": self.partition,
            "committed": self.committed,
            "end": self.end,
            "lag": self.lag,
            "client_id": self.member.client_id if self.member else None,
            "host": self.member.host if self.member else None,
        }


@dataclass(frozen=True)
class Group:
    """One consumer group. `state`: stable, empty, preparing_rebalance, ...; `protocol`: classic or consumer."""

    name: str
    state: str
    protocol: str
    assignor: str
    members: tuple[Member, ...]
    partitions: tuple[Progress, ...]

    @property
    def topics(self) -> list[str]:
        """The topics in which it has offsets or members."""
        return sorted({part.topic for part in self.partitions})

    @property
    def lag(self) -> int | None:
        """The sum of what is known of its partitions' lags; None when of none."""
        known = [part.lag for part in self.partitions if part.lag is not None]
        return sum(known) if known else None

    def to_dict(self, details: bool = False) -> dict[str, Any]:
        """Plain form for JSON; with `details` members and partitions one by one instead of their numbers."""
        found = {"group": self.name, "state": self.state, "protocol": self.protocol, "assignor": self.assignor, "lag": self.lag}
        if not details:
            return found | {"members": len(self.members), "topics": self.topics}
        members = [{"id": m.id, "client_id": m.client_id, "host": m.host, "partitions": len(m.partitions)} for m in self.members]
        return found | {"members": members, "partitions": [part.to_dict() for part in self.partitions]}


@dataclass(frozen=True)
class Move:
    """A partition's step in a reset. `skipped`, `repeated`: how many offsets will not be read, or again; `note`: what was adjusted."""

    topic: str
    partition: int
    current: int | None
    target: int
    skipped: int = 0
    repeated: int = 0
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "topic": self.topic,
            "partition": self.partition,
            "from": self.current,
            "to": self.target,
            "skipped": self.skipped,
            "repeated": self.repeated,
            "note": self.note,
        }


@dataclass(frozen=True)
class Plan:
    """A reset that may be applied; `connector`: the sink that reads as this group, and has to be stopped for it."""

    group: Group
    target: str
    moves: tuple[Move, ...]
    connector: Connector | None = None

    @property
    def changes(self) -> list[Move]:
        """The moves that are any."""
        return [move for move in self.moves if move.current != move.target]

    @property
    def hindrance(self) -> str:
        """Why it can't be applied now; empty when it can."""
        if self.connector:
            return f"connector {self.connector.name} has failed" if self.connector.state == "FAILED" else ""
        return "" if self.group.state in _IDLE else f"group {self.group.name} is in use"

    def to_dict(self, applied: bool) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "group": self.group.name,
            "target": self.target,
            "connector": self.connector.name if self.connector else None,
            "partitions": [move.to_dict() for move in self.moves],
            "hindrance": self.hindrance,
            "applied": applied,
        }


@dataclass(frozen=True)
class Target:
    """Where to: `kind` is earliest, latest, offset or time (`value` in ms since 1970)."""

    kind: str
    value: int = 0

    @classmethod
    def of(cls, text: str, now: datetime.datetime | None = None) -> "Target":
        """From `earliest`, `latest`, an offset, an ISO 8601 time (UTC when it names no zone), or `-1h` before `now`."""
        if text in ("earliest", "latest"):
            return cls(text)
        if text.isdecimal():
            return cls("offset", int(text))
        if match := re.fullmatch(r"-(\d+)([smhd])", text):
            moment = (now or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        else:
            try:
                moment = datetime.datetime.fromisoformat(text)
            except ValueError as error:
                raise InputError(
                    f"--to {text}: neither earliest, latest, an offset nor a time",
                    "times are written as 2026-11-21T18:00:00Z (or +01:00; without either UTC), or -30m, -1h, -2d for so long ago",
                ) from error
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return cls("time", round(moment.timestamp() * 1000))

    def __str__(self) -> str:
        if self.kind == "time":
            moment = datetime.datetime.fromtimestamp(self.value / 1000, datetime.UTC)
            return f"the first record of {moment.isoformat(timespec='seconds').replace('+00:00', 'Z')} or later"
        return {"earliest": "the first record there is", "latest": "the end: only new records"}.get(self.kind, f"offset {self.value}")


# ---- asking


def _answers(kafka: Kafka, what: str, ask: Callable[[list[str]], Mapping[str, Future[Any]]], names: list[str]) -> dict[str, Any]:
    """What groups' coordinators answer, all asked at once; asked again while one moves to another broker, as after a restart."""
    deadline = time.monotonic() + kafka.timeout
    found: dict[str, Any] = {}
    while True:
        for name, future in ask([name for name in names if name not in found]).items():
            with kafka.asking(f"{what} {name}"):
                try:
                    found[name] = future.result(kafka.timeout)
                except KafkaException as error:
                    if error.args[0].name() not in _MOVING or time.monotonic() > deadline:
                        raise
        if len(found) == len(names):
            return found
        time.sleep(_POLL_SECONDS)
        kafka.renew()


def _described(kafka: Kafka, names: list[str]) -> dict[str, Any]:
    return _answers(kafka, "group", lambda left: kafka.admin.describe_consumer_groups(left, request_timeout=kafka.timeout), names)


def _committed(kafka: Kafka, names: list[str]) -> dict[str, tuple[Any, dict[tuple[str, int], int]]]:
    """Each group's description, and the offsets that it has committed by (topic, partition)."""

    def ask(left: list[str]) -> dict[str, Future[Any]]:
        heads = _described(kafka, left)
        answers: dict[str, Future[Any]] = {name: Future() for name in left}
        by_coordinator: dict[str, list[str]] = {}
        for name, head in heads.items():
            by_coordinator.setdefault(f"{head.coordinator.host}:{head.coordinator.port}", []).append(name)
        for address, its in by_coordinator.items():
            for name, (code, offsets) in kafka.committed(address, its).items():
                if code:
                    answers[name].set_exception(KafkaException(KafkaError(code)))
                else:
                    answers[name].set_result((heads[name], offsets))
        return answers

    return _answers(kafka, "offsets of group", ask, names)


def listing(kafka: Kafka, hosts: Mapping[str, str], only: str | None = None) -> list[Group]:
    """All groups in order of name, or only one. `hosts`: the inventory's names by address. InputError when that one is not there."""
    with kafka.asking("consumer groups"):
        answer = kafka.admin.list_consumer_groups(request_timeout=kafka.timeout).result(kafka.timeout)
    if answer.errors and not answer.valid:
        raise kafka.unreachable(answer.errors[0])
    names = sorted(group.group_id for group in answer.valid)
    if only is not None:
        if only not in names:
            near = difflib.get_close_matches(only, names, 3, 0.5)
            raise InputError(f"there is no group {only}", f"did you mean {' or '.join(near)}?" if near else "`venice groups` lists them")
        names = [only]
    if not names:
        return []
    found = _committed(kafka, names)
    members = {
        name: tuple(sorted((_member(member, hosts) for member in head.members), key=lambda m: m.client_id))
        for name, (head, _) in found.items()
    }
    places = {place for name, (_, committed) in found.items() for place in (*committed, *(p for m in members[name] for p in m.partitions))}
    there = {(part.topic, part.id) for part in kafka.partitions()}
    logs = kafka.offsets(sorted(places & there), lenient=True)
    groups = []
    for name in names:
        head, committed = found[name]
        readers = {place: member for member in members[name] for place in member.partitions}
        parts = tuple(
            Progress(*place, committed.get(place), *logs.get(place, (None, None)), readers.get(place))
            for place in sorted({*committed, *readers})
        )
        groups.append(Group(name, head.state.name.lower(), head.type.name.lower(), head.partition_assignor or "", members[name], parts))
    return groups


def _member(member: Any, hosts: Mapping[str, str]) -> Member:
    address = member.host.lstrip("/")
    assigned = member.assignment.topic_partitions if member.assignment else []
    return Member(member.member_id, member.client_id, hosts.get(address, address), tuple((p.topic, p.partition) for p in assigned))


def connector_of(group: str, connect: Connect | None) -> Connector | None:
    """The sink connector that reads as this group; None without one."""
    if connect is None or not group.startswith(SINK_PREFIX):
        return None
    found = connect.connectors().get(group.removeprefix(SINK_PREFIX))
    return found if found and found.type == "sink" else None


# ---- setting to another place


def plan(kafka: Kafka, connect: Connect | None, hosts: Mapping[str, str], name: str, target: Target, topic: str | None = None) -> Plan:
    """What a reset would do: for every partition of the group's topics, or of one topic (`T`, or `T:P` for one partition).

    Offsets outside the log are moved to its nearest end. InputError when group, topic or partition do not exist.
    """
    [group] = listing(kafka, hosts, name)
    committed = {(part.topic, part.partition): part.committed for part in group.partitions}
    there: dict[str, list[int]] = {}
    for part in kafka.partitions():
        there.setdefault(part.topic, []).append(part.id)
    places = [(topic_, id_) for topic_ in group.topics for id_ in there.get(topic_, [])]
    if topic is not None:
        places = _places(topic, there)
    if not places:
        raise InputError(f"group {name} has read no topic that exists", "name one with --topic")
    logs = kafka.offsets(places)
    times = kafka.offsets_at(places, target.value) if target.kind == "time" else {}
    moves = [_move(*place, committed.get(place), logs[place], target, times.get(place)) for place in places]
    return Plan(group, str(target), tuple(moves), connector_of(name, connect))


def _places(text: str, there: Mapping[str, list[int]]) -> list[tuple[str, int]]:
    topic, _, number = text.rpartition(":")
    if topic not in there or not number.isdecimal():
        topic, number = text, ""
    if topic not in there:
        near = difflib.get_close_matches(topic, there, 1)
        raise InputError(f"there is no topic {topic}", f"did you mean {near[0]}?" if near else "`venice topics` lists them")
    if number and int(number) not in there[topic]:
        raise InputError(f"topic {topic} has no partition {number}", f"it has 0 to {max(there[topic])}")
    return [(topic, id_) for id_ in there[topic] if not number or id_ == int(number)]


def _move(topic: str, partition: int, current: int | None, log: tuple[int, int], target: Target, at: int | None) -> Move:
    start, end = log
    note = ""
    if target.kind == "time" and (at is None or at < 0):
        wanted, note = end, "no record that late"
    else:
        wanted = {"earliest": start, "latest": end, "offset": target.value}.get(target.kind, at or 0)
    to = min(max(wanted, start), end)
    if to != wanted:
        note = f"the log begins at {start}" if to > wanted else f"the log ends at {end}"
    if current is None:
        return Move(topic, partition, None, to, note=note or "no offset yet")
    # records that the log has lost are neither skipped nor read again
    now = min(max(current, start), end)
    return Move(topic, partition, current, to, max(0, to - now), max(0, now - to), note)


def apply(kafka: Kafka, connect: Connect | None, planned: Plan, report: Callable[[str], None] = lambda line: None) -> None:
    """Set the group's offsets as planned, and read them back.

    A sink's connector is stopped before and afterwards, whatever happens, put back into the state in which it was. InputError when
    the group is in use otherwise: then nothing was touched.
    """
    if planned.hindrance:
        raise InputError(f"{planned.hindrance}{_users(planned.group)}; nothing was changed", _remedy(planned))
    if not planned.changes:
        return
    if planned.connector is None or connect is None:
        _alter(kafka, planned)
        return
    with _stopped(connect, planned.connector, report):
        _wait_empty(kafka, planned.group.name)
        _alter(kafka, planned)
    if planned.connector.state not in ("PAUSED", "STOPPED"):
        connect.wait_running([planned.connector.name], _RUNNING_SECONDS, report)


def _users(group: Group) -> str:
    lines = [f"\n  {m.client_id} on {m.host}, {len(m.partitions)} partitions" for m in group.members]
    return "".join(lines) if lines else f" ({group.state})"


def _remedy(planned: Plan) -> str:
    if planned.connector:
        return f"`venice connectors show {planned.connector.name}` says why; mend it first"
    return "stop these consumers, wait until they are gone (`venice groups`), and repeat: they would overwrite the offsets"


@contextmanager
def _stopped(connect: Connect, connector: Connector, report: Callable[[str], None]) -> Iterator[None]:
    """With the connector stopped inside; afterwards it is as it was."""
    try:
        if connector.state != "STOPPED":
            report(f"stopping connector {connector.name}")
            connect.stop(connector.name)
        yield
    finally:
        if connector.state == "PAUSED":
            connect.pause(connector.name)
            report(f"connector {connector.name} is paused again")
        elif connector.state != "STOPPED":
            connect.resume(connector.name)
            report(f"resumed connector {connector.name}")


def _wait_empty(kafka: Kafka, name: str) -> None:
    deadline = time.monotonic() + _EMPTY_SECONDS
    while True:
        answer = _described(kafka, [name])[name]
        if answer.state.name.lower() in _IDLE:
            return
        if time.monotonic() > deadline:
            clients = ", ".join(member.client_id for member in answer.members)
            raise VeniceError(f"group {name} still has members after {_EMPTY_SECONDS:g} s: {clients}", "stop them and repeat")
        time.sleep(_POLL_SECONDS)


def _alter(kafka: Kafka, planned: Plan) -> None:
    name = planned.group.name
    wanted = {(move.topic, move.partition): move.target for move in planned.changes}
    request = ConsumerGroupTopicPartitions(name, [TopicPartition(*place, offset) for place, offset in wanted.items()])
    altered = _answers(
        kafka, "offsets of group", lambda _: kafka.admin.alter_consumer_group_offsets([request], request_timeout=kafka.timeout), [name]
    )
    for part in altered[name].topic_partitions:
        if part.error:
            raise VeniceError(f"group {name}: {part.topic}-{part.partition}: {part.error.str()}", "has a consumer joined? `venice groups`")
    _, now = _committed(kafka, [name])[name]
    if wrong := [f"{place[0]}-{place[1]} is at {now.get(place)}" for place, offset in wanted.items() if now.get(place) != offset]:
        raise VeniceError(f"group {name}: set, but {', '.join(wrong)}", "does somebody else commit for it? `venice groups`")


# ---- deleting


def deletable(kafka: Kafka, connect: Connect | None, hosts: Mapping[str, str], name: str) -> Group:
    """The group, when it may be deleted. InputError when it is not there, in use, or a connector's."""
    [group] = listing(kafka, hosts, name)
    if connector := connector_of(name, connect):
        raise InputError(
            f"group {name} belongs to connector {connector.name}",
            f"`venice groups reset {name} --to earliest` lets it begin again, or delete the connector first",
        )
    if group.state not in _IDLE:
        raise InputError(f"group {name} is in use{_users(group)}", "stop these consumers first")
    return group


def delete(kafka: Kafka, name: str) -> None:
    """Delete a group with its offsets: whoever reads as it next begins where its auto.offset.reset says."""
    _answers(kafka, "deleting group", lambda names: kafka.admin.delete_consumer_groups(names, request_timeout=kafka.timeout), [name])
