"""Pipelines as code: a folder with `pipeline.yml`, schemas, SQL, connectors and producers; loaded, compared, applied.

Loading this loads no client of any service: every command that makes the model of a cluster does it.
"""

from venice.pipeline.connectors import ConnectorFile, config_differences, dead_letter_topic, replaced, with_sink_defaults
from venice.pipeline.files import FILE, digest, jobs, load, producers
from venice.pipeline.model import Change, Job, Pipeline, Producer, Schema, Sql, belonging

__all__ = [
    "FILE",
    "Change",
    "ConnectorFile",
    "Job",
    "Pipeline",
    "Producer",
    "Schema",
    "Sql",
    "belonging",
    "config_differences",
    "dead_letter_topic",
    "digest",
    "jobs",
    "load",
    "producers",
    "replaced",
    "with_sink_defaults",
]
