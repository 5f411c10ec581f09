"""`venice install`: what it writes, what it refuses, and that nothing is written then. Git repositories are real ones."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from venice import install, paths, sources
from venice.cluster import Cluster
from venice.errors import InputError, UnreachableError
from venice.preflight import validate

PIPELINE = "description: {0}\ntopics:\n  - name: {0}\n"


def never(question: str) -> bool:
    return False


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder of one's own with the shipped inventory `lab` in it, as `--inventory` names it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ignore = shutil.ignore_patterns(".venice")
    shutil.copytree(paths.resource("inventory") / "lab", tmp_path / "here" / "inventory" / "lab", ignore=ignore)
    return Path("inventory/lab")


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(["git", *who, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def committed(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "more")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with the pipeline `orders` in its subfolder."""
    folder = tmp_path / "team.git"
    folder.mkdir()
    git(folder, "init", "--quiet")
    committed(folder, {"orders/pipeline.yml": PIPELINE.format("orders"), "orders/notes/a.md": "one\n", "README.md": "hello\n"})
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder, secrets and records of Venice's own aside."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and ".venice" not in p.parts}


# ---- listing and names ----------------------------------------------------------------------------------------------


def test_listing_tells_what_is_where(place):
    found = install.listing(Cluster.load(place))
    connect = next(c for c in found.components if c.name == "connect")
    assert (connect.title, connect.hosts, connect.requires) == ("Kafka Connect", ["lab-2", "lab-3"], ["kafka"])
    buses = next(p for p in found.pipelines if p.name == "bus_locations")
    assert (buses.shipped, buses.named, buses.folder) == (True, True, None)
    assert "buses" in buses.description


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("schema-registry", "component"),
        ("kafka", "component"),
        ("bus_locations", "pipeline"),
        ("./bus_locations", "source"),
        ("https://host/repo.git#v1:a", "source"),
        ("git@host:team/repo", "source"),
    ],
)
def test_kind(place, what, expected):
    assert install.kind(what) == expected


def test_unknown_name_suggests(place):
    with pytest.raises(InputError) as caught:
        install.kind("bus_location")
    assert "did you mean bus_locations?" in caught.value.remedy


# ---- components -----------------------------------------------------------------------------------------------------


def test_component_adds_hosts_and_nothing_else_to_the_file(place):
    file = place / "hosts.yml"
    before = file.read_text()
    file.chmod(0o640)
    outcome = install.component(place, "connect", ["lab-1", "lab-2"])
    assert outcome.changes == ["inventory/lab/hosts.yml: group connect: added lab-1"]
    assert outcome.next == ["venice plan -i lab", "venice deploy -i lab"]
    assert file.read_text() == before.replace("        lab-3:\n    postgres:", "        lab-3:\n        lab-1:\n    postgres:")
    assert file.stat().st_mode & 0o777 == 0o640
    after = Cluster.load(place)
    assert after.groups["connect"] == ["lab-2", "lab-3", "lab-1"]
    assert validate(after) == []
    again = install.component(place, "connect", ["lab-1"])
    assert (again.changes, again.next) == ([], [])
    assert [p.name for p in place.iterdir() if p.name.endswith(".new")] == []


@pytest.mark.parametrize(
    ("component", "hosts", "message"),
    [
        ("connect", ["lab1"], "has no host 'lab1'"),
        ("postgres", ["lab-1"], "at most 1 can be used"),
    ],
)
def test_component_that_can_not_be_is_refused_and_nothing_is_written(place, component, hosts, message):
    before = everything(place)
    with pytest.raises(InputError) as caught:
        install.component(place, component, hosts)
    assert message in caught.value.message
    assert everything(place) == before


def test_faults_that_were_there_before_do_not_stand_in_the_way(place):
    (place / "group_vars" / "all.yml").open("a").write("kafka_prot: 1\n")
    assert validate(Cluster.load(place))
    assert install.component(place, "connect", ["lab-1"]).changes


