"""Console helpers of the commands: escaped output, tables, progress bars, warnings logged by the library."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from detrkit.checkpoints.hashes import DOWNLOADS
from detrkit.cli.flags import flag_style
from detrkit.errors import escape_control_characters, render_arguments

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def get_console(*, stderr: bool = False) -> "Console":
    """Return a console that interprets no markup, colours no numbers, and passes no control character to the terminal."""
    from rich.console import Console
    from rich.text import Text

    class EscapingConsole(Console):
        def render_str(self, text: str, **style: Any) -> Text:
            return super().render_str(escape_control_characters(text), **style)

    return EscapingConsole(markup=False, highlight=False, stderr=stderr)


def build_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    """Build a table whose first column is aligned left and all others right."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


@contextmanager
def progress_bar(description: str, *, visible: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, if it is a terminal; it disappears when the block ends.

    Yields:
        A function of (done, total), to be passed as `progress` to a library function.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(description),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    if not (
        visible and console.is_terminal
    ):  # a transient bar, with rich before 14.3 a disabled one, leaves an empty line
        yield lambda done, total: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class WarningPrinter(logging.Handler):
    """Prints what the library logs as warnings, and announcements of downloads, one line each, on stderr."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._shown: set[str] = set()  # notes on a source, which a command may read several times

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if record.levelno < logging.WARNING and record.name != DOWNLOADS:
            return
        raw = getattr(record, "detrkit_message", None)  # in which arguments can be rendered as flags
        if raw in self._shown:
            return
        if raw is not None:
            self._shown.add(raw)
        text = record.getMessage() if raw is None else render_arguments(raw, flag_style)
        is_warning = record.levelno >= logging.WARNING  # others announce downloads
        get_console(stderr=True).print(f"{record.levelname.lower()}: {text}" if is_warning else text, soft_wrap=True)
