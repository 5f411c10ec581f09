"""`config show`, `inventory show`, `open`, `completion`: what they find in an inventory, without any host."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner

from tests.lab.support import from_json
from tests.waiting import PATIENCE
from venice import completion, config, paths, web
from venice.cli import cli
from venice.cluster import Cluster
from venice.errors import InputError, UnreachableError
from venice.overview import overview

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(paths.resource("inventory") / "lab", tmp_path / "inventory" / "lab", ignore=shutil.ignore_patterns(".venice"))
    return Path("inventory/lab")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.output


# ---- config ---------------------------------------------------------------------------------------------------------


def test_config_shows_equal_files_once_and_different_ones_apart(place):
    found = config.show(Cluster.load(place), "connect")
    assert [(f.name, [p.host for p in f.places]) for f in found.files] == [
        ("connect.properties", ["lab-2"]),
        ("connect.properties", ["lab-3"]),
        ("secrets.properties", ["lab-2", "lab-3"]),
    ]
    assert "rest.advertised.host.name=192.168.61.12" in found.files[0].content
    assert found.files[0].places[0].path == "/etc/venice/connect/connect.properties"
    [environment] = found.environments
    assert environment.values == {"CONNECT_HEAP": "512m"}
    assert [f.places[0].host for f in config.show(Cluster.load(place), "connect@lab-3").files] == ["lab-3", "lab-3"]


def test_config_shows_no_secret_of_any_component(place):
    """The generated passwords, and one that the operator set and used in an open file."""
    with (place / "group_vars" / "all.yml").open("a") as file:
        file.write("truststore_password: hunter2hunter2\n")
        file.write("connect_settings: {ssl.truststore.password: '{{ truststore_password }}', note: 'it is {{ truststore_password }}!'}\n")
        file.write("kafka_settings: {ssl.keystore.password: opensesame}\n")
    cluster = Cluster.load(place)
    shown = json.dumps(config.show(cluster, "all").to_dict())
    secrets = [str(cluster.var("lab-3", name)) for name in ("postgres_password", "postgres_replication_password", "truststore_password")]
    rendered = json.dumps([cluster.desired(host) for host in cluster.hosts])
    assert all(secret in rendered for secret in [*secrets, "opensesame"])
    assert not [secret for secret in [*secrets, "opensesame"] if secret in shown]
    files = {f.name: f.content for f in config.show(cluster, "all").files}
    assert "postgres_password=********" in files["secrets.properties"]
    assert "note=it is ********!" in files["connect.properties"]
    assert "password_encryption = scram-sha-256" in files["postgresql.conf"]


def test_config_through_the_command_line(place):
    text = run("config", "show", "schema-registry", "-i", "lab")
    assert "==> lab-2: container venice-schema-registry\n==> lab-3: container venice-schema-registry (environment)\n" in text
    found = from_json(run("config", "show", "kafka", "-i", "lab", "--json"), "config-show")
    assert {f["name"] for f in found["files"]} == {"server.properties", "format.env"}


def test_config_of_the_unknown_suggests(place):
    with pytest.raises(InputError) as caught:
        config.show(Cluster.load(place), "conect")
    assert "did you mean connect?" in caught.value.remedy


# ---- inventory ------------------------------------------------------------------------------------------------------


def test_inventory_shows_who_runs_where(place):
    found = overview(Cluster.load(place))
    assert found.cluster == "lab"
    assert found.inventory == "inventory/lab/hosts.yml"
    assert [p["name"] for p in found.pipelines] == ["canary", "bus_locations"]
    assert found.registry_urls == ["http://192.168.61.12:8081", "http://192.168.61.13:8081"]
    names = [c.name for c in found.components]
    assert names.index("kafka") < names.index("schema_registry") < names.index("connect")
    assert next(h for h in found.hosts if h.name == "lab-3").components == ["kafka", "schema_registry", "postgres", "connect", "flink"]
    from_json(run("inventory", "show", "-i", "lab", "--json"), "inventory-show")


def test_inventory_fits_80_columns(place, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr("venice.cli._output.console", lambda: Console(width=80, highlight=False))
    text = run("inventory", "show", "-i", "lab")
    assert max(map(len, text.splitlines())) <= 80
    assert "client 192.168.61.13:9092" in text


def test_an_inventory_with_one_component_only(tmp_path, monkeypatch):
    (tmp_path / "db.yml").write_text(
        "all:\n  hosts:\n    a:\n      ansible_host: 10.0.0.1\n  children:\n    postgres:\n      hosts:\n        a:\n"
    )
    monkeypatch.chdir(tmp_path)
    found = from_json(run("inventory", "show", "-i", "db.yml", "--json"), "inventory-show")
    assert (found["bootstrap_servers"], found["connect_urls"], found["pipelines"]) == ([], [], [])
    assert "db.yml" in run("inventory", "show", "-i", "db.yml")


# ---- open -----------------------------------------------------------------------------------------------------------


def test_open_finds_pages_by_name_component_and_host(place):
    cluster = Cluster.load(place)
    assert [p.host for p in web.find(cluster, "registry")] == ["lab-2", "lab-3"]
    assert web.find(cluster, "schema_registry") == web.find(cluster, "registry")
    assert [p.url for p in web.find(cluster, "connect@lab-3")] == ["http://192.168.61.13:8083/connectors?expand=status"]
    assert {"registry", "connect"} <= {p["name"] for p in from_json(run("open", "-i", "lab", "--json"), "open")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "there is no 'nonsense' to open"),
        ("connect@lab-1", "connect does not run on lab-1"),
        ("postgres", "no 'postgres' to open"),
    ],
)
def test_open_of_what_is_not_there_says_what_is(place, name, message):
    with pytest.raises(InputError) as caught:
        web.find(Cluster.load(place), name)
    assert message in caught.value.message


def test_open_of_a_component_without_hosts_says_how_to_add_it(tmp_path, monkeypatch):
    (tmp_path / "db.yml").write_text(
        "all:\n  hosts:\n    a:\n      ansible_host: 10.0.0.1\n  children:\n    postgres:\n      hosts:\n        a:\n"
    )
    with pytest.raises(InputError) as caught:
        web.find(Cluster.load(tmp_path / "db.yml"), "registry")
    assert "`venice install schema_registry`" in caught.value.remedy


def test_open_names_every_instance_that_does_not_answer():
    pages = [web.Page("connect", "connect", "connect", f"h{n}", f"http://127.0.0.1:{n}/") for n in (1, 2)]
    with pytest.raises(UnreachableError) as caught:
        web.answering(pages)
    assert "connect on h1 (http://127.0.0.1:1/)" in caught.value.message
    assert "connect on h2 (http://127.0.0.1:2/)" in caught.value.message


def test_open_starts_a_browser_only_where_one_can_be_seen(place, monkeypatch):
    opened = []
    monkeypatch.setattr("click.launch", opened.append)
    monkeypatch.setattr(web, "answering", lambda found: found[0])
    monkeypatch.setenv("DISPLAY", ":0")
    assert run("open", "connect", "-i", "lab") == "http://192.168.61.12:8083/connectors?expand=status\n"
    assert opened == []  # output is no terminal
    monkeypatch.setattr("venice.cli.open._has_display", lambda: True)
    run("open", "connect", "--print", "-i", "lab")
    assert opened == []
    run("open", "connect", "-i", "lab")
    assert opened == ["http://192.168.61.12:8083/connectors?expand=status"]


# ---- completion -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bash(place, tmp_path) -> pexpect.spawn:
    """An interactive bash that has evaluated the script, in a folder with an inventory."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "venice"
    call = "import sys; sys.argv[0] = 'venice'; from venice.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{call}" "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PS1": "$ ", "TERM": "dumb"}
    shell = pexpect.spawn("bash --norc --noprofile -i", env=environment, encoding="utf8", timeout=PATIENCE, dimensions=(40, 120))
    shell.expect_exact("$ ")
    shell.sendline('bind "set enable-bracketed-paste off"; eval "$(venice completion bash)"; echo rea""dy')
    shell.expect_exact("ready")
    shell.expect_exact("$ ")
    yield shell
    shell.close(force=True)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("venice inst", "venice install "),
        ("venice -st --js", "venice -st --json "),
        ("venice status -i sing", "venice status -i single "),
        ("venice install bus_l", "venice install bus_locations "),
        ("venice install connect -i lab --hosts lab-1,lab-2,", "venice install connect -i lab --hosts lab-1,lab-2,lab-3 "),
        ("venice config show -i lab schema", "venice config show -i lab schema-registry "),
        ("venice config show -i lab schema-registry@lab-2", "venice config show -i lab schema-registry@lab-2 "),
        ("venice open -i lab regi", "venice open -i lab registry "),
        ("venice install ./inv", "venice install ./inventory/"),
    ],
)
def test_bash_completes(bash, typed, completed):
    bash.send(typed + "\t")
    bash.expect_exact(completed)


def test_completion_never_creates_or_asks(place, tmp_path):
    """A shipped inventory is copied when it is used, not when its name is completed."""
    shutil.rmtree(place)
    environment = os.environ | {"_VENICE_COMPLETE": "bash_complete", "COMP_WORDS": "venice config show -i single ", "COMP_CWORD": "5"}
    call = "import sys; sys.argv[0] = 'venice'; from venice.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", call], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert not (tmp_path / "inventory" / "single").exists()


def test_completion_knows_the_components_that_the_model_knows():
    from venice.cluster import component_groups

    assert completion.components() == sorted(component_groups())


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "all: 1\n", "", "all:\n  hosts: [a]\n"])
def test_completion_of_a_broken_inventory_is_silent(tmp_path, text):
    (tmp_path / "x.yml").write_text(text)
    assert isinstance(completion.groups(str(tmp_path / "x.yml")), dict)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_printed(shell):
    text = run("completion", shell)
    assert f"_VENICE_COMPLETE={shell}_complete" in text
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0
