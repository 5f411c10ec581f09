"""Runs a playbook through ansible-runner: streams its events, keeps the run's record, ends cleanly on Ctrl-C."""

import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from venice import paths
from venice.cluster import Cluster
from venice.errors import InputError, VeniceError
from venice.records import Record

INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """What all commands that run a playbook take."""

    inventory: Path
    limit: str | None = None
    check: bool = False
    diff: bool = False
    verbosity: int = 0
    extra_vars: tuple[str, ...] = ()


class Listener:
    """What follows a run. `progress` has the ones that people see."""

    def event(self, event: Mapping[str, Any]) -> None:
        """One of ansible-runner's events, as it happens."""

    def finish(self, record: Record) -> None:
        """The run ended."""


def parse_extra_vars(given: tuple[str, ...]) -> dict[str, Any]:
    """`-e k=v`, `-e '{json}'` and `-e @file`, read as Ansible reads them. Raises InputError naming the option."""
    from ansible.errors import AnsibleError
    from ansible.parsing.dataloader import DataLoader
    from ansible.parsing.splitter import parse_kv

    loader, found = DataLoader(), {}
    for text in given:
        try:
            if text.startswith("@"):
                values = loader.load_from_file(text[1:])
            elif text[:1] in "{[":
                values = loader.load(text)
            else:
                values = parse_kv(text)
        except AnsibleError as error:
            raise InputError(f"-e {text}: {error}", "write -e key=value, -e '{\"key\": value}' or -e @file.yml") from error
        if not isinstance(values, dict) or "_raw_params" in values:
            raise InputError(f"-e {text} names no variable", "write -e key=value, -e '{\"key\": value}' or -e @file.yml")
        found |= values
    return found


def run(
    command: str,
    playbook: str,
    options: Options,
    cluster: Cluster,
    listener: Listener,
    extra: Mapping[str, Any] | None = None,
    record: Record | None = None,
) -> Record:
    """Runs `playbooks/<playbook>.yml`; returns the run's record, whose `exit_code` is the command's.

    `record`: of a run that did something else before, and that this is the rest of.
    Raises InputError when the cluster is being changed by another run, VeniceError when Ansible itself cannot be started.
    """
    import ansible_runner

    given = parse_extra_vars(options.extra_vars)
    record = record or Record.start(command, cluster.name, options.inventory, options.limit, sorted(given))
    begun = time.monotonic() - record.seconds
    collector = _Collector(record, listener)
    with (
        alone(cluster.state_dir, command),
        _interrupts() as interrupted,
        tempfile.TemporaryDirectory(prefix="venice-") as private,
    ):
        record.save(cluster.state_dir)
        flags = [*(["--check"] if options.check else []), *(["--diff"] if options.diff else [])]
        result = ansible_runner.run(
            private_data_dir=private,
            playbook=str(paths.resource("playbooks") / f"{playbook}.yml"),
            inventory=str(options.inventory.resolve()),
            limit=options.limit,
            extravars=given | dict(extra or {}),
            cmdline=" ".join(flags) or None,
            verbosity=options.verbosity or None,
            quiet=not options.verbosity,
            suppress_env_files=True,
            envvars={
                "ANSIBLE_CONFIG": str(paths.resource("ansible.cfg")),
                # The ansible-playbook that stands beside this Python, whatever else is on the PATH.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                # The inventory was checked here; the play need not do it again for every host.
                "VENICE_VALIDATED": "yes",
            },
            event_handler=collector.event,
            cancel_callback=lambda: bool(interrupted),
        )
        record.seconds = round(time.monotonic() - begun, 1)
        collector.close(bool(interrupted), result.status, result.rc, _output(result))
        record.save(cluster.state_dir)
    listener.finish(record)
    return record


class _Collector:
    """Takes from the events what the record keeps, and passes every event on."""

    def __init__(self, record: Record, listener: Listener):
        self.record = record
        self.listener = listener
        self.started = time.monotonic()

    def event(self, event: dict[str, Any]) -> bool:
        kind, data = event["event"], event.get("event_data", {})
        if kind == "playbook_on_task_start":
            self._end_phase()
            self.record.phases.append({"task": data.get("task", ""), "seconds": None})
            self.started = time.monotonic()
        result = data.get("res") or {}
        if kind == "runner_on_ok":
            self.record.differences += [{"host": data["host"], **d} for d in result.get("differences", [])]
        elif (kind == "runner_on_failed" and not data.get("ignore_errors")) or kind == "runner_on_unreachable":
            self.record.failures.append(_failure(data, result))
        self.listener.event(event)
        return False

    def _end_phase(self) -> None:
        if self.record.phases:
            self.record.phases[-1]["seconds"] = round(time.monotonic() - self.started, 2)

    def close(self, interrupted: bool, status: str, rc: int, output: str) -> None:
        self._end_phase()
        record = self.record
        if interrupted:
            record.outcome, record.exit_code = "interrupted", INTERRUPTED
        elif status == "successful":
            record.outcome, record.exit_code = ("changed" if record.differences else "unchanged"), 0
        else:
            if not record.failures:
                record.failures.append(
                    {
                        "host": "",
                        "task": "ansible-playbook",
                        "msg": output or f"ended with {rc}",
                        "remedy": "run again with -v",
                    }
                )
            record.outcome, record.exit_code = "failed", max(f.get("exit_code", 1) for f in record.failures)


def _failure(data: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """What a failed task says, without the task's own dump."""
    said = str(result.get("msg", "")).strip()
    detail = next((str(result[k]).strip() for k in ("module_stderr", "stderr") if result.get(k)), "")
    if detail and (not said or said.startswith("MODULE FAILURE") or "See stdout/stderr" in said):
        said = detail.splitlines()[-1]
    return {
        "host": data.get("host", ""),
        "task": data.get("task", ""),
        "msg": said or "failed without a message",
        "remedy": result.get("remedy", ""),
        "exit_code": result.get("exit_code", 3 if result.get("unreachable") else 1),
        "details": result.get("details", []),
    }


def _output(result: Any) -> str:
    """The end of what ansible-playbook printed: its reason when it died before the first task."""
    text = result.stdout.read() if result.stdout else ""
    return "\n".join(line for line in text.splitlines() if line.strip())[-2000:]


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; ansible-runner is asked to stop and then ends by itself."""
    seen: list[int] = []
    previous = {s: signal.signal(s, lambda number, _: seen.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def alone(state_dir: Path, command: str) -> Iterator[None]:
    """One run at a time on a cluster from this inventory. InputError when another one is at it."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state_dir / ".run").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(f"another run changes this cluster: {file.read().strip()}", "wait until it has ended") from error
        file.truncate(0)
        file.write(f"venice {command}, process {os.getpid()}")
        file.flush()
        try:
            yield
        except OSError as error:
            raise VeniceError(
                f"ansible-playbook could not be run: {error}",
                "check free disk space and that the virtual environment is whole",
            ) from error
