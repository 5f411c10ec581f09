"""Pin every download of the images again: resolve what images/artifacts.yml asks for, write the closure with hashes and licences.

Edit the `resolve` lists in images/artifacts.yml, run `python tools/pin_artifacts.py [IMAGE...]`, read the diff. Runs maven and pip in the
builder image, so it needs Docker and nothing else. Licences are what each package says of itself (its POM or metadata).
`sdist NAME==VERSION` takes a package's source archive, without what it depends on: for packages published in no other form.
"""

import email
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))
from venice import paths
from venice.images import BUILDER, catalog
from venice.images.build import build_missing, client, present
from venice.images.downloads import SETUPTOOLS, SOURCES, artifacts_dir, in_builder, sha256

HEADER = """\
# Every download that goes into an image. `resolve` says what an image asks for, `without` which dependencies (group:artifact,
# * for any) are not resolved with it, `exclude` which of the files that come with it (name patterns) it does not take; `files`
# is the result, written by tools/pin_artifacts.py and verified by each build.
"""
TREE = "dependency:copy-dependencies -DincludeScope=runtime -Dmdep.useRepositoryLayout=true"
LICENCES = (  # how POMs name the common ones
    (r"apache|asl 2", "Apache-2.0"),
    (r"bsd.*2|2-clause", "BSD-2-Clause"),
    (r"edl|eclipse distribution|bsd.*3|3-clause", "BSD-3-Clause"),
    (r"bsd", "BSD-3-Clause"),
    (r"^mit|the mit", "MIT"),
    (r"epl.*2|eclipse public.*2", "EPL-2.0"),
    (r"epl|eclipse public", "EPL-1.0"),
    (r"cddl", "CDDL-1.1"),
    (r"cc0", "CC0-1.0"),
    (r"mpl|mozilla", "MPL-2.0"),
    (r"gpl.*(cpe|classpath)|gpl2 w/", "GPL-2.0-with-classpath-exception"),
)


def pom(dependencies: list[str], without: list[str]) -> str:
    """A project that depends on `dependencies` and on what they depend on, but for `without` (`group:artifact`, `*` for any)."""
    exclusions = "".join(
        f"<exclusion><groupId>{group}</groupId><artifactId>{name}</artifactId></exclusion>"
        for group, name in (coordinates.split(":") for coordinates in without)
    )
    result = "<project><modelVersion>4.0.0</modelVersion><groupId>v</groupId><artifactId>v</artifactId><version>1</version>"
    result += "<packaging>pom</packaging><dependencies>"
    for coordinates in dependencies:
        group, name, version, *rest = coordinates.split(":")
        kind, classifier = [*rest, "", ""][:2]
        result += f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version>"
        result += f"<type>{kind}</type>" if kind else ""
        result += f"<classifier>{classifier}</classifier>" if classifier else ""
        result += f"<exclusions>{exclusions}</exclusions>" if exclusions else ""
        result += "</dependency>"
    return result + "</dependencies></project>"


def spdx(names: list[str]) -> str:
    """The SPDX names of licences as POMs write them; unknown ones stay as they are."""
    known = [next((spdx for pattern, spdx in LICENCES if re.search(pattern, name.lower())), name) for name in names]
    return " OR ".join(dict.fromkeys(known)) or "unknown"


def pom_licence(repository: Path, group: str, name: str, version: str) -> str:
    """Licence of a POM, or of the nearest parent that names one."""
    path = repository / group.replace(".", "/") / name / version / f"{name}-{version}.pom"
    if not path.is_file():
        return "unknown"
    tree = ElementTree.fromstring(re.sub(rb'\sxmlns="[^"]+"', b"", path.read_bytes(), count=1))  # noqa: S314 (pinned host)
    if names := [node.text.strip() for node in tree.findall("licenses/license/name") if node.text]:
        return spdx(names)
    if (parent := tree.find("parent")) is None:
        return "unknown"
    return pom_licence(repository, *(parent.findtext(key, "").strip() for key in ("groupId", "artifactId", "version")))


