"""Numbers as people read them."""

_DAY = 86_400_000
_TIMES = ((_DAY, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))


def size(count: int) -> str:
    """Bytes in the largest unit of which there is at least one: `0 B`, `81 B`, `1.2 MB`."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def retention(milliseconds: int) -> str:
    """A retention as the options take it: `unlimited`, `7d`, `36h`; in the largest unit that makes a whole number."""
    if milliseconds < 0:
        return "unlimited"
    amount, unit = next((u for u in _TIMES if milliseconds % u[0] == 0), _TIMES[-1])
    return f"{milliseconds // amount}{unit}"


def age(seconds: float) -> str:
    """How long ago, in one unit: `5 s`, `3 min`, `2 h`, `4 d`."""
    for amount, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= amount:
            return f"{seconds / amount:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
