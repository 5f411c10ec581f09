"""Prints what this host has of what Venice needs: an engine, running now and at boot, the docker SDK, the docker group."""

import grp
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import subprocess

try:
    members = grp.getgrnam("docker").gr_mem
except KeyError:
    members = []
states = [
    subprocess.run(["systemctl", question, "--quiet", "docker"], stderr=subprocess.DEVNULL).returncode
    for question in ("is-active", "is-enabled")
]
release = platform.freedesktop_os_release()
found = {
    "release": [release["ID"], int(release.get("VERSION_ID", "0").split(".")[0])],
    "engine": bool(shutil.which("dockerd") or pathlib.Path("/run/docker.sock").exists()),
    "sdk": importlib.util.find_spec("docker") is not None,
    "apt": importlib.util.find_spec("apt") is not None,
    "running": states == [0, 0],
    "members": members,
    "user": os.environ.get("SUDO_USER", ""),
}
print(json.dumps(found))
