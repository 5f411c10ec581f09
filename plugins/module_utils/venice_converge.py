"""Make one host what its document says: read, plan, apply.

Reading and planning change nothing, and check mode ends there; a real run then carries out exactly that plan.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from ansible.module_utils import venice_files as files
from ansible.module_utils import venice_ports as ports
from ansible.module_utils.venice_compare import (
    ALIVE,
    MASK,
    current_fields,
    decide,
    desired_fields,
    engine_config,
    field_differences,
    file_differences,
    restart_policy,
)
from ansible.module_utils.venice_docker import Engine, EngineError, in_parallel, sdk_errors
from ansible.module_utils.venice_document import complete

STATE_DIR = "/var/lib/venice"
LOCK_SECONDS = 90
STATES = ("present", "started", "stopped", "restarted", "absent")
CLUSTER = "venice.cluster"
COMPONENT = "venice.component"
PIPELINE = "venice.pipeline"

# what the engine says -> what helps; the first that matches
REMEDIES = (
    (r"permission denied", "run the task with become: true"),
    (r"port is already allocated|address already in use", "stop what holds the port (ss -ltnp names it), or choose another"),
    (r"no such image", "ship the image to this host: venice images ship"),
    (r"docker SDK for Python is missing", "install python3-docker on the host (the engine role does)"),
    (r"no Docker engine answers", "install and start Docker on the host (the engine role does)"),
    (r"bind source path does not exist", "create that path on the host, or correct the container's mounts"),
    (r"no space left on device", "free disk space on the host: docker system df shows what Docker holds"),
)


class HostError(Exception):
    """Something could not be made so; `failures` lists `{component, container, attempted, message, remedy}`."""

    def __init__(self, failures: list[dict]) -> None:
        super().__init__("; ".join(_sentence(failure) for failure in failures))
        self.failures = failures
        self.remedy = "; ".join(sorted({failure["remedy"] for failure in failures if failure["remedy"]}))


def failure(attempted: str, message: str, container: dict | None = None, remedy: str = "") -> dict:
    """One failure, with the remedy that is known for `message` unless one is given."""
    for pattern, known in REMEDIES:
        if not remedy and re.search(pattern, message, re.IGNORECASE):
            remedy = known
    container = container or {}
    return {
        "component": container.get("component", ""),
        "container": container.get("name", ""),
        "attempted": attempted,
        "message": message,
        "remedy": remedy,
    }


@dataclass
class Request:
    """What to do with a host's document, and where."""

    state: str = "present"
    only: tuple = ()
    pipelines: tuple = ()
    later: tuple = ()
    roll: tuple = ()
    prune: bool = False
    remove_data: bool = False
    check_mode: bool = False
    state_dir: str = STATE_DIR


@dataclass
class Plan:
    """What happens to one container."""

    container: dict  # its completed description
    action: str  # see venice_compare.decide
    current: dict | None = None  # inspect answer
    updates: list = field(default_factory=list)  # fields changed in place
    wanted_files: dict = field(default_factory=dict)  # path -> sha256
    new_id: str = ""  # of the container made to take its place


@dataclass
class Host:
    """What is on the host."""

    listed: list = field(default_factory=list)  # every container, as listed
    inspected: dict = field(default_factory=dict)  # name -> inspect answer, ours and desired names
    images: dict = field(default_factory=dict)  # ref or id -> inspect answer or None
    network: dict | None = None
    repairs: list = field(default_factory=list)  # (verb, id, name, other name)


def converge(document: dict, engine: Engine, request: Request) -> dict:
    """Bring the host to what `document` and `request` say; in check mode only tell what would be done.

    Returns `{changed, differences, pending, stray, containers, diff}` (see the module's RETURN).
    Raises DocumentError (the document is wrong) and HostError (the host could not be made so).
    """
    document = _of_pipelines(_only(complete(document), request.only), request.pipelines)
    run = Run(document, engine, request)
    with run.lock():
        return run.go()


