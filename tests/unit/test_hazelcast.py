"""Hazelcast without Hazelcast: what the role renders; the sink's decoding, and what it does when something is not as it was."""

import datetime
import decimal
import http.server
import importlib.util
import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import fastavro
import pytest
import yaml
from confluent_kafka import KafkaError
from hazelcast.errors import HazelcastError

from venice import formats, paths
from venice.cluster import Cluster
from venice.errors import InputError

AVRO = {
    "type": "record",
    "name": "Thing",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "raw", "type": "bytes"},
        {"name": "ratio", "type": "double"},
        {"name": "tags", "type": {"type": "map", "values": ["null", "int"]}},
    ],
}
THING = {
    "id": "à",
    "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, datetime.UTC),
    "day": datetime.date(2026, 1, 2),
    "price": decimal.Decimal("12.50"),
    "raw": b"\0\xff",
    "ratio": float("nan"),
    "tags": {"a": 1, "b": None},
}


@pytest.fixture(scope="module")
def sink():
    path = paths.resource("images") / "hazelcast-sink" / "sink.py"
    spec = importlib.util.spec_from_file_location("hazelcast_sink", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the role ----------------------------------------------------------------------------------------------------------


def cluster(folder: Path, hosts=("a", "b", "c"), **variables) -> Cluster:
    (folder / "group_vars").mkdir(exist_ok=True)
    hosts = {name: {"ansible_host": f"192.0.2.{n}"} for n, name in enumerate(hosts, 1)}
    groups = {"kafka": hosts, "schema_registry": dict.fromkeys(hosts), "hazelcast": dict.fromkeys(hosts)}
    (folder / "hosts.yml").write_text(yaml.safe_dump({name: {"hosts": hosts} for name, hosts in groups.items()}))
    (folder / "group_vars" / "all.yml").write_text(yaml.safe_dump({"venice_cluster": "sea"} | variables))
    return Cluster.load(folder)


def member(made: Cluster, host: str) -> dict:
    [text] = [f["content"] for f in made.desired(host)["files"] if f["path"] == "/etc/venice/hazelcast/hazelcast.yaml"]
    return yaml.safe_load(text)["hazelcast"]


def test_members_join_by_the_list_of_the_inventory_and_nothing_else(tmp_path):
    found = member(cluster(tmp_path), "b")
    join = found["network"]["join"]
    assert join.pop("tcp-ip") == {"enabled": True, "member-list": ["192.0.2.1:5701", "192.0.2.2:5701", "192.0.2.3:5701"]}
    assert {name: way["enabled"] for name, way in join.items()} == {"auto-detection": False, "multicast": False}
    assert found["cluster-name"] == "sea"
    assert found["network"]["public-address"] == "192.0.2.2:5701"
    assert found["properties"]["hazelcast.phone.home.enabled"] == "false"
    assert found["map"]["default"]["backup-count"] == 1


def test_one_member_has_no_backups_and_settings_of_the_user_win(tmp_path):
    found = member(cluster(tmp_path, ["a"], hazelcast_settings={"hazelcast.partition.count": 13, "hazelcast.logging.type": "none"}), "a")
    assert found["map"]["default"]["backup-count"] == 0
    assert found["properties"]["hazelcast.partition.count"] == "13"
    assert found["properties"]["hazelcast.logging.type"] == "none"


def test_the_sink_runs_once_and_only_where_there_are_maps(tmp_path):
    assert {i.name for i in cluster(tmp_path).instances("hazelcast")} == {"hazelcast"}
    maps = [{"topic": "buses_latest", "map": "buses"}]
    made = cluster(tmp_path, hazelcast_maps=maps)
    assert [i.host for i in made.instances("hazelcast") if i.name == "hazelcast-sink"] == ["a"]
    [container] = [c for c in made.desired("a")["containers"] if c["instance"] == "hazelcast-sink"]
    assert json.loads(container["env"]["MAPS"]) == maps
    assert container["env"]["SCHEMA_REGISTRY_URLS"].split(",")[1] == "http://192.0.2.2:8081"
    assert container["user"] == "7114:7114"
    assert not container["rolling"]


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        ([{"topic": "t", "map": "a"}, {"topic": "u", "map": "a"}], "the map a stands in it 2 times"),
        ([{"topic": "t", "map": "a"}, {"topic": "t", "map": "b"}], "the topic t stands in it 2 times"),
        ([{"topic": "t"}], "has no map"),
        ([{"topic": "t", "map": "venice.offsets"}], "venice.offsets: names that begin with venice. are Venice's own"),
    ],
)
def test_maps_that_would_undo_each_other_are_refused(tmp_path, maps, said):
    with pytest.raises(InputError, match=said):
        cluster(tmp_path, hazelcast_maps=maps).desired("a")


