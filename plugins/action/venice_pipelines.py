"""Applies the inventory's pipelines: topics, schemas, SQL, connectors; then waits until every task runs. Producers come after."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice.applying import difference, refuse_questions
from venice.errors import UnreachableError
from venice.pipeline.plan import prepare
from venice.pipeline.running import READY_SECONDS
from venice.play import answering, cluster_of
from venice.records import who


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        check = self._task.check_mode
        try:
            plans = prepare(cluster, cluster.pipelines, 0 if check else READY_SECONDS, containers=False)
        except UnreachableError:
            if not check:
                raise
            # What a plan for a cluster that does not run yet can say of them.
            return {"changed": True, "differences": [_all_of(cluster.name, folder.name) for folder in cluster.pipelines]}
        changes = plans.changes  # without the producers': those are containers, of which their host tells
        if not check:
            refuse_questions(plans)
            plans.apply(self._display.display)
            plans.record(who())
        return {"changed": bool(changes), "differences": [difference(cluster.name, change) for change in changes]}


def _all_of(cluster, name):
    return {"host": cluster, "component": "pipeline", "name": f"pipeline {name}", "action": "apply", "reason": "once the services run"}
