"""Live state: a broker, Redis, the sink and the server as containers, and what is left of it all when they are killed."""

import io
import json
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import fastavro
import httpx
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from tests.browser import chromium
from tests.engine.test_data import broker  # noqa: F401 (a fixture)
from tests.sse import Reader
from tests.waiting import PATIENCE, wait_until
from venice.images.build import build, client

PASSWORD = "a-secret-of-this-test"
LENGTH = 3000
TOPICS = ["buses", "words", "short", "anew", "later"]
SCHEMA = {
    "type": "record",
    "name": "Bus",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "fare", "type": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}},
        {"name": "raw", "type": "bytes"},
    ],
}
REDIS = f"port 6379\nrequirepass {PASSWORD}\ndir /data\nappendonly yes\nsave ''\nmaxmemory 64mb\nmaxmemory-policy noeviction\n"


class Site:
    """The containers, and questions to them."""

    def __init__(self, engine, kafka, registry, folder):
        self.engine, self.registry = engine, registry
        self.bootstrap = kafka.servers
        run = uuid.uuid4().hex[:8]
        self.refs = {image.name: image.ref for image in build(["redis", "live"], report=print)}
        self.network = engine.networks.create(f"venice-test-{run}")
        self.network.reload()
        gateway = self.network.attrs["IPAM"]["Config"][0]["Gateway"]
        settings = {
            "port": 8000,
            "topics": TOPICS,
            "stream_length": LENGTH,
            "bootstrap_servers": self.bootstrap,
            "registries": [f"http://{gateway}:{registry.port}"],
            "redis": {"host": f"redis-{run}", "port": 6379, "password": PASSWORD},
        }
        files = {"live/live.json": json.dumps(settings), "redis/redis.conf": REDIS, "redis/password": f"{PASSWORD}\n"}
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
            (folder / name).chmod(0o644)
        self.containers = []
        # the container's own layer holds Redis's log: it outlives a kill and a start
        self.redis = self.start("redis", f"redis-{run}", ["redis-server", "/etc/redis/redis.conf"], 7113, folder / "redis")
        self.sink = self.start("live", f"sink-{run}", ["live-sink"], 7115, folder / "live")
        self.server = self.start("live", f"live-{run}", ["live-server"], 7115, folder / "live")

    def start(self, image, name, command, user, folder):
        container = self.engine.containers.create(
            self.refs[image],
            command,
            name=name,
            user=f"{user}:{user}",
            volumes={str(folder): {"bind": f"/etc/{folder.name}", "mode": "ro"}},
            network=self.network.name,
            mem_limit="128m",
        )
        self.containers.append(container)
        self.engine.networks.get("bridge").connect(container)  # where the broker is
        container.start()
        return container

    def remove(self):
        for container in self.containers:
            container.remove(force=True, v=True)
        self.network.remove()

    def url(self, container, path):
        container.reload()
        return f"http://{container.attrs['NetworkSettings']['Networks'][self.network.name]['IPAddress']}:8000{path}"

    def get(self, path, container=None):
        """JSON of an answer; empty when nobody answers."""
        try:
            return httpx.get(self.url(container or self.server, path), timeout=PATIENCE, trust_env=False).json()
        except (httpx.HTTPError, ValueError, KeyError):
            return {}

    def health(self):
        return {"problems": []} | self.get("/health", self.sink)

    def ask(self, *command):
        """What Redis answers."""
        argv = ["sh", "-c", 'REDISCLI_AUTH=$(cat /etc/redis/password) exec redis-cli --json "$@"', "-", *map(str, command)]
        return json.loads(self.redis.exec_run(argv).output)

    def kill(self, container):
        """kill -9, and start again."""
        container.kill("KILL")
        wait_until(lambda: container.reload() or container.status == "exited", "killed")
        container.start()

    def state(self, topic):
        return self.get(f"/state/{topic}").get("records", {})

    def reader(self, topic, query="?from=earliest"):
        return Reader(self.url(self.server, f"/stream/{topic}{query}"))

    def stored(self, topic, partitions):
        """Offsets that are in the topic's streams, by partition."""
        found = {p: self.ask("XRANGE", f"stream:{topic}:{p}", "-", "+") for p in range(partitions)}
        return {p: [int(number.partition("-")[0]) for number, _ in items] for p, items in found.items()}


