"""Judges what `venice_facts` found on all hosts: every finding at once, before anything is changed."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice import shipping
from venice.play import answering, cluster_of, failed_findings
from venice.preflight import assess, empty


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        hosts = task_vars["ansible_play_hosts_all"]
        purpose = self._task.args.get("purpose", "deploy")
        findings = assess(cluster, hosts, purpose)
        if findings:
            return failed_findings(findings)
        lacking = {host: refs for host in hosts if (refs := shipping.lacking(cluster, host))}
        bare = [host for host in hosts if not cluster.facts.get(host, {}).get("engine", {}).get("usable", True)]
        answer = {"changed": False, "order": cluster.order, "bare": bare, "lacking": lacking, "empty": empty(cluster, hosts)}
        if purpose == "start" and answer["empty"]:
            answer["notice"] = f"nothing of {cluster.name} is on its hosts: it is deployed"
        return answer
