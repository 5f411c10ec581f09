"""Pinot: its tables through the controller's REST API, SQL through the broker's."""

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from venice.errors import InputError, UnreachableError, VeniceError

TIMEOUT = 10.0
READY_SECONDS = 90.0
_POLL_SECONDS = 1.0


class Pinot:
    """A Pinot cluster behind its controllers' and brokers' base URLs; any of them answers.

    A table is what Pinot calls a TableConfigs: `{tableName, schema, realtime}` (or `offline`), its schema of the same name.
    """

    def __init__(self, controllers: list[str], brokers: list[str], names: Mapping[str, str] | None = None):
        """`names`: what messages call the service at a URL."""
        self.controllers = controllers
        self.brokers = brokers
        self._names = dict(names or {})
        self._http = httpx.Client(timeout=TIMEOUT, trust_env=False)

    @classmethod
    def of(cls, cluster: Any) -> "Pinot":
        """The cluster's Pinot. InputError when the inventory has none."""
        controllers, brokers = (cluster.required("pinot", port) for port in ("controller", "broker"))
        names = {f"http://{address}": name for address, name in (controllers | brokers).items()}
        return cls([f"http://{a}" for a in controllers], [f"http://{a}" for a in brokers], names)

    def _answer(self, urls: list[str], method: str, path: str, body: Any = None) -> httpx.Response:
        """The answer of the first of these that gives one."""
        failures = []
        for url in urls:
            try:
                return self._http.request(method, url + path, json=body)
            except httpx.HTTPError as error:
                failures.append(f"{self._names.get(url, url)}: {error or type(error).__name__}")
        raise UnreachableError(f"Pinot: {'; '.join(failures)}", "`venice status` shows where it should run, `venice up` starts it")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._answer(self.controllers, method, path, body)
        if answer.is_error:
            kind = InputError if answer.status_code in (400, 409) else VeniceError
            raise kind(f"Pinot: {_message(answer)}")
        return answer.json()

    # ---- tables

    def tables(self) -> list[str]:
        """Names of all tables."""
        return self._ask("GET", "/tableConfigs")

    def table(self, name: str) -> dict[str, Any] | None:
        """A table; None when there is none of this name."""
        # for one that is not there the controller answers as for a failure of its own
        return self._ask("GET", f"/tableConfigs/{quote(name)}") if name in self.tables() else None

    def validated(self, table: dict[str, Any]) -> dict[str, Any]:
        """The table as Pinot reads it: all its defaults filled in, what it does not know left out. InputError when it is refused."""
        return self._ask("POST", "/tableConfigs/validate", table)

    def create(self, table: dict[str, Any]) -> None:
        """Add a table; it begins to consume at once."""
        self._ask("POST", "/tableConfigs", table)

    def update(self, table: dict[str, Any]) -> None:
        """Change a table and its schema. InputError when rows that are there would not fit it."""
        self._ask("PUT", f"/tableConfigs/{quote(table['tableName'])}?reload=true", table)

    def delete(self, name: str) -> None:
        """Remove a table with its rows and its schema."""
        self._ask("DELETE", f"/tableConfigs/{quote(name)}")

    def restart(self, name: str) -> None:
        """Load all segments of a table again: also those that have failed, which Pinot leaves as they are."""
        self._ask("POST", f"/segments/{quote(name)}_REALTIME/reset")

    def idle(self, name: str) -> list[str]:
        """Segments of a table that should consume its stream and do not."""
        found = self._ask("GET", f"/tables/{quote(name)}/consumingSegmentsInfo")["_segmentToConsumingInfoMap"]
        return sorted(segment for segment, servers in found.items() if not any(s["consumerState"] == "CONSUMING" for s in servers))

    def wait_consuming(self, name: str, seconds: float = READY_SECONDS) -> None:
        """Return once every partition of the table's stream is consumed and the table can be queried; VeniceError with what is not."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if not (missing := self.idle(name)):
                    self.query(f'SELECT count(*) FROM "{name}"')  # noqa: S608 (a table that was just made)
                    return
                why = f"not consumed: {', '.join(missing)}"
            except VeniceError as error:
                why = error.message
            if time.monotonic() > deadline:
                raise VeniceError(f"table {name} is not ready after {seconds:.0f} s: {why}", "`venice logs pinot` says why")
            time.sleep(_POLL_SECONDS)

    # ---- queries

    def query(self, sql: str) -> list[list[Any]]:
        """All rows of a query's answer. Without a LIMIT of its own Pinot gives ten. VeniceError when it fails, or is not complete."""
        answer = self._answer(self.brokers, "POST", "/query/sql", {"sql": sql})
        if answer.is_error:
            raise VeniceError(f"Pinot: {_message(answer)}")
        found = answer.json()
        if found.get("exceptions"):
            raise VeniceError(f"Pinot: {'; '.join(_first_line(e['message']) for e in found['exceptions'])}", f"in: {sql}")
        if not found.get("resultTable"):  # for a while after a table was made, or its server is away
            raise VeniceError("Pinot: no server has answered", f"in: {sql}")
        return found["resultTable"]["rows"]


def _message(answer: httpx.Response) -> str:
    """What the controller says went wrong; where it repeats the whole request, only its beginning and its end."""
    try:
        text = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        text = answer.text or f"HTTP {answer.status_code}"
    text = " ".join(text.split())
    if (at := text.find('json string: {"')) >= 0:
        _, _, reason = text.rpartition("}}")
        text = text[:at] + reason.strip(" .")
    return text


def _first_line(message: str) -> str:
    """Pinot's error without its stack trace; of a statement that it can't parse, what the parser says."""
    lines = message.splitlines()
    causes = [line.partition(": ")[2] for line in lines if line.startswith("Caused by: ") and "CalciteException" in line]
    said = causes[-1:] or [line for line in lines if line.strip() and not line.startswith(("\t", "...", "Caused by"))]
    return " ".join(said).removeprefix("null: ")


def flattened(table: Any, path: str = "") -> dict[str, str]:
    """A table's fields by path, values as text: columns by their names, other lists as JSON, what is null left out."""
    if isinstance(table, dict):
        items = table.items()
    elif isinstance(table, list) and table and all(isinstance(item, dict) and "name" in item for item in table):
        items = [(item["name"], item) for item in table]
    else:
        return {} if table is None else {path: table if isinstance(table, str) else json.dumps(table)}
    found: dict[str, str] = {}
    for key, value in items:
        found |= flattened(value, f"{path}.{key}" if path else key)
    return found
