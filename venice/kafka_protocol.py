"""The requests of Kafka's protocol that librdkafka does not have (who is the active controller, how much is on each disk), or can't bear
the answer of: what groups have committed.

One connection and one request per question, to a listener without TLS. Everything that goes wrong is an OSError or a ValueError.
"""

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_CLIENT = b"venice"
_UNKNOWN_TOPIC = 3
_LEADER_NOT_AVAILABLE = 5


@dataclass(frozen=True)
class Quorum:
    """The KRaft quorum: active controller's node id (-1: none), voters' ids, and how far each voter is behind in ms."""

    leader: int
    voters: dict[int, int]
    observers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Replica:
    """One partition's replica on one broker's disk: bytes of its log segments."""

    topic: str
    partition: int
    broker: int
    size: int


def describe_quorum(address: str, timeout: float) -> Quorum:
    """The controllers' quorum as the broker at `address` ("host:port") knows it."""
    # DescribeQuorum, version 1
    body = b"\x02" + _text("__cluster_metadata") + b"\x02" + struct.pack(">i", 0) + b"\0\0\0"
    return _ask(address, timeout, 55, 1, body, parse_quorum)


def describe_log_dirs(address: str, broker: int, timeout: float) -> list[Replica]:
    """All replicas that the broker at `address` ("host:port") has on its disks; `broker` is its node id."""
    # DescribeLogDirs, version 4: no list of topics stands for all
    return _ask(address, timeout, 35, 4, b"\0\0", lambda data: parse_log_dirs(data, broker))


def knows_topic(address: str, topic: str, timeout: float) -> bool:
    """Whether the broker at `address` ("host:port") has the topic in its metadata: brokers learn of changes one by one."""
    # Metadata, version 9, of one topic, which is not to be created by asking
    body = b"\x02" + _text(topic) + b"\0" + b"\0\0\0" + b"\0"
    return _ask(address, timeout, 3, 9, body, parse_knows_topic)


def fetch_offsets(address: str, groups: Sequence[str], timeout: float) -> dict[str, tuple[int, dict[tuple[str, int], int]]]:
    """What groups have committed that the broker at `address` ("host:port") coordinates.

    Group -> (Kafka's error code, 0 for none; (topic, partition) -> offset). librdkafka's admin client ends the whole process when
    that broker answers that it is no longer the coordinator (its issue 5040).
    """
    # OffsetFetch, version 8: no list of topics stands for all; whether transactions that are open are waited for: no
    body = _varint(len(groups) + 1) + b"".join(_text(group) + b"\0" + b"\0" for group in groups) + b"\0" + b"\0"
    return _ask(address, timeout, 9, 8, body, parse_offsets)


def _text(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data) + 1) + data


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def _ask(address: str, timeout: float, api: int, version: int, body: bytes, parse: Callable):
    host, _, port = address.strip().rpartition(":")
    request = struct.pack(">hhih", api, version, 1, len(_CLIENT)) + _CLIENT + b"\0" + body
    with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _exactly(connection, 4))
        answer = _exactly(connection, size)
    try:
        return parse(answer)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{address} gave an answer that can't be read: {error}") from error


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ValueError("the connection was closed: is this a Kafka listener without TLS?")
        data += more
    return data


class _Reader:
    """Fields of a flexible-version Kafka response, in order, from behind its header on."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0
        self.number("i")  # correlation id
        self.tags()

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(f">{form}", self.data, self.at)
        self.at += struct.calcsize(f">{form}")
        return value

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str:
        size = self.varint() - 1
        self.at += max(size, 0)
        return self.data[self.at - size : self.at].decode() if size > 0 else ""

    def tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            self.at += self.varint()

    def array(self, item: Callable[[], object]) -> list:
        return [item() for _ in range(self.varint() - 1)]


def parse_quorum(data: bytes) -> Quorum:
    """The quorum as the answer's bytes (without their length) say."""
    read = _Reader(data)
    if error := read.number("h"):
        raise ValueError(f"DescribeQuorum failed with Kafka error code {error}")
    quorums: list[tuple[int, list, list]] = []

    def replica() -> tuple[int, int]:
        node = read.number("i")
        read.number("q")  # log end offset
        read.number("q")  # last fetch
        caught_up = read.number("q")
        read.tags()
        return node, caught_up

    def partition() -> None:
        read.number("i")
        failure = read.number("h")
        leader = read.number("i")
        read.number("i")  # epoch
        read.number("q")  # high watermark
        quorums.append((-1 if failure else leader, read.array(replica), read.array(replica)))
        read.tags()

    def topic() -> None:
        read.text()
        read.array(partition)
        read.tags()

    read.array(topic)
    leader, voters, observers = quorums[0]
    # the active controller reports its own clock as its caught-up time, so no other clock matters
    now = max((caught_up for _, caught_up in voters), default=0)
    return Quorum(leader, {node: now - caught_up for node, caught_up in voters}, tuple(node for node, _ in observers))


def parse_knows_topic(data: bytes) -> bool:
    """Whether the one topic that was asked for is there, as the answer's bytes (without their length) say."""
    read = _Reader(data)
    read.number("i")  # throttle time

    def broker() -> None:
        read.number("i")
        read.text()
        read.number("i")
        read.text()  # rack
        read.tags()

    read.array(broker)
    read.text()  # cluster
    read.number("i")  # controller
    if read.varint() != 2:
        raise ValueError("the answer is not about one topic")
    error = read.number("h")
    # a leader that is not there yet does not make the topic less there
    if error not in (0, _UNKNOWN_TOPIC, _LEADER_NOT_AVAILABLE):
        raise ValueError(f"Metadata failed with Kafka error code {error}")
    return error != _UNKNOWN_TOPIC


def parse_offsets(data: bytes) -> dict[str, tuple[int, dict[tuple[str, int], int]]]:
    """Error code and offsets of each group, as the answer's bytes (without their length) say."""
    read = _Reader(data)
    read.number("i")  # throttle time
    found: dict[str, tuple[int, dict[tuple[str, int], int]]] = {}

    def group() -> None:
        name = read.text()
        offsets: dict[tuple[str, int], int] = {}

        def topic() -> None:
            of = read.text()

            def partition() -> None:
                number = read.number("i")
                offset = read.number("q")
                read.number("i")  # leader's epoch
                read.text()  # whatever the consumer wrote beside it
                if not read.number("h") and offset >= 0:
                    offsets[of, number] = offset
                read.tags()

            read.array(partition)
            read.tags()

        read.array(topic)
        found[name] = read.number("h"), offsets
        read.tags()

    read.array(group)
    return found


def parse_log_dirs(data: bytes, broker: int) -> list[Replica]:
    """The replicas as the answer's bytes (without their length) say; those being moved to another disk count where they are."""
    read = _Reader(data)
    read.number("i")  # throttle time
    if error := read.number("h"):
        raise ValueError(f"DescribeLogDirs failed with Kafka error code {error}")
    found: list[Replica] = []

    def topic() -> None:
        name = read.text()

        def partition() -> None:
            number = read.number("i")
            size = read.number("q")
            read.number("q")  # how far it is behind
            future = read.number("b")
            if not future:
                found.append(Replica(name, number, broker, size))
            read.tags()

        read.array(partition)
        read.tags()

    def log_dir() -> None:
        read.number("h")  # the disk's own error: it has no replicas then
        read.text()
        read.array(topic)
        read.number("q")  # bytes in all
        read.number("q")  # bytes free
        read.tags()

    read.array(log_dir)
    return found
