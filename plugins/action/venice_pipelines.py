"""Applies the inventory's pipelines: topics, schemas, connectors; then waits until every task runs."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice.errors import UnreachableError
from venice.pipeline.old import apply
from venice.play import answering, cluster_of


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        say = self._display.display
        try:
            changes = [c for folder in cluster.pipelines for c in apply(cluster, folder, self._task.check_mode, say)]
        except UnreachableError:
            if not self._task.check_mode:
                raise
            # What a plan for a cluster that does not run yet can say of them.
            return {"changed": True, "differences": [_all_of(cluster.name, folder.name) for folder in cluster.pipelines]}
        return {"changed": bool(changes), "differences": [_difference(cluster.name, change) for change in changes]}


def _difference(cluster, change):
    """The form that all of Venice's actions return; it happens to the cluster, not to the host that the task runs for."""
    reason = "does not exist" if change.action == "create" else ", ".join(d.field for d in change.differences)
    return {"host": cluster, "component": change.kind, "name": f"{change.kind} {change.name}", "action": change.action, "reason": reason}


def _all_of(cluster, name):
    return {"host": cluster, "component": "pipeline", "name": f"pipeline {name}", "action": "apply", "reason": "once the services run"}
