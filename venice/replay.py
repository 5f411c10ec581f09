"""Sending dead letters once more, as they are or repaired, each once.

A transaction holds the records and the marks that say that they were replayed: both are there, or neither. One transactional id per
dead letter topic lets only the newest of several replays that run at once commit anything.
"""

import contextlib
import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import KafkaException, Producer

from venice.dlq import COUNT, ERRORS, FROM, MARKS, ORIGIN, DeadLetters, Letter, Mark, mark_key
from venice.errors import InputError, VeniceError
from venice.messages import TRANSACTION_SECONDS, Outgoing, deliver, iso, producer_of
from venice.specs import TopicSpec

# records of one transaction
_BATCH = 500


@dataclass(frozen=True)
class Repair:
    """What a replay changes: the whole value, single fields of it, the key. `value` counts when `whole` is set."""

    whole: bool = False
    value: Any = None
    fields: tuple[tuple[str, Any], ...] = ()
    key: str | None = None

    @property
    def of_value(self) -> bool:
        """True when the value is changed at all."""
        return self.whole or bool(self.fields)


@dataclass(frozen=True)
class Sending:
    """A record that a replay will send, or has sent. `offset`: where it is then; `partition` None: by its key."""

    letter: Letter
    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    repaired: bool
    offset: int | None = None

    @property
    def count(self) -> int:
        """Which replay of the record it is."""
        return self.letter.replays + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "partition": self.letter.record.partition,
            "offset": self.letter.record.offset,
            "to": {"topic": self.topic, "partition": self.partition, "offset": self.offset},
            "count": self.count,
            "repaired": self.repaired,
        }


@dataclass
class Plan:
    """What a replay does. `done`: replayed before; `refused`: why a letter is not sent."""

    topic: str
    sendings: list[Sending] = field(default_factory=list)
    done: list[Letter] = field(default_factory=list)
    refused: list[tuple[Letter, str]] = field(default_factory=list)

    def to_dict(self, sent: bool) -> dict[str, Any]:
        """Plain form for JSON; `sent`: whether it was carried out."""
        return {
            "topic": self.topic,
            "sent": sent,
            "replayed": [sending.to_dict() for sending in self.sendings],
            "already": [{"partition": letter.record.partition, "offset": letter.record.offset} for letter in self.done],
            "refused": [
                {"partition": letter.record.partition, "offset": letter.record.offset, "reason": why} for letter, why in self.refused
            ],
        }


def planned(dead: DeadLetters, topic: str, letters: list[Letter], repair: Repair, to: str | None, most: int) -> Plan:
    """What replaying these letters of a topic sends, nothing sent yet.

    `to`: another topic than the one that a letter comes from; `most`: how often one record may be replayed. InputError for a
    repair that does not fit, naming the letter.
    """
    if (repair.whole or repair.key is not None) and len(letters) > 1:
        raise InputError(f"one value or key for {len(letters)} records", "choose one record with --offset; --set changes fields of many")
    found = Plan(topic)
    known: dict[str, int] = {}
    for part in dead.kafka.partitions():
        known[part.topic] = known.get(part.topic, 0) + 1
    for letter in letters:
        target = to or letter.failure.topic
        if letter.mark:
            found.done.append(letter)
        elif letter.replays >= most:
            often = "once" if letter.replays == 1 else f"{letter.replays} times"
            found.refused.append((letter, f"it was replayed {often} already, and failed again"))
        elif target is None:
            found.refused.append((letter, "its headers do not say which topic it comes from; name one with --to"))
        elif target not in known:
            found.refused.append((letter, f"topic {target} does not exist"))
        else:
            found.sendings.append(_sending(dead, topic, letter, target, known[target], repair))
    return found


def _sending(dead: DeadLetters, topic: str, letter: Letter, target: str, partitions: int, repair: Repair) -> Sending:
    record, failure = letter.record, letter.failure
    try:
        value = _value(dead, letter, target, repair) if repair.of_value else record.value
        key = _key(dead, target, repair.key) if repair.key is not None else record.key
    except InputError as error:
        raise InputError(f"{topic} {letter.place}: {error.message}", error.remedy) from error
    # where it was, its order among the records of its key stays
    stays = target == failure.topic and key == record.key and failure.partition is not None and failure.partition < partitions
    kept = [(name, data) for name, data in record.headers if not name.startswith(ERRORS) and name not in (COUNT, FROM, ORIGIN)]
    origin = f"{failure.topic}/{failure.partition}/{failure.offset}" if failure.topic else ""
    own = [(COUNT, str(letter.replays + 1)), (FROM, f"{topic}/{record.partition}/{record.offset}"), (ORIGIN, origin)]
    return Sending(
        letter,
        target,
        failure.partition if stays else None,
        key,
        value,
        (*kept, *((name, text.encode()) for name, text in own if text)),
        repair.of_value or repair.key is not None,
    )


