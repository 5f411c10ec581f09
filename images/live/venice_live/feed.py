"""A topic's records as they come, read from Redis once for however many clients.

A client holds no queue: only its position. It takes what it lacks from the feed's ring of recent records, or, when it was too slow
for that or has just come, from Redis. So nobody's slowness costs memory, and the ring is the same for all.
"""

import asyncio
import itertools
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass

import redis.asyncio
from redis import RedisError

from venice_live.cursor import Cursor
from venice_live.settings import log

RING_RECORDS, RING_BYTES = 2000, 4 << 20
READ_RECORDS, READ_BYTES = 200, 1 << 20
# What each client holds while its connection takes nothing: this, and as much again in the connection's own buffer.
CLIENT_BYTES = 32 << 10
BLOCK_SECONDS = 2.0
HEARTBEAT_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a stream; `text` is the JSON that a client gets, `prev` the offset of the entry before it in its partition."""

    partition: int
    offset: int
    prev: int
    text: str


def entry(partition: int, item: tuple[str, dict[str, str]]) -> Entry:
    """An entry as Redis returns it."""
    number, fields = item
    offset = int(number.partition("-")[0])
    key = json.dumps(fields.get("key"), ensure_ascii=False)
    text = f'{{"key":{key},"value":{fields["value"]},"partition":{partition},"offset":{offset},"timestamp":{fields["timestamp"]}}}'
    return Entry(partition, offset, int(fields["prev"]), text)


def offsets(meta: dict[str, str]) -> dict[int, int]:
    """Partition -> last offset that Redis accounts for."""
    return {int(name): int(value) for name, value in meta.items() if name.isdigit()}


def after(offset: int) -> str:
    """The id of a stream's entry at this offset, or of none."""
    return f"{offset}-1" if offset >= 0 else "0-0"


class Pace:
    """How many records to ask for at once, judged by the last ones, so that an answer has about so many bytes."""

    def __init__(self, size: int):
        self.size = size
        self.count = 10

    def seen(self, entries: list[Entry]) -> None:
        if entries:
            average = sum(len(e.text) for e in entries) / len(entries)
            self.count = max(1, min(READ_RECORDS, int(self.size / average)))


