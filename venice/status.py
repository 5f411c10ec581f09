"""What runs, read from the hosts: containers over SSH, brokers and connectors from the services themselves."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from venice.cluster import Cluster, Instance
from venice.errors import VeniceError
from venice.hosts import DockerHost, over

# Seconds for a service's answer, and for a host that is up but busy; one that is off is noticed sooner.
_LIMIT = 2.0
_BUSY = 6.0
# Steps named at the end, the most telling first.
_STEPS = 3
# `none`: a container without health check, of a producer's own image
_GOOD = {"running", "healthy", "RUNNING", "none"}


@dataclass(frozen=True)
class Row:
    """One container: what should be there and what is. `state` is `missing` when it is not there."""

    component: str
    instance: str
    host: str
    state: str
    health: str
    image: str
    uptime: str
    ports: str

    @property
    def well(self) -> bool:
        """True when it runs, and its health check, where it has one, agrees."""
        return self.state == "running" and self.health in ("healthy", "none")


@dataclass
class Status:
    """All that `venice status` shows; `to_dict` is the documented JSON."""

    cluster: str
    containers: list[Row] = field(default_factory=list)
    brokers: list[dict[str, Any]] = field(default_factory=list)
    connectors: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    next: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        return asdict(self)

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 something is not healthy, 3 a host does not answer."""
        if self.unreachable:
            return 3
        well = all(r.well for r in self.containers)
        return 0 if well and not self.problems and all(c["running"] for c in self.connectors) else 1


class Sources:
    """Connections to a cluster's hosts and services, made at first use and kept from one `collect` to the next."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.hosts = [DockerHost(host) for host in cluster.hosts.values() if host.components]

    def __enter__(self) -> "Sources":
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.close()

    @cached_property
    def kafka(self) -> Any:
        """The brokers' client."""
        from venice.kafka import Kafka

        return Kafka.of(self.cluster, timeout=_LIMIT)

    @cached_property
    def connect(self) -> Any:
        """The workers' client."""
        from venice.connect import Connect

        return Connect.of(self.cluster, timeout=_LIMIT)

    def renew(self, names: Any) -> None:
        """Forgets the connections to hosts that did not answer: a new one works again sooner than one that hangs."""
        for number, host in enumerate(self.hosts):
            if host.name in names:
                self.hosts[number] = DockerHost(self.cluster.hosts[host.name])
                # closing waits for a login that is under way
                threading.Thread(target=host.close, daemon=True).start()


def collect(cluster: Cluster) -> Status:
    """Asks all hosts and services at once; what does not answer within seconds is said so."""
    with Sources(cluster) as sources:
        return ask(sources)


def watch(cluster: Cluster, seconds: float, console: Console) -> Status:
    """Shows the status on the whole screen, anew every so many seconds, until Ctrl-C; returns the last one."""
    status = Status(cluster.name)
    with Sources(cluster) as sources, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                begun = time.monotonic()
                status = ask(sources)
                sources.renew(status.unreachable)
                head = Text(f"{cluster.name} at {datetime.now():%H:%M:%S}, every {seconds:g} s; Ctrl-C ends", style="dim")
                picture = Group(head, "", render(status))
                if len(console.render_lines(picture)) > console.height:
                    picture = Group(head, "", render(status, short=True))
                live.update(picture, refresh=True)
                time.sleep(max(0.0, seconds - (time.monotonic() - begun)))
        except KeyboardInterrupt:
            return status


def ask(sources: Sources) -> Status:
    """What the sources say now; each is asked once."""
    cluster = sources.cluster
    status = Status(cluster.name)
    with ThreadPoolExecutor(3) as pool:
        containers = pool.submit(over, sources.hosts, lambda host: _containers(host, cluster.name), _BUSY)
        brokers = pool.submit(_answer, status, _brokers, sources) if cluster.instances("kafka") else None
        connectors = pool.submit(_answer, status, _connectors, sources) if cluster.instances("connect") else None
        for name, found in containers.result().items():
            if isinstance(found, Exception):
                status.unreachable[name] = getattr(found, "message", str(found))
            status.containers += _rows(cluster, name, {} if name in status.unreachable else found, name not in status.unreachable)
        status.brokers = brokers.result() if brokers else []
        status.connectors = connectors.result() if connectors else []
    status.containers.sort(key=lambda r: (cluster.order.index(r.component) if r.component in cluster.order else 99, r.host, r.instance))
    status.next = _next(cluster, status)
    return status


