"""What a person sees of a run, from ansible-runner's events."""

import io

import pytest
from rich.console import Console

from venice.progress import Progress
from venice.records import Record
from venice.runner import _Collector


def task(name: str) -> dict:
    return {"event": "playbook_on_task_start", "event_data": {"task": name}}


def result(kind: str, host: str, **res) -> dict:
    return {"event": f"runner_on_{kind}", "event_data": {"host": host, "task": "t", "res": res}}


def shown(events: list[dict], outcome: tuple = (False, "successful", 0, ""), terminal: bool = False) -> tuple[str, Record]:
    """What is printed for these events at 80 columns, and the run's record."""
    out = io.StringIO()
    record = Record("20260101-000000-000", "deploy", "lab", "inventory/lab", "2026-01-01T00:00:00+00:00", "me@here", None, [])
    with Progress(Console(file=out, width=80, force_terminal=terminal, no_color=True)) as progress:
        collector = _Collector(record, progress)
        for event in events:
            collector.event(event)
        collector.close(*outcome)
        progress.finish(record)
    return out.getvalue(), record


def test_differences_say_what_and_why():
    change = {"container": "venice-kafka", "action": "recreate", "field": "image", "current": "a:1", "desired": "a:2", "reason": "differs"}
    text, record = shown([task("Converge every host"), result("ok", "lab-1", differences=[change])])
    assert "lab-1  recreate venice-kafka  image: a:1 → a:2" in text
    assert "deploy lab: changed lab-1 1" in text
    assert record.outcome == "changed"
    assert record.differences == [{"host": "lab-1", **change}]


def test_nothing_changed():
    text, record = shown([task("Converge every host"), result("ok", "lab-1", differences=[])])
    assert "nothing changed on lab" in text
    assert (record.outcome, record.exit_code) == ("unchanged", 0)


def test_skipped_steps_are_not_mentioned():
    text, _ = shown([task("Install the Docker engine"), result("skipped", "lab-1"), task("Converge every host"), result("ok", "lab-1")])
    assert "Install the Docker engine" not in text
    assert "Converge every host" in text


def test_a_failure_names_host_cause_and_remedy():
    failed = result("failed", "lab-2", msg="venice-kafka is not healthy", remedy="look at its log", exit_code=1)
    text, record = shown([task("Wait for kafka"), failed], (False, "failed", 2, ""))
    assert "lab-2" in text
    assert "venice-kafka is not healthy" in text
    assert "→ look at its log" in text
    assert (record.outcome, record.exit_code) == ("failed", 1)


def test_the_same_failure_of_several_hosts_is_said_once():
    failed = [result("failed", host, msg="1 finding; no host was changed", exit_code=2) for host in ("lab-1", "lab-2")]
    text, record = shown([task("Look at every host"), *failed], (False, "failed", 2, ""))
    assert text.count("1 finding") == 1
    assert record.exit_code == 2


def test_an_exception_of_a_module_is_reduced_to_its_last_line():
    failed = result("failed", "lab-1", msg="MODULE FAILURE\nSee stdout/stderr", module_stderr="Traceback\n  File x\nOSError: disk full")
    text, _ = shown([task("Converge every host"), failed], (False, "failed", 2, ""))
    assert "OSError: disk full" in text
    assert "Traceback" not in text


def test_interrupted():
    change = {"container": "c", "action": "create", "reason": "missing"}
    text, record = shown([task("Converge every host"), result("ok", "lab-1", differences=[change])], (True, "canceled", 254, ""))
    assert "interrupted during: Converge every host; 1 changes were made" in text
    assert "venice status" in text
    assert record.exit_code == 130


def test_ansible_that_did_not_start_says_why():
    text, record = shown([], (False, "failed", 4, "ERROR! the playbook could not be found"))
    assert "the playbook could not be found" in text
    assert record.exit_code == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_fits_80_columns(terminal):
    events = [task("Send the images that a host lacks"), {"event": "verbose", "stdout": "lab-1: 5 of 200 MB sent"}, result("ok", "lab-1")]
    text, _ = shown(events, terminal=terminal)
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_notice_and_a_restart_are_told():
    asked = {
        "container": "venice-kafka",
        "action": "restart",
        "field": "status",
        "current": "running",
        "desired": "running",
        "reason": "asked for",
    }
    text, _ = shown(
        [task("Judge"), result("ok", "lab-1", notice="nothing of lab is on its hosts"), result("ok", "lab-1", differences=[asked])]
    )
    assert "nothing of lab is on its hosts" in text
    assert "lab-1  restart venice-kafka  asked for" in text