def maven_files(scratch: Path, repository: Path) -> list[dict[str, str]]:
    """Entries for all that maven copied, in repository layout, below `scratch`; also puts the files into the cache."""
    result = []
    for path in sorted(scratch.rglob("*")):
        if not path.is_file():
            continue
        *group, name, version, file = path.relative_to(scratch).parts
        if not file.startswith(f"{name}-{version}"):
            continue  # maven's own notes
        classifier, _, kind = file.removeprefix(f"{name}-{version}").lstrip("-").partition(".")
        parts = [".".join(group), name, version]
        parts += [kind or classifier, classifier][: 2 if classifier else 1] if (kind, classifier) != ("jar", "") else []
        licence = pom_licence(repository, ".".join(group), name, version)
        result.append({"maven": ":".join(parts), "sha256": sha256(path), "licence": licence, "file": file})
        shutil.copy(path, artifacts_dir() / file)
    return result


def metadata(path: Path) -> bytes:
    """What a wheel or a source archive says of itself."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")))
    with tarfile.open(path) as archive:
        return archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO").read()


def python_files(folder: Path) -> list[dict[str, str]]:
    """Entries for all wheels and source archives in `folder`; also puts them into the cache."""
    result = []
    for path in sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")]):
        data = email.message_from_bytes(metadata(path))
        classifiers = [c.split(" :: ")[-1] for c in data.get_all("Classifier", []) if c.startswith("License ::")]
        licence = data["License-Expression"] or spdx(classifiers or [(data["License"] or "").splitlines()[0]])
        coordinates = f"{data['Name']}=={data['Version']}"
        result.append({"pypi": coordinates, "sha256": sha256(path), "licence": licence, "file": path.name})
        shutil.copy(path, artifacts_dir() / path.name)
    return result


def main() -> None:
    path = paths.resource("images") / "artifacts.yml"
    document = yaml.safe_load(path.read_text())
    engine = client()
    builder = catalog()[BUILDER].ref
    if builder not in present(engine):
        build_missing(engine, {BUILDER}, print)
    for image, content in document.items():
        if sys.argv[1:] and image not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory(dir=artifacts_dir(), prefix="part-") as scratch:
            work = Path(scratch)
            maven = [c for c in content["resolve"] if ":" in c]
            sources = [c.removeprefix("sdist ") for c in content["resolve"] if c.startswith("sdist ")]
            pypi = [c for c in content["resolve"] if ":" not in c and not c.startswith("sdist ")]
            for closure in (True, False):
                wanted = [c for c in maven if (c.count(":") == 2) == closure]  # archives carry what they need
                (work / f"pom-{closure}.xml").write_text(pom(wanted, content.get("without", []) if closure else ["*:*"]))
            script = "".join(
                f"mvn -B -q -ntp -Dmaven.repo.local=/work/m2 -f /work/pom-{closure}.xml {TREE} -DoutputDirectory=/work/maven\n"
                for closure in (True, False)
                if maven
            )
            if pypi:
                quoted = " ".join(f"'{requirement}'" for requirement in pypi)
                script += f"pip download -q --no-cache-dir --only-binary=:all: -d /work/python {quoted}\n"
            if sources:
                script += f"{SETUPTOOLS}{SOURCES} -d /work/python {' '.join(sources)}\n"
            in_builder(engine, builder, script, work)
            found = maven_files(work / "maven", work / "m2") + python_files(work / "python")
        excluded = content.get("exclude", [])
        content["files"] = [f for f in found if not any(Path(f["file"]).match(pattern) for pattern in excluded)]
        print(f"{image}: {len(content['files'])} files")
    text = yaml.safe_dump(document, sort_keys=False, width=200, allow_unicode=True, default_flow_style=None)
    path.write_text(HEADER + text)


if __name__ == "__main__":
    main()
