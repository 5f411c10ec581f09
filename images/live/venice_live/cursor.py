"""Where a reader of a topic stands: `0:15,1:20,2:-1@ID`: the last offset it has of each partition, and of which topic by that name."""

import re
from dataclasses import dataclass, field

_FORM = re.compile(r"(?P<positions>\d+:-?\d+(?:,\d+:-?\d+)*)?(?:@(?P<id>[\w-]+))?", re.ASCII)


@dataclass
class Cursor:
    """`positions`: partition -> offset, -1 for none yet; `topic_id` is empty when the reader named none."""

    positions: dict[int, int] = field(default_factory=dict)
    topic_id: str = ""

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """ValueError when it has another form."""
        match = _FORM.fullmatch(text)
        if not match or not text or len(text) > 100_000:
            raise ValueError(f"{text[:60]!r} is no cursor such as 0:15,1:20")
        pairs = (pair.split(":") for pair in (match["positions"] or "").split(",") if pair)
        return cls({int(partition): max(int(offset), -1) for partition, offset in pairs}, match["id"] or "")

    def __str__(self) -> str:
        positions = ",".join(f"{partition}:{offset}" for partition, offset in sorted(self.positions.items()))
        return f"{positions}@{self.topic_id}" if self.topic_id else positions
