"""Age of this process."""

import os
import time
from pathlib import Path


def seconds_since_start() -> float:
    """Return the seconds since this process was started; where the system does not say, the CPU time that it has used."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        ticks = int(fields[19])  # field 22 of proc(5): start time since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.process_time()
