"""Images without Docker: what a tag depends on, verification of downloads, archives into layers."""

import gzip
import hashlib
import io
import json
import re
import tarfile

import docker
import pytest
import yaml

from venice import images, shipping
from venice.errors import InputError, VeniceError
from venice.images import build, debian, downloads, export

FILES = {
    "base/Dockerfile": "FROM venice/debian:trixie\nCOPY hello /\n",
    "base/hello": "hello",
    "builder/Dockerfile": "FROM venice/base\nRUN apt-get install maven\n",
    "tool/Dockerfile": "FROM venice/builder AS made\nRUN make\n\nFROM venice/base\nCOPY --from=made /tool /tool\n",
    "other/Dockerfile": "FROM venice/base\nCOPY --from=venice/tool /tool /tool\n",
    "machine/Dockerfile": "ARG BASE\nFROM ${BASE}\n",
}
PIN = {
    "maven": "org.example:thing:1.0",
    "sha256": hashlib.sha256(b"thing").hexdigest(),
    "licence": "MIT",
    "file": "thing-1.0.jar",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small `images/` of its own, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "images"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    pin(root, PIN)
    return root


def pin(root, *entries):
    (root / "artifacts.yml").write_text(yaml.safe_dump({"tool": {"files": list(entries)}}))


def digests(root):
    images.catalog.cache_clear()
    return {name: image.digest for name, image in images.catalog(root).items()}


# --- tags --------------------------------------------------------------------------------------------------------------


def test_refs_are_names_with_a_hash_and_leave_out_the_builder():
    refs = images.refs()
    assert {"base", "jre", "kafka", "connect", "schema-registry", "postgres", "producer"} <= set(refs)
    assert images.BUILDER not in refs
    assert "lab-host" not in refs  # starts from nothing of Venice's: the lab builds it
    for name, ref in refs.items():
        assert re.fullmatch(rf"venice/{name}:[0-9a-f]{{12}}", ref)


def test_parents_come_before_children(folder):
    assert list(digests(folder)) == ["base", "builder", "tool", "other"]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda root: (root / "base/hello").write_text("hullo"), {"base", "builder", "tool", "other"}),
        (lambda root: (root / "base/hello").chmod(0o755), {"base", "builder", "tool", "other"}),
        (lambda root: (root / "tool/more").write_text(""), {"tool", "other"}),
        (lambda root: pin(root, {**PIN, "sha256": "0" * 64}), {"tool", "other"}),
        (lambda root: pin(root, PIN, {**PIN, "file": "other.jar"}), {"tool", "other"}),
        (lambda root: (root / "other/Dockerfile").write_text("FROM venice/base\n"), {"other"}),
        (lambda root: pin(root, {**PIN, "licence": "MIT-0"}), set()),
        (lambda root: (root / "base/hello").touch(), set()),
        (lambda root: (root / "machine/Dockerfile").write_text("FROM x\n"), set()),
    ],
    ids=["file", "mode", "new file", "pin", "new pin", "leaf", "licence", "time", "not an image"],
)
def test_a_tag_changes_with_all_that_goes_into_the_image_and_nothing_else(folder, change, changed):
    before = digests(folder)
    change(folder)
    after = digests(folder)
    assert {name for name in after if after[name] != before[name]} == changed


def test_an_unknown_parent_is_named(folder):
    (folder / "other/Dockerfile").write_text("FROM venice/nothing\n")
    with pytest.raises(InputError, match=r"other/Dockerfile: uses venice/nothing, which has no folder"):
        digests(folder)


def test_a_circle_is_named(folder):
    (folder / "base/Dockerfile").write_text("FROM venice/tool\n")
    with pytest.raises(InputError, match="use each other in a circle"):
        digests(folder)


def test_a_broken_list_of_artifacts_is_named(folder):
    (folder / "artifacts.yml").write_text("tool: {files: [{maven: a:b:1}]}")
    with pytest.raises(InputError, match=r"artifacts.yml: cannot be read: KeyError\('sha256'\)"):
        digests(folder)