class Feed:
    """One topic: reads its streams as long as somebody follows it."""

    def __init__(self, client: redis.asyncio.Redis, topic: str):
        self.client, self.topic = client, topic
        self.topic_id = ""
        self.positions: dict[int, int] = {}
        self.ring: deque[Entry] = deque()
        self.size = 0
        self.end = 0  # how many entries the ring has ever had
        self.changed = asyncio.Event()
        self.task: asyncio.Task | None = None
        self.followers = 0
        self.pace = Pace(READ_BYTES)

    # ---- the one reader ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reads until it is cancelled; Redis may be away for however long."""
        failures = 0
        while True:
            try:
                await self.read()
                failures = 0
            except RedisError as error:
                failures += 1
                if failures == 1:
                    log(f"{self.topic}: Redis: {error}")
            except Exception as error:  # an entry that nobody expected must not leave the clients without a reader
                failures += 1
                log(f"{self.topic}: unexpected: {error!r}")
            if failures:
                await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 10)))

    async def read(self) -> None:
        """Waits for records and puts them into the ring."""
        found = []
        if self.positions:
            streams = {f"stream:{self.topic}:{partition}": after(offset) for partition, offset in self.positions.items()}
            count = max(1, self.pace.count // len(streams))
            found = await self.client.xread(streams, count=count, block=int(BLOCK_SECONDS * 1000))
        meta = await self.client.hgetall(f"offsets:{self.topic}")
        topic_id = meta.get("id", "")
        if not topic_id:  # not begun yet, or Redis was emptied: the sink fills it again
            await asyncio.sleep(BLOCK_SECONDS / 2)
            return
        there = offsets(meta)
        back = any(there.get(partition, -1) < position for partition, position in self.positions.items())
        if topic_id != self.topic_id or back:
            # at first, and when Redis is filled again: what comes from now on. When the topic was made anew, all of it is new
            self.positions = dict.fromkeys(there, -1) if self.topic_id not in ("", topic_id) else there
            self.topic_id = topic_id
            self.ring.clear()
            self.size = 0
            self.end += 1  # nobody finds what it lacks in the ring now
            self.notify()
            return
        for name, items in found:
            partition = int(name.rpartition(":")[2])
            entries = [entry(partition, item) for item in items]
            self.pace.seen(entries)
            for new in entries:
                self.add(new)
        for partition in there:
            self.positions.setdefault(partition, -1)
        if found:
            self.notify()
        elif not self.positions:
            await asyncio.sleep(BLOCK_SECONDS / 2)

    def add(self, new: Entry) -> None:
        self.ring.append(new)
        self.size += len(new.text)
        self.end += 1
        self.positions[new.partition] = new.offset
        while len(self.ring) > RING_RECORDS or (self.size > RING_BYTES and len(self.ring) > 1):
            self.size -= len(self.ring.popleft().text)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    # ---- those who follow -------------------------------------------------------------------------------------------

    def since(self, number: int) -> list[Entry] | None:
        """What the ring got after it had had `number` entries, a client's portion of it; None when some of that has left it."""
        missing = self.end - number
        if missing > len(self.ring):
            return None
        found, size = [], 0
        for new in itertools.islice(self.ring, len(self.ring) - missing, None):
            found.append(new)
            size += len(new.text)
            if size >= CLIENT_BYTES:
                break
        return found

    async def follow(self, start: Cursor | None, earliest: bool = False) -> AsyncGenerator[bytes]:
        """The event stream of one client: after `start`, or all that Redis has, or what comes from now on. Never ends by itself."""
        yield b"retry: 1000\n\n"
        while not self.topic_id:
            if not await self._wait():
                yield b": waiting for the sink\n\n"
        cursor = start
        while True:
            number = self.end
            try:
                if cursor is None:
                    cursor = await self.begin(earliest)
                    # an id without data: who loses the connection before the first record still knows where it was
                    yield f"id: {cursor}\n\n".encode()
                if cursor.topic_id not in ("", self.topic_id):
                    cursor.positions.clear()
                    cursor.topic_id = self.topic_id
                    yield event(cursor, "gap", json.dumps({"reason": "the topic was made anew"}))
                cursor.topic_id = self.topic_id
                async for entries in self.stored(cursor):
                    yield advance(cursor, entries)
            except RedisError:
                yield b": Redis is away\n\n"
                await asyncio.sleep(LONGEST_PAUSE)
                continue
            while cursor.topic_id == self.topic_id:
                entries = self.since(number)
                if entries is None:
                    break  # too slow for the ring: Redis has more
                number += len(entries)
                if chunk := advance(cursor, entries):
                    del entries  # the ring lets go of them before a slow client does
                    yield chunk
                elif number == self.end and not await self._wait():
                    yield b": heartbeat\n\n"

    async def _wait(self) -> bool:
        """True when the feed has something new, False when it is time to say that one is still there."""
        try:
            await asyncio.wait_for(self.changed.wait(), HEARTBEAT_SECONDS)
            return True
        except TimeoutError:
            return False

    async def begin(self, earliest: bool) -> Cursor:
        """Where a client starts that has no cursor."""
        meta = await self.client.hgetall(f"offsets:{self.topic}")
        if "id" not in meta:
            raise RedisError("emptied, and not filled again yet")
        positions = offsets(meta)
        if earliest:
            for partition in positions:
                first = await self.client.xrange(f"stream:{self.topic}:{partition}", count=1)
                if first:
                    positions[partition] = entry(partition, first[0]).prev
        return Cursor(positions, meta["id"])

    async def stored(self, cursor: Cursor) -> AsyncGenerator[list[Entry]]:
        """All that Redis has after the cursor, which moves on meanwhile."""
        meta = await self.client.hgetall(f"offsets:{self.topic}")
        pace = Pace(CLIENT_BYTES)
        for partition in sorted(offsets(meta)):
            while True:
                start = cursor.positions.get(partition, -1)
                items = await self.client.xrange(f"stream:{self.topic}:{partition}", min=f"({after(start)}", count=pace.count)
                if not items:
                    break
                entries = [entry(partition, item) for item in items]
                pace.seen(entries)
                yield entries


def advance(cursor: Cursor, entries: Iterable[Entry]) -> bytes:
    """The events for those entries that the cursor's reader lacks; moves the cursor. Says so when records between are no longer there."""
    chunks = []
    for new in entries:
        position = cursor.positions.get(new.partition, -1)
        if new.offset <= position:
            continue
        if new.prev > position:
            cursor.positions[new.partition] = new.prev
            lost = {"reason": "no longer in Redis", "partition": new.partition, "after": position, "until": new.prev}
            chunks.append(event(cursor, "gap", json.dumps(lost)))
        cursor.positions[new.partition] = new.offset
        chunks.append(event(cursor, "", new.text))
    return b"".join(chunks)


def event(cursor: Cursor, name: str, data: str) -> bytes:
    """One event; JSON has no line breaks."""
    kind = f"event: {name}\n" if name else ""
    return f"id: {cursor}\n{kind}data: {data}\n\n".encode()


class Feeds:
    """The feeds of all topics that somebody follows."""

    def __init__(self, client: redis.asyncio.Redis):
        self.client = client
        self.feeds: dict[str, Feed] = {}

    @property
    def followers(self) -> int:
        return sum(feed.followers for feed in self.feeds.values())

    async def follow(self, topic: str, start: Cursor | None, earliest: bool) -> AsyncGenerator[bytes]:
        """See Feed.follow. The topic's reader runs while somebody follows it."""
        feed = self.feeds.get(topic)
        if feed is None:
            feed = self.feeds[topic] = Feed(self.client, topic)
            feed.task = asyncio.create_task(feed.run())
        feed.followers += 1
        try:
            async for chunk in feed.follow(start, earliest):
                yield chunk
        finally:
            feed.followers -= 1
            if not feed.followers:
                del self.feeds[topic]
                feed.task.cancel()
                with suppress(asyncio.CancelledError):
                    await feed.task