def test_component_without_what_it_needs_is_added_with_a_warning(place):
    (place / "hosts.yml").write_text(
        "all:\n  hosts:\n    a:\n      ansible_host: 10.0.0.1\n  children:\n    postgres:\n      hosts:\n        a:\n"
    )
    (place / "group_vars" / "all.yml").unlink()
    outcome = install.component(place, "producer", ["a"])
    assert [w.split(",")[0] for w in outcome.warnings] == ["producer needs kafka", "producer needs schema_registry"]
    assert Cluster.load(place).groups["producer"] == ["a"]


@pytest.mark.parametrize(("name", "text"), [("hosts", "[kafka]\nlab-1\n"), ("hosts.ini", "[kafka]\nlab-1\n")])
def test_other_forms_of_inventories_get_the_lines_to_add(place, name, text):
    shutil.rmtree(place)
    place.mkdir()
    (place / name).write_text(text)
    with pytest.raises(InputError) as caught:
        install.component(place, "connect", ["lab-1"])
    assert "[connect]\nlab-1" in caught.value.remedy
    assert (place / name).read_text() == text


def test_names_may_come_out_of_the_model(place):
    """They are texts of Ansible's own then."""
    free = [host for host in Cluster.load(place).hosts if host == "lab-1"]
    assert install.component(place, "connect", free).changes


def test_hyphens_mean_the_same(place):
    assert install.component(place, "schema-registry", ["lab-1"]).changes == ["inventory/lab/hosts.yml: group schema_registry: added lab-1"]


# ---- shipped pipelines ----------------------------------------------------------------------------------------------


def test_shipped_pipeline_is_copied_and_named(place):
    file = place / "group_vars" / "all.yml"
    before = file.read_text()
    file.write_text(before.replace("[bus_locations]", "[]  # none yet"))
    outcome = install.shipped(place, "bus_locations", never)
    assert file.read_text() == before.replace("[bus_locations]", "[bus_locations]  # none yet")
    assert outcome.next[-1] == "venice deploy -i lab"
    original, copy = everything(paths.resource("pipelines") / "bus_locations"), everything(Path("pipelines/bus_locations"))
    assert {p: c for p, c in copy.items() if p != install.RECORD} == {p: c for p, c in original.items() if "__pycache__" not in p}
    assert Cluster.load(place).pipelines[-1] == Path("pipelines/bus_locations").resolve()
    assert install.shipped(place, "bus_locations", never).changes == []


def test_names_go_where_there_was_no_variable(place):
    file = place / "group_vars" / "all.yml"
    file.unlink()
    install.shipped(place, "bus_locations", never)
    assert file.read_text() == "venice_pipelines: [bus_locations]\n"


def test_changed_copy_is_kept(place):
    target = Path("pipelines/bus_locations")
    shutil.copytree(paths.resource("pipelines") / "bus_locations", target)
    assert install.shipped(place, "bus_locations", never).changes == []
    (target / "producer.py").write_text("# mine\n")
    with pytest.raises(InputError, match=r"producer\.py"):
        install.shipped(place, "bus_locations", never)
    assert (target / "producer.py").read_text() == "# mine\n"
    asked = []
    install.shipped(place, "bus_locations", lambda question: not asked.append(question))
    assert asked == ["pipelines/bus_locations is there and was not installed from there: producer.py."]
    assert (target / "producer.py").read_text() != "# mine\n"


def test_own_pipeline_is_only_named(place):
    committed_text = PIPELINE.format("mine")
    Path("pipelines/mine").mkdir(parents=True)
    Path("pipelines/mine/pipeline.yml").write_text(committed_text)
    outcome = install.shipped(place, "mine", never)
    assert outcome.changes == ["inventory/lab/group_vars/all.yml: venice_pipelines: added mine"]
    assert outcome.next[-1] == "venice apply mine -i lab"
    assert list(everything(Path("pipelines/mine"))) == ["pipeline.yml"]


def test_the_canary_comes_by_itself(place):
    assert install.shipped(place, "canary", never).changes == []
    assert not Path("pipelines").exists()


# ---- git and folders ------------------------------------------------------------------------------------------------


