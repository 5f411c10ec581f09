"""Compare what a container is with what it should be. Pure functions: plain data in, plain data out.

Both sides become one flat mapping `field -> value` (`env.KAFKA_HEAP`, `ports.9092/tcp`, ...), so that comparing is one
loop and every difference names exactly one field. Current values come from the engine's inspect answers.
"""

from __future__ import annotations

import re

SECRET_KEY = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|KEY|CREDENTIAL", re.IGNORECASE)
MASK = "<secret>"

# the engine changes these in a running container
IN_PLACE = ("restart", "memory", "cpu_shares")
# the engine adds its own defaults (daemon.json) to these; only what the document names is compared
OPEN_FIELDS = ("ulimits.", "log.")
# states of a container that has a process or will have one without our help
ALIVE = ("running", "paused")

NANO = 1_000_000_000

# strongest last
NEEDS = ("update", "restart", "recreate")


def desired_labels(cluster: str, container: dict) -> dict[str, str]:
    """Labels of a container: the ones every Venice container has, and its own."""
    return {
        **container["labels"],
        "venice.cluster": cluster,
        "venice.component": container["component"],
        "venice.instance": container["instance"],
    }


def desired_fields(cluster: str, container: dict, image: dict) -> dict:
    """Fields of a container as `container` (a completed description) wants them.

    `image` is the engine's inspect answer of its image: what the description leaves open is the image's own.
    """
    image_config = image.get("Config") or {}
    fields = {
        "image": image.get("Id", ""),
        "entrypoint": container["entrypoint"] or image_config.get("Entrypoint") or [],
        # an engine drops the image's command with its entrypoint
        "command": container["command"] or ([] if container["entrypoint"] else image_config.get("Cmd")) or [],
        "user": container["user"] or image_config.get("User") or "",
        "network": container["network"],
        "aliases": sorted(set(container["aliases"])),
        "memory": container["memory"],
        "cpu_shares": container["cpu_shares"],
        "restart": container["restart"],
        "stop_timeout": container["stop_timeout"],
    }
    image_env = environment(image_config.get("Env"))
    fields.update({f"env.{key}": value for key, value in container["env"].items() if image_env.get(key) != value})
    for mount in container["mounts"]:
        fields[f"mounts.{mount['target']}"] = _mount_text(mount["source"], mount["read_only"])
    for port in container["ports"]:
        field = f"ports.{port['container']}/{port['protocol']}"
        fields[field] = sorted([*fields.get(field, []), f"{port['address']}:{port['host']}"])
    fields.update({f"hosts.{name}": address for name, address in container["hosts"].items()})
    fields.update({f"ulimits.{name}": limit for name, limit in container["ulimits"].items()})
    health = container["health"]
    if health:
        fields["health.command"] = ["CMD", *health["command"]]
        fields.update({f"health.{key}": health[key] for key in ("interval", "timeout", "retries", "start_period")})
    else:
        fields.update(_health_fields(image_config.get("Healthcheck")))
    if container["log"]:
        fields["log.driver"] = container["log"]["driver"]
        fields.update({f"log.options.{key}": value for key, value in container["log"]["options"].items()})
    image_labels = image_config.get("Labels") or {}
    for key, value in desired_labels(cluster, container).items():
        if image_labels.get(key) != value:
            fields[f"labels.{key}"] = value
    return fields


