"""Batch the images of concurrent requests, with one thread per device.

The image that has waited longest is always part of the next batch, together with others of similar size. Detections do not
depend on the other images of a batch (`BatchPredictor.max_padding`). A thread survives any error of a batch.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from detrkit.data.transforms.geometry import image_size
from detrkit.errors import DetrkitError
from detrkit.inference.batches import MinScores
from detrkit.inference.stream import BatchPredictor, choose_batch
from detrkit.serve.config import THREAD_PREFIX
from detrkit.structures import Detections, Sample

_LOG = logging.getLogger(__name__)
PredictorT = TypeVar("PredictorT", bound=BatchPredictor)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _Job:
    """A job for a device: an image to predict, or a function to call."""

    future: Future[Any]
    since: float  # seconds of the monotonic clock
    sample: Sample | None = None
    min_scores: MinScores = 0.0
    call: Callable[[Any], Any] | None = None


class Batcher(Generic[PredictorT]):
    """Distributes waiting jobs to the devices."""

    def __init__(
        self,
        predictors: Sequence[PredictorT],
        batch_size: int,
        batch_wait: float = 0.0,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """Start one thread per device.

        Args:
            predictors: one per device.
            batch_size: maximum number of images per batch.
            batch_wait: maximum seconds that an image waits for others on an idle device.
            on_batch: called with the size of each batch.
        """
        self._batch_size = batch_size
        self._batch_wait = batch_wait
        self._on_batch = on_batch or (lambda size: None)
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(predictor,), name=f"{THREAD_PREFIX} device {number}", daemon=True)
            for number, predictor in enumerate(predictors)
        ]
        for thread in self._threads:
            thread.start()

    def predict(self, sample: Sample, min_scores: MinScores) -> Future[Detections]:
        """Queue a preprocessed image for the next batch; a cancelled future is skipped."""
        return self._add(_Job(Future(), time.monotonic(), sample=sample, min_scores=min_scores))

    def call(self, function: Callable[[PredictorT], ResultT]) -> Future[ResultT]:
        """Queue a function that needs a device for itself."""
        return self._add(_Job(Future(), time.monotonic(), call=function))

    def __len__(self) -> int:
        """Return the number of waiting jobs."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Return whether the thread of every device is running."""
        return not self._is_closed and all(thread.is_alive() for thread in self._threads)

    def close(self, seconds: float | None = None) -> None:
        """Finish the running batches, cancel the waiting jobs, and end the threads.

        Args:
            seconds: maximum time to wait for the running batches; default: any.
        """
        with self._changed:
            self._is_closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()
        end = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    def _add(self, job: _Job) -> Future[Any]:
        with self._changed:
            if self._is_closed:
                job.future.cancel()
            else:
                self._waiting.append(job)
                self._changed.notify_all()
        return job.future

    def _work(self, predictor: PredictorT) -> None:
        while jobs := self._next_jobs(predictor.max_padding):
            running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if running:
                _run(predictor, running, self._on_batch)

    def _next_jobs(self, max_padding: float) -> list[_Job]:
        """Wait for jobs; an empty list ends the thread."""
        with self._changed:
            while not self._is_closed:
                self._drop_cancelled()
                seconds = self._seconds_to_wait()
                if seconds is not None and seconds <= 0:
                    return self._take(max_padding)
                self._changed.wait(seconds)
        return []

    def _drop_cancelled(self) -> None:
        if any(job.future.cancelled() for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.future.cancelled())

    def _seconds_to_wait(self) -> float | None:
        """Return how long to wait for further jobs; None while the queue is empty."""
        if not self._waiting:
            return None
        if self._waiting[0].call or len(self._waiting) >= self._batch_size:
            return 0
        return self._waiting[0].since + self._batch_wait - time.monotonic()

    def _take(self, max_padding: float) -> list[_Job]:
        first = self._waiting[0]
        sizes = {
            number: image_size(job.sample)
            for number, job in enumerate(self._waiting)
            if job.sample is not None and job.min_scores == first.min_scores
        }
        numbers = set(choose_batch(sizes, self._batch_size, max_padding)) if first.sample is not None else {0}
        jobs = [self._waiting[number] for number in sorted(numbers)]
        self._waiting = deque(job for number, job in enumerate(self._waiting) if number not in numbers)
        return jobs


def _run(predictor: PredictorT, jobs: list[_Job], on_batch: Callable[[int], None]) -> None:
    """Run jobs. A failed batch is repeated image by image, so that only the images that cause the error fail."""
    samples = [job.sample for job in jobs if job.sample is not None]
    try:
        if samples:
            on_batch(len(samples))
            results: list[Any] = list(predictor.predict_samples(samples, jobs[0].min_scores))
        else:
            results = [job.call(predictor) for job in jobs if job.call is not None]
        assert len(results) == len(jobs)
    except BaseException as error:  # the thread must survive
        if len(jobs) > 1:
            for job in jobs:
                _run(predictor, [job], on_batch)
            return
        if not isinstance(error, DetrkitError):
            _LOG.exception("an image could not be predicted")
        # asyncio does not propagate SystemExit, KeyboardInterrupt and StopIteration
        propagates = isinstance(error, Exception) and not isinstance(error, StopIteration)
        jobs[0].future.set_exception(error if propagates else RuntimeError(repr(error)))
        return
    for job, result in zip(jobs, results, strict=True):
        job.future.set_result(result)
