"""`venice data` and what `venice verify` makes of it, with one real broker. Avro needs no registry here: the schema is given."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter

import fastavro
import pytest

from tests.waiting import PATIENCE, wait_until
from venice import data, paths, verify
from venice.data import Plan
from venice.images.build import build, client
from venice.kafka import Kafka
from venice.messages import read, spans
from venice.specs import TopicSpec

PIPELINE = paths.resource("pipelines") / "transactions"
SCHEMA = (7, (PIPELINE / "schemas" / "transaction.avsc").read_text())
SERVER = """\
process.roles=broker,controller
node.id=1
listeners=CLIENT://:9092,CONTROLLER://:9093
advertised.listeners=CLIENT://IP:9092,CONTROLLER://IP:9093
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,CLIENT:PLAINTEXT
controller.quorum.bootstrap.servers=IP:9093
log.dirs=/var/lib/kafka/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
"""


# only the container knows its address, and brokers tell clients where they are
START = """\
ip=$(hostname -i)
sed "s/IP/$ip/g" /etc/kafka/server.properties > /tmp/server.properties
export KAFKA_INITIAL_CONTROLLERS=1@$ip:9093:3Db5QLSqSZieL3rJBUUegA
exec kafka-broker /tmp/server.properties
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """A broker alone, reached by its address."""
    engine = client()
    ref = next(image.ref for image in build(["kafka"], report=print) if image.name == "kafka")
    config = tmp_path_factory.mktemp("broker") / "server.properties"
    config.write_text(SERVER)
    config.chmod(0o644)
    container = engine.containers.run(
        ref,
        ["sh", "-c", START],
        name=f"venice-test-{uuid.uuid4().hex[:8]}",
        user="7101:7101",
        environment={"KAFKA_HEAP": "400m", "KAFKA_CLUSTER_ID": "MkU3OEVBNTcwNTJENDM2Qg"},
        volumes={str(config): {"bind": "/etc/kafka/server.properties", "mode": "ro"}},
        tmpfs={"/var/lib/kafka": "uid=7101,gid=7101"},
        detach=True,
    )
    try:
        deadline = time.monotonic() + 120
        while (asked := container.exec_run(["kafka-health", "localhost:9092", "1"])).exit_code:
            assert time.monotonic() < deadline, asked.output
            time.sleep(0.3)
        container.reload()
        yield Kafka(f"{container.attrs['NetworkSettings']['IPAddress']}:9092", timeout=PATIENCE)
    finally:
        container.remove(force=True, v=True)


@pytest.fixture
def topic(broker):
    """Makes a topic of three partitions with these settings."""

    def make(**config):
        name = f"data-{uuid.uuid4().hex[:8]}"
        broker.create(TopicSpec(name, 3, 1, config), 1)
        return name

    return make


def plan(broker, topic, count, processes, rate=None, schema=SCHEMA, folder=PIPELINE):
    return Plan(folder / "data.py", broker.bootstrap_servers, topic, count, processes, rate, schema)


def there(broker, topic, decode=None):
    """(record, value) of all that a topic has."""
    parsed = fastavro.parse_schema(verify._plain(json.loads(SCHEMA[1])))
    decode = decode or (lambda value: fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed))
    return [(record, decode(record.value)) for record in read(broker, spans(broker, topic))]


