"""Events of a run -> what a person sees: a live line on a terminal, plain lines elsewhere, and a summary with causes and remedies."""

import difflib
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from venice.records import Record
from venice.runner import Listener

_ACTION_STYLE = {"create": "green", "remove": "red", "stray": "yellow", "pending": "yellow"}
# Without a terminal, a long step says that it is still alive this often (seconds).
_HEARTBEAT = 20
# A step that takes longer than this (seconds) is named before its first result.
_TITLE_AFTER = 2
# Differences of one step on one host shown one by one; more are counted.
_SHOWN = 12


class Progress(Listener):
    """Shows a run. With `verbose`, Ansible's own output is what is seen, and only the summary is added."""

    def __init__(self, console: Console, verbose: bool = False):
        self.console = console
        self.verbose = verbose
        self.task = self.note = ""
        self._titled = False
        self.waiting: set[str] = set()
        self.since = time.monotonic()
        self._live = (
            Live(get_renderable=self._line, console=console, refresh_per_second=8, transient=True)
            if console.is_terminal and not verbose
            else None
        )
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        elif not self.verbose:
            self._beat = threading.Thread(target=self._heartbeat, daemon=True)
            self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._live:
            self._live.stop()

    # ---- while it runs -------------------------------------------------------------------------------------------

    def event(self, event: Mapping[str, Any]) -> None:
        kind, data = event["event"], event.get("event_data", {})
        host = data.get("host", "")
        if kind == "playbook_on_task_start":
            self._begin(_sentence(data.get("task", "")))
        elif kind == "verbose":
            self._say(event.get("stdout", ""))
        elif kind == "runner_on_start":
            self.waiting.add(host)
        elif kind in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable", "runner_on_skipped"):
            self.waiting.discard(host)
            if kind != "runner_on_skipped":
                self._title()
            if kind == "runner_on_ok" and not self.verbose:
                result = data.get("res") or {}
                if result.get("notice"):
                    self.console.print(Text(f"  {result['notice']}"), soft_wrap=True)
                self._differences(host, result)

    def _say(self, text: str) -> None:
        """A line that an action says while it works: images being built or sent."""
        if self.verbose or not text.strip():
            return
        self.note = text.strip()
        if not self._live:
            self._title()
            self.console.print(Text(f"    {self.note}", style="dim"), soft_wrap=True)

    def _begin(self, text: str) -> None:
        self.task, self.note, self.since = text, "", time.monotonic()
        self.waiting.clear()
        self._titled = False

    def _title(self) -> None:
        """Names the step in plain output, once there is something to say of it: skipped steps are not mentioned."""
        if self.task and not (self._titled or self.verbose or self._live):
            self._titled = True
            self.console.print(Text(f"  {self.task}", style="dim"))

    def _line(self) -> Text:
        seconds = time.monotonic() - self.since
        hosts = f"  [{', '.join(sorted(self.waiting))}]" if self.waiting else ""
        frame = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[int(time.monotonic() * 8) % 10]
        line = Text(f"{frame} {self.task}{hosts}  {seconds:.0f} s  {self.note}", style="cyan")
        line.truncate(self.console.width, overflow="ellipsis")
        return line

    def _heartbeat(self) -> None:
        shown = self.since
        while not self._stop.wait(1):
            now = time.monotonic()
            if now - self.since >= _TITLE_AFTER:
                self._title()
            if self.task and now - max(self.since, shown) >= _HEARTBEAT:
                shown = now
                waiting = f" on {', '.join(sorted(self.waiting))}" if self.waiting else ""
                self.console.print(Text(f"    still at it{waiting}: {now - self.since:.0f} s", style="dim"))

    def _differences(self, host: str, result: Mapping[str, Any]) -> None:
        found = result.get("differences", [])
        for difference in found[:_SHOWN]:
            self.console.print(_difference(difference.get("host", host), difference))
        if len(found) > _SHOWN:
            self.console.print(Text(f"  {host}  and {len(found) - _SHOWN} more", style="dim"))
        for diff in result.get("diff") or []:
            self._file_diff(host, diff)

    def _file_diff(self, host: str, diff: Mapping[str, Any]) -> None:
        before, after = str(diff.get("before", "")), str(diff.get("after", ""))
        path = diff.get("after_header") or diff.get("before_header") or ""
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"{host}: {path}, now", f"{host}: {path}, then", lineterm="")
        for line in lines:
            style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
            self.console.print(Text(f"      {line}", style=style), soft_wrap=True)

    # ---- when it ended -------------------------------------------------------------------------------------------

    def finish(self, record: Record) -> None:
        self.__exit__()
        for failure in _once(record.failures):
            self.console.print(Text(f"✗ {failure['where']}{_sentence(failure['task'])}", style="bold red"))
            self.console.print(Text(f"  {failure['msg']}"), soft_wrap=True)
            for line in failure["details"]:
                self.console.print(Text(f"    {line}", style="dim"), soft_wrap=True)
            if failure["remedy"]:
                self.console.print(Text(f"  → {failure['remedy']}", style="yellow"), soft_wrap=True)
        self.console.print(_summary(record), soft_wrap=True)


