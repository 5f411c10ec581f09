"""What can be wrong with an inventory (`validate`, before any host is touched) and with the hosts (`assess`, before any change).

Both return all findings at once. They know no component: what a component needs stands in its role's description.
"""

import difflib
import ipaddress
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from venice.cluster import Cluster, component_groups, component_roles, roles, size
from venice.errors import InputError
from venice.reading import written_in

# Debian and Ubuntu releases whose packages the engine role knows.
_SYSTEMS = {("debian", "12"), ("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04")}
_CLOCK_SKEW = 1.0  # seconds; Kafka's timestamps and everybody's logs are compared across hosts
_DISK_FREE = 5 << 30  # bytes; images take 1.5 GB, and a full disk stops a broker
# ends of the names of numbers that can't be 0: nothing would ever run
_AT_LEAST_ONE = ("_mb", "_per_host", "_partitions", "_factor", "_replicas", "_timeout", "_connections", "_cores", "_executors", "_threads")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where (file and key, or host), what, and what to do."""

    where: str
    what: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        """Form for `--json` and run records."""
        return asdict(self)


def validate(cluster: Cluster) -> list[Finding]:
    """Everything that is wrong with the inventory itself. Touches no host."""
    checks: list[Callable[[Cluster], Iterator[Finding]]] = [
        _groups,
        _variables,
        _addresses,
        _requirements,
        _kafka,
        _documents,
        _pipelines,
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check(cluster)
        except InputError as error:
            findings.append(Finding(str(cluster.inventory_dir), error.message, error.remedy))
        except (TypeError, ValueError):
            # what a variable of the wrong type leads to; the variable was found before
            if not findings:
                raise
    return list(dict.fromkeys(findings))


def listing(findings: list[Finding], untouched: str) -> str:
    """Findings as text: how many there are and that no host was `untouched`, then each with its place and remedy."""
    count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}; no host was {untouched}"
    return "\n".join([count, *(f"  {f.where}: {f.what}\n    → {f.remedy}" for f in findings)])


def empty(cluster: Cluster, hosts: list[str]) -> bool:
    """True when these are all hosts of the cluster, and none has a container of it.

    An engine that is installed but does not run may have some, as may a host that does not answer.
    """
    wanted = {host.name for host in cluster.hosts.values() if host.components}
    facts = [cluster.facts.get(name, {}) for name in wanted]
    known = all("engine" in f and (f["engine"]["running"] or not f["engine"]["installed"]) for f in facts)
    return known and wanted <= set(hosts) and not any(c["cluster"] == cluster.name for f in facts for c in f["containers"])


def assess(cluster: Cluster, hosts: list[str], purpose: str = "deploy") -> list[Finding]:
    """Everything that stands against a deployment on these hosts, out of the facts gathered.

    Other purposes ask for less: "stop" that each host answers and has an engine, "start" that the containers are there, too,
    or that nothing is there at all, which is then deployed.
    """
    findings: list[Finding] = []
    if purpose == "start" and empty(cluster, hosts):
        purpose = "deploy"
    for host in (cluster.hosts[h] for h in hosts if h in cluster.hosts and cluster.hosts[h].components):
        facts = cluster.facts.get(host.name, {"unreachable": "no answer"})
        if problem := _contact(cluster, host.name, facts):
            findings.append(problem)
        elif purpose == "deploy":
            for check in (_system, _room, _ports, _clock, _resolution, _neighbours):
                findings += check(cluster, host.name, facts)
        elif not facts["engine"]["running"]:
            findings.append(Finding(host.name, "has no running Docker engine", "venice deploy installs it"))
        elif purpose == "start":
            there = {c["name"] for c in facts["containers"] if c["cluster"] == cluster.name}
            absent = sorted({i.container for i in cluster.instances() if i.host == host.name} - there)
            if absent:
                findings.append(Finding(host.name, f"has no {', '.join(absent)}", "venice deploy makes and starts them"))
    if purpose == "deploy":
        findings += _storage(cluster)
    return findings


# ---- the inventory -----------------------------------------------------------------------------------------------


def _where(cluster: Cluster, key: str, value: Any) -> str:
    """`file:line: key` when Ansible knows where the value was written, else the inventory's folder."""
    if found := written_in(value):
        path, line = found
        place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return f"{place}:{line}: {key}" if line else f"{place}: {key}"
    return f"{cluster.inventory_dir}: {key}"


