"""What can go wrong and whom it concerns.

A message is one sentence: where, what was found, what was expected, what to do. The command line prints it and exits
with code 2; Python callers catch `DetrkitError` or the kind they can act on.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any


class DetrkitError(Exception):
    """Any mistake that the caller can correct."""


class ConfigError(DetrkitError):
    """A setting, preset or command-line argument is wrong."""


class DataError(DetrkitError):
    """A photo, an annotation file or a dataset folder is missing or malformed."""


class CheckpointError(DetrkitError):
    """A weights file is missing, malformed, or made for another model."""


class ExportError(DetrkitError):
    """A model cannot be written in the asked form."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, or list them all."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"


def import_optional(package: str, purpose: str, install: str) -> Any:
    """Import a package that not everybody needs.

    Args:
        package: to import.
        purpose: what it is for, as the beginning of a sentence.
        install: what to ask pip for.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise ConfigError(f"{purpose}: needs the package {package}; pip install '{install}'") from None
