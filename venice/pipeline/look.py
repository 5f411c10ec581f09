"""What the services hold of what some pipelines want: each service is asked once, all at the same time."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from venice.errors import InputError, VeniceError
from venice.pipeline import applied, engines
from venice.pipeline.model import Job, Pipeline, Producer, Schema
from venice.specs import Difference, TopicSpec

if TYPE_CHECKING:
    from venice.connect import Connector
    from venice.kafka import Kafka, Partition
    from venice.registry import Registry

_SECONDS = 8.0
REGISTRIES_THREADS = 8
# components whose instances pipelines describe
PROGRAMS = frozenset({"producer", "spark_job"})


@dataclass(frozen=True)
class Stored:
    """A connector as the pipeline wants it, and the file that says so."""

    file: Path
    text: str
    config: dict[str, str]


@dataclass(frozen=True)
class Wanted:
    """A pipeline with everything resolved against the inventory: variables replaced, dead letter topics added, engines chosen."""

    pipeline: Pipeline
    topics: tuple[TopicSpec, ...]
    sql: tuple[engines.Statements, ...]
    tables: Mapping[str, dict[str, Any]]
    connectors: Mapping[str, Stored]

    @classmethod
    def of(cls, cluster: Any, pipeline: Pipeline) -> "Wanted":
        """InputError naming file and line of what can't be resolved, or what the inventory has no component for."""
        from venice.pipeline import FILE, dead_letter_topic, replaced

        pipeline = pipeline.within(cluster.groups)
        variables = cluster.pipeline_vars
        connectors: dict[str, Stored] = {}
        for file in pipeline.connectors:
            name, config = file.load(variables)
            if name in connectors:
                raise InputError(f"{file.path}: connector {name} is already in {connectors[name].file}", "give each its own name")
            connectors[name] = Stored(file.path, file.text, config)
        topics = {topic.name: topic for topic in pipeline.topics}
        # Connect would make a dead letter topic only when the first bad record comes, with the brokers' retention
        for stored in connectors.values():
            if dlq := dead_letter_topic(stored.config):
                topics.setdefault(dlq.name, dlq)
        for needed, what, port in (
            (topics, "kafka", "client"),
            (pipeline.schemas, "schema_registry", "http"),
            (pipeline.tables, "pinot", "controller"),
            (connectors, "connect", "http"),
        ):
            if needed:
                cluster.required(what, port)
        for programs, kind, group in ((pipeline.producers, "producer", "producer"), (pipeline.jobs, "job", "spark")):
            if programs and not cluster.groups.get(group):
                raise InputError(
                    f"{pipeline.place(kind, programs[0].name)}: nothing can run {kind} {programs[0].name}: "
                    f"the group {group} of {cluster.inventory_dir} has no hosts",
                    f"add a host to the group {group}",
                )
        for program in (*pipeline.producers, *pipeline.jobs):
            for value in program.environment.values():
                replaced(value, variables, pipeline.folder / FILE, (pipeline.folder / FILE).read_text())
        tables = {table.name: table.load(variables) for table in pipeline.tables}
        return cls(pipeline, tuple(topics.values()), tuple(engines.statements(cluster, pipeline, variables)), tables, connectors)

    @property
    def resources(self) -> dict[str, list[str]]:
        """Names of all things by kind."""
        return {
            "topic": [topic.name for topic in self.topics],
            "schema": [schema.subject for schema in self.pipeline.schemas],
            "sql": [file.name for file in self.sql],
            "table": list(self.tables),
            "connector": list(self.connectors),
            "producer": [producer.name for producer in self.pipeline.producers],
            "job": [job.name for job in self.pipeline.jobs],
        }


@dataclass(frozen=True)
class Subject:
    """A subject: its latest version (None: there is none), whether the wanted schema is one of its versions, its own level."""

    latest: int | None
    has_it: bool
    level: str | None


