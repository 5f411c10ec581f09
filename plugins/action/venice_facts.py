"""Looks at a host, reading only: one task, and the answer serves preflight, node ids and image shipping alike."""

from __future__ import annotations

import json
import os
import time

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from venice.play import answering, cluster_of, failed_findings
from venice.preflight import validate


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        # Only at the first look (later the play has variables of its own that are nobody's input), and not again after the
        # command line did it for this very run.
        if not cluster.facts and "VENICE_VALIDATED" not in os.environ and (findings := validate(cluster)):
            return failed_findings(findings)
        host = cluster.hosts[task_vars["inventory_hostname"]]
        instances = [i for i in cluster.instances() if i.host == host.name]
        others = [{"name": h.name, "address": h.address} for h in cluster.hosts.values() if h.components]
        arguments = {
            "ports": [{"port": port, "container": i.container} for i in instances for port in i.ports.values()],
            "resolve": others,
            "records": cluster.record_paths(host.name),
            "disk_paths": [cluster.var(host.name, "venice_data_dir"), "/var/lib/docker"],
            "images": True,
        }
        before = time.time()
        try:
            answer = self._execute_module(module_name="venice_facts", module_args=arguments, task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            return {"ansible_facts": {"venice_facts": {"unreachable": str(error)}}}
        after = time.time()
        facts = answer.get("venice_facts")
        if answer.get("failed") or facts is None:
            reason = answer.get("msg") or answer.get("module_stderr") or "no answer"
            return {"ansible_facts": {"venice_facts": {"failed": str(reason).strip()}}}
        # A host that is in no component's group needs none; it is only looked at for containers left from earlier.
        facts["engine"]["usable"] = not host.components or (facts["engine"]["running"] and facts["engine"]["sdk"] is not None)
        # The module read its clock somewhere in between: half the round trip is the error of this estimate.
        facts["clock"] = {"offset": facts["time"] - (before + after) / 2, "error": (after - before) / 2}
        cache = cluster.state_dir / "records" / f"{host.name}.json"
        if facts["records"] and (not cache.exists() or json.loads(cache.read_text()) != facts["records"]):
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(facts["records"], indent=1))
        return {"ansible_facts": {"venice_facts": facts}}
