"""Waits until a container may go down without loss: for a broker, until every partition keeps its minimum of in-sync replicas."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice.play import answering, cluster_of
from venice.rolling import instance_at, wait_may_restart


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        host = task_vars["inventory_hostname"]
        instance = instance_at(cluster, host, self._task.args["container"])
        if self._task.check_mode:
            return {"changed": False, "connectors": []}
        connectors = wait_may_restart(cluster, instance, int(cluster.var(host, "venice_wait_timeout")))
        return {"changed": False, "connectors": connectors}
