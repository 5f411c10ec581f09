"""Orders the rolling changes: one container after the other, the active controller last."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice.play import answering, cluster_of
from venice.rolling import order


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        pending = {(host, name) for host, names in self._task.args["pending"].items() for name in names}
        steps = order(cluster, [i for i in cluster.instances() if (i.host, i.container) in pending])
        return {"changed": False, "steps": [_step(i) for i in steps]}


def _step(instance):
    return {"host": instance.host, "container": instance.container, "label": f"{instance.host} {instance.container}"}