def _like(word: str, known: list[str]) -> str:
    """`did you mean X? ` or nothing."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"did you mean {match[0]}? " if match else ""


def _groups(cluster: Cluster) -> Iterator[Finding]:
    known = component_groups()
    used = {c for host in cluster.hosts.values() for c in host.components}
    for group, hosts in cluster.groups.items():
        if group in known or group in ("all", "ungrouped"):
            continue
        if suggestion := _like(group, known):
            yield Finding(
                f"{cluster.inventory_dir}: group {group}",
                f"{group} is no component",
                f"{suggestion}components: {', '.join(known)}",
            )
        elif not hosts:
            yield Finding(f"{cluster.inventory_dir}: group {group}", "has no hosts and is no component", "remove it")
    if not used:
        yield Finding(
            str(cluster.inventory_dir),
            "no component's group has a host",
            f"name groups after components: {', '.join(known)}",
        )
    names = {str(cluster.var(h, "venice_cluster")) for h in cluster.hosts}
    if len(names) > 1:
        yield Finding(
            str(cluster.inventory_dir),
            f"venice_cluster differs between hosts: {', '.join(sorted(names))}",
            "set it once, for all hosts",
        )
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", name):
            yield Finding(
                f"{cluster.inventory_dir}: venice_cluster",
                f"{name!r} is no name for a cluster",
                "use lower-case letters, digits and hyphens",
            )


def _variables(cluster: Cluster) -> Iterator[Finding]:
    options = {name: spec for role in roles().values() for name, spec in role.options.items()}
    prefixes = tuple(f"{role}_" for role in roles())
    for host in cluster.hosts:
        for key, value in cluster.given(host).items():
            if key in options:
                yield from _typed(cluster, host, key, value, options[key])
            elif key.startswith(prefixes) and key not in component_roles():
                remedy = f"{_like(key, list(options))}docs/variables.md lists all"
                yield Finding(_where(cluster, key, value), "unknown variable", remedy)


def _typed(cluster: Cluster, host: str, key: str, value: Any, spec: dict[str, Any]) -> Iterator[Finding]:
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator  # not before `cluster` has named Ansible's configuration

    evaluated = cluster.template(host, value)
    argument = {k: v for k, v in spec.items() if k in ("type", "elements", "choices", "options")}
    checked = ArgumentSpecValidator({key: argument}).validate({key: evaluated})
    # the check takes a text for a list or a dict, too, but as a variable it stays a text
    text = isinstance(evaluated, str) and spec.get("type") in ("list", "dict")
    shown = "its value" if "password" in key else "a text" if text else repr(evaluated)
    if checked.error_messages or text:
        wanted = f"one of {', '.join(map(str, spec['choices']))}" if "choices" in spec else f"of type {spec.get('type', 'str')}"
        yield Finding(_where(cluster, key, value), f"{shown} is not {wanted}", spec["description"].split(";")[0])
        return
    number = checked.validated_parameters[key]
    if key.endswith("_port") and not 0 < number < 65536:
        yield Finding(_where(cluster, key, value), f"{number} is no port", "use a number from 1 to 65535")
    if key.endswith("_memory"):
        try:
            size(evaluated)
        except InputError as error:
            yield Finding(_where(cluster, key, value), error.message, spec["description"])
    if key.endswith(_AT_LEAST_ONE) and number < 1:
        yield Finding(_where(cluster, key, value), f"{number} is less than 1", spec["description"])
    if key.endswith("_dir") and (not str(evaluated).startswith("/") or str(evaluated).strip("/").count("/") < 1):
        yield Finding(
            _where(cluster, key, value),
            f"{evaluated!r} is not a folder of Venice's own",
            "use an absolute path such as /srv/venice",
        )


def _addresses(cluster: Cluster) -> Iterator[Finding]:
    deployed = [host for host in cluster.hosts.values() if host.components]
    by_address = defaultdict(list)
    for host in deployed:
        by_address[host.address].append(host.name)
        try:
            address = ipaddress.ip_address(host.address)
        except ValueError:
            local = host.address == "localhost"
        else:
            local = address.is_loopback or address.is_unspecified
        if local and len(deployed) > 1:
            yield Finding(
                f"{host.name}: venice_address",
                f"{host.address} means another machine to everybody else",
                "set venice_address to an address that all hosts and you can reach",
            )
    for address, names in by_address.items():
        if len(names) > 1:
            yield Finding(
                f"{', '.join(names)}: venice_address",
                f"all have the address {address}",
                "give each host its own ansible_host or venice_address",
            )


def _requirements(cluster: Cluster) -> Iterator[Finding]:
    used = {c for host in cluster.hosts.values() for c in host.components}
    for component in sorted(used):
        description = roles()[component].description
        for needed in description.get("requires", []):
            if needed not in used:
                yield Finding(
                    f"{cluster.inventory_dir}: group {component}",
                    f"needs {needed}, whose group has no hosts",
                    f"add a host to the group {needed}",
                )
        for conflict in description.get("conflicts", []):
            said = cluster.template(cluster.groups[component][0], conflict)
            if said["when"]:
                yield Finding(f"{cluster.inventory_dir}: group {component}", said["what"], said["remedy"])
        most = description.get("most_hosts")
        if most and len(cluster.groups[component]) > most:
            yield Finding(
                f"{cluster.inventory_dir}: group {component}",
                f"has {len(cluster.groups[component])} hosts, at most {most} can be used",
                "keep one and remove the others from the group",
            )
    ports: dict[tuple[str, int], list[str]] = defaultdict(list)
    for instance in cluster.instances():
        for name, port in instance.ports.items():
            ports[instance.host, port].append(f"{instance.name} ({name})")
    for (host, port), users in ports.items():
        if len(users) > 1:
            yield Finding(host, f"port {port} is wanted by {' and '.join(users)}", "change one of their *_port variables")


def _kafka(cluster: Cluster) -> Iterator[Finding]:
    nodes = cluster.instances("kafka")
    if not nodes:
        return
    host = nodes[0].host
    group = f"{cluster.inventory_dir}: group kafka"
    controllers = sum(n.vars["controller"] for n in nodes)
    if controllers % 2 == 0:
        yield Finding(
            group,
            f"{len(nodes)} nodes make a quorum of {controllers} controllers: losing one stops the cluster",
            "use one host (three nodes there), three or more; or set kafka_controllers to an odd number that they reach",
        )
    replicas, minimum = (
        int(cluster.var(host, "kafka_replication_factor")),
        int(cluster.var(host, "kafka_min_insync_replicas")),
    )
    if replicas > len(nodes):
        yield Finding(group, f"{len(nodes)} nodes cannot hold {replicas} replicas", "add hosts, or lower kafka_replication_factor")
    if minimum > replicas:
        yield Finding(
            _where(cluster, "kafka_min_insync_replicas", cluster.raw_vars(host)["kafka_min_insync_replicas"]),
            f"{minimum} in-sync replicas of {replicas} can never be reached",
            "it must be at most kafka_replication_factor",
        )
    elif minimum == replicas > 1:
        yield Finding(
            _where(cluster, "kafka_min_insync_replicas", cluster.raw_vars(host)["kafka_min_insync_replicas"]),
            f"{minimum} of {replicas} in-sync replicas: no broker could ever be restarted without stopping writes",
            "set it to one less than kafka_replication_factor",
        )


def _documents(cluster: Cluster) -> Iterator[Finding]:
    """Renders every host's desired state: a template that cannot be evaluated is found here, not on the third host."""
    for host in cluster.hosts:
        for container in cluster.desired(host)["containers"]:
            heap = next((size(v) for k, v in container["env"].items() if k.endswith("_HEAP")), 0)
            if heap >= container["memory"]:
                yield Finding(
                    f"{host}: {container['component']}",
                    f"a heap of {heap >> 20} MiB does not fit into a memory limit of {container['memory'] >> 20} MiB",
                    f"raise {container['component']}_memory or lower {container['component']}_heap_mb",
                )


