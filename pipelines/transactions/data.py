"""What `venice data transactions` sends: ten users, each of whom always pays the same."""

import random
from collections.abc import Iterator
from typing import Any

from faker import Faker

TOPIC = "transactions"
KEY = "user_id"
TIME = "event_time"
# what was sent is counted by these, and this is summed up
COUNTED = ("user_id", "status")
SUMMED = "amount"
# most are paid; only they count in the windows
STATUSES = {"paid": 7, "pending": 1, "failed": 1, "refunded": 1}


def _users() -> list[str]:
    fake = Faker("it_IT")
    fake.seed_instance(1)
    return [f"{digit}-{fake.unique.user_name()}" for digit in range(10)]


USERS = _users()


def transaction(digit: int, status: str) -> dict[str, Any]:
    """A transaction of the user whose id begins with the digit: ten times it, 10 for 0."""
    return {"user_id": USERS[digit], "amount": 10.0 * (digit or 1), "status": status}


def records(process: int) -> Iterator[dict[str, Any]]:
    """Transactions without end, but for their time; always the same ones for the same process."""
    draw = random.Random(process)  # noqa: S311 (nothing secret about a transaction)
    while True:
        [status] = draw.choices(list(STATUSES), list(STATUSES.values()))
        yield transaction(draw.randrange(10), status)


def closing() -> dict[str, Any]:
    """What moves the time on behind the last of the others and counts in no window."""
    return transaction(0, "closing")


# what `venice verify transactions` recomputes: windows of event time, and the records that count in them
WINDOW_MS = 3000


def counts(record: dict[str, Any]) -> bool:
    """Whether a record is one of those that are summed up."""
    return record["status"] == "paid"
