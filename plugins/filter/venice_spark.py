"""Filters for Spark's configuration: names and ports."""

from __future__ import annotations

import ipaddress


def names(instances, resolved):
    """Each instance's `hostname` -> IP address of its host, which `resolved` (host -> addresses) says where the inventory has a name."""
    found = {}
    for instance in instances:
        address = instance["address"]
        try:
            ipaddress.ip_address(address)
        except ValueError:
            known = resolved.get(instance["host"])
            address = known[0] if isinstance(known, list) and known else address
        found[instance["hostname"]] = address
    return found


def ports(first, count, name):
    """`count` consecutive ports: {name_1: first, name_2: first + 1, ...}."""
    return {f"{name}_{number + 1}": int(first) + number for number in range(int(count))}


class FilterModule:
    def filters(self):
        return {"venice_spark_names": names, "venice_spark_ports": ports}