# --- what to build -----------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_built(folder):
    known = images.catalog(folder)
    refs = {name: image.ref for name, image in known.items()}
    assert build._needed(known, ["other"], []) == {"other", "tool", "base", "builder"}
    assert build._needed(known, ["other"], [refs["other"]]) == set()
    assert build._needed(known, ["other"], [refs["tool"], refs["base"]]) == {"other"}


def test_the_builder_is_needed_for_downloads_that_are_not_cached(folder):
    (folder / "tool/Dockerfile").write_text("FROM venice/base\n")
    images.catalog.cache_clear()
    known = images.catalog(folder)
    there = [known["base"].ref]
    assert build._needed(known, ["tool"], there) == {"tool", "builder"}
    (downloads.artifacts_dir() / "thing-1.0.jar").write_bytes(b"thing")
    assert build._needed(known, ["tool"], there) == {"tool"}


def test_each_step_waits_for_what_it_is_made_from(folder, monkeypatch):
    known = images.catalog(folder)
    steps = []
    monkeypatch.setattr(build, "present", lambda engine: {})
    monkeypatch.setattr(debian, "make", lambda engine, report: steps.append("(debian)"))
    monkeypatch.setattr(downloads, "fetch", lambda engine, builder, wanted, report: steps.append((builder, [a.file for a in wanted])))
    monkeypatch.setattr(build, "_build_one", lambda engine, known, image, report, stop: steps.append(image.name))
    spent = build._build_all(None, known, set(known), lambda line: None)
    assert steps == ["(debian)", "base", "builder", (known["builder"].ref, ["thing-1.0.jar"]), "tool", "other"]
    assert set(spent) == set(known)


def test_a_step_that_fails_ends_the_build_and_what_it_downloads(folder, monkeypatch):
    class Engine:
        """Has one container that downloads."""

        containers = property(lambda self: self)
        removed = False

        def list(self, filters):
            assert filters == {"label": "venice.image=downloads"}
            return [self]

        def remove(self, force):
            self.removed = force

    def fails(engine, report):
        raise VeniceError("no Debian")

    engine = Engine()
    monkeypatch.setattr(build, "present", lambda engine: {})
    monkeypatch.setattr(debian, "make", fails)
    with pytest.raises(VeniceError, match="no Debian"):
        build._build_all(engine, images.catalog(folder), {"base"}, lambda line: None)
    assert engine.removed


def test_dockerfiles_name_exact_parents_and_label_every_stage(folder):
    known = images.catalog(folder)
    text = build._dockerfile(known["tool"], known)
    assert text == (
        f"FROM {known['builder'].ref} AS made\nLABEL venice.image=tool\nRUN make\n\n"
        f"FROM {known['base'].ref}\nLABEL venice.image=tool\nCOPY --from=made /tool /tool\n"
    )
    assert "FROM venice/debian:trixie\n" in build._dockerfile(known["base"], known)
    assert f"COPY --from={known['tool'].ref} /tool" in build._dockerfile(known["other"], known)


def test_the_build_context_is_the_same_wherever_and_whenever_it_is_made(folder):
    known = images.catalog(folder)
    (downloads.artifacts_dir() / "thing-1.0.jar").write_bytes(b"thing")
    with build._context(known["tool"], known) as context:
        first = context.read()
    (folder / "tool/Dockerfile").touch()
    (downloads.artifacts_dir() / "thing-1.0.jar").touch()
    with build._context(known["tool"], known) as context:
        assert context.read() == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert tar.getnames() == ["Dockerfile", "artifacts/thing-1.0.jar"]
        assert {(member.uid, member.mtime) for member in tar} == {(0, build._FILE_TIME)}


# --- downloads ---------------------------------------------------------------------------------------------------------


def test_a_missing_download_is_named(folder):
    with pytest.raises(VeniceError, match=r"org.example:thing:1.0: not in .*artifacts"):
        downloads.verify(images.catalog(folder)["tool"].artifacts)


def test_a_changed_download_is_named_and_removed(folder):
    path = downloads.artifacts_dir() / "thing-1.0.jar"
    path.write_bytes(b"thong")
    with pytest.raises(VeniceError, match=r"org.example:thing:1.0: .*thing-1.0.jar has sha256 \w{64}, not \w{64}") as error:
        downloads.verify(images.catalog(folder)["tool"].artifacts)
    assert "run the same command again" in error.value.remedy
    assert not path.exists()


