"""Predict and explain uploaded images: admission, decoding in other processes, batching, cancellation.

Memory is bounded at every stage: by the numbers of connections, of images in the queue, of resized images that wait for a
device, and of full images that wait to be explained. The event loop is never blocked.
"""

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from detrkit.data.dataset import unannotated
from detrkit.data.images import to_tensor
from detrkit.errors import DatasetError
from detrkit.explain.document import page_document
from detrkit.explain.explain import explain_sample
from detrkit.explain.explanation import Explanation
from detrkit.inference.batches import MinScores
from detrkit.inference.detector import Detector
from detrkit.inference.engines.torch import TorchEngine
from detrkit.inference.options import Threshold
from detrkit.serve.batcher import Batcher
from detrkit.serve.config import THREAD_PREFIX, ServeConfig
from detrkit.serve.decoder import DecodeRequest
from detrkit.serve.decoders import Decoders
from detrkit.serve.http_errors import HttpError, queue_full, shutting_down
from detrkit.serve.metrics import Metrics
from detrkit.serve.unreadable import CURL, HEAD_BYTES, describe_unsupported
from detrkit.serve.uploads import Upload
from detrkit.structures import Detections

ResultT = TypeVar("ResultT")
_BATCHES_AHEAD = 8  # batches of images read ahead per device, among which similar sizes are sought
_EXPLAINED_AHEAD = 2  # full images per device
_GZIP_LEVEL = 5


class Service:
    """A model on one or several devices, with its queue and threads.

    Attributes:
        name: name of the model.
        config: settings of the server.
        metrics: counters for Prometheus.
        batcher: runs the devices.
    """

    def __init__(self, detectors: Sequence[Detector], name: str, config: ServeConfig) -> None:
        """Start the threads.

        Args:
            detectors: the same model, one per device.
            name: name of the model.
            config: limits and timeouts.

        Raises:
            ConfigError: the threshold is "auto", and the model stores none.
        """
        self.name = name
        self.config = config
        self._detectors = tuple(detectors)
        self.detector = detectors[0]
        self.detector.resolve_threshold(config.threshold)
        self.metrics = Metrics()
        self.batcher = Batcher(detectors, config.batch_size, config.batch_wait_ms / 1000, self.metrics.batches.observe)
        self.in_flight = 0
        self._queued = 0
        self.decoders = Decoders(config.workers)
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix=f"{THREAD_PREFIX} pages")
        self._predict_slots = asyncio.Semaphore(_BATCHES_AHEAD * config.batch_size * len(detectors))
        self._explain_slots = asyncio.Semaphore(_EXPLAINED_AHEAD * len(detectors))
        self.metrics.add_gauge("detrkit_queue_length", "Images that wait for a device", self.batcher.__len__)
        self.metrics.add_gauge("detrkit_in_flight", "Requests with images in progress", lambda: self.in_flight)
        for name, description in (("stuck", "Images that take long to decode"), ("restarts", "Decoders started again")):
            self.metrics.add_gauge(f"detrkit_decoder_{name}", description, partial(self._decoder_number, name))

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that compute; exported files run on the CPU."""
        return tuple(
            str(one.engine.device) if isinstance(one.engine, TorchEngine) else "cpu" for one in self._detectors
        )

    @property
    def can_explain(self) -> bool:
        """Return whether predictions can be explained, which needs the PyTorch model."""
        return isinstance(self.detector.engine, TorchEngine)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Give an image that has arrived a place in the queue.

        Raises:
            HttpError: the queue is full.
        """
        if self._queued >= self.config.max_queue:
            raise queue_full(self.config.max_queue)
        self._queued += 1
        try:
            yield
        finally:
            self._queued -= 1

    @contextmanager
    def in_progress(self) -> Iterator[None]:
        """Count a request, also while its image arrives."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def predict(self, upload: Upload, min_scores: MinScores) -> Detections:
        """Detect the objects in an image.

        Raises:
            DatasetError: the image cannot be read.
        """
        async with self._predict_slots:
            sample = await self._decode(upload, lambda pixels: self.detector.preprocess(to_tensor(pixels)))
            found = await _wait(self.batcher.predict(sample, min_scores))
        return replace(found, path=upload.name)

    async def explain(self, upload: Upload, threshold: Threshold) -> tuple[bytes, int]:
        """Explain the detections in an image.

        Returns:
            The page's document as JSON followed by its binary block, compressed together by gzip; and the length of the
            uncompressed JSON in bytes.

        Raises:
            DatasetError: the image cannot be read.
        """
        async with self._explain_slots:
            sample = await self._decode(upload, lambda pixels: unannotated(to_tensor(pixels)))
            explanation = await _wait(
                self.batcher.call(
                    lambda detector: explain_sample(
                        detector, sample, threshold=threshold, image_name=upload.name, model_name=self.name
                    )
                )
            )
            return await self._in_thread(lambda: _pack(explanation))

    def _decoder_number(self, name: str) -> float:
        return self.decoders.to_json()[name]

    def close(self, seconds: float | None = None) -> None:
        """End all threads after their running batch or image.

        Args:
            seconds: maximum time to wait for running batches. Default: any. Images that are being decoded are not waited
                for, their processes are ended.
        """
        self.decoders.close(seconds)
        self.batcher.close(seconds)
        self._pool.shutdown(wait=seconds is None, cancel_futures=True)

    async def _decode(self, upload: Upload, finish: Callable[[np.ndarray], ResultT]) -> ResultT:
        """Decode an upload in another process."""
        config = self.config
        channels = self.detector.engine.config.in_channels
        request = DecodeRequest(upload.file, upload.name, channels, config.max_pixels, config.decode_timeout)
        try:
            return await _wait(self.decoders.submit(request, finish))
        except DatasetError as error:
            upload.file.seek(0)
            found = describe_unsupported(upload.file.read(HEAD_BYTES))
            if found is not None:
                raise HttpError(415, f"{upload.name}: found {found}") from None
            if upload.is_form_text:
                raise DatasetError(f"{error.message}; if curl -d sent it, which damages files, use: {CURL}") from None
            raise

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        try:
            future = self._pool.submit(work)
        except RuntimeError:
            raise shutting_down() from None
        return await _wait(future)


def _pack(explanation: Explanation) -> tuple[bytes, int]:
    page = page_document(explanation)
    document = json.dumps(page.document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return gzip.compress(document + page.block, _GZIP_LEVEL), len(document)


async def _wait(future: Future[ResultT]) -> ResultT:
    """Wait for a thread; a cancellation also cancels work that has not begun.

    Raises:
        HttpError: the server is shutting down.
    """
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():  # the future was cancelled, not this task
            raise shutting_down() from None
        raise
