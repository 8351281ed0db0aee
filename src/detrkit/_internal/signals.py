"""Requests to stop: SIGINT (Ctrl-C), SIGTERM, or a callback."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Records the first SIGINT or SIGTERM instead of ending the process; a second one has its usual effect.

    Attributes:
        received: number of the signal, or None.
        requested: whether a callback asked to stop.
        on_signal: called by the handler of the first signal; None for nothing. It runs between two instructions of the main
            thread, which may be anywhere, so it must be short and take no locks.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.requested = False
        self.on_signal: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}

    @property
    def is_set(self) -> bool:
        """Return whether to stop."""
        return self.requested or self.received is not None

    def __enter__(self) -> "StopSignal":
        """Install the handlers; outside of the main thread, where Python does not allow it, signals are not recorded."""
        try:
            self._previous = {number: signal.signal(number, self._record) for number in _SIGNALS}
        except ValueError:
            self._previous = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self.__exit__(None, None, None)
        if self.on_signal is not None:
            self.on_signal()


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Hold SIGINT back. Processes that are started meanwhile hold it back until they call `release_interrupts`.

    Without this, Ctrl-C in a process that still imports its modules prints a stack trace.
    """
    if sys.platform == "win32":
        yield
        return
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # starting it with the first process would release the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_interrupts() -> None:
    """Receive SIGINT from now on, and at once if it was held back, as KeyboardInterrupt."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
