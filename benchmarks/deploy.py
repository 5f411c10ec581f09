"""How fast is a deployment? Three questions, each answered in one run on the same lab hosts; ratios, not absolute claims.

(a) A deployment that changes nothing, against `ansible all -m ping`: medians of paired runs.
(b) A deployment onto hosts that have Docker and the images, against a floor: the same containers with the same files, started by
    plain `docker run` over SSH on all hosts at once, until the same health checks succeed.
(c) A cold deployment from bare hosts, by phase, out of the run's own record.

    python benchmarks/deploy.py [--runs 5] [--skip-cold]
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from venice.cluster import Cluster
from venice.hosts import DockerHost

ROOT = Path(__file__).resolve().parents[1]
VENICE = [sys.executable, "-m", "venice"]
DEPLOY = [*VENICE, "deploy", "-i", "lab"]
PING = [str(Path(sys.executable).with_name("ansible")), "-i", "inventory/lab", "all", "-m", "ping"]
DEADLINE = 300  # seconds that the floor's containers may take


def timed(argv: list[str]) -> float:
    """Seconds that a command takes; it must succeed."""
    begun = time.monotonic()
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - begun


def no_op(runs: int) -> None:
    """(a), in pairs, so that a slow moment of the machine meets both."""
    timed(DEPLOY), timed(PING)
    pairs = [(timed(DEPLOY), timed(PING)) for _ in range(runs)]
    ratios = sorted(deploy / ping for deploy, ping in pairs)
    print(
        f"(a) no-op deploy / ping: median {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f}, {runs} pairs;",
        end=" ",
    )
    print(f"medians {statistics.median(p[0] for p in pairs):.2f} s and {statistics.median(p[1] for p in pairs):.2f} s)")


def warm(runs: int, model: Cluster) -> None:
    """(b), in pairs; between them everything but images is removed."""
    ratios = []
    for _ in range(runs):
        destroy()
        deploy = timed([*DEPLOY])
        record = json.loads(sorted((model.state_dir / "runs").glob("*.json"))[-1].read_text())
        # The floor starts containers and waits; what Venice does beyond that (topics, connectors, smoke test) is not compared.
        tasks = [phase["task"] for phase in record["phases"]]
        beyond = sum(phase["seconds"] or 0 for phase in record["phases"][tasks.index("Apply the pipelines") :])
        destroy()
        floor = plain(model)
        ratios.append((deploy - beyond) / floor)
        print(f"    deploy {deploy:.1f} s (of it pipelines and smoke {beyond:.1f} s), floor {floor:.1f} s")
    ratios.sort()
    print(
        f"(b) deploy / plain docker run: median {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f}, {runs} pairs)"
    )


def plain(model: Cluster) -> float:
    """The floor: seconds until all containers, started by hand, answer their health checks."""
    begun = time.monotonic()
    with ThreadPoolExecutor(len(model.hosts)) as pool:
        list(pool.map(lambda name: _plain_host(model, name), model.hosts))
    seconds = time.monotonic() - begun
    for name, host in model.hosts.items():
        with DockerHost(host) as connection:
            names = [c["name"] for c in model.desired(name)["containers"]]
            connection.run(["sudo", "docker", "rm", "-f", *names], timeout=120)
            connection.run(["sudo", "docker", "network", "rm", "venice"])
            connection.run(["sudo", "rm", "-rf", "/srv/venice", "/etc/venice"])
    return seconds


def _plain_host(model: Cluster, name: str) -> None:
    document = model.desired(name)
    script = ["set -e", "docker network create venice >/dev/null"]
    for folder in document["directories"]:
        script.append(f"install -d -m {folder['mode']} -o {folder['owner']} -g {folder['group']} {folder['path']}")
    for file in document["files"]:
        script.append(f"cat > {file['path']} <<'VENICE-END'\n{file['content']}\nVENICE-END")
        script.append(f"chown {file['owner']}:{file['group']} {file['path']}; chmod {file['mode']} {file['path']}")
    for c in document["containers"]:
        words = ["docker", "run", "-d", "--name", c["name"], "--network", "venice", "--user", c["user"], "--memory", str(c["memory"])]
        words += [w for m in c["mounts"] for w in ("-v", f"{m['source']}:{m['target']}{':ro' if m['read_only'] else ''}")]
        words += [w for p in c["ports"] for w in ("-p", f"{p['host']}:{p['container']}")]
        words += [w for k, v in c["env"].items() for w in ("-e", f"{k}={v}")]
        words += [w for k, v in c["ulimits"].items() for w in ("--ulimit", f"{k}={v}")]
        script.append(f"{shlex.join([*words, c['image'], *c['command']])} >/dev/null &")
    script.append("wait")
    for c in (c for c in document["containers"] if not model.after_pipelines(c["component"])):
        check = shlex.join(["docker", "exec", c["name"], *map(str, c["health"]["command"])])
        script.append(f"until {check} >/dev/null 2>&1; do sleep 0.4; done")
    with DockerHost(model.hosts[name]) as connection:
        code, output, errors = connection.run(["sudo", "sh", "-s"], stdin="\n".join(script), timeout=DEADLINE)
    if code:
        raise SystemExit(f"the floor failed on {name}: {output}{errors}")


def destroy() -> None:
    """Containers, configuration and data away; Docker and images stay."""
    timed([*VENICE, "destroy", "-i", "lab", "--yes"])


def cold(model: Cluster) -> None:
    """(c): hosts without Docker."""
    timed([*VENICE, "lab", "down"])
    timed([*VENICE, "lab", "up"])
    timed(DEPLOY)
    record = json.loads(sorted((model.state_dir / "runs").glob("*.json"))[-1].read_text())
    print(f"(c) cold deploy from bare hosts: {record['seconds']:.1f} s, by phase:")
    for phase in record["phases"]:
        if (phase["seconds"] or 0) >= 0.5:
            print(f"    {phase['seconds']:6.1f} s  {phase['task']}")


def main() -> None:
    """Runs the three on the lab; it is made when there is none, and left deployed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="pairs for (a); (b) takes 3 at most")
    parser.add_argument("--skip-cold", action="store_true", help="leave out (c), which makes new hosts")
    arguments = parser.parse_args()
    model = Cluster.load(ROOT / "inventory" / "lab")
    timed([*VENICE, "lab", "up"])
    if not arguments.skip_cold:
        cold(model)
    timed(DEPLOY)
    no_op(arguments.runs)
    warm(min(arguments.runs, 3), model)
    timed(DEPLOY)


if __name__ == "__main__":
    main()
