"""`venice_host` and what needs the pipelines: compared first, made later, and only those of the pipelines that are meant."""

from __future__ import annotations

import os

import pytest

from tests.engine.test_host_module import Site


@pytest.fixture
def site(cluster, api, engine, images, tmp_path):
    """A component and two producers of two pipelines, each with a file of its own."""
    if os.geteuid() != 0:
        pytest.skip("giving files to other users needs root")
    made = Site(cluster, api, engine, images, tmp_path)
    for name in ("orders", "buses"):
        folder = f"{tmp_path}/etc/{name}"
        owned = {"owner": 7101, "group": 7101, "component": "producer"}
        made.document["directories"].append({"path": folder, "mode": "0750", **owned})
        made.document["files"].append({"path": f"{folder}/p.py", "content": "print()\n", "mode": "0440", **owned})
        made.document["containers"].append(
            made.described(
                "producer",
                name=f"{cluster}-{name}",
                instance=name,
                aliases=[name],
                mounts=[{"source": folder, "target": "/app", "read_only": True}],
                files={f"{folder}/p.py": "restart"},
                health=None,
                labels={"venice.pipeline": name},
            )
        )
    return made


def test_what_comes_later_is_compared_and_left_alone(site):
    first = site.run(later=["producer"])
    assert first["later"] == ["producer"]
    assert {d["component"] for d in first["differences"]} == {"web", "network"}
    assert site.names() == [site.name]
    assert not (site.folder / "etc" / "orders").exists()
    second = site.run(only=["producer"])
    assert {d["component"] for d in second["differences"]} == {"producer"}
    assert len(site.names()) == 3
    again = site.run(later=["producer"])
    assert (again["differences"], again["later"], again["changed"]) == ([], [], False)


def test_a_check_tells_of_what_comes_later_too(site):
    found = site.run(later=["producer"], check_mode=True)
    assert {d["component"] for d in found["differences"]} == {"web", "network", "producer"}
    assert site.names() == []


def test_what_stopped_is_later_work_and_what_has_no_health_check_is_well_when_it_runs(site):
    site.run()
    assert site.run(later=["producer"])["later"] == []
    site.api.stop(f"{site.cluster}-orders", timeout=1)
    assert site.run(later=["producer"])["later"] == ["producer"]
    assert site.inspect(f"{site.cluster}-orders")["State"]["Running"] is False


def test_only_the_pipelines_that_are_meant(site):
    site.run()
    before = {name: site.inspect(name)["Id"] for name in site.names()}
    for container in site.document["containers"]:
        container["env"]["COLOR"] = "blue"
    found = site.run(only=["producer"], pipelines=["orders"])
    assert {d["container"] for d in found["differences"]} == {f"{site.cluster}-orders"}
    assert [c["name"] for c in found["containers"]] == [f"{site.cluster}-orders"]
    after = {name: site.inspect(name)["Id"] for name in site.names()}
    assert [name for name in before if before[name] != after[name]] == [f"{site.cluster}-orders"]


def test_strays_of_other_pipelines_stay(site):
    site.run()
    del site.document["containers"][1:]
    found = site.run(only=["producer"], pipelines=["orders"], prune=True)
    assert [(d["container"], d["action"]) for d in found["differences"]] == [(f"{site.cluster}-orders", "remove")]
    assert site.names() == [f"{site.cluster}-buses", site.name]