def _pipelines(cluster: Cluster) -> Iterator[Finding]:
    from venice.pipeline import load
    from venice.pipeline.look import Wanted

    for folder in cluster.pipelines:
        try:
            Wanted.of(cluster, load(folder))
        except InputError as error:
            yield Finding(f"pipeline {folder.name}", error.message, error.remedy)


# ---- the hosts ---------------------------------------------------------------------------------------------------


def _contact(cluster: Cluster, host: str, facts: dict[str, Any]) -> Finding | None:
    connection = cluster.hosts[host].vars
    target = f"{connection.get('ansible_user', 'you')}@{connection.get('ansible_host', host)}:{connection.get('ansible_port', 22)}"
    if reason := facts.get("unreachable"):
        # Ansible's own sentence around it says the same for every cause.
        reason = " ".join(reason.split("over ssh: ")[-1].split())
        return Finding(
            host,
            f"does not answer over SSH as {target}: {reason}",
            f"start it, try `ssh` by hand; or leave it out: --limit '!{host}'",
        )
    if reason := facts.get("failed"):
        if "sudo" in reason or "password" in reason:
            return Finding(
                host,
                f"{target} may not use sudo: {reason}",
                "allow it without a password, or set ansible_become_password",
            )
        return Finding(
            host,
            f"cannot be examined: {reason}",
            "Venice needs Python 3.9 or newer on the host: apt-get install python3",
        )
    if facts.get("uid") != 0:
        return Finding(host, f"{target} did not become root", "remove ansible_become: false from the inventory")
    return None


