"""Errors that a user can act on, as one line of text."""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError
from pydantic import ValidationError

from detrkit.cli.flags import flag, style_of_command
from detrkit.errors import DetrkitError, did_you_mean


def error_line(error: Exception, arguments: Sequence[str], commands: Sequence[str]) -> str:
    """Return the message of an error on one line, with arguments named as the command names them.

    Args:
        error: a `DetrkitError`, or an error of parsing.
        arguments: of the command line, the command first.
        commands: names of all commands.
    """
    command, function = _command_of(arguments)
    if isinstance(error.__cause__, ValidationError):
        text = _of_validation(error.__cause__)
    elif isinstance(error, DetrkitError):
        text = error.render(style_of_command(function))
    elif isinstance(error, UnknownCommandError):
        found = (error.unused_tokens or [command])[0]
        suggestion = did_you_mean(found, commands)
        text = f"{found} is not a command; {suggestion}"
        if not suggestion.startswith("choose"):
            text += f" All commands: {', '.join(commands)}"
    elif isinstance(error, UnusedCliTokensError):
        text = f"{command}: unexpected {' '.join(error.unused_tokens or [])}; usage: {_usage(command, function)}"
    elif type(error) is MissingArgumentError and error.argument is not None:
        text = _of_missing(error, command, function)
    else:
        text = str(error)
        if isinstance(error, UnknownOptionError) and "?" not in text:
            text += f" detrkit {command} --help lists all."
    return " ".join(text.split())


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory of the computer or of a GPU ran out, also in a training process of its own."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (
            type(error).__name__ == "OutOfMemoryError"  # of torch, which need not be imported
            or "torch.OutOfMemoryError" in text
            or "DefaultCPUAllocator: can't allocate memory" in text
        )
    )


def _command_of(arguments: Sequence[str]) -> tuple[str, Callable[..., Any] | None]:
    """Return the command of a command line and its function, if that was imported."""
    command = arguments[0] if arguments else ""
    name = command.replace("-", "_")
    module = sys.modules.get(f"detrkit.cli.{name}")
    if command == "describe" and "data" in arguments[1:2]:
        command, name = "describe data", "data"
    return command, getattr(module, name, None)


def _of_validation(error: ValidationError) -> str:
    """Return the flag of a setting that fails validation and the reason, not pydantic's report."""
    first = error.errors()[0]
    name = flag(".".join(str(part) for part in first["loc"] if not isinstance(part, int)))
    return f"{name}: found {first['input']}; {first['msg'].lower()}"


def _of_missing(error: MissingArgumentError, command: str, function: Callable[..., Any] | None) -> str:
    assert error.argument is not None
    name = error.keyword or error.argument.name
    given = name.startswith("-") and any(token.keyword for token in error.argument.tokens)
    misspelt = [token for token in error.unused_tokens or [] if token.startswith("-")]
    if given:
        return f"{name} has no value; usage: {_usage(command, function)}"
    hint = f", found {misspelt[0]}" if name.startswith("-") and misspelt else ""
    return f"{name} is missing{hint}; usage: {_usage(command, function)}"


def _usage(command: str, function: Callable[..., Any] | None) -> str:
    """Return a call of a command with all that it requires."""
    words = ["detrkit", command]
    for parameter in inspect.signature(function).parameters.values() if function else ():
        name = flag(parameter.name, function)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            words.append(f"{name}...")
        elif parameter.default is not inspect.Parameter.empty:
            words += [] if parameter.kind is inspect.Parameter.KEYWORD_ONLY else [f"[{name}]"]
        else:
            words.append(f"{name} {parameter.name.upper()}" if name.startswith("-") else name)
    return " ".join(words)
