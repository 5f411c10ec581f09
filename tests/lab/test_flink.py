"""Flink on lab hosts: SQL over topics, declared jobs, and windows that are right whatever is killed."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pexpect
import pytest
from confluent_kafka import Producer

from tests.lab.support import HOSTS, ROOT, VENICE, answered, from_json, kill, sql, take_away, venice, verified
from tests.waiting import PATIENCE, wait_until
from venice.cluster import Cluster, Instance
from venice.flink import Jobs
from venice.kafka import Kafka
from venice.specs import TopicSpec

SHIPPED = ROOT / "pipelines" / "transactions"
JOB = "transactions.flink"
PROMPT = r"Flink SQL(\x1b\[0m)?> "
UNDO = "DROP TABLE IF EXISTS " + ", ".join(f"transactions_aggregate_{engine}" for engine in ("flink", "ksql", "spark", "pinot"))
USERS = {
    "pipeline.yml": "sql:\n  - {file: table.sql, on: postgres}\n  - {file: users.sql, on: flink}\n",
    "table.sql": "CREATE TABLE IF NOT EXISTS flink_users (user_id text PRIMARY KEY, paid double precision NOT NULL);\n",
    "users.sql": """CREATE TABLE transactions (user_id STRING NOT NULL, amount DOUBLE NOT NULL, status STRING NOT NULL) WITH (
  'connector' = 'kafka', 'topic' = 'transactions', 'properties.bootstrap.servers' = '${bootstrap_servers}',
  'scan.startup.mode' = 'earliest-offset', 'format' = 'avro-confluent', 'avro-confluent.url' = '${registry_url}'
);
CREATE TABLE users (user_id STRING, paid DOUBLE, PRIMARY KEY (user_id) NOT ENFORCED) WITH (
  'connector' = 'jdbc', 'url' = 'jdbc:postgresql://${postgres_host}:${postgres_port}/${postgres_db}', 'table-name' = 'flink_users',
  'username' = '${file:/etc/flink/secrets.properties:postgres_user}',
  'password' = '${file:/etc/flink/secrets.properties:postgres_password}'
);
INSERT INTO users SELECT user_id, SUM(amount) FROM transactions WHERE status = 'paid' GROUP BY user_id;
""",
}


@pytest.fixture(scope="module")
def pipeline(deployed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the pipeline `transactions`, applied to the lab; afterwards all that it made is gone."""
    empty = tmp_path_factory.mktemp("empty")
    folder = tmp_path_factory.mktemp("pipelines") / "transactions"
    shutil.copytree(SHIPPED, folder)
    take_away(deployed, folder, empty, UNDO)
    venice("apply", str(folder), "-i", "lab")
    yield folder
    take_away(deployed, folder, empty, UNDO)


def instance(cluster: Cluster, kind: str) -> Instance:
    return next(i for i in cluster.instances("flink") if i.vars["kind"] == kind)


def jobmanager(cluster: Cluster, path: str) -> dict:
    return httpx.get(f"http://{instance(cluster, 'jobmanager').endpoint('ui')}{path}", trust_env=False, timeout=PATIENCE).json()


def judged() -> dict:
    """What `venice verify` says of Flink, with `exit`, its exit code, and `records`, those of the topic."""
    found = verified()
    [flink] = [engine for engine in found["engines"] if engine["engine"] == "flink"]
    return flink | {"exit": found["exit"], "records": found["records"]}


def right() -> dict | None:
    """The verdict once every window but those of the last seconds is published; fails as soon as one is wrong."""
    found = judged()
    assert not found["wrong"] and not found["duplicate"], found["windows"]
    return found if found["exit"] == 0 and not found["open"] else None


