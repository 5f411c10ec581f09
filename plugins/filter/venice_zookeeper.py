"""Filter for ZooKeeper's configuration: the numbers of its nodes."""

from __future__ import annotations

import re

from ansible.errors import AnsibleFilterError

_SIZES = (1, 3)


def nodes(hosts, records):
    """ZooKeeper's nodes in the order of the group's hosts: [{host, node_id}].

    A node keeps the number that is recorded beside its data (`records`: {host: {path: text}}), wherever its host now stands in
    the inventory; new nodes get the lowest free ones.
    """
    if len(hosts) not in _SIZES:
        raise AnsibleFilterError(f"the group zookeeper has {len(hosts)} hosts: it takes one, or three, of which one may fail")
    known: dict[str, int] = {}
    for host in hosts:
        for path, text in records.get(host, {}).items():
            # a node that was moved has left its number on the host where it was
            if re.search(r"/zookeeper/myid$", path) and text.strip().isdigit() and int(text) not in known.values():
                known[host] = int(text)
    free = (number for number in range(1, 256) if number not in known.values())
    return [{"host": host, "node_id": known[host] if host in known else next(free)} for host in hosts]


class FilterModule:
    def filters(self):
        return {"venice_zookeeper_nodes": nodes}
