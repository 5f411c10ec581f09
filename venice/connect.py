"""Kafka Connect through its REST API."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import httpx

from venice.errors import InputError, UnreachableError, VeniceError

TIMEOUT = 5.0
# a worker whose machine is on takes a connection at once
_CONNECT_SECONDS = 1.5
_POLL_SECONDS = 0.25
# Connect validates a configuration before it answers (a JDBC one loads its driver), and refuses while workers rebalance
_PUT_SECONDS = 60.0


@dataclass(frozen=True)
class Task:
    """One task of a connector; `cause` is the root cause of its failure, `host` its worker's when that is known."""

    id: int
    state: str
    worker: str
    cause: str = ""
    host: str = ""


@dataclass(frozen=True)
class Connector:
    """A connector's state (RUNNING, PAUSED, STOPPED, FAILED, UNASSIGNED) and its tasks'."""

    name: str
    state: str
    type: str = ""
    worker: str = ""
    cause: str = ""
    tasks: tuple[Task, ...] = ()
    config: dict[str, str] = field(default_factory=dict)
    host: str = ""

    @property
    def running(self) -> bool:
        """True when it and all of its tasks (at least one) run."""
        return self.state == "RUNNING" and bool(self.tasks) and all(task.state == "RUNNING" for task in self.tasks)

    @property
    def failure(self) -> str:
        """What failed and why, as one line; empty when nothing did."""
        if self.state == "FAILED":
            return f"connector {self.name} on {self.host or self.worker}: {self.cause}"
        for task in self.tasks:
            if task.state == "FAILED":
                return f"connector {self.name}, task {task.id} on {task.host or task.worker}: {task.cause}"
        return ""

    def __str__(self) -> str:
        running = sum(task.state == "RUNNING" for task in self.tasks)
        return f"{self.name} {self.state}, {running}/{len(self.tasks)} tasks running"


@dataclass(frozen=True)
class Worker:
    """One Connect worker; `id` is its advertised `address:port`, `error` why it does not answer (empty: it does)."""

    id: str
    host: str
    error: str = ""


@dataclass(frozen=True)
class Plugin:
    """An installed connector plugin; `type` is sink or source."""

    name: str
    type: str
    version: str

    @property
    def short(self) -> str:
        """The class's name without its package."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Option:
    """One option of a plugin as its own config definition has it; `default` None: it has none."""

    name: str
    type: str
    required: bool
    default: str | None
    importance: str
    documentation: str
    group: str = ""

    @property
    def secret(self) -> bool:
        """True for passwords."""
        return self.type == "PASSWORD"


@dataclass(frozen=True)
class Verdict:
    """What Connect's validation says of one option: its value as Connect sees it, errors, and values it recommends."""

    option: Option
    value: str | None
    errors: tuple[str, ...] = ()
    recommended: tuple[str, ...] = ()


def root_cause(trace: str) -> str:
    """The root cause of a Java stack trace as one readable line, without package names of the exception's class.

    The last "Caused by:" of the trace itself counts; those of suppressed exceptions (indented) do not. Its message may
    go over several lines, up to the first "at ..." frame.
    """
    lines = trace.strip().splitlines()
    start = max((n for n, line in enumerate(lines) if line.startswith("Caused by: ")), default=0)
    message = []
    for line in lines[start:]:
        if re.match(r"\s+(at |\.\.\. \d+ |Suppressed: )", line):
            break
        message.append(line.strip())
    text = " ".join(part for part in message if part).removeprefix("Caused by: ")
    # "org.postgresql.util.PSQLException: FATAL: ..." -> "PSQLException: FATAL: ..."
    return re.sub(r"^(?:[a-z_][\w$]*\.)+([A-Z][\w$]*)(?=:|$)", r"\1", text)


