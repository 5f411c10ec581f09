"""Filter for the maps that Hazelcast keeps in step."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError

OWN = "venice."


def maps(listed):
    """`hazelcast_maps` as they are. Two feeds of one map would undo each other; one topic is read once."""
    for key in ("topic", "map"):
        names = [item.get(key) for item in listed]
        if wrong := [item for item in listed if not item.get(key)]:
            raise AnsibleFilterError(f"hazelcast_maps: {wrong[0]} has no {key}")
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise AnsibleFilterError(f"hazelcast_maps: the {key} {doubles[0]} stands in it {names.count(doubles[0])} times")
    if own := [item["map"] for item in listed if item["map"].startswith(OWN)]:
        raise AnsibleFilterError(f"hazelcast_maps: the map {own[0]}: names that begin with {OWN} are Venice's own")
    return listed


class FilterModule:
    def filters(self):
        return {"venice_hazelcast_maps": maps}
