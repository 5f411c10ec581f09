"""Connectors as an operator works with them: what runs where and why not, made, checked, paused, deleted."""

import difflib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from venice import pipeline, sinks
from venice.connect import Connect, Connector, Plugin, Verdict, Worker
from venice.errors import InputError, UnreachableError, VeniceError
from venice.kafka import Kafka
from venice.masking import masked
from venice.pipeline.running import wait_running
from venice.postgres import Postgres
from venice.registry import Registry
from venice.topics import existing, owner

# a listing answers within three seconds, whichever worker is away
_LIMIT = 2.0
# how long the first row of a new table may take: a worker joins a consumer group, then writes
_ROWS_SECONDS = 60.0
_POLL_SECONDS = 0.5
# options with names of their own that no config definition lists
_FREE = ("producer.override.", "consumer.override.", "admin.override.", "hibernate.")
# a large table is not counted to its end
_COUNT = 'SELECT count(*) FROM (SELECT FROM :"table" LIMIT 1000) AS head;'

Report = Callable[[str], None]


# ---- what there is -------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One connector: where it and its tasks run. `failures`: each with its root cause."""

    name: str
    type: str
    plugin: str
    state: str
    host: str
    topics: list[str]
    tasks: list[dict[str, Any]]
    failures: list[str] = field(default_factory=list)

    @property
    def running(self) -> int:
        """Tasks that run, on a worker that answers."""
        return sum(task["running"] for task in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self) | {"running": self.state == "RUNNING" and bool(self.tasks) and self.running == len(self.tasks)}


@dataclass
class Overview:
    """All connectors, and all workers whether they answer or not."""

    workers: list[Worker]
    connectors: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "workers": [{"id": w.id, "host": w.host, "answers": not w.error, "error": w.error} for w in self.workers],
            "connectors": [row.to_dict() for row in self.connectors],
        }


@dataclass
class Progress:
    """How far a sink has read one partition; `lag` in records, None when Kafka does not tell."""

    topic: str
    partition: int
    offset: int
    lag: int | None


@dataclass
class Details:
    """One connector with its configuration (secrets masked) and how far it is.

    `progress` for sinks; `offsets` for sources, in the plugin's own form.
    """

    row: Row
    config: dict[str, str]
    progress: list[Progress]
    offsets: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return self.row.to_dict() | {
            "config": self.config,
            "progress": [asdict(item) for item in self.progress],
            "offsets": self.offsets,
        }


def overview(cluster: Any) -> Overview:
    """All connectors and workers. UnreachableError when no worker answers."""
    connect = Connect.of(cluster, _LIMIT)
    workers = connect.workers()
    return Overview(workers, [_row(connect, found, workers) for found in connect.connectors().values()])


def details(cluster: Any, name: str) -> Details:
    """One connector. InputError when there is none of this name."""
    connect = Connect.of(cluster)
    workers = connect.workers()
    connector = known(connect, name)
    offsets = connect.offsets(name)
    sink = connector.type == "sink"
    return Details(
        _row(connect, connector, workers),
        shown(connector.config),
        _progress(cluster, offsets) if sink else [],
        [] if sink else [{"partition": partition, "offset": offset} for partition, offset in offsets],
    )


def known(connect: Connect, name: str) -> Connector:
    """The connector of this name. InputError naming near ones when there is none."""
    there = connect.connectors()
    if name not in there:
        near = difflib.get_close_matches(name, there, 3) or sorted(there)
        raise InputError(f"no connector {name}", f"there is: {', '.join(near)}" if near else "there is none: `venice connectors new`")
    return there[name]


def shown(config: Mapping[str, str]) -> dict[str, str]:
    """A configuration fit to be shown, its keys in order."""
    return {key: masked(key, value) or "" for key, value in sorted(config.items())}


def _row(connect: Connect, connector: Connector, workers: list[Worker]) -> Row:
    away = {worker.id for worker in workers if worker.error}
    tasks = [asdict(task) | {"running": task.state == "RUNNING" and task.worker not in away} for task in connector.tasks]
    failures = []
    if connector.state == "FAILED":
        failures.append(f"{connector.name} on {connector.host or connector.worker}: {connector.cause}")
    for task in connector.tasks:
        where = f"{connector.name}, task {task.id} on {task.host or task.worker}"
        if task.state == "FAILED":
            failures.append(f"{where}: {task.cause}")
        elif task.state == "RUNNING" and task.worker in away:
            failures.append(f"{where}: that worker does not answer; Connect moves the task to another within half a minute")
    config = connector.config
    topics = [topic.strip() for topic in config.get("topics", "").split(",") if topic.strip()]
    plugin = config.get("connector.class", "").rpartition(".")[2]
    return Row(
        connector.name,
        connector.type,
        plugin,
        connector.state,
        connector.host or connector.worker,
        # a source, or a sink by a pattern, tells by what it has done
        topics or connect.topics(connector.name),
        tasks,
        failures,
    )


