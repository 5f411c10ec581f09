"""Live state without services: cursors, what bytes become, what the role says."""

import datetime
import http.server
import io
import json
import struct
import sys
import threading
from types import SimpleNamespace

import fastavro
import pytest
from confluent_kafka.admin import OffsetSpec

from venice import paths
from venice.cluster import Cluster
from venice.web import pages

sys.path.append(str(paths.resource("images") / "live"))

from venice_live.cursor import Cursor
from venice_live.decode import AwayError, Decoder, Registry, UndecodableError, plain


@pytest.mark.parametrize("text", ["0:15,1:20,12:-1@AbC-_9", "0:15", "@AbC"])
def test_a_cursor_is_text_and_back(text):
    assert str(Cursor.parse(text)) == text


@pytest.mark.parametrize("text", ["", "x", "0:", "0:1,", "0:1@", "0:1@a b", "0:1\n", "٣:1", "0:1;1:2", "-1:0"])
def test_what_is_no_cursor(text):
    with pytest.raises(ValueError, match="no cursor"):
        Cursor.parse(text)


PLACE = {"type": "record", "name": "Place", "fields": [{"name": "city", "type": "string"}]}
BUS = {"type": "record", "name": "Bus", "fields": [{"name": "at", "type": "Place"}, {"name": "line", "type": ["null", "int"]}]}


class Schemas(Registry):
    """A registry that is a table; `asked` counts."""

    def __init__(self):
        super().__init__(["http://nowhere"])
        self.asked = []
        self.away = False

    def _get(self, path):
        self.asked.append(path)
        if self.away:
            raise AwayError("nobody there")
        references = [{"name": "Place", "subject": "a/place", "version": 3}]
        known = {
            "/schemas/ids/1": {"schema": json.dumps(BUS), "references": references},
            "/subjects/a%2Fplace/versions/3": {"schema": json.dumps(PLACE)},
            "/schemas/ids/2": {"schema": "{}", "schemaType": "JSON"},
            "/schemas/ids/3": {"schema": "message M {}", "schemaType": "PROTOBUF"},
            "/schemas/ids/4": {"schema": '"nonsense"'},
        }
        if path not in known:
            raise UndecodableError(f"the registry has no {path}")
        return known[path]


def framed(number, data):
    return struct.pack(">bI", 0, number) + data


def bus():
    stream = io.BytesIO()
    named = {}
    fastavro.parse_schema(PLACE, named_schemas=named)
    fastavro.schemaless_writer(stream, fastavro.parse_schema(BUS, named_schemas=named), {"at": {"city": "Ulm"}, "line": None})
    return stream.getvalue()


def test_avro_with_references_is_read_and_schemas_are_asked_for_once():
    registry = Schemas()
    decoder = Decoder(registry)
    for _ in range(3):
        assert decoder.value(framed(1, bus())) == '{"at":{"city":"Ulm"},"line":null}'
    assert registry.asked == ["/schemas/ids/1", "/subjects/a%2Fplace/versions/3"]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (None, None),
        (b"", '""'),
        (b"12.50", "12.5"),
        (b"plain", '"plain"'),
        (b'{"a":\n [NaN]}', '{"a":["NaN"]}'),
        (framed(2, b'{"a": 1}'), '{"a":1}'),
    ],
)
def test_values_become_one_line_of_json(data, value):
    assert Decoder(Schemas()).value(data) == value


@pytest.mark.parametrize(
    ("data", "key"), [(None, None), (b"7", "7"), (b'{"a": 1}', '{"a": 1}'), (framed(2, b'"x"'), "x"), (framed(2, b"[1]"), "[1]")]
)
def test_keys_are_text(data, key):
    assert Decoder(Schemas()).key(data) == key


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe", "nor UTF-8"),
        (framed(1, bus() + b"x"), "1 bytes are left over"),
        (framed(1, b""), "don't fit schema 1"),
        (framed(2, b"{"), "don't fit schema 2"),
        (framed(3, b""), "is PROTOBUF, which the live sink can't read"),
        (framed(4, b""), "no valid Avro schema"),
        (framed(9, b""), "has no /schemas/ids/9"),
        (b"[" * 100_000, "recursion"),
        (b'"\\ud800"', "surrogates"),
    ],
)
def test_what_can_not_be_read_says_why(data, said):
    with pytest.raises(UndecodableError, match=said):
        Decoder(Schemas()).value(data)


