"""Contract of readers of untrusted content: return a result or raise a `DetrkitError` of one line, within limits.

Time is CPU time of this process, so that a busy machine changes nothing. Memory is the growth of the resident set at
its peak.
"""

import gc
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detrkit.errors import DetrkitError

MAX_SECONDS = 2.0
MAX_BYTES = 300_000_000
_MAX_CHARACTERS = 3000  # of a message
_OUT_OF_MEMORY = ("can't allocate memory", "Unable to allocate", "bad allocation", "std::bad_alloc")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Finding:
    """A violation.

    Attributes:
        kind: name of the exception, or the limit that was exceeded.
        place: innermost line of detrkit.
        detail: the message and the stack trace, or the measured value.
    """

    kind: str
    place: str
    detail: str

    @property
    def key(self) -> str:
        """Equal for violations of the same cause."""
        return f"{self.kind} at {self.place}"


class _Peak:
    """Peak of the resident set, where Linux tells it."""

    def __init__(self) -> None:
        self.is_known = _CLEAR_REFS.exists()
        self.start = self._reset()

    def _reset(self) -> int:
        if not self.is_known:
            return 0
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:  # a container may forbid it
            self.is_known = False
            return 0
        return _value("VmRSS")

    def growth(self) -> int:
        """Bytes by which the peak exceeds the start."""
        return _value("VmHWM") - self.start if self.is_known else 0


def _value(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def check(run: Callable[[], None], max_seconds: float = MAX_SECONDS) -> Finding | None:
    """Run a reader on one input, and return how it violates its contract; None if it does not."""
    peak, started = _Peak(), time.process_time()
    finding = _call(run)
    seconds, growth = time.process_time() - started, peak.growth()
    if finding is None and seconds > max_seconds:
        finding = Finding("slow", "", f"{seconds:.1f} s of CPU time")
    if finding is None and growth > MAX_BYTES:
        gc.collect()
        finding = Finding("memory", "", f"{growth / 1e6:.0f} MB")
    return finding


def _call(run: Callable[[], None]) -> Finding | None:
    try:
        run()
    except DetrkitError as error:
        return _fault_of_message(error)
    except Exception as error:
        return Finding(type(error).__name__, _place(error), "".join(traceback.format_exception(error)))
    return None


def _fault_of_message(error: DetrkitError) -> Finding | None:
    """Check that a message is one line that any terminal can print, and does not hide that memory was exhausted."""
    text, place = str(error), _place(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or any(words in str(cause) for words in _OUT_OF_MEMORY):
            return Finding("memory", place, f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    if not text or len(text) > _MAX_CHARACTERS or len(text.splitlines()) != 1:
        return Finding("message", place, f"{len(text)} characters, {len(text.splitlines())} lines: {text[:2000]!r}")
    return None


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "/detrkit/" in one.filename.replace("\\", "/")]
    if not own:
        return frames[-1].name if frames else ""
    return f"{own[-1].filename.rsplit('/detrkit/', 1)[-1]}:{own[-1].name}"


def report(name: str, finding: Finding) -> None:
    """Print a violation to stderr."""
    sys.stderr.write(f"{name}: {finding.key}\n{finding.detail}\n")
    sys.stderr.flush()
