"""Gives a host the images it lacks: built on the controller when need be, layer by layer over the connection that is there."""

from __future__ import annotations

import base64

from ansible.plugins.action import ActionBase

from venice import shipping
from venice.errors import VeniceError
from venice.play import answering, cluster_of

# Beside nothing of the distribution's, and on the disk that Docker itself uses in most installations.
STAGING = "/var/lib/venice/staging"


class ActionModule(ActionBase):
    TRANSFERS_FILES = True

    @answering
    def run(self, task_vars):
        cluster = cluster_of(self, task_vars)
        host = task_vars["inventory_hostname"]
        missing = shipping.lacking(cluster, host)
        differences = [{"component": "images", "name": ref, "action": "ship", "reason": "the host lacks it"} for ref in missing]
        if not self._task.check_mode:
            if cluster.var(host, "venice_image_registry"):
                self._pull(missing, shipping.variables(cluster, host, missing))
            else:
                everybody = sorted({ref for h in task_vars["ansible_play_hosts"] for ref in shipping.lacking(cluster, h)})
                named = shipping.variables(cluster, host, everybody)
                with shipping.provide(everybody, self._display.display, named) as exported:
                    self._ship(host, [exported[ref] for ref in missing], task_vars)
        return {"changed": True, "differences": differences}

    def _pull(self, refs, named):
        for ref in refs:
            answer = self._low_level_execute_command(f"docker pull --quiet {ref}")
            if answer["rc"]:
                raise VeniceError(
                    f"docker pull {ref}: {answer['stderr'].strip()}",
                    f"check venice_image_registry, {named.get(ref, 'the image')}, and that the host is logged in to the registry",
                )

    def _ship(self, host, exported, task_vars):
        """Sends the layers that the host has neither loaded nor staged, then loads."""
        described = [{"ref": e.ref, "id": e.id, "config": base64.b64encode(e.config).decode(), "layers": e.layers} for e in exported]
        owner = self._connection.get_option("remote_user") or "root"
        call = {"staging": STAGING, "owner": owner, "images": described}
        missing = set(self._load("query", call, task_vars)["missing"])
        files = {layer: e.directory / f"{layer}.tar" for e in exported for layer in e.layers if layer in missing}
        sent, total = 0, sum(path.stat().st_size for path in files.values())
        for path in files.values():
            if path.stat().st_size >> 20:
                self._display.display(f"{host}: {sent >> 20} of {total >> 20} MB sent")
            sent += path.stat().st_size
            self._connection.put_file(str(path), f"{STAGING}/{path.name}")
        self._display.display(f"{host}: loading {len(exported)} images")
        self._load("load", call, task_vars)

    def _load(self, state, call, task_vars):
        answer = self._execute_module(module_name="venice_image_load", module_args=call | {"state": state}, task_vars=task_vars)
        if answer.get("failed"):
            raise VeniceError(
                f"loading images: {answer.get('msg')}",
                answer.get("remedy") or "run the same command again: what arrived is not sent twice",
            )
        return answer
