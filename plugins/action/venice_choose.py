"""Which containers are meant by names of components, instances and hosts, and which of them run."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice.errors import InputError
from venice.play import answering, cluster_of
from venice.rolling import chosen_on, parts
from venice.selection import known, select


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        names = cluster.var(task_vars["inventory_hostname"], "venice_restart")
        if not names:
            raise InputError("venice_restart names nothing", f'-e \'{{"venice_restart": ["NAME"]}}\'; known: {", ".join(known(cluster))}')
        chosen = chosen_on(select(cluster, names), task_vars["ansible_play_hosts_all"])
        timeout = int(cluster.var(task_vars["inventory_hostname"], "venice_wait_timeout"))
        return {"changed": False, "parts": parts(cluster, chosen), "wait_timeout": timeout}
