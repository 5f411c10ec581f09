"""A tiny image and an engine for tests against the real Docker engine of this machine."""

from __future__ import annotations

import io
import tarfile
import uuid
from pathlib import Path

import pytest
from ansible.module_utils.venice_docker import Engine

from venice.engine import ensure_engine, ensure_tools

BUSYBOX = Path("/bin/busybox")


@pytest.fixture(scope="session", autouse=True)
def api():
    """The engine's low-level client. Like `venice lab`, it installs and starts an engine where there is none."""
    return ensure_engine(print).api


def import_image(api, ref: str, changes: list[str], extra: str = "") -> str:
    """Import a root with a static busybox as `ref`; returns the image id."""
    ensure_tools({"busybox": "busybox-static"}, print)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(BUSYBOX, arcname="bin/busybox")
        for name in (
            "sh",
            "sleep",
            "cat",
            "echo",
            "ls",
            "stat",
            "nslookup",
            "nc",
            "httpd",
            "touch",
            "true",
            "false",
            "id",
        ):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for folder in ("etc", "tmp", "data"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
        note = tarfile.TarInfo("etc/note")
        note.size = len(extra)
        tar.addfile(note, io.BytesIO(extra.encode()))
    repository, _, tag = ref.partition(":")
    api.import_image_from_data(stream.getvalue(), repository=repository, tag=tag, changes=changes)
    return api.inspect_image(ref)["Id"]


@pytest.fixture(scope="session")
def images(api):
    """Refs of two images that differ: `{one, two}`."""
    changes = ["ENV PATH=/bin", "ENV GREETING=hello", 'CMD ["sleep", "3600"]', "LABEL made.by=test"]
    run = uuid.uuid4().hex[:6]
    refs = {"one": f"venice-test/one:{run}", "two": f"venice-test/two:{run}"}
    for name, ref in refs.items():
        import_image(api, ref, changes, name)
    yield refs
    for ref in refs.values():
        api.remove_image(ref, force=True)


@pytest.fixture
def cluster(api):
    """A cluster name of this test's own; its containers and networks are removed afterwards."""
    name = f"t{uuid.uuid4().hex[:8]}"
    yield name
    label = {"label": f"venice.cluster={name}"}
    for container in api.containers(all=True, filters=label):
        api.remove_container(container["Id"], force=True, v=True)
    for network in api.networks(filters=label):
        api.remove_network(network["Id"])


@pytest.fixture
def engine():
    return Engine()
