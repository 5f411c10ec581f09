"""Generated secrets: made once, private, encrypted when a vault password is given."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret

from venice.errors import InputError
from venice.secrets import secret

PLAIN = VaultLib([])
VAULT = VaultLib([("default", VaultSecret(b"vault-password"))])


def test_made_once_and_private(tmp_path):
    made = secret(tmp_path / "c", "postgres_password", "password", PLAIN)
    assert len(made) == 32
    assert made.isalnum()
    assert secret(tmp_path / "c", "postgres_password", "password", PLAIN) == made
    assert (tmp_path / "c" / "secrets.yml").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


def test_kinds_and_names_differ(tmp_path):
    assert uuid.UUID(secret(tmp_path, "kafka_cluster", "uuid", PLAIN)).version == 4
    assert secret(tmp_path, "a", "password", PLAIN) != secret(tmp_path, "b", "password", PLAIN)


def test_many_ask_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: secret(tmp_path, "one", "password", PLAIN), range(16)))
    assert len(found) == 1


def test_with_a_vault_password_the_file_is_encrypted(tmp_path):
    made = secret(tmp_path, "one", "password", VAULT)
    text = (tmp_path / "secrets.yml").read_text()
    assert text.startswith("$ANSIBLE_VAULT;")
    assert made not in text
    assert secret(tmp_path, "one", "password", VAULT) == made
    with pytest.raises(InputError, match="is encrypted with ansible-vault"):
        secret(tmp_path, "one", "password", PLAIN)


def test_a_damaged_file_is_not_overwritten(tmp_path):
    (tmp_path / "secrets.yml").write_text("- not\n- a mapping\n")
    with pytest.raises(InputError, match=r"secrets\.yml does not hold"):
        secret(tmp_path, "one", "password", PLAIN)
    assert (tmp_path / "secrets.yml").read_text() == "- not\n- a mapping\n"