def test_git_source_is_pinned_and_repeating_is_nothing(place, repository):
    first = git(repository, "rev-parse", "HEAD")
    url = f"file://{repository}"
    outcome = install.sourced(place, url, None, never)
    assert (outcome.name, outcome.commit) == ("orders", first)
    record = json.loads(Path("pipelines/orders", install.RECORD).read_text())
    assert (record["url"], record["commit"], record["path"]) == (url, first, "orders")
    assert sorted(record["files"]) == ["notes/a.md", "pipeline.yml"]
    assert Cluster.load(place).pipelines[-1] == Path("pipelines/orders").resolve()
    again = install.sourced(place, f"{url}#{first[:8]}:orders", None, never)
    assert (again.changes, again.commit) == ([], first)


def test_another_commit_updates_and_keeps_files_of_ones_own(place, repository):
    url = f"file://{repository}"
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "tag", "--annotate", "--message", "x", "v1")
    (repository / "orders/notes/a.md").unlink()
    second = committed(repository, {"orders/pipeline.yml": PIPELINE.format("orders2")})
    assert install.sourced(place, f"{url}#v1", None, never).commit == first
    Path("pipelines/orders/own.txt").write_text("mine")
    assert install.sourced(place, url, second[:7], never).commit == second
    found = everything(Path("pipelines/orders"))
    assert "orders2" in found["pipeline.yml"].decode()
    assert found["own.txt"] == b"mine"
    assert "notes/a.md" not in found
    # an older one again, by its full name, which no branch ends at
    assert install.sourced(place, f"{url}#{first}", None, never).commit == first


def test_local_changes_stop_an_update(place, repository):
    url = f"file://{repository}"
    install.sourced(place, url, None, never)
    Path("pipelines/orders/notes/a.md").write_text("changed\n")
    same = install.sourced(place, url, None, never)
    assert same.warnings == ["changed here since it was installed: notes/a.md"]
    committed(repository, {"orders/notes/a.md": "two\n"})
    before = everything(Path())
    with pytest.raises(InputError, match=r"was changed here since it was installed: notes/a\.md"):
        install.sourced(place, url, None, never)
    assert everything(Path()) == before
    install.sourced(place, url, None, lambda question: True)
    assert Path("pipelines/orders/notes/a.md").read_text() == "two\n"


def test_several_pipelines_are_listed(place, repository):
    commit = committed(repository, {"clicks/pipeline.yml": PIPELINE.format("clicks")})
    with pytest.raises(InputError) as caught:
        install.sourced(place, f"file://{repository}", None, never)
    assert f"file://{repository}#{commit[:12]}:clicks" in caught.value.remedy
    assert install.sourced(place, f"file://{repository}#:clicks", None, never).name == "clicks"


def test_root_of_a_repository_is_named_after_it(place, tmp_path):
    folder = tmp_path / "clicks.git"
    folder.mkdir()
    git(folder, "init", "--quiet")
    committed(folder, {"pipeline.yml": PIPELINE.format("clicks")})
    assert install.sourced(place, f"file://{folder}", None, never).name == "clicks"
    assert sorted(everything(Path("pipelines/clicks"))) == [install.RECORD, "pipeline.yml"]


@pytest.mark.parametrize("target", ["/etc/hostname", "../../README.md", "../README.md"])
def test_links_that_leave_are_refused(place, repository, target):
    (repository / "orders/link").symlink_to(target)
    committed(repository, {})
    for what in (f"file://{repository}", f"{repository}/orders"):
        with pytest.raises(InputError, match="leaves the pipeline's folder"):
            install.sourced(place, what, None, never)
    assert not Path("pipelines").exists()


def test_links_inside_become_files(place, repository):
    (repository / "orders/link.md").symlink_to("notes/a.md")
    committed(repository, {})
    install.sourced(place, f"file://{repository}", None, never)
    assert not Path("pipelines/orders/link.md").is_symlink()
    assert Path("pipelines/orders/link.md").read_text() == "one\n"


