"""When a bundle is made by itself, that it never stands in the way, and what of a host's answer goes into it."""

import io
import json
import tarfile
import threading
from pathlib import Path

import pytest
from rich.console import Console

from venice import actions, support
from venice.cluster import Cluster
from venice.errors import InputError, UnreachableError
from venice.masking import MASK
from venice.records import Record
from venice.runner import Options

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lab(tmp_path) -> Cluster:
    found = Cluster.load(ROOT / "inventory" / "lab", {"postgres_password": "chosen-by-hand", "producer_api_key": "k-123456789"})
    found.state_dir = tmp_path / "state"
    return found


def record(outcome: str, code: int) -> Record:
    return Record("1", "deploy", "lab", "inventory/lab", "now", "me", None, [], outcome=outcome, exit_code=code)


def run(monkeypatch, lab: Cluster, ended: Record, command: str = "deploy", bundle=None) -> str:
    """What is printed when a run ends like this."""
    out = io.StringIO()
    monkeypatch.setattr(actions.runner, "run", lambda *_: ended)
    monkeypatch.setattr(support, "automatic", bundle or (lambda _: pytest.fail("no bundle was to be made")))
    returned = actions._run(command, command, Options(ROOT / "inventory" / "lab"), Console(file=out, width=80), lab)
    assert returned is ended
    return out.getvalue()


@pytest.mark.parametrize(("outcome", "code"), [("changed", 0), ("unchanged", 0), ("failed", 2), ("interrupted", 130)])
def test_no_bundle_without_a_failure_on_a_host(monkeypatch, lab, outcome, code):
    assert "bundle" not in run(monkeypatch, lab, record(outcome, code))


def test_no_bundle_for_what_only_looks_or_removes(monkeypatch, lab):
    for command in ("plan", "down", "destroy"):
        assert "bundle" not in run(monkeypatch, lab, record("failed", 1), command)


@pytest.mark.parametrize("command", ["deploy", "up", "restart"])
def test_a_failure_names_its_bundle(monkeypatch, lab, tmp_path, command):
    path = tmp_path / "b.tar.gz"
    path.write_bytes(b"x" * 2000)
    bundle = support.Bundle(path, "lab", "now", 1.0)
    assert f"{path} (2 kB, without secrets)" in run(monkeypatch, lab, record("failed", 1), command, lambda _: bundle)


@pytest.mark.parametrize("trouble", [OSError("No space left on device"), InputError("secrets.yml is encrypted"), RuntimeError("x")])
def test_a_bundle_that_fails_hides_nothing(monkeypatch, lab, trouble):
    def fail(_):
        raise trouble

    assert f"no support bundle could be made: {trouble}" in run(monkeypatch, lab, record("failed", 1), bundle=fail)


def test_ctrl_c_leaves_the_bundle_out(monkeypatch, lab):
    def interrupted(_):
        raise KeyboardInterrupt

    assert "no support bundle was made" in run(monkeypatch, lab, record("failed", 3), bundle=interrupted)


def test_what_does_not_answer_in_time_is_missing():
    never = threading.Event()

    def refused():
        raise UnreachableError("lab-2: no answer")

    found, missing = support._gather({"a": lambda: 1, "b": refused, "c": never.wait, "d": lambda: {}["x"]}, 0.2)
    assert found == {"a": 1}
    assert missing == {"b": "lab-2: no answer", "c": "no answer within 0.2 s", "d": "KeyError: 'x'"}


def test_a_host_s_answer_is_masked(monkeypatch, lab, tmp_path):
    """Values of variables, of secret files that only the host has, of connectors, of environments."""
    probed = {
        "commands": {"uptime": "up since yesterday", "docker info": None},
        "files": {
            "/etc/venice/kafka/server.properties": {"mode": "0440", "text": "node.id=1\nssl.key.password=in-a-file\n"},
            "/etc/venice/old/secrets.properties": {"mode": "0400", "text": "db_password=from-before\nuser=me\n"},
        },
        "containers": [{"Name": "/x", "Config": {"Env": ["BUSES=12", "PATH=/bin"], "Labels": {"venice.component": "producer"}}}],
        "logs": {"venice-kafka": "refused chosen-by-hand, from-before, sink-pw and k-123456789", "gone": None},
        "missing": {"docker info": "TimeoutExpired"},
    }
    connectors = {
        "x": {"info": {"config": {"connection.password": "sink-pw", "ref.password": "${file:/a:b}"}}, "status": {"trace": "sink-pw"}}
    }
    monkeypatch.setattr(support, "_questions", lambda _: {"hosts/lab-1": lambda: probed, "connectors.json": lambda: connectors})
    bundle = support.make(lab, tmp_path / "b.tar.gz")
    with tarfile.open(bundle.path) as archive:
        files = {m.name.split("/", 1)[1]: archive.extractfile(m).read().decode() for m in archive.getmembers()}
    for secret in ("chosen-by-hand", "in-a-file", "from-before", "sink-pw", "k-123456789"):
        assert not [name for name, text in files.items() if secret in text], secret
    assert files["hosts/lab-1/logs/venice-kafka.log"] == f"refused {MASK}, {MASK}, {MASK} and {MASK}"
    assert files["hosts/lab-1/config/old/secrets.properties"] == f"db_password={MASK}\nuser={MASK}\n"
    assert "node.id=1" in files["hosts/lab-1/config/kafka/server.properties"]
    assert json.loads(files["hosts/lab-1/containers.json"])[0]["Config"]["Env"] == [f"BUSES={MASK}", "PATH=/bin"]
    assert json.loads(files["connectors.json"])["x"]["info"]["config"]["ref.password"] == "${file:/a:b}"
    assert bundle.missing == [{"what": "hosts/lab-1: docker info", "why": "TimeoutExpired"}]
    assert bundle.path.stat().st_mode & 0o777 == 0o600
    # what the inventory says is there for all hosts, answer or not
    assert {"hosts/lab-1/desired.json", "hosts/lab-3/desired.json"} <= set(files)


def test_a_file_that_is_there_is_kept(lab, tmp_path):
    (tmp_path / "b.tar.gz").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        support.make(lab, tmp_path / "b.tar.gz")
    with pytest.raises(InputError, match="is no folder"):
        support.make(lab, tmp_path / "none" / "b.tar.gz")
    assert (tmp_path / "b.tar.gz").read_text() == "mine"