# --- what records hold -------------------------------------------------------------------------------------------------


@pytest.fixture
def registry():
    """Answers to paths, and the address of who gives them; 404 for others. An answer that is a number is the status."""
    answers: dict[str, object] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path, 404)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield SimpleNamespace(answers=answers, url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def framed(number, content):
    return b"\0" + number.to_bytes(4, "big") + content


def avro(schema, value):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


def test_avro_has_the_forms_that_venice_shows(sink, registry):
    registry.answers["/schemas/ids/7"] = {"schema": json.dumps(AVRO)}
    content = avro(AVRO, THING)
    found = json.loads(sink.Decoder([registry.url]).value(framed(7, content)))
    assert found == formats.AvroFormat(json.dumps(AVRO), {}).decode(content)
    assert found["price"] == "12.50"
    assert found["ratio"] == "NaN"
    assert found["at"] == "2026-01-02T03:04:05.678000Z"


def test_schemas_that_name_others(sink, registry):
    point = {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "int"}]}
    outer = {"type": "record", "name": "Outer", "fields": [{"name": "p", "type": "Point"}]}
    named = {"name": "Point", "subject": "a/point", "version": 2}
    registry.answers["/schemas/ids/8"] = {"schema": json.dumps(outer), "references": [named]}
    registry.answers["/subjects/a%2Fpoint/versions/2"] = {"schema": json.dumps(point)}
    assert sink.Decoder([registry.url]).value(framed(8, avro("int", 5))) == '{"p":{"x":5}}'


def test_json_schema_json_and_text(sink, registry):
    registry.answers["/schemas/ids/9"] = {"schemaType": "JSON", "schema": "{}"}
    decode = sink.Decoder([registry.url]).value
    assert decode(framed(9, b'{"a": "\xc3\xa0"}')) == '{"a":"à"}'
    assert decode(b'{"a": [1, NaN]}') == '{"a":[1,"NaN"]}'
    assert decode(b"[-1e999]") == '["-Infinity"]'
    assert decode(b"late bus") == '"late bus"'
    assert decode(b"") == '""'


def test_keys_are_text_or_the_json_of_what_they_hold(sink, registry):
    registry.answers["/schemas/ids/1"] = {"schema": '"string"'}
    registry.answers["/schemas/ids/2"] = {"schemaType": "JSON", "schema": "{}"}
    key = sink.Decoder([registry.url]).key
    assert key(b"bus-1") == key(framed(1, avro("string", "bus-1"))) == "bus-1"
    assert key(framed(2, b'{"b": 1, "a": 2}')) == '{"a": 2, "b": 1}'
    with pytest.raises(sink.BadRecordError, match="no key"):
        key(None)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"\xff\xfe", "neither framed"),
        (b"\0\0", "too little"),
        (framed(5, b"x"), "no registry has schemas/ids/5"),
        (framed(6, b"x"), "PROTOBUF"),
        (framed(7, b"x"), "does not fit schema 7"),
        (framed(7, avro(AVRO, THING) + b"x"), "left over"),
        (framed(9, b"{"), "does not fit schema 9"),
        (framed(10, b"x"), "schema 10 can't be used"),
        (b'"\\ud800"', "surrogates"),
        (framed(9, b'"\\ud800"'), "surrogates"),
    ],
)
def test_what_cannot_be_decoded_says_why(sink, registry, value, said):
    registry.answers["/schemas/ids/6"] = {"schemaType": "PROTOBUF", "schema": "message A {}"}
    registry.answers["/schemas/ids/7"] = {"schema": json.dumps(AVRO)}
    registry.answers["/schemas/ids/9"] = {"schemaType": "JSON", "schema": "{}"}
    registry.answers["/schemas/ids/10"] = {"schema": '{"type": "nothing"}'}
    with pytest.raises(sink.BadRecordError, match=said):
        sink.Decoder([registry.url]).value(value)


