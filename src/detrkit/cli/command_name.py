"""How the command was started, for the commands that it suggests."""

import os
import sys
from pathlib import Path


def command_name() -> str:
    """Return what to type for `detrkit`: with uv or as a module, if it was started so."""
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # set by `uv run`, whose environment the shell need not know
        return "uv run --no-dev detrkit"
    if Path(sys.argv[0]).name == "__main__.py":
        return "python -m detrkit"
    return "detrkit"
