"""The support bundle: what somebody else needs to understand a cluster, in one archive that holds no secrets.

Everything is asked at once and within seconds; what could not be had is named, and the rest is there.
"""

import functools
import io
import json
import os
import platform
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.parsing.vault import EncryptedString

from venice import __version__
from venice.cluster import Cluster, Host, roles
from venice.errors import InputError, UnreachableError, VeniceError
from venice.hosts import DockerHost
from venice.masking import MASK, Masker, mentions, secrets_in

SECONDS = 15.0
# how Venice writes a file that holds a secret
_OWNER_ONLY = "0400"
# a variable that is named like this is masked wherever its value stands
_VARIABLE = re.compile("passw|secret|token|key", re.IGNORECASE)
LOG_LINES = 1000
_RUNS = 5
_KEPT = 5
_SUBJECTS = 200
# of an image's own environment
_PLAIN_ENV = {"PATH", "LANG", "LC_ALL", "JAVA_HOME", "PGDATA", "BOOTSTRAP_SERVERS", "SCHEMA_REGISTRY_URL"}

README = """Support bundle of the Venice cluster {cluster}, made {made} by Venice {version}.

MANIFEST.json      what is in here, and under "missing" what could not be had and why
status.json        what `venice status --json` said
kafka.json         brokers, controllers' quorum, topics with their partitions' replicas and in-sync replicas
connectors.json    connectors: states, stack traces, configurations
registry.json      subjects of the schema registry, and the latest version of each
versions.json      of Venice, Ansible, Python and this operator's machine
runs/              records of the last runs (`venice history`)
hosts/HOST/
  desired.json     what the inventory says that should be on the host
  containers.json  what is there (docker inspect)
  config/          the configuration files as they are on the host
  logs/            the last {lines} lines of each container's log
  system.txt       memory, disks, load, clock, Docker

It holds no secrets: all values that Venice generated, and those of all settings that are named as secrets are (password,
secret, token, key, ...), are {mask} wherever they stood. Of files that hold secrets only the settings' names are left.
Still, it tells of your hosts' names and addresses and of your topics: look before you send it to strangers.
"""


@dataclass
class Bundle:
    """A support bundle that was written. `missing`: `{what, why}` of all that could not be had."""

    path: Path
    cluster: str
    made: str
    seconds: float
    files: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    version: str = __version__

    def manifest(self) -> dict[str, Any]:
        """What MANIFEST.json says: all but where the bundle is."""
        return {k: v for k, v in asdict(self).items() if k != "path"}

    def to_dict(self) -> dict[str, Any]:
        """Form for `--json`."""
        return {"path": str(self.path), "bytes": self.path.stat().st_size} | self.manifest()


def make(cluster: Cluster, output: Path | None = None) -> Bundle:
    """Writes the bundle to `output`, or to `venice-CLUSTER-TIME.tar.gz` in the current folder.

    Raises InputError when the file exists, or cannot be written, or when secrets cannot be read and so not be masked.
    """
    begun, now = time.monotonic(), datetime.now(UTC)
    stem = f"venice-{cluster.name}-{now:%Y%m%d-%H%M%S}"
    path = output or Path(f"{stem}.tar.gz")
    if path.exists():
        raise InputError(f"{path} is there already", "name another file: --output FILE.tar.gz")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder", "make it, or name another file: --output FILE.tar.gz")
    values = _known_secrets(cluster)
    found, missing = _gather(_questions(cluster), SECONDS)
    raw = {name: answer for name, answer in found.items() if not name.startswith("hosts/")}
    values |= secrets_in(raw.get("connectors.json"))
    values |= {
        v
        for name in found.keys() - raw.keys()
        for f in found[name]["files"].values()
        if f["mode"] == _OWNER_ONLY
        for v in _pairs(f["text"])
    }
    masker = Masker(values)
    texts: dict[str, str] = {name: _json(masker.data(answer)) for name, answer in raw.items()}
    for host in cluster.hosts.values():
        if host.components:
            folder = f"hosts/{host.name}"
            texts |= _host_files(cluster, host, found.get(folder), masker, missing)
    for run in sorted((cluster.state_dir / "runs").glob("*.json"))[-_RUNS:]:
        with suppress(OSError, ValueError):
            texts[f"runs/{run.name}"] = _json(masker.data(json.loads(run.read_text())))
    made = now.isoformat(timespec="seconds")
    texts["README.txt"] = README.format(cluster=cluster.name, made=made, version=__version__, lines=LOG_LINES, mask=MASK)
    bundle = Bundle(path, cluster.name, made, round(time.monotonic() - begun, 1))
    bundle.files = [{"path": name, "bytes": len(text.encode())} for name, text in sorted(texts.items())]
    bundle.missing = [{"what": what, "why": masker.text(why)} for what, why in sorted(missing.items())]
    _write(path, stem, texts | {"MANIFEST.json": _json(bundle.manifest())})
    return bundle