class Registry:
    """A schema registry that has one schema, and can be away."""

    def __init__(self):
        this = self
        self.away = False

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.path == "/schemas/ids/7"
                data = json.dumps({"schema": json.dumps(SCHEMA)} if known else {"error_code": 40403}).encode()
                self.send_response(503 if this.away else 200 if known else 404)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)  # noqa: S104 (containers ask it)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def avro(number, **record):
    """Bytes of a record with the registry's frame."""
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(SCHEMA), record)
    return struct.pack(">bI", 0, number) + stream.getvalue()


@pytest.fixture(scope="module")
def kafka(broker):  # noqa: F811
    servers = broker.bootstrap_servers
    admin = AdminClient({"bootstrap.servers": servers})

    def create(*names, partitions=3):
        for future in admin.create_topics([NewTopic(n, partitions, 1) for n in names]).values():
            future.result()

    create("buses", "words", "anew")
    create("short", partitions=1)
    producers = {}

    def send(topic, records, partition=-1):
        """Sends (key, value) pairs; returns when all are acknowledged."""
        # one for each partition that is named: an older one may not know yet that there are more
        producer = producers.setdefault(partition, Producer({"bootstrap.servers": servers, "linger.ms": 2}))
        for key, value in records:
            producer.produce(topic, value, key, partition)
            producer.poll(0)
        assert producer.flush(30) == 0

    def delete(name):
        admin.delete_topics([name])[name].result()
        wait_until(lambda: name not in admin.list_topics().topics, f"{name} is deleted")

    return SimpleNamespace(servers=servers, admin=admin, create=create, delete=delete, send=send)


@pytest.fixture(scope="module")
def site(kafka, tmp_path_factory) -> Iterator[Site]:
    registry = Registry()
    made = Site(client(), kafka, registry, tmp_path_factory.mktemp("live"))
    try:
        wait_until(lambda: made.redis.exec_run(["redis-health", "6379"]).exit_code == 0, "Redis answers")
        wait_until(lambda: len(made.health().get("topics", {})) == 4, "four topics are followed")
        wait_until(lambda: made.get("/health").get("healthy"), "the server answers")
        yield made
    finally:
        for container in made.containers:
            print(container.name, container.logs(tail=40).decode(), sep="\n")
        made.remove()
        registry.server.shutdown()


def test_health_asks_redis_for_an_answer_and_needs_the_password(site):
    assert site.redis.exec_run(["redis-health", "6379"]).output.decode().strip() == "PONG"
    asked = site.redis.exec_run(["redis-health", "6380"])
    assert (asked.exit_code, "refused" in asked.output.decode()) == (1, True)
    assert "NOAUTH" in site.redis.exec_run(["redis-cli", "ping"]).output.decode()
    for container in site.containers:
        container.reload()
        assert PASSWORD not in json.dumps(container.attrs)
        assert PASSWORD not in container.logs().decode()


def test_the_state_is_the_newest_value_of_each_key_whatever_its_format(site, kafka):
    bus = {"id": "1", "at": 1_700_000_000_123, "fare": b"\x04\xe2", "raw": b"\x00\xff"}
    kafka.send("buses", [("1", avro(7, **bus | {"at": 0})), ("1", avro(7, **bus)), ("2", avro(7, **bus)), ("2", None)])
    kafka.send("buses", [("bad", avro(99, **bus)), ("bad", avro(7, **bus)[:-1]), ("bad", b"\x80\x81")])
    kafka.send("words", [("text", "grüße"), ("json", '{"a": [1, null]}'), ("empty", ""), ("<script>", "<b>"), (None, "keyless")])
    kafka.send("words", [("half", '"\\ud800"'), ("deep", "[" * 100_000)])
    wait_until(lambda: site.health()["topics"]["buses"]["applied"] >= 7, "buses are there")
    wait_until(lambda: site.health()["topics"]["words"]["applied"] >= 7, "words are there")
    assert site.state("buses") == {"1": {"id": "1", "at": "2023-11-14T22:13:20.123000Z", "fare": "12.50", "raw": "0x00ff"}}
    assert site.state("words") == {"text": "grüße", "json": {"a": [1, None]}, "empty": "", "<script>": "<b>"}
    report = site.health()["topics"]
    assert (report["buses"]["skipped"], report["words"]["skipped"]) == (3, 2)
    logged = site.sink.logs().decode()
    assert re.search(r"buses \d offset \d+: skipped: the registry has no schemas/ids/99", logged)
    reader = site.reader("buses")
    reader.read(lambda events: len(events) == 4)
    assert [(e.data["key"], e.data["value"] is None) for e in reader.events if e.data["key"] == "2"] == [("2", False), ("2", True)]