def test_a_registry_that_is_away_is_no_fault_of_the_record(sink, registry):
    value = framed(7, avro("int", 4))
    nobody = "http://127.0.0.1:1"
    with pytest.raises(sink.AwayError, match="refused"):
        sink.Decoder([registry.url, nobody]).value(value)  # the one that answers may not have heard of it yet
    registry.answers["/schemas/ids/7"] = 500
    with pytest.raises(sink.AwayError, match="500"):
        sink.Decoder([registry.url]).value(value)
    registry.answers["/schemas/ids/7"] = {"schema": '"int"'}
    assert sink.Decoder([nobody, registry.url]).value(value) == "4"


def test_without_a_registry_what_needs_one_is_skipped_and_not_waited_for(sink):
    with pytest.raises(sink.BadRecordError, match="no registry has schemas/ids/7"):
        sink.Decoder([""]).value(framed(7, avro("int", 4)))


# --- what is kept in step ----------------------------------------------------------------------------------------------

PARTITIONS = 5


class Future(SimpleNamespace):
    def result(self):
        return self.value


class Map(dict):
    """As the client's map, what the sink uses of it."""

    def blocking(self):
        return self

    size = dict.__len__
    put = dict.__setitem__
    put_all = dict.update

    def get_all(self, keys):
        return {key: self[key] for key in keys if key in self}

    def delete(self, key):
        self.pop(key, None)
        return Future(value=None)

    def replace_if_same(self, key, old, new):
        if self.get(key) != old:
            return False
        self[key] = new
        return True


class Memory:
    """A Hazelcast client, and the memory behind it."""

    def __init__(self):
        self.maps: dict[str, Map] = {}
        self.closed = 0
        self.partition_service = SimpleNamespace(get_partition_count=lambda: PARTITIONS, get_partition_id=self.partition)

    @staticmethod
    def partition(key):
        return sum(key.encode()) % PARTITIONS

    def get_map(self, name):
        return self.maps.setdefault(name, Map())

    def shutdown(self):
        self.closed += 1

    def lose(self, partitions):
        for found in self.maps.values():
            for key in [key for key in found if self.partition(key) in partitions]:
                del found[key]

    def shown(self, name="buses"):
        return {key: json.loads(value.to_string()) for key, value in self.get_map(name).items()}


class Message(SimpleNamespace):
    def __getattr__(self, name):
        return lambda: self.__dict__[f"_{name}"]


def message(offset, key, value, partition=0, error=None, topic="latest"):
    return Message(_topic=topic, _partition=partition, _offset=offset, _key=key, _value=value, _error=error)


