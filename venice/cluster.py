"""The model: inventory -> hosts, components, instances, endpoints, and each host's desired state.

The only place that knows ports and addresses. Variables come from Ansible's own inventory and variable manager; a role's
defaults are merged below them, which is exactly the precedence that role defaults have. So no playbook has to list the
components: a component is a role whose defaults hold `<role>_component`, and it runs on the hosts of the group of that name.
"""

import functools
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Set before Ansible is imported: it reads its configuration once, and Venice's plugins are found through it.
from venice import paths
from venice.errors import InputError

os.environ["ANSIBLE_CONFIG"] = str(paths.resource("ansible.cfg"))

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from venice import images
from venice.reading import Loader, one_message

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Instance:
    """One container of a component: `kafka` on lab-2, or `kafka-3` where a host has several."""

    component: str
    name: str
    host: str
    address: str
    ports: dict[str, int]
    container: str
    vars: dict[str, Any] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()
    """Names of ports on which something listens only at times."""

    def endpoint(self, port: str) -> str:
        """`address:port` of the named port."""
        return f"{self.address}:{self.ports[port]}"

    def as_vars(self) -> dict[str, Any]:
        """What templates see as `instance` and in the lists of `venice_instances`."""
        return self.vars | {
            "name": self.name,
            "host": self.host,
            "address": self.address,
            "ports": self.ports,
            "container": self.container,
        }


@dataclass(frozen=True)
class Host:
    """One machine: its name, the address others use, its components and Ansible's connection variables (templated)."""

    name: str
    address: str
    components: tuple[str, ...]
    vars: dict[str, Any]


@dataclass(frozen=True)
class Role:
    """A component's role: where it is, its defaults (untemplated) and the arguments it knows."""

    name: str
    path: Path
    defaults: dict[str, Any]
    options: dict[str, dict[str, Any]]

    @property
    def is_component(self) -> bool:
        """True when the role describes containers."""
        return f"{self.name}_component" in self.defaults

    @property
    def description(self) -> dict[str, Any]:
        """What a component's role says of its containers, untemplated: `<role>_component`."""
        return self.defaults[f"{self.name}_component"]

    @property
    def group(self) -> str:
        """The group on whose hosts the component runs: its own, but for one that belongs to another component."""
        return self.description.get("group", self.name)


@functools.cache
def roles() -> dict[str, Role]:
    """All of Venice's roles by name, read from `roles/*/defaults/main.yml` and `meta/argument_specs.yml`."""
    loader = DataLoader()
    found = {}
    for path in sorted(paths.resource("roles").iterdir()):
        defaults, specs = path / "defaults" / "main.yml", path / "meta" / "argument_specs.yml"
        if not defaults.exists():
            continue
        values = loader.load_from_file(str(defaults), trusted_as_template=True) or {}
        spec = loader.load_from_file(str(specs)) if specs.exists() else {}
        options = (spec.get("argument_specs") or {}).get("main", {}).get("options", {})
        found[path.name] = Role(path.name, path, values, options)
    return found


@functools.cache
def _plugins() -> None:
    """Makes Ansible's plugins loadable, once per process."""
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader([])


def component_roles() -> dict[str, Role]:
    """The roles that describe containers."""
    return {name: role for name, role in roles().items() if role.is_component}


def component_groups() -> list[str]:
    """The groups that components have: those of all components that do not run on another's hosts."""
    return [name for name, role in component_roles().items() if role.group == name]