class Connect:
    """A Connect cluster behind its workers' URLs; any answers. Calls last `timeout` seconds per worker at most."""

    def __init__(
        self,
        urls: list[str],
        timeout: float = TIMEOUT,
        names: Mapping[str, str] | None = None,
        hosts: Mapping[str, str] | None = None,
    ):
        """`names`: what messages call the worker at a URL; `hosts`: the host of the worker with an id (`address:port`)."""
        self.urls = list(urls)
        self._names = dict(names or {})
        self._hosts = dict(hosts or {})
        self._timeout = timeout
        self._http = httpx.Client(timeout=self._limit(timeout), trust_env=False)

    @classmethod
    def of(cls, cluster: Any, timeout: float = TIMEOUT) -> "Connect":
        """The cluster's workers. InputError when the inventory has none."""
        names = cluster.required("connect", "http")
        hosts = {worker.endpoint("http"): worker.host for worker in cluster.instances("connect")}
        return cls(cluster.connect_urls, timeout, names, hosts)

    @staticmethod
    def _limit(seconds: float) -> httpx.Timeout:
        return httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))

    def workers(self) -> list[Worker]:
        """All workers of the inventory, asked at once. Later calls ask those first that answered."""

        def ask(url: str) -> str:
            try:
                answer = self._http.get(f"{url}/")
            except httpx.HTTPError as error:
                return str(error) or type(error).__name__
            return _message(answer) if answer.is_error else ""

        with ThreadPoolExecutor(max(1, len(self.urls))) as pool:
            errors = dict(zip(self.urls, pool.map(ask, self.urls), strict=True))
        ids = {url: url.removeprefix("http://") for url in self.urls}
        found = [Worker(ids[url], self._hosts.get(ids[url], ""), errors[url]) for url in self.urls]
        self.urls.sort(key=lambda url: bool(errors[url]))
        return found

    def _known(self, connector: Connector) -> Connector:
        """The connector with its workers' hosts."""
        tasks = tuple(replace(task, host=self._hosts.get(task.worker, "")) for task in connector.tasks)
        return replace(connector, tasks=tasks, host=self._hosts.get(connector.worker, ""))

    def _ask(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> httpx.Response:
        """The answer of the first worker that gives one that lasts.

        With a `timeout`, for what may take its time, it is waited for until a worker is there; else only for one that asks to wait.
        """
        failures = []
        deadline = time.monotonic() + (timeout or self._timeout)
        while True:
            there = bool(timeout)
            for url in self.urls:
                try:
                    answer = self._http.request(method, url + path, json=body, **({"timeout": self._limit(timeout)} if timeout else {}))
                except httpx.HTTPError as error:
                    failures.append(f"{self._names.get(url, url)}: {error or type(error).__name__}")
                    continue
                if not _for_now(answer):
                    return answer
                failures.append(f"{self._names.get(url, url)}: {_message(answer)}")
                there = True
            if not there or time.monotonic() >= deadline:
                raise UnreachableError(
                    f"Kafka Connect: {'; '.join(failures[-len(self.urls) :])}",
                    "`venice status` shows its workers, `venice up` starts them",
                )
            time.sleep(_POLL_SECONDS)

    def _json(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        return self._checked(method, path, self._ask(method, path, body, timeout))

    @staticmethod
    def _checked(method: str, path: str, answer: httpx.Response) -> Any:
        if answer.is_error:
            raise VeniceError(f"Kafka Connect: {method} {path}: {_message(answer)}")
        return answer.json() if answer.content else None

    def _each(self, path: str) -> Iterator[Any]:
        """What each worker that answers says."""
        for url in self.urls:
            with suppress(httpx.HTTPError):
                answer = self._http.get(url + path)
                if not answer.is_error:
                    yield answer.json()

    def wait_ready(self, seconds: float) -> None:
        """Return once a worker answers and can take connectors; UnreachableError after `seconds`."""
        self._json("GET", "/connectors", timeout=seconds)

    def connectors(self) -> dict[str, Connector]:
        """All connectors by name, with tasks and configuration."""
        path = "/connectors?expand=status&expand=info"
        answer = self._json("GET", path)
        if not answer:
            # a worker that has not read the cluster's state yet says that there are none: the others are asked too
            answer = next((found for found in self._each(path) if found), {})
        return {
            name: self._known(_connector(parts["status"], parts.get("info", {}).get("config", {})))
            for name, parts in sorted(answer.items())
            if "status" in parts
        }

    def described(self) -> dict[str, Any]:
        """All that Connect tells of its connectors, as it tells it: states, whole stack traces, configurations."""
        return self._json("GET", "/connectors?expand=status&expand=info")

    def status(self, name: str) -> Connector | None:
        """One connector; None when it is not there (or was made an instant ago)."""
        answer = self._ask("GET", f"/connectors/{quote(name, safe='')}/status")
        return None if answer.status_code == 404 else self._known(_connector(answer.json(), {}))

    def config(self, name: str) -> dict[str, str] | None:
        """Stored configuration, references to secrets unresolved; None when there is no such connector."""
        answer = self._ask("GET", f"/connectors/{quote(name, safe='')}/config")
        return None if answer.status_code == 404 else answer.json()

    def put(self, name: str, config: dict[str, str]) -> None:
        """Create or update a connector; InputError with what Connect's validation says."""
        answer = self._ask("PUT", f"/connectors/{quote(name, safe='')}/config", config, timeout=_PUT_SECONDS)
        if answer.status_code == 400:
            raise InputError(f"connector {name}: {_validation(_message(answer))}", "correct its configuration file")
        if answer.is_error:
            raise VeniceError(f"connector {name}: {_message(answer)}")

    def restart(self, name: str, only_failed: bool = True) -> None:
        """Restart the connector and its tasks (only the failed ones)."""
        flags = f"includeTasks=true&onlyFailed={str(only_failed).lower()}"
        self._json("POST", f"/connectors/{quote(name, safe='')}/restart?{flags}", timeout=_PUT_SECONDS)

    def stop(self, name: str, seconds: float = _PUT_SECONDS) -> None:
        """Stop a connector and return once its tasks are gone, so that states seen later are those of new tasks."""
        self._json("PUT", f"/connectors/{quote(name, safe='')}/stop", timeout=_PUT_SECONDS)
        self._wait(lambda: self.status(name), lambda c: c.state == "STOPPED" and not c.tasks, "stopped", seconds)

    def pause(self, name: str, seconds: float = _PUT_SECONDS) -> None:
        """Pause a connector and return once it and its tasks are; its tasks stay where they are."""
        self._json("PUT", f"/connectors/{quote(name, safe='')}/pause", timeout=_PUT_SECONDS)
        self._wait(lambda: self.status(name), lambda c: {c.state, *(task.state for task in c.tasks)} == {"PAUSED"}, "paused", seconds)

    def delete(self, name: str, seconds: float = _PUT_SECONDS) -> None:
        """Delete a connector and return once no worker that answers knows it any more. What it wrote, and its offsets, stay.

        One that is gone already is no error: it was named by a worker that reads the cluster's state a little later.
        """
        path = f"/connectors/{quote(name, safe='')}"
        answer = self._ask("DELETE", path, timeout=_PUT_SECONDS)
        if answer.status_code != 404:
            self._checked("DELETE", path, answer)
        self._wait(lambda: next(self._seen(name), None), lambda connector: False, "gone", seconds)

    def restart_failed(self, name: str, seconds: float = _PUT_SECONDS) -> None:
        """Start a connector again that has itself failed (not its tasks: it can't be stopped), as long as it takes to leave that state.

        One that is still failed after `seconds` has failed again: `wait_running` tells why.
        """
        self._json("POST", f"/connectors/{quote(name, safe='')}/restart?includeTasks=true", timeout=_PUT_SECONDS)
        with suppress(VeniceError):
            self._wait(lambda: self.status(name), lambda connector: connector.state != "FAILED", "started", seconds)

    def _wait(self, look: Callable[[], Connector | None], ended: Callable[[Connector], bool], what: str, seconds: float) -> None:
        """Return once the connector that `look` finds is as wanted, or there is none."""
        deadline = time.monotonic() + seconds
        while True:
            problem: VeniceError
            try:
                connector = look()
                if connector is None or ended(connector):
                    return
                problem = VeniceError(f"connector {connector}: not {what} within {seconds:g} s", "`venice logs connect`")
            except UnreachableError as error:  # of many questions busy workers may miss one
                problem = error
            if time.monotonic() > deadline:
                raise problem
            time.sleep(_POLL_SECONDS)

    def _seen(self, name: str) -> Iterator[Connector]:
        """The connector as each worker that answers knows it. UnreachableError when none answers."""
        if connector := self.status(name):
            yield connector
        for answer in self._each(f"/connectors/{quote(name, safe='')}/status"):
            yield self._known(_connector(answer, {}))

    def resume(self, name: str) -> None:
        """Let a stopped or paused connector run."""
        self._json("PUT", f"/connectors/{quote(name, safe='')}/resume", timeout=_PUT_SECONDS)

    def topics(self, name: str) -> list[str]:
        """The topics that a connector has really read or written since it was made (or since that was reset)."""
        answer = self._json("GET", f"/connectors/{quote(name, safe='')}/topics")
        return sorted(answer.get(name, {}).get("topics", []))

    def offsets(self, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """How far a connector is, as it has committed: (partition, offset) in the plugin's own form."""
        answer = self._json("GET", f"/connectors/{quote(name, safe='')}/offsets")
        return [(item["partition"] or {}, item["offset"] or {}) for item in answer["offsets"]]

    def plugins(self) -> list[Plugin]:
        """The installed connector plugins, sinks first."""
        found = [Plugin(p["class"], p["type"], str(p.get("version") or "")) for p in self._json("GET", "/connector-plugins")]
        return sorted(found, key=lambda plugin: (plugin.type, plugin.name))

    def options(self, plugin: str) -> list[Option]:
        """All options of a plugin, from its own config definition."""
        return [_option(o) for o in self._json("GET", f"/connector-plugins/{quote(plugin, safe='')}/config")]

    def validate(self, plugin: str, config: dict[str, str]) -> list[Verdict]:
        """What Connect says of each option of a configuration; some plugins try their connection for it."""
        path = f"/connector-plugins/{quote(plugin, safe='')}/config/validate"
        answer = self._json("PUT", path, config | {"connector.class": plugin}, timeout=_PUT_SECONDS)
        return [
            Verdict(
                _option(entry["definition"] or {"name": entry["value"]["name"]}),
                entry["value"]["value"],
                tuple(entry["value"]["errors"]),
                tuple(str(value) for value in entry["value"]["recommended_values"]),
            )
            for entry in answer["configs"]
        ]

    def wait_running(
        self, names: list[str], seconds: float, report: Callable[[str], None] = lambda line: None, settled: float = 0.0
    ) -> None:
        """Return once all these connectors and every task of theirs run, and did so in every look for `settled` seconds.

        Tasks whose states are lost are started anew by the workers' own connect-restarter (half a minute).

        VeniceError with the root cause as soon as one has failed, or with their states after `seconds`.
        """
        deadline = time.monotonic() + seconds
        begun: float | None = None
        reported: set[str] = set()
        while names:
            states: dict[str, str] = {}
            silent: UnreachableError | None = None
            for name in names:
                try:
                    connector = self.status(name)
                except UnreachableError as error:  # of many questions busy workers may miss one
                    silent, states[name] = error, error.message
                    break
                if connector and connector.failure:
                    raise VeniceError(
                        connector.failure,
                        f"correct it and deploy again; `venice logs connect --grep {name}` shows more",
                    )
                if not (connector and connector.running):
                    states[name] = str(connector) if connector else f"{name} not assigned to a worker yet"
                elif name not in reported:
                    reported.add(name)
                    report(str(connector))
            now = time.monotonic()
            if not states:
                begun = now if begun is None else begun
                if now - begun >= settled:
                    return
            elif now > deadline:
                raise silent or VeniceError(
                    f"not running after {seconds:g} s: {'; '.join(states.values())}",
                    "`venice logs connect` shows what the workers do",
                )
            else:
                begun = None
            time.sleep(_POLL_SECONDS)


def _connector(status: dict[str, Any], config: dict[str, str]) -> Connector:
    own = status["connector"]
    tasks = tuple(Task(task["id"], task["state"], task["worker_id"], root_cause(task.get("trace", ""))) for task in status.get("tasks", []))
    return Connector(
        status["name"],
        own["state"],
        status.get("type", ""),
        own["worker_id"],
        root_cause(own.get("trace", "")),
        tasks,
        config,
    )


def _option(definition: dict[str, Any]) -> Option:
    default = definition.get("default_value")
    return Option(
        definition["name"],
        definition.get("type") or "STRING",
        bool(definition.get("required")),
        None if default is None else str(default),
        definition.get("importance") or "LOW",
        definition.get("documentation") or "",
        definition.get("group") or "",
    )


def _for_now(answer: httpx.Response) -> bool:
    """True for what a worker answers only for a while: 409 in a rebalance, and the web server's own 404 while it starts."""
    json = answer.headers.get("content-type", "").startswith("application/json")
    return answer.status_code >= 500 or answer.status_code == 409 or (answer.status_code == 404 and not json)


def _message(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code} {answer.json()['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"


def _validation(message: str) -> str:
    """Connect's validation errors without its preamble and its hint at another endpoint."""

    def lines() -> Iterator[str]:
        for line in message.removeprefix("400 ").splitlines():
            if not line.startswith(("Connector configuration is invalid", "You can also find")) and line.strip():
                yield line.strip()

    return "; ".join(lines()) or message
