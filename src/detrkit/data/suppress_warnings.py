"""Suppression of the warnings of image decoders about unusual metadata."""

import threading
import warnings
from types import TracebackType


class SuppressWarnings:
    """Context manager that suppresses warnings while any thread is inside.

    Warning filters belong to the whole process: the first thread to enter replaces them, and the last to leave restores
    them. With one `catch_warnings` per thread, a thread could restore the filters that another has set.
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
