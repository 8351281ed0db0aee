"""Exit codes of runs."""

import os
import sys
import threading


def exit_with(stopped_by: int | None) -> None:
    """Exit with 128 + the number of the signal that stopped a run, as shells do; return if there was none."""
    if stopped_by is not None:
        sys.exit(128 + stopped_by)


def exit_at_once(stopped_by: int, threads: str) -> None:
    """Exit as `exit_with` does, without waiting for threads that still compute.

    Args:
        stopped_by: number of the signal.
        threads: how their names begin. Python would wait for them, or crash when one of them returns from native code.
    """
    if any(thread.name.startswith(threads) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + stopped_by)
    exit_with(stopped_by)