def current_fields(container: dict, image: dict) -> dict:
    """Fields of a container as it is, from the engine's inspect answers of it and of its image."""
    config = container["Config"]
    host = container["HostConfig"]
    image_config = image.get("Config") or {}
    networks = container.get("NetworkSettings", {}).get("Networks") or {}
    network = host.get("NetworkMode", "")
    aliases = (networks.get(network) or {}).get("Aliases") or []
    restart = host.get("RestartPolicy") or {}
    retries = restart.get("MaximumRetryCount") or 0
    fields = {
        "image": container["Image"],
        "entrypoint": config.get("Entrypoint") or [],
        "command": config.get("Cmd") or [],
        "user": config.get("User") or "",
        "network": network,
        # engines before 25 list the container's own short id among its aliases
        "aliases": sorted(set(aliases) - {container["Id"][:12]}),
        "memory": host.get("Memory") or 0,
        "cpu_shares": host.get("CpuShares") or 0,
        "restart": (restart.get("Name") or "no") + (f":{retries}" if retries else ""),
        "stop_timeout": config.get("StopTimeout"),
    }
    image_env = environment(image_config.get("Env"))
    for key, value in environment(config.get("Env")).items():
        if image_env.get(key) != value:
            fields[f"env.{key}"] = value
    for mount in host.get("Mounts") or []:
        fields[f"mounts.{mount['Target']}"] = _mount_text(mount.get("Source", ""), mount.get("ReadOnly", False))
    for bind in host.get("Binds") or []:
        source, target, *options = bind.split(":")
        fields[f"mounts.{target}"] = _mount_text(source, "ro" in ",".join(options).split(","))
    for port, bindings in (host.get("PortBindings") or {}).items():
        fields[f"ports.{port}"] = sorted(
            f"{binding.get('HostIp') or '0.0.0.0'}:{binding['HostPort']}"  # noqa: S104 (what an empty address means)
            for binding in bindings or []
        )
    for entry in host.get("ExtraHosts") or []:
        name, _, address = entry.partition(":")
        fields[f"hosts.{name}"] = address
    fields.update({f"ulimits.{limit['Name']}": limit["Hard"] for limit in host.get("Ulimits") or []})
    fields.update(_health_fields(config.get("Healthcheck")))
    log = host.get("LogConfig") or {}
    fields["log.driver"] = log.get("Type", "")
    fields.update({f"log.options.{key}": value for key, value in (log.get("Config") or {}).items()})
    image_labels = image_config.get("Labels") or {}
    for key, value in (config.get("Labels") or {}).items():
        if image_labels.get(key) != value:
            fields[f"labels.{key}"] = value
    return fields


def field_differences(desired: dict, current: dict) -> list[dict]:
    """Differences between two flat mappings, each `{field, current, desired, reason, need}`; need is one of NEEDS."""
    found = []
    for field in sorted({*desired, *current}):
        if field not in desired and field.startswith(OPEN_FIELDS):
            continue
        if desired.get(field) == current.get(field):
            continue
        if field not in current:
            reason = "is not set on the container"
        elif field not in desired:
            reason = "is set on the container but no longer described"
        else:
            reason = "differs from the description"
        # an engine ignores a 0 in an update: taking a limit away needs a new container
        in_place = field in IN_PLACE and bool(desired[field])
        found.append(
            {
                "field": field,
                "current": _shown(field, current.get(field)),
                "desired": _shown(field, desired.get(field)),
                "reason": reason,
                "need": "update" if in_place else "recreate",
            }
        )
    return found


def file_differences(wanted: dict[str, str], seen: dict[str, str] | None, secret: set[str]) -> list[dict]:
    """Differences between the files a container should have read and those it has.

    `wanted` and `seen` map a path to the sha256 of its content; `seen` is what was there when the container last
    started, None when nobody knows. Paths in `secret` show no hash (a hash of a short secret can be guessed).
    """
    if not wanted:
        return []
    found = []
    for path, digest in sorted(wanted.items()):
        before = (seen or {}).get(path)
        if before == digest:
            continue
        if seen is None:
            reason = "it is not known which content the container has read"
        else:
            reason = "the file changed after the container was started"
        found.append(
            {
                "field": f"files.{path}",
                "current": MASK if path in secret else (before or "")[:12],
                "desired": MASK if path in secret else digest[:12],
                "reason": reason,
                "need": "restart",
            }
        )
    return found


