"""Components from public images: what is rendered for them, in which order they come, how they are asked whether they are well.

The images themselves cannot be had where this is tested; what their services answer was recorded (tests/unit/ksqldb).
"""

import json
import os
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import docker.errors
import pytest
import yaml

from tests.unit.recorded import closed_port, recording, server
from venice import preflight, shipping, web
from venice.cluster import Cluster, component_roles
from venice.errors import VeniceError
from venice.images import build
from venice.registry import IncompatibleError, Registry

ROOT = Path(__file__).resolve().parents[2]
HEALTH = ROOT / "roles" / "venice" / "files" / "http-health"


def cluster(folder, groups, hosts=3, **variables):
    tree = {
        "all": {
            "vars": {"venice_cluster": "pub", **variables},
            "hosts": {f"h{n}": {"ansible_host": f"192.0.2.{n}"} for n in range(1, hosts + 1)},
            "children": {group: {"hosts": {host: {} for host in members}} for group, members in groups.items()},
        }
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump(tree))
    return Cluster.load(folder)


ALL = ("h1", "h2", "h3")
SPREAD = {"kafka": ALL, "schema_registry": ("h1", "h2"), "ksqldb": ("h2", "h3"), "kafdrop": ("h1",)}
ONE = {"kafka": ("h1",), "ksqldb": ("h1",), "kafdrop": ("h1",)}


@pytest.fixture
def spread(tmp_path):
    return cluster(tmp_path, SPREAD, schema_registry_implementation="confluent")


@pytest.fixture
def one(tmp_path):
    """One host, one broker, no registry."""
    small = {"kafka_nodes_per_host": 1, "kafka_replication_factor": 1, "kafka_min_insync_replicas": 1}
    return cluster(tmp_path, ONE, 1, **small)


def container(found, host, name):
    return next(c for c in found.desired(host)["containers"] if c["name"] == f"venice-{name}")


def lines(found, host, path):
    text = next(f["content"] for f in found.desired(host)["files"] if f["path"] == f"/etc/venice/{path}")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


# ---- what is rendered


def test_nothing_is_wrong_with_them(spread, one):
    assert preflight.validate(spread) == []
    assert preflight.validate(one) == []


def test_they_come_after_what_they_need(spread):
    assert spread.order.index("kafka") < spread.order.index("schema_registry")
    assert max(spread.order.index(c) for c in ("kafka", "schema_registry")) < min(spread.order.index(c) for c in ("ksqldb", "kafdrop"))


def test_without_kafka_they_are_refused(tmp_path):
    findings = preflight.validate(cluster(tmp_path, {"ksqldb": ("h1",), "kafdrop": ("h1",)}))
    assert [f.what for f in findings if "needs kafka" in f.what] == ["needs kafka, whose group has no hosts"] * 2


def test_servers_of_one_service_know_each_other(spread):
    first, second = (lines(spread, host, "ksqldb/ksql-server.properties") for host in ("h2", "h3"))
    # they differ in where they are, and in the registry that is next to them
    assert [a for a, b in zip(first, second, strict=True) if a != b] == [
        "ksql.advertised.listener=http://192.0.2.2:8088",
        "ksql.schema.registry.url=http://192.0.2.2:8081",
    ]
    assert {
        "bootstrap.servers=192.0.2.1:9092,192.0.2.2:9092,192.0.2.3:9092",
        "ksql.service.id=pub_",
        "ksql.streams.replication.factor=3",
        "ksql.internal.topic.replicas=3",
        "ksql.internal.topic.min.insync.replicas=2",
        "ksql.streams.num.standby.replicas=1",
        "ksql.heartbeat.enable=true",
        "ksql.streams.consumer.session.timeout.ms=10000",
    } <= set(first)


def test_a_server_alone_has_no_standby_and_without_a_registry_names_none(one):
    found = lines(one, "h1", "ksqldb/ksql-server.properties")
    assert {"ksql.streams.num.standby.replicas=0", "ksql.heartbeat.enable=false", "ksql.streams.replication.factor=1"} <= set(found)
    assert not any("schema.registry" in line for line in found)
    assert not {"SCHEMAREGISTRY_CONNECT", "MESSAGE_FORMAT"} & set(container(one, "h1", "kafdrop")["env"])


