#!/usr/bin/python
# ruff: noqa: E402 (Ansible wants the documentation before the imports)
"""The Ansible module `venice_facts`: all that preflight and planning need to know of a host, in one task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: venice_facts
short_description: Look at a host, changing nothing
description:
  - Returns what preflight and planning need, in one task and without Docker being there.
options:
  ports:
    description: TCP ports that the cluster will publish on this host, each with the container that may hold it already.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: Port number.
        type: int
        required: true
      container:
        description: Name of the container that may hold the port.
        type: str
  resolve:
    description: Hosts whose addresses are looked up from this host.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name under which the answer is returned.
        type: str
        required: true
      address:
        description: Host name to look up, or an IP address (which is its own answer).
        type: str
        required: true
  records:
    description: Patterns of small text files to return.
    type: list
    elements: str
    default: []
  disk_paths:
    description: Paths whose file systems are measured; a path that does not exist yet counts as its nearest parent.
    type: list
    elements: str
    default: []
  images:
    description: Also return the engine's images and layers.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Changes nothing in any mode.
author: Venice
"""

EXAMPLES = r"""
- name: Look at the host
  venice_facts:
    ports: [{port: 9092, container: venice-kafka}]
    resolve: [{name: lab-2, address: 192.0.2.12}]
    disk_paths: [/srv/venice]
"""

RETURN = r"""
venice_facts:
  description: What was found.
  returned: success
  type: dict
  contains:
    os:
      description: C(id), C(version_id) and C(pretty) from os-release.
      type: dict
    arch:
      description: Machine type of the kernel.
      type: str
    python:
      description: Version of the Python that ran this.
      type: str
    cpus:
      description: Number of CPUs this process may use.
      type: int
    memory:
      description: C(total) and C(available), in bytes.
      type: dict
    disk:
      description: For each path C(free) and C(total), in bytes.
      type: dict
    time:
      description: The host's clock, seconds since the epoch, read last.
      type: float
    uid:
      description: User id that ran this.
      type: int
    sudo_user:
      description: User who called sudo, or null.
      type: str
    addresses:
      description: All local IPv4 and IPv6 addresses.
      type: list
    ports:
      description:
        - For each port (as text) C(free), C(held_by) (text, empty when free), C(container) (name or null) and C(expected) (held by
          the named container).
      type: dict
    resolve:
      description: For each name the list of IP addresses, or the resolver's error as text.
      type: dict
    records:
      description: Content of each file that matched a pattern.
      type: dict
    engine:
      description: C(installed), C(running), C(version), C(sdk) (version of the docker SDK or null) and C(error).
      type: dict
    images:
      description: For each image reference its id.
      type: dict
    layers:
      description: Diff ids (hex) of all layers the engine has, sorted.
      type: list
    containers:
      description:
        - All containers, with C(name), C(cluster) (null when it is not Venice's), C(component), C(instance), C(status),
          C(health) and C(image).
      type: list
"""

import os
import platform
import re
import shutil
import socket
import struct
import sys
import time
from pathlib import Path
from threading import Thread

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.venice_docker import Engine, EngineError, in_parallel
from ansible.module_utils.venice_ports import holder, listeners, published

# a resolver that does not answer is a finding, not a reason to wait for its many retries
RESOLVE_SECONDS = 5
RECORD_BYTES = 1 << 20


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"port": {"type": "int", "required": True}, "container": {"type": "str"}},
            },
            "resolve": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                },
            },
            "records": {"type": "list", "elements": "str", "default": []},
            "disk_paths": {"type": "list", "elements": "str", "default": []},
            "images": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, venice_facts=gather(module.params, Engine()))


def gather(params: dict, engine: Engine) -> dict:
    """All facts; `params` as the module's options."""
    listed, engine_facts = look_at_engine(engine)
    return {
        "os": os_release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": memory(),
        "disk": {path: disk(path) for path in params["disk_paths"]},
        "uid": os.geteuid(),
        "sudo_user": os.environ.get("SUDO_USER"),
        "addresses": addresses(),
        "ports": look_at_ports(params["ports"], listed),
        "resolve": resolve(params["resolve"]),
        "records": records(params["records"]),
        "engine": engine_facts,
        **look_at_images(engine, params["images"] and engine_facts["running"]),
        "containers": [described(entry) for entry in listed],
        "time": time.time(),
    }


def os_release() -> dict:
    text = ""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        if Path(path).exists():
            text = Path(path).read_text()
            break
    found = dict(re.findall(r'^(\w+)="?(.*?)"?$', text, re.MULTILINE))
    return {
        "id": found.get("ID", ""),
        "version_id": found.get("VERSION_ID", ""),
        "pretty": found.get("PRETTY_NAME", ""),
    }