class Log:
    """A topic's records by partition, read as the sink's Source does; ends the sink when all is read."""

    def __init__(self, records, running, topic_id="one"):
        self.records, self.running, self.topic_id = records, running, topic_id
        self.closed = 0
        self.batch: list = []

    def look(self, feeds):
        return {"latest": (self.topic_id, len(self.records))}

    def assign(self, feeds):
        [feed] = feeds
        self.begins = dict(feed.offsets)
        self.batch = [
            message(offset, key, value, partition)
            for partition, records in enumerate(self.records)
            for offset, (key, value) in list(enumerate(records))[feed.offsets.get(partition, 0) :]
        ]
        self.batch += [message(0, None, None, p, SimpleNamespace(code=lambda: KafkaError._PARTITION_EOF)) for p in range(len(self.records))]

    def read(self):
        found, self.batch = self.batch, []
        if not found:
            self.running.stop()
        return found

    def close(self):
        self.closed += 1


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def follow(sink, memory, capsys):
    """Reads a topic to its end with a new sink; returns the sink and what it logged."""

    def run(*records, topic_id="one"):
        made = sink.Sink([{"topic": "latest", "map": "buses"}], sink.Decoder([]))
        made.log = Log(records, made, topic_id)
        made.follow(sink.Store(memory), made.log)
        made.said = capsys.readouterr().out
        return made

    return run


def test_a_map_holds_of_each_key_the_last_record_and_no_removed_one(follow, memory):
    first = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"c", b"4"), (b"c", None), (b"d", None), (b"d", b"5")]
    made = follow(first, [(b"z", b"9")])
    assert memory.shown() == {"a": 3, "b": 2, "d": 5, "z": 9}
    assert json.loads(memory.maps["venice.offsets"]["buses"]) == {"topic": "latest", "topic_id": "one", "offsets": {"0": 7, "1": 1}}
    assert made.feeds["latest"].shown() == {
        "map": "buses", "topic": "latest", "partitions": 2, "in_step": True, "written": 4, "removed": 1, "skipped": 0
    }  # fmt: skip


def test_a_second_sink_goes_on_where_the_map_stands(follow, memory):
    follow([(b"a", b"1")])
    memory.get_map("buses").clear()  # seen again only if it is read again
    made = follow([(b"a", b"1"), (b"b", b"2")])
    assert made.log.begins == {0: 1}
    assert memory.shown() == {"b": 2}


def test_what_cannot_be_decoded_is_said_counted_and_skipped(follow, memory):
    made = follow([(b"a", b"1"), (b"a", b"\xff"), (b"b", b"2"), (None, b"3")])
    assert memory.shown() == {"a": 1, "b": 2}
    assert made.feeds["latest"].skipped == 2
    assert "skipped latest-0 offset 1: the value is neither" in made.said
    assert "skipped latest-0 offset 3: the record has no key" in made.said


@pytest.mark.parametrize("lost", [{0, 1, 2, 3, 4}, {2}, {4}])
def test_lost_memory_is_filled_again(follow, memory, lost):
    records = [(f"k{n}".encode(), str(n).encode()) for n in range(20)]
    follow(records)
    before = memory.shown()
    memory.lose(lost)
    assert memory.shown() != before
    made = follow(records)
    assert memory.shown() == before
    assert f"{len(lost)} of Hazelcast's 5 partitions are new" in made.said


def test_lost_memory_is_noticed_while_nothing_comes(sink, memory, follow):
    made = follow([(b"a", b"1")])
    store, feeds = sink.Store(memory), list(made.feeds.values())
    store.check(feeds)
    memory.lose({3})
    with pytest.raises(sink.AgainError, match="lost memory"):
        store.check(feeds)


def test_a_topic_made_anew_begins_an_empty_map(follow, memory):
    follow([(b"a", b"1"), (b"b", b"2")])
    follow([(b"b", b"3")], topic_id="two")
    assert memory.shown() == {"b": 3}


def test_another_writer_is_noticed_before_its_offsets_are_overwritten(sink, memory, follow):
    """Two parts of a cluster that were apart: the offsets are those of the part that stayed."""
    made = follow([(b"a", b"1")])
    [feed] = made.feeds.values()
    memory.maps["venice.offsets"]["buses"] = other = feed.text().replace("1}", "0}")
    store = sink.Store(memory)
    with pytest.raises(sink.AgainError, match="not those"):
        store.check([feed])
    with pytest.raises(sink.AgainError, match="not those"):
        made.handle(store, [message(1, b"b", b"2")])
    assert memory.maps["venice.offsets"]["buses"] == other