def _next(cluster: Cluster, status: Status) -> list[str]:
    """What to run when something is wrong, for the host or component it is wrong on; empty when all is well."""
    steps: list[str] = []
    for name in status.unreachable:
        connection = cluster.hosts[name].vars
        login = f"{connection['ansible_user']}@" if connection.get("ansible_user") else ""
        port = f"-p {connection['ansible_port']} " if connection.get("ansible_port") else ""
        steps.append(f"ssh {port}{login}{connection.get('ansible_host', name)}")
    there = [r for r in status.containers if r.state != "unknown"]
    if any(r.state == "missing" for r in there):
        steps.append("venice deploy")
    stopped = [r for r in there if r.state in ("exited", "created")]
    if stopped and len(stopped) == len(there):
        return [*steps, "venice up"]
    ill = [r for r in there if r.state != "missing" and not r.well]
    # what is stopped may be why others are ill
    steps += [f"venice restart {r.instance}@{r.host}" for r in stopped] if len(stopped) == 1 else ["venice up"] if stopped else []
    # one that has just started is given its time, the others tell in their logs why they do not run
    steps += [f"venice logs {r.instance}@{r.host}" for r in ill if r not in stopped and r.health != "starting"]
    if not steps and any(r.health == "starting" for r in ill):
        steps.append("venice status --watch")
    if any(c["failure"] for c in status.connectors):
        steps.append("venice logs connect")
    return steps[:_STEPS]


def _answer(status: Status, ask: Any, sources: Sources) -> list[dict[str, Any]]:
    try:
        return ask(sources)
    except VeniceError as error:
        status.problems.append(error.message)
        return []


def _containers(host: DockerHost, cluster: str) -> dict[str, dict[str, Any]]:
    """Containers of the cluster by name, as `docker inspect` has them."""
    with host.asking():
        api = host.docker.api
        listed = api.containers(all=True, filters={"label": f"venice.cluster={cluster}"})
        found = {c["Names"][0].lstrip("/"): api.inspect_container(c["Id"]) for c in listed}
    _look_first(host, found)
    return found


def _look_first(host: DockerHost, found: dict[str, dict[str, Any]]) -> None:
    """Asks the health checks of containers that are `starting`: Docker's own first look comes an interval after the start, when a
    deployment that has asked them itself has ended already. Those that do not answer in time stay what they are."""
    deadline = time.monotonic() + _LIMIT

    def ask(name: str) -> None:
        state, (kind, *command) = found[name]["State"], found[name]["Config"]["Healthcheck"]["Test"]
        argv = command if kind == "CMD" else ["/bin/sh", "-c", *command]
        left = deadline - time.monotonic()
        with suppress(VeniceError):
            if left > 0 and host.exec(name, argv, timeout=left)[0] == 0:
                state["Health"]["Status"] = "healthy"

    starting = [name for name, c in found.items() if (c["State"].get("Health") or {}).get("Status") == "starting"]
    # sshd allows ten sessions in a connection
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, starting))


def _rows(cluster: Cluster, host: str, found: dict[str, dict[str, Any]], answered: bool) -> list[Row]:
    wanted = {i.container: i for i in cluster.instances() if i.host == host}
    absent = "missing" if answered else "unknown"
    rows = [_row(host, found.get(name), instance, absent) for name, instance in wanted.items()]
    for name, container in found.items():
        if name not in wanted:
            labels = container["Config"]["Labels"]
            rows.append(
                _row(
                    host,
                    container,
                    Instance(labels["venice.component"], labels["venice.instance"], host, "", {}, name),
                    absent,
                )
            )
    return rows