def automatic(cluster: Cluster) -> Bundle:
    """A bundle beside the run records, made because a run failed; of these the newest are kept."""
    folder = cluster.state_dir / "bundles"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.tar.gz"))[: -(_KEPT - 1)]:
        old.unlink()
    return make(cluster, folder / f"venice-{cluster.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.tar.gz")


# ---- asking ------------------------------------------------------------------------------------------------------


def _questions(cluster: Cluster) -> dict[str, Callable[[], Any]]:
    """What is asked, by the name of the file that the answer goes to; `hosts/NAME` answers with several."""
    from venice import status

    questions: dict[str, Callable[[], Any]] = {
        "status.json": lambda: status.collect(cluster).to_dict(),
        "versions.json": _versions,
    }
    if cluster.instances("kafka"):
        questions["kafka.json"] = lambda: _kafka(cluster)
    if cluster.instances("connect"):
        questions["connectors.json"] = lambda: _connectors(cluster)
    if cluster.instances("schema_registry"):
        questions["registry.json"] = lambda: _registry(cluster)
    for host in cluster.hosts.values():
        if host.components:
            questions[f"hosts/{host.name}"] = functools.partial(_probe, cluster, host)
    return questions


def _gather(questions: dict[str, Callable[[], Any]], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Asks all at once: the answers that came in time, and why the others did not."""
    answers: dict[str, Any] = {}
    missing: dict[str, str] = {}

    def ask(name: str, question: Callable[[], Any]) -> None:
        try:
            answers[name] = question()
        except VeniceError as error:
            missing[name] = error.message
        except Exception as error:  # whatever it is: the rest of the bundle is worth having
            missing[name] = f"{type(error).__name__}: {error}"

    # daemon threads: what hangs must not keep the process from ending
    threads = {n: threading.Thread(target=ask, args=(n, q), daemon=True) for n, q in questions.items()}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    answered = dict(answers)
    late = {name: f"no answer within {seconds:g} s" for name in questions if name not in answered}
    return answered, late | dict(missing)


def _probe(cluster: Cluster, host: Host) -> dict[str, Any]:
    """Runs `support_probe.py` on a host, as root where that is allowed."""
    script = Path(__file__).with_name("support_probe.py").read_text()
    arguments = [cluster.name, str(cluster.var(host.name, "venice_config_dir")), str(LOG_LINES)]
    choice = 'if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then exec sudo -n python3 - "$@"; else exec python3 - "$@"; fi'
    with DockerHost(host) as connection:
        code, output, errors = connection.run(["sh", "-c", choice, "probe", *arguments], stdin=script, timeout=SECONDS - 1)
    if code:
        raise UnreachableError(f"{host.name}: it could not be examined: {errors.strip()[-500:] or f'exit code {code}'}")
    return json.loads(output)


def _kafka(cluster: Cluster) -> dict[str, Any]:
    from venice.kafka import Kafka

    kafka = Kafka.of(cluster)
    quorum, topics = kafka.quorum(), {}
    for part in kafka.partitions():
        described = {"id": part.id, "leader": part.leader, "replicas": part.replicas, "isr": part.isr}
        topics.setdefault(part.topic, []).append(described)
    lacking = [str(p) for p in kafka.under_replicated()]
    return {"brokers": kafka.brokers(), "quorum": asdict(quorum), "under_replicated": lacking, "topics": topics}


def _connectors(cluster: Cluster) -> dict[str, Any]:
    from venice.connect import Connect

    return Connect.of(cluster).described()


def _registry(cluster: Cluster) -> dict[str, Any]:
    from venice.registry import Registry

    registry = Registry.of(cluster)
    subjects = sorted(registry.subjects())
    return {"subjects": subjects, "latest": {s: registry.latest(s) for s in subjects[:_SUBJECTS]}}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("ansible-core", "ansible-runner", "docker", "paramiko", "confluent-kafka")}
    return {"venice": __version__, "python": platform.python_version(), "system": platform.platform()} | libraries


# ---- masking and writing -----------------------------------------------------------------------------------------


def _known_secrets(cluster: Cluster) -> set[str]:
    """All secret values that this side knows: generated ones, variables named as secrets are, and what secret files hold."""
    values = set(cluster.generated_secrets().values())
    for host in cluster.hosts:
        for name, raw in cluster.raw_vars(host).items():
            # paths of key files are no secrets; the models that Venice adds hold what is looked at here anyway
            if name.startswith("venice_") or name.endswith(("_file", "_path", "_dir")):
                continue
            if _VARIABLE.search(name) or mentions(raw):
                with suppress(VeniceError):
                    evaluated = cluster.var(host, name)
                    values |= secrets_in(evaluated, name)
                    if isinstance(evaluated, str) and _VARIABLE.search(name):
                        values.add(evaluated)
            if isinstance(raw, EncryptedString):
                with suppress(VeniceError):
                    values.add(str(cluster.var(host, name)))
        with suppress(VeniceError):
            document = cluster.desired(host)
            values |= {v for c in document["containers"] for v in secrets_in(c["env"])}
            for file in (f for f in document["files"] if f["secret"]):
                values |= _pairs(file["content"])
    return values


def _pairs(text: str) -> set[str]:
    """Secrets in a file of `name=value` lines."""
    pairs = (line.partition("=") for line in text.splitlines())
    return secrets_in({name.strip(): value.strip() for name, _, value in pairs})


def _host_files(cluster: Cluster, host: Host, found: dict[str, Any] | None, masker: Masker, missing: dict[str, str]) -> dict[str, str]:
    """The files of `hosts/NAME/`; what the host itself did not have goes to `missing`."""
    folder = f"hosts/{host.name}"
    secret: set[str] = set()
    texts: dict[str, str] = {}
    try:
        document = cluster.desired(host.name)
    except VeniceError as error:
        missing[f"{folder}/desired.json"] = error.message
    else:
        secret = {file["path"] for file in document["files"] if file["secret"]}
        texts[f"{folder}/desired.json"] = _json(_desired(document, masker))
    if found is None:
        return texts
    missing |= {f"{folder}: {what}": why for what, why in found["missing"].items()}
    root = Path(str(cluster.var(host.name, "venice_config_dir")))
    for name, file in found["files"].items():
        # also one that the inventory does not describe any more
        hidden = name in secret or file["mode"] == _OWNER_ONLY
        text = masker.secret_file(file["text"]) if hidden else masker.text(file["text"])
        texts[f"{folder}/config/{Path(name).relative_to(root)}"] = text
    texts[f"{folder}/containers.json"] = _json([_container(c, masker) for c in found["containers"]])
    texts |= {f"{folder}/logs/{name}.log": masker.text(text) for name, text in found["logs"].items() if text is not None}
    said = {name: text for name, text in found["commands"].items() if text is not None}
    texts[f"{folder}/system.txt"] = masker.text("\n".join(f"== {name}\n{text.rstrip()}\n" for name, text in sorted(said.items())))
    return texts


def _desired(document: dict[str, Any], masker: Masker) -> dict[str, Any]:
    shown = masker.data(document)
    for container, raw in zip(shown["containers"], document["containers"], strict=True):
        container["env"] = dict(_environment(raw["env"].items(), raw["component"], masker))
    for file, raw in zip(shown["files"], document["files"], strict=True):
        file["content"] = masker.secret_file(raw["content"]) if raw["secret"] else masker.text(raw["content"])
        file["secret"] = raw["secret"]
    return shown


def _container(inspected: dict[str, Any], masker: Masker) -> dict[str, Any]:
    shown = masker.data(inspected)
    pairs = (entry.partition("=") for entry in inspected["Config"]["Env"] or [])
    component = (inspected["Config"]["Labels"] or {}).get("venice.component", "")
    env = _environment(((name, value) for name, _, value in pairs), component, masker)
    shown["Config"]["Env"] = [f"{name}={value}" for name, value in env]
    return shown


def _environment(pairs: Any, component: str, masker: Masker) -> Iterator[tuple[str, str]]:
    """Variables with their values masked, but for those that a role of Venice's itself names: no user's data is in these."""
    described = roles()[component].description.get("env") if component in roles() else None
    plain = _PLAIN_ENV | (set(described) if isinstance(described, dict) else set())
    for name, value in pairs:
        yield name, masker.data(value, name) if name in plain else MASK


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, default=str, ensure_ascii=False) + "\n"


def _write(path: Path, stem: str, texts: dict[str, str]) -> None:
    """The archive, readable by its owner only, and whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        with file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in sorted(texts.items()):
                data = text.encode(errors="replace")
                entry = tarfile.TarInfo(f"{stem}/{name}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                archive.addfile(entry, io.BytesIO(data))
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}", "name another file: --output FILE.tar.gz") from error
    finally:
        temporary.unlink(missing_ok=True)


def render(bundle: Bundle) -> str:
    """What is in it, for a person."""
    of_hosts: dict[str, list[str]] = {}
    of_cluster: dict[str, int] = {}
    for file in bundle.files:
        first, *rest = file["path"].split("/")
        if first == "hosts":
            kinds = of_hosts.setdefault(rest[0], [])
            kind = rest[1].partition(".")[0]
            kinds += [kind] if kind not in kinds else []
        elif first != "README.txt":
            name = first.partition(".")[0]
            of_cluster[name] = of_cluster.get(name, 0) + 1
    said = [name if count == 1 else f"{count} {name}" for name, count in of_cluster.items()]
    size = bundle.path.stat().st_size
    lines = [f"{bundle.path}: {len(bundle.files) + 1} files, {size / 1e3:.0f} kB, made in {bundle.seconds:.1f} s"]
    lines.append(f"  cluster: {', '.join(said)}")
    lines += [f"  {host}: {', '.join(kinds)}" for host, kinds in of_hosts.items()]
    lines += [f"  missing {entry['what']}: {entry['why']}" for entry in bundle.missing]
    lines.append(f"It holds no secrets: their values are {MASK}. It tells of hosts, addresses and topics; README.txt in it says more.")
    return "\n".join(lines)
