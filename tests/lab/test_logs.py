"""Logs of lab hosts as one: merged, filtered, followed, and with a host missing."""

import json
import re
import subprocess
import time
import uuid

import pexpect
import pytest

from tests.lab.support import HOSTS, ROOT, VENICE, from_json, on, venice, whole
from tests.waiting import PATIENCE, wait_until

PREFIX = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (\S+@lab-\d) ")


def logs(*arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess:
    """`venice logs` without a terminal."""
    command = [*VENICE, "logs", "-i", "lab", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def provoke() -> str:
    """Makes PostgreSQL log an error that names a marker; the marker."""
    marker = f"logs_{uuid.uuid4().hex[:12]}"
    # standard input, not -c: `ps` and sudo's own log would hold the marker too
    argv = ["sudo", "docker", "exec", "-i", "venice-postgres", "sh", "-c", f"echo 'select {marker};' | psql -d venice"]
    done = on("lab-3", argv)
    assert marker in done.stderr
    return marker


@pytest.fixture
def follower():
    """Starts `venice logs --follow` on a terminal."""
    started = []

    def start(*arguments: str) -> pexpect.spawn:
        argv = [*VENICE[1:], "logs", "-i", "lab", "--follow", *arguments]
        child = pexpect.spawn(VENICE[0], argv, cwd=str(ROOT), dimensions=(24, 200), timeout=PATIENCE, encoding="utf-8")
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def test_all_hosts_merged_by_time(deployed):
    done = logs("--tail", "50")
    assert (done.returncode, done.stderr) == (0, "")
    found = [PREFIX.match(line) for line in done.stdout.splitlines()]
    assert all(found)
    assert [m[1] for m in found] == sorted(m[1] for m in found)
    assert {m[2] for m in found} == {f"{i.name}@{i.host}" for i in deployed.instances()}
    assert "\x1b" not in done.stdout


def test_names_choose(deployed):
    def labels(*names: str) -> set[str]:
        return {PREFIX.match(line)[2] for line in logs("--tail", "10", *names).stdout.splitlines()}

    assert labels("kafka") == {f"kafka@{host}" for host in HOSTS}
    assert labels("schema_registry@lab-2", "postgres") == {"schema-registry@lab-2", "postgres@lab-3"}
    assert labels("lab-1") == {f"{i.name}@lab-1" for i in deployed.instances() if i.host == "lab-1"}


def test_unknown_names_and_wrong_options_touch_nothing(deployed):
    for arguments, says in (
        (["kafak"], "did you mean kafka?"),
        (["lab-9"], "lab-1"),
        (["--since", "soon"], "'soon' is no time"),
        (["--grep", "("], "is no regular expression"),
    ):
        done = logs(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr


def test_json_and_since(deployed):
    marker = provoke()

    def found() -> list[dict]:
        done = logs("--json", "--since", "5m", "--grep", marker)
        assert done.returncode == 0, done.stderr
        return [from_json(line, "logs") for line in done.stdout.splitlines()]

    records = wait_until(found, "the error is in the log")
    assert {(r["host"], r["component"], r["instance"]) for r in records} == {("lab-3", "postgres", "postgres")}
    assert any(f'column "{marker}" does not exist' in r["message"] for r in records)
    assert logs("--since", "2200-01-01").stdout == ""


def test_grep_shows_whole_stack_traces(deployed):
    """A broker that hears nonsense on its port logs an exception with its stack."""
    before = time.time()
    talk = "import socket; s = socket.create_connection(('192.168.61.12', 9092)); s.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n'); s.recv(9)"
    subprocess.run(["python3", "-c", talk], timeout=PATIENCE, check=False)

    def found() -> list[dict]:
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before - 5))
        lines = logs("--json", "--since", since, "--grep", "InvalidReceiveException", "kafka@lab-2").stdout.splitlines()
        return [json.loads(line) for line in lines]

    first = wait_until(found, "the exception is in the log")[0]["message"].splitlines()
    assert first[0].startswith("20")  # the record's own line, which does not name the exception's frames
    assert sum(line.startswith("\tat ") for line in first) > 5


def test_follow_shows_what_comes_until_ctrl_c(deployed, follower):
    # more than the last line, which may be an empty one
    child = follower("--tail", "10", "postgres", "kafka")
    child.expect("postgres@lab-3")
    marker = provoke()
    child.expect(f'postgres@lab-3.*column "{marker}" does not exist')
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_choice_on_a_terminal(deployed):
    child = pexpect.spawn(
        VENICE[0], [*VENICE[1:], "logs", "-i", "lab", "--tail", "1"], cwd=str(ROOT), dimensions=(40, 200), timeout=PATIENCE
    )
    try:
        child.expect("producer-bus-locations@lab-1")
        child.send("\r")  # with nothing ticked: the question stays
        child.send("\x1b[B \r")  # down, space, enter: the second
        child.expect(rb"Z kafka@lab-2\x1b\[0m ")  # coloured, as it is a terminal
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)


def test_follow_goes_on_after_a_restart(deployed, follower):
    child = follower("--tail", "1", "--grep", "report to|first record", "producer")
    child.expect("producer-bus-locations@lab-1")
    restarted = on("lab-1", ["sudo", "docker", "restart", "venice-producer-bus-locations"])
    assert restarted.returncode == 0
    child.expect("has stopped; going on when it runs again")
    child.expect("runs again")
    child.expect("buses report to")
    wait_until(whole, "the producer is healthy again")


def test_host_that_does_not_answer_is_named_and_the_others_shown(deployed, follower):
    child = follower("--tail", "1", "--grep", "report to", "producer", "kafka@lab-1", "postgres")
    child.expect("report to")
    venice("lab", "cut", "lab-1")
    try:
        done = logs("--tail", "1", "kafka")
        assert done.returncode == 3
        assert "lab-1 does not answer" in done.stderr
        assert {PREFIX.match(line)[2] for line in done.stdout.splitlines()} <= {"kafka@lab-2", "kafka@lab-3"}
        child.expect("kafka@lab-1 can't be followed: lab-1: the SSH connection was lost; trying again")
    finally:
        venice("lab", "mend", "lab-1")
    child.expect("kafka@lab-1 runs again")
    wait_until(whole, "lab-1 is back in sync")
