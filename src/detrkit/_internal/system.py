"""Differences between operating systems in writing files."""

import os
import re
import time
from importlib import import_module
from pathlib import Path

IS_WINDOWS = os.name == "nt"
_NUM_TRIES = 20
_PAUSE = 0.05  # seconds between tries
_DEVICES = r"CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9\u00b9\u00b2\u00b3]"
_RESERVED = re.compile(rf"(?:{_DEVICES})\s*(?:\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def sync(handle: int) -> None:
    """Write an open file through to the disk, and on macOS through the disk's cache, where `os.fsync` stops."""
    try:
        fcntl = import_module("fcntl")
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
    except (ImportError, AttributeError, OSError):  # another system, or a file system that does not know it
        os.fsync(handle)


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder over another; on Windows, wait for programs that have it open, such as virus scanners.

    Raises:
        OSError: it is not allowed.
    """
    for left in reversed(range(_NUM_TRIES)):
        try:
            source.replace(target)
            return
        except PermissionError:
            if not IS_WINDOWS or not left:
                raise
            time.sleep(_PAUSE)


def usable_stem(stem: str) -> str:
    """Return a name that a file can have on this system: names of devices and some characters are none on Windows."""
    if not IS_WINDOWS:
        return stem
    name = _FORBIDDEN.sub("_", stem).rstrip(". ") or "_"
    return f"_{name}" if _RESERVED.fullmatch(name) else name