def test_all_of_it_is_shown(deployed):
    wanted = {("flink-taskmanager", host) for host in HOSTS}
    wanted |= {(name, "lab-1") for name in ("flink-store", "flink-jobmanager", "flink-gateway", "flink-jobs")}

    def rows() -> dict:
        return {(c["instance"], c["host"]): c["health"] for c in answered()["containers"] if c["component"] == "flink"}

    wait_until(lambda: rows() == dict.fromkeys(wanted, "healthy"), "all are healthy")
    pages = {page["name"]: page["url"] for page in from_json(venice("open", "-i", "lab", "--json"), "open")}
    assert "Flink" in httpx.get(pages["flink"], trust_env=False, timeout=PATIENCE).text
    wait_until(lambda: jobmanager(deployed, "/overview")["taskmanagers"] == 3, "three taskmanagers")


def test_topics_are_tables_without_being_declared(deployed):
    query = "SELECT COUNT(*) AS n, COUNT(DISTINCT vehicle_id) AS buses FROM bus_locations"
    found = from_json(venice("sql", "-i", "lab", "--json", "-e", query), "sql")
    [row] = found["rows"]
    assert found["statement"] == query
    assert row["n"] > row["buses"] == int(sql(deployed, "SELECT count(*) FROM bus_locations"))


@pytest.fixture
def taken_back(deployed: Cluster) -> Iterator[str]:
    """A topic with three records of a transaction that was committed, and three of one that was aborted."""
    kafka, name = Kafka.of(deployed), "flink_test_taken_back"
    if any(part.topic == name for part in kafka.partitions()):  # of a run that was ended
        kafka.delete([name])
    kafka.create(TopicSpec(name, 1), 3)
    producer = Producer({"bootstrap.servers": deployed.bootstrap_servers, "transactional.id": name})
    producer.init_transactions(PATIENCE)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for number in range(3):
            producer.produce(name, f"{end.__name__} {number}")
        assert producer.flush(120) == 0
        end(PATIENCE)
    yield name
    kafka.delete([name])


def test_what_a_transaction_has_taken_back_is_no_row(taken_back):
    found = from_json(venice("sql", "-i", "lab", "--json", "-e", f"SELECT _value FROM {taken_back}"), "sql")  # noqa: S608 (a name of this module)
    assert sorted(row["_value"] for row in found["rows"]) == [f"commit_transaction {number}" for number in range(3)]


def test_a_wrong_statement_is_named_by_its_line(deployed, tmp_path):
    file = tmp_path / "wrong.sql"
    file.write_text("SELECT 1;\n\nSELECT nothing FROM bus_locations;\n")
    said = venice("sql", "-i", "lab", "-f", str(file), expect=1)
    assert "wrong.sql:3:" in said
    assert "Column 'nothing' not found" in said


