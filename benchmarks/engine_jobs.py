"""The engines' benchmark's own jobs: each as pipelines/transactions has it, on topics of its own, started and stopped by hand.

Containers are made once, by `venice apply` of a pipeline of the benchmark's own; from then on they are only started and stopped,
so that no Ansible runs beside what is measured.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.results import Usage
from venice.cluster import Cluster
from venice.errors import VeniceError
from venice.hosts import DockerHost, over
from venice.pipeline.connectors import replaced
from venice.pipeline.engines import ENGINES, Statements
from venice.verify import ENGINES as SUFFIXES

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "pipelines" / "transactions"
PIPELINE = "bench_engines"
PROGRAM = "bench-engines"
PARTITIONS = 3
READY_SECONDS = 60.0
_POLL_SECONDS = 0.1


def until(question: Any, seconds: float, what: str) -> Any:
    """The first answer that is true; VeniceError when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise VeniceError(f"not within {seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)
    return answer


def now_ms() -> float:
    """Milliseconds since 1970."""
    return time.time() * 1000


def renamed(text: str, prefix: str) -> str:
    """SQL of pipelines/transactions with other topics, subjects, groups, streams and tables."""
    text = re.sub(r"'(dlq\.)?transactions", rf"'\g<1>{prefix}transactions", text)
    return re.sub(r"\b(EXISTS|FROM|INTO|TABLE) transactions", rf"\1 {prefix}transactions", text)


class Place:
    """The cluster with its hosts, whose connections are kept."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.hosts = {name: DockerHost(host) for name, host in cluster.hosts.items()}

    def close(self) -> None:
        """End the connections."""
        for host in self.hosts.values():
            host.close()

    def look(self) -> dict[tuple[str, str], Usage]:
        """What the cluster's running containers have used until now, by host and container."""

        def ask(host: DockerHost) -> dict[tuple[str, str], Usage]:
            found = {}
            with host.asking():
                for container in host.docker.containers.list(filters={"label": f"venice.cluster={self.cluster.name}"}):
                    stats = container.stats(stream=False, one_shot=True)
                    memory = stats["memory_stats"].get("stats", {})
                    # cgroups of version 2, and of version 1
                    resident = memory.get("anon", memory.get("total_rss", 0))
                    cpu = stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
                    # among producers only the benchmark's own belongs to an engine
                    mine = container.name == f"venice-producer-{PROGRAM}"
                    component = PROGRAM if mine else container.labels["venice.component"]
                    found[host.name, container.name] = Usage(component, cpu, resident)
            return found

        answers = over(self.hosts.values(), ask)
        for answer in answers.values():
            if isinstance(answer, VeniceError):
                raise answer
        return {place: usage for answer in answers.values() for place, usage in answer.items()}

    def container(self, component: str, name: str) -> tuple[DockerHost, Any]:
        """The host and the container (of the SDK) of one of the benchmark's programs."""
        instance = next(i for i in self.cluster.instances(component) if i.name == name)
        host = self.hosts[instance.host]
        with host.asking():
            return host, host.docker.containers.get(instance.container)


class Engine:
    """An engine with the benchmark's topics for it. `components`: those whose containers count as the engine."""

    components: tuple[str, ...] = ()
    last_stays_open = False
    """Whether its SQL can't close the last window by a record that is not paid."""

    def __init__(self, place: Place, name: str):
        self.place, self.name = place, name
        self.prefix = f"bench_{name}_"
        self.input = f"{self.prefix}transactions"
        self.output = f"{self.input}_aggregate_{SUFFIXES[name]}"
        self.topics = (self.input, self.output, f"dlq.{self.input}")
        self.subjects = {f"{self.input}-value": "transaction.avsc", f"{self.output}-value": "aggregate.avsc"}

    @property
    def cluster(self) -> Cluster:
        """The cluster as it is now."""
        return self.place.cluster

    def declares(self) -> dict[str, Any]:
        """What of a pipeline.yml its programs need."""
        return {}

    def others(self) -> list[str]:
        """Jobs of others' on this engine: they would be measured, too."""
        raise NotImplementedError

    def prepare(self) -> None:
        """What is to be there before its job is started."""

    def start(self) -> float:
        """Start the job, with all that is in the topics: when it was told so (ms since 1970)."""
        raise NotImplementedError

    def reading_since(self, told: float) -> float:
        """When it began to read, by its own account (ms since 1970)."""
        return told

    def stop(self) -> None:
        """End the job, and forget where it was."""
        raise NotImplementedError

    def remove(self) -> None:
        """Whatever there still is of it when its programs' containers are gone."""
        raise NotImplementedError


class SqlEngine(Engine):
    """An engine whose job is a file of statements."""

    def _statements(self) -> Statements:
        file = SHIPPED / "sql" / f"{self.name}.sql"
        text = replaced(renamed(file.read_text(), self.prefix), self.cluster.pipeline_vars, file)
        return Statements(PIPELINE, file.name, file, text, self.name)

    def start(self) -> float:
        """Returns when its tasks run."""
        told = now_ms()
        ENGINES[self.name].apply(self.cluster, self._statements())
        return told

    def stop(self) -> None:
        """Cancelled and forgotten."""
        ENGINES[self.name].forget(self.cluster, PIPELINE, f"{self.name}.sql")

    def remove(self) -> None:
        """The same: it has no programs."""
        self.stop()


class Flink(SqlEngine):
    """Flink: one job of SQL."""

    components = ("flink",)
    job = f"{PIPELINE}.flink"

    def __init__(self, place: Place, name: str):
        super().__init__(place, name)
        self._ids: list[str] = []

    def others(self) -> list[str]:
        """Declared jobs."""
        from venice.flink import Jobs

        return [f"Flink's job {name}" for name in Jobs.of(self.cluster).all() if name != self.job]

    def reading_since(self, told: float) -> float:
        """When the first task of its source was running."""
        from venice.flink import Jobs

        job = Jobs.of(self.cluster).all()[self.job].job_id
        self._ids.append(job)
        manager = next(i for i in self.cluster.instances("flink") if i.vars["kind"] == "jobmanager")
        url = f"http://{manager.endpoint('ui')}/jobs/{job}"
        sources = [v["id"] for v in _json(url)["vertices"] if "source" in v["name"].casefold()]
        return min(
            task["timestamps"]["RUNNING"] for source in sources for task in _json(f"{url}/vertices/{source}/subtasktimes")["subtasks"]
        )

    def remove(self) -> None:
        """And the checkpoints of its jobs, which Flink keeps for who wants to go on from them."""
        super().remove()
        store = next(i for i in self.cluster.instances("flink") if i.vars["kind"] == "store")
        folder = f"{self.cluster.var(store.host, 'venice_data_dir')}/{store.name}"
        for job in self._ids:
            _run(self.place.hosts[store.host], ["sudo", "find", folder, "-depth", "-path", f"*/{job}*", "-delete"])


class KsqlDb(SqlEngine):
    """ksqlDB: a stream and a table."""

    components = ("ksqldb",)
    last_stays_open = True

    def others(self) -> list[str]:
        """Persistent queries."""
        from venice.ksqldb import KsqlDb as Server
        from venice.pipeline.on_ksqldb import existing

        return [f"ksqlDB's query {name}" for kind, name in existing(Server.of(self.cluster)) if kind == "query"]


class Spark(Engine):
    """Spark: a job's driver, which asks for an executor."""

    components = ("spark", "spark_job")

    def declares(self) -> dict[str, Any]:
        """The job; it begins with empty topics, and is stopped."""
        names = {"INPUT": self.input, "OUTPUT": self.output, "DEAD_LETTERS": self.topics[2]}
        return {"jobs": [{"name": PROGRAM, "on": "spark", "script": "aggregate.py", "environment": names}]}

    def others(self) -> list[str]:
        """Drivers that run."""
        places = [place for place, usage in self.place.look().items() if usage.component == "spark_job"]
        return [f"{container} on {host}" for host, container in places if container != f"venice-spark-job-{PROGRAM}"]

    def _driver(self) -> tuple[DockerHost, Any]:
        return self.place.container("spark_job", f"spark-job-{PROGRAM}")

    def start(self) -> float:
        """Returns when the container is started: the driver then starts by itself."""
        host, container = self._driver()
        told = now_ms()
        with host.asking():
            container.start()
        return told

    def reading_since(self, told: float) -> float:
        """When the first of its batches was given to executors."""
        driver = next(i for i in self.cluster.instances("spark_job") if i.name == f"spark-job-{PROGRAM}")
        url = f"http://{driver.endpoint('ui')}/api/v1/applications"
        [application] = _json(url)
        times = [job["submissionTime"] for job in _json(f"{url}/{application['id']}/jobs")]
        return min(datetime.strptime(t, "%Y-%m-%dT%H:%M:%S.%fGMT").replace(tzinfo=UTC).timestamp() * 1000 for t in times)

    def stop(self) -> None:
        """Stopped, and its checkpoint removed: it begins anew next time."""
        host, container = self._driver()
        with host.asking():
            container.stop()
        _run(host, ["sudo", "rm", "-rf", *(f"{self._checkpoint(host)}/{query}" for query in ("aggregate", "dead_letters"))])

    def _checkpoint(self, host: DockerHost) -> str:
        return f"{self.cluster.var(host.name, 'venice_data_dir')}/spark-worker/checkpoints/{PROGRAM}"

    def remove(self) -> None:
        """What tells Venice where the job was."""
        for name in self.cluster.groups["spark"]:
            _run(self.place.hosts[name], ["sudo", "rm", "-rf", self._checkpoint(self.place.hosts[name])])


class Pinot(Engine):
    """Pinot: a table, and the program that asks it for windows."""

    components = ("pinot", "zookeeper", PROGRAM)

    def declares(self) -> dict[str, Any]:
        """The program. The table is made when it runs."""
        addresses = {"PINOT_BROKER": "${pinot_broker_url}", "PINOT_CONTROLLER": "${pinot_controller_url}"}
        names = {"TABLE": self.input, "INPUT": self.input}
        return {"producers": [{"name": PROGRAM, "script": "pinot_publisher.py", "topic": self.output, "environment": addresses | names}]}

    def others(self) -> list[str]:
        """Tables, whoever asks them."""
        return [f"Pinot's table {name}" for name in self._pinot().tables() if name != self.input]

    def _pinot(self) -> Any:
        from venice.pinot import Pinot as Service

        return Service.of(self.cluster)

    def _program(self) -> tuple[DockerHost, Any]:
        return self.place.container("producer", f"producer-{PROGRAM}")

    def prepare(self) -> None:
        """The program runs, and waits for the table."""
        host, container = self._program()
        since = int(time.time())
        with host.asking():
            container.start()
            until(lambda: b"waiting for Pinot" in container.logs(since=since), READY_SECONDS, "the publisher asks Pinot")

    def start(self) -> float:
        """The table is made; its server begins to read at once."""
        from venice.pipeline.tables import TableFiles

        files = [SHIPPED / "pinot" / f"transactions.{kind}.json" for kind in ("schema", "table")]
        texts = [file.read_text().replace('"transactions"', f'"{self.input}"') for file in files]
        table = TableFiles.of(*files, *texts).load(self.cluster.pipeline_vars)
        told = now_ms()
        self._pinot().create(table)
        return told

    def stop(self) -> None:
        """Stopped, and the table removed."""
        host, container = self._program()
        with host.asking():
            container.stop()
        self.remove()

    def remove(self) -> None:
        """The table."""
        pinot = self._pinot()
        if self.input in pinot.tables():
            pinot.delete(self.input)


KINDS: Mapping[str, type[Engine]] = {"flink": Flink, "spark": Spark, "pinot": Pinot, "ksqldb": KsqlDb}


def write(folder: Path, engines: Iterable[Engine]) -> None:
    """The pipeline of the benchmark's programs; an empty one without engines."""
    document: dict[str, Any] = {"description": "The engines' benchmark: gone when it has ended"}
    for engine in engines:
        document |= engine.declares()
    folder.mkdir(exist_ok=True)
    for script in (SHIPPED / "spark" / "aggregate.py", SHIPPED / "pinot_publisher.py"):
        (folder / script.name).write_text(script.read_text())
    (folder / "pipeline.yml").write_text(yaml.safe_dump(document))


def apply(folder: Path, inventory: Path) -> None:
    """`venice apply --prune`; VeniceError with what it said when it fails."""
    argv = [sys.executable, "-m", "venice", "apply", str(folder), "-i", str(inventory), "--prune", "--yes"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VeniceError(f"`venice apply {folder.name}` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _json(url: str) -> Any:
    try:
        return httpx.get(url, trust_env=False, timeout=10).raise_for_status().json()
    except httpx.HTTPError as error:
        raise VeniceError(f"{url}: {error}") from error


def _run(host: DockerHost, argv: list[str]) -> None:
    code, _, errors = host.run(argv)
    if code:
        raise VeniceError(f"{host.name}: {' '.join(argv[:3])}: {errors.strip()}")
