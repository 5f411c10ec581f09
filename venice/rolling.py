"""Rolling changes: which container next, may it go down now, and is it wholly back."""

import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from venice.errors import InputError, UnreachableError, VeniceError

if TYPE_CHECKING:
    from venice.cluster import Cluster, Instance

# Seconds for a broker that is away to register again: Docker restarts a crashed one, nobody restarts a stopped one.
_COMES_BACK = 10.0
# A worker that joins is given its share by two rebalances: between them everything runs where it ran, to stop and move an instant later.
_REBALANCED = 3.0
_UP = ("running", "paused")


def parts(cluster: "Cluster", chosen: list["Instance"]) -> list[dict[str, Any]]:
    """What restarting the chosen instances is made of: for each component, in dependency order, `{component, stopped, running}`.

    Both are container names by host. What is stopped is started at once (a quorum of stopped controllers needs a majority of
    them to come up), what runs is restarted one by one. Raises InputError for a container that was never made; what is on the
    hosts is read from the model's facts.
    """
    seen = {
        (host, c["name"]): c["status"]
        for host, facts in cluster.facts.items()
        for c in facts.get("containers", [])
        if c["cluster"] == cluster.name
    }
    absent = [f"{i.container} on {i.host}" for i in chosen if (i.host, i.container) not in seen]
    if absent:
        raise InputError(f"{cluster.name}: there is no {', '.join(absent)}", "nothing was restarted; venice deploy makes and starts them")
    found = []
    for component in cluster.order:
        sorted_by_state: dict[str, dict[str, list[str]]] = {"stopped": defaultdict(list), "running": defaultdict(list)}
        for instance in (i for i in chosen if i.component == component):
            state = "running" if seen[instance.host, instance.container] in _UP else "stopped"
            sorted_by_state[state][instance.host].append(instance.container)
        if any(sorted_by_state.values()):
            found.append({"component": component} | {state: dict(hosts) for state, hosts in sorted_by_state.items()})
    return found


def order(cluster: "Cluster", pending: list["Instance"]) -> list["Instance"]:
    """The pending instances in the order of their components' dependencies; the active controller after all other brokers."""
    if not pending:
        return []
    active = None
    if any(i.component == "kafka" for i in pending):
        from venice.kafka import Kafka

        try:
            active = Kafka.of(cluster).controller()
        except UnreachableError as error:
            raise UnreachableError(
                error.message,
                "no broker was stopped; `venice up` starts those that are down, `venice down` and `venice up` stop and start all",
            ) from error
    return sorted(pending, key=lambda i: (cluster.order.index(i.component), i.vars.get("node_id", 0) == active))


def wait_may_restart(cluster: "Cluster", instance: "Instance", timeout: float) -> list[str]:
    """Returns when the instance may go down: the connectors that are meant to run, when it is a Connect worker (see `wait_back`).

    Raises VeniceError with what stood against it after `timeout` seconds, or sooner when another broker is down.
    """
    if instance.component == "connect":
        return _meant_to_run(cluster)
    if instance.component != "kafka":
        return []
    from venice.kafka import Kafka

    kafka = Kafka.of(cluster)
    begun = time.monotonic()
    while True:
        waited, down = time.monotonic() - begun, []
        try:
            allowed, why = kafka.can_restart(instance.vars["node_id"])
            if allowed:
                return []
            # Once the others are there, replicas catch up; a broker that stays away will not come by waiting.
            if waited > min(_COMES_BACK, timeout):
                down = _down(cluster, instance, set(kafka.brokers()))
        except UnreachableError as error:  # of many questions busy brokers may miss one
            why = error.message
        if down:
            names = [f"{i.name}@{i.host}" for i in down]
            raise VeniceError(
                f"{instance.host}: {instance.container} may not restart while {', '.join(names)} is down: {why}",
                f"it was not stopped; first: venice restart {' '.join(names)}",
            )
        if waited > timeout:
            raise VeniceError(
                f"{instance.host}: {instance.container} may not restart: {why}",
                "it was not stopped; when the replicas have caught up, run the same command again",
            )
        # Replicas catch up at their own pace; there is nothing to subscribe to.
        time.sleep(0.5)


def wait_back(cluster: "Cluster", instance: "Instance", connectors: list[str] | None, timeout: float) -> None:
    """Returns when a restarted instance does its whole work again, beyond being healthy.

    A broker: all its replicas are in sync. A Connect worker: `connectors` (None: all that are meant to) run, wherever. Raises
    VeniceError when that is not so, and nothing got better for `timeout` seconds.
    """
    if instance.component == "kafka":
        _wait_in_sync(cluster, instance, timeout)
    elif instance.component == "connect":
        from venice.connect import Connect

        Connect.of(cluster).wait_running(_meant_to_run(cluster) if connectors is None else connectors, timeout, settled=_REBALANCED)


def _wait_in_sync(cluster: "Cluster", instance: "Instance", timeout: float) -> None:
    from venice.kafka import Kafka

    kafka, node = Kafka.of(cluster), instance.vars["node_id"]
    fewest, deadline = None, time.monotonic() + timeout
    while True:
        try:
            lacking = [p for p in kafka.partitions() if node in p.replicas and node not in p.isr]
            registered = node in kafka.brokers()
            if registered and not lacking:
                return
            what = (
                f"{len(lacking)} of its replicas are not in sync ({', '.join(map(str, lacking[:3]))})"
                if registered
                else "is not registered"
            )
            if fewest is None or len(lacking) < fewest:
                # much data takes its time: as long as replicas catch up, it is waited for
                fewest, deadline = len(lacking), time.monotonic() + timeout
        except UnreachableError as error:  # of many questions busy brokers may miss one
            what = f"nobody says whether its replicas are in sync ({error.message})"
        if time.monotonic() > deadline:
            raise VeniceError(
                f"{instance.host}: {instance.container} is healthy, but {what} after {timeout:g} s",
                f"no further broker was stopped; venice logs {instance.name}@{instance.host} shows what it does",
            )
        time.sleep(0.5)


def _down(cluster: "Cluster", instance: "Instance", registered: set[int]) -> list["Instance"]:
    others = [i for i in cluster.instances("kafka") if (i.host, i.name) != (instance.host, instance.name)]
    return [i for i in others if i.vars["node_id"] not in registered]


def _meant_to_run(cluster: "Cluster") -> list[str]:
    """Connectors that run, or that no worker has just now; not those that failed, or that somebody paused or stopped."""
    from venice.connect import Connect

    with suppress(UnreachableError):
        return [
            c.name for c in Connect.of(cluster).connectors().values() if c.state in ("RUNNING", "UNASSIGNED") and c.tasks and not c.failure
        ]
    return []


def instance_at(cluster: "Cluster", host: str, container: str) -> "Instance":
    """The instance whose container it is. Raises InputError when nothing on that host describes it."""
    for instance in cluster.instances():
        if (instance.host, instance.container) == (host, container):
            return instance
    raise InputError(f"{host}: nothing describes a container {container}", "`venice status` lists what should run")


def chosen_on(instances: list["Instance"], hosts: Mapping[str, Any] | list[str]) -> list["Instance"]:
    """Those that run on the hosts of a run. Raises InputError when none does."""
    found = [i for i in instances if i.host in hosts]
    if not found:
        raise InputError("none of what was named runs on the hosts of this run", "name it, and its host in --limit, anew")
    return found
