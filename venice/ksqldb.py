"""ksqlDB through its REST API: statements with their outcome, queries as streams of rows.

Not through its command line, whose exit code is 0 for what the server refuses.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from venice.errors import InputError, UnreachableError, VeniceError

# a statement waits for the server's command topic and for its sources' schemas
STATEMENT_SECONDS = 60.0
_CONNECT_SECONDS = 5.0
_POLL_SECONDS = 0.5
_MEDIA_TYPE = "application/vnd.ksql.v1+json"
_ROWS_TYPE = "application/vnd.ksqlapi.delimited.v1"
_UNFINISHED = ("QUEUED", "PARSING", "EXECUTING")
# what the server takes for an error of its own state, not of the statement
_STARTING = 50302

_PROPERTY = re.compile(r"SET\s+'((?:[^']|'')+)'\s*=\s*'((?:[^']|'')*)'\s*;", re.IGNORECASE)
_NO_PROPERTY = re.compile(r"UNSET\s+'((?:[^']|'')+)'\s*;", re.IGNORECASE)
_CLIENT_ONLY = re.compile(r"(DEFINE|UNDEFINE|RUN\s+SCRIPT|PRINT|EXIT|QUIT|HELP|CLEAR|OUTPUT|SERVER|SPOOL|HISTORY)\b", re.IGNORECASE)
# '' stays in a string, "" in a quoted name; a comment counts as a space
_TOKEN = re.compile(
    r"(?P<quoted>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`)|(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<end>;)|(?P<open>['\"`]|/\*)",
    re.DOTALL,
)


_SPACE = re.compile(r"('[^']*'|\"[^\"]*\"|`[^`]*`)|(?:\s|--[^\n]*|/\*.*?\*/)+", re.DOTALL)


def bare(text: str) -> str:
    """A statement without comments and without its layout; what is in quotes stays as it is."""
    return _SPACE.sub(lambda m: m[1] or " ", text).strip()


@dataclass(frozen=True)
class Statement:
    """One statement, its `;` included; `line` is where it begins."""

    text: str
    line: int = 1

    @property
    def words(self) -> str:
        """Its text without comments and without what is in quotes: for telling what kind it is."""
        bare = _TOKEN.sub(lambda m: m[0] if m["end"] else " '' " if m["quoted"] else " ", self.text)
        return " ".join(bare.split()).upper()

    @property
    def is_query(self) -> bool:
        """True for SELECT, which gives rows; every other statement gives an answer."""
        return self.words.startswith("SELECT ")

    @property
    def is_push(self) -> bool:
        """True for a query that goes on giving rows."""
        return self.is_query and re.search(r"\bEMIT (CHANGES|FINAL)\b", self.words) is not None


@dataclass(frozen=True)
class Answer:
    """The server's answer to a statement that is no query.

    `kind` is ksqlDB's name for the form of `entity`; `message` is what it did, for statements that do something.
    """

    statement: str
    kind: str
    message: str
    entity: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        return {"statement": self.statement, "kind": self.kind, "message": self.message, "entity": self.entity}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names and rows of what it lists (streams, queries, a source's columns, ...); empty when it lists nothing."""
        return _table(self.entity)


@dataclass
class Rows:
    """A query's rows, read as they come: `columns` are known at once, iterating gives lists of values."""

    statement: str
    columns: list[str]
    _lines: Iterator[str] = field(repr=False, default_factory=lambda: iter(()))

    @property
    def endless(self) -> bool:
        """True when rows may go on coming, so that they are to be shown as they come."""
        return Statement(self.statement).is_push

    def documents(self) -> Iterator[dict[str, Any]]:
        """Form for `--json`: each row by column."""
        return ({"statement": self.statement, "row": dict(zip(self.columns, row, strict=True))} for row in self)

    def text(self) -> Iterator[list[str]]:
        """Each row as text."""
        return ([_cell(value) for value in row] for row in self)

    def __iter__(self) -> Iterator[list[Any]]:
        """Raises VeniceError when the server reports a failure amid the rows, UnreachableError when it goes away."""
        for line in self._lines:
            value = json.loads(line)
            if isinstance(value, list):
                yield value
            elif "error_code" in value:
                raise VeniceError(f"ksqlDB: {value.get('message')}", f"in: {self.statement}")


