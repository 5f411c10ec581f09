"""Flink as an operator asks it: statements through the SQL gateway, and the jobs that Venice keeps running."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from venice.errors import UnreachableError, VeniceError

TIMEOUT = 10.0
# the first statement of a gateway loads the planner, a job waits for its slots
STATEMENT_SECONDS = 120.0
_POLL_SECONDS = 0.1


@dataclass
class Result:
    """What a statement gave: column names and types, rows as JSON values."""

    columns: list[tuple[str, str]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """A declared job: Flink's state, STARTING, MISSING, DECLARED (not yet looked at) or UNKNOWN (nobody answers); why not RUNNING."""

    name: str
    state: str
    sha256: str = ""
    job_id: str = ""
    restored_from: str = ""
    error: str = ""


class _Service:
    """One address and what messages call it."""

    def __init__(self, url: str, label: str):
        self.url = url
        self.label = label
        self._http = httpx.Client(timeout=TIMEOUT, trust_env=False)

    def ask(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        """The answer's JSON. VeniceError with the service's own words, UnreachableError when nobody answers."""
        try:
            answer = self._http.request(method, self.url + path, json=body, **({"timeout": timeout} if timeout else {}))
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"Flink: {self.label}: {error or type(error).__name__}", "`venice status` shows where it should run, `venice up` starts it"
            ) from error
        if answer.is_error:
            raise VeniceError(f"Flink: {_message(answer)}", exit_code=3 if answer.status_code == 503 else None)
        return answer.json() if answer.content else None


def _service(cluster: Any, port: str) -> _Service:
    address, label = next(iter(cluster.required("flink", port).items()))
    return _Service(f"http://{address}", label)


class Gateway:
    """The SQL gateway."""

    def __init__(self, service: _Service):
        self._service = service

    @classmethod
    def of(cls, cluster: Any) -> "Gateway":
        """The cluster's gateway. InputError when the inventory runs no Flink."""
        return cls(_service(cluster, "gateway"))

    @contextmanager
    def session(self, properties: Mapping[str, str] | None = None) -> Iterator["Session"]:
        """A session with these settings; what it created is gone afterwards, jobs go on."""
        handle = self._service.ask("POST", "/v1/sessions", {"properties": dict(properties or {})})["sessionHandle"]
        try:
            yield Session(self._service, f"/v1/sessions/{handle}")
        finally:
            with suppress(VeniceError):
                self._service.ask("DELETE", f"/v1/sessions/{handle}")


class Session:
    """One session of the gateway."""

    def __init__(self, service: _Service, path: str):
        self._service = service
        self._path = path

    def run(self, statement: str, seconds: float = STATEMENT_SECONDS) -> Result:
        """Runs one statement to its last row; one that is not done after `seconds` is cancelled. VeniceError with the root cause."""
        operation = self._service.ask("POST", f"{self._path}/statements", {"statement": statement})["operationHandle"]
        path = f"{self._path}/operations/{operation}"
        deadline = time.monotonic() + seconds
        try:
            while self._service.ask("GET", f"{path}/status")["status"] in ("INITIALIZED", "PENDING", "RUNNING"):
                self._in_time(deadline, path, seconds)
            return self._rows(path, deadline, seconds)
        except BaseException:
            with suppress(VeniceError):
                self._service.ask("POST", f"{path}/cancel")
            raise
        finally:
            with suppress(VeniceError):
                self._service.ask("DELETE", f"{path}/close")

    def _in_time(self, deadline: float, path: str, seconds: float) -> None:
        if time.monotonic() > deadline:
            raise VeniceError(f"Flink: not done after {seconds:g} s", "`venice logs flink-gateway` shows what it waits for")
        time.sleep(_POLL_SECONDS)

    def _rows(self, path: str, deadline: float, seconds: float) -> Result:
        result = Result()
        page = f"{path}/result/0?rowFormat=JSON"
        while page:
            answer = self._service.ask("GET", page)
            found = answer.get("results") or {}
            result.columns = [(c["name"], c["logicalType"]["type"]) for c in found.get("columns", [])] or result.columns
            result.rows += [row["fields"] for row in found.get("data", []) if row.get("kind", "INSERT") in ("INSERT", "UPDATE_AFTER")]
            page = answer.get("nextResultUri") if answer["resultType"] != "EOS" else None
            if answer["resultType"] == "NOT_READY":
                self._in_time(deadline, path, seconds)
        return result


class Jobs:
    """The declared jobs, kept running by Venice's keeper beside the jobmanager."""

    def __init__(self, service: _Service):
        self._service = service

    @classmethod
    def of(cls, cluster: Any) -> "Jobs":
        """The cluster's jobs. InputError when the inventory runs no Flink."""
        return cls(_service(cluster, "jobs"))

    def all(self) -> dict[str, Job]:
        """Declared jobs by name."""
        return {found["name"]: Job(**found) for found in self._service.ask("GET", "/jobs")}

    def put(self, name: str, statements: list[str], sha256: str) -> Job:
        """Declares a job, or changes it; returns when its tasks run. VeniceError with the cause, the former job running on."""
        body = {"statements": statements, "sha256": sha256}
        return Job(**self._service.ask("PUT", f"/jobs/{name}", body, timeout=3 * STATEMENT_SECONDS))

    def delete(self, name: str) -> None:
        """Cancels a job and forgets it."""
        self._service.ask("DELETE", f"/jobs/{name}", timeout=STATEMENT_SECONDS)


def _message(answer: httpx.Response) -> str:
    """A service's own words: `message`, or the root cause among `errors`."""
    try:
        body = answer.json()
        text = body.get("message") or "\n".join(map(str, body["errors"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{answer.status_code} {answer.reason_phrase}"
    causes = re.findall(r"^\s*Caused by: (.+)$", text, re.MULTILINE)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(("at ", "<", "..."))]
    found = causes[-1] if causes else (lines[0] if lines else text)
    return re.sub(r"^(?:[a-z_][\w$]*\.)+([A-Z][\w$]*)(?=:|$)", r"\1", found)
