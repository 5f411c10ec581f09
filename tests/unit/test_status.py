"""What the status says to do next, and what comes of the command line."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from venice.cli import cli
from venice.cluster import Cluster
from venice.errors import InputError, UnreachableError
from venice.status import Row, Status, _look_first, _next, render

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lab() -> Cluster:
    return Cluster.load(ROOT / "inventory" / "lab")


def row(instance: str, host: str, state: str = "running", health: str = "healthy") -> Row:
    return Row(instance, instance, host, state, health if state == "running" else "", "", "", "")


def steps(lab: Cluster, *rows: Row, **more) -> list[str]:
    return _next(lab, Status("lab", list(rows), **more))


def test_when_all_is_well_nothing_is_to_be_done(lab):
    assert steps(lab, row("kafka", "lab-1"), row("connect", "lab-2")) == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("kafka", "lab-1"), row("kafka", "lab-2", health="unhealthy")], ["venice logs kafka@lab-2"]),
        ([row("kafka", "lab-1"), row("connect", "lab-3", "restarting")], ["venice logs connect@lab-3"]),
        ([row("kafka", "lab-1"), row("kafka", "lab-2", "exited")], ["venice restart kafka@lab-2"]),
        ([row("kafka", "lab-1", "exited"), row("kafka", "lab-2", "exited")], ["venice up"]),
        (
            [row("kafka", "lab-1", health="unhealthy"), row("kafka", "lab-2", "exited")],
            ["venice restart kafka@lab-2", "venice logs kafka@lab-1"],
        ),
        ([row("kafka", "lab-1"), row("postgres", "lab-3", "missing")], ["venice deploy"]),
        ([row("kafka", "lab-1"), row("connect", "lab-3", health="starting")], ["venice status --watch"]),
    ],
)
def test_each_trouble_names_its_command(lab, rows, expected):
    assert steps(lab, *rows) == expected


def test_a_host_that_does_not_answer_comes_first(lab):
    found = steps(
        lab, row("kafka", "lab-2", "unknown"), row("kafka", "lab-1", "exited"), row("connect", "lab-3"), unreachable={"lab-2": "off"}
    )
    assert found == ["ssh venice@192.168.61.12", "venice restart kafka@lab-1"]


def test_a_failed_connector_leads_to_the_workers_logs(lab):
    assert steps(lab, row("connect", "lab-2"), connectors=[{"failure": "connector x: refused"}]) == ["venice logs connect"]


def test_where_space_is_short_what_is_well_is_counted(capsys):
    found = Status("lab", [row("kafka", "lab-1"), row("kafka", "lab-2", health="none"), row("connect", "lab-3", "exited")])
    Console().print(render(found))
    assert capsys.readouterr().out.count("kafka") == 2
    Console().print(render(found, short=True))
    shown = capsys.readouterr().out
    assert "connect" in shown
    assert "2 healthy, not shown" in shown
    assert "kafka" not in shown


def test_watching_needs_a_terminal():
    result = CliRunner().invoke(cli, ["status", "-i", str(ROOT / "inventory" / "lab"), "--watch", "5"])
    assert isinstance(result.exception, InputError)
    assert "--watch needs a terminal" in str(result.exception)


class Host:
    """A host of which each container's health check ends with the code of its name, or not in time."""

    def __init__(self, codes: dict[str, int | None]):
        self.codes, self.asked = codes, []

    def exec(self, container: str, argv: list[str], timeout: float) -> tuple[int, str, str]:
        self.asked.append((container, argv))
        if self.codes[container] is None:
            raise UnreachableError(f"`docker exec` did not end within {timeout:g} s")
        return self.codes[container], "", ""


def container(health: str, *test: str) -> dict:
    return {"State": {"Status": "running", "Health": {"Status": health}}, "Config": {"Healthcheck": {"Test": list(test)}}}


def test_what_docker_has_not_looked_at_yet_is_asked():
    host = Host({"ready": 0, "shell": 0, "not-yet": 1, "slow": None})
    found = {
        "ready": container("starting", "CMD", "health", "now"),
        "shell": container("starting", "CMD-SHELL", "health || exit 1"),
        "not-yet": container("starting", "CMD", "health"),
        "slow": container("starting", "CMD", "health"),
        "ill": container("unhealthy", "CMD", "health"),
        "no-check": {"State": {"Status": "running"}, "Config": {}},
    }
    _look_first(host, found)
    said = {name: c["State"]["Health"]["Status"] for name, c in found.items() if "Health" in c["State"]}
    assert said == {"ready": "healthy", "shell": "healthy", "not-yet": "starting", "slow": "starting", "ill": "unhealthy"}
    assert dict(host.asked)["ready"] == ["health", "now"]
    assert dict(host.asked)["shell"] == ["/bin/sh", "-c", "health || exit 1"]
