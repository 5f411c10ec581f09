"""Hazelcast on lab hosts: maps in step with topics, also when members are killed; the pipeline wikimedia's numbers."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hazelcast
import httpx
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from hazelcast.errors import HazelcastError

from tests.lab.support import ROOT, kill, on, received, sql, venice
from tests.waiting import PATIENCE, wait_until
from venice import paths
from venice.cluster import Cluster

TOPIC = "hz_check_latest"
AVRO = """{"type": "record", "name": "HzCheck", "fields": [{"name": "id", "type": "string"}, {"name": "n", "type": "long"},
  {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}"""
PIPELINE = f"""
topics:
  - {{name: {TOPIC}, partitions: 3, cleanup: compact}}
schemas:
  - {{subject: {TOPIC}-value, file: check.avsc}}
"""
WIKIMEDIA = paths.resource("pipelines") / "wikimedia"
MINUTE_MS = 60_000


def members(cluster: Cluster) -> list:
    return [i for i in cluster.instances("hazelcast") if "member" in i.ports]


@pytest.fixture(scope="module")
def client(cluster: Cluster):
    made = hazelcast.HazelcastClient(cluster_name=cluster.name, cluster_members=[i.endpoint("member") for i in members(cluster)])
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def feed(cluster: Cluster, inventory: Path, tmp_path_factory):
    """Sends records to a compacted topic of these tests, which is removed afterwards."""
    folder = tmp_path_factory.mktemp("pipelines") / "hz_check"
    folder.mkdir()
    (folder / "pipeline.yml").write_text(PIPELINE)
    (folder / "check.avsc").write_text(AVRO)
    venice("apply", str(folder), "-i", str(inventory))
    yield Feed(cluster)
    empty(folder, inventory)


def empty(folder: Path, inventory: Path) -> None:
    """Takes a pipeline away as a user does: its folder emptied (made beside the inventory), applied with --prune."""
    place = inventory.parent / "emptied" / folder.name
    place.mkdir(parents=True)
    (place / "pipeline.yml").write_text("description: emptied\n")
    venice("apply", str(place), "-i", str(inventory), "--prune", "--yes")


class Feed:
    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
        self.serialize = AvroSerializer(
            SchemaRegistryClient({"url": cluster.registry_urls[0]}), conf={"auto.register.schemas": False, "use.latest.version": True}
        )

    def send(self, keys: int, rounds: int) -> None:
        for n in range(keys * rounds):
            key = f"thing-{n % keys}"
            value = self.serialize({"id": key, "n": n, "at": 1_767_614_400_123 + n}, SerializationContext(TOPIC, MessageField.VALUE))
            self.producer.produce(TOPIC, value, key)
        assert self.producer.flush(120) == 0

    def raw(self, key: str, value: bytes | None) -> None:
        self.producer.produce(TOPIC, value, key)
        assert self.producer.flush(120) == 0

    def latest(self) -> dict[str, dict]:
        """The newest value of each key that has one, as the topic says; what can't be decoded counts as not sent."""
        found: dict[str, dict] = {}
        for key, value in records(self.cluster, TOPIC):
            if value is None:
                found.pop(key, None)
            elif value is not BAD:
                found[key] = value | {"at": value["at"].isoformat().replace("+00:00", "Z")}
        return found


BAD = object()


def records(cluster: Cluster, topic: str) -> list[tuple[str, object]]:
    """(key, decoded value) of all of a topic, of each partition in order."""
    decode = AvroDeserializer(SchemaRegistryClient({"url": cluster.registry_urls[0]}))
    consumer = Consumer(
        {"bootstrap.servers": cluster.bootstrap_servers, "group.id": "hz-check", "isolation.level": "read_committed"}
        | {"enable.auto.commit": False, "enable.partition.eof": True}
    )
    partitions = consumer.list_topics(topic, PATIENCE).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    found, left = [], len(partitions)
    while left:
        message = received(consumer, f"the rest of {topic}")
        if message.error():
            assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
            left -= 1
            continue
        value = message.value()
        found.append((message.key().decode(), decode(value, None) if value is None or value[:1] == b"\0" else BAD))
    consumer.close()
    return found


def entries(client, name: str) -> dict[str, dict] | None:
    """A map's entries; None while the cluster can't answer."""
    try:
        return {key: value.loads() for key, value in client.get_map(name).blocking().entry_set()}
    except HazelcastError:
        return None


def in_step(client, feed: Feed) -> None:
    wanted = feed.latest()
    wait_until(lambda: entries(client, TOPIC) == wanted, f"the map has the topic's {len(wanted)} keys and values")


def sink(cluster: Cluster):
    [found] = [i for i in cluster.instances("hazelcast") if "http" in i.ports]
    return found


def said(cluster: Cluster) -> str:
    """The sink's log."""
    done = on(sink(cluster).host, ["sudo", "docker", "logs", sink(cluster).container])
    return done.stdout + done.stderr


def on_each(cluster: Cluster, *words: str) -> list[str]:
    """What a command says in each member's container."""
    return [on(i.host, ["sudo", "docker", "exec", i.container, *words]).stdout.strip() for i in members(cluster)]


def all_three(cluster: Cluster) -> bool:
    return on_each(cluster, "hazelcast-health", "5701") == ["active, one of 3"] * 3


def test_members_are_one_cluster(cluster):
    wait_until(lambda: all_three(cluster), "all three are one cluster, and all entries have their copies")


def test_the_map_is_what_the_topic_says(cluster, client, feed):
    feed.send(400, 5)
    in_step(client, feed)
    assert len(entries(client, TOPIC)) == 400
    feed.raw("thing-7", None)
    wait_until(lambda: "thing-7" not in (entries(client, TOPIC) or {"thing-7"}), "the tombstone removed its key")
    feed.raw("thing-8", b"\xff\xfe")
    feed.send(20, 1)
    in_step(client, feed)
    # its key is among those sent again behind it
    assert entries(client, TOPIC)["thing-8"]["n"] == 8
    assert f"skipped {TOPIC}-" in said(cluster)

    def shown() -> dict:
        answer = httpx.get(f"http://{sink(cluster).endpoint('http')}/maps", trust_env=False, timeout=PATIENCE)
        return {item["map"]: item for item in answer.json()}[TOPIC]

    # that it is at the end is known a moment after the last record is in the map
    wait_until(lambda: shown()["in_step"], "the sink says so")
    assert (shown()["partitions"], shown()["skipped"]) == (3, 1)


def test_the_example_reads_the_map(cluster, client, feed):
    environment = os.environ | {"CLUSTER": cluster.name, "MEMBERS": members(cluster)[0].endpoint("member")}
    script = ROOT / "examples" / "hazelcast_map.py"
    argv = [sys.executable, "-W", "ignore", str(script), TOPIC, "--where", "n < 5"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["key"], line["value"]["n"]) for line in found] == [(f"thing-{n}", n) for n in range(5)]


def test_a_killed_member_takes_nothing_with_it(cluster, client, feed):
    before, logged = entries(client, TOPIC), said(cluster).count("filled from the start")
    victim = members(cluster)[1]
    kill(victim.host, victim.container)
    wait_until(lambda: entries(client, TOPIC) == before, "the others have it all")
    feed.send(50, 2)
    in_step(client, feed)
    wait_until(lambda: all_three(cluster), "Docker started it again, and it joined")
    in_step(client, feed)
    assert said(cluster).count("filled from the start") == logged


@pytest.mark.long
def test_restarted_one_by_one_they_lose_nothing(cluster, client, feed, inventory):
    feed.send(50, 2)
    in_step(client, feed)
    logged = said(cluster).count("filled from the start")
    venice("restart", "hazelcast", "-i", str(inventory))
    in_step(client, feed)
    # the last one has joined, and is given its share
    wait_until(lambda: all_three(cluster), "all entries have their copies")
    assert said(cluster).count("filled from the start") == logged


@pytest.mark.long
def test_when_all_members_were_killed_the_map_is_filled_again(cluster, client, feed):
    feed.send(50, 2)
    in_step(client, feed)
    logged = said(cluster).count("filled from the start")
    for member in members(cluster):
        kill(member.host, member.container)
    wait_until(lambda: said(cluster).count("filled from the start") > logged, "the sink begins anew")
    in_step(client, feed)
    feed.send(10, 1)
    in_step(client, feed)


# --- the pipeline wikimedia --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wikimedia(cluster, inventory):
    """The shipped pipeline, applied; afterwards removed, with all that it made."""
    venice("apply", str(WIKIMEDIA), "-i", str(inventory))
    yield WIKIMEDIA
    empty(WIKIMEDIA, inventory)
    sql(cluster, "DROP TABLE IF EXISTS wikimedia_edits_per_minute")
    sql(cluster, "DELETE FROM venice_pipelines.sql WHERE pipeline = 'wikimedia'")


def counted(cluster: Cluster) -> tuple[dict[tuple[str, int], list[int]], int]:
    """(wiki, minute in ms) -> edits, new pages, edits of bots, counted plainly from the topic; and the newest event's time."""
    found: dict[tuple[str, int], Counter] = {}
    newest = 0
    for wiki, change in records(cluster, "wikimedia_changes"):
        at = round(change["meta"]["dt"].timestamp() * 1000)
        newest = max(newest, at)
        if change["type"] in ("edit", "new"):
            numbers = found.setdefault((wiki, at // MINUTE_MS * MINUTE_MS), Counter())
            numbers.update(["edits", *["new"] * (change["type"] == "new"), *["bots"] * change["bot"]])
    return {key: [numbers[name] for name in ("edits", "new", "bots")] for key, numbers in found.items()}, newest


def table(cluster: Cluster) -> dict[tuple[str, int], list[int]]:
    """The same from PostgreSQL."""
    query = """SELECT coalesce(json_agg(json_build_array(wiki, round(extract(epoch FROM window_start) * 1000),
               edits, new_pages, bot_edits)), '[]') FROM wikimedia_edits_per_minute"""
    return {(wiki, int(start)): numbers for wiki, start, *numbers in json.loads(sql(cluster, query))}


def newest(windows: dict[tuple[str, int], list[int]]) -> dict[str, tuple]:
    return {wiki: (start, *numbers) for (wiki, start), numbers in sorted(windows.items(), key=lambda item: item[0][1])}


def milliseconds(text: str) -> int:
    from datetime import datetime

    return round(datetime.fromisoformat(text).timestamp() * 1000)


def mapped(client) -> dict[str, tuple]:
    found = entries(client, "wikimedia_latest") or {}
    return {k: (milliseconds(v["window_start"]), v["edits"], v["new_pages"], v["bot_edits"]) for k, v in found.items()}


def agree(cluster: Cluster, client) -> int:
    """Waits until table and map say what a plain count of the topic says; returns how many windows."""

    def same():
        expected, time = counted(cluster)
        # closed for a while, the newest by later events of all partitions
        expected = {key: numbers for key, numbers in expected.items() if key[1] + MINUTE_MS < time - 15_000}
        found = {key: numbers for key, numbers in table(cluster).items() if key in expected or key[1] + MINUTE_MS < time - 15_000}
        return len(expected) if found == expected and mapped(client) == newest(table(cluster)) else 0

    return wait_until(same, "table and map agree with a plain count")


def test_edits_per_wiki_per_minute_are_those_of_a_plain_count(cluster, client, wikimedia):
    assert agree(cluster, client) >= 4 * 6
    # and the topic holds what was recorded: whole minutes of the feed are minutes of the recording
    import gzip

    recorded: Counter = Counter()
    with gzip.open(ROOT / "images" / "wikimedia-feed" / "recentchange.jsonl.gz", "rt") as lines:
        for event in map(json.loads, lines):
            if event["type"] in ("edit", "new"):
                recorded[event["wiki"], milliseconds(event["meta"]["dt"]) // MINUTE_MS % 10] += 1
    found, newest_at = counted(cluster)
    first = min(start for _, start in found)
    whole = {key for key in found if first < key[1] and key[1] + MINUTE_MS < newest_at}
    assert len(whole) > 20
    assert {key: found[key][0] for key in whole} == {key: recorded[key[0], key[1] // MINUTE_MS % 10] for key in whole}


def test_a_killed_feed_goes_on_and_sends_nothing_twice(cluster, client, wikimedia):
    [player] = [i for i in cluster_with(cluster, "wikimedia") if i.name == "producer-wikimedia-feed"]
    before = max(change["id"] for _, change in records(cluster, "wikimedia_changes"))
    kill(player.host, player.container)
    wait_until(lambda: max(c["id"] for _, c in records(cluster, "wikimedia_changes")) > before + 40, "it goes on")
    ids = sorted(change["id"] for _, change in records(cluster, "wikimedia_changes"))
    assert ids == list(range(ids[0], ids[-1] + 1))
    agree(cluster, client)


def cluster_with(cluster: Cluster, pipeline: str):
    """The producers as they are with one more pipeline."""
    return Cluster.load(cluster.inventory_dir, {"venice_pipelines": ["bus_locations", pipeline]}).instances("producer")
