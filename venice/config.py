"""A component's configuration as Venice renders it for the hosts, fit to be shown: no secret is in it."""

import re
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from venice import selection
from venice.cluster import Cluster
from venice.errors import InputError
from venice.masking import masked

_MASK = "********"
_SETTING = re.compile(r"(?P<key>\s*[\w.-]+)(?P<equals>\s*[=:]\s*)(?P<value>\S.*)")
_COMMENT = ("#", "--", ";")
# Settings about passwords whose values give nothing away, as `password_encryption = scram-sha-256`.
_ABOUT = re.compile(r"(encryption|algorithm|mechanisms?|class|type|url|file|path|location|enabled?|ms|seconds)$")


@dataclass(frozen=True)
class Place:
    """Where a text is: the instance, its host, and the file's path there (for an environment: the container's name)."""

    instance: str
    host: str
    path: str


@dataclass(frozen=True)
class File:
    """A rendered file and all places where it has this very content. `mode` as `0440`; a secret file's values are masked."""

    component: str
    name: str
    mode: str
    secret: bool
    content: str
    places: list[Place]


@dataclass(frozen=True)
class Environment:
    """A container's environment variables and all containers that have these."""

    component: str
    values: dict[str, str]
    places: list[Place]


@dataclass(frozen=True)
class Config:
    """What `venice config show` shows; `to_dict` is the documented JSON."""

    files: list[File]
    environments: list[Environment]

    def to_dict(self) -> dict:
        """Form for `--json`."""
        return asdict(self)


def show(cluster: Cluster, name: str) -> Config:
    """The files and environments of a component's or instance's containers, equal ones once.

    Raises InputError for an unknown name and for a variable that cannot be evaluated.
    """
    files: dict[tuple, list[Place]] = {}
    environments: dict[tuple, list[Place]] = {}
    for instance in selection.select(cluster, [name]):
        document = cluster.desired(instance.host)
        hidden = _secrets(cluster, instance.host)
        container = next(c for c in document["containers"] if c["name"] == instance.container)
        for entry in (f for f in document["files"] if f["path"] in container["files"]):
            content = _secret_file(entry["content"]) if entry["secret"] else _open_file(entry["content"])
            key = (instance.component, PurePosixPath(entry["path"]).name, entry["mode"], entry["secret"], _without(content, hidden))
            files.setdefault(key, []).append(Place(instance.name, instance.host, entry["path"]))
        values = tuple((k, _without(str(masked(k, v)), hidden)) for k, v in sorted(container["env"].items()))
        environments.setdefault((instance.component, values), []).append(Place(instance.name, instance.host, instance.container))
    # the same file of several hosts one after the other
    order = list(dict.fromkeys(key[:2] for key in files))
    return Config(
        [File(*key, places) for key, places in sorted(files.items(), key=lambda item: order.index(item[0][:2]))],
        [Environment(component, dict(values), places) for (component, values), places in environments.items() if values],
    )


def _secrets(cluster: Cluster, host: str) -> list[str]:
    """Values of the host's variables that are called passwords, tokens and the like, the longest first."""
    found = set()
    for name in cluster.raw_vars(host):
        if masked(name, "x") == "x":
            continue
        try:
            value = cluster.var(host, name)
        except InputError:
            continue  # cannot be evaluated, so it is in no file either
        if isinstance(value, str) and value:
            found.add(value)
    return sorted(found, key=len, reverse=True)


def _without(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", _MASK, text)
    return text


def _secret_file(content: str) -> str:
    """Keys and comments; of other lines nobody knows what they give away."""
    lines: list[str] = []
    for text in content.splitlines():
        if not text.strip() or text.lstrip().startswith(_COMMENT):
            lines.append(text)
        elif setting := _SETTING.fullmatch(text):
            lines.append(f"{setting['key']}{setting['equals']}{_MASK}")
        elif lines[-1:] != [_MASK]:
            lines.append(_MASK)
    return "\n".join(lines)


def _open_file(content: str) -> str:
    """The content with the values masked that an operator put in openly, as `ssl.keystore.password=...`."""

    def line(text: str) -> str:
        setting = _SETTING.fullmatch(text)
        if not setting:
            return text
        key = "" if _ABOUT.search(setting["key"]) else setting["key"]
        return f"{setting['key']}{setting['equals']}{masked(key, setting['value'])}"

    return "\n".join(line(text) for text in content.splitlines())
