"""Filters for Kafka's configuration: node ids, the cluster id and the first quorum."""

from __future__ import annotations

import base64
import re
import uuid


def _properties(text):
    """`key=value` lines as a dict."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def _recorded(records):
    """(host, instance name) -> meta.properties, out of {host: {path: text}}."""
    found = {}
    for host, files in records.items():
        for path, text in files.items():
            if match := re.search(r"/(kafka(?:-\d+)?)/meta\.properties$", path):
                found[host, match[1]] = _properties(text)
    return found


def nodes(hosts, per_host, controllers, records):
    """Kafka's nodes in the order of the group's hosts: [{host, name, node_id, offset, controller}].

    A node keeps the id that its storage was formatted with, wherever its host now stands in the inventory; new nodes get the
    lowest free ids. The nodes with the lowest ids are the controllers, so that reordering hosts moves no role either.
    """
    known = {key: int(meta["node.id"]) for key, meta in _recorded(records).items() if "node.id" in meta}
    found = []
    for host in hosts:
        for offset in range(per_host):
            name = f"kafka-{offset + 1}" if per_host > 1 else "kafka"
            found.append({"host": host, "name": name, "offset": offset, "node_id": known.get((host, name))})
    taken = {node["node_id"] for node in found}
    free = (number for number in range(1, 10_000) if number not in taken)
    for node in found:
        if node["node_id"] is None:
            node["node_id"] = next(free)
    voters = sorted(node["node_id"] for node in found)[:controllers]
    return [node | {"controller": node["node_id"] in voters} for node in found]


def cluster_id(records):
    """The cluster id that the hosts' storage was formatted with, or an empty string."""
    ids = {meta["cluster.id"] for meta in _recorded(records).values() if "cluster.id" in meta}
    return sorted(ids)[0] if ids else ""


def kafka_uuid(text):
    """Kafka's form (base64url of the 16 bytes, without padding) of a UUID.

    The first bit is cleared, so that it never begins with a hyphen, which Kafka's command-line tools take for an option.
    """
    data = uuid.UUID(str(text)).bytes
    return base64.urlsafe_b64encode(bytes([data[0] & 0x7F]) + data[1:]).decode().rstrip("=")


def initial_controllers(voters, cluster):
    """`id@address:port:directory-id,...` for `kafka-storage format --initial-controllers` (KIP-853).

    The directory ids follow from the cluster and the node, so that every node computes the same list without asking the others.
    """
    space = uuid.uuid5(uuid.NAMESPACE_URL, f"venice:{cluster}")
    return ",".join(f"{v['node_id']}@{endpoint(v, 'controller')}:{kafka_uuid(uuid.uuid5(space, str(v['node_id'])))}" for v in voters)


def endpoint(instance, port):
    """`address:port` of an instance's named port."""
    return f"{instance['address']}:{instance['ports'][port]}"


class FilterModule:
    def filters(self):
        return {
            "venice_kafka_nodes": nodes,
            "venice_kafka_cluster_id": cluster_id,
            "venice_kafka_uuid": kafka_uuid,
            "venice_initial_controllers": initial_controllers,
            "venice_endpoint": endpoint,
        }
