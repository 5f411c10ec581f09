"""The command line itself: help, endings, laziness."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tests.waiting import PATIENCE
from venice import paths
from venice.cli import cli
from venice.records import Record

COMMANDS = [
    "apply",
    "completion",
    "config",
    "connectors",
    "data",
    "deploy",
    "destroy",
    "diff",
    "dlq",
    "down",
    "exec",
    "groups",
    "history",
    "images",
    "install",
    "inventory",
    "ksql",
    "lab",
    "logs",
    "open",
    "pipelines",
    "plan",
    "psql",
    "restart",
    "schemas",
    "smoke",
    "sql",
    "status",
    "support-bundle",
    "topics",
    "up",
    "verify",
]


def venice(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "venice", *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE, **options
    )


def test_help_names_every_command():
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    listed = result.output.split("Commands:")[1].split("Short forms:")[0]
    assert re.findall(r"^  (\S+)", listed, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each(command):
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 100


def test_help_loads_neither_ansible_nor_kafka():
    """That is what makes it quick."""
    program = "import sys\nfrom venice.cli import cli\ntry: cli(['--help'])\nexcept SystemExit: pass\n"
    program += "print([m for m in ('ansible', 'ansible_runner', 'confluent_kafka', 'docker', 'paramiko', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_model_loads_no_docker():
    """It needs the images' tags only; every command makes it, and Docker's library takes a fifth of a second."""
    program = "import sys, venice.cluster, venice.shipping; print([m for m in ('docker', 'requests') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_wrong_inventory_is_one_message_and_exit_code_2(tmp_path):
    done = venice("deploy", "--inventory", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no inventory 'nowhere'" in done.stderr
    assert "Traceback" not in done.stderr


def test_shipped_inventory_is_copied_before_it_is_used(tmp_path):
    """Secrets are kept beside the inventory, so it must not be the installed package's own."""
    done = venice("history", "--inventory", "single", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "inventory" / "single" / "hosts.yml").exists()


def test_history_of_an_unknown_run(tmp_path):
    done = venice("history", "--inventory", "single", "20990101", cwd=tmp_path)
    assert done.returncode == 2
    assert "no run" in done.stderr


def test_history_lists_and_shows_runs(tmp_path):
    venice("history", "--inventory", "single", cwd=tmp_path)
    record = Record.start("deploy", "single", tmp_path, None, ["kafka_port"])
    record.outcome, record.exit_code, record.differences = (
        "changed",
        0,
        [{"host": "lab-1", "container": "venice-kafka-1", "action": "create"}],
    )
    record.save(tmp_path / "inventory" / "single" / ".venice" / "single")
    assert record.id in venice("history", "--inventory", "single", cwd=tmp_path).stdout
    shown = venice("history", "--inventory", "single", "last", cwd=tmp_path).stdout
    assert "venice-kafka-1" in shown
    assert "kafka_port" in shown


def test_images_ship_plays_the_playbook_of_images(tmp_path, monkeypatch):
    played = []

    def play(command, options, console):
        played.append((command, options.limit))
        return SimpleNamespace(exit_code=3)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("venice.actions.play", play)
    result = CliRunner().invoke(cli, ["images", "ship", "--inventory", "single", "--limit", "one"])
    assert result.exit_code == 3, result.output
    assert played == [("images", "one")]
    assert (paths.resource("playbooks") / "images.yml").exists()


def test_destroy_names_and_asks(tmp_path):
    done = venice("destroy", "--inventory", "single", cwd=tmp_path, input="n\n")
    assert done.returncode == 130
    assert "/srv/venice/postgres" in done.stdout
    assert "Remove all this?" in done.stdout
