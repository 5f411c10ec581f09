#!/usr/bin/python
# ruff: noqa: E402 (Ansible wants the documentation before the imports)
"""The Ansible module `venice_wait`: containers answer their own health question, or the task says why not."""

from __future__ import annotations

DOCUMENTATION = r"""
module: venice_wait
short_description: Wait until containers are healthy
description:
  - Asks each container's own health check, several times a second, until all have answered well.
  - The engine asks only at the check's interval; this asks at once, so that nothing waits for the next interval.
  - Fails at the deadline, and at once when a container has exited for good.
options:
  containers:
    description: Names of containers on this host.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds until the wait is given up.
    type: float
    default: 120
attributes:
  check_mode:
    support: full
    description: Waits for nothing in check mode.
author: Venice
"""

EXAMPLES = r"""
- name: Wait for the broker
  venice_wait:
    containers: [venice-kafka]
    timeout: 90
"""

RETURN = r"""
containers:
  description:
    - For each container C(healthy), C(seconds) until it was (or was given up), C(output) of its last health check.
    - Unhealthy ones also have C(status), C(exit_code), C(restarts), C(oom_killed) and C(log) (last lines).
  type: dict
  returned: always
remedy:
  description: What helps, as far as known.
  type: str
  returned: failure
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.venice_docker import Engine, EngineError, EngineTimeout, in_parallel

PAUSE = 0.4
LOG_LINES = 20
NANO = 1_000_000_000


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "containers": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "float", "default": 120},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, containers={})
    names = module.params["containers"]
    try:
        found = wait(names, module.params["timeout"], Engine())
    except EngineError as error:
        module.fail_json(msg=f"waiting for {', '.join(names)}: {error.message}", containers={}, remedy="")
    if all(entry["healthy"] for entry in found.values()):
        module.exit_json(changed=False, containers=found)
    module.fail_json(msg=explain(found), containers=found, remedy=remedy(found))


def wait(names: list[str], timeout: float, engine: Engine) -> dict[str, dict]:
    """Wait for all `names` at once; returns the module's `containers`. Raises EngineError when the engine is gone."""
    start = time.monotonic()
    answers = in_parallel(lambda name: _wait_for(name, start, start + timeout, engine), names, max(len(names), 1))
    return dict(zip(names, answers))  # noqa: B905 (strict= is newer than Python 3.9)


def _wait_for(name: str, start: float, deadline: float, engine: Engine) -> dict:
    output = "its health check was not asked yet"
    while True:
        asked_at = time.monotonic()
        current = engine.container(name)
        if current is None:
            return {**_result(False, start, f"there is no container {name}"), "status": "missing", "log": []}
        state = current["State"]
        healthy = False
        if state["Status"] == "running":
            healthy, output = _ask(current, max(min(deadline - asked_at, 60), 0.1), engine)
        if healthy:
            return _result(True, start, output)
        if hopeless(current) or time.monotonic() + PAUSE > deadline:
            return _unhealthy(engine.container(name) or current, start, output, engine)
        time.sleep(max(PAUSE - (time.monotonic() - asked_at), 0.05))


def _ask(current: dict, limit: float, engine: Engine) -> tuple[bool, str]:
    """Run the container's own health check once: (healthy, output)."""
    check = current["Config"].get("Healthcheck") or {}
    command = health_command(check, current["Config"].get("Shell"))
    if command is None:
        return True, "it has no health check and runs"
    timeout = min((check.get("Timeout") or 30 * NANO) / NANO, limit)
    try:
        code, output = engine.execute(current["Id"], command, timeout)
    except EngineTimeout:
        code, output = None, ""
    except EngineError as error:
        if error.status == 0:
            raise
        # between looking and asking, the container stopped or the command was not found: it says which
        return False, error.message
    if code is None:
        return False, f"the health check did not answer within {timeout:g} s"
    return code == 0, output or f"the health check ended with code {code} and said nothing"


def health_command(check: dict, shell: list[str] | None = None) -> list[str] | None:
    """The command of an engine's health check description, None when there is none."""
    kind, *rest = check.get("Test") or ["NONE"]
    if kind == "CMD":
        return rest
    if kind == "CMD-SHELL":
        return [*(shell or ["/bin/sh", "-c"]), *rest]
    return None


def hopeless(current: dict) -> bool:
    """Whether the engine will not start this container again by itself."""
    state = current["State"]
    if state["Status"] in ("created", "removing", "dead"):
        return True
    if state["Status"] != "exited":
        return False
    policy = current["HostConfig"].get("RestartPolicy") or {}
    if policy.get("Name") == "on-failure":
        limit = policy.get("MaximumRetryCount") or 0
        return state["ExitCode"] == 0 or bool(limit and current.get("RestartCount", 0) >= limit)
    # with always and unless-stopped, a container at rest was stopped by somebody
    return True


def _result(healthy: bool, start: float, output: str) -> dict:
    return {"healthy": healthy, "seconds": round(time.monotonic() - start, 2), "output": output}


def _unhealthy(current: dict, start: float, output: str, engine: Engine) -> dict:
    state = current["State"]
    return {
        **_result(False, start, output),
        "status": state["Status"],
        "exit_code": state["ExitCode"],
        "restarts": current.get("RestartCount", 0),
        "oom_killed": state.get("OOMKilled", False),
        "log": engine.logs(current["Id"], LOG_LINES),
    }


def explain(found: dict[str, dict]) -> str:
    """What is wrong with the unhealthy containers, for a person."""
    parts = []
    for name, entry in found.items():
        if entry["healthy"]:
            continue
        state = entry["status"]
        if "exit_code" in entry and state != "running":
            state += f" with code {entry['exit_code']}"
        if entry.get("oom_killed"):
            state += ", killed for lack of memory"
        if entry.get("restarts"):
            state += f", restarted {entry['restarts']} times"
        lines = [f"{name} is not healthy after {entry['seconds']:g} s ({state}): {entry['output']}"]
        if entry["log"]:
            lines += ["  its last log lines:", *(f"    {line}" for line in entry["log"])]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def remedy(found: dict[str, dict]) -> str:
    if any(entry.get("oom_killed") for entry in found.values()):
        return "give the container more memory, or its process a smaller heap"
    return ""


if __name__ == "__main__":
    main()
