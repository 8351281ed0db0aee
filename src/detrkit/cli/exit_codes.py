"""Exit codes of runs."""

import sys


def exit_with(stopped_by: int | None) -> None:
    """Exit as shells expect of a process that a signal ended; go on if none did."""
    if stopped_by is not None:
        sys.exit(128 + stopped_by)
