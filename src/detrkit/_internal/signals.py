"""Requests to stop: SIGINT (Ctrl-C), SIGTERM, or a callback."""

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Records the first SIGINT or SIGTERM instead of ending the process; a second one has its usual effect.

    Attributes:
        received: number of the signal, or None.
        requested: whether a callback asked to stop.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.requested = False
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
