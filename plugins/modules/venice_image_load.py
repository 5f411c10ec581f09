#!/usr/bin/python
# ruff: noqa: E402 (Ansible wants the documentation before the imports)
"""The Ansible module `venice_image_load`: images that arrived layer by layer become images of this host's engine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: venice_image_load
short_description: Load images whose layers were sent to this host
description:
  - With O(state=query), makes the staging directory and says which layers have to be sent into it.
  - With O(state=load), checks the layers that were sent, loads the images, checks their ids and empties the directory.
  - Layers that the engine has already are neither sent nor loaded; layers that arrived are not sent again.
options:
  state:
    description: What to do.
    type: str
    choices: [query, load]
    default: load
  staging:
    description: Directory on this host for layer files, each named C(<diff id in hex>.tar).
    type: path
    required: true
  owner:
    description: User who may write into the staging directory; by default the one who runs this.
    type: str
  images:
    description: The images.
    type: list
    elements: dict
    required: true
    suboptions:
      ref:
        description: Name and tag.
        type: str
        required: true
      id:
        description: Image id, with or without C(sha256:).
        type: str
        required: true
      config:
        description: The image's configuration (JSON) in base64.
        type: str
        required: true
      layers:
        description: Diff ids in order, with or without C(sha256:).
        type: list
        elements: str
        required: true
attributes:
  check_mode:
    support: full
    description: Reports whether images would be loaded.
author: Venice
"""

EXAMPLES = r"""
- name: Which layers does this host lack?
  venice_image_load:
    state: query
    staging: /var/lib/venice/staging
    owner: "{{ ansible_user }}"
    images: "{{ images }}"
"""

RETURN = r"""
present:
  description: References that name the right image already (with O(state=load), also the loaded ones).
  type: list
  returned: success
missing:
  description: Layers (hex diff ids) that have to be sent before the images can be loaded.
  type: list
  returned: success
staged:
  description: Layers (hex diff ids) that lie complete in the staging directory.
  type: list
  returned: success
loaded:
  description: References that this call loaded.
  type: list
  returned: success
"""

import base64
import hashlib
import json
import os
import pwd
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.venice_docker import Engine, EngineError, in_parallel, sdk_errors

CHUNK = 1 << 20
AGAIN = "run the same command again: what arrived complete is not sent twice"