def _system(cluster: Cluster, host: str, facts: dict[str, Any]) -> Iterator[Finding]:
    system = facts["os"]
    if not facts["engine"]["installed"] and (system["id"], system["version_id"]) not in _SYSTEMS:
        known = ", ".join(f"{i} {v}" for i, v in sorted(_SYSTEMS))
        yield Finding(
            host,
            f"runs {system['pretty']} and has no Docker engine",
            f"install Docker yourself, or use one of: {known}",
        )
    if facts["arch"] != platform.machine() and not cluster.var(host, "venice_image_registry"):
        yield Finding(
            host,
            f"is a {facts['arch']} machine; images built here are for {platform.machine()}",
            "set venice_image_registry to one that has both",
        )


def _room(cluster: Cluster, host: str, facts: dict[str, Any]) -> Iterator[Finding]:
    needed = sum(c["memory"] for c in cluster.desired(host)["containers"])
    if needed > facts["memory"]["total"]:
        limits = ", ".join(f"{c['name']} {c['memory'] >> 20} MiB" for c in cluster.desired(host)["containers"])
        yield Finding(
            host,
            f"has {facts['memory']['total'] >> 20} MiB of memory; its containers may take {needed >> 20} MiB ({limits})",
            "move a component to another host, or lower its *_heap_mb and *_memory",
        )
    for path, disk in facts["disk"].items():
        if disk["free"] < _DISK_FREE:
            yield Finding(host, f"{path} has {disk['free'] >> 20} MiB free", f"free {_DISK_FREE >> 30} GiB there")


def _ports(cluster: Cluster, host: str, facts: dict[str, Any]) -> Iterator[Finding]:
    names = {i.container for i in cluster.instances() if i.host == host}
    for port, state in facts["ports"].items():
        if state["free"] or state.get("container") in names:
            continue
        user = next(i for i in cluster.instances() if i.host == host and int(port) in i.ports.values())
        yield Finding(
            host,
            f"port {port} of {user.name} is held by {state['held_by']}",
            f"stop that, or set {_port_variables(cluster, host, user.component, int(port))} to another",
        )


