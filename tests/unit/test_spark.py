"""Spark: where jobs run, what their containers get, what tells that a job makes progress, and source archives among downloads."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml

from venice.cluster import Cluster, component_groups
from venice.errors import InputError
from venice.images import Artifact, downloads
from venice.pipeline import jobs, load
from venice.preflight import validate
from venice.smoke import _Smoke

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "from pyspark.sql import SparkSession\n"


def inventory(folder: Path, names: list[str], hosts: int = 3, **variables) -> Cluster:
    """A cluster of hosts h-1.. that run Kafka, a registry and Spark, with one pipeline `p` of jobs."""
    pipeline = folder / "pipelines" / "p"
    pipeline.mkdir(parents=True, exist_ok=True)
    (pipeline / "job.py").write_text(SCRIPT)
    wanted = [{"name": name, "on": "spark", "script": "job.py", "environment": {"OUTPUT": name}} for name in names]
    (pipeline / "pipeline.yml").write_text(yaml.safe_dump({"jobs": wanted}))
    everywhere = {f"h-{n}": {"ansible_host": f"192.0.2.{n}"} for n in range(1, hosts + 1)}
    groups = {
        "kafka": {"hosts": everywhere},
        "schema_registry": {"hosts": {"h-1": {}}},
        "spark": {"hosts": {host: {} for host in everywhere}},
    }
    told = {"venice_cluster": "sp", "venice_pipelines": ["p"], **variables}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": told, "children": groups}}))
    return Cluster.load(folder / "hosts.yml")


def container(cluster: Cluster, host: str, name: str) -> dict:
    return next(c for c in cluster.desired(host)["containers"] if c["name"] == name)


def settings(cluster: Cluster, host: str, instance: str) -> dict[str, str]:
    text = next(f for f in cluster.desired(host)["files"] if f["path"] == f"/etc/venice/{instance}/spark.conf")
    assert text["secret"]
    return dict(line.split(" ", 1) for line in text["content"].splitlines() if not line.startswith("#"))


def placed(cluster: Cluster) -> dict[str, str]:
    return {i.name: i.host for i in cluster.instances("spark_job")}


def recorded(cluster: Cluster, host: str, **started: int) -> None:
    """As if jobs had been started there."""
    folder = cluster.state_dir / "records"
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"/srv/venice/spark-worker/checkpoints/{job}/job": f"started={at}\n" for job, at in started.items()}
    (folder / f"{host}.json").write_text(json.dumps(files))


# ---- who runs where


def test_one_master_and_a_worker_on_every_host(tmp_path):
    cluster = inventory(tmp_path, [])
    assert validate(cluster) == []
    assert [(i.name, i.host) for i in cluster.instances("spark")] == [
        ("spark-master", "h-1"),
        ("spark-worker", "h-1"),
        ("spark-worker", "h-2"),
        ("spark-worker", "h-3"),
    ]
    assert cluster.instances("spark_job") == []


def test_jobs_run_where_spark_does_and_have_no_group(tmp_path):
    cluster = inventory(tmp_path, ["a"])
    assert "spark" in component_groups() and "spark_job" not in component_groups()
    assert "spark_job" in cluster.hosts["h-2"].components
    assert cluster.after_pipelines("spark_job") and not cluster.after_pipelines("spark")


def test_new_jobs_are_spread(tmp_path):
    assert placed(inventory(tmp_path, ["a", "b", "c", "d"])) == {
        "spark-job-a": "h-1",
        "spark-job-b": "h-2",
        "spark-job-c": "h-3",
        "spark-job-d": "h-1",
    }


def test_a_job_stays_where_its_state_is(tmp_path):
    recorded(inventory(tmp_path, ["a", "b"]), "h-3", b=1763750000)
    assert placed(inventory(tmp_path, ["a", "b"])) == {"spark-job-a": "h-1", "spark-job-b": "h-3"}
    # also when others come before it, and not on a host that is not Spark's any more
    assert placed(inventory(tmp_path, ["x", "y", "b"]))["spark-job-b"] == "h-3"
    assert placed(inventory(tmp_path, ["x", "b"], hosts=2)) == {"spark-job-x": "h-1", "spark-job-b": "h-2"}


def test_of_two_states_the_one_used_last_counts(tmp_path):
    cluster = inventory(tmp_path, ["a"])
    recorded(cluster, "h-2", a=1763750000)
    recorded(cluster, "h-3", a=1763750009)
    assert placed(inventory(tmp_path, ["a"])) == {"spark-job-a": "h-3"}


def test_two_pipelines_can_not_have_the_same_job(tmp_path):
    inventory(tmp_path, ["a"])
    shutil.copytree(tmp_path / "pipelines" / "p", tmp_path / "pipelines" / "q")
    with pytest.raises(InputError, match="pipelines p and q both have a job a"):
        inventory(tmp_path, ["a"], venice_pipelines=["p", "q"])


# ---- what they get


def test_a_jobs_executor_can_only_run_beside_its_driver(tmp_path):
    cluster = inventory(tmp_path, ["a", "b"])
    for job, host in (("a", "h-1"), ("b", "h-2")):
        own = settings(cluster, host, f"spark-job-{job}")
        asked = {key for key in own if key.startswith("spark.executor.resource.")}
        [resource] = [key.split(".")[3] for key in asked]
        offers = {h for h in cluster.hosts if f"spark.worker.resource.{resource}.amount" in settings(cluster, h, "spark-worker")}
        assert offers == {host}


def test_driver_and_worker_share_the_jobs_checkpoint(tmp_path):
    cluster = inventory(tmp_path, ["a"])
    job = container(cluster, "h-1", "venice-spark-job-a")
    worker = container(cluster, "h-1", "venice-spark-worker")
    here = {"source": "/srv/venice/spark-worker/checkpoints/a", "target": "/checkpoints/a", "read_only": False}
    assert here in job["mounts"]
    assert {"source": "/srv/venice/spark-worker/checkpoints", "target": "/checkpoints", "read_only": False} in worker["mounts"]
    assert job["user"] == worker["user"]
    assert "/srv/venice/spark-worker/checkpoints/a" in [d["path"] for d in cluster.desired("h-1")["directories"]]
    assert job["restart"] == "unless-stopped"
    assert job["labels"]["venice.pipeline"] == "p"
    assert job["env"]["CHECKPOINT"] == "/checkpoints/a" and job["env"]["OUTPUT"] == "a"
    assert job["env"]["BOOTSTRAP_SERVERS"] == cluster.bootstrap_servers


def test_a_jobs_environment_has_what_the_inventory_knows(tmp_path):
    inventory(tmp_path, ["a"])
    file = tmp_path / "pipelines" / "p" / "pipeline.yml"
    file.write_text(file.read_text().replace("OUTPUT: a", "OUTPUT: ${cluster}_out"))
    cluster = Cluster.load(tmp_path / "hosts.yml")
    assert validate(cluster) == []
    assert container(cluster, "h-1", "venice-spark-job-a")["env"]["OUTPUT"] == "sp_out"


def test_jobs_of_a_host_have_ports_and_executors_of_their_own(tmp_path):
    cluster = inventory(tmp_path, ["a", "b", "c"], hosts=1)
    assert validate(cluster) == []
    ports = [port for i in cluster.instances("spark_job") for port in i.ports.values()]
    assert ports == list(range(7200, 7209))
    own = settings(cluster, "h-1", "spark-job-b")
    assert (own["spark.driver.port"], own["spark.driver.host"]) == ("7203", "192.0.2.1")
    assert settings(cluster, "h-1", "spark-worker")["spark.worker.resource.at_h_1.amount"] == "3"
    # one port more than executors: one may still be ending when the next begins
    assert [n for n in cluster.instances("spark")[1].ports if n.startswith("executor")] == [f"executor_{n}" for n in (1, 2, 3, 4)]


def test_each_process_listens_on_all_interfaces_and_reaches_the_others(tmp_path):
    cluster = inventory(tmp_path, ["a"])
    known = {"master.spark": "192.0.2.1", "h-1.spark": "192.0.2.1", "h-2.spark": "192.0.2.2", "h-3.spark": "192.0.2.3"}
    assert container(cluster, "h-1", "venice-spark-master")["hosts"] == known | {"master.spark": "0.0.0.0"}  # noqa: S104
    assert container(cluster, "h-2", "venice-spark-worker")["hosts"] == known | {"h-2.spark": "0.0.0.0"}  # noqa: S104
    assert container(cluster, "h-1", "venice-spark-job-a")["hosts"] == known


def test_names_of_hosts_are_given_as_addresses():
    spec = importlib.util.spec_from_file_location("venice_spark", ROOT / "plugins" / "filter" / "venice_spark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    instances = [
        {"hostname": "a.spark", "host": "a", "address": "a.example.org"},
        {"hostname": "b.spark", "host": "b", "address": "192.0.2.2"},
    ]
    assert module.names(instances, {"a": ["192.0.2.1"]}) == {"a.spark": "192.0.2.1", "b.spark": "192.0.2.2"}


def test_all_know_the_same_generated_password(tmp_path):
    cluster = inventory(tmp_path, ["a"])
    found = {
        settings(cluster, h, i)["spark.authenticate.secret"]
        for h, i in (("h-1", "spark-master"), ("h-3", "spark-worker"), ("h-1", "spark-job-a"))
    }
    assert len(found) == 1
    said = json.dumps([{k: c[k] for k in ("command", "env", "labels")} for h in cluster.hosts for c in cluster.desired(h)["containers"]])
    assert found.pop() not in said


def test_the_smoke_test_leaves_out_ports_that_only_executors_have(tmp_path):
    ports = {port for what, _, port in _Smoke(inventory(tmp_path, ["a"]), print).endpoints() if what.startswith("spark")}
    assert ports == {7077, 7078, 8091, 8092, 7200, 7201, 7202}


def test_settings_of_the_user_come_last(tmp_path):
    own = settings(inventory(tmp_path, ["a"], spark_settings={"spark.executor.memory": "2g"}), "h-1", "spark-job-a")
    assert own["spark.executor.memory"] == "2g"


# ---- pipeline.yml


def test_jobs_are_read_without_the_rest_and_as_with_it(tmp_path):
    inventory(tmp_path, ["a", "b"])
    folder = tmp_path / "pipelines" / "p"
    assert tuple(jobs(folder)) == load(folder).jobs
    [first, second] = jobs(folder)
    assert first.instance == "spark-job-a" and first.environment == {"OUTPUT": "a"}
    assert first.digest != second.digest
    before = first.digest
    (folder / "job.py").write_text(SCRIPT + "# more\n")
    assert first.digest != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: [{name: a, on: spark}]", "'script' is a required property"),
        ("jobs: [{name: a, on: flink, script: job.py}]", "'flink' is not one of"),
        ("jobs: [{name: a, on: spark, script: none.py}]", "jobs.0.script: no file"),
        ("jobs: [{name: a, on: spark, script: job.py}, {name: a, on: spark, script: job.py}]", "jobs: a is already in line"),
    ],
)
def test_wrong_jobs_are_named(tmp_path, text, message):
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "pipeline.yml").write_text(text)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


# ---- whether a job makes progress


@pytest.fixture
def run_job():
    spec = importlib.util.spec_from_file_location("run_job", ROOT / "images" / "spark" / "run-job.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """A session with one query, as PySpark shows it."""

    def __init__(self):
        self.id, self.name = "1", "windows"
        self.status = {"message": "Processing new data", "isTriggerActive": True}
        self.lastProgress = {"batchId": 4}

    @property
    def streams(self):
        return self

    @property
    def active(self):
        return [self]


def test_a_query_that_goes_on_is_well(run_job, monkeypatch):
    session, clock = Session(), [0.0]
    monkeypatch.setattr(run_job.time, "monotonic", lambda: clock[0])
    watch = run_job.Watch(session)
    assert run_job.judge(watch.queries()) == ""
    clock[0], session.lastProgress = 50.0, {"batchId": 5}
    assert run_job.judge(watch.queries()) == ""
    clock[0] = 100.0
    assert run_job.judge(watch.queries()) == ""
    clock[0] = 111.0
    assert run_job.judge(watch.queries()) == "query windows: no batch has ended for 61 s: Processing new data"


def test_a_query_without_data_is_well_for_ever(run_job, monkeypatch):
    session, clock = Session(), [0.0]
    monkeypatch.setattr(run_job.time, "monotonic", lambda: clock[0])
    session.status, session.lastProgress = {"message": "Waiting for data to arrive", "isTriggerActive": False}, None
    watch = run_job.Watch(session)
    for clock[0] in (0.0, 1000.0, 2000.0):
        assert run_job.judge(watch.queries()) == ""


def test_a_job_is_not_well_before_its_first_batch_nor_without_queries(run_job):
    session = Session()
    session.lastProgress = None
    assert "first batch has not ended" in run_job.judge(run_job.Watch(session).queries())
    assert run_job.judge([]) == "no query runs"


# ---- downloads


def test_source_archives_are_fetched_beside_wheels(tmp_path, monkeypatch):
    wheel = Artifact("pypi", "w==1", "a" * 64, "MIT", "w-1-py3-none-any.whl")
    source = Artifact("pypi", "s==2", "b" * 64, "MIT", "s-2.tar.gz")
    said = {}

    def in_builder(engine, builder, script, folder):
        said["script"] = script
        said.update({path.name: path.read_text() for path in folder.iterdir()})
        (folder / "files").mkdir()
        for artifact in (wheel, source):
            (folder / "files" / artifact.file).write_text("")

    monkeypatch.setattr(downloads, "in_builder", in_builder)
    monkeypatch.setattr(downloads, "artifacts_dir", lambda: tmp_path)
    monkeypatch.setattr(downloads, "sha256", lambda path: "a" * 64 if path.suffix == ".whl" else "b" * 64)
    downloads.fetch(None, "builder", [wheel, source], lambda line: None)
    assert said["wheels.txt"] == f"w==1 --hash=sha256:{'a' * 64}\n"
    assert said["sources.txt"] == f"s==2 --hash=sha256:{'b' * 64}\n"
    for line in said["script"].splitlines():
        # whatever is fetched is pinned; what has to be read by running it is read by pinned tools alone
        assert "pip" not in line or "--require-hashes" in line
    assert "--no-build-isolation" in said["script"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-2.tar.gz", "w-1-py3-none-any.whl"]