def test_what_was_fetched_is_verified_before_it_is_kept(folder, monkeypatch):
    wanted = list(images.catalog(folder)["tool"].artifacts)

    def fetches(content):
        def run(engine, builder, script, work):
            assert "mvn" in script
            (work / "files").mkdir()
            (work / "files/thing-1.0.jar").write_bytes(content)

        monkeypatch.setattr(downloads, "in_builder", run)
        downloads.fetch(None, "builder", wanted, lambda line: None)

    with pytest.raises(VeniceError, match="what was downloaded has sha256"):
        fetches(b"something else")
    assert list(downloads.artifacts_dir().iterdir()) == []
    fetches(b"thing")
    assert [path.name for path in downloads.artifacts_dir().iterdir()] == ["thing-1.0.jar"]


def test_coordinates_become_maven_items():
    pom = downloads._pom([images.Artifact("maven", "g:a:1:tar.gz:plugin", "", "", "a-1-plugin.tar.gz")])
    assert "<artifactId>a</artifactId><version>1</version><type>tar.gz</type><classifier>plugin</classifier>" in pom


def test_every_pin_is_complete():
    pins = [pin for group in images.artifacts().values() for pin in group]
    assert len(pins) > 100
    by_file = {}
    for pin in pins:
        assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256), pin
        assert pin.licence and pin.licence != "unknown", pin
        assert by_file.setdefault(pin.file, pin.sha256) == pin.sha256, f"two contents under one name: {pin.file}"
        if pin.source == "maven":
            _, name, version, *rest = pin.coordinates.split(":")
            kind, classifier = [*rest, "", ""][:2]
            assert pin.file == f"{name}-{version}{'-' if classifier else ''}{classifier}.{kind or 'jar'}"


# --- export ------------------------------------------------------------------------------------------------------------


