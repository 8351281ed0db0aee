"""Photos of many callers -> batches of like shapes, one thread for each device.

The photo that has waited longest is part of the next batch, so that none starves; others of like shape go with it. What is
found in a photo does not depend on them (`Finder.max_padding`). Whatever a batch raises, its thread goes on.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from detrkit.data.transforms.geometry import size_of
from detrkit.errors import DetrkitError
from detrkit.inference.stream import BatchPredictor, choose_batch
from detrkit.structures import Detections, Sample

_LOG = logging.getLogger(__name__)
FinderT = TypeVar("FinderT", bound=BatchPredictor)
Answer = TypeVar("Answer")
LeastScores = float | tuple[float, ...]  # of all labels, or of each


@dataclass(frozen=True)
class _Job:
    """Something that waits for a device: a photo to be predicted, or a call that has the device for itself."""

    future: Future[Any]
    since: float  # seconds of a clock that never goes back
    sample: Sample | None = None
    threshold: LeastScores = 0.0
    call: Callable[[Any], Any] | None = None


class Batcher(Generic[FinderT]):
    """Hands what waits to the devices."""

    def __init__(
        self,
        finders: Sequence[FinderT],
        batch_size: int,
        batch_wait: float = 0.0,
        note_batch: Callable[[int], None] | None = None,
    ) -> None:
        """Start a thread for each device.

        Args:
            finders: one a device.
            batch_size: photos at a time.
            batch_wait: seconds that a photo waits for others at most, while its device has nothing else to do.
            note_batch: told the size of each batch.
        """
        self._batch_size = batch_size
        self._batch_wait = batch_wait
        self._note_batch = note_batch or (lambda size: None)
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(finder,), name=f"device {number}", daemon=True)
            for number, finder in enumerate(finders)
        ]
        for thread in self._threads:
            thread.start()

    def predict(self, sample: Sample, threshold: LeastScores) -> Future[Detections]:
        """Let a prepared photo wait for the next batch; a cancelled one is passed over."""
        return self._add(_Job(Future(), time.monotonic(), sample=sample, threshold=threshold))

    def call(self, function: Callable[[FinderT], Answer]) -> Future[Answer]:
        """Let something be done with a device that must have it alone."""
        return self._add(_Job(Future(), time.monotonic(), call=function))

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether every device has its thread."""
        return not self._is_closed and all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Finish what is being computed, give up what waits, and end the threads."""
        with self._changed:
            self._is_closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _add(self, job: _Job) -> Future[Any]:
        with self._changed:
            if self._is_closed:
                job.future.cancel()
            else:
                self._waiting.append(job)
                self._changed.notify_all()
        return job.future

    def _work(self, finder: FinderT) -> None:
        while jobs := self._next_jobs(finder.max_padding):
            running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if running:
                _run(finder, running, self._note_batch)

    def _next_jobs(self, max_padding: float) -> list[_Job]:
        """Wait for something to do; nothing at all means that it is over."""
        with self._changed:
            while not self._is_closed:
                self._drop_cancelled()
                patience = self._patience()
                if patience is not None and patience <= 0:
                    return self._take(max_padding)
                self._changed.wait(patience)
        return []

    def _drop_cancelled(self) -> None:
        if any(job.future.cancelled() for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.future.cancelled())

    def _patience(self) -> float | None:
        """How many seconds it is worth waiting for more; None while there is nothing."""
        if not self._waiting:
            return None
        if self._waiting[0].call or len(self._waiting) >= self._batch_size:
            return 0
        return self._waiting[0].since + self._batch_wait - time.monotonic()

    def _take(self, max_padding: float) -> list[_Job]:
        first = self._waiting[0]
        sizes = {
            number: size_of(job.sample)
            for number, job in enumerate(self._waiting)
            if job.sample is not None and job.threshold == first.threshold
        }
        numbers = set(choose_batch(sizes, self._batch_size, max_padding)) if first.sample is not None else {0}
        jobs = [self._waiting[number] for number in sorted(numbers)]
        self._waiting = deque(job for number, job in enumerate(self._waiting) if number not in numbers)
        return jobs


def _run(finder: FinderT, jobs: list[_Job], note_batch: Callable[[int], None]) -> None:
    """Answer jobs. A batch that fails is predicted photo by photo, so that it fails for those alone who made it fail."""
    samples = [job.sample for job in jobs if job.sample is not None]
    try:
        if samples:
            note_batch(len(samples))
            answers: list[Any] = list(finder.predict_samples(samples, jobs[0].threshold))
        else:
            answers = [job.call(finder) for job in jobs if job.call is not None]
        assert len(answers) == len(jobs)
    except BaseException as error:  # nothing may end the thread
        if len(jobs) > 1:
            for job in jobs:
                _run(finder, [job], note_batch)
            return
        if not isinstance(error, DetrkitError):
            _LOG.exception("a photo could not be computed")
        # asyncio hands on neither what ends programs nor what ends generators
        can_pass = isinstance(error, Exception) and not isinstance(error, StopIteration)
        jobs[0].future.set_exception(error if can_pass else RuntimeError(repr(error)))
        return
    for job, answer in zip(jobs, answers, strict=True):
        job.future.set_result(answer)
