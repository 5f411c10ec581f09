"""The images as they are built: launchers, health checks, signals, users, ahead-of-time caches. Builds what is missing."""

import hashlib
import json
import time
import uuid

import docker
import docker.errors
import pytest

from tests.waiting import PATIENCE
from venice.errors import VeniceError
from venice.images.build import build, client
from venice.images.export import export, in_use

CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"
SERVER = """\
process.roles=broker,controller
node.id=1
listeners=CLIENT://:9092,CONTROLLER://:9093
advertised.listeners=CLIENT://{name}:9092,CONTROLLER://{name}:9093
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,CLIENT:PLAINTEXT
controller.quorum.bootstrap.servers={name}:9093
log.dirs=/var/lib/kafka/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
"""
WORKER = """\
bootstrap.servers={broker}:9092
group.id=test
config.storage.topic=test.configs
offset.storage.topic=test.offsets
status.storage.topic=test.status
config.storage.replication.factor=1
offset.storage.replication.factor=1
status.storage.replication.factor=1
offset.storage.partitions=1
listeners=http://0.0.0.0:8083
rest.advertised.host.name=localhost
rest.advertised.port=8083
plugin.path=/opt/connect/plugins
plugin.discovery=hybrid_warn
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.storage.StringConverter
connector.client.config.override.policy=All
config.providers=file
config.providers.file.class=org.apache.kafka.common.config.provider.FileConfigProvider
"""
SCHEMA = json.dumps({"type": "record", "name": "Bus", "fields": [{"name": "id", "type": "string"}]})


@pytest.fixture(scope="module")
def engine():
    try:
        return client()
    except VeniceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def refs(engine):
    """Name -> tag of every image, built when missing."""
    return {image.name: image.ref for image in build(report=print)}


@pytest.fixture(scope="module")
def network(engine):
    network = engine.networks.create(f"venice-test-{uuid.uuid4().hex[:8]}")
    yield network.name
    network.remove()


@pytest.fixture(scope="module")
def start(engine, network, tmp_path_factory):
    """Starts containers as Venice does: not as root, config mounted read-only, data in a place the user owns.

    `files` maps paths in the container to contents, `data` is a path in the container. Removes all of it afterwards.
    """
    containers, volumes = [], []

    def run(image, command, user, files=(), data=None, name=None, **options):
        name = name or f"venice-test-{uuid.uuid4().hex[:8]}"
        mounts = {}
        for target, content in dict(files).items():
            path = tmp_path_factory.mktemp("files") / "file"
            path.write_text(content)
            path.chmod(0o644)
            mounts[str(path)] = {"bind": target, "mode": "ro"}
        if data:
            volumes.append(engine.volumes.create(name))
            mounts[name] = {"bind": data, "mode": "rw"}
            engine.containers.run(image, ["chown", f"{user}:{user}", data], volumes=mounts, user="0", remove=True)
        container = engine.containers.run(
            image, command, name=name, network=network, user=f"{user}:{user}", volumes=mounts, detach=True, **options
        )
        containers.append(container)
        return container

    yield run
    for container in containers:
        container.remove(force=True)
    for volume in volumes:
        volume.remove(force=True)


def ask(container, *command):
    """Exit code and output of a command in the container."""
    result = container.exec_run(list(command))
    return result.exit_code, result.output.decode().strip()


def wait_until(container, *command, seconds=PATIENCE):
    """Repeat a question until it is answered with exit code 0; returns its output."""
    deadline = time.monotonic() + seconds
    while True:
        code, output = ask(container, *command)
        if code == 0:
            return output
        container.reload()
        log = container.logs(tail=30).decode()
        assert container.status == "running", f"{command}: container ended\n{log}"
        assert time.monotonic() < deadline, f"{command}: {output}\n{log}"
        time.sleep(0.3)


def log(container):
    return container.logs().decode()


def maps_cache(container, cache):
    """True when a process of the container has the ahead-of-time cache mapped."""
    return ask(container, "sh", "-c", f"grep -q {cache} /proc/[0-9]*/maps")[0] == 0


def stop(container, seconds=60):
    """Stop as Docker does for the user; returns the exit code (137: it had to be killed)."""
    container.stop(timeout=seconds)
    return container.wait()["StatusCode"]