def test_files_named_outside_of_the_folder_are_refused(place, repository):
    secret = repository.parent / "secret.json"
    secret.write_text('{"name": "x", "config": {"connector.class": "y"}}')
    committed(repository, {"orders/pipeline.yml": f"connectors: [{secret}]\n"})
    with pytest.raises(InputError, match="outside of the pipeline's folder"):
        install.sourced(place, f"file://{repository}", None, never)
    assert not Path("pipelines").exists()


def test_what_is_no_valid_pipeline_is_named_by_its_source(place, repository):
    commit = committed(repository, {"orders/pipeline.yml": "topic: x\n"})
    with pytest.raises(InputError) as caught:
        install.sourced(place, f"file://{repository}", None, never)
    assert f"team.git#{commit[:12]}:orders: orders/pipeline.yml:1: topic: unknown key" in caught.value.message
    assert "/tmp/venice-pipeline" not in caught.value.message
    assert not Path("pipelines").exists()


def test_a_pipeline_of_another_origin_is_not_replaced(place, repository, tmp_path):
    install.sourced(place, f"file://{repository}", None, never)
    other = tmp_path / "other.git"
    shutil.copytree(repository, other)
    with pytest.raises(InputError, match="comes from"):
        install.sourced(place, f"file://{other}", None, never)


def test_folder_is_copied(place, repository):
    outcome = install.sourced(place, f"{repository}/orders", None, never)
    assert outcome.commit is None
    assert Path("pipelines/orders/notes/a.md").read_text() == "one\n"
    assert install.sourced(place, f"{repository}/orders", None, never).changes == []
    (repository / "orders/notes/a.md").write_text("two\n")
    assert install.sourced(place, f"{repository}/orders", None, never).changes
    assert Path("pipelines/orders/notes/a.md").read_text() == "two\n"


def test_warns_of_components_that_the_pipeline_needs(place, repository):
    (place / "hosts.yml").write_text(
        "all:\n  hosts:\n    a:\n      ansible_host: 10.0.0.1\n  children:\n    postgres:\n      hosts:\n        a:\n"
    )
    (place / "group_vars" / "all.yml").unlink()
    outcome = install.sourced(place, f"file://{repository}", None, never)
    assert outcome.warnings == ["orders has topics, but kafka has no hosts: venice install kafka --hosts ..."]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("--upload-pack=touch x", "no address"),
        ("-u/x", "no address"),
        ("ext::sh -c touch%20x/y", "there is no folder"),
        ("ext://x/y", "not supported"),
        ("https://me:hunter2@host/x.git", "password"),
        ("./nowhere", "there is no folder"),
        ("file:///nowhere/x.git", "nowhere"),
        ("file:///nowhere/x.git#--upload-pack=x", "no commit, tag or branch"),
        ("file:///nowhere/x.git#v1:../../etc", "leads out"),
    ],
)
def test_addresses_that_are_refused(place, what, message):
    with pytest.raises(InputError) as caught:
        sources.fetch(what)
    assert message in caught.value.message
    assert "hunter2" not in str(caught.value)
    assert not Path("x").exists()


def test_commits_that_are_not_there(place, repository):
    for reference in ("v9", "0123456789", "0" * 40):
        with pytest.raises(InputError, match="has no commit"):
            sources.fetch(f"file://{repository}#{reference}")


def test_host_that_does_not_answer_is_exit_code_3(place):
    with pytest.raises(UnreachableError):
        sources.fetch("http://127.0.0.1:1/x.git")


def test_hooks_and_filters_of_the_operator_do_not_run(place, repository, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    config = tmp_path / "gitconfig"
    config.write_text(f'[core]\n\thooksPath = {tmp_path}/hooks\n[filter "x"]\n\tsmudge = touch {marker}; cat\n')
    (tmp_path / "hooks").mkdir()
    hook = tmp_path / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
    hook.chmod(0o755)
    committed(repository, {"orders/.gitattributes": "*.md filter=x\n"})
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    assert sources.fetch(f"file://{repository}").files["notes/a.md"] == b"one\n"
    assert not marker.exists()