class LoadError(Exception):
    """The images could not be loaded; `remedy` says what helps."""

    def __init__(self, message: str, remedy: str = AGAIN) -> None:
        super().__init__(message)
        self.remedy = remedy


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["query", "load"], "default": "load"},
            "staging": {"type": "path", "required": True},
            "owner": {"type": "str"},
            "images": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "ref": {"type": "str", "required": True},
                    "id": {"type": "str", "required": True},
                    "config": {"type": "str", "required": True},
                    "layers": {"type": "list", "elements": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        if module.check_mode:
            result = look(asked["images"], Path(asked["staging"]), Engine())
            result.update(changed=bool(set(refs(asked["images"])) - set(result["present"])))
        elif asked["state"] == "query":
            result = query(asked["images"], Path(asked["staging"]), asked["owner"], Engine())
        else:
            result = load(asked["images"], Path(asked["staging"]), Engine())
    except LoadError as error:
        module.fail_json(msg=str(error), remedy=error.remedy)
    except EngineError as error:
        module.fail_json(msg=f"could not load images: {error}", remedy=AGAIN)
    except OSError as error:
        module.fail_json(msg=f"could not use {asked['staging']}: {error}", remedy="free disk space, or correct the path")
    module.exit_json(**result)


def refs(images: list[dict]) -> list[str]:
    return [image["ref"] for image in images]


def bare(digest: str) -> str:
    """A digest without its `sha256:`."""
    return digest.partition(":")[2] or digest


def query(images: list[dict], staging: Path, owner: str | None, engine: Engine) -> dict:
    """Make the staging directory, drop what did not arrive complete, and say what has to be sent."""
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging.chmod(0o700)
    if owner:
        try:
            user = pwd.getpwnam(owner)
        except KeyError as error:
            raise LoadError(f"there is no user {owner} on this host", "correct the connection's user") from error
        os.chown(staging, user.pw_uid, user.pw_gid)
    result = look(images, staging, engine)
    for path in staging.iterdir():
        if path.name not in [f"{layer}.tar" for layer in result["staged"]]:
            path.unlink()
    return {"changed": False, **result}


def look(images: list[dict], staging: Path, engine: Engine) -> dict:
    """What is there: `{present, missing, staged, loaded}` (see the module's RETURN)."""
    present = [image["ref"] for image in images if _is_right(image, engine.image(image["ref"]))]
    needed = needed_layers([image for image in images if image["ref"] not in present], chains(engine))
    files = [path for path in staging.glob("*.tar") if path.stem in needed]
    digests = in_parallel(_sha256, files, os.cpu_count() or 2)
    staged = [path.stem for path, digest in zip(files, digests) if path.stem == digest]  # noqa: B905
    missing = [layer for layer in needed if layer not in staged]
    return {"present": present, "missing": missing, "staged": sorted(staged), "loaded": []}


def load(images: list[dict], staging: Path, engine: Engine) -> dict:
    """Load what is not present from the staging directory, check it, empty the directory."""
    found = look(images, staging, engine)
    absent = [image for image in images if image["ref"] not in found["present"]]
    if found["missing"]:
        wrong = [layer for layer in found["missing"] if (staging / f"{layer}.tar").exists()]
        for layer in wrong:
            (staging / f"{layer}.tar").unlink()
        state = "arrived incomplete or changed" if wrong else "did not arrive"
        names = ", ".join(layer[:12] for layer in wrong or found["missing"])
        raise LoadError(f"cannot load {', '.join(refs(absent))}: layers {names} {state}")
    if absent:
        _load(absent, [staging / f"{layer}.tar" for layer in found["staged"]], engine)
    for path in staging.glob("*"):
        path.unlink()
    return {"changed": bool(absent), "present": refs(images), "missing": [], "staged": [], "loaded": refs(absent)}


def _load(images: list[dict], layers: list[Path], engine: Engine) -> None:
    with sdk_errors():
        answers = list(engine.api.load_image(archive(images, layers)))
    problems = [answer["error"] for answer in answers if "error" in answer]
    if problems:
        raise LoadError(f"the engine could not load {', '.join(refs(images))}: {'; '.join(problems)}")
    for image in images:
        now = engine.image(image["ref"])
        if not _is_right(image, now):
            is_now = now["Id"] if now else "no image"
            raise LoadError(
                f"{image['ref']} is {is_now} after loading, not {image['id']}",
                "the image's configuration or this engine's image store is not what was expected: report this",
            )


def archive(images: list[dict], layers: list[Path]):
    """A `docker load` archive of `images` as a stream of bytes; holds only the given layer files.

    The engine takes a layer from the archive only when it has no such layer on the same parents.
    """
    manifest = []
    for image in images:
        config = base64.b64decode(image["config"])
        name = f"{bare(image['id'])}.json"
        if hashlib.sha256(config).hexdigest() != bare(image["id"]):
            raise LoadError(f"{image['ref']}: the configuration does not belong to the id {image['id']}", "report this")
        yield from _entry(name, len(config), [config])
        names = [f"{bare(layer)}.tar" for layer in image["layers"]]
        manifest.append({"Config": name, "RepoTags": [image["ref"]], "Layers": names})
    for path in layers:
        yield from _entry(path.name, path.stat().st_size, _chunks(path))
    text = json.dumps(manifest).encode()
    yield from _entry("manifest.json", len(text), [text])
    yield bytes(2 * tarfile.BLOCKSIZE)


def _entry(name: str, size: int, content):
    header = tarfile.TarInfo(name)
    header.size = size
    yield header.tobuf(tarfile.GNU_FORMAT)
    yield from content
    # never an empty chunk: Debian 12's requests would end the transfer with it
    if padding := -size % tarfile.BLOCKSIZE:
        yield bytes(padding)


def _chunks(path: Path):
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK)
            if not chunk:
                return
            yield chunk


def chains(engine: Engine) -> set[tuple]:
    """All stacks of layers that the engine has, each as a tuple of hex diff ids from the bottom up."""
    details = in_parallel(engine.image, [entry["Id"] for entry in engine.get("/images/json", all="true")], 4)
    stacks = [[bare(layer) for layer in image["RootFS"].get("Layers") or []] for image in details if image]
    return {tuple(stack[: height + 1]) for stack in stacks for height in range(len(stack))}


def needed_layers(images: list[dict], there: set[tuple]) -> list[str]:
    """Layers (hex) of `images` that an engine with the stacks `there` lacks, in order, each once."""
    needed = []
    for image in images:
        stack = [bare(layer) for layer in image["layers"]]
        for height, layer in enumerate(stack):
            if tuple(stack[: height + 1]) not in there and layer not in needed:
                needed.append(layer)
    return needed


def _is_right(image: dict, found: dict | None) -> bool:
    return bool(found) and bare(found["Id"]) == bare(image["id"])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
