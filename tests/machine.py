"""What the machine did while a test failed: a test that waited in vain on a machine that stood still says nothing of Venice."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

# by their names: tests put other clocks into the module
from time import monotonic, strftime, time

import pytest

EVERY_SECONDS = 5


class Watch(threading.Thread):
    """Looks every few seconds; `lines` has (time, text). How late a look came shows whether the machine moved on at all."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lines: list[tuple[float, str]] = []

    def run(self) -> None:
        before, looked = self._cpu(), monotonic()
        pause = threading.Event()
        while not pause.wait(EVERY_SECONDS):
            now, at = self._cpu(), monotonic()
            spent = {name: now[name] - before[name] for name in now}
            shares = ", ".join(f"{name} {100 * ticks / (sum(spent.values()) or 1):.0f} %" for name, ticks in spent.items() if ticks)
            late = at - looked - EVERY_SECONDS
            disk = Path("/proc/pressure/io").read_text().split()[1] if Path("/proc/pressure/io").exists() else ""
            text = f"{strftime('%H:%M:%S')} load {os.getloadavg()[0]:.0f}, {late:.1f} s late; {shares}; disk {disk}"
            self.lines.append((time(), text))
            before, looked = now, at

    @staticmethod
    def _cpu() -> dict[str, int]:
        """Ticks of all processors by state, proc(5)."""
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        return dict(zip(names, map(int, Path("/proc/stat").read_text().split()[1:9]), strict=True))


_WATCH = pytest.StashKey[Watch]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Watches for the whole session."""
    session.config.stash[_WATCH] = Watch()
    session.config.stash[_WATCH].start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """A failure shows what the machine did meanwhile."""
    report = yield
    if report.failed:
        lines = (text for at, text in item.config.stash[_WATCH].lines if at >= call.start)
        report.sections.append(("the machine meanwhile", "\n".join(lines)))
    return report
