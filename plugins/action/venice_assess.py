"""Judges what `venice_facts` found on all hosts: every finding at once, before anything is changed."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice import shipping
from venice.play import answering, cluster_of, failed_findings
from venice.preflight import assess


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        hosts = task_vars["ansible_play_hosts_all"]
        findings = assess(cluster, hosts, self._task.args.get("purpose", "deploy"))
        if findings:
            return failed_findings(findings)
        lacking = {host: refs for host in hosts if (refs := shipping.lacking(cluster, host))}
        bare = [host for host in hosts if not cluster.facts.get(host, {}).get("engine", {}).get("usable", True)]
        return {"changed": False, "order": cluster.order, "bare": bare, "lacking": lacking}
