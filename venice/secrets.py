"""Generated secrets: made once, kept beside the inventory in a 0600 file, or vault-encrypted when a vault password is given."""

import fcntl
import functools
import os
import secrets as random
import string
import uuid
from pathlib import Path
from typing import Any

import yaml
from ansible import constants
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, is_encrypted

from venice.errors import InputError

_KINDS = {
    # letters and digits only: such a password needs no quoting in any config format
    "password": lambda: "".join(random.choice(string.ascii_letters + string.digits) for _ in range(32)),
    "uuid": lambda: str(uuid.uuid4()),
}


@functools.cache
def vault_secrets() -> list[Any]:
    """Vault passwords as Ansible is configured to find them (ANSIBLE_VAULT_PASSWORD_FILE, vault_identity_list).

    Read once per process: Ansible keeps them in a context that cannot be set a second time.
    """
    from ansible.cli import CLI

    files = [constants.DEFAULT_VAULT_PASSWORD_FILE] if constants.DEFAULT_VAULT_PASSWORD_FILE else []
    return CLI.setup_vault_secrets(DataLoader(), constants.DEFAULT_VAULT_IDENTITY_LIST, vault_password_files=files, auto_prompt=False)


def secret(state_dir: Path, name: str, kind: str, vault: VaultLib) -> str:
    """The secret's value; made when there is none yet. Safe when several processes ask at once.

    Raises InputError when the file is vault-encrypted and no password, or the wrong one, was given.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_dir / "secrets.yml"
    with (state_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _read(path, vault)
        if name not in known:
            known[name] = _KINDS[kind]()
            _write(path, known, vault)
        return str(known[name])


def known(state_dir: Path, vault: VaultLib) -> dict[str, str]:
    """All secrets that were generated so far, by name; makes none. Raises InputError as `secret` does."""
    return {name: str(value) for name, value in _read(state_dir / "secrets.yml", vault).items()}


def _read(path: Path, vault: VaultLib) -> dict[str, str]:
    if not path.exists():
        return {}
    text = path.read_bytes()
    if is_encrypted(text):
        if not vault.secrets:
            raise InputError(f"{path} is encrypted with ansible-vault", "give the password: export ANSIBLE_VAULT_PASSWORD_FILE=FILE")
        text = vault.decrypt(text)
    values = yaml.safe_load(text) or {}
    if not isinstance(values, dict):
        raise InputError(
            f"{path} does not hold `name: value` lines",
            "mend it, or restore it from a backup: hosts use these passwords",
        )
    return values


def _write(path: Path, values: dict[str, str], vault: VaultLib) -> None:
    text = yaml.safe_dump(values).encode()
    if vault.secrets:
        text = vault.encrypt(text)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