def test_what_does_not_exist_is_said_and_followed_once_it_does(site, kafka):
    assert site.health()["problems"] == ["topic later does not exist"]
    assert httpx.get(site.url(site.sink, "/health"), trust_env=False).status_code == 503
    refused = httpx.get(site.url(site.server, "/stream/nothing"), trust_env=False)
    assert (refused.status_code, "not among live_topics" in refused.json()["message"]) == (404, True)
    assert httpx.get(site.url(site.server, "/stream/words?from=x"), trust_env=False).status_code == 400
    reader = site.reader("later", "")
    kafka.create("later")
    wait_until(lambda: site.health().get("healthy"), "the topic is followed")
    kafka.send("later", [("a", "1")])
    wait_until(lambda: site.state("later") == {"a": 1}, "its record is there")
    reader.url += "?from=earliest"
    reader.read(lambda events: len(events) == 1)
    kafka.admin.create_partitions([NewPartitions("later", 5)])["later"].result()
    kafka.send("later", [("b", "2")], partition=4)
    wait_until(lambda: site.state("later") == {"a": 1, "b": 2}, "a new partition is followed")
    reader.read(lambda events: len(events) == 2)
    assert [e.data["value"] for e in reader.events] == [1, 2]


def test_kills_lose_and_repeat_nothing(site, kafka):
    """Sink, Redis and server are killed while records come, and a client comes back each time with the last id it has."""
    before = {p: len(offsets) for p, offsets in site.stored("words", 3).items()}
    reader = site.reader("words", "")
    reader.read(lambda _: bool(reader.last_id))  # now; an id without a record
    first = len(reader.events)
    count, sent = 3000, threading.Event()

    def send():
        for n in range(0, count, 50):
            kafka.send("words", [(f"key-{i % 100}", json.dumps({"n": i})) for i in range(n, n + 50)])
            time.sleep(0.1)
        sent.set()

    threading.Thread(target=send).start()
    for container in (site.sink, site.redis, site.server, site.redis, site.sink):
        have = len(reader.events)
        while len(reader.events) < have + 200 and len(reader.events) < first + count:
            reader.url = site.url(site.server, "/stream/words")
            reader.read(lambda events, have=have: len(events) >= have + 200)
        site.kill(container)
    assert sent.wait(PATIENCE)
    while len(reader.events) < first + count:
        wait_until(lambda: site.get("/health").get("healthy"), "the server answers")
        reader.url = site.url(site.server, "/stream/words")
        reader.read(lambda events: len(events) >= first + count)
    assert {e.name for e in reader.events} == {"message"}
    assert len(reader.places) == len(set(reader.places)) == count
    stored = site.stored("words", 3)
    assert sum(len(offsets) for offsets in stored.values()) == count + sum(before.values())
    assert set(reader.places) <= {(p, offset) for p, offsets in stored.items() for offset in offsets}
    state = site.state("words")
    assert [state[f"key-{k}"]["n"] for k in range(100)] == [count - 100 + k for k in range(100)]
    # in each partition, in order
    for partition in range(3):
        mine = [offset for p, offset in reader.places if p == partition]
        assert mine == sorted(mine)


def test_an_emptied_redis_is_filled_again(site):
    wait_until(lambda: site.health().get("healthy"), "all is well")
    before = (site.state("words"), site.stored("words", 3))
    reader = site.reader("words")
    reader.read(lambda events: len(events) >= 100)
    site.ask("FLUSHALL")
    wait_until(lambda: (site.state("words"), site.stored("words", 3)) == before, "all is there again")
    assert "words: Redis is not where it was any more" in site.sink.logs().decode()
    reader.read(lambda events: len(events) >= sum(map(len, before[1].values())))
    assert len(reader.places) == len(set(reader.places)) == sum(map(len, before[1].values()))
    assert {e.name for e in reader.events} == {"message"}