@pytest.fixture(scope="module")
def start_broker(refs, start):
    def run(**environment):
        name = f"venice-test-{uuid.uuid4().hex[:8]}"
        return start(
            refs["kafka"],
            ["kafka-broker", "/etc/kafka/server.properties"],
            7101,
            files={"/etc/kafka/server.properties": SERVER.format(name=name)},
            data="/var/lib/kafka",
            name=name,
            environment={
                "KAFKA_HEAP": "400m",
                "KAFKA_CLUSTER_ID": CLUSTER,
                "KAFKA_INITIAL_CONTROLLERS": f"1@{name}:9093:3Db5QLSqSZieL3rJBUUegA",
                **environment,
            },
        )

    return run


@pytest.fixture(scope="module")
def broker(start_broker):
    """A healthy broker that the tests of other services use."""
    container = start_broker()
    wait_until(container, "kafka-health", "localhost:9092", "1")
    return container


# --- all images --------------------------------------------------------------------------------------------------------


def test_a_build_with_nothing_changed_builds_nothing(refs):
    assert not any(image.built for image in build())


@pytest.mark.parametrize(
    ("name", "user", "uid"),
    [
        ("kafka", "kafka", 7101),
        ("connect", "kafka", 7101),
        ("schema-registry", "registry", 7102),
        ("postgres", "postgres", 7103),
        ("producer", "producer", 7104),
        ("hazelcast", "hazelcast", 7114),
        ("hazelcast-sink", "hazelcast", 7114),
        ("redis", "redis", 7113),
        ("live", "live", 7115),
    ],
)
def test_users_are_fixed_and_nothing_of_the_build_is_left(engine, refs, name, user, uid):
    script = (
        f"id -u {user}; id -g {user}; command -v tini; "
        "find /usr/local/share/ca-certificates /var/lib/apt/lists /var/cache/apt /usr/share/man /usr/share/locale /tmp "
        "-type f | head; command -v mvn javac pip3 || true"
    )
    output = engine.containers.run(refs[name], ["sh", "-c", script], remove=True).decode()
    assert output.split() == [str(uid), str(uid), "/usr/bin/tini"]


def test_sizes_stay_small(engine, refs):
    limits = {
        "kafka": 350,
        "postgres": 300,
        "schema-registry": 450,
        "connect": 450,
        "producer": 200,
        "hazelcast": 180,
        "hazelcast-sink": 200,
        "redis": 100,
        "live": 170,
    }
    sizes = {name: engine.images.get(refs[name]).attrs["Size"] / 1e6 for name in limits}
    assert {name: size for name, size in sizes.items() if size > limits[name]} == {}


def test_export_writes_each_layer_under_its_own_hash(engine, refs):
    with in_use():
        exported = export(engine, refs["base"])
        assert json.loads(exported.config)["config"]["Entrypoint"] == ["/usr/bin/tini", "--"]
        assert len(exported.layers) >= 3
        for layer in exported.layers:
            with (exported.directory / f"{layer}.tar").open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == layer


# --- kafka -------------------------------------------------------------------------------------------------------------


def test_health_says_what_is_wrong(refs, start, broker):
    idle = start(refs["kafka"], ["sleep", "600"], 7101)
    code, output = ask(idle, "kafka-health", "localhost:9092", "1")
    assert (code, output) == (1, "localhost:9092: cannot connect: Connection refused")
    code, output = ask(broker, "kafka-health", "localhost:9092", "7")
    assert (code, output) == (1, "localhost:9092: node 7 is not registered; registered: 1")
    code, output = ask(broker, "kafka-health", "localhost:9092", "1")
    assert (code, output) == (0, "localhost:9092: node 1 is registered, the quorum's leader is node 1")


def test_a_broker_stops_in_good_order_and_is_formatted_once(start_broker):
    container = start_broker()
    wait_until(container, "kafka-health", "localhost:9092", "1")
    assert maps_cache(container, "/opt/kafka/kafka.aot")
    assert "[aot]" not in log(container)
    code, output = ask(container, "kafka-topics", "--bootstrap-server", "localhost:9092", "--create", "--topic", "kept")
    assert (code, output) == (0, "Created topic kept.")
    assert stop(container) == 143  # SIGTERM, not SIGKILL
    assert "PENDING_CONTROLLED_SHUTDOWN" in log(container)
    container.start()
    wait_until(container, "kafka-health", "localhost:9092", "1")
    assert "kept" in ask(container, "kafka-topics", "--bootstrap-server", "localhost:9092", "--list")[1]


def test_a_broker_with_a_large_heap_uses_the_same_cache(start_broker):
    container = start_broker(KAFKA_HEAP="1200m")
    wait_until(container, "kafka-health", "localhost:9092", "1")
    # by the program's name: which number the broker's process has depends on the health checks before it
    assert ask(container, "sh", "-c", "grep -a UseG1GC $(grep -l '^java$' /proc/[0-9]*/comm | sed s/comm/cmdline/)")[0] == 0
    assert maps_cache(container, "/opt/kafka/kafka.aot")


