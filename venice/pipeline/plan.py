"""What it takes to make a cluster what pipelines say: compared and checked before anything is changed, then carried out in order.

Order: topics, schemas, SQL, tables, connectors; producers and jobs are containers, so Ansible makes them (`Plan.programs`). What `prune`
removes goes last, when the programs are gone.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from venice import __version__
from venice.errors import InputError, VeniceError
from venice.masking import masked
from venice.pipeline.applied import KINDS, Applied, write
from venice.pipeline.connectors import config_differences, line_with
from venice.pipeline.engines import ENGINES, Statements, forget, made
from venice.pipeline.files import digest, load
from venice.pipeline.look import Look, Stored, Wanted, kafka_of, program_differences, topic_differences
from venice.pipeline.model import Change, Pipeline, Schema
from venice.pipeline.tables import TableFiles, unknown
from venice.specs import Difference, TopicSpec

Report = Callable[[str], None]
PROGRAM_KINDS = ("producer", "job")
_REMOVALS = ("connector", "producer", "job", "table", "schema", "topic", "sql")
_REMOVED = {"topic": "is removed with all its records", "table": "is removed with all its rows", "sql": "is forgotten; what it did stays"}
_MIXING = "records of one key are then in order only before and only after it"


@dataclass(frozen=True)
class Step:
    """One change and how it is made. `first`: to be made before all others, so that its refusal leaves all as it was."""

    change: Change
    place: str
    act: Callable[[], Iterable[str] | None]
    first: bool = False

    def run(self, folder: Path) -> Iterable[str]:
        """Make the change: remarks for a person. A failure names the file (of `folder`) and line that want it."""
        try:
            return self.act() or ()
        except VeniceError as error:
            if not error.message.startswith(f"{folder}/"):
                error.message = f"{self.place}: {error.message}"
            raise


@dataclass
class Plan:
    """What one pipeline needs. `left`: what an earlier apply made and the folder no longer has, as (kind, name).

    `unsettled`: connectors that are as wanted and do not run, though none has failed: their tasks move, or their states are lost.
    """

    pipeline: Pipeline
    wanted: Wanted
    digest: str
    before: Applied | None
    steps: list[Step] = field(default_factory=list)
    programs: list[Change] = field(default_factory=list)
    removals: list[Step] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)

    @property
    def changes(self) -> list[Change]:
        """All changes, in the order in which they are made."""
        return [step.change for step in self.steps] + self.programs + [step.change for step in self.removals]

    @property
    def removed(self) -> set[tuple[str, str]]:
        """What is to be removed, as (kind, name)."""
        return {(step.change.kind, step.change.name) for step in self.removals}

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        return {
            "name": self.pipeline.name,
            "folder": str(self.pipeline.folder),
            "changes": [change.to_dict() for change in self.changes],
            "left": [{"kind": kind, "name": name} for kind, name in self.left],
        }


class Plans:
    """The plans of some pipelines on one cluster."""

    def __init__(self, cluster: Any, plans: list[Plan]):
        self.cluster = cluster
        self.all = plans

    @property
    def changes(self) -> list[Change]:
        """All changes of all pipelines."""
        return [change for plan in self.all for change in plan.changes]

    @property
    def questions(self) -> list[str]:
        """What a person has to agree to first."""
        return [question for plan in self.all for question in plan.questions]

    @property
    def with_programs(self) -> list[str]:
        """Pipelines whose containers have to be made, changed or removed."""
        return [p.pipeline.name for p in self.all if p.programs or any(kind in PROGRAM_KINDS for kind, _ in p.removed)]

    def apply(self, report: Report = lambda line: None) -> None:
        """Make all changes but those of producers and jobs, and the removals, and wait until each connector and every task of theirs runs.

        VeniceError names the pipeline, file and line; what was made until then stays, what comes after was not begun.
        """
        began = time.time()
        for plan in self.all:
            for step in sorted(plan.steps, key=lambda step: not step.first):
                remarks = step.run(plan.pipeline.folder)
                report(str(step.change))
                for remark in remarks:
                    report(f"    {remark}")
            try:
                self._running(plan, began, report)
            except VeniceError as error:
                error.message = f"pipeline {plan.pipeline.name}: {error.message}"
                raise

    def remove(self, report: Report = lambda line: None) -> None:
        """Remove what is to go; the producers are gone by then, so that nobody writes to what is removed."""
        for plan in self.all:
            for step in plan.removals:
                step.run(plan.pipeline.folder)
                report(str(step.change))

    def _running(self, plan: Plan, since: float, report: Report) -> None:
        changed = any(step.change.kind == "connector" for step in plan.steps)
        names = list(plan.wanted.connectors) if changed else plan.unsettled
        if not names:
            return
        from venice.connect import Connect
        from venice.pipeline.running import wait_running

        wait_running(self.cluster, Connect.of(self.cluster), names, since, report)

    def record(self, by: str, removed: bool = False) -> None:
        """Keep in the cluster what was applied, where it is new; nowhere when the inventory has no Kafka.

        `removed`: whether what is to go is gone.
        """
        if not self.cluster.groups.get("kafka"):
            return
        replication = int(self.cluster.pipeline_vars["replication_factor"])
        for plan in self.all:
            resources = {kind: list(plan.wanted.resources[kind]) for kind in KINDS}
            for kind, name in plan.left:
                if not removed or (kind, name) not in plan.removed:
                    resources[kind].append(name)
            before = plan.before
            if before and before.digest == plan.digest and before.resources == resources and not plan.changes:
                continue
            at = datetime.now(UTC).isoformat(timespec="seconds")
            record = Applied(plan.pipeline.name, at, by, __version__, plan.digest, resources)
            write(kafka_of(self.cluster), record, replication)


def prepare(cluster: Any, folders: Iterable[Path], wait: float = 0.0, prune: bool = False, containers: bool = True) -> Plans:
    """Read, compare and check pipelines, their producers' containers, too, with `containers`. Nothing is changed.

    `wait`: seconds that Kafka Connect may take to answer. InputError names file and line of what is wrong in the files, can't
    be changed (fewer partitions), is incompatible (schemas) or refused by Connect's validation; UnreachableError when a service
    does not answer.
    """
    pipelines = [load(folder) for folder in folders]
    wanted = [Wanted.of(cluster, pipeline) for pipeline in pipelines]
    if wait and any(w.connectors for w in wanted):
        from venice.connect import Connect

        Connect.of(cluster).wait_ready(wait)
    look = Look(cluster, wanted, containers)
    return Plans(cluster, [Planner(cluster, look, w).plan(prune) for w in wanted])


class Planner:
    """Compares one pipeline with what is there."""

    def __init__(self, cluster: Any, look: Look, wanted: Wanted):
        self.cluster = cluster
        self.look = look
        self.wanted = wanted
        self.pipeline = wanted.pipeline

    def plan(self, prune: bool = False, verify: bool = True) -> Plan:
        """What it needs. With `verify`, schemas and connectors that change are checked by registry and Connect."""
        plan = Plan(self.pipeline, self.wanted, digest(self.pipeline.folder), self.look.applied.get(self.pipeline.name))
        for topic in self.wanted.topics:
            self._topic(plan, topic)
        for schema in self.pipeline.schemas:
            self._schema(plan, schema, verify)
        for file in self.wanted.sql:
            self._sql(plan, file)
        for files in self.pipeline.tables:
            self._table(plan, files)
        for name, stored in self.wanted.connectors.items():
            self._connector(plan, name, stored, verify)
        for kind, programs in (("producer", self.pipeline.producers), ("job", self.pipeline.jobs)):
            for program in programs if self.look.containers else ():
                action, differences = program_differences(self.look, program)
                if differences:
                    plan.programs.append(Change(kind, program.name, action, differences))
        plan.left = self._left(plan.before)
        if prune:
            self._prune(plan)
        return plan

    def _step(self, plan: Plan, change: Change, act: Callable[[], Iterable[str] | None], first: bool = False) -> None:
        plan.steps.append(Step(change, self.pipeline.place(change.kind, change.name), act, first))

    # ---- topics

    def _topic(self, plan: Plan, topic: TopicSpec) -> None:
        try:
            differences = topic_differences(self.look, topic)
        except InputError as error:
            key = "replication" if "replicas" in error.message else "partitions"
            raise InputError(f"{self.pipeline.place('topic', topic.name, key)}: {error.message}", error.remedy) from error
        if not differences:
            return
        new = topic.name not in self.look.topics
        for wider in differences:
            if wider.field == "partitions" and not new:
                plan.questions.append(
                    f"{self.pipeline.place('topic', topic.name, 'partitions')}: topic {topic.name} gets {wider.desired} partitions instead "
                    f"of {wider.current}: keys move to other partitions, {_MIXING}; it can't be undone"
                )
        shown = tuple(Difference(_TOPIC_FIELDS.get(d.field, d.field), _time(d, d.current), _time(d, d.desired)) for d in differences)
        replication = int(self.cluster.pipeline_vars["replication_factor"])
        change = Change("topic", topic.name, "create" if new else "update", shown)
        self._step(plan, change, lambda: kafka_of(self.cluster).ensure_topics([topic], replication) and None)

    # ---- schemas

    def _schema(self, plan: Plan, schema: Schema, verify: bool) -> None:
        now = self.look.subjects[self.pipeline.name, schema.subject]
        differences = []
        if not now.has_it:
            desired = f"version {now.latest + 1}" if now.latest else "version 1"
            differences.append(Difference("schema", f"version {now.latest}" if now.latest else None, desired))
        level = schema.compatibility if schema.compatibility != now.level else None
        if level:
            differences.append(Difference("compatibility", now.level, level))
        if not differences:
            return
        # the registry judges by the level that the subject has: where that changes, too, it is asked when it has changed
        judged_now = verify and now.latest and not now.has_it and not level
        if judged_now and (reasons := self._registry().check(schema.subject, schema.text, schema.type)):
            raise InputError(_incompatible(schema, now.level, reasons), "or take another subject, or another compatibility")
        judged_later = bool(now.latest and not now.has_it and level)
        change = Change("schema", schema.subject, "update" if now.latest else "create", tuple(differences))
        self._step(plan, change, lambda: self._register(schema, now.has_it, level, now.level), judged_later)

    def _registry(self):
        from venice.registry import Registry

        return Registry.of(self.cluster)

    def _register(self, schema: Schema, has_it: bool, level: str | None, before: str | None) -> None:
        registry = self._registry()
        there = registry.latest(schema.subject) is not None
        if level and there:
            registry.set_compatibility(schema.subject, level)
        if not has_it:
            try:
                registry.register(schema.subject, schema.text, schema.type)
            except VeniceError as error:
                if level and there:
                    registry.set_compatibility(schema.subject, before or registry.default_compatibility())
                reasons = getattr(error, "reasons", None)
                raise InputError(
                    _incompatible(schema, level, reasons) if reasons else f"{schema.file}: {error.message}", error.remedy
                ) from error
        if level and not there:  # the subject is there only now
            registry.set_compatibility(schema.subject, level)

    # ---- SQL

    def _sql(self, plan: Plan, file: Statements) -> None:
        differences = self.look.sql(file)
        if not differences:
            return
        action = "update" if differences[0].current else "create"
        moved = action == "create" and plan.before is not None and file.name in plan.before.resources.get("sql", ())
        if moved and (elsewhere := made(self.cluster, self.pipeline.name, file.name, but=file.engine)):
            place = self.pipeline.place("sql", file.name)
            plan.questions.append(f"{place}: {file.name} runs on {file.engine} now: {', '.join(elsewhere)} is dropped; topics stay")

        def act() -> Iterable[str] | None:
            if moved:  # before it writes here, too
                forget(self.cluster, self.pipeline.name, file.name, but=file.engine)
            return ENGINES[file.engine].apply(self.cluster, file)

        self._step(plan, Change("sql", file.name, action, differences), act)

    # ---- Pinot's tables

    def _pinot(self):
        from venice.pinot import Pinot

        return Pinot.of(self.cluster)

    def _table(self, plan: Plan, files: TableFiles) -> None:
        """Compared as Pinot reads both; that it reads it is the check, too."""
        from venice.pinot import flattened

        given, pinot = self.wanted.tables[files.name], self._pinot()
        try:
            desired = pinot.validated(given)
        except InputError as error:
            raise InputError(f"{files.table} with {files.schema}: {error.message}", error.remedy or "correct the files") from error
        if ignored := unknown(given, desired):
            raise InputError(f"{files.place(ignored)}: Pinot knows no {ignored.partition('.')[2]}", "correct its name, or leave it out")
        now = self.look.tables.get(files.name)
        current, wanted = flattened(now or {}), flattened(desired)
        differences = [
            Difference(path.partition(".")[2] or path, masked(path, current.get(path)), masked(path, wanted.get(path)))
            for path in sorted(current.keys() | wanted.keys())
            # tenants that are not given are Pinot's own
            if current.get(path) != wanted.get(path) and (path in wanted or ".tenants." not in path)
        ]
        idle = now and "realtime" in given and pinot.idle(files.name)
        if idle:
            differences.append(Difference("state", f"does not consume {', '.join(idle)}", "CONSUMING"))
        if differences:
            change = Change("table", files.name, "update" if now else "create", tuple(differences))
            self._step(plan, change, lambda: self._put_table(given, now is not None, bool(idle)))

    def _put_table(self, table: dict[str, Any], there: bool, idle: bool) -> None:
        pinot, name = self._pinot(), table["tableName"]
        pinot.update(table) if there else pinot.create(table)
        if idle:
            pinot.restart(name)
        if "realtime" in table:
            pinot.wait_consuming(name)

    # ---- connectors

    def _connector(self, plan: Plan, name: str, stored: Stored, verify: bool) -> None:
        from venice.connect import Connect

        found = self.look.connectors.get(name)
        differences = config_differences(found.config if found else None, stored.config)
        if verify and differences:
            self._validate(Connect.of(self.cluster), name, stored)
        # a connector that has failed, or that somebody paused, is started again: its pipeline says that it runs
        if found and (found.failure or found.state in ("PAUSED", "STOPPED")):
            differences = (*differences, Difference("state", "FAILED" if found.failure else found.state, "RUNNING"))
        if not differences:
            if not found.running:
                plan.unsettled.append(name)
            return
        change = Change("connector", name, "update" if found else "create", differences)
        line = line_with(stored.text, json.dumps(differences[0].field)) if found else 1
        plan.steps.append(Step(change, f"{stored.file}:{line}", lambda: self._put_connector(name, stored, bool(found))))

    def _put_connector(self, name: str, stored: Stored, there: bool) -> None:
        from venice.connect import Connect
        from venice.pipeline.running import restart_with

        connect = Connect.of(self.cluster)
        restart_with(connect, name, stored.config) if there else connect.put(name, stored.config)

    def _validate(self, connect: Any, name: str, stored: Stored) -> None:
        """InputError with the line of each option that Connect refuses."""
        plugin = stored.config["connector.class"]
        known = [installed.name for installed in connect.plugins()]
        if plugin not in known and plugin not in {name.rpartition(".")[2] for name in known}:
            line = line_with(stored.text, '"connector.class"')
            raise InputError(f"{stored.file}:{line}: no worker has the plugin {plugin}", f"there are: {', '.join(known)}")
        said = [
            f"{stored.file}:{line_with(stored.text, json.dumps(verdict.option.name))}: {error}"
            for verdict in connect.validate(plugin, stored.config | {"name": name})
            for error in verdict.errors
        ]
        if said:
            raise InputError("\n".join(said), "correct the file; nothing was sent")

    # ---- what the folder no longer has

    def _left(self, before: Applied | None) -> list[tuple[str, str]]:
        """What an earlier apply made, that is still there, and that neither this folder nor another pipeline wants."""
        if before is None:
            return []
        resources = self.wanted.resources
        others = [a.resources for name, a in self.look.applied.items() if name != self.pipeline.name]
        others += [w.resources for w in self.look.wanted if w is not self.wanted]

        def elsewhere(kind: str, name: str) -> bool:
            # files of SQL are each pipeline's own, whatever they are called
            return kind != "sql" and any(name in other.get(kind, ()) for other in others)

        left = [
            (kind, name)
            for kind in KINDS
            for name in before.resources.get(kind, [])
            if name not in resources[kind] and not elsewhere(kind, name) and self._is_there(kind, name)
        ]
        if not any(kind == "sql" for kind, _ in left):
            return left
        # of a file that was moved, what it made is the moved one's
        mine = {thing for name in resources["sql"] for thing in made(self.cluster, self.pipeline.name, name)}
        return [(kind, name) for kind, name in left if kind != "sql" or mine.isdisjoint(made(self.cluster, self.pipeline.name, name))]

    def _is_there(self, kind: str, name: str) -> bool:
        there = {
            "topic": lambda: name in self.look.topics,
            "schema": lambda: self._registry().latest(name) is not None,
            "sql": lambda: True,
            "table": lambda: bool(self.cluster.groups.get("pinot")) and name in self._pinot().tables(),
            "connector": lambda: name in self.look.connectors,
            "producer": lambda: not self.look.containers or f"venice-producer-{name}" in self.look.programs,
            "job": lambda: not self.look.containers or f"venice-spark-job-{name}" in self.look.programs,
        }
        return there[kind]()

    def _prune(self, plan: Plan) -> None:
        acts: dict[str, Callable[[str], None]] = {
            "connector": self._delete_connector,
            "producer": lambda name: None,  # the playbook removes it
            "job": lambda name: None,
            "schema": lambda name: self._registry().delete(name) and None,
            "table": lambda name: self._pinot().delete(name),
            "topic": self._delete_topic,
            "sql": lambda name: forget(self.cluster, self.pipeline.name, name),
        }
        for kind in _REMOVALS:
            for name in (n for k, n in plan.left if k == kind):
                gone = made(self.cluster, self.pipeline.name, name) if kind == "sql" else []
                change = Change(kind, name, "remove", (Difference("dropped", ", ".join(gone), ""),) if gone else ())
                plan.removals.append(Step(change, str(self.pipeline.folder), lambda act=acts[kind], name=name: act(name)))
                removed = f"is forgotten and {', '.join(gone)} dropped; topics stay" if gone else _REMOVED.get(kind, "is removed")
                plan.questions.append(f"{kind} {name} {removed}")

    def _delete_connector(self, name: str) -> None:
        from venice.connect import Connect

        Connect.of(self.cluster).delete(name)

    def _delete_topic(self, name: str) -> None:
        kafka_of(self.cluster).delete([name])


_TOPIC_FIELDS = {"retention.ms": "retention", "cleanup.policy": "cleanup"}


def _time(difference: Difference, value: str | None) -> str | None:
    return "unlimited" if difference.field == "retention.ms" and value == "-1" else value


def _incompatible(schema: Schema, level: str | None, reasons: list[str]) -> str:
    lines = "".join(f"\n  - {reason}" for reason in reasons)
    return f"{schema.file}: incompatible with subject {schema.subject}{f' ({level})' if level else ''}:{lines}"
