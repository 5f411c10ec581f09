"""What a topic should be and how things differ, apart from the client that asks Kafka: reading a pipeline needs no client."""

import re
from dataclasses import dataclass, field

from venice.errors import InputError


@dataclass
class TopicSpec:
    """What a topic should be. `replication` None: new topics get the default factor, an existing one keeps its own."""

    name: str
    partitions: int = 1
    replication: int | None = None
    config: dict[str, str] = field(default_factory=dict)


@dataclass
class Difference:
    """One field of a thing that is not as it should be; `current` None: the thing does not exist."""

    field: str
    current: str | None
    desired: str


def retention_ms(value: str | int) -> int:
    """Milliseconds of `unlimited`, `90s`, `30m`, `12h`, `7d`, or of a number (already ms); -1 is unlimited."""
    if value == "unlimited":
        return -1
    match = re.fullmatch(r"(-?\d+)\s*(ms|s|m|h|d|)", str(value))
    if not match:
        raise InputError(f"retention {value!r} is no time", "write unlimited, or a number with ms, s, m, h or d, as 7d")
    return int(match[1]) * {"": 1, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}[match[2]]
