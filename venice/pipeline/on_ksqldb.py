"""Files of statements on ksqlDB: what each statement made is remembered, so that a file can be changed and taken back.

ksqlDB has no transactions, and answers what it was told in words of its own. So each statement's text is remembered beside what it
made. Of a file that changed, what the first changed statement and those after it made is dropped, backwards, and they are run
again: a later one may read from an earlier one, and ksqlDB drops nothing that is read. Only CREATE OR REPLACE changes what it made
in its place. Topics and their records stay.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from venice.errors import InputError, UnreachableError, VeniceError
from venice.ksqldb import bare
from venice.pipeline import applied
from venice.specs import Difference, TopicSpec

if TYPE_CHECKING:
    from venice.ksqldb import KsqlDb
    from venice.pipeline.engines import Statements

TOPIC = TopicSpec("venice.ksqldb", 1, None, {"cleanup.policy": "compact", "retention.ms": "-1"})
# a deployment waits for the component itself; a server that was just restarted answers 503 for some seconds
_ASK_SECONDS = 15.0
_READY_SECONDS = 120.0
_NAME = r'(`(?:[^`]|``)+`|"(?:[^"]|"")+"|\w+)'
_CREATE = re.compile(rf"CREATE\s+(OR\s+REPLACE\s+)?(?:SOURCE\s+)?(STREAM|TABLE)\s+(?:IF\s+NOT\s+EXISTS\s+)?{_NAME}", re.IGNORECASE)


@dataclass(frozen=True)
class Done:
    """One statement that was run: its text's digest, what it made (`stream`, `table`, `query` or nothing), and its query.

    The digest is empty when nobody knows whether it was done.
    """

    sha256: str
    kind: str = ""
    name: str = ""
    query: str = ""

    def __str__(self) -> str:
        """`stream PAID`, `query INSERTQUERY_3`."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Remembered:
    """A file as it was applied; `sha256` is empty when a statement failed, so that it is not all there."""

    sha256: str
    statements: tuple[Done, ...] = ()

    @property
    def made(self) -> list[Done]:
        """What there is to drop, in the order of the file."""
        return [done for done in self.statements if done.kind]


class OnKsqlDb:
    """Statements on ksqlDB, one after the other; remembered in a compacted topic of the cluster."""

    component = "ksqldb"
    stream = True

    def differences(self, cluster: Any, files: Sequence["Statements"]) -> dict[tuple[str, str], tuple[Difference, ...]]:
        """Files that are new or changed, and what is no longer there of those that are not."""
        remembered = _remembered(cluster)
        server = _server(cluster, _ASK_SECONDS)
        there = existing(server)
        found = {}
        for file in files:
            wanted = _statements(file)
            before = remembered.get((file.pipeline, file.name))
            differences = []
            if before is None or before.sha256 != file.sha256:
                differences.append(Difference("text", before and (before.sha256[:12] or "unfinished"), file.sha256[:12]))
            differences += _lost(before or Remembered(""), wanted, there)
            if differences:
                found[file.pipeline, file.name] = tuple(differences)
        return found

    def apply(self, cluster: Any, file: "Statements") -> Sequence[str]:
        """Drop what changed and run it anew; says what was dropped and what the server warns of."""
        server = _server(cluster, _READY_SECONDS)
        before = _remembered(cluster).get((file.pipeline, file.name)) or Remembered("")
        there = existing(server)
        wanted = _statements(file)
        course = _course(before, wanted, there)
        remarks = []
        done = list(before.statements)

        def remember(sha256: str = "") -> None:
            _remember(cluster, file.pipeline, file.name, Remembered(sha256, tuple(done)))

        try:
            while len(done) > len(course):
                remarks += drop(server, done[-1], there)
                there.discard((done[-1].kind, done[-1].name))
                done.pop()
            for n, (statement, properties) in enumerate(wanted):
                if n < len(course) and course[n] == "keep":
                    continue
                earlier = done[n : n + 1]
                if (maybe := creates(statement.text))[0] and maybe not in there:
                    # before it is sent: whatever dies then, the next apply finds there what nobody else had made, and makes it anew
                    done[n : n + 1] = [Done("", *maybe)]
                    remember()
                try:
                    made, said = _run(server, file, statement, properties)
                except UnreachableError as error:
                    if not maybe[0]:
                        error.remedy += "; `venice ksql -e 'SHOW QUERIES;'` tells whether it was: applied again, it would run twice"
                    raise
                except VeniceError:
                    done[n : n + 1] = earlier  # refused: nothing was made
                    raise
                done[n : n + 1] = [made]
                remarks += said
        except BaseException:
            # what was made until then is there; where it can't be kept now, it was before this statement
            with suppress(VeniceError):
                remember()
            raise
        remember(file.sha256)
        return remarks

    def made(self, cluster: Any, pipeline: str, name: str) -> Sequence[str]:
        """What the file made and is there to be dropped."""
        before = _remembered(cluster).get((pipeline, name))
        return [str(done) for done in reversed(before.made)] if before else ()

    def forget(self, cluster: Any, pipeline: str, name: str) -> None:
        """Terminate and drop what the file made, the last first, and forget it."""
        before = _remembered(cluster).get((pipeline, name))
        if before is None:
            return
        server = _server(cluster, _READY_SECONDS)
        there = existing(server)
        left = list(before.statements)
        try:
            while left:
                drop(server, left[-1], there)
                left.pop()
        finally:
            _remember(cluster, pipeline, name, Remembered("", tuple(left)) if left else None)


