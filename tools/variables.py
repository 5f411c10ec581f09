"""Writes docs/variables.md from the roles' argument specs and defaults."""

import re
import sys
from pathlib import Path

from venice.cluster import roles

ROOT = Path(__file__).resolve().parents[1]


def document() -> str:
    """The page's text."""
    lines = ["# Variables", "", "Made by `make docs` from the roles' argument specs; set them in the inventory or its group_vars.", ""]
    for role in roles().values():
        if not role.options:
            continue
        lines += [f"## {role.name}", "", "| variable | type | default | |", "|---|---|---|---|"]
        for name, spec in role.options.items():
            text = spec["description"]
            said = text if isinstance(text, str) else " ".join(text)
            if said.lower().endswith("not to be set."):  # what the role computes for itself
                continue
            default = str(role.defaults.get(name, "")).replace("|", "\\|").replace("\n", " ")
            kind = spec.get("type", "str") + (f": {', '.join(map(str, spec['choices']))}" if "choices" in spec else "")
            description = re.sub(r"C\(([^)]*)\)", r"`\1`", said)
            lines.append(f"| `{name}` | {kind} | {f'`{default}`' if default else ''} | {description} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    page = ROOT / "docs" / "variables.md"
    page.write_text(document())
    sys.stdout.write(f"wrote {page.relative_to(ROOT)}\n")
