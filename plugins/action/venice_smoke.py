"""Traces one real event from producer to table."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from venice import smoke
from venice.play import answering, cluster_of


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    @answering
    def run(self, task_vars):
        if self._task.check_mode:
            return {"skipped": True, "skip_reason": "nothing is produced in check mode"}
        found = smoke.run(cluster_of(self, task_vars), settle=smoke.SETTLE_SECONDS)
        answer = {"changed": False, "smoke": found.to_dict()}
        if not found.ok:
            broken = next(hop for hop in found.hops if not hop.ok)
            return answer | {
                "failed": True,
                "msg": f"smoke test: {broken.name}: {broken.detail}",
                "remedy": "venice smoke traces again",
            }
        return answer