def test_the_processing_log_goes_to_the_clusters_own_topic(spread):
    settings, logging = (lines(spread, "h2", f"ksqldb/{name}") for name in ("ksql-server.properties", "log4j.properties"))
    assert {
        "ksql.logging.processing.topic.auto.create=true",
        "ksql.logging.processing.stream.auto.create=true",
        "ksql.logging.processing.topic.name=pub_ksql_processing_log",
        "ksql.logging.processing.topic.replication.factor=3",
    } <= set(settings)
    assert "log4j.appender.processing.Topic=pub_ksql_processing_log" in logging
    assert "log4j.appender.processing.BrokerList=192.0.2.1:9092,192.0.2.2:9092,192.0.2.3:9092" in logging


def test_ksqldbs_container(spread):
    found = container(spread, "h2", "ksqldb")
    assert found["image"] == "confluentinc/cp-ksqldb-server:7.9.0"
    assert found["command"][-2:] == ["ksql-server-start", "/etc/venice/ksql-server.properties"]
    assert found["user"] == "1000:1000"
    assert found["stop_timeout"] >= 60
    assert found["rolling"]
    assert json.loads(found["labels"]["venice.endpoints"]) == {"http": "192.0.2.2:8088"}
    assert {m["target"]: m["read_only"] for m in found["mounts"]} == {"/etc/venice": True, "/var/lib/kafka-streams": False}
    assert [d["owner"] for d in spread.desired("h2")["directories"] if d["component"] == "ksqldb"] == [1000, 1000]
    # what the command line in the same container would take for its own
    assert not [key for key in found["env"] if "LOG4J" in key]
    assert found["env"]["LOG_DIR"].startswith("/tmp/")


def test_what_the_user_sets_wins(tmp_path):
    found = cluster(
        tmp_path,
        SPREAD,
        ksqldb_image="reg.example/ksql:1",
        ksqldb_command=["start", "/conf/ksql-server.properties"],
        ksqldb_config_target="/conf",
        ksqldb_settings={"ksql.service.id": "mine"},
        ksqldb_environment={"LOG_DIR": "/logs"},
        ksqldb_cli=["/opt/ksql"],
        ksqldb_port=8090,
    )
    box = container(found, "h2", "ksqldb")
    assert (box["image"], box["command"][0], box["env"]["LOG_DIR"]) == ("reg.example/ksql:1", "start", "/logs")
    assert box["mounts"][0]["target"] == "/conf"
    assert box["health"]["command"][1:4] == ["/conf/http-health", 8, "http://127.0.0.1:8090/healthcheck"]
    assert lines(found, "h2", "ksqldb/ksql-server.properties")[-1] == "ksql.service.id=mine"


def test_kafdrops_container_has_one_port_and_no_root(spread):
    found = container(spread, "h1", "kafdrop")
    assert found["image"].startswith("obsidiandynamics/kafdrop:")
    assert found["user"] == "7116:7116"
    assert found["env"]["SERVER_PORT"] == found["env"]["MANAGEMENT_SERVER_PORT"] == "9001"
    assert found["env"]["SCHEMAREGISTRY_CONNECT"] == "http://192.0.2.1:8081"
    # Java is what the engine's stop signal reaches
    assert found["entrypoint"][:2] == ["bash", "-c"]
    assert found["entrypoint"][2].startswith("exec java ")
    assert "/topic" in found["health"]["command"][-1]
    assert [p.url for p in web.find(spread, "ui")] == ["http://192.0.2.1:9001/"]