def memory() -> dict:
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return {"total": int(found["MemTotal"]) * 1024, "available": int(found["MemAvailable"]) * 1024}


def disk(path: str) -> dict:
    existing = Path(path)
    while not existing.exists():
        existing = existing.parent
    usage = shutil.disk_usage(existing)
    return {"free": usage.free, "total": usage.total}


def addresses() -> list[str]:
    """Local addresses from the kernel's routing tables (minimal systems have no `ip`)."""
    found = set()
    try:
        leaf = ""
        for line in Path("/proc/net/fib_trie").read_text().splitlines():
            word = line.split()
            if word[:1] == ["|--"]:
                leaf = word[1]
            elif word[:2] == ["/32", "host"] and word[2:] == ["LOCAL"]:
                found.add(leaf)
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found.add(socket.inet_ntop(socket.AF_INET6, struct.pack("!QQ", int(line[:16], 16), int(line[16:32], 16))))
    except FileNotFoundError:
        pass  # a kernel without IPv6
    return sorted(found)


def look_at_ports(wanted: list[dict], listed: list[dict]) -> dict:
    listening, by_container = listeners(), published(listed)
    found = {}
    for entry in wanted:
        held = holder(entry["port"], "", "tcp", listening, by_container)
        container = held["container"] if held else None
        found[str(entry["port"])] = {
            "free": held is None,
            "held_by": held["text"] if held else "",
            "container": container,
            "expected": bool(container) and container == entry.get("container"),
        }
    return found


def resolve(wanted: list[dict]) -> dict:
    """IP addresses of each `{name, address}`, or the resolver's error."""
    found: dict = {}

    def look_up(name: str, address: str) -> None:
        try:
            found[name] = sorted({entry[4][0] for entry in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)})
        except OSError as error:
            found[name] = error.strerror or str(error)

    # daemons, unlike a pool's threads: the process does not wait at its end for a resolver that hangs
    threads = [Thread(target=look_up, args=(entry["name"], entry["address"]), daemon=True) for entry in wanted]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + RESOLVE_SECONDS
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return {entry["name"]: found.get(entry["name"], f"no answer within {RESOLVE_SECONDS} s") for entry in wanted}


def records(patterns: list[str]) -> dict[str, str]:
    """Content of the files that match an absolute pattern: small text files only."""
    found = {}
    for pattern in patterns:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            with path.open(errors="replace") as file:
                found[str(path)] = file.read(RECORD_BYTES)
    return found


def look_at_engine(engine: Engine) -> tuple[list[dict], dict]:
    """The engine's containers and facts; works without an engine."""
    facts = {
        "installed": shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin") is not None,
        "running": False,
        "version": None,
        "sdk": sdk_version(),
        "error": None,
    }
    try:
        version, listed = in_parallel(lambda question: question(), [lambda: engine.get("/version"), engine.containers])
    except EngineError as error:
        facts["error"] = error.message
        return [], facts
    facts.update(running=True, version=version["Version"])
    return listed, facts


def sdk_version() -> str | None:
    """Version of the docker SDK from its metadata (importing it takes longer than all the rest here)."""
    for folder in sys.path:
        for path in Path(folder or ".").glob("docker-*-info"):
            found = re.match(r"docker-([\d.]+\d)", path.name)
            if found:
                return found.group(1)
    return None


def look_at_images(engine: Engine, wanted: bool) -> dict:
    if not wanted:
        return {"images": {}, "layers": []}
    listed = engine.get("/images/json")
    details = in_parallel(engine.image, [entry["Id"] for entry in listed], 4)
    return {
        "images": {ref: entry["Id"] for entry in listed for ref in entry.get("RepoTags") or [] if ref != "<none>:<none>"},
        "layers": sorted({layer[len("sha256:") :] for image in details if image for layer in image["RootFS"].get("Layers") or []}),
    }


def described(entry: dict) -> dict:
    labels = entry["Labels"]
    health = re.search(r"\((?:health: )?(healthy|unhealthy|starting)\)", entry["Status"])
    return {
        "name": entry["Names"][0].lstrip("/"),
        "cluster": labels.get("venice.cluster"),
        "component": labels.get("venice.component", ""),
        "instance": labels.get("venice.instance", ""),
        "status": entry["State"],
        "health": health.group(1) if health else None,
        "image": entry["Image"],
    }


if __name__ == "__main__":
    main()
