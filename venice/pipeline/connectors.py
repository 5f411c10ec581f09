"""Stored connectors: Connect's own form with `${...}` for what the inventory knows, and Venice's defaults for sinks."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from venice.errors import InputError
from venice.masking import masked
from venice.specs import Difference, TopicSpec

# ${name}; not ${file:...} and the like, which Connect resolves itself, and not $${name}, which stands for ${name}
_VARIABLE = re.compile(r"(?P<escape>\$?)\$\{(?P<name>[A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class ConnectorFile:
    """A stored connector; `text` is the file before `${...}` are replaced."""

    path: Path
    text: str

    def load(self, variables: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """Name and configuration with variables replaced and Venice's defaults for sinks added."""
        try:
            # replaced inside the parsed strings, so that a value with a quote in it can't break the JSON
            document = walked(json.loads(self.text), variables, self.path, self.text)
        except json.JSONDecodeError as error:
            raise InputError(f"{self.path}:{error.lineno}: {error.msg}", "correct the JSON there") from error
        if not isinstance(document, dict) or set(document) != {"name", "config"}:
            raise InputError(f'{self.path}: not in the form {{"name": "...", "config": {{...}}}}', "use Connect's own form")
        name, config = document["name"], document["config"]
        if not isinstance(name, str) or not isinstance(config, dict) or "connector.class" not in config:
            raise InputError(f'{self.path}: "name" must be a text and "config" an object with "connector.class"')
        for key, value in config.items():
            if isinstance(value, dict | list) or value is None:
                raise InputError(f"{self.path}:{line_with(self.text, json.dumps(key))}: {key} must be a text, number, true or false")
        texts = {key: as_text(value) for key, value in config.items()}
        return name, with_sink_defaults(name, texts, int(variables.get("replication_factor", 1)))


def with_sink_defaults(name: str, config: dict[str, str], replication: int) -> dict[str, str]:
    """A sink's configuration with a dead letter queue unless it says `errors.tolerance: none`; sources as they are."""
    if not ({"topics", "topics.regex"} & set(config)) or config.get("errors.tolerance") == "none":
        return config
    return {
        "errors.tolerance": "all",
        "errors.deadletterqueue.topic.name": f"dlq.{name}",
        "errors.deadletterqueue.topic.replication.factor": str(replication),
        "errors.deadletterqueue.context.headers.enable": "true",
        **config,
    }


def dead_letter_topic(config: Mapping[str, str]) -> TopicSpec | None:
    """The topic that a sink with this configuration sends bad records to: kept for ever; None when it names none."""
    name = config.get("errors.deadletterqueue.topic.name")
    return TopicSpec(name, 1, None, {"retention.ms": "-1", "cleanup.policy": "delete"}) if name else None


def replaced(text: str, variables: Mapping[str, Any], file: Path, whole: str | None = None) -> str:
    """`text` with `${name}` replaced; InputError names `file` and the line in `whole` (default: the text itself)."""

    def value(match: re.Match[str]) -> str:
        if match["escape"]:
            return match[0][1:]
        if match["name"] not in variables:
            raise InputError(
                f"{file}:{line_with(whole or text, match[0])}: unknown variable {match[0]}",
                f"known: {', '.join(sorted(variables))}; write ${match[0]} for a literal {match[0]}",
            )
        return str(variables[match["name"]])

    return _VARIABLE.sub(value, text)


def line_with(text: str, part: str) -> int:
    """The first line (from 1) that has `part`; 1 when none has."""
    return text[: text.find(part)].count("\n") + 1 if part in text else 1


def as_text(value: Any) -> str:
    """A YAML or JSON scalar as services take it: `true`, not `True`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def walked(value: Any, variables: Mapping[str, Any], file: Path, whole: str) -> Any:
    """A parsed document with `${name}` replaced in all its texts; InputError as of `replaced`."""
    if isinstance(value, dict):
        return {key: walked(item, variables, file, whole) for key, item in value.items()}
    if isinstance(value, list):
        return [walked(item, variables, file, whole) for item in value]
    return replaced(value, variables, file, whole) if isinstance(value, str) else value


def config_differences(current: dict[str, str] | None, desired: dict[str, str]) -> tuple[Difference, ...]:
    """Keys that differ, in order, values masked. Connect's own `name` key is no difference."""
    now = {key: value for key, value in (current or {}).items() if key != "name"}
    wanted = {key: value for key, value in desired.items() if key != "name"}
    return tuple(
        Difference(key, masked(key, now.get(key)), masked(key, wanted.get(key)) or "")
        for key in sorted(now.keys() | wanted.keys())
        if now.get(key) != wanted.get(key)
    )
