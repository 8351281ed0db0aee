"""Decode uploads in processes of their own, so that no image delays others for long, whatever it contains.

There are two lanes. Small images are decoded first come, first served; large ones have processes of their own. A small
image that takes long while others wait is decoded again in the lane of the large ones. There its processor time is limited,
and when its request ends, its process does. Processes that ended are started again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from detrkit.data.decoding import TooMuchWorkError
from detrkit.errors import DatasetError, arg
from detrkit.serve.config import THREAD_PREFIX
from detrkit.serve.decoder import Decoder, DecoderEndedError, DecodeRequest, DecoderStartError
from detrkit.serve.http_errors import HttpError, cannot_decode

_LOG = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
_SMALL = 32e6  # pixels of an image of the first lane, about half a second
_PATIENCE = 2.0  # seconds that a small image may take while none waits, divided by 1 + the number that wait
_MIN_PATIENCE = 0.25
_STUCK = 5.0  # seconds after which a decoder counts as stuck
_TICK = 0.1  # seconds between two looks at the running images
_NICENESS = 5  # of processes for large images, among which endless ones end up
_RETRY = 1.0  # seconds between two attempts to start a process


@dataclass(eq=False)
class _Job:
    """An upload to decode, and what to do with its pixels. The future stays pending, so that it can be cancelled."""

    request: DecodeRequest
    finish: Callable[[np.ndarray], Any]
    future: Future[Any] = field(default_factory=Future)
    decoder: Decoder | None = None
    since: float = 0.0  # seconds of the monotonic clock
    is_moved: bool = False


@dataclass(eq=False)
class _Lane:
    """Images that wait for the same decoders, and those that are being decoded."""

    max_work: float
    changed: threading.Condition
    waiting: deque[_Job] = field(default_factory=deque)
    running: list[_Job] = field(default_factory=list)


class Decoders:
    """Processes that decode images, each with a thread."""

    def __init__(self, workers: int) -> None:
        """Start the threads, and the processes for small images.

        Args:
            workers: processes per lane; those for large images are started when they are needed.
        """
        # one lock; a condition for each kind of thread, so that an image wakes up only the one that decodes it
        lock = threading.RLock()
        self._changed, self._has_running = threading.Condition(lock), threading.Condition(lock)
        self._small = _Lane(_SMALL, threading.Condition(lock))
        self._large = _Lane(float("inf"), threading.Condition(lock))
        self._is_closed = False
        self._restarts = 0
        self._starting = 0
        self._failure: str | None = None
        self._unstarted = workers  # processes that have not been started once
        self._decoders = [Decoder(_NICENESS * (number >= workers)) for number in range(2 * workers)]
        self._threads = [threading.Thread(target=self._watch, name=f"{THREAD_PREFIX} watch", daemon=True)]
        for number, decoder in enumerate(self._decoders):
            lane = self._small if number < workers else self._large
            arguments = (lane, decoder)
            name = f"{THREAD_PREFIX} images {number}"
            self._threads.append(threading.Thread(target=self._work, args=arguments, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, request: DecodeRequest, finish: Callable[[np.ndarray], ResultT]) -> Future[ResultT]:
        """Decode an upload, and return what `finish` makes of its pixels, in a thread; a cancellation stops it."""
        job = _Job(request, finish)
        self._queue(self._small, job)
        return job.future

    def wait_until_started(self, seconds: float) -> None:
        """Wait until the processes for small images can decode, or could not be started."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unstarted or self._is_closed, seconds)

    @property
    def is_able(self) -> bool:
        """Return whether processes can be started."""
        return self._failure is None and not self._is_closed

    def to_json(self) -> dict[str, int]:
        """Return numbers of images and of processes."""
        with self._changed:
            running = [*self._small.running, *self._large.running]
            now = time.monotonic()
            return {
                "waiting": len(self._small.waiting) + len(self._large.waiting),
                "busy": len(running),
                "stuck": sum(job.decoder is not None and now - job.since > _STUCK for job in running),
                "starting": self._starting,
                "restarts": self._restarts,
            }

    def pids(self) -> list[int]:
        """Return the ids of the running processes."""
        return [pid for decoder in self._decoders if (pid := decoder.pid) is not None]

    def close(self, seconds: float | None = None) -> None:
        """Cancel all images, and end the processes and threads.

        Args:
            seconds: maximum time to wait for the threads; default: any.
        """
        with self._changed:
            self._is_closed = True
            for lane in (self._small, self._large):
                for job in (*lane.waiting, *lane.running):
                    job.future.cancel()
                lane.waiting.clear()
                lane.changed.notify_all()
            self._changed.notify_all()
            self._has_running.notify_all()
        for decoder in self._decoders:
            decoder.close()
        end = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    def _queue(self, lane: _Lane, job: _Job) -> None:
        with self._changed:
            if self._is_closed:
                job.future.cancel()
            else:
                lane.waiting.append(job)
                lane.changed.notify()

    def _work(self, lane: _Lane, decoder: Decoder) -> None:
        if lane is self._small:
            self._start(decoder)
            with self._changed:
                self._unstarted -= 1
                self._changed.notify_all()
        while (job := self._next(lane)) is not None:
            try:
                self._decode(lane, decoder, job)
            except BaseException as error:  # the thread must survive
                if not isinstance(error, DatasetError | HttpError):
                    _LOG.exception("an image could not be read")
                _fail(job, error if isinstance(error, Exception) else RuntimeError(repr(error)))
            finally:
                with self._changed:
                    lane.running.remove(job)
            if not decoder.is_running:
                with self._changed:
                    self._restarts += 1
                self._start(decoder)
        decoder.close()
        decoder.reap()

    def _next(self, lane: _Lane) -> _Job | None:
        """Wait for an image; None ends the thread."""
        with self._changed:
            while not self._is_closed:
                while lane.waiting:
                    job = lane.waiting.popleft()
                    if not job.future.cancelled():
                        lane.running.append(job)
                        self._has_running.notify_all()
                        return job
                lane.changed.wait()
        return None

    def _start(self, decoder: Decoder) -> bool:
        """Start a process; a failure is remembered until an attempt succeeds."""
        if self._is_closed:
            return False
        with self._changed:
            self._starting += 1
        try:
            decoder.start()
            self._failure = None
        except DecoderStartError as error:
            self._failure = str(error)
        finally:
            with self._changed:
                self._starting -= 1
        return decoder.is_running

    def _decode(self, lane: _Lane, decoder: Decoder, job: _Job) -> None:
        if not decoder.is_running and not self._start(decoder):
            time.sleep(0 if self._is_closed else _RETRY)
            raise cannot_decode()
        job.since, job.decoder = time.monotonic(), decoder
        try:
            pixels = decoder.decode(job.request, lane.max_work)
        except TooMuchWorkError:
            self._queue(self._large, job)
            return
        except DecoderEndedError as error:
            if job.is_moved and lane is self._small:
                self._queue(self._large, job)
                return
            raise _ended(error, job.request) from None
        finally:
            job.decoder = None
        with suppress(InvalidStateError):  # cancelled
            job.future.set_result(job.finish(pixels))

    def _watch(self) -> None:
        """End the processes of images whose requests have ended, and of those that others wait for too long."""
        while not self._is_closed:
            with self._changed:
                if not (self._small.running or self._large.running) and not self._is_closed:
                    self._has_running.wait()
                for job in self._small.running:
                    waiting = len(self._small.waiting)
                    patience = max(_MIN_PATIENCE, _PATIENCE / (1 + waiting))
                    if waiting and job.decoder is not None and time.monotonic() - job.since > patience:
                        job.is_moved = True
                        job.decoder.kill()
                for job in (*self._small.running, *self._large.running):
                    if (
                        job.future.cancelled()
                        and job.decoder is not None
                        and time.monotonic() - job.since > _MIN_PATIENCE
                    ):
                        job.decoder.kill()
            time.sleep(_TICK)


def _ended(error: DecoderEndedError, request: DecodeRequest) -> DatasetError:
    if error.used_up_time:
        return DatasetError(
            f"{request.name}: takes more than {request.cpu_seconds:g} seconds of processor time to read; save it again, or "
            f"start the server with a larger {arg('decode_timeout')}"
        )
    return DatasetError(
        f"{request.name}: cannot be read, its decoder ended unexpectedly; the file is damaged, or needs too much memory"
    )


def _fail(job: _Job, error: Exception) -> None:
    with suppress(InvalidStateError):  # cancelled
        job.future.set_exception(error)
