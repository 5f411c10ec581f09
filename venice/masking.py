"""Takes secrets out of what leaves the house: known values wherever they stand, and the values of settings named as secrets are."""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

MASK = "********"

# names of settings whose values are nobody's business; `key.converter` and `record_key` are none
_WORDS = (
    r"passw|passphrase|pass$|pwd|secret|token|credential|jaas|auth\.user\.info",
    r"(?:api|access|private|auth|account|sas|encryption)[._-]?key|[._-]key$",
)
SECRET_NAME = re.compile("|".join(_WORDS), re.IGNORECASE)
# a reference to a secret tells where it is kept, not what it is; the others say that there is none
_HARMLESS = re.compile(r"\$\{[^}]*\}|\{\{.*\}\}|null|none|true|false|\[hidden\]|\*+|", re.IGNORECASE)
_PATTERNS = (
    # https://user:password@host
    (re.compile(r"(://[^\s:/@]*:)(?!\*+@)[^\s/@]+(?=@)"), rf"\1{MASK}"),
    (re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer)\s+)[^\s\"',]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)[^-]*(?:-(?!----)[^-]*)*(-----END [A-Z ]*PRIVATE KEY-----)"), rf"\1 {MASK} \2"),
)
# in running text; Kafka's logs name the kind of a request its apiKey. Lengths are bounded for time's sake: a log may hold anything.
_SETTING = re.compile(
    r"""(?<!RequestHeader\()(?<![\w.-])(?P<name>[\w.-]{0,120}(?:passw(?:or)?d|passphrase|secret|token|api[._-]?key|pwd)[\w.-]{0,120}["']?\s*[=:]\s*)"""
    r"""(?P<quote>["']?)(?P<value>\$\{[^}]*\}|[^\s"',;&}]+)""",
    re.IGNORECASE,
)


def is_secret(name: str, value: Any) -> bool:
    """Whether a setting of this name holds a secret: named as one, and neither empty nor a reference."""
    return bool(SECRET_NAME.search(name)) and not isinstance(value, bool) and not _HARMLESS.fullmatch(str(value or "").strip())


def secrets_in(value: Any, name: str = "") -> set[str]:
    """The values of all settings in nested data that are named as secrets are."""
    if isinstance(value, Mapping):
        return {found for key, inner in value.items() for found in secrets_in(inner, str(key))}
    if isinstance(value, list | tuple | set):
        return {found for inner in value for found in secrets_in(inner, name)}
    return {str(value)} if is_secret(name, value) and not isinstance(value, int | float) else set()


def mentions(value: Any) -> bool:
    """Whether nested data has a setting that is named as secrets are, whatever its value."""
    if isinstance(value, Mapping):
        return any(SECRET_NAME.search(str(key)) or mentions(inner) for key, inner in value.items())
    return isinstance(value, list | tuple) and any(map(mentions, value))


class Masker:
    """Masks `values` in every form in which they may be written, and whatever is named as a secret."""

    def __init__(self, values: Iterable[str]):
        self.values = {value for value in values if value.strip() and not _HARMLESS.fullmatch(value.strip())}
        # the longest first: a secret may begin with another
        forms = sorted({form for value in self.values for form in _forms(value)}, key=len, reverse=True)
        self._known = re.compile("|".join(forms)) if forms else None

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self._known:
            text = self._known.sub(MASK, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return _SETTING.sub(lambda m: m[0] if _HARMLESS.fullmatch(m["value"]) else f"{m['name']}{m['quote']}{MASK}", text)

    def data(self, value: Any, name: str = "") -> Any:
        """Nested data without secrets; keys and numbers stay."""
        if isinstance(value, Mapping):
            return {key: self.data(inner, str(key)) for key, inner in value.items()}
        if isinstance(value, list | tuple | set):
            return [self.data(inner, name) for inner in value]
        if isinstance(value, str):
            return MASK if is_secret(name, value) else self.text(value)
        return value

    def secret_file(self, text: str) -> str:
        """A file that holds secrets: the names of its settings, none of its values; other lines are masked whole."""
        lines = []
        for line in text.splitlines():
            setting = re.match(r"\s*[\w.-]+\s*[=:]", line)
            lines.append(f"{setting[0]}{MASK}" if setting else MASK if line.strip() else "")
        return self.text("\n".join(lines) + "\n")


def _forms(value: str) -> set[str]:
    """Patterns of a value as it stands, and as JSON, URLs, properties, SQL and base64 write it."""
    written = {value, json.dumps(value)[1:-1], quote(value, safe=""), value.replace("'", "''"), value.replace("\\", "\\\\")}
    written.add(base64.b64encode(value.encode()).decode().rstrip("="))
    # a short one is part of many words that are none
    edge = ("(?<![A-Za-z0-9])", "(?![A-Za-z0-9])") if len(value) < 8 else ("", "")
    return {f"{edge[0]}{re.escape(form)}{edge[1]}" for form in written}


_PLAIN = Masker(())


def masked(name: str, value: str | None) -> str | None:
    """A setting's value fit to be shown: secrets hidden, references to a config provider left readable; None stays None."""
    if value is None or _HARMLESS.fullmatch(value.strip()):
        return value
    return MASK if is_secret(name, value) else _PLAIN.text(value)