def _value(dead: DeadLetters, letter: Letter, target: str, repair: Repair) -> bytes:
    data = repair.value
    if not repair.whole:
        decoded = dead.decoded(letter)
        if not isinstance(decoded.value, dict):
            raise InputError(f"its value has no fields to set: it is {decoded.format}", "give all of it with --value or --edit")
        data = decoded.value
    for path, value in repair.fields:
        data = _with(data, path.split("."), value)
    subject = f"{target}-value"
    if dead.codec.latest(subject) is None:
        return json.dumps(data, ensure_ascii=False).encode()
    return dead.codec.encode(subject, data)


def _key(dead: DeadLetters, target: str, text: str) -> bytes:
    subject = f"{target}-key"
    if dead.codec.latest(subject) is None:
        return text.encode()
    try:
        return dead.codec.encode(subject, text)
    except InputError:
        try:
            return dead.codec.encode(subject, json.loads(text))
        except json.JSONDecodeError:
            pass
        raise


def send(dead: DeadLetters, plan: Plan) -> None:
    """Carry a plan out: afterwards each sending has its partition and offset, and what was replayed meanwhile is `done`.

    Returns when all are acknowledged by all in-sync replicas, and remembered as replayed.
    """
    if not plan.sendings:
        return
    dead.kafka.ensure_topics([TopicSpec(MARKS, 1, None, {"cleanup.policy": "compact"})], len(dead.kafka.partitions(plan.topic)[0].replicas))
    producer = producer_of(dead.kafka, f"venice-dlq-{plan.topic}")
    try:
        # another replay of the topic that still runs can commit nothing from here on, so its marks are all read
        producer.init_transactions(TRANSACTION_SECONDS)
        marks = dead.marks([plan.topic])
        still: list[Sending] = []
        for sending in plan.sendings:
            record = sending.letter.record
            mark = marks.get((plan.topic, record.partition), {}).get(record.offset)
            if mark:
                plan.done.append(replace(sending.letter, mark=mark))
            else:
                still.append(sending)
        plan.sendings = []
        topic_id = dead.kafka.topic_ids([plan.topic])[plan.topic]
        for start in range(0, len(still), _BATCH):
            plan.sendings += _transaction(dead, producer, topic_id, still[start : start + _BATCH])
    except KafkaException as error:
        raise _failed(dead, plan, error) from error


def _failed(dead: DeadLetters, plan: Plan, error: KafkaException) -> VeniceError:
    answer = error.args[0]
    sent = f"{len(plan.sendings)} records were replayed before, and are remembered"
    if answer.name() in ("_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH"):
        return VeniceError(f"another replay of {plan.topic} took over; {sent}", "wait until it has ended, then run this again")
    if answer.name() in ("_TIMED_OUT", "_TRANSPORT", "_ALL_BROKERS_DOWN", "_MSG_TIMED_OUT"):
        return dead.kafka.unreachable(f"replay of {plan.topic}: {answer.str()}; {sent}")
    return VeniceError(f"replay of {plan.topic}: {answer.str()}; {sent}", "run it again: only what was not replayed is sent")


def _transaction(dead: DeadLetters, producer: Producer, topic_id: str, batch: list[Sending]) -> list[Sending]:
    """Send these and their marks, both or neither."""
    producer.begin_transaction()
    try:
        sent = deliver(dead.kafka, producer, [Outgoing(s.topic, s.key, s.value, s.headers, s.partition) for s in batch])
        found = [replace(s, partition=partition, offset=offset) for s, (partition, offset) in zip(batch, sent, strict=True)]
        now = iso(int(time.time() * 1000)) or ""
        marks = [Mark(now, s.topic, s.partition or 0, s.offset or 0) for s in found]
        keys = [mark_key(topic_id, s.letter.record.partition, s.letter.record.offset) for s in found]
        deliver(
            dead.kafka, producer, [Outgoing(MARKS, key, json.dumps(vars(mark)).encode()) for key, mark in zip(keys, marks, strict=True)]
        )
        producer.commit_transaction(TRANSACTION_SECONDS)
    except (KafkaException, VeniceError):
        # what can't be aborted now (no broker answers, another replay took over) the brokers abort
        with contextlib.suppress(KafkaException):
            producer.abort_transaction(TRANSACTION_SECONDS)
        raise
    return found


def _with(data: Any, path: list[str], value: Any) -> dict[str, Any]:
    """`data` with the field at a path set; objects in between that are missing or null are made."""
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise InputError(f"{path[0]} can't be set: {json.dumps(data)} has no fields", "--set takes FIELD=VALUE, or OUTER.INNER=VALUE")
    head, *rest = path
    return data | {head: _with(data.get(head), rest, value) if rest else value}
