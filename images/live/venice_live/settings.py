"""What both programs are told, from one file that the role writes."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

FILE = Path("/etc/live/live.json")


@dataclass(frozen=True)
class Settings:
    """`port`: where this program serves HTTP; `stream_length`: entries of a partition's stream; `redis`: host, port, password."""

    port: int
    topics: list[str]
    stream_length: int
    bootstrap_servers: str
    registries: list[str]
    redis: dict


def load(path: Path = FILE) -> Settings:
    return Settings(**json.loads(path.read_text()))


def log(text: str) -> None:
    """One line on stdout, which is the container's log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, flush=True)
