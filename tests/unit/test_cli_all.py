"""The command line as a whole: what holds for every command, found by walking over all there are."""

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from venice.cli import ALIASES, cli, main

HEAVY = (
    "ansible",
    "ansible_runner",
    "avro",
    "confluent_kafka",
    "docker",
    "fastavro",
    "google.protobuf",
    "grpc_tools",
    "httpx",
    "jinja2",
    "jsonschema",
    "paramiko",
    "prompt_toolkit",
    "psycopg",
    "questionary",
    "requests",
    "rich",
    "yaml",
)


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and subcommand with the words that call it."""
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield (*path, name), found


ALL = dict(commands())
LEAVES = {path: found for path, found in ALL.items() if not isinstance(found, click.Group) or found.invoke_without_command}
# without an inventory: nothing of a cluster is in them
ASK_NO_CLUSTER = {("completion",), ("images", "build"), ("images", "list")}

# `venice lab ssh lab-1 ls -l`: the options are the other command's
OTHERS_OPTIONS = {p for p, c in ALL.items() if any(x.type is click.UNPROCESSED for x in c.params)}


def value(parameter: click.Parameter, folder) -> str:
    """Something that a parameter's type takes."""
    if isinstance(parameter.type, click.Choice):
        return str(next(iter(parameter.type.choices)))
    if isinstance(parameter.type, click.Path | click.File):
        file = folder / "given.json"
        file.write_text("{}")
        return str(file)
    return "1" if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType) else "x"


def words(path: tuple[str, ...], found: click.Command, folder, *options: str) -> list[str]:
    """A call of the command with these options and all that it must have."""
    given = [*path, *options]
    for parameter in found.params:
        if parameter.required:
            given += [value(parameter, folder)] if isinstance(parameter, click.Argument) else [parameter.opts[-1], value(parameter, folder)]
    return given


def called(arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, output and errors of `venice ARGUMENTS`, through its real entry point."""
    monkeypatch.setattr(sys, "argv", ["venice", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_fits_and_says_what_it_does(path):
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 100
    assert ALL[path].help, "no docstring"
    undescribed = [p.name for p in ALL[path].params if isinstance(p, click.Option) and not p.help]
    assert not undescribed


def test_no_help_loads_a_library_that_takes_its_time():
    """One process asks all, one after the other: the first that loads one is named."""
    program = (
        "import json, sys\n"
        "from click.testing import CliRunner\n"
        "from venice.cli import cli\n"
        "paths, heavy = json.loads(sys.argv[1])\n"
        "for path in paths:\n"
        "    assert CliRunner().invoke(cli, [*path, '--help']).exit_code == 0, path\n"
        "    loaded = [name for name in heavy if name in sys.modules]\n"
        "    assert not loaded, f'venice {\" \".join(path)} --help loads {loaded}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([[list(path) for path in ALL], HEAVY])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", [p for p in LEAVES if p[:1] != ("lab",) and p not in ASK_NO_CLUSTER], ids=" ".join)
def test_an_inventory_that_is_not_there_is_one_message(path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = called(words(path, LEAVES[path], tmp_path, "-i", "nowhere"), monkeypatch, capsys)
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 2
    assert err.splitlines()[0] == "error: there is no inventory 'nowhere', as a path or as inventory/nowhere"
    assert "known: lab, single" in err
    assert not list(tmp_path.glob("inventory"))


@pytest.mark.parametrize("path", [p for p in LEAVES if p[:1] != ("lab",) and p not in ASK_NO_CLUSTER], ids=" ".join)
def test_an_inventory_that_can_not_be_read_is_one_message(path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yml").write_text("all:\n  hosts: [a\n")
    code, _, err = called(words(path, LEAVES[path], tmp_path, "-i", "broken.yml"), monkeypatch, capsys)
    assert code == 2, err
    assert len(err.splitlines()) == 2
    assert err.startswith("error: broken.yml:3: YAML parsing failed")


@pytest.mark.parametrize("path", [p for p, c in ALL.items() if p not in OTHERS_OPTIONS], ids=" ".join)
def test_unknown_options_are_one_message(path, monkeypatch, capsys):
    code, _, err = called([*path, "--nonsense"], monkeypatch, capsys)
    assert code == 2
    assert "No such option: --nonsense" in err or "No such option '--nonsense'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("path", [p for p, c in LEAVES.items() if any(x.required for x in c.params)], ids=" ".join)
def test_what_is_missing_is_said(path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = called(list(path), monkeypatch, capsys)
    assert code == 2
    assert "Missing" in err


def test_aliases_are_those_of_the_first_venice():
    assert ALIASES == {
        "-i": "install",
        "-k": "ksql",
        "-l": "logs",
        "-p": "psql",
        "-r": "restart",
        "-s": "schemas",
        "-st": "status",
        "-c": "connectors",
        "-t": "topics",
    }


@pytest.mark.parametrize(("short", "name"), ALIASES.items())
def test_an_alias_is_its_command(short, name):
    known = cli.list_commands(click.Context(cli))
    if name not in known:
        pytest.skip(f"there is no venice {name}")
    long_help, short_help = (CliRunner().invoke(cli, [word, "--help"]).output for word in (name, short))
    assert long_help == short_help
    assert long_help.startswith(f"Usage: cli {name} ")


def test_an_alias_is_one_only_as_the_first_word(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = called(["status", "-i", "nowhere"], monkeypatch, capsys)
    assert (code, "no inventory 'nowhere'" in err) == (2, True)


@pytest.mark.parametrize(("typed", "meant"), [("stauts", "status"), ("instal", "install"), ("deplyo", "deploy")])
def test_a_misspelled_command_suggests(typed, meant, monkeypatch, capsys):
    code, _, err = called([typed], monkeypatch, capsys)
    assert code == 2
    assert f"did you mean '{meant}'?" in err