def _only(document: dict, components) -> dict:
    if not components:
        return document
    kept = {key: [entry for entry in document[key] if entry["component"] in components] for key in ("directories", "files", "containers")}
    return {**document, **kept}


def _of_pipelines(document: dict, pipelines) -> dict:
    """The containers of these pipelines, and the files and directories that they mount."""
    if not pipelines:
        return document
    containers = [entry for entry in document["containers"] if entry["labels"].get(PIPELINE) in pipelines]
    mounted = tuple(mount["source"] for entry in containers for mount in entry["mounts"])

    def theirs(path: str) -> bool:
        return any(path == source or path.startswith(f"{source}/") for source in mounted)

    kept = {key: [entry for entry in document[key] if theirs(entry["path"])] for key in ("directories", "files")}
    return {**document, **kept, "containers": containers}


class Run:
    """One run over one host."""

    def __init__(self, document: dict, engine: Engine, request: Request) -> None:
        self.document = document
        self.cluster = document["cluster"]
        self.engine = engine
        self.request = request
        self.state_dir = Path(request.state_dir)
        self.differences: list[dict] = []
        self.diff: list[dict] = []
        self.failures: list[dict] = []
        self.plans: list[Plan] = []
        self.stray: list[dict] = []
        self.writes: list = []  # (function, description)
        self.later: set[str] = set()
        self.touched: set[str] = set()
        self.host = Host()

    @contextlib.contextmanager
    def lock(self):
        """Keep a second run off this host; a check needs no lock."""
        if self.request.check_mode:
            yield
            return
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True)
            lock = (self.state_dir / "lock").open("w")
        except OSError as error:
            raise HostError([failure("take the lock", _os_message(error), remedy="run the task with become: true")]) from error
        with lock:
            # what a run that was interrupted on the controller began here still comes to its end
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        text = f"another run has been changing this host for {LOCK_SECONDS} s"
                        raise HostError([failure("take the lock", text, remedy="wait for it to end, then run again")]) from error
                    time.sleep(0.2)
            yield

    def go(self) -> dict:
        self.read()
        steps = {
            "present": self.present,
            "started": self.started,
            "stopped": self.stopped,
            "restarted": self.restarted,
            "absent": self.absent,
        }
        apply = steps[self.request.state]()
        self.stop_on_failures()
        if not self.request.check_mode:
            apply()
            self.stop_on_failures()
        return self.result()

    def stop_on_failures(self) -> None:
        if self.failures:
            raise HostError(self.failures)

    # --- read

    def read(self) -> None:
        """Fill `self.host`; an engine that is not there yet has no containers as far as a check is concerned."""
        host = self.host
        try:
            host.listed = self.engine.containers()
        except EngineError as error:
            if self.request.check_mode:
                return
            raise HostError([failure("list the containers", error.message)]) from error
        by_name = {_name(entry): entry for entry in host.listed}
        wanted = {container["name"]: container for container in self.document["containers"]}
        for name, container in wanted.items():
            for candidate in (name, f"{name}.new", f"{name}.old"):
                entry = by_name.get(candidate)
                if entry and entry["Labels"].get(CLUSTER) != self.cluster:
                    owner = entry["Labels"].get(CLUSTER)
                    text = f"a container named {candidate} belongs to " + (
                        f"the cluster {owner}" if owner else "somebody else (it has no Venice label)"
                    )
                    remedy = f"rename or remove it (docker rm {candidate}), or name Venice's container otherwise"
                    self.failures.append(failure("look for the container", text, container, remedy))
        self.stop_on_failures()
        ours = [name for name, entry in by_name.items() if entry["Labels"].get(CLUSTER) == self.cluster]
        questions = [("container", name) for name in ours]
        questions += [("image", ref) for ref in sorted({container["image"] for container in wanted.values()})]
        questions.append(("network", self.document["network"]["name"]))
        try:
            answers = in_parallel(lambda question: getattr(self.engine, question[0])(question[1]), questions, 4)
        except EngineError as error:
            raise HostError([failure("inspect containers and images", error.message)]) from error
        for (kind, name), answer in zip(questions, answers):  # noqa: B905 (strict= is newer than Python 3.9)
            if kind == "container" and answer:
                host.inspected[name] = answer
            elif kind == "image":
                host.images[name] = answer
            elif kind == "network":
                host.network = answer
        known = {image["Id"]: image for image in host.images.values() if image}
        others = {container["Image"] for container in host.inspected.values()} - set(known)
        known.update({ref: self.engine.image(ref) for ref in sorted(others)})
        host.images.update(known)
        self._plan_repairs()

    def _plan_repairs(self) -> None:
        """Make good what an interrupted replacement left: a `.new` never used, or an `.old` not yet removed."""
        inspected, repairs = self.host.inspected, self.host.repairs
        for leftover in [name for name in inspected if name.endswith((".new", ".old"))]:
            name = leftover[:-4]
            if leftover.endswith(".new"):
                repairs.append(("remove", inspected[leftover]["Id"], leftover, ""))
        for leftover in [name for name in inspected if name.endswith(".old")]:
            name = leftover[:-4]
            successor = inspected.get(name)
            if successor and successor["State"]["Running"]:
                repairs.append(("remove", inspected[leftover]["Id"], leftover, ""))
                continue
            # the successor never came up: the old container is the one to go on from
            if successor:
                repairs.append(("remove", successor["Id"], name, ""))
            repairs.append(("rename", inspected[leftover]["Id"], leftover, name))
            inspected[name] = inspected[leftover]
        for leftover in [name for name in inspected if name.endswith((".new", ".old"))]:
            del inspected[leftover]

    # --- plan

    def note(self, component: str, subject: dict, action: str, **what) -> None:
        self.differences.append({"component": component, **subject, **what, "action": action})

    def present(self):
        for verb, _id, name, other in self.host.repairs:
            component = self._component(other or name)
            desired = other or None
            reason = "an earlier run was interrupted while it replaced the container"
            action = "remove" if verb == "remove" else "start"
            self.note(component, {"container": name}, action, field="name", current=name, desired=desired, reason=reason)
        repaired = len(self.differences)
        self._plan_files()
        network = self.document["network"]["name"]
        if self.document["containers"] and not self.host.network:
            reason = "does not exist"
            self.note("network", {"network": network}, "create", field="network", current=None, desired=network, reason=reason)
        digests = {file["path"]: files.sha256(file["content"]) for file in self.document["files"]}
        secret = {file["path"] for file in self.document["files"] if file["secret"]}
        for container in self.document["containers"]:
            self._plan_container(container, digests, secret)
        self._defer(repaired)
        self._plan_strays()
        self._check_ports()
        return self.apply_present

    def _defer(self, start: int) -> None:
        """Leave the components of `later` to another task: only which of them differ is told."""
        later = self.request.later
        if self.request.check_mode or not later:
            return
        planned = self.differences[start:]
        self.later = {entry["component"] for entry in planned if entry["component"] in later}
        self.differences[start:] = [entry for entry in planned if entry["component"] not in later]
        self.writes = [write for write in self.writes if write[1]["component"] not in later]
        self.plans = [plan for plan in self.plans if plan.container["component"] not in later]

    def _component(self, name: str) -> str:
        for container in self.document["containers"]:
            if container["name"] == name.removesuffix(".old").removesuffix(".new"):
                return container["component"]
        return ""

    def _plan_files(self) -> None:
        for wanted in sorted(self.document["directories"], key=lambda entry: entry["path"]):
            try:
                found = files.directory_differences(wanted)
            except OSError as error:
                self.failures.append(failure(f"look at {wanted['path']}", _os_message(error), _owner(wanted)))
                continue
            for difference in found:
                self.note(wanted["component"], {"path": wanted["path"]}, "write", **difference)
            if found:
                self.writes.append((files.make_directory, wanted))
        for wanted in self.document["files"]:
            try:
                found, before = files.file_differences(wanted)
            except OSError as error:
                self.failures.append(failure(f"read {wanted['path']}", _os_message(error), _owner(wanted)))
                continue
            for difference in found:
                self.note(wanted["component"], {"path": wanted["path"]}, "write", **difference)
            if found and found[0]["field"] == "content":
                self.writes.append((files.write_file, wanted))
                path, after = wanted["path"], wanted["content"]
                if wanted["secret"]:
                    before, after = (MASK + "\n" if before else ""), MASK + " (changed)\n"
                self.diff.append({"before_header": path, "after_header": path, "before": before, "after": after})
            elif found:
                self.writes.append((files.set_rights, wanted))

    def _plan_container(self, container: dict, digests: dict, secret: set) -> None:
        name = container["name"]
        current = self.host.inspected.get(name)
        image = self.host.images.get(container["image"])
        found: list[dict] = []
        wanted_files = {path: digests.get(path) or digest for path, digest in _digests(container).items()}
        status = None
        if current:
            status = current["State"]["Status"]
            found = self._container_differences(container, current, image)
            found += file_differences(wanted_files, self._stamp(current["Id"]), secret)
        action = decide(found, status, container["rolling"], name in self.request.roll)
        self.plans.append(
            Plan(
                container,
                action,
                current,
                [entry["field"] for entry in found if entry["need"] == "update"],
                wanted_files,
            )
        )
        subject = {"container": name}
        for entry in found:
            need = entry.pop("need")
            done_by = action if action in ("recreate", "pending") or need != "update" else "update"
            self.note(container["component"], subject, done_by, **entry)
        if action == "create":
            self.note(
                container["component"], subject, "create",
                field="container", current=None, desired=container["image"], reason="there is no such container",
            )  # fmt: skip
        elif action == "start" or (action == "recreate" and status not in (*ALIVE, "restarting")):
            reason = f"it has exited with code {current['State']['ExitCode']}" if status == "exited" else f"it is {status}"
            self.note(
                container["component"], subject, action,
                field="status", current=status, desired="running", reason=reason,
            )  # fmt: skip
        if action in ("create", "recreate") and not image and not self.request.check_mode:
            text = f"No such image: {container['image']}"
            kept = " (the old one was not touched)" if current else ""
            self.failures.append(failure(f"create the container{kept}", text, container))

    def _container_differences(self, container: dict, current: dict, image: dict | None) -> list[dict]:
        old_image = self.host.images.get(current["Image"]) or {}
        old_ref = current["Config"]["Image"]
        if image is None and old_ref == container["image"]:
            # its tag is gone but the container is made from it: nothing to compare with, and nothing wrong
            image = {**old_image, "Id": current["Image"]}
        desired = desired_fields(self.cluster, container, image or {**old_image, "Id": ""})
        found = field_differences(desired, current_fields(current, old_image))
        for entry in found:
            if entry["field"] == "image":
                if old_ref == container["image"]:
                    entry["reason"] = f"{container['image']} names another image now"
                    entry["current"], entry["desired"] = entry["current"][7:19], entry["desired"][7:19]
                else:
                    entry["current"], entry["desired"] = old_ref, container["image"]
        attached = (current["NetworkSettings"].get("Networks") or {}).get(container["network"]) or {}
        network_id = (self.host.network or {}).get("Id")
        on_ours = container["network"] == self.document["network"]["name"]
        if on_ours and attached.get("NetworkID") and attached["NetworkID"] != network_id:
            found.append(
                {
                    "field": "network",
                    "current": attached["NetworkID"][:12],
                    "desired": (network_id or "")[:12] or container["network"],
                    "reason": "the network was removed and made anew",
                    "need": "recreate",
                }
            )
        return found

    def _plan_strays(self) -> None:
        described = {container["name"] for container in self.document["containers"]}
        for name, current in sorted(self.host.inspected.items()):
            component = current["Config"]["Labels"].get(COMPONENT, "")
            pipeline = current["Config"]["Labels"].get(PIPELINE)
            if name in described or (self.request.only and component not in self.request.only):
                continue
            if self.request.pipelines and pipeline not in self.request.pipelines:
                continue
            self.stray.append(current)
            action = "remove" if self.request.prune else "stray"
            self.note(
                component, {"container": name}, action,
                field="container", current=current["Config"]["Image"], desired=None,
                reason="nothing on this host describes it any more",
            )  # fmt: skip

    def _check_ports(self) -> None:
        """Find taken ports before anything is touched; ports that this run frees are free."""
        plans = [plan for plan in self.plans if plan.action in ("create", "recreate", "start")]
        if not any(plan.container["ports"] for plan in plans):
            return
        freed = {plan.container["name"] for plan in self.plans if plan.action in ("recreate", "restart", "start")}
        freed |= {name for _verb, _id, name, _other in self.host.repairs}
        if self.request.prune:
            freed |= {_name(current) for current in self.stray}
        listening = ports.listeners()
        by_container = ports.published(self.host.listed)
        for plan in plans:
            for port in plan.container["ports"]:
                holder = ports.holder(port["host"], port["address"], port["protocol"], listening, by_container)
                if holder and holder["container"] not in freed:
                    kept = " (the old one was not touched)" if plan.current else ""
                    self.failures.append(
                        failure(
                            f"publish port {port['host']}{kept}",
                            f"port {port['host']}/{port['protocol']} is taken by {holder['text']}",
                            plan.container,
                            f"stop {holder['text']}, or give {plan.container['component']} another port",
                        )
                    )

    def started(self):
        for container in self.document["containers"]:
            current = self.host.inspected.get(container["name"])
            if current and current["State"]["Status"] in ("exited", "created"):
                self._plan_status(container, current, "start", "running")
                # what it reads now is what lies there, whether the document says the same or not
                self.plans[-1].wanted_files = _digests(container)
        self._check_ports()
        return self.apply_starts

    def restarted(self):
        """The containers named in `roll`: a running one is stopped and started, any other is started."""
        described = {container["name"]: container for container in self.document["containers"]}
        for name in self.request.roll:
            container, current = described.get(name), self.host.inspected.get(name)
            if not container or not current:
                text = f"there is no container {name}" if container else f"nothing on this host describes {name}"
                self.failures.append(failure("restart the container", text, container, "venice deploy makes what the inventory describes"))
                continue
            action = "restart" if current["State"]["Status"] in (*ALIVE, "restarting") else "start"
            self._plan_status(container, current, action, "running")
            self.plans[-1].wanted_files = _digests(container)
        self.stop_on_failures()
        self._check_ports()
        return self.apply_restarts

    def stopped(self):
        for current in self._labelled():
            if current["State"]["Status"] in (*ALIVE, "restarting"):
                self._plan_status(_described(current), current, "stop", "exited")
        return self.apply_stops

    def _plan_status(self, container: dict, current: dict, action: str, desired: str) -> None:
        self.plans.append(Plan(container, action, current))
        self.note(
            container["component"], {"container": container["name"]}, action,
            field="status", current=current["State"]["Status"], desired=desired, reason="asked for",
        )  # fmt: skip

    def absent(self):
        for current in self._labelled():
            container = _described(current)
            self.plans.append(Plan(container, "remove", current))
            self.note(
                container["component"], {"container": container["name"]}, "remove",
                field="container", current=current["Config"]["Image"], desired=None, reason="asked for",
            )  # fmt: skip
        going = {plan.current["Id"] for plan in self.plans} | {repair[1] for repair in self.host.repairs}
        network = self.host.network
        attached = [
            entry
            for entry in self.host.listed
            if entry["Id"] not in going and self.document["network"]["name"] in (entry.get("NetworkSettings", {}).get("Networks") or {})
        ]
        ours = network and (network.get("Labels") or {}).get(CLUSTER) == self.cluster
        self.network_goes = bool(ours and not attached and not self.request.only)
        if self.network_goes:
            self.note(
                "network", {"network": network["Name"]}, "remove",
                field="network", current=network["Name"], desired=None, reason="asked for",
            )  # fmt: skip
        if self.request.remove_data:
            for entry in self.document["files"]:
                if os.path.lexists(entry["path"]):
                    self._plan_removal(files.remove_file, entry, "file")
            for entry in sorted(self.document["directories"], key=lambda entry: entry["path"], reverse=True):
                if os.path.lexists(entry["path"]):
                    self._plan_removal(files.remove_directory, entry, "directory")
        return self.apply_absent

    def _plan_removal(self, function, entry: dict, what: str) -> None:
        self.writes.append((lambda wanted: function(wanted["path"]), entry))
        self.note(
            entry["component"], {"path": entry["path"]}, "remove",
            field=what, current=entry["path"], desired=None, reason="asked for",
        )  # fmt: skip

    def _labelled(self) -> list[dict]:
        """All containers of the cluster (described or not) that `only` lets through."""
        return [
            current
            for _name, current in sorted(self.host.inspected.items())
            if not self.request.only or current["Config"]["Labels"].get(COMPONENT) in self.request.only
        ]

    # --- apply

    def attempt(self, attempted: str, function, container: dict | None = None) -> bool:
        """Call `function`; an engine's or system's error becomes a failure and False."""
        try:
            function()
        except EngineError as error:
            self.failures.append(failure(attempted, error.message, container))
        except OSError as error:
            self.failures.append(failure(attempted, _os_message(error), container))
        else:
            return True
        return False

    def apply_writes(self) -> None:
        for function, wanted in self.writes:
            verb = "remove" if self.request.state == "absent" else "write"
            self.attempt(f"{verb} {wanted['path']}", lambda function=function, wanted=wanted: function(wanted), _owner(wanted))
        self.stop_on_failures()

    def apply_repairs(self) -> None:
        for verb, identity, name, other in self.host.repairs:
            if verb == "remove":
                self.attempt(f"remove {name}, left by an interrupted run", lambda identity=identity: self._remove(identity))
            else:
                self.attempt(f"rename {name} to {other}", lambda identity=identity, other=other: self._rename(identity, other))
        self.stop_on_failures()

    def apply_present(self) -> None:
        self.apply_writes()
        network = self.document["network"]["name"]
        if self.document["containers"] and not self.host.network:
            self.attempt(f"create the network {network}", lambda: self._create_network(network))
            self.stop_on_failures()
        self.apply_repairs()
        acting = [plan for plan in self.plans if plan.action not in ("", "pending")]
        if acting or (self.request.prune and self.stray):
            self.attempt("open the engine", lambda: self.engine.api)
            self.stop_on_failures()
        # all is created before anything is stopped, and all is stopped before anything starts: a container that
        # cannot be created costs nothing, and ports may move between containers in one run
        made = in_parallel(self._prepare, acting)
        acting = [plan for plan, good in zip(acting, made) if good]  # noqa: B905 (strict= is newer than Python 3.9)
        strays = self.stray if self.request.prune else []
        in_parallel(self._stop_and_remove, strays)
        halted = in_parallel(self._halt, acting)
        in_parallel(self._bring_up, [plan for plan, good in zip(acting, halted) if good])  # noqa: B905
        if strays:
            self.stray = []
        self._forget_stamps()

    def _prepare(self, plan: Plan) -> bool:
        name = plan.container["name"]
        if plan.action == "create":
            return self.attempt("create the container", lambda: self._create(plan, name), plan.container)
        if plan.action == "recreate":
            return self.attempt(
                "create the new container (the old one was not touched)",
                lambda: self._create(plan, f"{name}.new"),
                plan.container,
            )
        if plan.updates:
            return self.attempt(f"change {', '.join(plan.updates)} of the running container", lambda: self._update(plan), plan.container)
        return True

    def _halt(self, plan: Plan) -> bool:
        if plan.action not in ("recreate", "restart"):
            return True
        return self.attempt("stop the container", lambda: self._stop(plan.current, plan.container), plan.container)

    def _bring_up(self, plan: Plan) -> None:
        self.touched.add(plan.container["name"])
        if plan.action == "recreate":
            self._swap(plan)
        elif plan.action in ("create", "restart", "start"):
            self.attempt("start the container", lambda: self._begin(plan), plan.container)

    def _swap(self, plan: Plan) -> None:
        """Put the new container in the old one's place; when it does not start, put the old one back."""
        name, old, new = plan.container["name"], plan.current["Id"], plan.new_id
        attempted = "start the new container"
        try:
            self._write_stamp(new, plan.wanted_files)
            self._rename(old, f"{name}.old")
            self._rename(new, name)
            self._start(new)
        except (EngineError, OSError) as error:
            message = error.message if isinstance(error, EngineError) else _os_message(error)
            self.failures.append(failure(f"{attempted} ({self._put_back(plan)})", message, plan.container))
        else:
            self.attempt("remove the old container", lambda: self._remove(old), plan.container)

    def _put_back(self, plan: Plan) -> str:
        """Undo a replacement that failed half way; returns what became of the old container."""
        name, old = plan.container["name"], plan.current["Id"]
        try:
            self._remove(plan.new_id)
            if _name(self.engine.container(old)) != name:
                self._rename(old, name)
            if not plan.current["State"]["Running"]:
                return "the old one is back, stopped as it was"
            self._start(old)
        except EngineError as error:
            return f"putting the old one back failed too: {error.message}"
        return "the old one runs again"

    def apply_starts(self) -> None:
        in_parallel(self._bring_up, self.plans)

    def apply_restarts(self) -> None:
        halted = in_parallel(self._halt, self.plans)
        in_parallel(self._bring_up, [plan for plan, good in zip(self.plans, halted) if good])  # noqa: B905

    def apply_stops(self) -> None:
        in_parallel(self._stop_only, self.plans)

    def _stop_only(self, plan: Plan) -> None:
        self.touched.add(plan.container["name"])
        self.attempt("stop the container", lambda: self._stop(plan.current, plan.container), plan.container)

    def apply_absent(self) -> None:
        self.apply_repairs()
        in_parallel(self._stop_and_remove, [plan.current for plan in self.plans])
        self.stop_on_failures()
        if self.network_goes:
            network = self.host.network

            def remove() -> None:
                with sdk_errors():
                    self.engine.api.remove_network(network["Id"])

            self.attempt(f"remove the network {network['Name']}", remove)
        self.apply_writes()
        self._forget_stamps()

    def _stop_and_remove(self, current: dict) -> None:
        container = _described(current)
        self.touched.add(container["name"])

        def remove() -> None:
            # what is written while it shuts down is only worth waiting for when it is kept
            if current["State"]["Running"] and not self.request.remove_data:
                self._stop(current, container)
            self._remove(current["Id"])

        self.attempt("remove the container", remove, container)

    # --- single changes

    def _create_network(self, name: str) -> None:
        with sdk_errors():
            self.engine.api.create_network(name, driver="bridge", check_duplicate=True, labels={CLUSTER: self.cluster})

    def _create(self, plan: Plan, name: str) -> None:
        config = engine_config(self.cluster, plan.container)
        with sdk_errors():
            plan.new_id = self.engine.api.create_container_from_config(config, name)["Id"]
        if plan.action == "create":
            plan.current = {"Id": plan.new_id}

    def _update(self, plan: Plan) -> None:
        change: dict = {}
        if "restart" in plan.updates:
            change["restart_policy"] = restart_policy(plan.container["restart"])
        if "cpu_shares" in plan.updates:
            change["cpu_shares"] = plan.container["cpu_shares"]
        if "memory" in plan.updates:
            change["mem_limit"] = plan.container["memory"]
            # the engine made the limit with swap twice the memory, and refuses to let memory grow past it
            if plan.current["HostConfig"].get("MemorySwap", 0) > 0:
                change["memswap_limit"] = 2 * plan.container["memory"]
        with sdk_errors():
            self.engine.api.update_container(plan.current["Id"], **change)

    def _stop(self, current: dict, container: dict) -> None:
        timeout = container.get("stop_timeout") or current["Config"].get("StopTimeout") or 10
        with sdk_errors():
            self.engine.api.stop(current["Id"], timeout=timeout)

    def _begin(self, plan: Plan) -> None:
        self._write_stamp(plan.current["Id"], plan.wanted_files)
        self._start(plan.current["Id"])

    def _start(self, identity: str) -> None:
        with sdk_errors():
            self.engine.api.start(identity)

    def _rename(self, identity: str, name: str) -> None:
        with sdk_errors():
            self.engine.api.rename(identity, name)

    def _remove(self, identity: str) -> None:
        with sdk_errors():
            # v: anonymous volumes of the image go with the container
            self.engine.api.remove_container(identity, v=True, force=True)

    # --- which content of its files a container has read
    #
    # A restart does not change labels, so this stands beside the container, under its id, written before it starts: a
    # run that is interrupted after writing a file and before restarting the container is noticed by the next one.

    def _stamp_path(self, identity: str) -> Path:
        return self.state_dir / "containers" / identity

    def _stamp(self, identity: str) -> dict | None:
        try:
            return json.loads(self._stamp_path(identity).read_text())
        except (OSError, ValueError):
            return None

    def _write_stamp(self, identity: str, wanted_files: dict) -> None:
        path = str(self._stamp_path(identity))
        files.write_file(
            {
                "path": path,
                "content": json.dumps(wanted_files),
                "owner": os.geteuid(),
                "group": os.getegid(),
                "mode": "0600",
            }
        )

    def _forget_stamps(self) -> None:
        folder = self.state_dir / "containers"
        if not folder.is_dir():
            return
        with contextlib.suppress(EngineError):
            living = {entry["Id"] for entry in self.engine.containers()}
            for path in folder.iterdir():
                if path.name not in living:
                    path.unlink()

    # --- result

    def result(self) -> dict:
        containers = self._statuses()
        # a container without health check is well when it runs
        unwell = {c["component"] for c in containers if c["status"] != "running" or c["health"] not in ("healthy", None)}
        return {
            "changed": any(entry["action"] not in ("pending", "stray") for entry in self.differences),
            "differences": self.differences,
            "pending": [plan.container["name"] for plan in self.plans if plan.action == "pending"],
            "stray": [_name(current) for current in self.stray],
            "later": sorted(self.later | (unwell & set(self.request.later))),
            "containers": containers,
            "diff": self.diff,
        }

    def _statuses(self) -> list[dict]:
        containers = self.document["containers"]

        def look(container: dict) -> dict | None:
            if container["name"] in self.touched:
                return self.engine.container(container["name"])
            return self.host.inspected.get(container["name"])

        return [
            _status(container, current)
            for container, current in zip(containers, in_parallel(look, containers, 4))  # noqa: B905
        ]


