"""The guided questions, answered through a pipe as a terminal would."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from venice import connectors, wizard
from venice.connect import Connect, Option, Plugin, Verdict
from venice.connectors import Wanted
from venice.errors import InputError
from venice.sinks import Field, Values

ENTER, DOWN, SPACE, CLEAR = "\r", "\x1b[B", " ", "\x15"
VALUES = Values("bus-value", 1, (Field("id", "string"), Field("speed", "double", True), Field("at", "timestamp")))


class Cluster:
    pipeline_vars = {"postgres_host": "db", "replication_factor": 3}  # noqa: RUF012


@contextmanager
def typing(*keys: str) -> Iterator[None]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("".join(keys))
        yield


class FakeConnect:
    """A plugin with a required option, a choice, a password and one that Connect's validation asks for."""

    def __init__(self):
        self.validated: list[dict] = []

    def connectors(self) -> dict:
        return {"bus": None}

    def config(self, name: str):
        return {} if name == "bus" else None

    def plugins(self) -> list[Plugin]:
        return [Plugin("a.TableSinkConnector", "sink", "1"), Plugin("b.FileSourceConnector", "source", "2")]

    def options(self, plugin: str) -> list[Option]:
        return [
            Option("name", "STRING", True, None, "HIGH", ""),
            Option("connector.class", "STRING", True, None, "HIGH", ""),
            Option("topic", "STRING", True, None, "HIGH", "where to"),
            Option("mode", "STRING", False, "fast", "MEDIUM", ""),
            Option("pin", "PASSWORD", False, None, "LOW", ""),
            Option("size", "INT", False, "5", "LOW", ""),
        ]

    def validate(self, plugin: str, config: dict) -> list[Verdict]:
        self.validated.append(dict(config))
        options = {option.name: option for option in self.options(plugin)}
        found = [Verdict(options["mode"], config.get("mode"), (), ("fast", "slow"))]
        if config.get("size") == "x":
            found.append(Verdict(options["size"], None, ("Invalid value x for configuration size: Not a number of type INT",)))
        if "pin" not in config:
            found.append(Verdict(options["pin"], None, ("The 'pin' value is invalid: A value is required",)))
        return found


@pytest.fixture
def fake(monkeypatch) -> FakeConnect:
    found = FakeConnect()
    monkeypatch.setattr(Connect, "of", classmethod(lambda cls, cluster, timeout=0: found))
    monkeypatch.setattr(connectors, "topics", lambda cluster: ["bus", "orders"])
    monkeypatch.setattr(connectors, "topic_values", lambda cluster, topic: VALUES if topic == "bus" else None)
    monkeypatch.setattr(wizard, "on_terminal", lambda: True)
    asked: list = []
    monkeypatch.setattr(
        connectors, "for_table", lambda cluster, *choices: asked.append(choices) or Wanted({"name": choices[1], "config": {}})
    )
    found.tables = asked
    return found


def test_a_table_with_the_newest_record_of_each_key(fake):
    with typing(ENTER, ENTER, ENTER, ENTER, SPACE, ENTER, ENTER):
        wizard.run(Cluster)
    # "bus" is taken as a connector's name
    assert fake.tables == [("bus", "bus_2", "bus", "upsert", ("id",), "")]


def test_another_table_is_asked_for_when_one_does_not_fit(fake, monkeypatch):
    answers = iter([InputError("table bus exists and has no primary key"), Wanted({"name": "bus_2", "config": {}})])

    def for_table(*choices):
        fake.tables.append(choices[3:])
        answer = next(answers)
        if isinstance(answer, InputError):
            raise answer
        return answer

    monkeypatch.setattr(connectors, "for_table", for_table)
    with typing(ENTER, ENTER, ENTER, ENTER, SPACE, ENTER, ENTER, CLEAR, "other", ENTER, ENTER, SPACE, ENTER):
        assert wizard.run(Cluster).name == "bus_2"
    assert fake.tables == [("bus", "upsert", ("id",), ""), ("other", "upsert", ("id",), "")]


def test_a_table_with_every_record_of_a_topic_that_was_searched_for(fake):
    with typing(ENTER, "ord", ENTER, CLEAR, "Bad Name", ENTER, CLEAR, "history", ENTER, DOWN, ENTER, ENTER):
        wizard.run(Cluster)
    assert fake.tables == [("orders", "history", "history", "insert", (), "")]


def test_the_records_own_key_and_a_given_name(fake):
    # nothing selected among the fields; "id" is the value's, so another column
    with typing(ENTER, ENTER, ENTER, ENTER, ENTER, CLEAR, "id", ENTER, CLEAR, "k", ENTER):
        wizard.run(Cluster, "mine")
    assert fake.tables == [("bus", "mine", "bus", "upsert", (), "k")]


def test_fields_may_be_typed_when_no_schema_tells_them(fake):
    with typing(ENTER, "ord", ENTER, ENTER, ENTER, "a, b", ENTER, ENTER):
        wizard.run(Cluster)
    assert fake.tables == [("orders", "orders", "orders", "upsert", ("a", "b"), "")]


def test_a_plugin_is_asked_for_what_is_required_wrong_and_wanted(fake, capsys):
    with typing(
        *(DOWN, ENTER),  # another plugin
        *(DOWN, ENTER),  # the source
        *("files", ENTER),  # its name
        *("lines", ENTER),  # topic: required
        *("hunter2", ENTER),  # pin: Connect's validation wants it
        *("size", ENTER, CLEAR, "x", ENTER),  # more: size, wrong
        *(CLEAR, "7", ENTER),  # asked again
        *("mode", ENTER, DOWN, ENTER),  # more: mode, of the recommended ones
        *(ENTER,),  # that is all
    ):
        found = wizard.run(Cluster)
    assert found.document == {
        "name": "files",
        "config": {"connector.class": "b.FileSourceConnector", "topic": "lines", "pin": "hunter2", "size": "7", "mode": "slow"},
    }
    said = capsys.readouterr().out
    assert "pin: A value is required" in said
    assert "size: Not a number of type INT" in said
    assert "better not the password itself" in said
    wizard.summary(found)
    assert "hunter2" not in said + capsys.readouterr().out
    assert wizard.ask_file(found) is None  # nothing with a password is written
    assert fake.validated[-1]["name"] == "files"


def test_a_sink_is_asked_for_its_topics(fake):
    with typing(DOWN, ENTER, ENTER, "s", ENTER, SPACE, DOWN, SPACE, ENTER, "t", ENTER, "p", ENTER, ENTER):
        found = wizard.run(Cluster)
    assert found.document["config"]["topics"] == "bus,orders"
    assert fake.validated[0]["errors.deadletterqueue.topic.name"] == "dlq.s"


def test_ctrl_c_ends_it(fake):
    with typing("\x03"), pytest.raises(KeyboardInterrupt):
        wizard.run(Cluster)
    assert not fake.tables


def test_an_existing_name_is_refused_before_anything_is_asked(fake):
    with typing(), pytest.raises(InputError, match="bus exists already"):
        wizard.run(Cluster, "bus")


def test_without_a_terminal_the_options_are_named(monkeypatch):
    monkeypatch.setattr(wizard, "on_terminal", lambda: False)
    with pytest.raises(InputError) as error:
        wizard.run(Cluster)
    assert "--topic" in error.value.remedy
    assert error.value.exit_code == 2