def test_a_broker_refuses_data_of_another_cluster(engine, refs, broker):
    with pytest.raises(docker.errors.ContainerError) as error:
        engine.containers.run(
            refs["kafka"],
            ["sh", "-c", "kafka-broker /etc/kafka/server.properties 2>&1 || exit 2"],
            volumes_from=[broker.id],
            environment={"KAFKA_CLUSTER_ID": "AnotherClusterXXXXXXXX"},
            remove=False,
        )
    output = error.value.container.logs().decode()
    error.value.container.remove()
    assert error.value.exit_status == 2
    assert f"holds data of cluster {CLUSTER}, not of AnotherClusterXXXXXXXX" in output


# --- schema registry ---------------------------------------------------------------------------------------------------


def start_registry(refs, start, servers):
    return start(
        refs["schema-registry"],
        ["schema-registry"],
        7102,
        mem_limit="640m",
        environment={
            "REGISTRY_BOOTSTRAP_SERVERS": servers,
            "REGISTRY_TOPIC_REPLICATION": "1",
            "REGISTRY_HEAP": "256m",
        },
    )


@pytest.fixture(scope="module")
def registry(refs, start, broker):
    container = start_registry(refs, start, f"{broker.name}:9092")
    wait_until(container, "http-health", "http://localhost:8081/subjects")
    return container


CLIENT = """
import json, sys
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
client = SchemaRegistryClient({"url": sys.argv[1]})
context = SerializationContext("bus", MessageField.VALUE)
data = AvroSerializer(client, sys.argv[2])({"id": "7"}, context)
print(json.dumps([AvroDeserializer(client)(data, context), client.get_subjects(), client.get_compatibility()]))
"""


def test_a_confluent_client_needs_only_the_registrys_address(refs, start, registry):
    producer = start(refs["producer"], ["sleep", "600"], 7104, files={"/app/client.py": CLIENT})
    code, output = ask(producer, "python3", "/app/client.py", f"http://{registry.name}:8081", SCHEMA)
    assert code == 0, output
    assert json.loads(output.splitlines()[-1]) == [{"id": "7"}, ["bus-value"], "BACKWARD"]
    # what the Avro converter of Connect asks, and the service's own health
    assert ask(registry, "http-health", "http://localhost:8081/apis/registry/v2/ids/contentIds/1", "Bus")[0] == 0
    assert ask(registry, "http-health", "http://localhost:8081/health", '"UP"')[0] == 0
    assert ask(registry, "http-health", "http://localhost:8081/subjects/a%2Fb/versions")[1].startswith(
        "http://localhost:8081/subjects/a%2Fb/versions: HTTP 404"
    )
    assert maps_cache(registry, "/opt/registry/registry.aot")


def test_a_registry_waits_for_kafka_and_says_so(refs, start):
    container = start_registry(refs, start, "nowhere:9092")
    wait_until(container, "http-health", "http://localhost:8081/")  # nginx is there
    code, output = ask(container, "http-health", "http://localhost:8081/subjects")
    assert code == 1 and "HTTP 502" in output
    container.reload()
    assert container.status == "running"
    assert "waiting for Kafka: nowhere:9092: cannot connect" in log(container)
    assert stop(container, 15) != 137


def test_a_registry_ends_when_one_of_its_processes_does(refs, start):
    container = start_registry(refs, start, "nowhere:9092")
    wait_until(container, "http-health", "http://localhost:8081/")
    ask(container, "sh", "-c", "kill $(cat /tmp/nginx.pid)")
    container.wait(timeout=PATIENCE)


# --- connect -----------------------------------------------------------------------------------------------------------


def test_a_worker_has_its_plugins_and_stops_when_told(refs, start, broker):
    worker = start(
        refs["connect"],
        ["connect-worker", "/etc/kafka/connect.properties"],
        7101,
        files={"/etc/kafka/connect.properties": WORKER.format(broker=broker.name)},
        environment={"CONNECT_HEAP": "400m"},
    )
    plugins = "http://localhost:8083/connector-plugins?connectorsOnly=false"
    wait_until(worker, "http-health", plugins, "JdbcSinkConnector")
    for plugin in (
        "io.debezium.connector.jdbc.JdbcSinkConnector",
        "io.debezium.connector.postgresql.PostgresConnector",
        "io.apicurio.registry.utils.converter.AvroConverter",
        "org.apache.kafka.connect.transforms.HoistField$Key",
        "org.apache.kafka.connect.file.FileStreamSourceConnector",
    ):
        assert ask(worker, "http-health", plugins, plugin)[0] == 0, plugin
    assert maps_cache(worker, "/opt/connect/connect.aot")
    assert ask(worker, "tail", "-n", "1", "/tmp/connect.properties")[1] == "plugin.discovery=service_load"
    assert stop(worker) == 143


