"""The schema registry, through its Confluent-compatible API."""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from venice.errors import UnreachableError, VeniceError

TIMEOUT = 5.0


class Registry:
    """A registry behind one or more base URLs; any of them answers. Calls last `timeout` seconds per URL at most."""

    def __init__(self, urls: list[str], timeout: float = TIMEOUT, names: Mapping[str, str] | None = None):
        """`names`: what messages call the registry at a URL."""
        self.urls = urls
        self._names = dict(names or {})
        self._http = httpx.Client(timeout=timeout, trust_env=False)

    @classmethod
    def of(cls, cluster: Any, timeout: float = TIMEOUT) -> "Registry":
        """The cluster's registries. InputError when the inventory has none."""
        return cls(cluster.registry_urls, timeout, cluster.required("schema_registry", "http"))

    def _ask(self, method: str, path: str, body: Any = None, missing: Any = None) -> Any:
        """The answer's JSON; `missing` for 404 when it is given."""
        failures = []
        for url in self.urls:
            try:
                answer = self._http.request(method, url + path, json=body)
            except httpx.HTTPError as error:
                failures.append(f"{self._names.get(url, url)}: {error or type(error).__name__}")
                continue
            if answer.status_code >= 500:
                failures.append(f"{self._names.get(url, url)}: {_message(answer)}")
                continue
            if answer.status_code == 404 and missing is not None:
                return missing
            if answer.status_code == 409:
                raise VeniceError(
                    f"schema registry: {method} {path}: {_message(answer)}",
                    "readers of the one schema must be able to read the other: give new fields defaults, keep types; "
                    "or choose another compatibility for the subject",
                )
            if answer.is_error:
                raise VeniceError(f"schema registry: {method} {path}: {_message(answer)}")
            return answer.json()
        raise UnreachableError(
            f"schema registry: {'; '.join(failures)}",
            "`venice status` shows where it should run, `venice up` starts it",
        )

    def subjects(self) -> list[str]:
        """Names of all subjects."""
        return self._ask("GET", "/subjects")

    def latest(self, subject: str) -> dict[str, Any] | None:
        """A subject's latest version: `{subject, id, version, schema}` (schema is JSON text), None without one."""
        return self._ask("GET", f"/subjects/{quote(subject, safe='')}/versions/latest", missing={}) or None

    def schema(self, schema_id: int) -> str:
        """Text of the schema with this id."""
        return self._ask("GET", f"/schemas/ids/{schema_id}")["schema"]

    def version_of(self, subject: str, schema: dict[str, Any]) -> int | None:
        """Version under which the subject has this Avro schema; None when it has not."""
        body = {"schema": json.dumps(schema), "schemaType": "AVRO"}
        return self._ask("POST", f"/subjects/{quote(subject, safe='')}", body, missing={}).get("version")

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """Add a version with this Avro schema: its id. VeniceError when it is incompatible with the latest."""
        path = f"/subjects/{quote(subject, safe='')}/versions"
        return self._ask("POST", path, {"schema": json.dumps(schema), "schemaType": "AVRO"})["id"]

    def compatibility(self, subject: str) -> str | None:
        """The subject's own compatibility level, None when it has the registry's default."""
        answer = self._ask("GET", f"/config/{quote(subject, safe='')}", missing={})
        return answer.get("compatibilityLevel") or answer.get("compatibility")

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set the subject's compatibility level (BACKWARD, FULL, NONE, ...)."""
        self._ask("PUT", f"/config/{quote(subject, safe='')}", {"compatibility": level})


def _message(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        message = str(body.get("message") or body.get("detail") or body)
        # without the package and class of the exception that some registries put first
        return f"{answer.status_code} {re.sub(r'^(?:[a-z_]+[.])+[A-Z][A-Za-z]*: ', '', message)}"
    except (ValueError, AttributeError):
        return f"{answer.status_code} {answer.reason_phrase}"