def existing(server: "KsqlDb") -> set[tuple[str, str]]:
    """Streams, tables and persistent queries that there are, as (kind, name)."""
    found = set()
    for what, key, kind in (("STREAMS", "streams", "stream"), ("TABLES", "tables", "table")):
        found |= {(kind, item["name"]) for item in server.execute(f"SHOW {what};").entity[key]}
    return found | {("query", item["id"]) for item in server.execute("SHOW QUERIES;").entity["queries"]}


def drop(server: "KsqlDb", done: Done, there: Iterable[tuple[str, str]]) -> list[str]:
    """Take back what a statement made, if it is there: what was done. A stream's or table's own query ends with it; its topic stays."""
    if not done.kind or (done.kind, done.name) not in there:
        return []
    if done.kind == "query":
        server.execute(f"TERMINATE {done.name};")
        return [f"terminated {done.name}"]
    server.execute(f"DROP {done.kind.upper()} IF EXISTS `{done.name.replace('`', '``')}`;")
    return [f"dropped {done}"]


def _run(server: "KsqlDb", file: "Statements", statement: Any, properties: Mapping[str, str]) -> tuple[Done, list[str]]:
    """Run one statement: what to remember of it, and the server's warnings."""
    kind, name = creates(statement.text)
    try:
        answer = server.execute(statement.text, properties)
    except VeniceError as error:
        raise type(error)(_placed(file, statement.line, error.message), error.remedy, error.exit_code) from error
    said = [f"{file.file}:{statement.line}: {warning}" for warning in answer.warnings]
    if answer.kind == "warning_entity":
        # it was there before, and whoever made it keeps it
        return Done(digest(statement.text, properties)), [*said, f"{file.file}:{statement.line}: {answer.message}"]
    query = str((answer.entity.get("commandStatus") or {}).get("queryId") or "")
    if not kind and query:
        kind, name = "query", query
    return Done(digest(statement.text, properties), kind, name, query), said


def creates(text: str) -> tuple[str, str]:
    """Kind and name of what a CREATE statement makes, as ksqlDB calls it; empty for other statements."""
    match = _CREATE.match(bare(text))
    if not match:
        return "", ""
    kind, name = match[2].lower(), match[3]
    return (kind, name[1:-1].replace(name[0] * 2, name[0])) if name[0] in '`"' else (kind, name.upper())


def digest(text: str, properties: Mapping[str, str]) -> str:
    """What tells a statement, and the properties that held for it, from another; comments and the layout don't matter."""
    return hashlib.sha256(json.dumps([bare(text), sorted(properties.items())]).encode()).hexdigest()


