"""From the names that people give to the instances they mean: one way for all commands that act on containers."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from venice.errors import InputError

if TYPE_CHECKING:
    from venice.cluster import Cluster, Instance
    from venice.hosts import DockerHost

ALL = "all"


def select(cluster: "Cluster | Running", names: Iterable[str]) -> list["Instance"]:
    """The instances meant by `names`, each once, in the order of the components' dependencies and the inventory.

    A name is a component (`kafka`), an instance (`kafka-2`), a container (`venice-kafka-2`), a host (`lab-2`), one of the
    first three with its host (`kafka@lab-2`), or `all`. Raises InputError that suggests the nearest for an unknown one.
    """
    chosen = {id(instance) for name in names for instance in _matching(cluster, name)}
    return [i for component in cluster.order for i in cluster.instances(component) if id(i) in chosen]


class Running:
    """A cluster with what else of it still runs on the hosts: producers of other inventories' pipelines, components left over.

    `select` and `one` take it as they take a cluster. Made only when a name is not the inventory's: it asks all hosts.
    """

    def __init__(self, cluster: "Cluster"):
        """Asks all hosts at once; one that does not answer shows nothing."""
        from venice.hosts import over

        self.name = cluster.name
        self.hosts = cluster.hosts
        self._instances = cluster.instances()
        self.order = [*cluster.order]
        there = {(i.host, i.container) for i in self._instances}
        for host, found in over(cluster.hosts.values(), lambda host: _containers(host, cluster.name)).items():
            if isinstance(found, Exception):
                continue
            self._instances += [i for i in found if (host, i.container) not in there]
        self.order += [c for c in dict.fromkeys(i.component for i in self._instances) if c not in cluster.order]

    def instances(self, component: str | None = None) -> list["Instance"]:
        """As of a cluster."""
        return [i for i in self._instances if component in (None, i.component)]


def with_running(cluster: "Cluster", names: Iterable[str]) -> "Cluster | Running":
    """The cluster when it knows all the names; else with what runs on its hosts besides."""
    try:
        select(cluster, names)
    except InputError:
        return Running(cluster)
    return cluster


def _containers(host: "DockerHost", cluster: str) -> list["Instance"]:
    from venice.cluster import Instance

    with host.asking():
        found = host.docker.api.containers(all=True, filters={"label": f"venice.cluster={cluster}"})
    return [
        Instance(c["Labels"]["venice.component"], c["Labels"]["venice.instance"], host.name, "", {}, c["Names"][0].lstrip("/"))
        for c in found
    ]


def one(cluster: "Cluster | Running", name: str) -> "Instance":
    """The one instance that `name` means; InputError when it means several."""
    found = select(cluster, [name])
    if len(found) > 1:
        raise InputError(
            f"{cluster.name}: {name!r} is {len(found)} instances, and this works on one",
            f"name one of them: {', '.join(f'{i.name}@{i.host}' for i in found)}",
        )
    return found[0]


def known(cluster: "Cluster | Running") -> list[str]:
    """Every name that `select` understands, in the order in which to offer them; container names are not offered."""
    instances = cluster.instances()
    hosts = [host for host in cluster.hosts if any(i.host == host for i in instances)]
    components = [component.replace("_", "-") for component in cluster.order]
    several = [c for c in cluster.order if len({i.host for i in cluster.instances(c)}) > 1]
    single = [i.name for i in instances]
    at = [f"{c.replace('_', '-')}@{i.host}" for c in several for i in cluster.instances(c)]
    return list(dict.fromkeys([*components, *single, *hosts, *at, ALL]))


def _matching(cluster: "Cluster | Running", name: str) -> list["Instance"]:
    if name == ALL:
        return cluster.instances()
    what, _, host = name.partition("@")
    # an underscore is how the inventory writes a component, a hyphen how its container is called
    word = what.replace("_", "-")
    found = [
        i
        for i in cluster.instances()
        if (word in (i.component.replace("_", "-"), i.name, i.container) and host in ("", i.host)) or (i.host == name and not host)
    ]
    if not found:
        raise _unknown(cluster, name)
    return found


def _unknown(cluster: "Cluster | Running", name: str) -> InputError:
    names = known(cluster)
    what, _, host = name.partition("@")
    places = sorted({i.host for i in cluster.instances() if what.replace("_", "-") in (i.component.replace("_", "-"), i.name)})
    if host and places:
        return InputError(f"{cluster.name}: {what} does not run on {host}", f"it runs on {', '.join(places)}")
    near = difflib.get_close_matches(name, names, 1, cutoff=0.6)
    if name in cluster.hosts:
        return InputError(f"{cluster.name}: host {name} runs no component", f"known: {', '.join(names)}")
    suggestion = f"did you mean {near[0]}? " if near else ""
    return InputError(f"{cluster.name}: {name!r} is no component, instance or host", f"{suggestion}known: {', '.join(names)}")
