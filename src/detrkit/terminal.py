"""What people read: names of classes and files are shown as they are, whatever signs they hold; numbers fit their nouns."""

from rich.console import Console


def plain_console() -> Console:
    """A console that takes no text for markup and colours no numbers."""
    return Console(markup=False, highlight=False)


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Write a number before its noun: 1 photo, 2 photos; `nouns` where these do not end in an s alone."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"
