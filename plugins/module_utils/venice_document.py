"""The document that describes one host: its shape, its checking, and its packed form for the way to the host.

The action plugin packs it on the controller, the module unpacks it on the host; both import this file. Standard library
only, Python 3.9 and newer.
"""

from __future__ import annotations

import base64
import json
import re
import zlib

REQUIRED = object()

# key -> (kind, default); the kinds are the keys of KINDS
NETWORK = {"name": ("name", "venice")}
DIRECTORY = {
    "path": ("path", REQUIRED),
    "owner": ("id", 0),
    "group": ("id", 0),
    "mode": ("mode", "0755"),
    "component": ("text", REQUIRED),
}
FILE = {
    "path": ("path", REQUIRED),
    "content": ("content", REQUIRED),
    "owner": ("id", 0),
    "group": ("id", 0),
    "mode": ("mode", "0644"),
    "secret": ("bool", False),
    "component": ("text", REQUIRED),
}
MOUNT = {"source": ("path", REQUIRED), "target": ("path", REQUIRED), "read_only": ("bool", False)}
PORT = {
    "host": ("port", REQUIRED),
    "container": ("port", REQUIRED),
    "address": ("text", "0.0.0.0"),  # noqa: S104 (a published port is meant to be reached from other hosts)
    "protocol": ("protocol", "tcp"),
}
HEALTH = {
    "command": ("argv", REQUIRED),
    "interval": ("seconds", 10),
    "timeout": ("seconds", 5),
    "retries": ("count", 3),
    "start_period": ("seconds", 60),
}
LOG = {"driver": ("text", "json-file"), "options": ("texts", {})}
CONTAINER = {
    "name": ("name", REQUIRED),
    "component": ("text", REQUIRED),
    "instance": ("text", ""),
    "image": ("text", REQUIRED),
    "entrypoint": ("argv", []),
    "command": ("argv", []),
    "env": ("texts", {}),
    "user": ("text", ""),
    "mounts": ([MOUNT], []),
    "ports": ([PORT], []),
    "network": ("text", "venice"),
    "aliases": ("argv", []),
    "hosts": ("texts", {}),
    "memory": ("count", 0),
    "cpu_shares": ("count", 0),
    "ulimits": ("counts", {}),
    "health": (HEALTH, None),
    "restart": ("text", "unless-stopped"),
    "stop_timeout": ("count", None),
    "log": (LOG, None),
    "labels": ("texts", {}),
    "files": ("reactions", {}),
    "rolling": ("bool", False),
}
DOCUMENT = {
    "cluster": ("name", REQUIRED),
    "network": (NETWORK, {"name": "venice"}),
    "directories": ([DIRECTORY], []),
    "files": ([FILE], []),
    "containers": ([CONTAINER], []),
}

REACTIONS = ("restart", "none")
RESTART_POLICY = re.compile(r"(no|always|unless-stopped|on-failure(:\d+)?)$")
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+$")


