"""Stop a run after its current step on Ctrl-C or SIGTERM."""

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Records the first signal; a second one is handled as usual.

    Attributes:
        received: number of the signal; None before it arrives.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        """Install the handlers; does nothing outside of the main thread."""
        try:
            self._before = {number: signal.signal(number, self._record) for number in _SIGNALS}
        except ValueError:
            self._before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self.__exit__(None, None, None)
