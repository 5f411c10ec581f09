"""Redis and live state on lab hosts: the buses as Kafka has them, as Redis has them, as a client gets them, as Chromium shows them."""

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer

from tests.browser import chromium
from tests.lab.support import all_healthy, kill, on, received, venice
from tests.sse import Reader
from tests.waiting import PATIENCE, wait_until
from venice import formats
from venice.cluster import Cluster

TOPIC, BUSES = "bus_locations", 12
COMPONENTS = ("redis", "live")


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    """Where the server is."""
    return venice("open", "live", "--print", "-i", str(cluster.inventory_dir)).strip().rstrip("/")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def killed(cluster: Cluster, name: str) -> None:
    """kill -9 of an instance's first process; returns once Docker has started it again."""
    [instance] = [i for i in cluster.instances() if i.name == name]

    def inspect(what: str) -> str:
        return on(instance.host, ["sudo", "docker", "inspect", "-f", what, instance.container]).stdout.strip()

    started = inspect("{{.State.StartedAt}}")
    kill(instance.host, instance.container)
    wait_until(lambda: inspect("{{.State.Running}}") == "true" and inspect("{{.State.StartedAt}}") != started, f"{name} runs")


def whole(cluster: Cluster) -> bool:
    """Whether Redis, sink and server are healthy."""
    return all_healthy(cluster.inventory_dir, [(i.name, i.host) for c in COMPONENTS for i in cluster.instances(c)])


def ask(url: str, path: str) -> dict:
    """JSON of an answer; empty when there is none, or no good one."""
    try:
        answer = httpx.get(url + path, timeout=PATIENCE, trust_env=False)
        return answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}


def places(cursor: str) -> dict[int, int]:
    """Partition -> offset of a cursor."""
    pairs = (pair.split(":") for pair in cursor.partition("@")[0].split(","))
    return {int(partition): int(offset) for partition, offset in pairs}


def newest(cluster: Cluster, until: dict[int, int]) -> dict[str, dict]:
    """Key -> value of the newest records up to these offsets, as Kafka has them."""
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "live.test", "enable.auto.commit": False})
    decode = AvroDeserializer(SchemaRegistryClient({"url": cluster.registry_urls[0]}))
    found = {}
    left = {p: offset for p, offset in until.items() if offset >= 0}
    # each bus reports every second: these hold every key
    consumer.assign([TopicPartition(TOPIC, p, max(0, offset - 500)) for p, offset in left.items()])
    while left:
        message = received(consumer, f"the records up to {left}")
        assert not message.error(), (message.error(), left)
        if message.offset() <= until[message.partition()]:
            found[message.key().decode()] = message.value()
        if message.offset() >= until[message.partition()]:
            left.pop(message.partition(), None)
    consumer.close()
    return {key: formats.plain(decode(value, None)) for key, value in found.items()}


def test_they_are_part_of_the_cluster_and_the_password_is_nowhere(cluster, url):
    wait_until(lambda: whole(cluster), "Redis, sink and server are healthy")
    password = cluster.generated_secrets()["redis_password"]
    for instance in (i for c in COMPONENTS for i in cluster.instances(c)):
        for question in (["inspect"], ["top"], ["logs"]):
            shown = on(instance.host, ["sudo", "docker", *question, instance.container])
            assert shown.returncode == 0
            assert password not in shown.stdout + shown.stderr


def test_the_state_is_the_newest_of_each_bus_in_kafka(cluster, url):
    state = wait_until(lambda: len((found := ask(url, f"/state/{TOPIC}")).get("records", {})) == BUSES and found, "all buses")
    assert state["records"] == newest(cluster, places(state["cursor"]))


def test_kills_lose_and_repeat_nothing(cluster, url):
    """A client comes back with the last id it has; sink, Redis and server are killed meanwhile."""
    reader = Reader(f"{url}/stream/{TOPIC}")
    reader.read(lambda _: bool(reader.last_id))
    begin = places(reader.last_id)
    for name in ("live-sink", "redis", "live", "redis", "live-sink"):
        have = len(reader.events)
        while len(reader.events) < have + BUSES:
            wait_until(lambda: ask(url, "/health"), "the server answers")
            reader.read(lambda events, have=have: len(events) >= have + BUSES)
        killed(cluster, name)
    have = len(reader.events)
    while len(reader.events) < have + BUSES:
        wait_until(lambda: ask(url, "/health"), "the server answers")
        reader.read(lambda events, have=have: len(events) >= have + BUSES)
    end = places(reader.last_id)
    assert {event.name for event in reader.events} == {"message"}
    # nobody else writes to this topic, and in no transaction: there is a record for every offset
    assert sorted(reader.places) == [(p, offset) for p in sorted(end) for offset in range(begin[p] + 1, end[p] + 1)]
    state = ask(url, f"/state/{TOPIC}")
    assert state["records"] == newest(cluster, places(state["cursor"]))
    wait_until(lambda: whole(cluster), "all is healthy again")


def test_chromium_shows_live_buses_and_goes_on_after_a_restart(cluster, url, browser):
    browser.open(f"{url}/live/{TOPIC}")
    wait_until(lambda: len(browser.table()) == BUSES, "a row for each bus")
    columns = browser.run("return [...document.querySelectorAll('th')].map(cell => cell.innerText)")
    assert columns[0] == "key"
    assert {"line", "latitude", "longitude", "speed_kmh", "recorded_at"} <= set(columns)
    at = columns.index("recorded_at")

    def times() -> dict[str, str]:
        return {key: row[at] for key, row in browser.table().items()}

    first = times()
    wait_until(lambda: all(times()[key] > first[key] for key in first), "every bus has moved on")
    venice("restart", "live", "-i", str(cluster.inventory_dir))
    later = times()
    wait_until(lambda: all(times()[key] > later[key] for key in later), "the same page goes on")
    assert browser.text("#status").startswith("live")
    assert browser.table().keys() == first.keys()
    # the page has what the server has, not only something that moves
    state = ask(url, f"/state/{TOPIC}")["records"]
    wait_until(lambda: all(times()[key] >= state[key]["recorded_at"] for key in state), "the page has all that the state had")


@pytest.mark.long
def test_what_does_not_exist_is_a_finding(cluster, inventory, url):
    """A sink that is to follow a topic that nobody has is not well, and says why; the others go on."""
    variables = inventory / "group_vars" / "all.yml"
    text = variables.read_text()
    variables.write_text(text.replace(f"live_topics:\n- {TOPIC}\n", f"live_topics: [{TOPIC}, nobody]\nvenice_wait_timeout: 20\n"))
    try:
        said = venice("deploy", "-i", str(inventory), expect=1)
        assert "topic nobody does not exist" in said
        before = ask(url, f"/state/{TOPIC}")["cursor"]
        wait_until(lambda: ask(url, f"/state/{TOPIC}").get("cursor") != before, "the buses go on")
    finally:
        variables.write_text(text)
    venice("deploy", "-i", str(inventory))