class DocumentError(ValueError):
    """The document is wrong; `problems` lists every problem as `where: what`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def encode_document(document: dict) -> str:
    """Pack `document` into one printable string.

    One opaque string keeps file contents and environments out of Ansible's `invocation`, and marking it `no_log` hides
    nothing else: marking the contents themselves would make Ansible blot out every equal word in the result.
    """
    raw = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    return base64.b64encode(zlib.compress(raw, 6)).decode()


def decode_document(packed: str) -> dict:
    """Unpack what `encode_document` made; raises DocumentError when it is something else."""
    try:
        return json.loads(zlib.decompress(base64.b64decode(packed, validate=True)))
    except (ValueError, zlib.error) as error:
        raise DocumentError([f"document: is not a packed document ({error})"]) from error


def complete(document: dict) -> dict:
    """Return a copy of `document` with defaults filled in and values in their right types.

    Raises DocumentError with all problems at once: unknown keys, missing keys, wrong types, the same container name,
    host port or file twice, a container whose `files` names a path that cannot be told.
    """
    problems: list[str] = []
    done = _record(document, DOCUMENT, "document", problems)
    if not problems:
        _check_whole(done, problems)
    if problems:
        raise DocumentError(problems)
    return done


def _check_whole(document: dict, problems: list[str]) -> None:
    names: set[str] = set()
    ports: dict[tuple, str] = {}
    for container in document["containers"]:
        name = container["name"]
        if name in names:
            problems.append(f"containers.{name}: is described twice")
        names.add(name)
        if name.endswith((".new", ".old")):
            problems.append(f"containers.{name}: names ending in .new and .old are kept for replacing a container")
        if not RESTART_POLICY.match(container["restart"]):
            problems.append(f"containers.{name}.restart: {container['restart']!r} is not no, always, unless-stopped, on-failure[:N]")
        for port in container["ports"]:
            key = (port["address"], port["host"], port["protocol"])
            if key in ports:
                problems.append(f"containers.{name}.ports: {port['host']} is published by {ports[key]} too")
            ports[key] = name
    paths: set[str] = set()
    for file in document["files"]:
        if file["path"] in paths:
            problems.append(f"files.{file['path']}: is described twice")
        paths.add(file["path"])


def _record(value, shape: dict, where: str, problems: list[str]) -> dict:
    if not isinstance(value, dict):
        problems.append(f"{where}: is {_kind_of(value)}, not a mapping")
        return {}
    # an entry of a list is better found by its name than by its number
    label = value.get("name") or value.get("path")
    if where.endswith("]") and isinstance(label, str):
        where = f"{where.rsplit('[', 1)[0]}.{label}"
    problems.extend(f"{where}.{key}: is unknown (known: {', '.join(shape)})" for key in value if key not in shape)
    done = {}
    for key, (kind, default) in shape.items():
        given = value.get(key)
        if given is None:
            if default is REQUIRED:
                problems.append(f"{where}.{key}: is missing")
            elif isinstance(default, (dict, list)):
                done[key] = type(default)(default)
            else:
                done[key] = default
            continue
        done[key] = _value(given, kind, f"{where}.{key}", problems)
    return done


def _value(given, kind, where: str, problems: list[str]):
    if isinstance(kind, dict):
        return _record(given, kind, where, problems)
    if isinstance(kind, list):
        if not isinstance(given, list):
            problems.append(f"{where}: is {_kind_of(given)}, not a list")
            return []
        return [_record(item, kind[0], f"{where}[{number}]", problems) for number, item in enumerate(given)]
    try:
        return KINDS[kind](given)
    except (ValueError, TypeError) as error:
        problems.append(f"{where}: {error}")
        return None


def _text(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"is {_kind_of(value)}, not text")


def _content(value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {_kind_of(value)}, not text")
    return value


def _whole(value) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdigit():
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def _port(value) -> int:
    port = _whole(value)
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is not a port")
    return port


def _seconds(value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(f"{value!r} is not a number of seconds")
    return value


def _path(value) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "/../" in f"{value}/" or value == "/":
        raise ValueError(f"{value!r} is not an absolute path")
    return value.rstrip("/")


def _mode(value) -> str:
    # an unquoted 0644 is 420 by the time YAML has read it, so a number cannot be trusted
    if not isinstance(value, str) or not re.match(r"0?[0-7]{3,4}$", value):
        raise ValueError(f"{value!r} is not a mode: write four octal digits in quotes")
    return value.zfill(4)


def _name(value) -> str:
    if not isinstance(value, str) or not NAME.match(value):
        raise ValueError(f"{value!r} is not a name (letters, digits, _ . -)")
    return value


def _bool(value) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def _argv(value) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"is {_kind_of(value)}, not a list")
    return [_text(item) for item in value]


def _mapping(value, item) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"is {_kind_of(value)}, not a mapping")
    return {_text(key): item(entry) for key, entry in value.items()}


def _reaction(value) -> str:
    if value not in REACTIONS:
        raise ValueError(f"{value!r} is none of {', '.join(REACTIONS)}")
    return value


def _protocol(value) -> str:
    if value not in ("tcp", "udp"):
        raise ValueError(f"{value!r} is none of tcp, udp")
    return value


KINDS = {
    "text": _text,
    "content": _content,
    "name": _name,
    "path": _path,
    "mode": _mode,
    "id": _whole,
    "count": _whole,
    "port": _port,
    "protocol": _protocol,
    "seconds": _seconds,
    "bool": _bool,
    "argv": _argv,
    "texts": lambda value: _mapping(value, _text),
    "counts": lambda value: _mapping(value, _whole),
    "reactions": lambda value: _mapping(value, _reaction),
}


def _kind_of(value) -> str:
    kinds = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return kinds.get(type(value), "nothing" if value is None else type(value).__name__)
