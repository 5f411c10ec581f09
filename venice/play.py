"""What the action plugins share: the model as a running play sees it, and errors as task results."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

from ansible.plugins.action import ActionBase

from venice import paths, pipeline  # noqa: F401 `pipeline`: see below
from venice.cluster import Cluster, roles
from venice.errors import VeniceError
from venice.preflight import Finding, listing

# Loaded once in Ansible's own process, which imports this, rather than by each of its workers, which inherit it: the roles,
# and `pipeline`, which the model needs where there are producers.
roles()


def encode_document(document: dict[str, Any]) -> str:
    """A host's document packed as the module `venice_host` takes it; the code is the one that unpacks it there.

    Ansible has no import path on the controller for module utilities, so the file is loaded by its place.
    """
    path = paths.resource("plugins") / "module_utils" / "venice_document.py"
    spec = importlib.util.spec_from_file_location("venice_document", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.encode_document(document)


def cluster_of(action: ActionBase, task_vars: dict[str, Any]) -> Cluster:
    """The model of the inventory that the running play has, with the facts gathered so far."""
    hostvars = task_vars["hostvars"]
    # in the order that `Cluster.load` has: else the same inventory could be two different deployments
    raw = {host: hostvars.raw_get(host) for host in task_vars["groups"]["all"]}
    facts = {host: found for host, v in raw.items() if (found := v.get("ansible_facts", {}).get("venice_facts"))}
    return Cluster(raw, task_vars["groups"], action._loader, facts)


def answering(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Decorator of an action's `run(task_vars)`: a VeniceError becomes a failed result with its remedy."""

    @functools.wraps(run)
    def wrapped(self: ActionBase, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = ActionBase.run(self, tmp, task_vars)
        try:
            return result | run(self, task_vars or {})
        except VeniceError as error:
            return result | {"failed": True, "msg": error.message, "remedy": error.remedy, "exit_code": error.exit_code}

    return wrapped


def failed_findings(findings: list[Finding]) -> dict[str, Any]:
    """A failed result that lists findings, each with its host and remedy."""
    return {
        "failed": True,
        "exit_code": 2,
        "msg": listing(findings, "changed"),
        "findings": [f.to_dict() for f in findings],
    }
