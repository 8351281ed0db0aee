"""What people read: names of classes and files are shown as they are, but none is obeyed; numbers fit their nouns."""

import re
from typing import Any

from rich.console import Console
from rich.text import Text

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters but tabs and line ends


def printable(name: str) -> str:
    """Write out the control characters of a name, with which it could hide lines and write others; in one line."""
    return _written_out(name).replace("\n", "\\n")


def plain_console() -> Console:
    """A console that takes no text for markup, colours no numbers, and hands no control characters to the terminal."""
    return _PlainConsole(markup=False, highlight=False)


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Write a number before its noun: 1 photo, 2 photos; `nouns` where these do not end in an s alone."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"


class _PlainConsole(Console):
    """Writes out control characters of all text that is printed, in tables too."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(_written_out(text), **how)


def _written_out(text: str) -> str:
    return _OBEYED.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