def decide(differences: list[dict], status: str | None, rolling: bool, rolled: bool) -> str:
    """What to do with a container: create, recreate, restart, update, start, pending or '' (nothing).

    `differences` have `need`; `status` is the engine's word (None: there is no container); `rolling` containers that
    run are left alone (`pending`) unless `rolled`.
    """
    if status is None:
        return "create"
    if status in ("dead", "removing"):
        return "recreate"
    need = max((difference["need"] for difference in differences), key=NEEDS.index, default="")
    if need in ("restart", "recreate") and rolling and status in ALIVE and not rolled:
        return "pending"
    if need == "recreate":
        return "recreate"
    if status not in (*ALIVE, "restarting"):
        return "start"
    return need


def engine_config(cluster: str, container: dict) -> dict:
    """The engine's own description (body of `POST /containers/create`) of a completed container description."""
    config = {
        "Image": container["image"],
        "Env": [f"{key}={value}" for key, value in sorted(container["env"].items())],
        "Labels": desired_labels(cluster, container),
        "ExposedPorts": {f"{port['container']}/{port['protocol']}": {} for port in container["ports"]},
    }
    if container["entrypoint"]:
        config["Entrypoint"] = container["entrypoint"]
    if container["command"]:
        config["Cmd"] = container["command"]
    if container["user"]:
        config["User"] = container["user"]
    if container["stop_timeout"] is not None:
        config["StopTimeout"] = container["stop_timeout"]
    health = container["health"]
    if health:
        config["Healthcheck"] = {
            "Test": ["CMD", *health["command"]],
            "Interval": int(health["interval"] * NANO),
            "Timeout": int(health["timeout"] * NANO),
            "StartPeriod": int(health["start_period"] * NANO),
            "Retries": health["retries"],
        }
    bindings: dict[str, list] = {}
    for port in container["ports"]:
        bindings.setdefault(f"{port['container']}/{port['protocol']}", []).append(
            {"HostIp": port["address"], "HostPort": str(port["host"])}
        )
    host = {
        # unlike Binds, a missing source is an error here and never becomes an empty directory of root's
        "Mounts": [
            {"Type": "bind", "Source": mount["source"], "Target": mount["target"], "ReadOnly": mount["read_only"]}
            for mount in container["mounts"]
        ],
        "PortBindings": bindings,
        "NetworkMode": container["network"],
        "ExtraHosts": [f"{name}:{address}" for name, address in sorted(container["hosts"].items())],
        "Memory": container["memory"],
        "CpuShares": container["cpu_shares"],
        "Ulimits": [{"Name": name, "Soft": limit, "Hard": limit} for name, limit in sorted(container["ulimits"].items())],
        "RestartPolicy": restart_policy(container["restart"]),
    }
    if container["log"]:
        host["LogConfig"] = {"Type": container["log"]["driver"], "Config": container["log"]["options"]}
    config["HostConfig"] = host
    if container["network"] not in ("host", "none", "bridge", "default"):
        config["NetworkingConfig"] = {"EndpointsConfig": {container["network"]: {"Aliases": container["aliases"]}}}
    return config


def restart_policy(text: str) -> dict:
    """`on-failure:5` -> the engine's `{Name, MaximumRetryCount}`."""
    name, _, retries = text.partition(":")
    return {"Name": name, "MaximumRetryCount": int(retries or 0)}


def environment(entries: list[str] | None) -> dict[str, str]:
    """The engine's `["KEY=value", ...]` as a mapping."""
    return dict(entry.partition("=")[::2] for entry in entries or [])


def _health_fields(check: dict | None) -> dict:
    test = (check or {}).get("Test") or []
    if not test or test == ["NONE"]:
        return {}
    return {
        "health.command": test,
        "health.interval": check.get("Interval", 0) / NANO,
        "health.timeout": check.get("Timeout", 0) / NANO,
        "health.retries": check.get("Retries", 0),
        "health.start_period": check.get("StartPeriod", 0) / NANO,
    }


def _mount_text(source: str, read_only: bool) -> str:
    return f"{source} (read-only)" if read_only else source


def _shown(field: str, value):
    if value is not None and field.startswith("env.") and SECRET_KEY.search(field[4:]):
        return MASK
    return value
