"""Runs on a host (sent over SSH, standard library only, Python 3.9): prints as JSON what a support bundle holds of it.

Arguments: the cluster's name, the folder of the configuration, how many log lines of each container.
"""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLUSTER, CONFIG, LINES = sys.argv[1:4]
SECONDS = 8
# of each text; of logs the end is kept
LIMIT = 512 * 1024
COMMANDS = {
    "uptime": ["uptime"],
    "kernel": ["uname", "-a"],
    "disk": ["df", "-hT"],
    "clock": ["date", "--iso-8601=ns"],
    "listening": ["ss", "-ltn"],
    "docker version": ["docker", "version"],
    "docker info": ["docker", "info"],
    "docker ps": ["docker", "ps", "--all"],
    "docker stats": ["docker", "stats", "--no-stream"],
    "docker journal": ["journalctl", "--unit", "docker", "--no-pager", "--lines", "200"],
    "killed for lack of memory": ["sh", "-c", "dmesg | grep -i -e oom -e 'killed process' | tail -n 50"],
}

missing = {}


def call(argv):
    """A command's output, both streams."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, check=False)
    return done.stdout.decode(errors="replace")[-LIMIT:]


def attempt(what, function, *arguments):
    """The function's answer; None, and why, among what is missing."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever it is: the rest of the bundle is worth having
        missing[what] = f"{type(error).__name__}: {error}"
        return None


def config():
    """Every file below the configuration's folder: path -> mode and text."""
    found = {}
    for path in sorted(Path(CONFIG).rglob("*")):
        if path.is_file():
            text = attempt(str(path), lambda path=path: path.read_bytes()[:LIMIT].decode(errors="replace"))
            if text is not None:
                found[str(path)] = {"mode": f"{path.stat().st_mode & 0o777:04o}", "text": text}
    if not found:
        missing[CONFIG] = "no file can be read there"
    return found


def containers():
    """The cluster's containers as the engine describes them."""
    filters = ["--filter", f"label=venice.cluster={CLUSTER}"]
    done = subprocess.run(["docker", "ps", "-aq", *filters], capture_output=True, timeout=SECONDS, check=False, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    if not done.stdout.split():
        return []
    return json.loads(subprocess.run(["docker", "inspect", *done.stdout.split()], capture_output=True, timeout=SECONDS, check=True).stdout)


def main():
    with ThreadPoolExecutor(6) as pool:
        outputs = {name: pool.submit(attempt, name, call, argv) for name, argv in COMMANDS.items()}
        memory = attempt("memory", lambda: "".join(Path("/proc/meminfo").read_text().splitlines(True)[:6]))
        system = attempt("system", Path("/etc/os-release").read_text)
        files = attempt(CONFIG, config)
        found = attempt("docker inspect", containers) or []
        logs = {
            name: pool.submit(attempt, f"log of {name}", call, ["docker", "logs", "--timestamps", "--tail", LINES, name])
            for name in (container["Name"].lstrip("/") for container in found)
        }
        answer = {
            "time": time.time(),
            "commands": {name: output.result() for name, output in outputs.items()} | {"memory": memory, "system": system},
            "files": files or {},
            "containers": found,
            "logs": {name: log.result() for name, log in logs.items()},
        }
    json.dump(answer | {"missing": missing}, sys.stdout)


main()