def test_confluents_registry_is_another_container_behind_the_same_name(spread, tmp_path):
    found = container(spread, "h1", "schema-registry")
    assert found["image"] == "confluentinc/cp-schema-registry:7.9.0"
    assert found["user"] == "1000:1000"
    assert set(lines(spread, "h1", "schema-registry/schema-registry.properties")) >= {
        "listeners=http://0.0.0.0:8081",
        "host.name=192.0.2.1",
        "schema.registry.group.id=schema-registry-pub",
        "kafkastore.bootstrap.servers=PLAINTEXT://192.0.2.1:9092,PLAINTEXT://192.0.2.2:9092,PLAINTEXT://192.0.2.3:9092",
        "kafkastore.topic.replication.factor=3",
    }
    other = cluster(tmp_path, SPREAD)
    assert other.registry_urls == spread.registry_urls
    own = container(other, "h1", "schema-registry")
    assert own["image"].startswith("venice/schema-registry:")
    assert own["command"] == ["schema-registry"]
    assert not own["mounts"]


def test_connects_converter_and_confluents_registry_are_refused_together(tmp_path):
    groups = SPREAD | {"connect": ("h3",)}
    [finding] = preflight.validate(cluster(tmp_path, groups, schema_registry_implementation="confluent"))
    assert finding.where.endswith("group connect")
    assert "Apicurio's own API, which Confluent's registry does not have" in finding.what
    assert "connect_settings" in finding.remedy
    assert preflight.validate(cluster(tmp_path, groups)) == []
    mine = {"value.converter": "io.confluent.connect.avro.AvroConverter", "value.converter.schema.registry.url": "http://192.0.2.1:8081"}
    found = cluster(tmp_path, groups, schema_registry_implementation="confluent", connect_settings=mine)
    assert preflight.validate(found) == []
    said = [line for line in lines(found, "h3", "connect/connect.properties") if line.startswith("value.converter")]
    assert said == [f"{key}={value}" for key, value in mine.items()]


def test_an_implementation_that_nobody_knows_is_refused(tmp_path):
    findings = preflight.validate(cluster(tmp_path, {"kafka": ALL}, schema_registry_implementation="karapace"))
    assert [f.what for f in findings] == ["'karapace' is not one of apicurio, confluent"]


def test_all_components_fit_on_one_host(tmp_path):
    groups = {name: ("h1",) for name in component_roles() if name != "producer"}
    findings = preflight.validate(cluster(tmp_path, groups, 1, kafka_nodes_per_host=3))
    assert [f for f in findings if "is wanted by" in f.what] == []
    assert [i.component for i in Cluster.load(tmp_path).instances() if 9000 in i.ports.values()] == ["pinot"]


# ---- are they well?


