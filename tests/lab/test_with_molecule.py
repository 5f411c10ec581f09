"""Molecule's scenarios on the lab: converge, idempotence (nothing changed), and what testinfra finds on the hosts.

The last of the lab's tests by name: what they remove need not be deployed again.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("scenario", [pytest.param("three-hosts", marks=pytest.mark.long), "default"])
def test_scenario(undeployed, scenario):
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    command = [str(BIN / "molecule"), "test", "--scenario-name", scenario]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
