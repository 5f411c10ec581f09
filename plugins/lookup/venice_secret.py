"""Lookup of a generated secret: made once per cluster, kept beside the inventory."""

from __future__ import annotations

from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from venice.errors import VeniceError
from venice.secrets import secret

DOCUMENTATION = """
name: venice_secret
short_description: a secret that is generated once per cluster
description:
  - Returns the secret of that name from C(.venice/CLUSTER/secrets.yml) beside the inventory.
  - The file is 0600, and encrypted when a vault password is given.
  - Makes it when it is not there yet.
options:
  _terms:
    description: Name of the secret.
    required: true
  kind:
    description: What to make.
    choices: [password, uuid]
    default: password
"""


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        try:
            return [secret(Path(variables["venice_state_dir"]), term, self.get_option("kind"), self._loader._vault) for term in terms]
        except VeniceError as error:
            raise AnsibleError(str(error)) from error
