"""Make glibc's malloc keep freed memory for the next step, instead of returning it to the system."""

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_THRESHOLD = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep large freed blocks in this process.

    A training step on a CPU frees and allocates a gigabyte or more in large blocks, which glibc would map again page by
    page. The process keeps its peak memory until it ends. Measured on two cores with 4 images of 320 px: detrkit-s takes
    9 % less CPU time per step (0.28 instead of 0.31 s; 600 instead of 10,000 page faults), detr-r50 the same.

    Returns:
        Whether the C library supports it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAX_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _MAX_THRESHOLD))
