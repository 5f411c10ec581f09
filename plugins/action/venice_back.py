"""Waits until restarted containers do their whole work again: brokers' replicas in sync, workers' connectors running."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice.play import answering, cluster_of
from venice.rolling import instance_at, wait_back


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        host = task_vars["inventory_hostname"]
        timeout = int(cluster.var(host, "venice_wait_timeout"))
        for container in [] if self._task.check_mode else self._task.args["containers"]:
            wait_back(cluster, instance_at(cluster, host, container), self._task.args.get("connectors"), timeout)
        return {"changed": False}
