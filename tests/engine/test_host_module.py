"""`venice_host`, `venice_wait` and `venice_image_load` against a real Docker engine."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import uuid
from pathlib import Path

import pytest
import venice_image_load
import venice_wait
from ansible.module_utils import venice_converge, venice_files
from ansible.module_utils.venice_converge import HostError, Request, Run, converge
from ansible.module_utils.venice_docker import Engine, EngineError
from ansible.module_utils.venice_document import encode_document

from tests.waiting import PATIENCE, wait_until
from venice import paths

SERVE = ["sh", "-c", "trap 'exit 0' TERM; echo serving; while true; do sleep 1 & wait $!; done"]


def free_port() -> int:
    with socket.create_server(("0.0.0.0", 0)) as server:  # noqa: S104 (the engine binds all addresses too)
        return server.getsockname()[1]


class Site:
    """One host's document and what a test does with it."""

    def __init__(self, cluster, api, engine, images, tmp_path):
        self.cluster, self.api, self.engine, self.images, self.folder = cluster, api, engine, images, tmp_path
        self.document = {
            "cluster": cluster,
            "network": {"name": cluster},
            "directories": [{"path": f"{tmp_path}/data", "owner": 7101, "group": 7101, "mode": "0750", "component": "web"}],
            "files": [
                {
                    "path": f"{tmp_path}/etc/web.conf",
                    "content": "color = red\n",
                    "owner": 7101,
                    "group": 7101,
                    "mode": "0640",
                    "component": "web",
                }
            ],
            "containers": [self.described("web")],
        }

    def described(self, component: str, **changes) -> dict:
        conf = f"{self.folder}/etc/web.conf"
        return {
            "name": f"{self.cluster}-{component}",
            "component": component,
            "instance": component,
            "image": self.images["one"],
            "command": SERVE,
            "env": {"COLOR": "red", "DB_PASSWORD": "vErYsEcReT"},
            "user": "7101:7101",
            "mounts": [
                {"source": f"{self.folder}/data", "target": "/data"},
                {"source": conf, "target": "/etc/web.conf", "read_only": True},
            ],
            "ports": [],
            "network": self.cluster,
            "aliases": [component],
            "memory": 32 << 20,
            "ulimits": {"nofile": 1000},
            "health": {"command": ["true"], "interval": 600},
            "stop_timeout": 5,
            "log": {"driver": "json-file", "options": {"max-size": "1m"}},
            "files": {conf: "restart"},
            **changes,
        }

    @property
    def web(self) -> dict:
        return self.document["containers"][0]

    @property
    def name(self) -> str:
        return self.web["name"]

    def run(self, **request) -> dict:
        return converge(self.document, self.engine, Request(state_dir=f"{self.folder}/state", **request))

    def settle(self) -> dict:
        """Converge, and see that a second run finds nothing."""
        result = self.run()
        again = self.run()
        assert again["differences"] == []
        assert again["changed"] is False
        return result

    def inspect(self, name: str | None = None) -> dict:
        return self.api.inspect_container(name or self.name)

    def serves(self) -> None:
        """Returns once the container can be stopped in order: a shell takes a moment to get to its trap."""
        wait_until(lambda: b"serving" in self.api.logs(self.name), "it serves")

    def names(self) -> list[str]:
        found = self.api.containers(all=True, filters={"label": f"venice.cluster={self.cluster}"})
        return sorted(entry["Names"][0].lstrip("/") for entry in found)

    def execute(self, *command: str, name: str | None = None) -> str:
        return self.engine.execute(name or self.name, list(command), 10)[1]

    def state(self) -> dict:
        """What must not change when nothing is done."""
        keep = {name: (self.inspect(name)["Id"], self.inspect(name)["State"]["StartedAt"]) for name in self.names()}
        files = {
            str(path): (path.stat().st_mtime_ns, path.stat().st_mode, path.stat().st_uid)
            for path in self.folder.rglob("*")
            if "state" not in path.parts
        }
        return {"containers": keep, "files": files, "networks": len(self.api.networks(names=[self.cluster]))}


