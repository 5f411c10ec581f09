"""What the tests on lab hosts share: the command line, questions to the cluster, waiting for answers."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from confluent_kafka import Consumer, Message
from jsonschema import Draft202012Validator

from tests.waiting import PATIENCE, wait_until
from venice import lab as machines
from venice.cluster import Cluster
from venice.errors import VeniceError
from venice.hosts import DockerHost, over

ROOT = Path(__file__).resolve().parents[2]
VENICE = [sys.executable, "-m", "venice"]
HOSTS = ("lab-1", "lab-2", "lab-3")


def venice(*arguments: str, expect: int = 0, timeout: float = 2 * PATIENCE) -> str:
    """Runs the command line from the checkout; returns all it printed."""
    done = subprocess.run([*VENICE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == expect, output
    assert "Traceback" not in output, output
    return output


def on(host: str, argv: list[str]) -> subprocess.CompletedProcess[str]:
    """A command on a lab host; again while SSH itself fails (exit code 255): a machine with much to do takes connections late."""
    return wait_until(lambda: (done := machines.run(host, argv)).returncode != 255 and done, f"{host} takes a connection")


def received(consumer: Consumer, what: str) -> Message:
    """The consumer's next message, or error. Not by its truth: a message without a value has none."""
    [message] = wait_until(lambda: (found := consumer.poll(1)) is not None and [found], what)
    return message


def status(inventory: str | Path = "lab") -> dict:
    """`venice status --json`, whatever its exit code."""
    command = [*VENICE, "status", "-i", str(inventory), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return json.loads(done.stdout)


def answered(inventory: str | Path = "lab") -> dict:
    """The status once everybody has answered: it gives nobody much time, and a service with much to do may miss a question."""
    return wait_until(lambda: not ((found := status(inventory))["problems"] or found["unreachable"]) and found, "all answer")


def whole() -> bool:
    """Every container healthy, every broker in sync with all it holds, every connector running, the shipped ones among them; prints what
    is not."""
    found = status()
    names = {c["name"] for c in found["connectors"]}
    ill = {
        "problems": found["problems"],
        "unreachable": found["unreachable"],
        "containers": [c for c in found["containers"] if c["health"] != "healthy"],
        "brokers": [b for b in found["brokers"] if not b["registered"] or b["in_sync"] != b["replicas"]],
        "brokers there": "" if len(found["brokers"]) == 3 else found["brokers"],
        "connectors": [c for c in found["connectors"] if not c["running"]],
        "connectors not there": {"bus_locations_latest", "bus_locations_history", "venice_canary"} - names,
    }
    if left := {what: which for what, which in ill.items() if which}:
        print(left)
    return not left


def all_healthy(inventory: str | Path, wanted: Iterable[tuple[str, str]]) -> bool:
    """Whether `venice status` says so of these instances (name, host); prints what is not."""
    found = status(inventory)
    rows = {(c["instance"], c["host"]): (c["state"], c["health"]) for c in found["containers"]}
    ill = {row: rows.get(row) for row in wanted if rows.get(row) != ("running", "healthy")}
    if ill:
        print(ill, found["unreachable"])
    return not ill


def starts(cluster: Cluster, hosts: dict | None = None) -> dict[tuple[str, str], tuple[str, str]]:
    """(host, container) -> (id, start time) of all containers: equal before and after means nothing was restarted."""

    def look(host: DockerHost) -> dict[str, tuple[str, str]]:
        found = host.docker.containers.list(all=True, filters={"label": "venice.cluster"})
        return {c.name: (c.id, c.attrs["State"]["StartedAt"]) for c in found}

    def ask() -> dict:
        found = over((hosts or cluster.hosts).values(), look)
        return {} if any(isinstance(answer, VeniceError) for answer in found.values()) else found

    answers = wait_until(ask, "all hosts answer")
    return {(host, name): seen for host, containers in answers.items() for name, seen in containers.items()}


def sql(cluster: Cluster, query: str) -> str:
    """The first value that PostgreSQL answers, asked in its container as its own superuser."""
    [postgres] = cluster.instances("postgres")
    argv = ["sudo", "docker", "exec", "-i", postgres.container, "psql", "-At", "-d", "venice", "-c", query]
    done = on(postgres.host, argv)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def kill(host: str, container: str) -> None:
    """`kill -9` of a container's first process, as when the machine runs out of memory."""
    done = on(host, ["sudo", "sh", "-c", f"kill -9 $(docker inspect --format '{{{{.State.Pid}}}}' {container})"])
    assert done.returncode == 0, done.stderr


def from_json(text: str, name: str):
    """A command's `--json` output, checked against the form that `docs/json/<name>.schema.json` promises."""
    schema = json.loads((ROOT / "docs" / "json" / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    found = json.loads(text)
    Draft202012Validator(schema).validate(found)
    return found


def verified(inventory: str | Path = "lab") -> dict:
    """What `venice verify transactions` says, and its exit code as `exit`; asked again while brokers or registry do not answer."""
    command = [*VENICE, "verify", "transactions", "-i", str(inventory), "--json"]

    def ask() -> subprocess.CompletedProcess[str] | None:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stderr)
        return done if done.stdout else None

    done = wait_until(ask, "all answer")
    return from_json(done.stdout, "verify") | {"exit": done.returncode}


def take_away(cluster: Cluster, folder: Path, empty: Path, undo: str, inventory: str | Path = "lab") -> None:
    """Removes what a pipeline made, of whichever earlier run: as a user does, by applying its folder emptied (made in `empty`).

    `undo`: SQL that drops what its own SQL made.
    """
    from venice.connect import Connect
    from venice.kafka import Kafka
    from venice.pipeline.files import load
    from venice.pipeline.look import Wanted
    from venice.registry import Registry

    made = Wanted.of(cluster, load(folder)).resources
    (empty / folder.name).mkdir(exist_ok=True)
    (empty / folder.name / "pipeline.yml").write_text("description: emptied\n")
    venice("apply", str(empty / folder.name), "-i", str(inventory), "--prune", "--yes")
    # what an apply that was interrupted left is in nobody's record
    connect, kafka, registry = Connect.of(cluster), Kafka.of(cluster), Registry.of(cluster)
    for name in made["connector"]:
        if connect.status(name):
            connect.delete(name)
    if left := {part.topic for part in kafka.partitions()} & set(made["topic"]):
        kafka.delete(left)
    for subject in set(registry.subjects()) & set(made["schema"]):
        registry.delete(subject)
    sql(cluster, undo)
    if sql(cluster, "SELECT to_regclass('venice_pipelines.sql')"):  # a new database has none until SQL is applied
        sql(cluster, f"DELETE FROM venice_pipelines.sql WHERE pipeline = '{folder.name}'")  # noqa: S608 (a folder of this project)
