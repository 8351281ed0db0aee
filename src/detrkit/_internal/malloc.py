"""How the C library treats memory that was freed: kept for the next step, instead of handed back and fetched again."""

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_EVERYTHING = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let large blocks be reused within this process; tell whether the C library can.

    A step on a CPU frees and takes a gigabyte or more in large blocks, each of which glibc would map anew, page by page.
    The process holds its largest memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _EVERYTHING) and mallopt(_M_TRIM_THRESHOLD, _EVERYTHING))
