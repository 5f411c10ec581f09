"""How tests wait: until something holds, not for a time."""

import time

# Seconds until a test gives up. Behaviour is tested, not time: all hosts share one machine, which may hardly move on for minutes.
PATIENCE = 600


def wait_until(question, what: str, seconds: float = PATIENCE):
    """Asks until the answer is true; fails with the last answer."""
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if answer := question():
            return answer
        answered = time.monotonic()
        assert answered < deadline, f"not within {seconds} s: {what}: {answer!r}"
        # a question may take as much of the machine as what it waits for
        time.sleep(max(0.5, answered - asked))