@pytest.fixture
def site(cluster, api, engine, images, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("giving files to other users needs root")
    return Site(cluster, api, engine, images, tmp_path)


def actions(result: dict) -> set[tuple[str, str]]:
    return {(entry["field"], entry["action"]) for entry in result["differences"]}


# --- converging


def test_a_bare_host_gets_everything_and_then_nothing_more(site):
    result = site.run()
    assert result["changed"]
    assert actions(result) == {
        ("directory", "write"),
        ("content", "write"),
        ("network", "create"),
        ("container", "create"),
    }
    assert result["containers"][0]["status"] == "running"
    assert result["containers"][0]["health"] == "starting"
    data, conf = site.folder / "data", site.folder / "etc/web.conf"
    assert (data.stat().st_uid, oct(data.stat().st_mode & 0o7777)) == (7101, "0o750")
    assert (conf.stat().st_gid, oct(conf.stat().st_mode & 0o7777)) == (7101, "0o640")
    assert oct(conf.parent.stat().st_mode & 0o7777) == "0o755"
    assert site.execute("cat", "/etc/web.conf") == "color = red"
    before = site.state()
    again = site.run()
    assert (again["changed"], again["differences"]) == (False, [])
    assert site.state() == before


def test_check_mode_tells_the_same_and_does_nothing(site):
    before = site.state()
    told = site.run(check_mode=True)
    assert site.state() == before
    assert told["containers"][0]["status"] == "missing"
    done = site.run()
    assert told["differences"] == done["differences"]
    assert told["diff"] == done["diff"]
    site.web["env"]["COLOR"] = "blue"
    site.document["files"][0]["content"] = "color = blue\n"
    before = site.state()
    told = site.run(check_mode=True)
    assert site.state() == before
    assert told["changed"]
    assert told["differences"] == site.run()["differences"]


def test_check_mode_needs_no_engine(site):
    site.engine = Engine("/nonexistent.sock")
    assert ("container", "create") in actions(site.run(check_mode=True))
    with pytest.raises(HostError, match="no Docker engine answers") as caught:
        site.run()
    assert "engine role" in caught.value.remedy


def config(container: dict) -> dict:
    return container["Config"]


def host(container: dict) -> dict:
    return container["HostConfig"]


def own_aliases(container: dict) -> set:
    (network,) = container["NetworkSettings"]["Networks"].values()
    return set(network["Aliases"]) - {container["Id"][:12]}


QUICK = {"command": ["true"], "interval": 500}
OTHER = {"command": ["id"], "interval": 600}
LOCAL = {"driver": "local", "options": {"max-size": "2m"}}
SMALL = {"driver": "json-file", "options": {"max-size": "2m"}}
LABEL = {"venice.endpoints": "x"}

FIELDS = [
    # field, value, difference, read from inspect, expected
    ("command", [*SERVE, "more"], "command", lambda c: config(c)["Cmd"][-1], "more"),
    ("env", {"COLOR": "blue"}, "env.COLOR", lambda c: "COLOR=blue" in config(c)["Env"], True),
    ("env", {"COLOR": "red"}, "env.DB_PASSWORD", lambda c: len(config(c)["Env"]), 3),
    ("user", "7102", "user", lambda c: config(c)["User"], "7102"),
    ("aliases", ["web", "www"], "aliases", own_aliases, {"web", "www"}),
    ("hosts", {"db": "192.0.2.9"}, "hosts.db", lambda c: host(c)["ExtraHosts"], ["db:192.0.2.9"]),
    ("ulimits", {"nofile": 900}, "ulimits.nofile", lambda c: host(c)["Ulimits"][0]["Soft"], 900),
    ("health", OTHER, "health.command", lambda c: config(c)["Healthcheck"]["Test"], ["CMD", "id"]),
    ("health", QUICK, "health.interval", lambda c: config(c)["Healthcheck"]["Interval"], 500 * 10**9),
    ("health", None, "health.command", lambda c: config(c).get("Healthcheck"), None),
    ("stop_timeout", 4, "stop_timeout", lambda c: config(c)["StopTimeout"], 4),
    ("log", LOCAL, "log.driver", lambda c: host(c)["LogConfig"]["Type"], "local"),
    ("log", SMALL, "log.options.max-size", lambda c: host(c)["LogConfig"]["Config"]["max-size"], "2m"),
    ("labels", LABEL, "labels.venice.endpoints", lambda c: config(c)["Labels"]["venice.endpoints"], "x"),
    ("memory", 0, "memory", lambda c: host(c)["Memory"], 0),
]


@pytest.mark.parametrize(("field", "value", "difference", "read", "expected"), FIELDS)
def test_a_changed_field_makes_a_new_container(site, field, value, difference, read, expected):
    site.run()
    old = site.inspect()["Id"]
    site.web[field] = value
    result = site.settle()
    assert (difference, "recreate") in actions(result)
    now = site.inspect()
    assert now["Id"] != old
    assert read(now) == expected
    assert now["State"]["Running"]
    assert site.names() == [site.name]


def test_changed_mounts_ports_and_networks(site):
    site.run()
    port = free_port()
    site.web["ports"] = [{"host": port, "container": 80}]
    assert ("ports.80/tcp", "recreate") in actions(site.settle())
    assert site.inspect()["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"] == str(port)
    site.web["mounts"][0]["read_only"] = True
    assert actions(site.settle()) == {("mounts./data", "recreate")}
    assert "Read-only" in site.execute("touch", "/data/x")
    site.web["ports"] = []
    assert actions(site.settle()) == {("ports.80/tcp", "recreate")}


@pytest.mark.parametrize(
    ("field", "value", "read", "expected"),
    [
        ("restart", "on-failure:4", lambda c: c["HostConfig"]["RestartPolicy"]["MaximumRetryCount"], 4),
        ("memory", 96 << 20, lambda c: c["HostConfig"]["Memory"], 96 << 20),
        ("memory", 16 << 20, lambda c: c["HostConfig"]["Memory"], 16 << 20),
        ("cpu_shares", 512, lambda c: c["HostConfig"]["CpuShares"], 512),
    ],
)
def test_a_field_that_changes_in_place(site, field, value, read, expected):
    site.run()
    before = site.state()
    site.web[field] = value
    assert actions(site.settle()) == {(field, "update")}
    assert read(site.inspect()) == expected
    assert site.state() == before


def test_a_new_image_and_a_tag_moved_to_another_image(site):
    site.run()
    site.web["image"] = site.images["two"]
    result = site.settle()
    assert result["differences"][0]["current"] == site.images["one"]
    assert result["differences"][0]["desired"] == site.images["two"]
    assert site.execute("cat", "/etc/note") == "two"
    moved = f"venice-test/moved:{uuid.uuid4().hex[:6]}"
    repository, tag = moved.split(":")
    site.api.tag(site.images["one"], repository, tag)
    try:
        site.web["image"] = moved
        site.settle()
        site.api.tag(site.images["two"], repository, tag, force=True)
        result = site.settle()
        assert "names another image now" in result["differences"][0]["reason"]
        assert site.execute("cat", "/etc/note") == "two"
    finally:
        site.run(state="absent")
        site.api.remove_image(moved, force=True)


def test_an_exited_container_is_started(site):
    site.run()
    site.serves()
    identity = site.inspect()["Id"]
    site.api.stop(site.name, timeout=60)
    result = site.settle()
    assert actions(result) == {("status", "start")}
    assert "exited with code 0" in result["differences"][0]["reason"]
    assert site.inspect()["Id"] == identity


def test_names_and_aliases_resolve_after_a_replacement(site):
    site.document["containers"].append(site.described("client"))
    site.run()
    site.web["env"]["COLOR"] = "green"
    site.run()
    for name in ("web", site.name):
        assert "Name:" in site.execute("nslookup", name, "127.0.0.11", name=f"{site.cluster}-client")


def test_a_network_made_anew(site):
    site.run()
    site.api.stop(site.name, timeout=3)
    site.api.remove_network(site.cluster)
    result = site.settle()
    assert {("network", "create"), ("network", "recreate")} <= actions(result)
    assert site.inspect()["State"]["Running"]


def test_a_port_moves_from_one_container_to_another_in_one_run(site):
    one, two = free_port(), free_port()
    site.document["containers"].append(site.described("other", ports=[{"host": two, "container": 80}]))
    site.web["ports"] = [{"host": one, "container": 80}]
    site.run()
    site.web["ports"][0]["host"], site.document["containers"][1]["ports"][0]["host"] = two, one
    site.settle()


# --- files


def test_a_changed_file_restarts_and_is_seen(site):
    """Mounted as a file, the old inode stays in a running container: only a restart shows the new content."""
    site.run()
    before = site.inspect()
    site.document["files"][0]["content"] = "color = blue\n"
    result = site.settle()
    path = site.document["files"][0]["path"]
    assert actions(result) == {("content", "write"), (f"files.{path}", "restart")}
    assert result["diff"] == [{"before_header": path, "after_header": path, "before": "color = red\n", "after": "color = blue\n"}]
    assert site.execute("cat", "/etc/web.conf") == "color = blue"
    assert site.inspect()["Id"] == before["Id"]
    assert site.inspect()["State"]["StartedAt"] > before["State"]["StartedAt"]


def test_a_file_that_its_component_reloads_restarts_nothing(site):
    site.web["files"] = {site.document["files"][0]["path"]: "none"}
    site.run()
    before = site.state()["containers"]
    site.document["files"][0]["content"] = "color = blue\n"
    assert actions(site.settle()) == {("content", "write")}
    assert site.state()["containers"] == before


def test_owner_and_mode_are_put_right_without_a_restart(site):
    site.run()
    before = site.state()["containers"]
    path = Path(site.document["files"][0]["path"])
    path.chmod(0o644)
    os.chown(path, 0, 0)
    (site.folder / "data").chmod(0o700)
    inode = path.stat().st_ino
    result = site.settle()
    assert actions(result) == {("owner", "write"), ("mode", "write")}
    assert (path.stat().st_uid, path.stat().st_ino) == (7101, inode)
    assert site.state()["containers"] == before


def test_a_run_that_wrote_the_file_and_did_not_restart_is_made_good(site, monkeypatch):
    site.run()
    site.document["files"][0]["content"] = "color = blue\n"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_halt", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            site.run()
    assert site.execute("cat", "/etc/web.conf") == "color = red"
    assert {action for _field, action in actions(site.settle())} == {"restart"}
    assert site.execute("cat", "/etc/web.conf") == "color = blue"


def test_writing_is_atomic(site, monkeypatch):
    site.run()
    site.document["files"][0]["content"] = "color = blue\n"
    with monkeypatch.context() as patch:
        patch.setattr(venice_files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(HostError, match="No space left") as caught:
            site.run()
    assert "free disk space" in caught.value.remedy
    assert Path(site.document["files"][0]["path"]).read_text() == "color = red\n"
    assert site.inspect()["State"]["Running"]
    site.settle()
    assert [path.name for path in (site.folder / "etc").iterdir()] == ["web.conf"]


def test_a_directory_where_a_file_belongs(site):
    Path(site.document["files"][0]["path"]).mkdir(parents=True)
    with pytest.raises(HostError, match=r"web: could not read .*web.conf: Is a directory"):
        site.run()
    assert site.names() == []


# --- secrets


def test_secrets_are_in_no_result(site):
    site.document["files"][0].update(secret=True, content="password = fIlEsEcReT\n")
    results = [site.run()]
    site.document["files"][0]["content"] = "password = nEwSeCrEt\n"
    site.web["env"]["DB_PASSWORD"] = "oThErSeCrEt"
    results += [site.run(check_mode=True), site.run()]
    text = json.dumps(results)
    for secret in ("vErYsEcReT", "fIlEsEcReT", "nEwSeCrEt", "oThErSeCrEt"):
        assert secret not in text
    assert results[1]["diff"][0]["before"] == "<secret>\n"
    digest = hashlib.sha256(b"password = nEwSeCrEt\n").hexdigest()
    assert digest[:12] not in text


# --- never without the old container


def test_a_missing_image_keeps_the_old_container(site):
    site.run()
    before = site.state()
    site.web["image"] = "venice-test/none:1"
    site.document["files"][0]["content"] = "color = blue\n"
    with pytest.raises(HostError, match=r"old one was not touched.*No such image: venice-test/none:1") as caught:
        site.run()
    assert "venice images ship" in caught.value.remedy
    assert site.state() == before


def test_a_taken_port_keeps_the_old_container(site):
    site.run()
    before = site.state()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        site.web["ports"] = [{"host": port, "container": 80}]
        with pytest.raises(HostError, match=rf"port {port}/tcp is taken by process .* \(pid {os.getpid()}\)"):
            site.run()
        assert site.state() == before
    site.settle()


def test_a_port_of_another_container_names_it(site):
    port = free_port()
    site.document["containers"].append(site.described("other", ports=[{"host": port, "container": 80}]))
    site.run()
    other = site.document["containers"].pop()
    site.web["ports"] = [{"host": port, "container": 80}]
    with pytest.raises(HostError, match=f"is taken by container {other['name']}"):
        site.run()
    site.run(prune=True)
    assert site.names() == [site.name]


def test_a_port_taken_in_the_last_moment_brings_the_old_container_back(site, monkeypatch):
    site.run()
    old = site.inspect()["Id"]
    monkeypatch.setattr(Run, "_check_ports", lambda self: None)
    with socket.create_server(("0.0.0.0", 0)) as server:  # noqa: S104 (the engine binds all addresses too)
        site.web["ports"] = [{"host": server.getsockname()[1], "container": 80}]
        with pytest.raises(HostError, match=r"start the new container \(the old one runs again\): .*(in use|allocated)"):
            site.run()
    assert site.inspect()["Id"] == old
    assert site.inspect()["State"]["Running"]
    assert site.names() == [site.name]
    site.settle()
    assert site.inspect()["Id"] != old


def test_an_option_that_the_engine_refuses_keeps_the_old_container(site):
    site.run()
    before = site.state()
    site.web["mounts"].append({"source": "/nonexistent/source", "target": "/x"})
    with pytest.raises(HostError, match="bind source path does not exist: /nonexistent/source") as caught:
        site.run()
    assert "create that path" in caught.value.remedy
    assert site.state() == before


# every single change of a replacement, in order; the second number says which call of it
STEPS = [("_create", 1), ("_stop", 1), ("_write_stamp", 1), ("_rename", 1), ("_rename", 2), ("_start", 1), ("_remove", 1)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("step", "call"), STEPS)
def test_a_run_that_dies_at_any_step_is_made_good(site, monkeypatch, step, call, after):
    site.run()
    site.web["env"]["COLOR"] = "blue"
    site.document["files"][0]["content"] = "color = blue\n"
    real, calls = getattr(Run, step), []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == call and not after:
            sys.exit(1)
        result = real(self, *arguments)
        if len(calls) == call:
            sys.exit(1)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Run, step, dying)
        with pytest.raises(SystemExit):
            site.run()
    # whatever happened, a container is there (the old one or the new one, under one of the names)
    assert site.names()
    site.run()
    assert site.names() == [site.name]
    now = site.inspect()
    assert now["State"]["Running"]
    assert "COLOR=blue" in now["Config"]["Env"]
    assert site.execute("cat", "/etc/web.conf") == "color = blue"
    assert site.run()["differences"] == []


def test_a_second_run_waits_for_the_first_and_is_refused_when_it_does_not_end(site, monkeypatch):
    monkeypatch.setattr(venice_converge, "LOCK_SECONDS", 1)
    run = Run(site.document, site.engine, Request(state_dir=f"{site.folder}/state"))
    with run.lock(), pytest.raises(HostError, match="another run has been changing this host"):
        site.run()
    monkeypatch.setattr(venice_converge, "LOCK_SECONDS", 30)
    with run.lock():
        waiting = threading.Thread(target=site.run)
        waiting.start()
        assert waiting.is_alive()
    waiting.join(30)
    assert site.inspect()["State"]["Running"]


# --- other people's containers, and what is no longer described


@pytest.mark.parametrize("labels", [{}, {"venice.cluster": "somebody"}])
def test_a_container_of_somebody_else_is_not_touched(site, labels):
    made = site.api.create_container(site.images["one"], name=site.name, labels=labels)
    try:
        before = site.state()
        with pytest.raises(HostError, match=r"belongs to (the cluster somebody|somebody else)"):
            site.run()
        with pytest.raises(HostError, match="belongs to"):
            site.run(check_mode=True)
        assert site.state() == before
        assert site.inspect()["Id"] == made["Id"]
    finally:
        site.api.remove_container(made["Id"])


def test_strays_are_reported_and_removed_when_asked(site):
    site.document["containers"].append(site.described("other"))
    site.run()
    other = site.document["containers"].pop()["name"]
    result = site.run()
    assert (result["changed"], result["stray"]) == (False, [other])
    assert actions(result) == {("container", "stray")}
    assert site.run(only=["web"])["stray"] == []
    result = site.run(prune=True)
    assert (result["changed"], result["stray"]) == (True, [])
    assert actions(result) == {("container", "remove")}
    assert site.names() == [site.name]


# --- rolling


def test_a_running_rolling_container_waits_for_its_turn(site):
    site.web["rolling"] = True
    assert site.run()["pending"] == []
    before = site.state()["containers"]
    site.web["env"]["COLOR"] = "blue"
    site.document["files"][0]["content"] = "color = blue\n"
    for _ in range(2):
        result = site.run()
        assert result["pending"] == [site.name]
        assert {action for _field, action in actions(result)} <= {"pending", "write"}
    assert result["changed"] is False
    assert site.state()["containers"] == before
    result = site.run(roll=[site.name])
    assert (result["changed"], result["pending"]) == (True, [])
    assert site.state()["containers"] != before
    assert site.run()["differences"] == []


def test_a_stopped_rolling_container_does_not_wait(site):
    site.web["rolling"] = True
    site.run()
    site.api.stop(site.name, timeout=3)
    site.web["env"]["COLOR"] = "blue"
    result = site.settle()
    assert result["pending"] == []
    assert "COLOR=blue" in site.inspect()["Config"]["Env"]


# --- stopped, started, absent


def test_stop_and_start(site):
    site.document["containers"].append(site.described("other"))
    site.run()
    site.serves()
    identities = {name: entry[0] for name, entry in site.state()["containers"].items()}
    assert site.run(state="stopped", check_mode=True)["changed"]
    result = site.run(state="stopped", only=["other"])
    assert [entry["action"] for entry in result["differences"]] == ["stop"]
    assert site.inspect()["State"]["Running"]
    result = site.run(state="stopped")
    assert {entry["status"] for entry in result["containers"]} == {"exited"}
    assert site.inspect()["State"]["ExitCode"] == 0
    assert site.run(state="stopped")["changed"] is False
    site.web["env"]["COLOR"] = "blue"
    result = site.run(state="started")
    assert {entry["status"] for entry in result["containers"]} == {"running"}
    assert site.run(state="started")["changed"] is False
    assert {name: entry[0] for name, entry in site.state()["containers"].items()} == identities


def test_restart_only_what_is_named(site):
    site.document["containers"].append(site.described("other", files={}))
    other = site.document["containers"][1]["name"]
    site.run()
    before = {name: site.inspect(name)["State"]["StartedAt"] for name in (site.name, other)}
    assert [entry["action"] for entry in site.run(state="restarted", roll=[other], check_mode=True)["differences"]] == ["restart"]
    assert site.inspect(other)["State"]["StartedAt"] == before[other]
    # what it reads on its way up counts as read: the next run has nothing to do
    site.document["files"][0]["content"] = "color = blue\n"
    Path(site.document["files"][0]["path"]).write_text("color = blue\n")
    result = site.run(state="restarted", roll=[site.name])
    assert [(entry["container"], entry["action"]) for entry in result["differences"]] == [(site.name, "restart")]
    assert site.inspect(site.name)["State"]["StartedAt"] != before[site.name]
    assert site.inspect(other)["State"]["StartedAt"] == before[other]
    assert site.run()["differences"] == []
    site.run(state="stopped", only=["other"])
    assert [entry["action"] for entry in site.run(state="restarted", roll=[other])["differences"]] == ["start"]
    assert site.inspect(other)["State"]["Running"]
    with pytest.raises(HostError, match="nothing on this host describes nobody"):
        site.run(state="restarted", roll=["nobody"])


def test_absent_keeps_data_unless_asked(site):
    site.document["containers"].append(site.described("other"))
    site.run()
    (site.folder / "data/file").write_text("precious")
    site.run(state="absent", only=["other"])
    assert site.names() == [site.name]
    assert site.run(state="absent", check_mode=True)["changed"]
    assert site.names() == [site.name]
    site.run(state="absent")
    assert site.names() == []
    assert site.api.networks(names=[site.cluster]) == []
    assert (site.folder / "data/file").exists()
    assert not list((site.folder / "state/containers").iterdir())
    result = site.run(state="absent", remove_data=True)
    assert {entry["path"] for entry in result["differences"]} == {f"{site.folder}/data", f"{site.folder}/etc/web.conf"}
    assert not (site.folder / "data").exists()
    assert not (site.folder / "etc").exists()
    assert site.run(state="absent", remove_data=True)["changed"] is False


def test_a_network_that_others_use_stays(site):
    site.run()
    guest = site.api.create_container(site.images["one"], host_config=site.api.create_host_config(network_mode=site.cluster))
    try:
        site.run(state="absent")
        assert site.api.networks(names=[site.cluster])
    finally:
        site.api.remove_container(guest["Id"], force=True)


# --- through Ansible


def test_through_ansible(site):
    arguments = {"document": encode_document(site.document), "state_dir": f"{site.folder}/state"}
    (site.folder / "ansible.cfg").touch()
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(site.folder / "ansible.cfg"),
        "ANSIBLE_LIBRARY": str(paths.resource("plugins") / "modules"),
        "ANSIBLE_MODULE_UTILS": str(paths.resource("plugins") / "module_utils"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    command = [str(Path(sys.executable).parent / "ansible"), "localhost", "-c", "local", "--diff", "-vvv"]
    command += ["--tree", str(site.folder / "results"), "-m", "venice_host", "-a", json.dumps(arguments)]
    for changed in (True, False):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        text = (site.folder / "results/localhost").read_text()
        result = json.loads(text)
        assert result["changed"] is changed
        assert result["containers"][0]["status"] == "running"
        assert bool(result["diff"]) is changed
        assert "vErYsEcReT" not in done.stdout + done.stderr + text


# --- waiting


def test_waiting_asks_at_once_and_not_at_the_interval(site):
    site.web["health"] = {"command": ["sh", "-c", "echo ready; cat /tmp/ready"], "interval": 600, "timeout": 2}
    site.web["command"] = ["sh", "-c", "sleep 1; touch /tmp/ready; exec sleep 3600"]
    site.run()
    found = venice_wait.wait([site.name], 20, site.engine)[site.name]
    assert found["healthy"]
    assert found["output"] == "ready"
    assert 0.5 < found["seconds"] < 600


def test_waiting_in_vain_says_why(site):
    site.web["health"] = {"command": ["sh", "-c", "echo no quorum; exit 1"], "timeout": 2}
    site.web["command"] = ["sh", "-c", "for i in 1 2 3 4; do echo line $i; done; exec sleep 3600"]
    site.run()
    found = venice_wait.wait([site.name], 5, site.engine)
    entry = found[site.name]
    assert not entry["healthy"]
    assert entry["seconds"] > 3
    assert entry["output"] == "no quorum"
    assert entry["log"] == [f"line {number}" for number in range(1, 5)]
    assert "no quorum" in venice_wait.explain(found)


def test_a_health_check_that_hangs(site):
    site.web["health"] = {"command": ["sleep", "600"], "timeout": 1}
    site.run()
    entry = venice_wait.wait([site.name], 2, site.engine)[site.name]
    assert "did not answer within" in entry["output"]
    assert entry["seconds"] < 600


def test_waiting_for_what_will_not_come(site):
    site.web.update(command=["sh", "-c", "echo broken config; exit 3"], restart="on-failure:1")
    site.run()
    entry = venice_wait.wait([site.name, "nobody"], PATIENCE, site.engine)[site.name]
    assert entry["seconds"] < PATIENCE
    assert (entry["healthy"], entry["status"], entry["exit_code"]) == (False, "exited", 3)
    assert entry["restarts"] == 1
    assert entry["log"][-1] == "broken config"


# --- loading images


def exported(api, ref: str, folder: Path) -> dict:
    """An image as the controller sends it; its layer files are put into `folder`."""
    stream = io.BytesIO(b"".join(api.get_image(ref)))
    with tarfile.open(fileobj=stream) as tar:
        manifest = json.loads(tar.extractfile("manifest.json").read())[0]
        config = tar.extractfile(manifest["Config"]).read()
        layers = [tar.extractfile(name).read() for name in manifest["Layers"]]
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    for digest, layer in zip(digests, layers, strict=True):
        (folder / f"{digest}.tar").write_bytes(layer)
    identity = "sha256:" + hashlib.sha256(config).hexdigest()
    return {"ref": ref, "id": identity, "config": base64.b64encode(config).decode(), "layers": digests}


@pytest.fixture
def two_layers(api, images):
    """An image of one layer more than `images['one']`."""
    made = api.create_container(images["one"], ["sh", "-c", "echo more > /data/more"])["Id"]
    api.start(made)
    api.wait(made)
    ref = f"venice-test/layers:{uuid.uuid4().hex[:6]}"
    api.commit(made, *ref.split(":"))
    api.remove_container(made)
    yield ref
    try:
        api.remove_image(ref, force=True)
    except Exception as error:  # the test removed it
        assert "No such image" in str(error)


def test_only_missing_layers_are_sent_and_loaded(api, engine, images, two_layers, tmp_path):
    cache, staging = tmp_path / "cache", tmp_path / "staging"
    cache.mkdir()
    image = exported(api, two_layers, cache)
    found = venice_image_load.query([image], staging, "root", engine)
    assert (found["present"], found["missing"]) == ([two_layers], [])
    api.remove_image(two_layers, force=True)
    (staging / "junk.part").write_text("left")
    found = venice_image_load.query([image], staging, "root", engine)
    _base, upper = image["layers"]
    assert (found["present"], found["missing"], found["staged"]) == ([], [upper], [])
    assert list(staging.iterdir()) == []

    with pytest.raises(venice_image_load.LoadError, match="did not arrive"):
        venice_image_load.load([image], staging, engine)
    layer = (cache / f"{upper}.tar").read_bytes()
    (staging / f"{upper}.tar").write_bytes(layer[:-600])
    with pytest.raises(venice_image_load.LoadError, match="arrived incomplete") as caught:
        venice_image_load.load([image], staging, engine)
    assert "not sent twice" in caught.value.remedy
    assert engine.image(two_layers) is None
    (staging / f"{upper}.tar").write_bytes(layer[:-600])
    assert venice_image_load.query([image], staging, "root", engine)["missing"] == [upper]

    (staging / f"{upper}.tar").write_bytes(layer)
    (staging / "junk.part").write_text("left")
    assert venice_image_load.query([image], staging, "root", engine)["staged"] == [upper]
    result = venice_image_load.load([image], staging, engine)
    assert (result["changed"], result["loaded"]) == (True, [two_layers])
    assert api.inspect_image(two_layers)["Id"] == image["id"]
    assert list(staging.iterdir()) == []
    assert venice_image_load.load([image], staging, engine)["changed"] is False


def test_a_configuration_that_does_not_fit_is_refused(api, engine, two_layers, tmp_path):
    image = exported(api, two_layers, tmp_path)
    api.remove_image(two_layers, force=True)
    wrong = copy.deepcopy(image)
    wrong["config"] = base64.b64encode(b"{}").decode()
    with pytest.raises(venice_image_load.LoadError, match="does not belong to the id"):
        list(venice_image_load.archive([wrong], []))


def test_engine_errors_have_the_engines_words(engine):
    with pytest.raises(EngineError, match="No such container"):
        engine.ask("/containers/nobody/json")
    assert venice_converge.failure("x", "No such image: y")["remedy"]