def _read(offsets: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[tuple[str, int], int]:
    """A sink's offsets by topic and partition."""
    return {(p["kafka_topic"], int(p["kafka_partition"])): int(o["kafka_offset"]) for p, o in offsets if o}


def _progress(cluster: Any, offsets: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Progress]:
    read = _read(offsets)
    ends: dict[tuple[str, int], tuple[int, int]] = {}
    with suppress(VeniceError):  # with the brokers away, how far it is can be told all the same
        ends = Kafka.of(cluster, _LIMIT).offsets(read, lenient=True)
    return [
        Progress(topic, id_, offset, max(0, ends[topic, id_][1] - offset) if (topic, id_) in ends else None)
        for (topic, id_), offset in sorted(read.items())
    ]


# ---- what is to be made --------------------------------------------------------------------------------------------


@dataclass
class Wanted:
    """A connector that is to be made. `document`: in the form of a pipeline's file, `${...}` not replaced yet.

    `source`: the file that it is from; `by_hand`: names of options that somebody typed; `sink`: what it is, for a table;
    `secret`: options that the plugin says are passwords, as far as that is known.
    """

    document: dict[str, Any]
    source: Path | None = None
    by_hand: tuple[str, ...] = ()
    sink: sinks.TableSink | None = None
    notes: list[str] = field(default_factory=list)
    secret: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The connector's name."""
        return self.document["name"]

    def set(self, settings: Mapping[str, str]) -> None:
        """Change options; these win. InputError for another name."""
        if settings.get("name", self.name) != self.name:
            raise InputError(f"--set name={settings['name']}: the connector is {self.name}", "the name stands before the options")
        self.document = {"name": self.name, "config": self.document["config"] | dict(settings)}
        self.by_hand += tuple(settings)


def wanted(cluster: Any, name: str, table: Mapping[str, str | None], file: Path | None, settings: Mapping[str, str]) -> Wanted | None:
    """What the options of `venice connectors new` ask for; None when they say nothing. InputError when they contradict.

    `table`: topic, table, mode, key and record_key of a sink to PostgreSQL.
    """
    given = [f"--{option.replace('_', '-')}" for option, value in table.items() if value]
    if given and file:
        raise InputError(f"--file and {given[0]}: a file says all of it", "give one of them; --set changes what the file says")
    if file:
        found = Wanted(document_from_file(file, name), file)
    elif table.get("topic"):
        key = tuple(part.strip() for part in (table.get("key") or "").split(",") if part.strip())
        found = for_table(
            cluster, table["topic"] or "", name, table.get("table") or "", table.get("mode") or "", key, table.get("record_key") or ""
        )
    elif given:
        raise InputError(f"{given[0]} without --topic", "--topic TOPIC names the topic whose records go to the table")
    elif settings:
        if not name or "connector.class" not in settings:
            raise InputError(
                "--set alone must name the connector and its plugin",
                "venice connectors new NAME --set connector.class=CLASS ...; `venice connectors plugins` lists the classes",
            )
        found = Wanted({"name": name, "config": {}})
    else:
        return None
    found.set(settings)
    return found


def for_table(
    cluster: Any, topic: str, name: str = "", table: str = "", mode: str = "", key: tuple[str, ...] = (), record_key: str = ""
) -> Wanted:
    """A sink of a topic to a PostgreSQL table. InputError for what can't work: asked are the topic, its schema and the table."""
    existing(Kafka.of(cluster), {topic})
    values = topic_values(cluster, topic)
    sink = sinks.table_sink(topic, values, name, table, mode, key, record_key)
    refuse_existing(Connect.of(cluster), sink.name)
    notes = [f"field {left} is left out: a table can't hold {why}" for left, why in (values.left_out if values else {}).items()]
    if values is None:
        notes.append(f"the registry has no subject {topic}-value: records that are not Avro with a registered schema go to dlq.{sink.name}")
    notes += check_table(cluster, sink)
    return Wanted(sink.document(), sink=sink, notes=notes)


def topic_values(cluster: Any, topic: str) -> sinks.Values | None:
    """What the registry knows of a topic's values; None when nothing. InputError when they can't become rows."""
    return sinks.values_of(topic, Registry.of(cluster).latest(f"{topic}-value"))


def topics(cluster: Any) -> list[str]:
    """Topics whose records may be wanted in a table: neither a service's own nor dead letter queues."""
    names = {part.topic for part in Kafka.of(cluster).partitions()}
    return sorted(name for name in names if not owner(name) and not name.startswith("dlq."))


def check_table(cluster: Any, sink: sinks.TableSink) -> list[str]:
    """What is to be known of the sink's table before it is written to, nothing of a new one.

    InputError when the table exists and the sink can't write to it.
    """
    postgres = Postgres.of(cluster)
    with postgres.host:
        found = postgres.query(
            "SELECT a.attname FROM pg_class c LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary"
            " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey)"
            " WHERE c.oid = to_regclass(:'table');",
            {"table": sink.table},
        )
    if not found:
        return []
    sinks.fits_table(sink, tuple(name for (name,) in found if name))
    return [f"table {sink.table} exists already: the records are added to what is in it"]


def document_from_file(file: Path, name: str = "") -> dict[str, Any]:
    """A connector file as it is written. InputError when it is no such file, or names another connector than `name`."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read ({getattr(error, 'strerror', '') or error})") from error
    pipeline.ConnectorFile(file, text).load(_Anything())
    document = json.loads(text)
    if name and name != document["name"]:
        raise InputError(f"{file} is of connector {document['name']}, not {name}", "leave the name out, or change it in the file")
    return document


class _Anything(dict):
    """Every variable: a file's form is checked before a cluster's variables are known."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return "1"


def parse_settings(texts: tuple[str, ...]) -> dict[str, str]:
    """`key=value` texts as a dict. InputError for one that is none."""
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise InputError(f"--set {key}: not in the form KEY=VALUE")
        found[key.strip()] = value
    return found


def resolve(cluster: Any, wanted: Wanted) -> dict[str, str]:
    """The configuration for Connect: `${...}` replaced, a sink with its dead letter queue."""
    if wanted.source:  # a wrong variable is named with its line in the file
        pipeline.ConnectorFile(wanted.source, wanted.source.read_text()).load(cluster.pipeline_vars)
    return pipeline.ConnectorFile(Path(f"connector {wanted.name}"), json.dumps(wanted.document)).load(cluster.pipeline_vars)[1]


def find_plugin(plugins: list[Plugin], text: str) -> Plugin:
    """The plugin of this class: with or without its package and the word Connector. InputError when it is not installed."""
    for plugin in plugins:
        if text in (plugin.name, plugin.short, plugin.short.removesuffix("Connector")):
            return plugin
    raise InputError(
        f"connector.class = {text}: no such plugin is installed",
        f"there is: {', '.join(plugin.short for plugin in plugins)}; others go into a folder below the workers' plugins folder",
    )


def problems(verdicts: list[Verdict]) -> dict[str, list[str]]:
    """What Connect says against a configuration: option -> messages, with the value in words of their own left out."""
    found: dict[str, list[str]] = {}
    for verdict in verdicts:
        messages = [_message(verdict, error) for error in verdict.errors]
        # "must be non-null" after "not a number" is the same once more
        messages = [m for m in messages if len(messages) == 1 or "must be non-null" not in m]
        if messages:
            found[verdict.option.name] = list(dict.fromkeys(messages))
    return found


def _message(verdict: Verdict, text: str) -> str:
    name = re.escape(verdict.option.name)
    text = re.sub(rf"^Invalid value .*? for configuration {name}: ", "", text, flags=re.DOTALL)
    return re.sub(rf"^The '{name}' value(?: '.*?')? is invalid: ", "", text, flags=re.DOTALL)


def check(cluster: Any, name: str, config: Mapping[str, str], by_hand: tuple[str, ...] = ()) -> set[str]:
    """InputError with option, value and reason for all that is wrong in a connector that is to be made; nothing is made.

    Returns the options that the plugin says are passwords. Asked are Connect's own validation, the existing connectors and the topics.
    `by_hand`: options that somebody typed; a name that is nearly another's is a mistake there, and Connect minds no unknown ones.
    """
    connect = Connect.of(cluster)
    refuse_existing(connect, name)
    plugin = find_plugin(connect.plugins(), config["connector.class"])
    verdicts = connect.validate(plugin.name, {**config, "name": name})
    secret = {verdict.option.name for verdict in verdicts if verdict.option.secret}
    lines = []
    for option, messages in problems(verdicts).items():
        value = "********" if option in secret and config.get(option) else masked(option, config.get(option))
        shown_value = "(not given)" if value is None else value
        lines += [f"{option} = {shown_value}: {message}" for message in messages]
    lines += misspelt(by_hand, [verdict.option.name for verdict in verdicts])
    if lines:
        raise InputError(
            f"connector {name} ({plugin.short}): nothing was created\n  " + "\n  ".join(lines),
            "correct it and run the command again",
        )
    wanted = {topic.strip() for topic in config.get("topics", "").split(",") if topic.strip()}
    if wanted and plugin.type == "sink":
        existing(Kafka.of(cluster), wanted)
    return secret


def misspelt(options: tuple[str, ...], known_options: list[str]) -> list[str]:
    """Options that are none of the known ones, nor below one, and nearly the name of one."""
    found = []
    for option in options:
        below = option.startswith((*_FREE, *(f"{name}." for name in known_options)))
        near = difflib.get_close_matches(option, known_options, 1, 0.8)
        if option not in known_options and not below and near:
            found.append(
                f"{option}: no such option; did you mean {near[0]}? (an option that the plugin does not list can go into a --file)"
            )
    return found


def refuse_existing(connect: Connect, name: str) -> None:
    """InputError when there is a connector of this name."""
    if connect.config(name) is not None:
        raise InputError(
            f"connector {name} exists already",
            f"`venice connectors show {name}` shows it. To change it, change its file and run `venice apply` (or `venice deploy`); "
            f"or delete it first: its table, topics and offsets stay",
        )


def plain_secrets(config: Mapping[str, str], secret: set[str] = frozenset()) -> list[str]:
    """Options that hold a password in plain text; `secret`: those that the plugin says are one."""
    return sorted(
        key for key, value in config.items() if value and (masked(key, value) != value or (key in secret and not value.startswith("${")))
    )


def save(document: Mapping[str, Any], file: Path, secret: set[str] = frozenset()) -> None:
    """Write a connector as a pipeline's file. InputError when it holds a password, or the file is there already."""
    if plain := plain_secrets(document["config"], secret):
        raise InputError(
            f"{file} was not written: {', '.join(plain)} would stand in it in plain text",
            "name it as ${file:/etc/kafka/secrets.properties:KEY}, which the workers resolve",
        )
    try:
        with file.open("x") as target:
            target.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except FileExistsError as error:
        raise InputError(f"{file} exists already", "name another file, or remove it") from error
    except OSError as error:
        raise InputError(f"{file}: can't be written ({error.strerror})") from error


# ---- what is done --------------------------------------------------------------------------------------------------


def create(cluster: Any, wanted: Wanted, save_to: Path | None = None, report: Report = lambda line: None) -> None:
    """Make the connector and return once each of its tasks runs, and a table has its first rows.

    InputError, and nothing made, when Connect or Venice find something wrong; VeniceError with the cause when a task fails: it stays then.
    """
    name, config = wanted.name, resolve(cluster, wanted)
    secret = check(cluster, name, config, wanted.by_hand)
    if save_to:
        save(wanted.document, save_to, secret)
        report(f"{save_to}: written; a pipeline takes it as it is (its `connectors:` list)")
    started = time.time()
    connect = Connect.of(cluster)
    dlq = pipeline.dead_letter_topic(config)
    if dlq:
        for topic in Kafka.of(cluster).ensure_topics([dlq], int(cluster.pipeline_vars["replication_factor"])):
            report(f"topic {topic}: created, for records that can't be written")
    connect.put(name, config)
    report(f"connector {name}: created")
    with _remedy(name):
        wait_running(cluster, connect, [name], started, report)
    if wanted.sink:
        report(wait_rows(cluster, wanted.sink))
        report(f"  look:         venice psql -c 'table {wanted.sink.table} limit 10'")
    if dlq:
        report(f"  bad records:  venice connectors dlq {name}")
    report(f"  how far:      venice connectors show {name}")


def wait_rows(cluster: Any, sink: sinks.TableSink) -> str:
    """Wait until the new sink's table has rows, when its topic has records: a sentence that says what is there.

    VeniceError with the cause when the connector fails instead: some records show only at the first write what is wrong.
    """
    kafka, connect, postgres = Kafka.of(cluster), Connect.of(cluster), Postgres.of(cluster)
    held = {
        place: end for place, (first, end) in kafka.offsets((p.topic, p.id) for p in kafka.partitions(sink.topic)).items() if end > first
    }
    if not held:
        return f"topic {sink.topic} is empty: the first record makes table {sink.table}"
    # a sink commits after ten seconds at the earliest: what is committed now is from an earlier one of its name
    if _all_read(connect, sink.name, held):
        return (
            f"an earlier connector {sink.name} has read all of topic {sink.topic}: this one adds what comes from now on. "
            f"To read it all again: venice groups reset connect-{sink.name} --to earliest"
        )
    deadline = time.monotonic() + _ROWS_SECONDS
    with postgres.host:
        while True:
            there = postgres.query("SELECT to_regclass(:'table') IS NOT NULL;", {"table": sink.table}) == [("t",)]
            if there and (count := int(postgres.query(_COUNT, {"table": sink.table})[0][0])):
                return f"table {sink.table} has {count}{' rows or more' if count == 1000 else ' row(s)'} and follows the topic"
            connector = connect.status(sink.name)
            if connector and connector.failure:
                with _remedy(sink.name):
                    raise VeniceError(connector.failure)
            if _all_read(connect, sink.name, held):
                return f"no record of topic {sink.topic} could be written: `venice connectors dlq {sink.name}` shows them and why"
            if time.monotonic() > deadline:
                return f"no row yet: `venice connectors show {sink.name}` tells how far it is, `dlq {sink.name}` what it can't write"
            time.sleep(_POLL_SECONDS)


def _all_read(connect: Connect, name: str, ends: Mapping[tuple[str, int], int]) -> bool:
    """True when the sink has committed these offsets."""
    read = _read(connect.offsets(name))
    return all(read.get(place, 0) >= end for place, end in ends.items())


@contextmanager
def _remedy(name: str) -> Iterator[None]:
    """Failures of a connector that exists say what to run next."""
    try:
        yield
    except UnreachableError:
        raise
    except VeniceError as error:
        error.remedy = (
            f"it stays, and its failed tasks are tried again: mend the cause, then `venice connectors restart {name}`; or "
            f"`venice connectors delete {name}` and make it anew. `venice logs connect --grep {name}` shows more"
        )
        raise


def left_behind(cluster: Any, name: str) -> list[str]:
    """What stays when this connector is deleted, and how to remove it. InputError when there is no such connector."""
    connector = known(Connect.of(cluster), name)
    config, lines = connector.config, []
    table = config.get("collection.name.format", "")
    if config.get("connector.class") == sinks.CLASS and table and "$" not in table:
        lines.append(f"its table stays, if it has made it; to remove it: venice psql -c 'drop table {table}'")
    if dlq := config.get("errors.deadletterqueue.topic.name"):
        lines.append(f"its dead letter queue stays; to remove it: venice topics delete {dlq}")
    lines.append("its offsets stay: a connector of the same name goes on where this one ended")
    if connector.type == "sink":
        lines.append(f"to let it begin again: venice groups delete connect-{name}")
    return lines


def delete(cluster: Any, name: str) -> None:
    """Delete a connector. What it wrote, its topics and its offsets stay."""
    connect = Connect.of(cluster)
    known(connect, name)
    connect.delete(name)


def pause(cluster: Any, name: str) -> None:
    """Pause a connector and its tasks."""
    connect = Connect.of(cluster)
    connector = known(connect, name)
    if connector.state == "FAILED":
        raise VeniceError(
            f"{connector.failure}",
            f"a connector that has failed does nothing that could be paused: `venice connectors restart {name}`",
        )
    connect.pause(name)


def resume(cluster: Any, name: str, report: Report = lambda line: None) -> None:
    """Let a paused or stopped connector run, and return once each of its tasks does."""
    started = time.time()
    connect = Connect.of(cluster)
    known(connect, name)
    connect.resume(name)
    with _remedy(name):
        wait_running(cluster, connect, [name], started, report)


def restart(cluster: Any, name: str, report: Report = lambda line: None) -> None:
    """Start a connector and all of its tasks anew, and return once they run. InputError when it is paused or stopped."""
    started = time.time()
    connect = Connect.of(cluster)
    connector = known(connect, name)
    if connector.state in ("PAUSED", "STOPPED"):
        raise InputError(f"connector {name} is {connector.state}", f"`venice connectors resume {name}` lets it run")
    if connector.state == "FAILED":
        connect.restart_failed(name)
    else:
        # not Connect's own restart: that answers before it has begun, and the old tasks' states would be taken for the new ones'
        try:
            connect.stop(name)
        finally:
            connect.resume(name)
    with _remedy(name):
        wait_running(cluster, connect, [name], started, report)
