"""Rolling changes: which container next, and may it go down now."""

import time
from typing import TYPE_CHECKING

from venice.errors import VeniceError

if TYPE_CHECKING:
    from venice.cluster import Cluster, Instance


def order(cluster: "Cluster", pending: list["Instance"]) -> list["Instance"]:
    """The pending instances in the order of their components' dependencies; the active controller after all other brokers."""
    if not pending:
        return []
    active = None
    if any(i.component == "kafka" for i in pending):
        from venice.kafka import Kafka

        active = Kafka(cluster.bootstrap_servers).controller()
    return sorted(pending, key=lambda i: (cluster.order.index(i.component), i.vars.get("node_id", 0) == active))


def wait_may_restart(cluster: "Cluster", instance: "Instance", timeout: float) -> None:
    """Returns when the instance may go down. Raises VeniceError with what stood against it after `timeout` seconds."""
    if instance.component != "kafka":
        return
    from venice.kafka import Kafka

    kafka = Kafka(cluster.bootstrap_servers)
    deadline = time.monotonic() + timeout
    while True:
        allowed, why = kafka.can_restart(instance.vars["node_id"])
        if allowed:
            return
        if time.monotonic() > deadline:
            raise VeniceError(
                f"{instance.host}: {instance.container} may not restart: {why}",
                "nothing was stopped; when the replicas have caught up, run the same command again",
            )
        # Replicas catch up at their own pace; there is nothing to subscribe to.
        time.sleep(0.5)
