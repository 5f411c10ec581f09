"""Writes recentchange.jsonl.gz: ten minutes of changes to wikis in the form of Wikimedia's event stream `recentchange`.

All of it is made up (users, titles, comments, numbers); only the wikis' names are real. The same run gives the same file:
`python images/wikimedia-feed/record.py` writes it anew.
"""

import gzip
import json
import random
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

FILE = Path(__file__).with_name("recentchange.jsonl.gz")
BEGIN = datetime(2026, 1, 5, 12, tzinfo=UTC)
SECONDS = 600
EVENTS = 2400
# wiki: its server, how much of the feed is its, how many of its edits are bots', words of its titles
WIKIS = {
    "enwiki": ("en.wikipedia.org", 30, 0.15, ("Bridge", "Canal", "Lantern", "Regatta", "Harbour", "Glass", "Island", "Lagoon")),
    "wikidatawiki": ("www.wikidata.org", 25, 0.6, ()),
    "commonswiki": ("commons.wikimedia.org", 20, 0.3, ("Gondola", "Facade", "Map", "Mosaic", "Mask", "Quay", "Dome", "Oar")),
    "dewiki": ("de.wikipedia.org", 9, 0.1, ("Brücke", "Kanal", "Laterne", "Hafen", "Glas", "Insel", "Lagune", "Steg")),
    "frwiki": ("fr.wikipedia.org", 8, 0.1, ("Pont", "Canal", "Lanterne", "Port", "Verre", "Île", "Lagune", "Quai")),
    "itwiki": ("it.wikipedia.org", 6, 0.1, ("Ponte", "Canale", "Lanterna", "Porto", "Vetro", "Isola", "Laguna", "Riva")),
    "vecwiki": ("vec.wikipedia.org", 2, 0.05, ("Ponte", "Canal", "Feral", "Porto", "Véro", "Ìxoła", "Łaguna", "Fondamenta")),
}
USERS = [
    f"{first}{second}{number}"
    for first in ("Quiet", "Copper", "Paper", "Salt")
    for second in ("Heron", "Otter", "Lamp")
    for number in (3, 17, 88)
]
BOTS = ("TidyLinksBot", "ShelfBot", "CommaBot", "ImportantDatesBot")
COMMENTS = ("", "typo", "copyedit", "added a source", "/* History */ reworded", "new section", "rv, not in the source", "image")
LOGS = (("upload", "upload"), ("patrol", "patrol"), ("move", "move"), ("delete", "delete"), ("newusers", "create"))
TYPES = {"edit": 62, "new": 6, "categorize": 22, "log": 10}


def events() -> Iterator[dict]:
    """The changes, oldest first; no two at the same millisecond."""
    draw = random.Random(1)  # noqa: S311 (nothing secret about it)
    begin = int(BEGIN.timestamp() * 1000)
    for number, after in enumerate(sorted(draw.sample(range(SECONDS * 1000), EVENTS))):
        [wiki] = draw.choices(list(WIKIS), [share for _, share, _, _ in WIKIS.values()])
        [kind] = draw.choices(list(TYPES), list(TYPES.values()))
        yield change(draw, wiki, kind, begin + after, number)


def change(draw: random.Random, wiki: str, kind: str, at: int, number: int) -> dict:
    """One change at a time (ms since 1970)."""
    server, _, bots, words = WIKIS[wiki]
    bot = draw.random() < bots
    user = draw.choice(BOTS if bot else USERS) if draw.random() < 0.9 or bot else f"~2026-{draw.randrange(10000, 99999)}"
    namespace, title = 0, f"Q{draw.randrange(1000, 9_000_000)}"
    if words:
        title = f"{draw.choice(words)} {draw.choice(words).lower()} {draw.randrange(1, 400)}"
    if kind == "categorize":
        namespace, title = 14, f"Category:{title}"
    elif wiki == "commonswiki":
        namespace, title = 6, f"File:{title}.jpg"
    comment = draw.choice(COMMENTS)
    path = quote(title.replace(" ", "_"), safe=":/()")
    moment = datetime.fromtimestamp(at / 1000, UTC)
    event = {
        "$schema": "/mediawiki/recentchange/1.0.0",
        "meta": {
            "uri": f"https://{server}/wiki/{path}",
            "request_id": str(uuid.UUID(int=draw.getrandbits(128), version=4)),
            "id": str(uuid.UUID(int=draw.getrandbits(128), version=4)),
            "domain": server,
            "stream": "mediawiki.recentchange",
            "dt": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "topic": "eqiad.mediawiki.recentchange",
            "partition": 0,
            "offset": 5_000_000_000 + number,
        },
        "id": 1_900_000_000 + number,
        "type": kind,
        "namespace": namespace,
        "title": title,
        "title_url": f"https://{server}/wiki/{path}",
        "comment": comment,
        "timestamp": at // 1000,
        "user": user,
        "bot": bot,
        "server_url": f"https://{server}",
        "server_name": server,
        "server_script_path": "/w",
        "wiki": wiki,
        "parsedcomment": comment.replace("/* History */", '<span class="autocomment">History:</span>'),
    }
    revision = 1_300_000_000 + 7 * number
    if kind in ("edit", "new"):
        old = 0 if kind == "new" else draw.randrange(200, 60_000)
        length = (
            {"new": old + draw.randrange(100, 3000)} if kind == "new" else {"old": old, "new": max(1, old + round(draw.gauss(20, 250)))}
        )
        event |= {"minor": kind == "edit" and draw.random() < 0.3, "length": length}
        event["revision"] = {"new": revision} if kind == "new" else {"old": revision - draw.randrange(1, 90_000), "new": revision}
        if draw.random() < 0.5:
            event["patrolled"] = bot
    elif kind == "log":
        log_type, action = draw.choice(LOGS)
        event |= {"log_id": 160_000_000 + number, "log_type": log_type, "log_action": action}
        event |= {"log_params": {}, "log_action_comment": comment}
    return event


def main() -> None:
    """Write the file, the same bytes each time."""
    lines = "".join(json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n" for event in events())
    FILE.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    sys.stdout.write(f"wrote {FILE.name}: {EVENTS} events, {FILE.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