def _sentence(task: str) -> str:
    """A task's name without its role's prefix."""
    return task.split(" : ")[-1]


def _difference(host: str, difference: Mapping[str, Any]) -> Text:
    name = difference.get("container") or difference.get("path") or difference.get("name") or ""
    action = str(difference.get("action", ""))
    text = Text(f"  {host}  ")
    text.append(f"{action} ", style=_ACTION_STYLE.get(action, "blue"))
    text.append(str(name))
    text.append(f"  {why(difference)}", style="dim")
    return text


def why(difference: Mapping[str, Any]) -> str:
    """What makes a difference, in a few words: `image: a → b`, or its reason."""
    current, desired = difference.get("current"), difference.get("desired")
    if current is None or current == desired or desired is None or difference.get("path"):
        return str(difference.get("reason") or difference.get("field") or "")
    return f"{difference.get('field', '')}: {_short(current)} → {_short(desired)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _once(failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same failure on several hosts is shown once, with all their names."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for failure in failures:
        key = failure["task"], failure["msg"]
        if key in merged:
            merged[key]["hosts"].append(failure["host"])
        else:
            merged[key] = failure | {"hosts": [failure["host"]]}
    for failure in merged.values():
        several = failure.get("exit_code") == 2 and len(failure["hosts"]) >= 1
        failure["where"] = "" if several or not any(failure["hosts"]) else f"{', '.join(failure['hosts'])}: "
        failure.setdefault("details", [])
        failure.setdefault("remedy", "")
    return list(merged.values())


def _summary(record: Record) -> Text:
    if record.outcome == "unchanged":
        return Text(f"✓ nothing changed on {record.cluster} ({record.seconds:.1f} s)", style="bold green")
    if record.outcome == "changed":
        hosts = Counter(d["host"] for d in record.differences)
        counts = ", ".join(f"{host} {count}" for host, count in sorted(hosts.items()))
        would = "would change" if "plan" in record.command else "changed"
        return Text(f"✓ {record.command} {record.cluster}: {would} {counts} ({record.seconds:.1f} s)", style="bold green")
    phase = _sentence(record.phases[-1]["task"]) if record.phases else "start"
    if record.outcome == "interrupted":
        done = f"{len(record.differences)} changes were made" if record.differences else "no host was changed"
        text = f"interrupted during: {phase}; {done}.\n`venice status` shows what runs; the same command again goes on from there."
        return Text(text, style="bold yellow")
    return Text(
        f"{record.command} {record.cluster} failed during: {phase} ({record.seconds:.1f} s); recorded as {record.id}",
        style="bold red",
    )


def smoke_table(hops: list[Mapping[str, Any]]) -> Table:
    """The smoke test's hops as a table: name, outcome, latency, detail."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (("smoke test", "left"), ("", "left"), ("ms", "right"), ("", "left")):
        table.add_column(heading, justify=justify, overflow="fold")
    for hop in hops:
        ok = hop["ok"]
        mark = Text("ok", style="green") if ok else Text("broken" if ok is False else "not reached", style="red" if ok is False else "dim")
        seconds = hop.get("seconds")
        table.add_row(hop["name"], mark, "" if seconds is None else f"{seconds * 1000:.0f}", str(hop.get("detail") or ""))
    return table
