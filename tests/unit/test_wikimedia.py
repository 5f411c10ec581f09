"""The feed player of the pipeline wikimedia: the recording, its laps, and where it goes on."""

import gzip
import importlib.util
import io
import json
from collections import Counter

import fastavro
import pytest
import yaml

from venice import paths
from venice.cluster import Cluster

IMAGE = paths.resource("images") / "wikimedia-feed"
PIPELINE = paths.resource("pipelines") / "wikimedia"


def module(name):
    spec = importlib.util.spec_from_file_location(f"wikimedia_{name}", IMAGE / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def player():
    return module("player")


@pytest.fixture(scope="module")
def recording(player):
    return player.Recording.read(player.RECORDING, 1)


def test_the_recording_is_what_its_maker_makes():
    with gzip.open(IMAGE / "recentchange.jsonl.gz", "rt") as lines:
        assert [json.loads(line) for line in lines] == list(module("record").events())


def test_changes_have_the_feed_s_form(recording):
    for event in recording.events:
        assert event["$schema"] == "/mediawiki/recentchange/1.0.0"
        assert event["meta"]["stream"] == "mediawiki.recentchange"
        assert event["meta"]["domain"] == event["server_name"]
        assert ("revision" in event) == ("length" in event) == (event["type"] in ("edit", "new"))
    kinds = Counter(event["type"] for event in recording.events)
    assert set(kinds) == {"edit", "new", "log", "categorize"}
    assert len({event["meta"]["id"] for event in recording.events}) == len(recording.events) == 2400
    assert recording.length == 600_000


def test_each_number_is_one_change_and_none_comes_before_the_last(recording):
    first = recording.next(1_800_000_000_000)
    laps = range(first, first + 5000)
    changes = [recording.change(number) for number in laps]
    assert len({change["meta"]["id"] for change in changes}) == len({change["meta"]["request_id"] for change in changes}) == 5000
    times = [change["meta"]["dt"] for change in changes]
    assert times == sorted(times)
    assert times[0] >= 1_800_000_000_000 > recording.time(first - 1)
    assert recording.change(first) == changes[0]
    assert changes[2400]["meta"]["dt"] - changes[0]["meta"]["dt"] == 600_000
    revisions = [change["revision"]["new"] for change in changes if change["revision"]]
    assert len(set(revisions)) == len(revisions)


def test_a_faster_feed_has_the_same_changes_closer_together(player, recording):
    fast = player.Recording(recording.events, 10)
    number = fast.next(1_800_000_000_000)
    assert fast.time(number + 2400) - fast.time(number) == 60_000
    assert fast.time(number - 1) < 1_800_000_000_000 <= fast.time(number)


def test_changes_fit_the_topic_s_schema(recording):
    schema = fastavro.parse_schema(json.loads((PIPELINE / "schemas" / "change.avsc").read_text()))
    for number in range(7_000_000_000, 7_000_002_400):
        out = io.BytesIO()
        change = recording.change(number)
        fastavro.schemaless_writer(out, schema, change)
        out.seek(0)
        found = fastavro.schemaless_reader(out, schema)
        assert (found["id"], found["wiki"], found["length"] is None) == (number, change["wiki"], "length" not in change)


NOW = 1_800_000_000_000


def test_an_empty_topic_begins_with_the_last_minutes(player, recording):
    begin, already = player.start(recording, [[], []], NOW, 300_000)
    assert begin == recording.next(NOW - 300_000)
    assert not already


def test_what_was_sent_is_not_sent_again_and_what_was_not_is(player, recording):
    now = recording.next(NOW)
    sent = [[now - 9, now - 6, now - 3], [now - 8, now - 2, now - 1], []]
    begin, already = player.start(recording, sent, NOW, 300_000)
    assert [n for n in range(begin, now) if n not in already] == []
    sent[0].pop()  # its partition's leader was away when the player was killed
    begin, already = player.start(recording, sent, NOW, 300_000)
    assert [n for n in range(begin, now) if n not in already] == [now - 5, now - 4, now - 3]


def test_after_a_long_time_it_goes_on_a_lap_back(player, recording):
    now = recording.next(NOW)
    begin, already = player.start(recording, [[now - 900_000]], NOW, 300_000)
    assert (begin, already) == (now - 2400, set())


def test_numbers_of_a_faster_feed_are_no_reason_to_wait(player, recording):
    now = recording.next(NOW)
    begin, _ = player.start(recording, [[now * 10]], NOW, 0)
    assert begin == now
    assert player.start(recording, [[now - 1, now * 10]], NOW, 0)[0] == now - 1


@pytest.mark.parametrize(("name", "value"), [("SPEED", "fast"), ("SPEED", "0"), ("SPEED", "nan"), ("HISTORY_SECONDS", "-1")])
def test_what_is_no_number_is_said_in_one_line(player, monkeypatch, capsys, name, value):
    monkeypatch.setattr("sys.argv", ["player.py"])
    monkeypatch.setenv(name, value)
    assert player.main() == 2
    assert capsys.readouterr().out.startswith("SPEED and HISTORY_SECONDS are numbers: ")


def test_the_pipeline_names_an_image_of_venices_own(tmp_path):
    groups = {key: {"hosts": {"a": {"ansible_host": "192.0.2.1"}}} for key in ("kafka", "schema_registry", "producer")}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(groups))
    cluster = Cluster.load(tmp_path, {"venice_pipelines": ["wikimedia"]})
    [container] = [c for c in cluster.desired("a")["containers"] if c["instance"] == "producer-wikimedia-feed"]
    from venice.images import refs

    assert container["image"] == refs()["wikimedia-feed"]
    assert container["env"]["SPEED"] == "1"


def test_the_sql_has_the_text_of_the_schema():
    sql = (PIPELINE / "sql" / "flink.sql").read_text()
    wanted = json.loads((PIPELINE / "schemas" / "edits.avsc").read_text())
    texts = [part.split("',\n", 1)[0].replace("''", "'") for part in sql.split("'value.avro-confluent.schema' = '")[1:]]
    assert [json.loads(text) for text in texts] == [wanted, wanted]
