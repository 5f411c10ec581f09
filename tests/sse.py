"""A small client of server-sent events, for tests: what came, with which id, and where to go on."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx


@dataclass(frozen=True)
class Event:
    """One event as a browser would have it; `name` is `message` for those without."""

    name: str
    id: str
    data: dict


@dataclass
class Reader:
    """Reads a stream once or several times, as a browser does that comes back with the last id it got."""

    url: str
    last_id: str = ""
    events: list[Event] = field(default_factory=list)

    def read(self, until: Callable[[list[Event]], bool], seconds: float = 240) -> list[Event]:
        """Reads until `until(all events so far)` or the server ends the stream; returns the new ones. Fails when it takes too long."""
        before = len(self.events)
        deadline = time.monotonic() + seconds
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        try:
            with httpx.stream("GET", self.url, headers=headers, timeout=seconds, trust_env=False) as answer:
                assert answer.status_code == 200, answer.read()
                for event in self._parse(answer.iter_lines()):
                    if event:
                        self.events.append(event)
                    if until(self.events):
                        break
                    assert time.monotonic() < deadline, f"not within {seconds:.0f} s; {len(self.events)} events so far"
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectError):
            pass  # the server went: what a browser answers by coming again
        return self.events[before:]

    def _parse(self, lines: Iterator[str]) -> Iterator[Event | None]:
        """Events; None for comments and ids alone, so that who reads can look at the clock."""
        name, data = "message", []
        for line in lines:
            if line.startswith("data: "):
                data.append(line[6:])
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("id: "):
                self.last_id = line[4:]
            elif not line:
                yield Event(name, self.last_id, json.loads("\n".join(data))) if data else None
                name, data = "message", []

    @property
    def places(self) -> list[tuple[int, int]]:
        """(partition, offset) of all records that came, in their order."""
        return [(e.data["partition"], e.data["offset"]) for e in self.events if e.name == "message"]
