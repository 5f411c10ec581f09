"""Applies a pipeline."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from venice.connect import Connect
from venice.errors import VeniceError
from venice.kafka import Kafka
from venice.pipeline import Change, Pipeline, config_differences, dead_letter_topic, load
from venice.pipeline.running import READY_SECONDS, restart_with, wait_running
from venice.registry import Registry
from venice.specs import Difference


def apply(cluster: Any, folder: Path, check: bool = False, report: Callable[[str], None] = lambda line: None) -> list[Change]:
    """Make the cluster as the pipeline in `folder` says; returns what was (with `check`: would be) changed.

    Ends when each of its connectors and every task of theirs run; VeniceError with the root cause when one fails.
    """
    pipeline = load(folder)
    variables = cluster.pipeline_vars
    connectors = dict(file.load(variables) for file in pipeline.connectors)
    changes: list[Change] = []

    def note(change: Change) -> None:
        changes.append(change)
        report(str(change))

    try:
        _apply_topics(cluster, pipeline, connectors, int(variables["replication_factor"]), check, note)
        _apply_schemas(cluster, pipeline, check, note)
        _apply_connectors(cluster, connectors, check, note, report)
    except VeniceError as error:
        error.message = f"pipeline {pipeline.name}: {error.message}"
        raise
    return changes


def _apply_topics(cluster, pipeline: Pipeline, connectors, replication: int, check: bool, note) -> None:
    topics = list(pipeline.topics)
    named = {topic.name for topic in topics}
    # Connect would make a dead letter topic only when the first bad record comes, with the brokers' retention
    for config in connectors.values():
        dlq = dead_letter_topic(config)
        if dlq and dlq.name not in named:
            topics.append(dlq)
            named.add(dlq.name)
    if not topics:
        return
    existing = Kafka(cluster.bootstrap_servers)
    for name, differences in existing.ensure_topics(topics, replication, check).items():
        created = differences[0].current is None
        note(Change("topic", name, "create" if created else "update", tuple(differences)))


def _apply_schemas(cluster, pipeline: Pipeline, check: bool, note) -> None:
    if not pipeline.schemas:
        return
    registry = Registry(cluster.registry_urls)
    for schema in pipeline.schemas:
        differences = []
        latest = registry.latest(schema.subject)
        # an older version stays registered: a registry can't make it the latest again, and who reads it needs nothing new
        if latest is None or registry.version_of(schema.subject, schema.text, schema.type) is None:
            current = f"version {latest['version']}" if latest else None
            differences.append(Difference("schema", current, "new version" if latest else "version 1"))
            if not check:
                registry.register(schema.subject, schema.text, schema.type)
        level = registry.compatibility(schema.subject) if latest else None
        if schema.compatibility and level != schema.compatibility:
            differences.append(Difference("compatibility", level, schema.compatibility))
            if not check:
                registry.set_compatibility(schema.subject, schema.compatibility)
        if differences:
            note(Change("schema", schema.subject, "update" if latest else "create", tuple(differences)))


def _apply_connectors(cluster, connectors: dict[str, dict[str, str]], check: bool, note, report) -> None:
    if not connectors:
        return
    started = time.time()
    connect = Connect(cluster.connect_urls)
    connect.wait_ready(READY_SECONDS if not check else 0)
    there = connect.connectors()
    for name, config in connectors.items():
        found = there.get(name)
        differences = config_differences(found.config if found else None, config)
        if found is None:
            if not check:
                connect.put(name, config)
            note(Change("connector", name, "create", differences))
            continue
        # a connector that has failed, or that somebody paused, is started again: its pipeline says that it runs
        if found.failure or found.state in ("PAUSED", "STOPPED"):
            differences = (*differences, Difference("state", "FAILED" if found.failure else found.state, "RUNNING"))
        if not differences:
            continue
        if not check:
            restart_with(connect, name, config)
        note(Change("connector", name, "update", differences))
    if not check:
        wait_running(cluster, connect, list(connectors), started, report)