def test_exactly_so_many_and_none_of_them_late(broker, topic):
    name, told = topic(), []
    sent = data.send(broker, plan(broker, name, 4001, 4), told.append)
    assert sent.complete and sent.acknowledged == 4001 and told[-1] == 4001 and told == sorted(told)

    found = there(broker, name)
    closing = [(record.partition, value["event_time"]) for record, value in found if value["status"] == "closing"]
    assert sorted(closing) == [(partition, sent.last + 5000) for partition in range(3)]
    others = [(record, value) for record, value in found if value["status"] != "closing"]
    assert Counter((value["user_id"], value["status"]) for _, value in others) == sent.counts
    assert all(record.key == value["user_id"].encode() for record, value in found)
    assert (min(v["event_time"] for _, v in others), max(v["event_time"] for _, v in others)) == (sent.first, sent.last)

    # out of order they are, late none of them is, and all of their windows close
    times = [[v["event_time"] for record, v in found if record.partition == partition] for partition in range(3)]
    assert any(one != sorted(one) for one in times)
    paid = [
        verify.Event(r.partition, r.offset, r.timestamp, v["event_time"], v["amount"] if v["status"] == "paid" else None) for r, v in found
    ]
    windows = verify.expect(paid, 3000, int(time.time() * 1000) + verify.SETTLED_MS)
    assert windows and all(window.closed and not window.perhaps for window in windows.values())
    assert sum(window.count[0] for window in windows.values()) == sum(n for (_, status), n in sent.counts.items() if status == "paid")


def test_json_at_a_rate_that_all_processes_keep_together(broker, topic):
    name = topic()
    sent = data.send(broker, plan(broker, name, 5, 5, rate=4, schema=None))
    assert sent.complete
    # the last one is due a second after the first, and may be up to DISORDER_MS earlier
    assert sent.last - sent.first >= 1000 - data.DISORDER_MS
    assert len(there(broker, name, json.loads)) == 5 + 3


def test_what_is_refused_is_not_counted(broker, topic):
    sent = data.send(broker, plan(broker, topic(**{"max.message.bytes": "10"}), 100, 2))
    assert not sent.complete and sent.acknowledged == 0 and sent.closing == 0
    assert sent.failures == ["Broker: Message size too large"]


BROKEN = """
import os
TOPIC, KEY, TIME, COUNTED, SUMMED = "x", "id", "at", ("id",), "amount"
def records(process):
    while True:
        yield {{"id": "a", "amount": 1}}
        if process == 1:
            {what}
def closing():
    return {{"id": "a", "amount": 1}}
"""


@pytest.mark.parametrize(("what", "said"), [("os._exit(3)", "a process ended with 3"), ("1 / 0", "process 1: ZeroDivisionError")])
def test_a_process_that_dies_ends_the_others(broker, topic, tmp_path, what, said):
    (tmp_path / "data.py").write_text(BROKEN.format(what=what))
    sent = data.send(broker, plan(broker, topic(), 3000, 3, rate=100, schema=None, folder=tmp_path))
    assert not sent.complete and sent.acknowledged < 3000
    assert any(said in failure for failure in sent.failures)


def test_ctrl_c_ends_it_and_says_what_was_sent(broker, topic):
    name = topic()
    began = threading.Event()

    def interrupt():
        assert began.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    sent = data.send(broker, plan(broker, name, 100_000, 3, rate=200), lambda acknowledged: acknowledged and began.set())
    thread.join()
    assert sent.interrupted and not sent.complete and 0 < sent.acknowledged < 100_000
    assert len(there(broker, name)) == sent.acknowledged + sent.closing
    assert sent.closing == 3


# by itself it would end long after the test has given up
ALONE = """\
import sys
from pathlib import Path
from venice import data
from venice.kafka import Kafka
if __name__ == "__main__":
    servers, topic = sys.argv[1:]
    data.send(Kafka(servers, timeout=600), data.Plan(Path({file!r}), servers, topic, 1_000_000, 3, 200))
"""


def test_killed_it_sends_no_more(broker, topic, tmp_path):
    name, program = topic(), tmp_path / "alone.py"
    program.write_text(ALONE.format(file=str(PIPELINE / "data.py")))
    command = subprocess.Popen([sys.executable, program, broker.bootstrap_servers, name], cwd=PIPELINE.parents[1], start_new_session=True)

    def session() -> list[str]:
        """The processes that are left of the command's."""
        return subprocess.run(["ps", "-o", "pid=", "-s", str(command.pid)], capture_output=True, text=True).stdout.split()

    wait_until(lambda: there(broker, name, json.loads), "records are there")
    command.kill()
    command.wait()
    wait_until(lambda: not session(), "no process is left")