def ask(url, *texts, seconds=2):
    # nothing of this machine's but what the images have
    tools = Path(os.environ["PYTEST_TOOLS"])
    done = subprocess.run([tools / "bash", HEALTH, str(seconds), url, *texts], env={"PATH": str(tools)}, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1, "one line, which the engine keeps"
    return done.returncode, done.stdout.strip()


@pytest.fixture(autouse=True)
def tools(tmp_path_factory, monkeypatch):
    """A folder with bash alone."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "bash").symlink_to(shutil.which("bash"))
    monkeypatch.setenv("PYTEST_TOOLS", str(folder))


def ksqldb_texts(found):
    return container(found, "h2", "ksqldb")["health"]["command"][4:]


def test_ksqldb_is_well_when_it_says_so_and_takes_statements(spread):
    with compact("005") as url:
        assert ask(f"{url}/healthcheck", *ksqldb_texts(spread)) == (0, f"{url}/healthcheck: ok")


@pytest.mark.parametrize(("number", "said"), [("001", "HTTP 503"), ("142", 'lacks {"isHealthy":true,')])
def test_ksqldb_is_not_well_while_it_starts_or_has_no_broker(spread, number, said):
    with compact(number) as url:
        code, text = ask(f"{url}/healthcheck", *ksqldb_texts(spread))
        assert code == 1
        assert said in text


def compact(number):
    """The recorded answer in the form in which ksqlDB sends JSON: without spaces."""
    answer = recording(number)
    answer["response"] |= {"body_lines": [json.dumps(answer["response"]["body"], separators=(",", ":"))]}
    context = server(answer)

    class Url:
        def __enter__(self):
            return context.__enter__()[0]

        def __exit__(self, *error):
            return context.__exit__(*error)

    return Url()


def test_a_service_that_is_silent_or_away_is_not_well():
    with server("005", silent=True) as (url, asked):
        code, text = ask(f"{url}/topic", seconds=1)
        assert (code, text) == (1, f"{url}/topic: no whole answer within 1 s")
        assert asked[0].headers["Accept"] == "application/json"
        assert asked[0].path == "/topic"
    url = closed_port()
    assert ask(f"{url}/topic") == (1, f"{url}/topic: cannot connect")


def test_an_answer_that_comes_in_pieces_is_read_to_its_end():
    released = Event()

    class Slow(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"6\r\n[first\r\n")
            self.wfile.flush()
            released.wait(0.2)
            self.wfile.write(b"6\r\n,last]\r\n0\r\n\r\n")
            self.close_connection = True

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    try:
        assert ask(f"http://127.0.0.1:{httpd.server_address[1]}/x", ",last]")[0] == 0
    finally:
        httpd.shutdown()
        httpd.server_close()


# ---- Confluent's registry through the client that Venice has


def test_the_client_understands_confluents_registry():
    # Apicurio's own address is what tells the two apart: 404 here
    absent = recording("107")
    with server("092") as (url, _):
        assert Registry([url]).subjects() == ["transactions-value"]
    with server("093") as (url, _):
        assert Registry([url]).latest("transactions-value")["version"] == 1
    with server("096") as (url, _):
        assert Registry([url]).latest("nope-value") is None
    with server("091") as (url, _):
        assert Registry([url]).register("transactions-value", recording("093")["response"]["body"]["schema"]) == 1
    with server("103") as (url, _):
        assert Registry([url]).default_compatibility() == "BACKWARD"
    with server(absent, "104") as (url, _):
        assert Registry([url]).compatibility("transactions-value") is None
    with server("107") as (url, _):
        assert Registry([url]).version_of("transactions-value", '"string"') is None


def test_confluents_reasons_are_told():
    asked = recording("099")["request"]["body"]["schema"]
    # 409; the latest version; verbose check; own level; no Apicurio; default level; versions; that version
    absent = recording("107")
    with server("100", "093", "099", absent, "104", "103", "118", "093", "104", "103") as (url, _):
        with pytest.raises(IncompatibleError) as error:
            Registry([url]).register("transactions-value", asked)
        assert error.value.reasons
        assert not any("no reason" in reason for reason in error.value.reasons)


# ---- on their way to hosts


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """This machine's engine, which has the images in `there` and pulls nothing."""
    found = SimpleNamespace(there=set(), pulled=[])

    def get(ref):
        if ref not in found.there:
            raise docker.errors.ImageNotFound(ref)

    def pull(ref):
        found.pulled.append(ref)
        raise docker.errors.APIError("500", explanation="dial tcp: lookup registry.example: no such host")

    found.images = SimpleNamespace(get=get, pull=pull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "build", lambda names, report: [])
    monkeypatch.setattr(build, "client", lambda: found)
    monkeypatch.setattr("venice.images.export.ids", lambda engine, ref: set())
    monkeypatch.setattr("venice.images.export.export", lambda engine, ref: f"exported {ref}")
    return found


def test_an_image_that_this_machine_has_is_not_pulled(engine):
    engine.there = {"confluentinc/cp-ksqldb-server:7.9.0"}
    with shipping.provide(engine.there, print) as exported:
        assert exported == {"confluentinc/cp-ksqldb-server:7.9.0": "exported confluentinc/cp-ksqldb-server:7.9.0"}
    assert engine.pulled == []


def test_one_that_cannot_be_pulled_is_told_with_its_variable_and_how_to_bring_it(engine, spread):
    ref = "confluentinc/cp-schema-registry:7.9.0"
    named = shipping.variables(spread, "h1", [ref, "obsidiandynamics/kafdrop:4.1.0"])
    assert named["obsidiandynamics/kafdrop:4.1.0"] == "kafdrop_image"
    with pytest.raises(VeniceError, match=f"^{ref}: .*cannot pull it: dial tcp") as error, shipping.provide([ref], print, named):
        pass
    assert engine.pulled == [ref]
    for part in ("schema_registry_image or schema_registry_confluent_image", f"docker pull {ref}", "docker load", "venice_image_registry"):
        assert part in error.value.remedy