def tar_of(files):
    """A tar archive of `files`: name -> bytes, or a text that is the target of a symbolic link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


LAYERS = [tar_of({"etc/a": b"a" * 5000}), tar_of({}), tar_of({"etc/b": b"b"})]
IDS = [hashlib.sha256(layer).hexdigest() for layer in LAYERS]
CONFIG = json.dumps({"rootfs": {"type": "layers", "diff_ids": [f"sha256:{IDS[i]}" for i in (0, 1, 2, 1)]}}).encode()
CONFIG_ID = hashlib.sha256(CONFIG).hexdigest()


def legacy():
    """As docker 20.10 saves: a folder per layer, links for layers that repeat, the manifest last."""
    files = {"0/VERSION": b"1.0", "0/json": b"{}", "0/layer.tar": LAYERS[0]}
    files |= {"1/VERSION": b"1.0", "1/json": b"{}", "1/layer.tar": LAYERS[1]}
    files |= {"2/layer.tar": LAYERS[2], "3/layer.tar": "../1/layer.tar", f"{CONFIG_ID}.json": CONFIG}
    manifest = [{"Config": f"{CONFIG_ID}.json", "RepoTags": ["x:1"], "Layers": [f"{i}/layer.tar" for i in range(4)]}]
    return tar_of(files | {"manifest.json": json.dumps(manifest).encode(), "repositories": b"{}"})


def oci(compress=lambda layer: layer):
    """As docker 25 and later save: blobs by hash, an index, and the manifest of old beside it."""
    blobs = [compress(layer) for layer in LAYERS]
    paths = [f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}" for blob in blobs]
    files = dict(zip(paths, blobs, strict=True)) | {f"blobs/sha256/{CONFIG_ID}": CONFIG}
    manifest = [{"Config": f"blobs/sha256/{CONFIG_ID}", "RepoTags": ["x:1"], "Layers": [paths[i] for i in (0, 1, 2, 1)]}]
    files |= {"index.json": b"{}", "manifest.json": json.dumps(manifest).encode(), "oci-layout": b"{}"}
    return tar_of(files)


@pytest.mark.parametrize("archive", [legacy(), oci(), oci(gzip.compress)], ids=["20.10", "25", "25, compressed"])
@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_an_archive_becomes_layers_named_by_their_content(tmp_path, archive, chunk):
    chunks = (archive[i : i + chunk] for i in range(0, len(archive), chunk))
    assert export.unpack_archive(chunks, tmp_path) == CONFIG
    assert {path.name for path in tmp_path.iterdir()} == {f"{layer}.tar" for layer in IDS}
    for layer, content in zip(IDS, LAYERS, strict=True):
        assert (tmp_path / f"{layer}.tar").read_bytes() == content


def test_a_layer_that_is_there_is_not_written_again(tmp_path):
    export.unpack_archive([legacy()], tmp_path)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    export.unpack_archive([legacy()], tmp_path)
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("archive", [legacy()[:4000], legacy()[:9000], b"", oci()[:3000]])
def test_an_archive_that_ends_early_is_an_error_and_leaves_no_part(tmp_path, archive):
    with pytest.raises(VeniceError, match="archive"):
        export.unpack_archive([archive], tmp_path)
    assert not list(tmp_path.glob("part-*"))


def test_a_lacking_layer_is_named(tmp_path):
    archive = tar_of({"c.json": CONFIG, "manifest.json": json.dumps([{"Config": "c.json"}]).encode()})
    with pytest.raises(VeniceError, match=f"lacks layers {IDS[0]}"):
        export.unpack_archive([archive], tmp_path)


class FakeEngine:
    """Answers what export asks of its one image, and counts how often it must save it."""

    def __init__(self):
        self.api, self.images, self.saved = self, self, 0

    def get(self, ref):
        return self.inspect_image(ref)

    def inspect_image(self, ref):
        if ref != "venice/x:1":
            raise docker.errors.ImageNotFound(ref)
        return {"Id": f"sha256:{CONFIG_ID}", "RootFS": {"Layers": [f"sha256:{IDS[i]}" for i in (0, 1, 2, 1)]}}

    def get_image(self, ref, chunk_size):
        self.saved += 1
        return iter([legacy()])


def test_export_asks_the_engine_only_when_a_layer_is_not_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = FakeEngine()
    first = export.export(engine, "venice/x:1")
    assert (first.id, first.config, first.layers) == (f"sha256:{CONFIG_ID}", CONFIG, [IDS[i] for i in (0, 1, 2, 1)])
    assert export.export(engine, "venice/x:1") == first
    assert engine.saved == 1
    (first.directory / f"{IDS[2]}.tar").unlink()
    assert export.export(engine, "venice/x:1") == first
    assert engine.saved == 2


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """An engine that has one of the two images there are; an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = FakeEngine()
    monkeypatch.setattr(images, "refs", lambda: {"x": "venice/x:1", "y": "venice/y:1"})
    monkeypatch.setattr(build, "build", lambda names, report: [])
    monkeypatch.setattr(build, "client", lambda: engine)
    return engine


CURRENT = {f"{CONFIG_ID}.json", *(f"{layer}.tar" for layer in IDS)}
SUPERSEDED = {f"{'a' * 64}.json", f"{'b' * 64}.tar", "part-interrupted"}


def leave_superseded():
    """Files in the cache as superseded images and interrupted exports leave them."""
    for name in SUPERSEDED:
        (export.layers_dir() / name).write_bytes(b"old")


def cached():
    return {path.name for path in export.layers_dir().iterdir()}


def test_providing_removes_what_no_image_of_today_has(engine):
    leave_superseded()
    with shipping.provide(["venice/x:1"], print) as exported:
        assert exported["venice/x:1"].layers == [IDS[i] for i in (0, 1, 2, 1)]
        assert cached() == CURRENT


def test_providing_keeps_images_of_today_that_are_not_wanted_now(engine):
    with shipping.provide(["venice/x:1"], print):
        pass
    leave_superseded()
    with shipping.provide([], print):
        assert cached() == CURRENT
    assert engine.saved == 1


def test_nothing_is_removed_while_another_sends(engine, monkeypatch):
    with shipping.provide(["venice/x:1"], print):
        leave_superseded()
        monkeypatch.setattr(images, "refs", dict)  # another checkout, with other images
        with shipping.provide([], print):
            assert cached() == CURRENT | SUPERSEDED
    with shipping.provide([], print):
        assert cached() == set()
