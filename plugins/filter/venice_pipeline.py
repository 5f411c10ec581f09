"""Filter for what pipelines say: `${name}` in texts."""

from __future__ import annotations

from pathlib import Path

from venice.pipeline import FILE, replaced


def values(texts, variables):
    """A mapping whose texts have `${name}` replaced. Unknown names are found before, with file and line."""
    return {key: replaced(text, variables, Path(FILE)) for key, text in texts.items()}


class FilterModule:
    def filters(self):
        return {"venice_replaced": values}