class Look:
    """Answers of the services. Those that failed raise their error where they are needed, not before."""

    def __init__(self, cluster: Any, wanted: Iterable[Wanted], containers: bool = True):
        """`containers`: whether producers' containers are looked at, too; a deployment's playbook does that itself."""
        self.cluster = cluster
        self.containers = containers
        self.wanted = list(wanted)
        with ThreadPoolExecutor(6) as pool:
            self._topics = pool.submit(self._look_at_topics)
            self._subjects = pool.submit(self._look_at_subjects)
            self._tables = pool.submit(self._look_at_tables)
            self._connectors = pool.submit(self._look_at_connectors)
            files: dict[str, list[engines.Statements]] = {}
            for file in (file for w in self.wanted for file in w.sql):
                files.setdefault(file.engine, []).append(file)
            self._sql = {engine: pool.submit(engines.ENGINES[engine].differences, cluster, found) for engine, found in files.items()}
            self._programs = pool.submit(self._look_at_programs)
            self._applied = pool.submit(self._look_at_applied)

    @property
    def topics(self) -> dict[str, tuple[list["Partition"], dict[str, str]]]:
        """Topics of the cluster: partitions, and configuration of those that are wanted."""
        return self._topics.result()

    @property
    def subjects(self) -> dict[str, Subject]:
        """Wanted subjects, by pipeline and subject."""
        return self._subjects.result()

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """Wanted tables that Pinot has, as it reads them (defaults filled in)."""
        return self._tables.result()

    @property
    def connectors(self) -> dict[str, "Connector"]:
        """All connectors."""
        return self._connectors.result()

    def sql(self, file: engines.Statements) -> tuple[Difference, ...]:
        """What is not as the file says."""
        return self._sql[file.engine].result().get((file.pipeline, file.name), ())

    @property
    def programs(self) -> dict[str, dict[str, Any]]:
        """The containers of the cluster's producers and jobs by name (`docker inspect`), with `host`."""
        return self._programs.result()

    @property
    def applied(self) -> dict[str, applied.Applied]:
        """What was applied before, by pipeline."""
        return self._applied.result()

    # ---- the questions

    def _look_at_topics(self):
        from venice.kafka import Kafka

        if not self.cluster.groups.get("kafka"):
            return {}
        kafka = Kafka.of(self.cluster)
        parts: dict[str, list[Any]] = {}
        for part in kafka.partitions():
            parts.setdefault(part.topic, []).append(part)
        config = kafka.topic_config(sorted({topic.name for w in self.wanted for topic in w.topics} & parts.keys()))
        return {name: (found, config.get(name, {})) for name, found in parts.items()}

    def _look_at_subjects(self):
        schemas = [(w.pipeline.name, schema) for w in self.wanted for schema in w.pipeline.schemas]
        if not schemas:
            return {}
        from venice.registry import Registry

        registry = Registry.of(self.cluster)
        with ThreadPoolExecutor(REGISTRIES_THREADS) as pool:
            answers: list[Future[Subject]] = [pool.submit(subject, registry, schema) for _, schema in schemas]
            return {(pipeline, schema.subject): answer.result() for (pipeline, schema), answer in zip(schemas, answers, strict=True)}

    def _look_at_tables(self):
        names = {name for w in self.wanted for name in w.tables}
        if not names:
            return {}
        from venice.pinot import Pinot

        pinot = Pinot.of(self.cluster)
        return {name: pinot.validated(pinot.table(name)) for name in names.intersection(pinot.tables())}

    def _look_at_connectors(self):
        if not self.cluster.groups.get("connect"):
            return {}
        from venice.connect import Connect

        return Connect.of(self.cluster).connectors()

    def _look_at_programs(self):
        hosts = [host for host in self.cluster.hosts.values() if not PROGRAMS.isdisjoint(host.components)]
        if not hosts or not self.containers:
            return {}
        from venice.hosts import over

        answers = over(hosts, self._containers, timeout=_SECONDS)
        for answer in answers.values():
            if isinstance(answer, VeniceError):
                raise answer
        return {name: found for answer in answers.values() for name, found in answer.items()}

    def _containers(self, host):
        with host.asking():
            api = host.docker.api
            found = api.containers(all=True, filters={"label": [f"venice.cluster={self.cluster.name}", "venice.component"]})
            found = [c for c in found if c["Labels"]["venice.component"] in PROGRAMS]
            return {c["Names"][0].lstrip("/"): api.inspect_container(c["Id"]) | {"host": host.name} for c in found}

    def _look_at_applied(self):
        if not self.cluster.groups.get("kafka"):
            return {}
        from venice.kafka import Kafka

        return applied.read(Kafka.of(self.cluster))


def subject(registry: "Registry", schema: Schema) -> Subject:
    """What the registry has of a schema's subject."""
    latest = registry.latest(schema.subject)
    if latest is None:
        return Subject(None, False, None)
    # an older version stays registered: a registry can't make it the latest again, and who reads it needs nothing new
    has_it = registry.version_of(schema.subject, schema.text, schema.type) is not None
    return Subject(latest["version"], has_it, registry.compatibility(schema.subject))


def topic_differences(look: Look, spec: TopicSpec) -> list[Difference]:
    """What differs at a topic. InputError for what Kafka can't change."""
    from venice.kafka import topic_differences as differences

    partitions, config = look.topics.get(spec.name, (None, {}))
    return differences(spec, partitions, config, int(look.cluster.pipeline_vars["replication_factor"]))


def program_differences(look: Look, program: Producer | Job) -> tuple[str, tuple[Difference, ...]]:
    """`create` or `update`, and what differs at the container of a producer or a job; none when nothing does."""
    [instance] = [i for i in look.cluster.instances() if i.component in PROGRAMS and i.name == program.instance]
    [wanted] = [c for c in look.cluster.desired(instance.host)["containers"] if c["name"] == instance.container]
    found = look.programs.get(instance.container)
    if found is None:
        return "create", (Difference("host", None, instance.host), Difference("image", None, wanted["image"]))
    now = {
        "host": found["host"],
        "image": found["Config"]["Image"],
        "program": found["Config"]["Labels"].get("venice.program", ""),
        "state": "running" if found["State"]["Status"] == "restarting" else found["State"]["Status"],
    }
    desired = {"host": instance.host, "image": wanted["image"], "program": wanted["labels"]["venice.program"], "state": "running"}
    return "update", tuple(Difference(key, now[key], desired[key]) for key in now if now[key] != desired[key])


def kafka_of(cluster: Any) -> "Kafka":
    """The cluster's brokers."""
    from venice.kafka import Kafka

    return Kafka.of(cluster)