def test_who_comes_while_redis_is_filled_again_misses_nothing(site, kafka):
    """Though somebody else had the topic's reader further on already."""
    wait_until(lambda: site.health().get("healthy"), "all is well")
    partition, offsets = max(site.stored("words", 3).items(), key=lambda item: len(item[1]))
    early, late = site.reader("words"), site.reader("words", "")

    def ended(events):
        return any(event.data.get("key") == "the end" for event in events)

    site.sink.pause()
    try:
        with ThreadPoolExecutor(2) as pool:
            following = [pool.submit(early.read, ended)]
            wait_until(lambda: len(early.events) >= len(offsets), "the topic's reader is at its end")
            site.ask("HSET", "offsets:words", partition, -1, f"{partition}:tail", -1)
            site.ask("DEL", f"stream:words:{partition}")
            following.append(pool.submit(late.read, ended))
            wait_until(lambda: late.last_id, "it has come")
            site.sink.unpause()
            wait_until(lambda: site.stored("words", 3)[partition] == offsets, "all is there again")
            kafka.send("words", [("the end", "1")], partition)
            for each in following:
                each.result()
    finally:
        site.sink.reload()
        if site.sink.status == "paused":
            site.sink.unpause()
    assert {e.name for e in early.events + late.events} == {"message"}
    assert [offset for p, offset in late.places if p == partition][: len(offsets)] == offsets


def test_what_was_trimmed_is_reported(site, kafka):
    kafka.send("short", [("k", "0")])
    reader = site.reader("short")
    reader.read(lambda events: len(events) == 1)
    kafka.send("short", [("k", str(n)) for n in range(1, LENGTH + 101)])
    wait_until(lambda: site.state("short") == {"k": LENGTH + 100}, "all is there")
    assert site.ask("XLEN", "stream:short:0") == LENGTH
    reader.read(lambda events: len(events) == LENGTH + 2)
    gap = reader.events[1]
    assert (gap.name, gap.data) == ("gap", {"reason": "no longer in Redis", "partition": 0, "after": 0, "until": 100})
    assert [offset for _, offset in reader.places] == [0, *range(101, LENGTH + 101)]
    # all that is there has no gap for who asked for no more
    again = site.reader("short")
    again.read(lambda events: len(events) == LENGTH)
    assert {e.name for e in again.events} == {"message"}


def test_a_topic_that_is_made_anew_is_another_one(site, kafka):
    kafka.send("anew", [(f"old-{n}", "1") for n in range(50)])
    wait_until(lambda: len(site.state("anew") or {}) == 50, "the old ones are there")
    reader = site.reader("anew")
    reader.read(lambda events: len(events) == 50)
    kafka.delete("anew")
    wait_until(lambda: "topic anew does not exist" in site.health()["problems"], "it is missed")
    kafka.create("anew")
    kafka.send("anew", [("new", "2")])
    wait_until(lambda: site.state("anew") == {"new": 2}, "only the new one is there")
    reader.read(lambda events: len(events) == 52)
    assert (reader.events[50].name, reader.events[50].data) == ("gap", {"reason": "the topic was made anew"})
    assert reader.events[51].data["key"] == "new"


def test_the_state_and_the_stream_meet_exactly(site, kafka):
    state = site.get("/state/words")
    kafka.send("words", [("after", "1")])
    reader = site.reader("words", f"?from={state['cursor']}")
    reader.read(lambda events: len(events) == 1)
    assert reader.events[0].data["key"] == "after"
    assert "after" not in state["records"]


def test_a_registry_that_is_away_stops_only_who_needs_it(site, kafka):
    site.kill(site.sink)  # so that it knows no schema yet
    wait_until(lambda: site.health().get("healthy"), "the sink is back")
    site.registry.away = True
    try:
        kafka.send("buses", [("9", avro(7, id="9", at=0, fare=b"\x01", raw=b""))])
        wait_until(lambda: any("registry" in p for p in site.health()["problems"]), "the sink says so")
        kafka.send("words", [("meanwhile", "1")])
        wait_until(lambda: "meanwhile" in site.state("words"), "other topics go on")
        assert "9" not in site.state("buses")
        kafka.send("buses", [("9", avro(7, id="9", at=1000, fare=b"\x01", raw=b""))])
    finally:
        site.registry.away = False
    wait_until(lambda: site.state("buses").get("9", {}).get("at") == "1970-01-01T00:00:01Z", "it goes on")
    wait_until(lambda: site.health().get("healthy"), "nothing is missing")


