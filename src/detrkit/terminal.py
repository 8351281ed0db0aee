"""The terminal: names of classes and files are shown as they are, whatever signs they hold."""

from rich.console import Console


def plain_console() -> Console:
    """A console that takes no text for markup and colours no numbers."""
    return Console(markup=False, highlight=False)