def _row(host: str, container: dict[str, Any] | None, instance: Instance, absent: str) -> Row:
    ports = ", ".join(str(port) for port in instance.ports.values())
    if container is None:
        return Row(instance.component, instance.name, host, absent, "", "", "", ports)
    state = container["State"]
    health = (state.get("Health") or {}).get("Status", "none")
    running = state["Status"] == "running"
    uptime = _ago(state["StartedAt"]) if running else ""
    return Row(
        instance.component,
        instance.name,
        host,
        state["Status"],
        health if running else "",
        container["Config"]["Image"],
        uptime,
        ports,
    )


def _ago(started: str) -> str:
    """`3m`, `2h`, `5d` since Docker's timestamp."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(started[:19] + "+00:00")).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def _brokers(sources: Sources) -> list[dict[str, Any]]:
    kafka = sources.kafka
    registered, partitions, controller = kafka.brokers(), kafka.partitions(), kafka.controller()
    return [
        {
            "id": node.vars["node_id"],
            "host": node.host,
            "address": node.endpoint("client"),
            "registered": node.vars["node_id"] in registered,
            "controller": node.vars["node_id"] == controller,
            "leads": sum(p.leader == node.vars["node_id"] for p in partitions),
            "replicas": sum(node.vars["node_id"] in p.replicas for p in partitions),
            "in_sync": sum(node.vars["node_id"] in p.isr for p in partitions),
        }
        for node in sources.cluster.instances("kafka")
    ]


def _connectors(sources: Sources) -> list[dict[str, Any]]:
    found = sources.connect.connectors()
    return [
        {
            "name": c.name,
            "state": c.state,
            "running": c.running,
            "tasks": [{"id": t.id, "state": t.state, "worker": t.worker} for t in c.tasks],
            "failure": c.failure,
        }
        for c in sorted(found.values(), key=lambda c: c.name)
    ]


def render(status: Status, short: bool = False) -> Group:
    """The tables for a person; reads well at 80 columns. `short`: containers that are well are only counted."""
    rows = [row for row in status.containers if not (short and row.well)]
    parts: list[Any] = [_table(rows)] if rows else []
    if left_out := len(status.containers) - len(rows):
        parts.append(Text(f"{left_out} healthy, not shown", style="green"))
    if status.brokers:
        parts += ["", _broker_table(status.brokers)]
    if status.connectors:
        parts += ["", _connector_table(status.connectors)]
    for host, why in status.unreachable.items():
        parts += ["", Text(f"{host} does not answer: {why}", style="red")]
    parts += [Text(problem, style="red") for problem in status.problems]
    if status.next:
        parts += ["", *(Text(f"next: {step}", style="yellow") for step in status.next)]
    return Group(*parts)


def _styled(word: str) -> Text:
    return Text(word, style="green" if word in _GOOD else "yellow" if word in ("starting", "restarting", "unknown") else "red")


def _grid(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("leads", "in sync", "up") else "left", overflow="fold")
    return table


def _table(rows: list[Row]) -> Table:
    table = _grid("instance", "host", "state", "health", "up", "ports", "image")
    for row in rows:
        # Venice's own are named after what they are; their tag says which.
        image = row.image.split(":")[-1] if row.image.startswith("venice/") else row.image
        table.add_row(
            row.instance,
            row.host,
            _styled(row.state),
            _styled(row.health),
            row.uptime,
            row.ports,
            Text(image, style="dim"),
        )
    return table


def _broker_table(brokers: list[dict[str, Any]]) -> Table:
    table = _grid("broker", "host", "address", "", "leads", "in sync")
    for b in brokers:
        role = Text("not registered", style="red") if not b["registered"] else Text("controller" if b["controller"] else "")
        whole = b["in_sync"] == b["replicas"]
        table.add_row(
            str(b["id"]),
            b["host"],
            b["address"],
            role,
            str(b["leads"]),
            Text(f"{b['in_sync']}/{b['replicas']}", style="" if whole else "red"),
        )
    return table


def _connector_table(connectors: list[dict[str, Any]]) -> Table:
    table = _grid("connector", "state", "tasks", "")
    for c in connectors:
        running = sum(t["state"] == "RUNNING" for t in c["tasks"])
        table.add_row(c["name"], _styled(c["state"]), f"{running}/{len(c['tasks'])}", Text(c["failure"], style="red"))
    return table