def _status(container: dict, current: dict | None) -> dict:
    state = (current or {}).get("State") or {}
    return {
        "name": container["name"],
        "component": container["component"],
        "instance": container["instance"],
        "image": current["Config"]["Image"] if current else None,
        "status": state.get("Status", "missing"),
        "health": (state.get("Health") or {}).get("Status"),
        "started_at": state.get("StartedAt"),
    }


def _digests(container: dict) -> dict[str, str]:
    """The files whose change restarts `container`: path -> sha256 of what lies there now."""
    return {path: files.sha256_of(path) for path, reaction in container["files"].items() if reaction == "restart"}


def _described(current: dict) -> dict:
    """The little that is needed of a container that no document describes."""
    return {"name": _name(current), "component": current["Config"]["Labels"].get(COMPONENT, ""), "ports": []}


def _name(entry: dict) -> str:
    """A container's name in an answer of list (`Names`) or inspect (`Name`)."""
    names = entry.get("Names") or [entry.get("Name", "")]
    # links give a container names of other containers' as well, with another slash inside
    return next((name[1:] for name in names if name.count("/") == 1), "")


def _owner(wanted: dict) -> dict:
    return {"component": wanted["component"]}


def _os_message(error: OSError) -> str:
    return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)


def _sentence(entry: dict) -> str:
    who = ": ".join(part for part in (entry["component"], entry["container"]) if part)
    return f"{who + ': ' if who else ''}could not {entry['attempted']}: {entry['message']}"
