"""Waiting for something to become true: by polling, and never for ever."""

import time

# Long enough for a loaded machine; costs nothing when things go well.
WAIT = 20.0


def until(check, what, timeout=WAIT, interval=0.02):
    """Polls check() until it returns something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(interval)
