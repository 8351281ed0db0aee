"""Exit codes of runs."""

import sys


def exit_with(stopped_by: int | None) -> None:
    """Exit with 128 + the number of the signal that stopped a run, as shells do; return if there was none."""
    if stopped_by is not None:
        sys.exit(128 + stopped_by)
