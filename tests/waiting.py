"""Waiting for other threads and processes, on machines of any speed and load."""

import time
from collections.abc import Callable

# Seconds that stand for forever: a test fails because of what happened, not because it took long. Shorter than pytest's own
# limit (pyproject.toml), so that a test that hangs shows what it waited for.
PATIENCE = 1200.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread or process."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "condition not reached"
        time.sleep(0.005)
