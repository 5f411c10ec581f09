"""Configurations as they may be shown, and what differs between two."""

import re

from venice.specs import Difference

_SECRET_KEY = re.compile(r"passw|secret|token|credential|jaas|api\.?key|private\.?key|access\.?key", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{\w+:[^}]*\}")
_MASK = "********"


def masked(key: str, value: str | None) -> str | None:
    """A configuration value fit to be shown: passwords hidden, references to a config provider left readable."""
    if value is None:
        return None
    if _SECRET_KEY.search(key) and not _REFERENCE.fullmatch(value):
        return _MASK
    # jdbc:...?password=x and scheme://user:x@host
    value = re.sub(r"(?i)((?:password|secret|token)=)[^&;\s]+", rf"\1{_MASK}", value)
    return re.sub(r"(://[^/\s:@]+:)[^@/\s]+@", rf"\1{_MASK}@", value)


def config_differences(current: dict[str, str] | None, desired: dict[str, str]) -> tuple[Difference, ...]:
    """Keys that differ, in order, values masked. Connect's own `name` key is no difference."""
    now = {key: value for key, value in (current or {}).items() if key != "name"}
    wanted = {key: value for key, value in desired.items() if key != "name"}
    return tuple(
        Difference(key, masked(key, now.get(key)), masked(key, wanted.get(key)) or "")
        for key in sorted(now.keys() | wanted.keys())
        if now.get(key) != wanted.get(key)
    )
