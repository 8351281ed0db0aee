"""From an upload to its answer: admitted, opened by a thread, computed by a device's thread, given up when nobody waits.

Memory is bounded at every stage: so many requests are admitted, so many photos are opened ahead (small ones, for they have
been resized), and so many whole photos wait to be explained. Nothing here stops the event loop for longer than a moment.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TypeVar

from jaxtyping import UInt8
from torch import Tensor

from detrkit.data.dataset import unannotated
from detrkit.data.images import read_uploaded_image
from detrkit.explain.document import page_document
from detrkit.explain.explanation import Explanation, explain
from detrkit.inference.detector import Detector
from detrkit.inference.engines.torch import TorchEngine
from detrkit.postprocess.panoptic import MIN_SCORE
from detrkit.serve.batcher import Batcher, LeastScores
from detrkit.serve.http_errors import busy, shutting_down
from detrkit.serve.metrics import Metrics
from detrkit.serve.settings import ServeConfig
from detrkit.serve.uploads import Upload
from detrkit.structures import Detections, Sample

Answer = TypeVar("Answer")
_BATCHES_AHEAD = 8  # photos that are opened for each device, among which like shapes are looked for
_EXPLAINED_AHEAD = 2  # whole photos for each device
_QUICK = 5  # of gzip's levels


class Service:
    """A model, or the same on several devices, and all that stands before it.

    Attributes:
        name: of the model.
        settings: of the server.
        metrics: what has been done.
        batcher: what computes.
    """

    def __init__(self, detectors: Sequence[Detector], name: str, settings: ServeConfig) -> None:
        """Start the threads.

        Args:
            detectors: the same model, one on each device.
            name: of the model.
            settings: limits and patience.

        Raises:
            ConfigError: the threshold is "auto", and the model has none of its own.
        """
        self.name = name
        self.settings = settings
        self._detectors = tuple(detectors)
        self.detector = detectors[0]
        self.detector.resolve_threshold(settings.threshold)
        self.metrics = Metrics()
        self.batcher = Batcher(detectors, settings.batch_size, settings.batch_wait / 1000, self.metrics.batches.observe)
        self.in_flight = 0
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="photos")
        self._room = asyncio.Semaphore(_BATCHES_AHEAD * settings.batch_size * len(detectors))
        self._room_to_explain = asyncio.Semaphore(_EXPLAINED_AHEAD * len(detectors))
        self.metrics.watch("detrkit_queue_length", "Photos that wait for a device", self.batcher.__len__)
        self.metrics.watch(
            "detrkit_in_flight", "Requests with photos that are not answered yet", lambda: self.in_flight
        )

    @property
    def devices(self) -> tuple[str, ...]:
        """What computes: devices of PyTorch, or the CPU with another engine."""
        return tuple(
            str(one.engine.device) if isinstance(one.engine, TorchEngine) else "cpu" for one in self._detectors
        )

    @property
    def explains(self) -> bool:
        """Whether it can look inside the model."""
        return isinstance(self.detector.engine, TorchEngine)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request in, until it is answered.

        Raises:
            HttpError: too many are there already.
        """
        if self.in_flight >= self.settings.queue:
            raise busy(self.settings.queue)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def predict(self, upload: Upload, threshold: LeastScores) -> Detections:
        """Find the objects in a photo.

        Raises:
            DatasetError: it cannot be read.
        """
        async with _place_in(self._room, upload):
            sample = await self._in_thread(lambda: self.detector.preprocess(self._open(upload)), upload)
            found = await _awaited(self.batcher.predict(sample, threshold))
        return replace(found, path=upload.name)

    async def explain(self, upload: Upload, threshold: float) -> tuple[bytes, int]:
        """Look into a photo.

        Returns:
            The page's document as JSON and its block of bytes, one after the other and compressed by gzip, and how many
            bytes the former has.

        Raises:
            DatasetError: it cannot be read.
        """
        async with _place_in(self._room_to_explain, upload):
            sample = await self._in_thread(lambda: unannotated(self._open(upload)), upload)
            explanation = await _awaited(self.batcher.call(lambda detector: _explain(detector, sample)))
            return await self._in_thread(lambda: self._packed(explanation, upload.name, threshold))

    def close(self) -> None:
        """Finish what is being computed, and end all threads."""
        self.batcher.close()
        self._pool.shutdown(cancel_futures=True)

    def _open(self, upload: Upload) -> UInt8[Tensor, "C H W"]:
        channels = self.detector.engine.config.in_channels
        return read_uploaded_image(upload.file, upload.name, channels, self.settings.max_pixels)

    async def _in_thread(self, work: Callable[[], Answer], upload: Upload | None = None) -> Answer:
        """Let a thread work; it closes the upload when it is done, even when nobody waits any more."""
        try:
            future = self._pool.submit(work)
        except RuntimeError:
            if upload is not None:
                upload.file.close()
            raise shutting_down() from None
        if upload is not None:
            future.add_done_callback(lambda _: upload.file.close())
        return await _awaited(future)

    def _packed(self, explanation: Explanation, photo_name: str, threshold: float) -> tuple[bytes, int]:
        page = page_document(
            explanation,
            self.detector.engine.config,
            photo_name=photo_name,
            model_name=self.name,
            threshold=threshold,
        )
        document = json.dumps(page.document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        return gzip.compress(document + page.block, _QUICK), len(document)


def _explain(detector: Detector, sample: Sample) -> Explanation:
    least = detector.resolve_segment_threshold("auto") if detector.model.config.mask_head else MIN_SCORE
    return explain(detector.model, detector.preprocessing, detector.categories, sample, segment_threshold=least)


@asynccontextmanager
async def _place_in(room: asyncio.Semaphore, upload: Upload) -> AsyncIterator[None]:
    """Wait for a place; an upload that never gets one is closed."""
    try:
        await room.acquire()
    except BaseException:
        upload.file.close()
        raise
    try:
        yield
    finally:
        room.release()


async def _awaited(future: Future[Answer]) -> Answer:
    """Wait for a thread; when this is cancelled, what has not begun is not done at all.

    Raises:
        HttpError: the server ends.
    """
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():  # the future was given up, and not this
            raise shutting_down() from None
        raise
