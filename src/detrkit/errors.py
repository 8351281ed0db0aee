"""Exceptions that users can act on, and how their messages name arguments.

A message is one sentence, or two short ones: what is wrong and where, the value that was found, what was expected, what
to do. Arguments are named with `arg`: Python callers read ``freeze='encoder'``, and the command line renders the same
message with the name of its flag.
"""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from reprlib import Repr
from typing import Any

_START, _SEPARATOR, _END = "\ue000", "\ue001", "\ue002"  # private use: names and values are shown without them
_PART = f"([^{_START}{_SEPARATOR}{_END}]*)"  # excluding the marks keeps the search linear, whatever a message contains
_ARGUMENT = re.compile(f"{_START}{_PART}{_SEPARATOR}{_PART}{_SEPARATOR}{_PART}{_END}")
_WITHOUT_MARKS = str.maketrans(dict.fromkeys((_START, _SEPARATOR, _END), "\ufffd"))
# all control characters but tab and newline, and those that change the order or the lines of the text around them
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNSET = object()
_MAX_CHARACTERS = 2000  # of a message; paths have at most 4096, usual ones 200

# (name, repr of the value or "", text of the value or "") -> what a reader sees
ArgumentStyle = Callable[[str, str, str], str]


def arg(name: str, value: object = _UNSET) -> str:
    """Name an argument in an error message.

    Args:
        name: of the Python argument or setting, for example ``"freeze"``.
        value: the value that was found; omit it to name the argument alone.

    Returns:
        Text to put into the message of a `DetrkitError`, which renders it: ``freeze='encoder'`` in Python,
        the flag and its value on the command line.
    """
    shown, text = ("", "") if value is _UNSET else (short(value), str(value))
    parts = (part.translate(_WITHOUT_MARKS) for part in (name, shown, text))
    return f"{_START}{_SEPARATOR.join(parts)}{_END}"


def python_style(name: str, shown: str, text: str) -> str:
    """Render an argument as Python code: ``name=value``, or its name if it has no value."""
    return f"{name}={shown}" if shown else name


class DetrkitError(Exception):
    """Base class of all mistakes that the caller can correct.

    Attributes:
        message: the text before arguments are rendered; pass it on when one error explains another.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_one_line(render_arguments(message, python_style)))
        self.message = message

    def render(self, style: ArgumentStyle) -> str:
        """Return the message with its arguments named in another `style`, such as the command line's."""
        return _one_line(render_arguments(self.message, style))


def escape_control_characters(text: str) -> str:
    """Escape control characters other than tab and newline, which could hide or forge lines on a terminal."""
    return _CONTROL.sub(
        lambda match: f"\\x{ord(match[0]):02x}" if match[0] < "\xff" else f"\\u{ord(match[0]):04x}", text
    )


def _one_line(message: str) -> str:
    """Return a message as one line of a bounded length: parts of it are from files, and may contain anything."""
    line = " ".join(part.strip() for part in message.splitlines())
    line = escape_control_characters(line)
    if len(line) <= _MAX_CHARACTERS:
        return line
    return f"{line[: _MAX_CHARACTERS // 2]} [...] {line[-_MAX_CHARACTERS // 2 :]}"


def render_arguments(message: str, style: ArgumentStyle) -> str:
    """Replace what `arg` inserted by what a reader sees."""
    return _ARGUMENT.sub(lambda match: style(match[1], match[2], match[3]), message)


class ConfigError(DetrkitError):
    """A setting, preset or argument is wrong."""


class DatasetError(DetrkitError):
    """An image, an annotation file or a dataset folder is missing or malformed."""


class CheckpointError(DetrkitError):
    """A weights file is missing, malformed, or made for another model."""


class NonFiniteError(DetrkitError):
    """Training was ended because losses or gradients were infinite or not a number, several steps in a row."""


class ExportError(DetrkitError):
    """A model cannot be exported to the requested format."""


def did_you_mean(name: object, known: Iterable[str], listed_by: str = "") -> str:
    """Suggest the closest known name, or say where all of them are.

    Args:
        name: that was found.
        known: names that were expected.
        listed_by: command that lists them with more about each; without one, all are named.
    """
    known = list(known)
    lower = {one.lower(): one for one in reversed(known)}
    close = get_close_matches(str(name).lower(), lower, n=1)
    if close:
        return f"did you mean {lower[close[0]]!r}?"
    return f"{listed_by} lists all" if listed_by else f"choose one of {', '.join(known)}"


def check_minimum(name: str, value: float, minimum: float) -> None:
    """Check the lower bound of a number.

    Raises:
        ConfigError: it is smaller.
    """
    if value < minimum:
        raise ConfigError(f"{arg(name, value)} is too small; expected at least {minimum:g}")


def short(value: Any) -> str:
    """Return a short repr of a value for a message; nested ones, which YAML aliases can make huge, are cut."""
    brief = Repr()
    brief.maxlevel, brief.maxstring, brief.maxlong, brief.maxother = 3, 80, 80, 80
    text = brief.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def install_hint(requirement: str) -> str:
    """Return how to install a package into this environment: environments made by uv have no pip of their own.

    Args:
        requirement: package, or extra such as ``"detrkit[serve]"``.
    """
    from importlib.metadata import PackageNotFoundError, version  # takes a third of the start of a decoding process

    try:
        version("pip")
    except PackageNotFoundError:
        return f"install it with: uv pip install '{requirement}'"
    return f"install it with: python -m pip install '{requirement}'"


def import_optional(package: str, purpose: str, install: str) -> Any:
    """Import an optional dependency.

    Args:
        package: to import.
        purpose: what needs it, as the beginning of a sentence.
        install: what to install.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise ConfigError(f"{purpose} needs the package {package}; {install_hint(install)}") from None