def split(script: str, name: str = "") -> list[Statement]:
    """The statements of a script. Semicolons in quotes and comments end nothing; the last statement may lack its own.

    InputError with the line when a quote or a comment does not end.
    """
    found, begin, at = [], 0, 0
    where = f"{name}: " if name else ""
    while match := _TOKEN.search(script, at):
        at = match.end()
        if match["open"]:
            line = script.count("\n", 0, match.start()) + 1
            raise InputError(f"{where}line {line}: {match[0]} is not closed", "close the quote or the comment")
        if match["end"]:
            found.append((begin, script[begin:at]))
            begin = at
    rest = script[begin:].rstrip()
    # on a line of its own: the last line may be a comment
    found.append((begin, f"{rest}\n;" if "--" in rest else f"{rest};"))
    statements = []
    for start, text in found:
        # what comes before a statement's first word belongs to it in no way that matters
        lead = re.match(r"(?:\s|--[^\n]*|/\*.*?\*/)*", text, re.DOTALL).end()
        if text[lead:].strip() not in ("", ";"):
            statements.append(Statement(text[lead:].strip(), script.count("\n", 0, start + lead) + 1))
    return statements


class KsqlDb:
    """A ksqlDB service behind the URLs of its servers; any answers. A statement lasts `timeout` seconds at most."""

    def __init__(
        self,
        urls: list[str],
        timeout: float = STATEMENT_SECONDS,
        names: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ):
        """`names`: what messages call the server at a URL. `transport`: httpx's, for tests."""
        self.urls = urls
        self.timeout = timeout
        self._names = dict(names or {})
        limits = httpx.Timeout(timeout, connect=_CONNECT_SECONDS)
        self._http = httpx.Client(timeout=limits, trust_env=False, transport=transport)
        self._sequence: int | None = None

    @classmethod
    def of(cls, cluster: Any) -> "KsqlDb":
        """The cluster's ksqlDB. InputError that names `venice sql` when the inventory has none."""
        require(cluster)
        names = cluster.required("ksqldb", "http")
        return cls(list(names), names=names)

    def ready(self) -> str:
        """Empty when a server takes statements; else why not."""
        why = ""
        for url in self.urls:
            try:
                answer = self._http.get(f"{url}/healthcheck", headers={"Accept": _MEDIA_TYPE}, timeout=_CONNECT_SECONDS)
                body = answer.json()
            except (httpx.HTTPError, ValueError) as error:
                why = f"{self._name(url)}: {error or type(error).__name__}"
                continue
            if answer.is_success and body.get("isHealthy") and body.get("serverState") == "READY":
                return ""
            ill = [part for part, state in body.get("details", {}).items() if not state.get("isHealthy")]
            why = f"{self._name(url)}: {body.get('message') or ', '.join(ill) + ' not healthy'}"
        return why

    def wait_ready(self, seconds: float) -> None:
        """Return once a server takes statements; UnreachableError with its last answer after `seconds`."""
        deadline = time.monotonic() + seconds
        while why := self.ready():
            if time.monotonic() > deadline:
                raise UnreachableError(f"ksqlDB is not ready after {seconds:g} s: {why}", "`venice logs ksqldb` shows why")
            time.sleep(_POLL_SECONDS)

    def execute(self, statement: str, properties: Mapping[str, str] | None = None) -> Answer:
        """Run one statement that is no query, and wait until it has taken effect.

        VeniceError with the server's message when it is refused or fails; UnreachableError when no server answers in time.
        """
        body: dict[str, Any] = {"ksql": statement, "streamsProperties": dict(properties or {})}
        if self._sequence is not None:
            # another server than the one that took the last statement waits until it has seen it
            body["commandSequenceNumber"] = self._sequence
        entities = self._post("/ksql", body, _MEDIA_TYPE, statement).json()
        if not entities:  # INSERT VALUES, for one
            return Answer(statement, "done", "done", {})
        entity = entities[-1]
        warnings = tuple(str(w.get("message", w)) if isinstance(w, dict) else str(w) for w in entity.get("warnings") or [])
        # EXPLAIN is asked for the plan
        message = str(entity.get("message") or entity.get("queryDescription", {}).get("executionPlan") or "")
        if "commandStatus" in entity:
            number = entity.get("commandSequenceNumber")
            self._sequence = number if isinstance(number, int) and number >= 0 else self._sequence
            # the first answer may come before the query has its id
            entity = entity | {"commandStatus": self._finished(entity, statement)}
            message = str(entity["commandStatus"]["message"])
        return Answer(statement, entity.get("@type", ""), message, entity, warnings)

    def query(self, statement: str, properties: Mapping[str, str] | None = None) -> Rows:
        """Rows of a SELECT, as they come: for ever when it says EMIT CHANGES or FINAL without LIMIT. Errors as for `execute`."""
        push = Statement(statement).is_push
        lines = self._stream(statement, dict(properties or {}), None if push else self.timeout)
        header = json.loads(next(lines, "{}"))
        if "columnNames" not in header:
            raise UnreachableError(f"ksqlDB: the answer ended before it began: {_short(statement)}", "`venice logs ksqldb` shows why")
        return Rows(statement, header["columnNames"], lines)

    def run(self, statements: Iterable[Statement], name: str = "") -> Iterator[Answer | Rows]:
        """Run statements one after the other; `SET` and `UNSET` hold for those after them. Stops at the first that fails.

        Errors say which statement it was, by its line and by `name` (a file's).
        """
        statements = list(statements)
        where = f"{name} line" if name else "line"
        for statement in statements:
            if _CLIENT_ONLY.match(statement.text):
                raise InputError(
                    f"{where} {statement.line}: {statement.text.split()[0].upper().rstrip(';')} is a command of ksqlDB's own command line",
                    "`venice ksql` on a terminal opens it; `venice topics show` shows a topic's records",
                )
        properties: dict[str, str] = {}
        for statement in statements:
            try:
                if change := property_of(statement):
                    properties = change(properties)
                elif statement.is_query:
                    yield self.query(statement.text, properties)
                else:
                    yield self.execute(statement.text, properties)
            except VeniceError as error:
                raise VeniceError(f"{where} {statement.line}: {error.message}", error.remedy, error.exit_code) from error

    def _finished(self, entity: dict[str, Any], statement: str) -> dict[str, Any]:
        """A statement's status, once it is done."""
        status, command = entity["commandStatus"], str(entity["commandId"])
        deadline = time.monotonic() + self.timeout
        while status["status"] in _UNFINISHED:
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"ksqlDB has not done it after {self.timeout:g} s (it is {status['status']}): {_short(statement)}",
                    "it may still be done; `venice logs ksqldb` shows what the server does",
                )
            time.sleep(_POLL_SECONDS)
            # ksqlDB has backticks in its command ids, and wants them back
            status = self._ask("GET", f"/status/{quote(command, safe='/')}", statement).json()
        if status["status"] == "ERROR":
            raise VeniceError(f"ksqlDB: {status['message']}", f"in: {_short(statement)}")
        return status

    def _post(self, path: str, body: dict[str, Any], accept: str, statement: str) -> httpx.Response:
        return self._ask("POST", path, statement, json=body, headers={"Accept": accept, "Content-Type": accept})

    def _ask(self, method: str, path: str, statement: str, **options: Any) -> httpx.Response:
        """The answer of the first server that takes connections."""
        failures = []
        options.setdefault("headers", {"Accept": _MEDIA_TYPE})
        for url in self.urls:
            try:
                answer = self._http.request(method, url + path, **options)
            except httpx.ConnectError as error:
                failures.append(f"{self._name(url)}: {error}")
                continue
            except httpx.ConnectTimeout:
                failures.append(f"{self._name(url)}: no answer")
                continue
            except httpx.HTTPError as error:
                # it was sent: to ask another server might do it twice
                raise self._silent(url, statement, error) from error
            if answer.status_code == 503 and _error(answer).get("error_code") == _STARTING:
                failures.append(f"{self._name(url)}: it is starting")
                continue
            self._check(answer, statement)
            return answer
        raise UnreachableError(f"ksqlDB: {'; '.join(failures)}", "`venice status` shows where it should run, `venice up` starts it")

    def _stream(self, statement: str, properties: dict[str, str], patience: float | None) -> Iterator[str]:
        """Lines of a query's answer, the header first."""
        body = {"sql": statement, "properties": properties}
        limits = httpx.Timeout(self.timeout, connect=_CONNECT_SECONDS, read=patience)
        failures = []
        for url in self.urls:
            request = self._http.build_request(
                "POST", f"{url}/query-stream", json=body, headers={"Accept": _ROWS_TYPE, "Content-Type": "application/json"}, timeout=limits
            )
            try:
                answer = self._http.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failures.append(f"{self._name(url)}: {error or 'no answer'}")
                continue
            except httpx.HTTPError as error:
                raise self._silent(url, statement, error) from error
            try:
                if answer.is_error:
                    answer.read()
                    if answer.status_code == 503 and _error(answer).get("error_code") == _STARTING:
                        failures.append(f"{self._name(url)}: it is starting")
                        continue
                    self._check(answer, statement)
                yield from (line for line in _lines(answer) if line)
                return
            except httpx.HTTPError as error:
                what = f"nothing for {self.timeout:g} s" if isinstance(error, httpx.TimeoutException) else "the connection was lost"
                raise UnreachableError(
                    f"ksqlDB: {self._name(url)}: {what} within the answer to: {_short(statement)}",
                    "`venice status` shows what answers",
                ) from error
            finally:
                answer.close()
        raise UnreachableError(f"ksqlDB: {'; '.join(failures)}", "`venice status` shows where it should run, `venice up` starts it")

    def _check(self, answer: httpx.Response, statement: str) -> None:
        if not answer.is_error:
            return
        error = _error(answer)
        message = str(error.get("message") or f"{answer.status_code} {answer.reason_phrase}")
        if answer.status_code in (401, 403):
            raise VeniceError(f"ksqlDB refuses: {message}", "its server asks for a login, which Venice's own does not")
        raise VeniceError(f"ksqlDB: {message}", f"in: {_short(str(error.get('statementText') or statement))}")

    def _silent(self, url: str, statement: str, error: Exception) -> UnreachableError:
        what = f"no answer within {self.timeout:g} s" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
        return UnreachableError(
            f"ksqlDB: {self._name(url)}: {what}: {_short(statement)}",
            "it may still be done; `venice status` shows whether Kafka and the registry answer, which ksqlDB waits for",
        )

    def _name(self, url: str) -> str:
        return self._names.get(url, url)


