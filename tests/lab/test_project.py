"""What of the project's own commands needs a lab: that the shown is what is there, and that a component can be added for real."""

import os
import sys

import pexpect

from tests.lab.support import ROOT, from_json, on, venice
from tests.waiting import PATIENCE


def as_root(host: str, *argv: str) -> str:
    done = on(host, ["sudo", *argv])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shown_files_are_those_on_the_hosts(deployed):
    """With the node ids as the hosts have recorded them; only the secret ones differ, by their values."""
    found = from_json(venice("config", "show", "all", "-i", "lab", "--json"), "config-show")
    compared = 0
    for file in found["files"]:
        for place in file["places"]:
            there = as_root(place["host"], "cat", place["path"])
            if file["secret"]:
                assert there.strip() != file["content"].strip()
                assert "********" in file["content"]
            else:
                assert there.splitlines() == file["content"].splitlines(), place
                compared += 1
            assert as_root(place["host"], "stat", "-c", "0%a", place["path"]).strip() == file["mode"]
    assert compared > 6


def test_endpoints_of_the_inventory_answer(deployed):
    found = from_json(venice("inventory", "show", "-i", "lab", "--json"), "inventory-show")
    for component in found["components"]:
        for instance in component["instances"]:
            assert as_root(instance["host"], "docker", "inspect", "-f", "{{.State.Status}}", instance["container"]).strip() == "running"


def test_open_prints_the_address_that_answers(deployed):
    import httpx

    for page in from_json(venice("open", "-i", "lab", "--json"), "open"):
        assert httpx.get(page["url"], trust_env=False, timeout=PATIENCE).status_code == 200
    [one] = from_json(venice("open", "registry@lab-2", "-i", "lab", "--json"), "open")
    assert venice("open", "registry@lab-2", "--print", "-i", "lab").strip() == one["url"]


def test_listing_is_documented(deployed):
    found = from_json(venice("install", "-i", "lab", "--json"), "install")
    assert {c["name"] for c in found["components"] if c["hosts"]} >= {"kafka", "postgres"}


def test_a_component_is_added_by_picking_and_the_plan_shows_it(deployed, tmp_path):
    """On a copy of the inventory, planned and not deployed: the lab stays as it is."""
    import shutil

    place = tmp_path / "inventory" / "lab"
    shutil.copytree(ROOT / "inventory" / "lab", place)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = f"{sys.executable} -m venice install -i lab"
    shell = pexpect.spawn(command, cwd=tmp_path, env=environment, encoding="utf8", timeout=PATIENCE, dimensions=(50, 100))
    shell.expect("Add what")
    shell.send("\r")  # the first: connect
    shell.expect("Which hosts are to run connect")
    shell.expect("lab-1")
    shell.send(" \r")
    shell.expect("group connect: added lab-1")
    shell.expect("venice deploy -i lab")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0
    planned = venice("plan", "-i", str(place))
    assert "venice-connect" in planned
