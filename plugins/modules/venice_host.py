#!/usr/bin/python
# ruff: noqa: E402 (Ansible wants the documentation before the imports)
"""The Ansible module `venice_host`: one desired state of one host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: venice_host
short_description: Make a host what its document says
description:
  - Brings directories, files, the Docker network and all containers of a Venice cluster on this host to one desired
    state, and does only what differs. Every difference is returned with its reason.
  - A container is replaced by creating the new one first; the old one comes back when the new one does not start.
  - The action plugin of the same name collects the components' descriptions and makes the document.
options:
  document:
    description:
      - What should be on the host, packed by C(venice_document.encode_document).
      - A mapping with C(cluster), C(network), C(directories), C(files) and C(containers); C(venice_document.py) holds
        every key with its type and default.
      - Packed into one string so that no file content and no environment reaches logs, results or C(invocation).
    type: str
    required: true
  state:
    description:
      - V(present) converges files and containers.
      - V(started) starts existing containers, V(stopped) stops them; neither compares anything.
      - V(restarted) stops and starts the containers named in O(roll), and starts those of them that do not run.
      - V(absent) removes the cluster's containers, and its network when nobody else uses it.
    type: str
    choices: [present, started, stopped, restarted, absent]
    default: present
  only:
    description: Components to act on; empty means all.
    type: list
    elements: str
    default: []
  pipelines:
    description: Act only on containers of these pipelines (label C(venice.pipeline)), described or not; empty means all.
    type: list
    elements: str
    default: []
  later:
    description:
      - With O(state=present), components that are compared only; another task makes them so.
      - RV(later) names those that differ. In check mode their differences are reported with all others.
    type: list
    elements: str
    default: []
  roll:
    description:
      - Containers of kind C(rolling) that may be restarted or replaced in this run although they are running.
      - With O(state=restarted), the containers (of any kind) to restart.
    type: list
    elements: str
    default: []
  prune:
    description: Remove this cluster's containers that the document does not describe.
    type: bool
    default: false
  remove_data:
    description: With O(state=absent), also delete the document's files and directories.
    type: bool
    default: false
  state_dir:
    description: Where the host remembers which content of its files each container has read.
    type: path
    default: /var/lib/venice
attributes:
  check_mode:
    support: full
    description: Reports exactly the differences of a real run.
  diff_mode:
    support: full
    description: Shows files before and after; contents of secret files are masked.
requirements:
  - Docker 20.10 or newer
  - docker (SDK for Python) 5 or newer, only when something has to be changed
author: Venice
"""

EXAMPLES = r"""
- name: Converge this host
  venice_host:
    document: "{{ document }}"

- name: Restart one broker whose change is pending
  venice_host:
    document: "{{ document }}"
    only: [kafka]
    roll: [venice-kafka]
"""

RETURN = r"""
differences:
  description:
    - Everything that differs (or differed, after a real run).
    - Each has C(component), one of C(container), C(path), C(network), and C(field), C(current), C(desired), C(reason),
      C(action).
    - C(action) is one of create, recreate, restart, update, start, stop, remove, write, pending, stray.
  type: list
  elements: dict
  returned: success
pending:
  description: Running containers of kind C(rolling) that need a restart or a replacement and were not named in O(roll).
  type: list
  elements: str
  returned: success
stray:
  description: This cluster's containers that the document does not describe, and that are still there.
  type: list
  elements: str
  returned: success
later:
  description: Components of O(later) that differ, or that are not healthy.
  type: list
  elements: str
  returned: success
containers:
  description:
    - The document's containers as they are now, each with C(name), C(component), C(instance), C(image), C(status)
      (the engine's word, or missing), C(health) (null without health check) and C(started_at).
  type: list
  elements: dict
  returned: success
failures:
  description: Every failure with C(component), C(container), C(attempted), C(message) (the engine's own) and C(remedy).
  type: list
  elements: dict
  returned: failure
remedy:
  description: What helps, as far as known.
  type: str
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.venice_converge import STATE_DIR, STATES, HostError, Request, converge
from ansible.module_utils.venice_docker import Engine
from ansible.module_utils.venice_document import DocumentError, decode_document


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "document": {"type": "str", "required": True, "no_log": True},
            "state": {"type": "str", "choices": list(STATES), "default": "present"},
            "only": {"type": "list", "elements": "str", "default": []},
            "pipelines": {"type": "list", "elements": "str", "default": []},
            "later": {"type": "list", "elements": "str", "default": []},
            "roll": {"type": "list", "elements": "str", "default": []},
            "prune": {"type": "bool", "default": False},
            "remove_data": {"type": "bool", "default": False},
            "state_dir": {"type": "path", "default": STATE_DIR},
        },
        supports_check_mode=True,
    )
    asked = dict(module.params)
    try:
        document = decode_document(asked.pop("document"))
        result = converge(document, Engine(), Request(check_mode=module.check_mode, **asked))
    except DocumentError as error:
        remedy = "correct the component's description or its variables"
        module.fail_json(msg=f"the host's document is wrong: {error}", failures=[], remedy=remedy)
    except HostError as error:
        module.fail_json(msg=str(error), failures=error.failures, remedy=error.remedy)
    diff = result.pop("diff")
    if module._diff:
        result["diff"] = diff
    module.exit_json(**result)


if __name__ == "__main__":
    main()
