"""What can go wrong and whom it concerns.

A message is one sentence: where, what was found, what was expected, what to do. The command line prints it and exits
with code 2; Python callers catch `DetrkitError` or the kind they can act on.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from reprlib import Repr
from typing import Any

_MAX_CHOICES = 20  # of names that a message lists


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
    if close:
        return f"did you mean {close[0]!r}?"
    rest = len(known) - _MAX_CHOICES
    return f"choose one of {', '.join(known[:_MAX_CHOICES])}{f' and {rest} more' if rest > 0 else ''}"


def option(name: str) -> str:
    """What a user types for a setting."""
    return f"--{name.replace('_', '-')}"


def short(value: Any) -> str:
    """Show a wrong value in a message; of nested ones, which aliases in YAML can make huge, no more than the beginning."""
    brief = Repr()
    brief.maxlevel, brief.maxstring, brief.maxlong, brief.maxother = 3, 80, 80, 80
    text = "nothing" if value is None else brief.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
