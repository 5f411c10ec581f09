"""What the sink does in Redis. State, stream and offset change in one script: they can't disagree, whatever dies when."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import redis

SOCKET_SECONDS = 10.0

# Takes a topic as its own: forgets all of an older topic of that name. Returns what is accounted for.
_BEGIN = """#!lua
local meta, state, topic, id = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if redis.call('HGET', meta, 'id') ~= id then
  for _, field in ipairs(redis.call('HKEYS', meta)) do
    if string.match(field, '^%d+$') then redis.call('DEL', 'stream:' .. topic .. ':' .. field) end
  end
  redis.call('DEL', meta, state)
  redis.call('HSET', meta, 'id', id)
end
return redis.call('HGETALL', meta)
"""

# Applies records of one partition. Refuses, with what is accounted for, unless that is what the sink thinks it is: Redis was emptied,
# came back without its last second, or someone else has written. Offsets stay text: Lua's numbers would round long ones when printed.
_APPLY = """#!lua
local meta, state, stream = KEYS[1], KEYS[2], KEYS[3]
local id, partition, expected, low, length = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if redis.call('HGET', meta, 'id') ~= id then return {'other'} end
local last = redis.call('HGET', meta, partition) or '-1'
if last ~= expected then return {'elsewhere', last} end
local tail = redis.call('HGET', meta, partition .. ':tail') or '-1'
if tonumber(low) > tonumber(last) then tail = low end
for i = 6, #ARGV, 5 do
  local offset, what, key, value, time = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if what == 'set' then redis.call('HSET', state, key, value) end
  if what == 'del' then redis.call('HDEL', state, key) end
  if what == 'add' then
    redis.call('XADD', stream, offset .. '-1', 'prev', tail, 'timestamp', time, 'value', value)
    tail = offset
  elseif what ~= 'skip' then
    redis.call('XADD', stream, offset .. '-1', 'prev', tail, 'timestamp', time, 'value', value, 'key', key)
    tail = offset
  end
  last = offset
end
redis.call('XTRIM', stream, 'MAXLEN', length)
redis.call('HSET', meta, partition, last, partition .. ':tail', tail)
return {'done', last}
"""


@dataclass(frozen=True)
class Record:
    """One record as it is written. `value` is JSON text; None for a tombstone. `skipped`: it could not be read, only its offset counts."""

    offset: int
    key: str | None = None
    value: str | None = None
    timestamp: int = 0
    skipped: bool = False

    def arguments(self) -> tuple[str | int, ...]:
        """What the script gets: offset, what to do, key, value, timestamp."""
        if self.skipped:
            what = "skip"
        elif self.key is None:
            what = "add"
        else:
            what = "del" if self.value is None else "set"
        return self.offset, what, self.key or "", "null" if self.value is None else self.value, self.timestamp


class Store:
    """The sink's half of Redis. Its methods raise redis.RedisError."""

    def __init__(self, settings: dict, stream_length: int):
        self.client = redis.Redis(
            **settings, decode_responses=True, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=3, health_check_interval=10
        )
        self.stream_length = stream_length
        self._begin = self.client.register_script(_BEGIN)
        self._apply = self.client.register_script(_APPLY)

    def begin(self, topic: str, topic_id: str) -> dict[int, int]:
        """Partition -> last offset that is accounted for, of the topic with this id."""
        flat = self._begin(keys=[f"offsets:{topic}", f"live:{topic}"], args=[topic, topic_id])
        found = dict(zip(flat[::2], flat[1::2], strict=True))
        return {int(field): int(offset) for field, offset in found.items() if field.isdigit()}

    def apply(self, topic: str, topic_id: str, partition: int, expected: int, low: int, records: list[Record]) -> bool:
        """Writes records that follow the offset `expected`. False: Redis is elsewhere, and nothing was written.

        `low`: the offset before the first that Kafka still has; beyond `expected`, records are lost between them.
        """
        arguments = [topic_id, partition, expected, low, self.stream_length]
        for record in records:
            arguments += record.arguments()
        keys = [f"offsets:{topic}", f"live:{topic}", f"stream:{topic}:{partition}"]
        return self._apply(keys=keys, args=arguments)[0] == "done"

    def forget_others(self, topics: Iterable[str]) -> list[str]:
        """Removes what is kept for topics that are no longer followed; returns their names. Kafka still has them."""
        gone = sorted(key.removeprefix("offsets:") for key in self.client.scan_iter("offsets:*", count=1000))
        gone = [topic for topic in gone if topic not in set(topics)]
        for topic in gone:
            partitions = [field for field in self.client.hkeys(f"offsets:{topic}") if re.fullmatch(r"\d+", field)]
            self.client.delete(f"offsets:{topic}", f"live:{topic}", *(f"stream:{topic}:{p}" for p in partitions))
        return gone
