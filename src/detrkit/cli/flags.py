"""How arguments of the Python API are called on the command line."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from detrkit.errors import ArgumentStyle

_REPEATED = {"allowed_hosts": "--allowed-host"}  # each takes one value and may be repeated
_POSITIONAL = {"data": "DATA", "source": "SOURCE", "sources": "SOURCE", "images": "IMAGE", "image": "IMAGE"}


def flag(name: str, command: Callable[..., Any] | None = None) -> str:
    """Return the flag of a Python argument or setting: ``batch_size`` is ``--batch-size``.

    Args:
        name: of the argument.
        command: whose signature tells positional arguments from options; by default, those of most commands.
    """
    parameter = inspect.signature(command).parameters.get(name) if command else None
    if parameter is not None and parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        return _POSITIONAL.get(name, name.upper())
    if parameter is None and name in _POSITIONAL:
        return _POSITIONAL[name]
    return _REPEATED.get(name, f"--{name.replace('_', '-')}")


def flag_style(name: str, shown: str, text: str, command: Callable[..., Any] | None = None) -> str:
    """Render an argument named in an error message; an `detrkit.errors.ArgumentStyle`."""
    if text in ("True", "False"):
        return flag(name, command) if text == "True" else f"--no-{name.replace('_', '-')}"
    return f"{flag(name, command)} {text}" if text else flag(name, command)


def style_of_command(command: Callable[..., Any] | None) -> ArgumentStyle:
    """Return the style that names arguments as a command does."""
    return partial(flag_style, command=command)