def test_a_registry_that_is_away_says_nothing_about_the_record():
    registry = Schemas()
    decoder = Decoder(registry)
    registry.away = True
    with pytest.raises(AwayError):
        decoder.value(framed(1, bus()))
    registry.away = False
    assert decoder.value(framed(1, bus()))
    with pytest.raises(AwayError, match=r"127\.0\.0\.1:1"):
        Registry(["http://127.0.0.1:1"]).schema(1)
    with pytest.raises(UndecodableError, match="there is no registry"):
        Registry([]).schema(1)


@pytest.fixture
def urls():
    """Two registries, of which the second alone has schema 1."""
    servers = []
    for known in ((), ("/schemas/ids/1",)):

        class Handler(http.server.BaseHTTPRequestHandler):
            known_paths = known

            def do_GET(self):
                self.send_response(200 if self.path in self.known_paths else 404)
                self.end_headers()
                self.wfile.write(b'{"schema": "{}"}')

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_schema_is_unknown_only_when_no_registry_has_it(urls):
    assert Registry(urls).schema(1) == {"schema": "{}"}
    with pytest.raises(UndecodableError, match="has no schemas/ids/2"):
        Registry(urls).schema(2)
    with pytest.raises(AwayError, match=r"127\.0\.0\.1:1"):
        Registry([urls[0], "http://127.0.0.1:1"]).schema(1)  # the one that is away may have it


def test_a_registry_that_takes_its_time_to_be_away_is_not_waited_for_again_and_again(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("venice_live.decode.time", clock)
    asked = []

    def silent(url, timeout):
        asked.append(url)
        clock.now += timeout
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", silent)
    registry = Registry(["http://a"])
    for _ in range(3):
        with pytest.raises(AwayError, match="http://a: timed out"):
            registry.schema(1)
    assert len(asked) == 1
    clock.now += 4 * (clock.now - 100)
    with pytest.raises(AwayError):
        registry.schema(1)
    assert len(asked) == 2


def test_what_json_has_no_form_for_is_text_as_everywhere_in_venice():
    from venice.formats import plain as elsewhere

    utc = datetime.datetime(2026, 1, 2, 3, 4, 5, 6000, tzinfo=datetime.UTC)
    value = {"a": [b"\x01", utc, utc.date(), utc.time(), float("inf"), float("nan"), -float("inf"), True, 1 << 60], 2: None}
    assert plain(value) == elsewhere(value)


# --- the sink ----------------------------------------------------------------------------------------------------------


class Kafka:
    """A topic "t" of one partition, as the sink's consumer and its admin client show it; what is paused outlives an unassignment."""

    def __init__(self, records):
        self.records, self.position, self.paused = records, None, False

    def describe_topics(self, topics, request_timeout):
        return {"t": SimpleNamespace(result=lambda: SimpleNamespace(topic_id="one", partitions=[SimpleNamespace(id=0)]))}

    def list_offsets(self, asked, request_timeout):
        begin, end = OffsetSpec.earliest(), len(self.records)
        ends = {place: 0 if spec is begin else end for place, spec in asked.items()}
        return {place: SimpleNamespace(result=lambda end=end: SimpleNamespace(offset=end)) for place, end in ends.items()}

    def incremental_assign(self, places):
        [place] = places
        self.position = place.offset

    def incremental_unassign(self, _):
        self.position = None

    def pause(self, _):
        self.paused = True

    def resume(self, _):
        self.paused = False

    def consume(self, count, seconds):
        if self.paused:
            return []
        found = [
            SimpleNamespace(
                error=lambda: None,
                topic=lambda: "t",
                partition=lambda: 0,
                offset=lambda offset=offset: offset,
                key=lambda: b"k",
                value=lambda value=value: value,
                timestamp=lambda: (1, 0),
            )
            for offset, value in enumerate(self.records)
            if offset >= self.position
        ]
        self.position = len(self.records)
        return found


class Redis:
    """The sink's half of it; `offset` is what it accounts for."""

    def __init__(self):
        self.offset, self.values = -1, []

    def forget_others(self, _):
        return []

    def begin(self, topic, topic_id):
        return {0: self.offset} if self.offset >= 0 else {}

    def apply(self, topic, topic_id, partition, expected, low, records):
        if expected != self.offset:
            return False
        self.offset = records[-1].offset
        self.values += [record.value for record in records]
        return True


def test_a_partition_that_waited_for_the_registry_is_read_again_after_redis_was_emptied(monkeypatch):
    # Redis's client is in the image alone
    monkeypatch.setitem(sys.modules, "redis", SimpleNamespace(RedisError=OSError))
    from venice_live.sink import Sink

    registry, kafka, store = Schemas(), Kafka([b"1", framed(2, b"2")]), Redis()
    sink = Sink(["t"], kafka, kafka, store, Decoder(registry))
    registry.away = True
    sink.step()
    assert (kafka.paused, store.values) == (True, ["1"])
    store.offset, store.values = -1, []
    registry.away = False
    sink.next_look = 0.0
    sink.step()
    assert store.values == ["1", "2"]
    assert sink.report()["healthy"]


def test_a_topic_that_has_lost_its_end_is_a_problem(monkeypatch):
    """All brokers lost their power, or came back from an older snapshot: Redis is where Kafka is not yet."""
    monkeypatch.setitem(sys.modules, "redis", SimpleNamespace(RedisError=OSError))
    from venice_live.sink import Sink

    kafka, store = Kafka([b"1", b"2"]), Redis()
    store.offset = 5
    sink = Sink(["t"], kafka, kafka, store, Decoder(Schemas()))
    monkeypatch.setattr(sink.stopped, "wait", lambda _: None)
    sink.step()
    [problem] = sink.report()["problems"]
    assert "partition 0 up to offset 5, Kafka only up to 1" in problem
    store.offset = 1
    sink.next_look = 0.0
    sink.step()
    assert sink.report()["healthy"]


HOSTS = """
all:
  vars: {venice_cluster: live, live_topics: [buses, "a.b"], redis_password: "a b'c", ansible_connection: local}
  hosts:
    one: {ansible_host: 10.0.0.1}
    two: {ansible_host: 10.0.0.2}
  children:
    kafka: {hosts: {one: , two: }}
    redis: {hosts: {one: }}
    live: {hosts: {two: }}
"""


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "hosts.yml").write_text(HOSTS)
    return Cluster.load(tmp_path / "hosts.yml")


