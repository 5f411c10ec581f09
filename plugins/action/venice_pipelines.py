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
        say = self._display.display
        changes = [c for folder in cluster.pipelines for c in pipeline.apply(cluster, folder, self._task.check_mode, say)]
        return {"changed": bool(changes), "differences": [_difference(change) for change in changes]}


def _difference(change):
    """The form that all of Venice's actions return."""
    reason = ", ".join(d.field for d in change.differences) or "does not exist"
    return {"component": change.kind, "name": f"{change.kind} {change.name}", "action": change.action, "reason": reason}