def size(value: str | int) -> int:
    """Bytes of `512m`, `2g` or a plain number. Raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", str(value).strip().lower())
    if not match:
        raise InputError(f"{str(value)!r} is not a size such as 512m or 2g", "mend the variable *_memory or *_heap_mb")
    return int(float(match[1]) * _UNITS[match[2]])


class Cluster:
    """Everything an inventory says, evaluated. Made by `load` (CLI) or directly by the action plugins."""

    def __init__(
        self,
        raw: Mapping[str, dict[str, Any]],
        groups: Mapping[str, list[str]],
        loader: DataLoader,
        facts: Mapping[str, dict[str, Any]] | None = None,
    ):
        """`raw`: untemplated variables by host; `groups`: hosts by group; `facts`: what `venice_facts` found, by host."""
        if not raw:
            raise InputError("the inventory has no hosts", "add hosts to the groups of the components that they are to run")
        self._loader = loader
        self.groups = {name: list(hosts) for name, hosts in groups.items()}
        # Variables of the whole cluster are read from the first host: `validate` sees to it that they are the same on all.
        self._first = next(iter(raw))
        self.inventory_dir = Path(raw[self._first].get("inventory_dir") or ".")
        self.inventory_file = Path(raw[self._first].get("inventory_file") or self.inventory_dir)
        self.facts = dict(facts or {})
        base: dict[str, Any] = {}
        for role in roles().values():
            base.update(role.defaults)
        base |= {"venice_inventory_name": self._inventory_name()}
        self._given = dict(raw)
        self._documents: dict[str, dict[str, Any]] = {}
        self._vars = {h: base | v | {"groups": self.groups, "inventory_hostname": h} for h, v in raw.items()}
        self.name = str(self.var(self._first, "venice_cluster"))
        self.state_dir = self.inventory_dir / ".venice" / self.name
        records = self._records()
        registry = str(self.var(self._first, "venice_image_registry") or "")
        refs = {name: f"{registry}/{ref}" if registry else ref for name, ref in images.refs().items()}
        for host, variables in self._vars.items():
            variables |= {
                "venice_images": {name.replace("-", "_"): ref for name, ref in refs.items()},
                "venice_facts": self.facts.get(host, {}),
                "venice_records": records,
                "venice_state_dir": str(self.state_dir),
                "venice_producers": [],
                "venice_jobs": [],
            }
        producers = self._producers() if self.groups.get("producer") else []
        jobs = self._jobs() if self.groups.get("spark") else []
        for variables in self._vars.values():
            variables |= {"venice_producers": producers, "venice_jobs": jobs}
        self.hosts = {host: self._host(host) for host in raw}
        self.order = self._order()
        self._instances = [i for host in self.hosts.values() for c in host.components for i in self._host_instances(host, c)]
        by_component = {c: [i.as_vars() for i in self.instances(c)] for c in component_roles()}
        for variables in self._vars.values():
            variables["venice_instances"] = by_component
        pipeline_vars = self.pipeline_vars
        for variables in self._vars.values():
            variables["venice_pipeline_vars"] = pipeline_vars

    @classmethod
    def load(cls, inventory: Path, extra_vars: Mapping[str, Any] | None = None, texts: Mapping[Path, str] | None = None) -> "Cluster":
        """Reads an inventory file or folder. Raises InputError naming the file when Ansible cannot read it.

        `texts`: what to read in place of a file's content (absolute paths): what a change would mean is known before it is made.
        """
        from ansible.inventory.manager import InventoryManager
        from ansible.vars.manager import VariableManager

        from venice.secrets import vault_secrets

        _plugins()
        loader = Loader(texts or {})
        loader.set_vault_secrets(vault_secrets())
        with one_message(inventory):
            # absolute: Ansible remembers by path what it found, also when the current folder is another one by then
            manager = InventoryManager(loader=loader, sources=[str(inventory.absolute())])
            variables = VariableManager(loader=loader, inventory=manager)
            variables._extra_vars = {k: trust_as_template(v) if isinstance(v, str) else v for k, v in (extra_vars or {}).items()}
            groups = manager.get_groups_dict()
            raw = {name: variables.get_vars(host=manager.get_host(name), include_hostvars=False) for name in groups["all"]}
        return cls(raw, groups, loader)

    # ---- variables -----------------------------------------------------------------------------------------------

    def template(self, host: str, value: Any, extra: Mapping[str, Any] | None = None) -> Any:
        """Evaluates a value with a host's variables. Raises InputError naming the host when it cannot be evaluated."""
        variables = self._vars[host] | dict(extra or {})
        try:
            return Templar(loader=self._loader, variables=variables).template(value)
        except AnsibleError as error:
            raise InputError(f"{host}: {error}", "mend the variable in the inventory or its group_vars") from error

    def var(self, host: str, name: str) -> Any:
        """A variable's evaluated value on a host."""
        return self.template(host, self._vars[host][name])

    def raw_vars(self, host: str) -> dict[str, Any]:
        """A host's variables as they are written, role defaults below them."""
        return self._vars[host]

    def generated_secrets(self) -> dict[str, str]:
        """Names and values of the secrets that Venice generated for this cluster. Never to be printed."""
        from venice.secrets import known

        return known(self.state_dir, self._loader._vault)

    def given(self, host: str) -> dict[str, Any]:
        """A host's variables as the inventory, the play and the command line give them, without Venice's own additions."""
        return {k: v for k, v in self._given[host].items() if k not in _ADDED}

    def record_paths(self, host: str) -> list[str]:
        """Globs of the files on a host in which its components keep what a later deployment has to know."""
        globs = []
        for component in self.hosts[host].components:
            description = roles()[component].description
            globs += self.template(host, description.get("records", []))
        return globs

    # ---- who runs where ------------------------------------------------------------------------------------------

    def instances(self, component: str | None = None) -> list[Instance]:
        """All instances, or one component's, in the order of the inventory."""
        return [i for i in self._instances if component in (None, i.component)]

    def endpoint_list(self, component: str, port: str) -> list[str]:
        """`address:port` of every instance of a component."""
        return [i.endpoint(port) for i in self.instances(component)]

    def required(self, component: str, port: str) -> dict[str, str]:
        """What messages call each instance of a component, by its address: `http://address:port` for a port named `http`.

        Raises InputError when the inventory runs no such component.
        """
        found = [i for i in self.instances(component) if port in i.ports]
        if not found:
            raise InputError(
                f"{self.inventory_dir}: nothing runs {component}: its group has no hosts",
                f"add hosts to the group {component}, then `venice deploy`",
            )
        scheme = "http://" if port == "http" else ""
        return {f"{scheme}{i.endpoint(port)}": f"{i.name} on {i.host} ({i.endpoint(port)})" for i in found}

    def after_pipelines(self, component: str) -> bool:
        """True for components that become healthy only once the pipelines' topics and schemas are there."""
        return bool(roles()[component].description.get("after_pipelines"))

    @property
    def bootstrap_servers(self) -> str:
        """Kafka's bootstrap servers, comma-separated."""
        return ",".join(self.endpoint_list("kafka", "client"))

    @property
    def registry_urls(self) -> list[str]:
        """Base addresses of the schema registries (Confluent's API at /)."""
        return [f"http://{e}" for e in self.endpoint_list("schema_registry", "http")]

    @property
    def connect_urls(self) -> list[str]:
        """Base addresses of the Kafka Connect workers' REST API."""
        return [f"http://{e}" for e in self.endpoint_list("connect", "http")]

    @property
    def has_canary(self) -> bool:
        """True when all four are there that the canary's way leads through; else there is no table to trace an event to."""
        return all(self.groups.get(c) for c in ("kafka", "schema_registry", "connect", "postgres"))

    @functools.cached_property
    def pipelines(self) -> list[Path]:
        """Folders of the pipelines that the inventory names, the canary's first. Raises InputError for a missing one."""
        names = [*(["canary"] if self.has_canary else []), *self.var(self._first, "venice_pipelines")]
        return [self.pipeline_folder(str(name)) for name in names]

    @property
    def pipeline_vars(self) -> dict[str, Any]:
        """What `${...}` stands for in pipeline files. Holds no secret: connectors read those through a config provider."""
        postgres = next(iter(self.instances("postgres")), None)
        pinot = {port: i.endpoint(port) for i in self.instances("pinot") for port in ("controller", "broker") if port in i.ports}
        return {
            "cluster": self.name,
            "bootstrap_servers": self.bootstrap_servers,
            "registry_url": next(iter(self.registry_urls), ""),
            "replication_factor": self.var(self._first, "kafka_replication_factor"),
            "postgres_host": postgres.address if postgres else "",
            "postgres_port": postgres.ports["sql"] if postgres else "",
            "postgres_db": self.var(self._first, "postgres_database"),
            "postgres_user": self.var(self._first, "postgres_user"),
            "postgres_replication_user": self.var(self._first, "postgres_replication_user"),
            "pinot_controller_url": f"http://{pinot['controller']}" if pinot else "",
            "pinot_broker_url": f"http://{pinot['broker']}" if pinot else "",
        }

    # ---- desired state -------------------------------------------------------------------------------------------

    def desired(self, host: str) -> dict[str, Any]:
        """The document that `venice_host` makes true on a host; its form is that module's documentation.

        Made once: preflight, image shipping and the host's own task ask for the same. Not to be changed by who gets it.
        """
        if host not in self._documents:
            self._documents[host] = self._document(host)
        return self._documents[host]

    def _document(self, host: str) -> dict[str, Any]:
        document: dict[str, Any] = {
            "cluster": self.name,
            "network": {"name": self.var(host, "venice_network")},
            "directories": [],
            "files": [],
            "containers": [],
        }
        for instance in (i for i in self._instances if i.host == host):
            self._describe(instance, document)
        return document

    def _describe(self, instance: Instance, document: dict[str, Any]) -> None:
        """Adds an instance's directories, files and container to the host's document."""
        role = roles()[instance.component]
        extra = {"instance": instance.as_vars(), "role_path": str(role.path)}
        raw = {k: v for k, v in role.description.items() if k not in ("instances", "ports")}
        described = self.template(instance.host, raw, extra)
        # an image that is not Venice's own runs as the user it names itself
        uid = int(described["user"]) if described["user"] != "" else 0
        config = f"{self.var(instance.host, 'venice_config_dir')}/{instance.name}"
        data = f"{self.var(instance.host, 'venice_data_dir')}/{instance.name}"
        owned = {"owner": uid, "group": uid, "component": role.name}
        mounts, restart_files = [], {}
        if described.get("files"):
            document["directories"].append({"path": config, "mode": "0750", **owned})
            mounts.append({"source": config, "target": described["config_target"], "read_only": True})
        for entry in described.get("files", []):
            path = f"{config}/{entry['name']}"
            secret = bool(entry.get("secret"))
            content = self._content(instance, role, entry, extra)
            mode = "0400" if secret else "0440"
            document["files"].append({"path": path, "content": content, "mode": mode, "secret": secret, **owned})
            restart_files[path] = entry.get("on_change", "restart")
        for target in described.get("data", []):
            # `of`: another instance's data on the same host, to be read, unless it is one of its folders `shared` by both
            path = f"{self.var(instance.host, 'venice_data_dir')}/{target['of']}" if target.get("of") else data
            path = path if target.get("name") is None else f"{path}/{target['name']}"
            own = not target.get("of") or bool(target.get("shared"))
            if own:
                document["directories"].append({"path": path, "mode": "0750", **owned})
            mounts.append({"source": path, "target": target["target"], "read_only": not own})
        labels = {
            "venice.cluster": self.name,
            "venice.component": role.name,
            "venice.instance": instance.name,
            "venice.endpoints": json.dumps({n: instance.endpoint(n) for n in instance.ports}, sort_keys=True),
            **described.get("labels", {}),
        }
        document["containers"].append(
            {
                "name": instance.container,
                "component": role.name,
                "instance": instance.name,
                "image": described["image"],
                "entrypoint": [str(word) for word in described.get("entrypoint", [])],
                "command": [str(word) for word in described.get("command", [])],
                "env": {k: str(v) for k, v in described.get("env", {}).items()},
                "user": f"{uid}:{uid}" if uid else "",
                "mounts": mounts,
                "ports": [
                    {
                        "host": p,
                        "container": p,
                        "address": "0.0.0.0",  # noqa: S104 every host and the operator are to reach it
                        "protocol": "tcp",
                    }
                    for p in instance.ports.values()
                ],
                "network": document["network"]["name"],
                "aliases": [instance.name],
                "hosts": described.get("hosts", {}),
                "memory": size(described["memory"]),
                "cpu_shares": described.get("cpu_shares", 0),
                "ulimits": described.get("ulimits", {}),
                "health": described["health"] or None,
                "restart": "unless-stopped",
                "stop_timeout": described.get("stop_timeout", 10),
                "log": {"driver": "json-file", "options": self.var(instance.host, "venice_log_options")},
                "labels": labels,
                "files": restart_files,
                "rolling": bool(described.get("rolling")),
            }
        )

    def _content(self, instance: Instance, role: Role, entry: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
        """A config file's text: `source` is copied as it is, else the role's `templates/<name>.j2` is rendered."""
        if entry.get("source"):
            return Path(entry["source"]).read_text()
        path = role.path / "templates" / f"{entry['name']}.j2"
        templar = Templar(loader=self._loader, variables=self._vars[instance.host] | dict(extra))
        try:
            text = trust_as_template(path.read_text())
            return str(templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True, "lstrip_blocks": True}))
        except AnsibleError as error:
            raise InputError(f"{instance.host}: {path.name} of role {role.name}: {error}", "mend the variable that it names") from error

    # ---- parts of the evaluation ---------------------------------------------------------------------------------

    def _inventory_name(self) -> str:
        """`lab` for inventory/lab/hosts.yml, `staging` for staging.yml."""
        stem = self.inventory_file.stem
        return self.inventory_dir.name if stem in ("hosts", "inventory") or self.inventory_file.is_dir() else stem

    def _records(self) -> dict[str, dict[str, str]]:
        """What is recorded on the hosts (path -> text): from this run's facts, else as last seen.

        With `--limit` the other hosts are not asked; their node ids must not be guessed anew then.
        """
        seen: dict[str, dict[str, str]] = {}
        for host in self._vars:
            if "records" in self.facts.get(host, {}):
                seen[host] = self.facts[host]["records"]
            elif (cached := self.state_dir / "records" / f"{host}.json").exists():
                seen[host] = json.loads(cached.read_text())
        return seen

    def _host(self, name: str) -> Host:
        components = tuple(c for c, role in component_roles().items() if name in self.groups.get(role.group, []))
        connection = {k: self.template(name, v) for k, v in self._vars[name].items() if k.startswith("ansible_") and k in _CONNECTION}
        return Host(name, str(self.var(name, "venice_address")), components, connection)

    def _host_instances(self, host: Host, component: str) -> Iterable[Instance]:
        description = roles()[component].description
        for number, extra in enumerate(self.template(host.name, description.get("instances", [{}]))):
            name = extra.get("name") or component.replace("_", "-")
            variables = extra | {"index": number, "name": name}
            ports = self.template(host.name, description.get("ports", {}), {"instance": variables})
            try:
                ports = {key: int(port) for key, port in ports.items()}
            except (TypeError, ValueError) as error:
                said = ", ".join(f"{key} {port}" for key, port in ports.items())
                raise InputError(f"{host.name}: ports of {name} must be numbers: {said}", f"mend {component}'s *_port variables") from error
            idle = self.template(host.name, description.get("idle_ports", []), {"instance": variables})
            yield Instance(component, name, host.name, host.address, ports, f"venice-{name}", variables, frozenset(idle))

    def _producers(self) -> list[dict[str, Any]]:
        """The producers of all pipelines, spread over the hosts of the group `producer`: what that role's instances are."""
        from venice import pipeline

        hosts = self.groups["producer"]
        found: dict[str, dict[str, Any]] = {}
        for p in (p for folder in self.pipelines for p in pipeline.belonging(pipeline.producers(folder), self.groups)):
            if p.name in found:
                raise InputError(f"pipelines {found[p.name]['pipeline']} and {p.pipeline} both have a producer {p.name}", "rename one")
            found[p.name] = {
                "name": p.instance,
                # by its name alone: another pipeline more or less moves none of the others
                "host": hosts[zlib.crc32(p.name.encode()) % len(hosts)],
                "pipeline": p.pipeline,
                "program": p.digest,
                "script": str(p.script or ""),
                "image": self._own_image(p.image),
                "command": list(p.command),
                "environment": dict(p.environment),
                "health": list(p.health),
                "memory": p.memory,
            }
        return list(found.values())

    def _jobs(self) -> list[dict[str, Any]]:
        """The jobs of all pipelines, each on the host that has its checkpoint: what the role `spark_job`'s instances are.

        A new job goes to the host with the fewest. `slot` counts the jobs of a host.
        """
        from venice import pipeline

        jobs: dict[str, Any] = {}
        for job in (job for folder in self.pipelines for job in pipeline.belonging(pipeline.jobs(folder), self.groups)):
            if job.name in jobs:
                raise InputError(f"pipelines {jobs[job.name].pipeline} and {job.pipeline} both have a job {job.name}", "rename one")
            jobs[job.name] = job
        started = {
            (host, match[1]): int(match[2])
            for host, files in self._vars[self._first]["venice_records"].items()
            for path, text in files.items()
            if (match := re.fullmatch(r".*/([^/]+)/job started=(\d+)", f"{path} {text.strip()}"))
        }
        hosts = self.groups["spark"]
        placed: dict[str, str] = {}
        for name in jobs:
            if known := [host for host in hosts if (host, name) in started]:
                placed[name] = max(known, key=lambda host: started[host, name])
        for name in jobs:
            if name not in placed:
                placed[name] = min(hosts, key=list(placed.values()).count)
        found = []
        for name, job in jobs.items():
            slot = sum(entry["host"] == placed[name] for entry in found)
            found.append(
                {
                    "name": job.instance,
                    "job": name,
                    "host": placed[name],
                    "slot": slot,
                    "pipeline": job.pipeline,
                    "program": job.digest,
                    "script": str(job.script),
                    "environment": dict(job.environment),
                }
            )
        return found

    def _own_image(self, name: str) -> str:
        """`venice/NAME`, without a tag, is an image of Venice's own: its full name. Any other stays as it is."""
        own, _, key = name.partition("venice/")
        return name if own else self._vars[self._first]["venice_images"].get(key.replace("-", "_"), name)

    def _order(self) -> list[str]:
        """Components in dependency order (`after` in their descriptions); only those that have hosts."""
        present = {c for host in self.hosts.values() for c in host.components}
        order: list[str] = []

        def visit(component: str) -> None:
            if component in order or component not in present:
                return
            for needed in roles()[component].description.get("after", []):
                visit(needed)
            order.append(component)

        for component in sorted(present):
            visit(component)
        return order

    def pipeline_folder(self, name: str) -> Path:
        """The folder of a pipeline called by name or path. Raises InputError that says where it was looked for."""
        places = [self.inventory_dir / "pipelines", Path("pipelines"), paths.resource("pipelines"), Path()]
        if os.sep in name:
            # what is written as a path is never another folder of the same name
            places = [Path()]
        for place in places:
            if (place / name / "pipeline.yml").exists():
                return (place / name).resolve()
        shipped = ", ".join(sorted(p.parent.name for p in paths.resource("pipelines").glob("*/pipeline.yml")))
        raise InputError(
            f"{self.inventory_dir}: there is no pipeline {name!r}: no {name}/pipeline.yml",
            f"looked in {', '.join(map(str, places))}; Venice ships: {shipped}",
        )


# What Venice itself puts among a host's variables; everything else of such names must be in a role's argument specs.
_ADDED = {
    "venice_facts",
    "venice_images",
    "venice_instances",
    "venice_inventory_name",
    "venice_jobs",
    "venice_pipeline_vars",
    "venice_producers",
    "venice_records",
    "venice_state_dir",
}

# Ansible's variables that say how a host is reached; the rest of ansible_* is not Venice's business.
_CONNECTION = {
    "ansible_connection",
    "ansible_host",
    "ansible_port",
    "ansible_user",
    "ansible_ssh_private_key_file",
    "ansible_private_key_file",
    "ansible_ssh_common_args",
    "ansible_ssh_extra_args",
    "ansible_become",
}
