"""Reads a map that Hazelcast keeps in step with a topic: one line of JSON per entry, or follows it as it changes.

    pip install hazelcast-python-client==5.7.0
    MEMBERS=192.168.61.11:5701,192.168.61.12:5701 CLUSTER=lab python hazelcast_map.py wikimedia_latest
    ... hazelcast_map.py wikimedia_latest --where "edits > 10"        entries whose JSON fits, chosen by the members
    ... hazelcast_map.py wikimedia_latest --follow                    all entries, then each change

The values are HazelcastJsonValue: `.loads()` gives Python's data. docs/hazelcast.md says how they come there.
"""

import argparse
import json
import os
import signal
import sys
import threading

import hazelcast
from hazelcast.core import HazelcastJsonValue
from hazelcast.predicate import sql


def show(key: str, value: HazelcastJsonValue | None) -> None:
    """An entry; null for one that was removed."""
    print(json.dumps({"key": key, "value": value.loads() if value else None}, ensure_ascii=False), flush=True)


def main() -> int:
    """Print the map."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("map")
    parser.add_argument("--where", help="a condition on the values, as SQL has it")
    parser.add_argument("--follow", action="store_true", help="go on with each change, until interrupted")
    arguments = parser.parse_args()
    if missing := [name for name in ("CLUSTER", "MEMBERS") if not os.environ.get(name)]:
        parser.error(f"not in the environment: {', '.join(missing)}")
    client = hazelcast.HazelcastClient(cluster_name=os.environ["CLUSTER"], cluster_members=os.environ["MEMBERS"].split(","))
    found = client.get_map(arguments.map).blocking()
    condition = sql(arguments.where) if arguments.where else None
    if arguments.follow:
        changed = {name: lambda event: show(event.key, event.value) for name in ("added_func", "updated_func", "removed_func")}
        # before the entries are read: a change in between is shown twice rather than never
        found.add_entry_listener(include_value=True, predicate=condition, **changed)
    for key, value in sorted(found.entry_set(condition)):
        show(key, value)
    if arguments.follow:
        ended = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: ended.set())
        ended.wait()
    client.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