def test_a_full_redis_is_a_problem_and_nothing_is_lost(site, kafka):
    site.ask("CONFIG", "SET", "maxmemory", "1mb")
    try:
        kafka.send("words", [("full", "1")])
        wait_until(lambda: any("'maxmemory'" in p for p in site.health()["problems"]), "the sink says so")
        assert "full" not in site.state("words")
        assert site.get("/health")["healthy"]  # what is there can still be read
    finally:
        site.ask("CONFIG", "SET", "maxmemory", "64mb")
    wait_until(lambda: "full" in site.state("words"), "it is written once there is room")
    wait_until(lambda: site.health()["healthy"], "all is well")


def test_kafka_may_be_away(site, kafka):
    address = kafka.servers.partition(":")[0]
    networks = {c: c.attrs["NetworkSettings"]["Networks"].get("bridge", {}) for c in site.engine.containers.list()}
    [container] = [c for c, network in networks.items() if network.get("IPAddress") == address]
    container.pause()
    try:
        wait_until(lambda: any(p.startswith("Kafka: ") for p in site.health()["problems"]), "the sink says so")
        assert site.state("words")
    finally:
        container.unpause()
    kafka.send("words", [("unpaused", "1")])
    wait_until(lambda: "unpaused" in site.state("words"), "it goes on")
    wait_until(lambda: site.health()["healthy"], "all is well")


def test_what_is_no_longer_followed_leaves_redis(site):
    site.ask("HSET", "offsets:gone", "id", "x", "0", "1", "0:tail", "1")
    site.ask("HSET", "live:gone", "a", "1")
    site.ask("XADD", "stream:gone:0", "1-1", "a", "1")
    site.kill(site.sink)
    wait_until(lambda: site.health().get("healthy"), "the sink is back")
    assert site.ask("KEYS", "*gone*") == []
    assert site.state("words")


def test_a_client_that_takes_nothing_costs_no_memory_and_holds_nobody_up(site, kafka):
    host, port = re.search(r"//([\d.]+):(\d+)", site.url(site.server, "/")).groups()
    stalled = []
    for _ in range(20):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /stream/later?from=earliest HTTP/1.1\r\nHost: x\r\n\r\n")
        stalled.append(connection)
    wait_until(lambda: site.get("/health").get("clients") == 20, "all are connected")

    def memory():
        return int(site.server.exec_run(["sh", "-c", "grep -h VmRSS /proc/[0-9]*/status | sort -k2n | tail -1"]).output.split()[1])

    before = memory()
    reader = site.reader("later", "")
    reader.read(lambda _: bool(reader.last_id))
    kafka.send("later", [("big", json.dumps("x" * 20_000)) for _ in range(2000)])  # 40 MB: as queues for 20 clients, 800 MB
    reader.read(lambda events: len(events) == 2000)
    assert reader.events[-1].data["key"] == "big"
    assert memory() - before < 40_000, "KiB"
    for connection in stalled:
        connection.close()
    wait_until(lambda: site.get("/health").get("clients") == 0, "nobody is left")


def test_a_browser_shows_values_as_text_whatever_they_hold(site, kafka):
    attack = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    kafka.send("anew", [(attack, json.dumps({attack: attack, "__proto__": "p", "n": 1})), ("plain", "1")])
    wait_until(lambda: len(site.state("anew")) == 3, "the state is there")
    with chromium() as browser:
        browser.open(site.url(site.server, "/live/anew"))
        wait_until(lambda: len(browser.table()) == 3, "the page shows the state")
        wait_until(lambda: browser.text("#status").startswith("live"), "the page is live")
        assert attack in browser.table()
        assert attack in browser.table()[attack][1:]
        kafka.send("anew", [(f"{attack}2", json.dumps(attack)), ("plain", None), ("new", "5")])
        wait_until(lambda: browser.table().keys() == {attack, f"{attack}2", "new"}, "one goes, two come")
        assert browser.run("return document.title") == "anew, live"
        assert browser.run("return document.querySelectorAll('td *, th *, tbody script').length") == 0
        # Redis is emptied, the topic's records are the same: the page stays right
        site.ask("FLUSHALL")
        kafka.send("anew", [("newest", "6")])
        wait_until(lambda: "newest" in browser.table(), "it goes on", 30)
        browser.open(site.url(site.server, "/"))
        assert browser.run("return [...document.querySelectorAll('a')].map(a => a.innerText)") == TOPICS
