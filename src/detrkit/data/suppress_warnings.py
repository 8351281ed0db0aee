"""Decoders warn of odd metadata, which is no reason to bother anyone."""

import threading
import warnings
from types import TracebackType


class SuppressWarnings:
    """No warnings while any thread decodes.

    Warning filters belong to the whole process. The first thread to enter sets them aside, and the last to leave puts
    them back: with a `catch_warnings` for each, one could put back what another had set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(kind, error, trace)
