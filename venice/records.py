"""What runs leave behind: one JSON file each, beside the inventory. Never a secret: values of extra variables are not kept."""

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from venice import __version__


def who() -> str:
    """The person (behind sudo, too) and the machine that this runs on: `user@host`."""
    return f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}"


@dataclass
class Record:
    """One run: who, when, inputs, what changed, outcome."""

    id: str
    command: str
    cluster: str
    inventory: str
    started: str
    user: str
    limit: str | None
    extra_vars: list[str]
    version: str = __version__
    seconds: float = 0.0
    outcome: str = "running"
    exit_code: int | None = None
    differences: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, command: str, cluster: str, inventory: Path, limit: str | None, extra_vars: list[str]) -> "Record":
        """A new run's record; ids sort by time."""
        now = datetime.now(UTC)
        stamp = now.strftime("%Y%m%d-%H%M%S-%f")[:-3]
        return cls(stamp, command, cluster, str(inventory), now.isoformat(timespec="seconds"), who(), limit, extra_vars)

    def save(self, state_dir: Path) -> None:
        """Writes the record to `runs/ID.json`."""
        folder = state_dir / "runs"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f".{self.id}"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(folder / f"{self.id}.json")


def load_all(state_dir: Path) -> list[Record]:
    """All runs' records, the oldest first."""
    return [Record(**json.loads(path.read_text())) for path in sorted((state_dir / "runs").glob("*.json"))]
