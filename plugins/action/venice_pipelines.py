"""Applies the inventory's pipelines: topics, schemas, connectors; then waits until every task runs."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice import pipeline
from venice.play import answering, cluster_of


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        changes = [c for folder in cluster.pipelines for c in pipeline.apply(cluster, folder, check=self._task.check_mode)]
        return {"changed": bool(changes), "differences": [change.to_dict() for change in changes]}
