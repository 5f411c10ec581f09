"""Sends a host its one desired state. The model is evaluated here, the comparison happens on the host."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice.play import answering, cluster_of, encode_document


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        name = task_vars["inventory_hostname"]
        before = [c for c in cluster.order if not cluster.after_pipelines(c)]
        after = [c for c in cluster.order if cluster.after_pipelines(c)]
        # a task that names its components means them all
        later = [] if self._task.args.get("only") or self._task.args.get("state", "present") != "present" else after
        arguments = {"prune": cluster.var(name, "venice_prune"), "later": later} | self._task.args
        document = cluster.desired(name)
        engine = cluster.facts.get(name, {}).get("engine", {})
        if not engine.get("running") and not document["containers"]:
            return {"skipped": True, "skip_reason": "the host is in no component's group and has no Docker"}
        arguments["document"] = encode_document(document)
        answer = self._execute_module(module_name="venice_host", module_args=arguments, task_vars=task_vars)
        unwell = [c["component"] for c in answer.get("containers", []) if c["health"] != "healthy"]
        return answer | {
            "before_pipelines": before,
            "after_pipelines": after,
            "wait_timeout": int(cluster.var(name, "venice_wait_timeout")),
            "unsettled": bool(answer.get("pending")) or any(c in before for c in unwell),
        }
