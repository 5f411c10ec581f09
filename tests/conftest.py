"""For all tests: the project's module utilities are found where Ansible's modules import them from, and Ctrl-C means something."""

import signal
import sys

import ansible.module_utils

from venice import paths

pytest_plugins = ["tests.machine"]
PLUGINS = paths.resource("plugins")

# on the way to a host Ansible joins both; here the package's path does
ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))
sys.path.append(str(PLUGINS / "modules"))

# a shell's background jobs ignore it, and so would all that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