def test_a_users_plugins_are_looked_for_as_configured(refs, start, broker):
    worker = start(
        refs["connect"],
        ["connect-worker", "/etc/kafka/connect.properties"],
        7101,
        files={"/etc/kafka/connect.properties": WORKER.format(broker=broker.name), "/plugins/mine/mine.txt": "mine"},
    )
    wait_until(worker, "grep", "-q", "hybrid_warn", "/tmp/connect.properties", seconds=10)
    assert ask(worker, "grep", "service_load", "/tmp/connect.properties")[0] == 1


# --- postgres ----------------------------------------------------------------------------------------------------------

BOOTSTRAP = """DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'venice') THEN CREATE ROLE venice LOGIN; END IF; END $$;
ALTER ROLE venice PASSWORD '{password}';
SELECT 'CREATE DATABASE venice OWNER venice' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'venice') \\gexec
"""


def start_postgres(refs, start, bootstrap):
    return start(
        refs["postgres"],
        ["postgres-server"],
        7103,
        files={
            "/etc/postgresql/postgresql.conf": "listen_addresses = '*'\n",
            "/etc/postgresql/pg_hba.conf": "local all postgres peer\nhost all all all scram-sha-256\n",
            "/etc/postgresql/bootstrap.sql": bootstrap,
        },
        data="/var/lib/postgresql/data",
    )


def rewrite(container, target, content):
    """Change a mounted file in place."""
    source = next(mount["Source"] for mount in container.attrs["Mounts"] if mount["Destination"] == target)
    with open(source, "w") as file:  # noqa: PTH123 (in place: a new file would not be the one that is mounted)
        file.write(content)


def login(container, password):
    command = ["psql", "-h", "127.0.0.1", "-U", "venice", "-d", "venice", "-Atc", "SELECT current_user"]
    result = container.exec_run(command, environment={"PGPASSWORD": password})
    return result.exit_code, result.output.decode().strip()


def test_bootstrap_sql_holds_at_every_start(refs, start):
    container = start_postgres(refs, start, BOOTSTRAP.format(password="first-one"))
    assert wait_until(container, "postgres-health", "venice") == "database venice answers"
    assert login(container, "first-one") == (0, "venice")
    assert login(container, "second-one")[0] != 0

    container.reload()
    rewrite(container, "/etc/postgresql/bootstrap.sql", BOOTSTRAP.format(password="second-one"))
    container.restart(timeout=30)
    wait_until(container, "postgres-health", "venice")
    assert login(container, "second-one") == (0, "venice")
    assert login(container, "first-one")[0] != 0

    assert stop(container) == 0
    assert "received fast shutdown request" in log(container)
    assert "not properly shut down" not in log(container)
    assert "first-one" not in log(container) and "second-one" not in log(container)


def test_bootstrap_sql_that_fails_ends_the_start_and_does_not_show_its_passwords(refs, start):
    bootstrap = "ALTER ROLE nobody PASSWORD 'very-secret'; ALTER ROLEX x PASSWORD 'very-secret';\n"
    container = start_postgres(refs, start, bootstrap)
    assert container.wait(timeout=PATIENCE)["StatusCode"] == 1
    assert 'bootstrap.sql:1: ERROR:  role "nobody" does not exist' in log(container)
    assert "bootstrap.sql failed; not serving" in log(container)
    assert "very-secret" not in log(container)
    assert "listening on IP" not in log(container)


# --- http-health -------------------------------------------------------------------------------------------------------


def test_http_health_says_what_is_wrong(refs, start, registry):
    for arguments, said in [
        (["http://localhost:1/"], "http://localhost:1/: cannot connect: Connection refused"),
        (["ftp://x"], "usage: http-health http://HOST[:PORT][/PATH] [TEXT]"),
        (["http://localhost:8081/", "text"], "http://localhost:8081/: answer lacks 'text': {}"),
        (["http://localhost:8081/subjects/x/versions"], "HTTP 404"),
    ]:
        code, output = ask(registry, "http-health", *arguments)
        assert code == 1 and said in output