def _port_variables(cluster: Cluster, host: str, component: str, port: int) -> str:
    """The variable that a component's port is from; all that may be when none has just that number."""
    names = [name for name in roles()[component].options if name.endswith("_port")]
    return " or ".join([name for name in names if int(cluster.var(host, name)) == port] or names)


def _clock(cluster: Cluster, host: str, facts: dict[str, Any]) -> Iterator[Finding]:
    """Against the other hosts: the operator's own clock may be wrong without harm."""
    clocks = [f["clock"] for f in cluster.facts.values() if "clock" in f]
    middle = sorted(c["offset"] for c in clocks)[len(clocks) // 2]
    clock = facts["clock"]
    if abs(clock["offset"] - middle) - clock["error"] > _CLOCK_SKEW:
        yield Finding(
            host,
            f"its clock is {clock['offset'] - middle:+.1f} s off the other hosts'",
            "set it: timedatectl set-ntp true",
        )


def _resolution(cluster: Cluster, host: str, facts: dict[str, Any]) -> Iterator[Finding]:
    own = {h: set(f.get("addresses", [])) for h, f in cluster.facts.items()}
    for name, found in facts["resolve"].items():
        address = cluster.hosts[name].address
        if isinstance(found, str) or not found:
            yield Finding(
                host,
                f"cannot resolve {address}, the address of {name}",
                "add it to DNS or /etc/hosts, or set venice_address to an IP address",
            )
            continue
        loopback = name != host and all(ipaddress.ip_address(a).is_loopback for a in found)
        stranger = next(
            (h for h in own if h != name and not own[h].isdisjoint(found) and own.get(name, set()).isdisjoint(found)),
            None,
        )
        if loopback or (stranger and not all(ipaddress.ip_address(a).is_loopback for a in found)):
            who = "itself" if loopback else stranger
            yield Finding(
                host,
                f"{address}, the address of {name}, leads to {who} from there ({', '.join(found)})",
                "mend DNS, /etc/hosts or venice_address",
            )


def _neighbours(cluster: Cluster, host: str, facts: dict[str, Any]) -> Iterator[Finding]:
    wanted = {i.container for i in cluster.instances() if i.host == host}
    for container in facts["containers"]:
        if container["name"] in wanted and container["cluster"] != cluster.name:
            owner = f"belongs to cluster {container['cluster']}" if container["cluster"] else "was not made by Venice"
            yield Finding(
                host,
                f"a container {container['name']} is there that {owner}",
                "remove it (venice destroy with its inventory), or use another host",
            )


def _storage(cluster: Cluster) -> Iterator[Finding]:
    """Node ids and cluster ids as the hosts' Kafka storage has them."""
    found = re.compile(r"^(node\.id|cluster\.id)=(.+)$", re.MULTILINE)
    meta = [
        (host, path, dict(found.findall(text)))
        for host, facts in cluster.facts.items()
        for path, text in facts.get("records", {}).items()
        if path.endswith("meta.properties")
    ]
    clusters = defaultdict(list)
    for host, path, values in meta:
        clusters[values.get("cluster.id")].append(f"{host}:{path}")
    if len(clusters) > 1:
        found_text = "; ".join(f"{cid} on {', '.join(places)}" for cid, places in clusters.items())
        yield Finding(
            "group kafka",
            f"the hosts' storage belongs to different Kafka clusters: {found_text}",
            "venice destroy the host that does not belong",
        )
    for node, count in Counter(values.get("node.id") for _, _, values in meta).items():
        if count > 1:
            places = ", ".join(f"{host}:{path}" for host, path, values in meta if values.get("node.id") == node)
            yield Finding(
                "group kafka",
                f"node id {node} is recorded more than once: {places}",
                "a disk was copied: remove one of them",
            )
