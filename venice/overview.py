"""The model of a cluster in words: who runs where, under which addresses."""

from dataclasses import asdict, dataclass
from typing import Any

from venice.cluster import Cluster, component_roles
from venice.paths import shown


@dataclass(frozen=True)
class Machine:
    """A host of the inventory."""

    name: str
    address: str
    components: list[str]
    config_dir: str
    data_dir: str


@dataclass(frozen=True)
class Running:
    """An instance and its endpoints: name of the port -> `address:port`."""

    name: str
    host: str
    container: str
    endpoints: dict[str, str]


@dataclass(frozen=True)
class Component:
    """A component that has hosts."""

    name: str
    title: str
    instances: list[Running]


@dataclass(frozen=True)
class Overview:
    """What `venice inventory show` shows; `to_dict` is the documented JSON. Components are in dependency order."""

    cluster: str
    inventory: str
    pipelines: list[dict[str, str]]
    bootstrap_servers: list[str]
    registry_urls: list[str]
    connect_urls: list[str]
    hosts: list[Machine]
    components: list[Component]

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        return asdict(self)


def overview(cluster: Cluster) -> Overview:
    """Reads the model; asks nobody. Raises InputError for a pipeline that is named and not there."""
    return Overview(
        cluster.name,
        shown(cluster.inventory_file),
        [{"name": folder.name, "folder": shown(folder)} for folder in cluster.pipelines],
        cluster.endpoint_list("kafka", "client"),
        cluster.registry_urls,
        cluster.connect_urls,
        [
            Machine(
                host.name,
                host.address,
                [c for c in cluster.order if c in host.components],
                str(cluster.var(host.name, "venice_config_dir")),
                str(cluster.var(host.name, "venice_data_dir")),
            )
            for host in cluster.hosts.values()
        ],
        [_component(cluster, name) for name in cluster.order],
    )


def _component(cluster: Cluster, name: str) -> Component:
    instances = [Running(i.name, i.host, i.container, {port: i.endpoint(port) for port in i.ports}) for i in cluster.instances(name)]
    return Component(name, component_roles()[name].description["title"], instances)