def property_of(statement: Statement) -> Callable[[Mapping[str, str]], dict[str, str]] | None:
    """What SET or UNSET makes of the properties that hold for the statements after it; None for other statements."""
    text = bare(statement.text)
    if setting := _PROPERTY.fullmatch(text):
        return lambda properties: {**properties, _unquote(setting[1]): _unquote(setting[2])}
    if setting := _NO_PROPERTY.fullmatch(text):
        return lambda properties: {key: value for key, value in properties.items() if key != _unquote(setting[1])}
    return None


def require(cluster: Any) -> None:
    """InputError that says what there is instead, when the inventory has no ksqlDB."""
    if not cluster.instances("ksqldb"):
        raise InputError(
            f"{cluster.inventory_dir}: nothing runs ksqlDB: the group ksqldb has no hosts",
            "`venice sql` opens the SQL client of the deployed stream processor (Flink); for ksqlDB add a host to the group ksqldb "
            "and `venice deploy`",
        )


def _lines(answer: httpx.Response) -> Iterator[str]:
    """Not httpx's own, which end lines at characters that a value may have, too (U+2028, ...)."""
    rest = ""
    for text in answer.iter_text():
        *lines, rest = (rest + text).split("\n")
        yield from lines
    yield rest


def _error(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _short(statement: str) -> str:
    text = " ".join(statement.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _unquote(text: str) -> str:
    return text.replace("''", "'")


def _table(entity: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The first list of objects in an entity, or in an object in it, as columns and rows of text."""
    lists = [v for k, v in entity.items() if k != "warnings" and isinstance(v, list) and v and all(isinstance(i, dict) for i in v)]
    if lists:
        columns = list(dict.fromkeys(key for item in lists[0] for key in item))
        return columns, [[_cell(item.get(column)) for column in columns] for item in lists[0]]
    for value in entity.values():
        # a description: its columns are what is asked for, not the queries that read it
        if isinstance(value, dict) and isinstance(value.get("fields"), list):
            rows = [[f["name"], _type(f.get("schema") or {}), f.get("type") or ""] for f in value["fields"]]
            return ["column", "type", "key"], rows
    return [], []


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(not isinstance(i, dict | list) for i in value):
        return ", ".join(str(i) for i in value)
    return json.dumps(value, ensure_ascii=False)


def _type(schema: Mapping[str, Any]) -> str:
    """`ARRAY<STRING>` of a column's schema."""
    name = str(schema.get("type", ""))
    if schema.get("fields"):
        return f"{name}<{', '.join(f['name'] + ' ' + _type(f.get('schema') or {}) for f in schema['fields'])}>"
    return f"{name}<{_type(schema['memberSchema'])}>" if schema.get("memberSchema") else name