def _statements(file: "Statements") -> list[tuple[Any, dict[str, str]]]:
    """The file's statements with the properties that hold for each. InputError with the line for what is not for a pipeline."""
    from venice import ksqldb

    found, properties = [], {}
    for statement in ksqldb.split(file.text, str(file.file)):
        if (change := ksqldb.property_of(statement)) is not None:
            properties = change(properties)
            continue
        if statement.is_query or re.match(r"(PRINT|SHOW|LIST|DESCRIBE|EXPLAIN)\b", statement.words):
            what = statement.words.split()[0]
            raise InputError(f"{file.file}:{statement.line}: {what} makes nothing, a pipeline's file does", "`venice ksql` shows things")
        found.append((statement, properties))
    return found


def _course(before: Remembered, wanted: Sequence[tuple[Any, dict[str, str]]], there: Iterable[tuple[str, str]]) -> list[str]:
    """For the statements at the beginning, `keep` or `replace` (in its place); from where it ends on, drop and run again."""
    course = []
    for done, (statement, properties) in zip(before.statements, wanted, strict=False):
        match = _CREATE.match(bare(statement.text))
        if done.kind and not _alive(done, there):
            break
        if (made := creates(statement.text))[0] and made not in there:
            break  # somebody else's, that IF NOT EXISTS had left as it was
        if done.sha256 == digest(statement.text, properties):
            course.append("keep")
        elif match and match[1] and made == (done.kind, done.name):
            course.append("replace")
        else:
            break
    return course


def _lost(before: Remembered, wanted: Sequence[tuple[Any, dict[str, str]]], there: Iterable[tuple[str, str]]) -> list[Difference]:
    """What is not there any more, and what would be dropped or replaced."""
    course = _course(before, wanted, there)
    again = {creates(statement.text) for statement, _ in wanted}
    found = []
    for place, done in enumerate(before.statements):
        if done.kind and not _alive(done, there):
            found.append(Difference(str(done), "missing", "there" if (done.kind, done.name) in again or done.kind == "query" else ""))
        elif done.kind and place >= len(course):
            found.append(Difference(str(done), "there", "dropped, made again" if (done.kind, done.name) in again else "dropped"))
        elif course[place : place + 1] == ["replace"]:
            found.append(Difference(str(done), "there", "replaced"))
    return found


def _alive(done: Done, there: Iterable[tuple[str, str]]) -> bool:
    """Whether what a statement made is there; and its query, which somebody may have terminated."""
    return (done.kind, done.name) in there and (not done.query or ("query", done.query) in there)


def _placed(file: "Statements", line: int, message: str) -> str:
    """The server's complaint with the file's line; where it names one of the statement's lines, that one."""
    if match := re.match(r"ksqlDB: line (\d+):\d+: ", message):
        return f"{file.file}:{line + int(match[1]) - 1}: ksqlDB: {message[match.end() :]}"
    return f"{file.file}:{line}: {message}"


def _server(cluster: Any, seconds: float) -> "KsqlDb":
    """ksqlDB, once it takes statements; UnreachableError when it does not in time."""
    from venice.ksqldb import KsqlDb

    server = KsqlDb.of(cluster)
    server.wait_ready(seconds)
    return server


def _kafka(cluster: Any):
    from venice.kafka import Kafka

    return Kafka.of(cluster)


def _remembered(cluster: Any) -> dict[tuple[str, str], Remembered]:
    found = {}
    for key, value in applied.latest(_kafka(cluster), TOPIC.name).items():
        try:
            said = json.loads(value)
            pipeline, name = key.split("/", 1)
            found[pipeline, name] = Remembered(said["sha256"], tuple(Done(**done) for done in said["statements"]))
        except (ValueError, KeyError, TypeError):
            continue  # nobody of Venice's has written it
    return found


def _remember(cluster: Any, pipeline: str, name: str, what: Remembered | None) -> None:
    value = json.dumps(asdict(what)).encode() if what else None
    applied.keep(_kafka(cluster), TOPIC, f"{pipeline}/{name}", value, int(cluster.pipeline_vars["replication_factor"]))
