"""Waits until a container may go down without loss: for a broker, until every partition keeps its minimum of in-sync replicas."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice.play import answering, cluster_of
from venice.rolling import wait_may_restart


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        host, container = task_vars["inventory_hostname"], self._task.args["container"]
        instance = next(i for i in cluster.instances() if (i.host, i.container) == (host, container))
        wait_may_restart(cluster, instance, int(cluster.var(host, "venice_wait_timeout")))
        return {"changed": False}
