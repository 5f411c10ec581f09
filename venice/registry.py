"""The schema registry, through its Confluent-compatible API.

What that API leaves out where Apicurio's registry speaks it (whether a level is a subject's own, why a schema is
incompatible) is asked through Apicurio's own.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from venice.compatibility import Side, explain
from venice.errors import InputError, UnreachableError, VeniceError

TIMEOUT = 5.0
LEVELS = ("BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE", "NONE")
# Confluent's API has no groups; Apicurio keeps its subjects in this one
_APICURIO = "/apis/registry/v3/groups/default/artifacts"
_MEDIA = {"AVRO": "application/json", "JSON": "application/json", "PROTOBUF": "application/x-protobuf"}


class IncompatibleError(VeniceError):
    """A schema that a subject's compatibility forbids; `reasons` says why, one text each with its remedy."""

    def __init__(self, subject: str, level: str, reasons: list[str]):
        self.reasons = reasons
        lines = "".join(f"\n  - {reason}" for reason in reasons)
        super().__init__(
            f"the schema is incompatible with subject {subject} (compatibility {level}):{lines}",
            f"change what is named, or take another subject, or another compatibility: `venice schemas compat {subject} LEVEL`",
        )


class Registry:
    """A registry behind one or more base URLs; any of them answers. Calls last `timeout` seconds per URL at most.

    May be asked by several threads at once. Wherever a schema is given: its text (Avro and JSON as JSON text), its `type`
    (AVRO, JSON, PROTOBUF) and the `references` to other subjects' schemas, each `{name, subject, version}`.
    """

    def __init__(self, urls: list[str], timeout: float = TIMEOUT, names: Mapping[str, str] | None = None):
        """`names`: what messages call the registry at a URL."""
        self.urls = urls
        self._names = dict(names or {})
        self._http = httpx.Client(timeout=timeout, trust_env=False)

    @classmethod
    def of(cls, cluster: Any, timeout: float = TIMEOUT) -> "Registry":
        """The cluster's registries. InputError when the inventory has none."""
        return cls(cluster.registry_urls, timeout, cluster.required("schema_registry", "http"))

    def _answer(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """The answer of the first registry that gives one."""
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
            return answer
        raise UnreachableError(
            f"schema registry: {'; '.join(failures)}",
            "`venice status` shows where it should run, `venice up` starts it",
        )

    def _ask(self, method: str, path: str, body: Any = None, missing: Any = None) -> Any:
        """The answer's JSON; `missing` for 404 when it is given."""
        answer = self._answer(method, path, body)
        if answer.status_code == 404 and missing is not None:
            return missing
        if answer.is_error:
            raise VeniceError(f"schema registry: {method} {path}: {_message(answer)}")
        return answer.json()

    # ---- subjects and versions

    def subjects(self, deleted: bool = False) -> list[str]:
        """Names of all subjects; with `deleted` those as well that are deleted softly."""
        return self._ask("GET", f"/subjects{'?deleted=true' if deleted else ''}")

    def versions(self, subject: str, deleted: bool = False) -> list[int]:
        """Numbers of a subject's versions; empty when there is no such subject."""
        return self._ask("GET", f"{_subject(subject)}/versions{'?deleted=true' if deleted else ''}", missing=[])

    def version(self, subject: str, number: int | str = "latest") -> dict[str, Any] | None:
        """One version: `{subject, id, version, schema, schemaType, references}` (schema is its text), None when it is not there."""
        found = self._ask("GET", f"{_subject(subject)}/versions/{number}", missing={})
        # both are left out for Avro without references
        return {"schemaType": "AVRO", "references": []} | found if found else None

    def latest(self, subject: str) -> dict[str, Any] | None:
        """A subject's latest version, as `version` gives it."""
        return self.version(subject)

    def schema(self, schema_id: int) -> str:
        """Text of the schema with this id."""
        return self._ask("GET", f"/schemas/ids/{schema_id}")["schema"]

    def by_id(self, schema_id: int) -> dict[str, Any] | None:
        """The schema with this id: `{schema, schemaType, references}`, None when there is none."""
        found = self._ask("GET", f"/schemas/ids/{schema_id}", missing={})
        return {"schemaType": "AVRO", "references": []} | found if found else None

    def subjects_of(self, schema_id: int) -> list[str]:
        """Subjects that have the schema with this id."""
        return self._ask("GET", f"/schemas/ids/{schema_id}/subjects", missing=[])

    def version_of(self, subject: str, schema: str, type: str = "AVRO", references: Sequence[dict] = ()) -> int | None:
        """Version under which the subject has this schema; None when it has not."""
        answer = self._answer("POST", _subject(subject), _body(schema, type, references))
        if answer.status_code in (404, 422):  # 422: it can't be compared, as one of another type than the subject's
            return None
        if answer.is_error:
            raise VeniceError(f"schema registry: POST {_subject(subject)}: {_message(answer)}")
        return answer.json()["version"]

    def register(self, subject: str, schema: str, type: str = "AVRO", references: Sequence[dict] = ()) -> int:
        """Add a version with this schema: its id. IncompatibleError with the reasons when the subject's compatibility forbids it."""
        path = f"{_subject(subject)}/versions"
        answer = self._answer("POST", path, _body(schema, type, references))
        if answer.status_code == 409:
            reasons = self.check(subject, schema, type, references) or [_message(answer)]
            raise IncompatibleError(subject, self.effective_compatibility(subject), reasons)
        if answer.status_code == 422:
            raise InputError(f"subject {subject}: the registry refuses the schema: {_message(answer)}", "correct the schema")
        if answer.is_error:
            raise VeniceError(f"schema registry: POST {path}: {_message(answer)}")
        return answer.json()["id"]

    def delete(self, subject: str, permanent: bool = False, version: int | None = None) -> list[int]:
        """Delete a subject or one version of it: the numbers of the versions that went.

        Softly it stays readable by id and can be registered again under its old id; `permanent` removes it for good.
        VeniceError when another subject's schema refers to it, or when there is no such thing to delete.
        """
        path = _subject(subject) + (f"/versions/{version}" if version else "")
        answer = self._answer("DELETE", path)
        # 404: deleted softly before, which is what deleting for good asks for; registries also count a second soft deletion as one
        if permanent and (answer.is_success or answer.status_code == 404):
            answer = self._answer("DELETE", f"{path}?permanent=true")
        if answer.status_code == 422:
            raise VeniceError(f"subject {subject}: {_message(answer)}", "delete the subjects first whose schemas refer to it")
        if answer.is_error:
            raise VeniceError(f"schema registry: DELETE {path}: {_message(answer)}")
        gone = answer.json()
        return gone if isinstance(gone, list) else [gone]

    # ---- compatibility

    def compatibility(self, subject: str) -> str | None:
        """The subject's own compatibility level, None when it has the registry's default."""
        if self._apicurio:  # its Confluent API answers with the default where the subject has none
            return self._ask("GET", f"{_APICURIO}/{quote(subject, safe='')}/rules/COMPATIBILITY", missing={}).get("config")
        return _level(self._ask("GET", f"/config/{quote(subject, safe='')}", missing={}))

    def default_compatibility(self) -> str:
        """The level of all subjects that have none of their own."""
        return _level(self._ask("GET", "/config")) or "BACKWARD"

    def effective_compatibility(self, subject: str) -> str:
        """The level that counts for a subject."""
        return self.compatibility(subject) or self.default_compatibility()

    def set_compatibility(self, subject: str | None, level: str) -> None:
        """Set the compatibility level (one of LEVELS) of a subject; None: the default of all that have none of their own."""
        path = "/config" if subject is None else f"/config/{quote(subject, safe='')}"
        self._ask("PUT", path, {"compatibility": level})

    def check(self, subject: str, schema: str, type: str = "AVRO", references: Sequence[dict] = ()) -> list[str]:
        """Why the subject's compatibility forbids this schema, each with its remedy; empty when it may be registered."""
        latest = self.latest(subject)
        if latest is None:  # nothing to be compatible with
            return []
        if latest["schemaType"] != type:
            return [f"the subject has {latest['schemaType']} schemas, this one is {type}; take another subject"]
        body = _body(schema, type, references)
        answer = self._answer("POST", f"/compatibility{_subject(subject)}/versions?verbose=true", body)
        if answer.status_code == 422:
            raise InputError(f"subject {subject}: the registry refuses the schema: {_message(answer)}", "correct the schema")
        if answer.is_error:
            raise VeniceError(f"schema registry: compatibility of {subject}: {_message(answer)}")
        if answer.json()["is_compatible"]:
            return []
        said = _descriptions(answer.json().get("messages", []))
        return (
            self._explained(subject, schema, type, references)
            or said
            or self._apicurio_says(subject, body)
            or ["the registry gives no reason"]
        )

    def _explained(self, subject: str, schema: str, type: str, references: Sequence[dict]) -> list[str]:
        """What Venice finds itself when both schemas are plain Avro: registries name neither side, field and remedy together."""
        if type != "AVRO" or references:
            return []
        level = self.effective_compatibility(subject)
        numbers = self.versions(subject)
        old = [self.version(subject, number) for number in (numbers if level.endswith("_TRANSITIVE") else numbers[-1:])]
        # with references the types are elsewhere
        if any(v is None or v["references"] for v in old):
            return []
        new = Side.of("the new schema", schema, new=True)
        reasons = []
        for version in old:
            registered = Side.of(f"version {version['version']}", version["schema"])
            if not level.startswith("FORWARD"):
                reasons += explain(new, registered)
            if not level.startswith("BACKWARD"):
                reasons += explain(registered, new)
        return reasons

    def _apicurio_says(self, subject: str, body: dict[str, Any]) -> list[str]:
        """The reasons that only Apicurio's own API gives without registering anything."""
        if not self._apicurio:
            return []
        content = {"content": body["schema"], "contentType": _MEDIA[body["schemaType"]], "references": []}
        answer = self._answer("POST", f"{_APICURIO}/{quote(subject, safe='')}/versions?dryRun=true", {"content": content})
        causes = answer.json().get("causes") or [] if answer.is_error else []
        return [f"{cause['description']} at {cause['context']}".replace(" ,", ",") for cause in causes]

    @functools.cached_property
    def _apicurio(self) -> bool:
        answer = self._answer("GET", "/apis/registry/v3/system/info")
        return answer.is_success and "apicurio" in answer.text.lower()


def _subject(name: str) -> str:
    return f"/subjects/{quote(name, safe='')}"


def _body(schema: str, type: str, references: Sequence[dict]) -> dict[str, Any]:
    # one form for JSON texts, however the file is indented: lookups compare texts
    text = schema if type == "PROTOBUF" else json.dumps(json.loads(schema))
    body: dict[str, Any] = {"schema": text, "schemaType": type}
    if references:
        body["references"] = list(references)
    return body


def _level(config: dict[str, Any]) -> str | None:
    # asked for it is called the one, set the other; some registries call it the other in both
    return config.get("compatibilityLevel") or config.get("compatibility")


def _descriptions(messages: list[str]) -> list[str]:
    """Confluent's reasons: `{errorType:'…', description:'…', additionalInfo:'…'}`, without the schemas and levels beside them."""
    found = [re.search(r"description:\s*'(.*?)'\s*(?:, additionalInfo:|\}$)", message) for message in messages]
    return [match[1] for match in found if match]


def _message(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        message = str(body.get("message") or body.get("detail") or body)
        # without the package and class of the exception that some registries put first
        return f"{answer.status_code} {re.sub(r'^(?:[a-z_]+[.])+[A-Z][A-Za-z]*: ', '', message)}"
    except (ValueError, AttributeError):
        return f"{answer.status_code} {answer.reason_phrase}"
