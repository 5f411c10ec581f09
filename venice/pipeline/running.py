"""Connectors on their way to RUNNING."""

import re
from collections.abc import Callable
from typing import Any

from venice.connect import Connect
from venice.errors import VeniceError
from venice.hosts import DockerHost, over

READY_SECONDS = 60.0
RUNNING_SECONDS = 120.0
_LOG_SECONDS = 8.0


def wait_running(cluster: Any, connect: Connect, names: list[str], since: float, report: Callable[[str], None] = lambda line: None) -> None:
    """Return once all these connectors and every task of theirs run; VeniceError with the cause when one fails.

    What the workers have logged since then (seconds since 1970) is added to the cause.
    """
    try:
        connect.wait_running(names, RUNNING_SECONDS, report)
    except VeniceError as error:
        # some plugins keep the reason to themselves: "check the logs for details"
        said = _workers_say(cluster, since)
        error.message += "".join(f"\n  the log says: {line}" for line in said if line not in error.message)
        raise


def _workers_say(cluster: Any, since: float) -> list[str]:
    """Error lines (the last three different ones) that the Connect workers have logged since then (seconds since 1970)."""
    workers = cluster.instances("connect")

    def ask(host: DockerHost) -> list[str]:
        with host.asking():
            logs = [
                host.docker.containers.get(worker.container).logs(since=since, tail=500).decode(errors="replace")
                for worker in workers
                if worker.host == host.name
            ]
        return [match[1].strip() for match in re.finditer(r"\bERROR\s+(.*)", "\n".join(logs))]

    names = {worker.host for worker in workers}
    answers = over([cluster.hosts[name] for name in names], ask, timeout=_LOG_SECONDS)
    lines = [line for answer in answers.values() if isinstance(answer, list) for line in answer]
    # what Connect adds to each failure says nothing of its reason
    return [line for line in dict.fromkeys(lines) if "Task threw an uncaught" not in line][-3:]


def restart_with(connect: Connect, name: str, config: dict[str, str]) -> None:
    """Give a connector another configuration. Stopped first: else the states of its old tasks could be taken for the new ones'."""
    now = connect.status(name)
    if now and now.state == "FAILED":  # what never began can't be stopped
        connect.put(name, config)
        connect.restart_failed(name)
        return
    connect.stop(name)
    try:
        connect.put(name, config)
    finally:
        connect.resume(name)
