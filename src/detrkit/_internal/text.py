"""Text for people: names on one line, plurals, durations, first lines of errors."""

import json

from detrkit.errors import escape_control_characters


def printable(name: str) -> str:
    """Return a name on one line, its control characters escaped."""
    return escape_control_characters(name).replace("\n", "\\n")


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: 1 image, 2 images; `nouns` is the plural where it is not `noun` + s."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 4.2 s, 48 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def valid_text(text: str) -> str:
    """Replace what is no character, and cannot be written to a file: halves of surrogate pairs."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def first_line(error: Exception) -> str:
    """Return the first line of an error message, escaped and cut to 150 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return json.dumps(lines[0][:150], ensure_ascii=False)[1:-1] if lines else type(error).__name__


def format_distinctly(value: float, limit: float) -> tuple[str, str]:
    """Write two numbers with two digits, or with as many as show that they differ."""
    for digits in range(2, 17):
        texts = f"{value:.{digits}f}", f"{limit:.{digits}f}"
        if texts[0] != texts[1]:
            return texts
    return f"{value:.2f}", f"{limit:.2f}"