def test_what_is_skipped_in_a_batch_that_is_read_again_is_counted_once(sink, memory, follow, capsys):
    made = follow([(b"a", b"1")])
    [feed] = made.feeds.values()
    put = memory.get_map("buses").put_all

    def refuse(_):
        raise HazelcastError("away")

    batch = [message(1, b"b", b"\xff"), message(2, b"c", b"2")]
    memory.get_map("buses").put_all = refuse
    with pytest.raises(HazelcastError):
        made.handle(sink.Store(memory), batch)
    assert (feed.skipped, capsys.readouterr().out.count("skipped")) == (0, 0)
    memory.get_map("buses").put_all = put
    feed.offsets = {0: 1}
    made.handle(sink.Store(memory), batch)
    assert (feed.skipped, capsys.readouterr().out.count("skipped")) == (1, 1)


def test_an_offset_that_is_gone_fills_the_map_again(sink, memory, follow):
    made = follow([(b"a", b"1")])
    gone = message(0, None, None, error=SimpleNamespace(code=lambda: KafkaError._AUTO_OFFSET_RESET))
    with pytest.raises(sink.AgainError, match="latest-0 no longer has offset 1"):
        made.handle(sink.Store(memory), [gone])
    follow([(b"c", b"1")])
    assert memory.shown() == {"c": 1}


def test_offsets_are_written_after_what_they_cover(sink, memory, follow):
    made = follow([(b"a", b"1")])
    kept = memory.maps["venice.offsets"]["buses"]

    def refuse(_):
        raise HazelcastError("away")

    memory.get_map("buses").put_all = refuse
    with pytest.raises(HazelcastError):
        made.handle(sink.Store(memory), [message(1, b"b", b"2")])
    assert memory.maps["venice.offsets"]["buses"] == kept


def test_pauses_grow_while_something_is_away_and_both_sides_are_closed(sink, memory, monkeypatch, capsys):
    made = sink.Sink([{"topic": "latest", "map": "buses"}], sink.Decoder([]))
    pauses = []
    monkeypatch.setattr(made.stopping, "wait", pauses.append)
    log = Log([[(b"a", b"1")]], made)
    failures = [HazelcastError("no member"), sink.AwayError("registry"), OSError("network"), *[HazelcastError("no member")] * 3]

    def source():
        if failures:
            raise failures.pop(0)
        return log

    made.run(lambda: sink.Store(memory), source)
    assert pauses == [1, 2, 4, 8, 15, 15]
    assert memory.shown() == {"a": 1}
    assert (memory.closed, log.closed) == (7, 1)
    assert "waits 4 s: OSError: network" in capsys.readouterr().out
    assert made.healthy


def test_what_waits_for_a_registry_is_neither_healthy_nor_in_step_and_pauses_grow(sink, memory, monkeypatch):
    made = sink.Sink([{"topic": "latest", "map": "buses"}], sink.Decoder(["http://127.0.0.1:1"]))
    pauses = []

    def wait(seconds):
        pauses.append(seconds)
        if len(pauses) == 4:
            made.stop()

    monkeypatch.setattr(made.stopping, "wait", wait)
    made.run(lambda: sink.Store(memory), lambda: Log([[(b"a", b"1")], [(b"b", framed(7, b"x"))]], made))
    assert pauses == [1, 2, 4, 8]
    assert not made.healthy
    assert not made.feeds["latest"].shown()["in_step"]


def test_it_is_healthy_only_while_it_looks(sink, monkeypatch):
    made = sink.Sink([], sink.Decoder([]))
    assert not made.healthy
    made.looked = sink.time.monotonic()
    assert made.healthy
    made.looked -= sink.HEALTHY_SECONDS
    assert not made.healthy
