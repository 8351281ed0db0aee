"""Inputs of several files as one string of bytes, which a fuzzer can mutate and a corpus can hold."""

from collections.abc import Sequence

SEPARATOR = b"\n--8<--\n"


def join(parts: Sequence[bytes]) -> bytes:
    """Return the content of several files as one input."""
    return SEPARATOR.join(parts)


def split(content: bytes, count: int) -> list[bytes]:
    """Return the files of an input; missing ones are empty."""
    parts = content.split(SEPARATOR, count - 1)
    return parts + [b""] * (count - len(parts))