def test_the_client_has_the_tables(deployed):
    child = pexpect.spawn(
        VENICE[0], [*VENICE[1:], "sql", "-i", "lab"], cwd=str(ROOT), dimensions=(50, 160), encoding="utf8", timeout=PATIENCE
    )
    child.expect(PROMPT)
    child.send("SHOW TABLES;\r")
    child.expect("bus_locations")
    child.expect(PROMPT)
    child.send("SELECT vehicle_id FROM bus_locations;\r")
    child.expect(r"\+I")
    child.send("\x03")
    child.expect(PROMPT)
    child.send("quit;\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_windows_are_those_of_a_recomputation(deployed, pipeline):
    assert "in step" in venice("diff", str(pipeline), "-i", "lab")
    sent = from_json(venice("data", "transactions", "-i", "lab", "-n", "2000", "--rate", "400", "--json"), "data")
    assert sent["acknowledged"] == 2000
    found = wait_until(right, "every window equal")
    assert found["equal"] >= 2
    wait_until(lambda: int(sql(deployed, "SELECT count(*) FROM transactions_aggregate_flink")) == found["equal"], "all in PostgreSQL")


@pytest.mark.parametrize("kind", ["taskmanager", "jobmanager"])
def test_whatever_is_killed_no_window_is_missing_or_comes_twice(deployed, pipeline, kind):
    before = judged()["equal"]
    job = Jobs.of(deployed).all()[JOB]
    sending = subprocess.Popen(
        [*VENICE, "data", "transactions", "-i", "lab", "-n", "2000", "--rate", "100", "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: judged()["equal"] > before, "a window of these records is out")
    victim = instance(deployed, kind)
    if kind == "taskmanager":
        [working] = [t for t in jobmanager(deployed, "/taskmanagers")["taskmanagers"] if t["freeSlots"] < t["slotsNumber"]]
        victim = next(i for i in deployed.instances("flink") if i.vars["kind"] == kind and f"@{i.address}:" in working["path"])
    kill(victim.host, victim.container)
    output, _ = sending.communicate(timeout=PATIENCE)
    assert json.loads(output)["acknowledged"] == 2000
    found = wait_until(right, "every window equal")
    assert found["equal"] >= before + 6
    now = Jobs.of(deployed).all()[JOB]
    assert now.state == "RUNNING"
    if kind == "jobmanager":
        assert now.job_id != job.job_id and "/chk-" in now.restored_from


def test_a_job_comes_back_with_its_jobmanager_but_not_when_it_was_cancelled(deployed, pipeline):
    def job():
        return Jobs.of(deployed).all()[JOB]

    before = job().job_id
    venice("restart", "flink-jobmanager", "-i", "lab")
    wait_until(lambda: job().state == "RUNNING" and job().job_id != before, "the job is back")
    manager = instance(deployed, "jobmanager")
    assert httpx.patch(f"http://{manager.endpoint('ui')}/jobs/{job().job_id}?mode=cancel", trust_env=False).status_code == 202
    wait_until(lambda: job().state == "CANCELED", "the job is cancelled")
    assert "CANCELED" in venice("diff", str(pipeline), "-i", "lab", expect=1)
    venice("apply", str(pipeline), "-i", "lab")
    assert job().state == "RUNNING"
    wait_until(right, "every window equal")


def test_a_changed_job_goes_on_where_it_was(deployed, pipeline):
    file = pipeline / "sql" / "flink.sql"
    text = file.read_text()
    file.write_text(text + "\n-- changed\n")
    assert "~ sql sql/flink.sql" in venice("diff", str(pipeline), "-i", "lab", expect=1)
    venice("apply", str(pipeline), "-i", "lab")
    job = Jobs.of(deployed).all()[JOB]
    assert job.state == "RUNNING" and "/savepoint" in job.restored_from
    venice("data", "transactions", "-i", "lab", "-n", "500")
    wait_until(right, "every window equal")
    file.write_text(text.replace("SUM(amount)", "SUM(amont)"))
    said = venice("apply", str(pipeline), "-i", "lab", expect=1)
    line = next(n for n, line in enumerate(file.read_text().splitlines(), 1) if line.startswith("INSERT INTO transactions_aggregate"))
    assert f"flink.sql:{line}:" in said and "amont" in said
    wait_until(lambda: Jobs.of(deployed).all()[JOB].state == "RUNNING", "the job runs on as it was")
    file.write_text(text + "\n-- changed\n")
    assert "in step" in venice("diff", str(pipeline), "-i", "lab")


def test_a_job_writes_into_postgresql_itself(deployed, pipeline, tmp_path):
    folder, empty = tmp_path / "flink_users", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    for name, text in USERS.items():
        (folder / name).write_text(text)
    venice("apply", str(folder), "-i", "lab")
    try:
        right_sums = "SELECT user_id, SUM(amount) AS paid FROM transactions WHERE status = 'paid' GROUP BY user_id"
        rows = json.loads(venice("sql", "-i", "lab", "--json", "-e", right_sums))["rows"]
        wanted = {row["user_id"]: row["paid"] for row in rows}
        query = "SELECT coalesce(json_object_agg(user_id, paid), '{}') FROM flink_users"
        wait_until(lambda: json.loads(sql(deployed, query)) == wanted, "the sums of all ten users")
        assert len(wanted) == 10
    finally:
        take_away(deployed, folder, empty, "DROP TABLE IF EXISTS flink_users")
    assert "flink_users.users" not in Jobs.of(deployed).all()