def test_the_role_tells_both_programs_where_all_is_and_shows_the_password_in_secret_files_only(cluster):
    two = cluster.desired("two")
    files = {f["path"]: f for f in two["files"]}
    found = json.loads(files["/etc/venice/live-sink/live.json"]["content"])
    assert found["topics"] == ["buses", "a.b"]
    assert found["redis"] == {"host": "10.0.0.1", "port": 6379, "password": "a b'c"}
    assert (found["port"], found["registries"]) == (8096, [])
    assert found["bootstrap_servers"] == "10.0.0.1:9092,10.0.0.2:9092"
    assert json.loads(files["/etc/venice/live/live.json"]["content"])["port"] == 8095
    for host in ("one", "two"):
        document = cluster.desired(host)
        assert all(f["secret"] and f["mode"] == "0400" for f in document["files"] if "a b'c" in f["content"])
        assert "a b'c" not in json.dumps(document["containers"])


def test_redis_gets_switches_and_any_password_in_its_own_form(tmp_path):
    text = HOSTS.replace('"a b\'c"', r"""'a "b\c ü', redis_settings: {appendonly: no, maxclients: 50, save: 60 1000}""")
    (tmp_path / "hosts.yml").write_text(text)
    files = {f["path"]: f["content"] for f in Cluster.load(tmp_path / "hosts.yml").desired("one")["files"]}
    lines = files["/etc/venice/redis/redis.conf"].splitlines()
    assert r'requirepass "a \"b\\c ü"' in lines
    assert lines[-3:] == ["appendonly no", "maxclients 50", "save 60 1000"]


def test_only_the_server_is_for_a_browser(cluster):
    assert [(p.name, p.url) for p in pages(cluster)] == [("live", "http://10.0.0.2:8095/")]
