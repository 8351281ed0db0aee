"""Detections of any number of images, in their order and in bounded memory.

Threads read and resize images ahead. A few images wait, so that those of similar size share a batch with little padding;
the one that has waited longest is always part of the next batch.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from detrkit.data.batching import check_batching
from detrkit.data.dataset import unannotated
from detrkit.data.images import tensor_to_image
from detrkit.data.transforms.geometry import crop, image_size
from detrkit.errors import DatasetError
from detrkit.inference.batches import MinScores
from detrkit.inference.engines.torch import Engine
from detrkit.inference.images import own_copy, path_of, read_image_input
from detrkit.ops.tiles import Tiling
from detrkit.postprocess.merge import merge_views
from detrkit.structures import Detections, Sample

_BATCHES_AHEAD = 8  # batches of images among which similar sizes are sought
_MAX_WAITING_BYTES = 2**28  # of the waiting pixels: a dozen images of 12 megapixels, or a hundred resized ones

ErrorHandler = Callable[[Any, DatasetError], None]


@runtime_checkable
class BatchPredictor(Protocol):
    """Preprocesses images and predicts batches; implemented by `Detector`."""

    engine: Engine

    @property
    def max_padding(self) -> float:
        """Maximum share of padding in a batch of images that were not passed together."""

    def preprocess(self, pixels: UInt8[Tensor, "C H W"]) -> Sample:
        """Resize an image; called by threads."""

    def predict_samples(self, samples: Sequence[Sample], min_scores: MinScores) -> list[Detections]:
        """Predict one batch."""


@dataclass(frozen=True)
class StreamConfig:
    """Settings of a stream; see `Detector.stream`."""

    min_scores: MinScores
    batch_size: int
    workers: int
    labels: frozenset[int] | None
    tiling: Tiling | None
    keep_images: bool

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is out of range.
        """
        check_batching(self.batch_size, self.workers)


@dataclass(frozen=True)
class _WaitingImage:
    """An image that waits to be predicted."""

    image: Any
    pixels: UInt8[Tensor, "C H W"] | None  # original pixels, if they are drawn on or cut into tiles
    sample: Sample | None  # resized, unless the image is cut into tiles

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        tensors = (self.pixels, None if self.sample is None else self.sample.image)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def stream_images(
    predictor: BatchPredictor,
    images: Iterable[Any],
    config: StreamConfig,
    on_error: ErrorHandler | None,
) -> Generator[Detections, None, None]:
    """Read, group and predict images; see `Detector.stream`.

    Raises:
        DatasetError: an image cannot be read, and there is no `on_error`.
    """

    def read(image: Any, where: str) -> _WaitingImage:
        pixels = read_image_input(image, predictor.engine.config.in_channels, where)
        views = [] if config.tiling is None else config.tiling.views((pixels.shape[1], pixels.shape[2]))
        is_tiled = len(views) > 1
        keeps_pixels = config.keep_images or is_tiled
        return _WaitingImage(
            image, pixels if keeps_pixels else None, None if is_tiled else predictor.preprocess(pixels)
        )

    waiting = _read_ahead(images, read, config.workers, on_error)
    for one, detections in _predict_in_order(predictor, waiting, config):
        image = tensor_to_image(one.pixels) if config.keep_images and one.pixels is not None else None
        path = path_of(one.image)
        yield replace(detections.with_labels(config.labels), image=image, path=path)


def _read_ahead(
    images: Iterable[Any],
    read: Callable[[Any, str], _WaitingImage],
    workers: int,
    on_error: ErrorHandler | None,
) -> Iterator[_WaitingImage]:
    """Read images in threads, at most two ahead per thread; yield them in their order."""
    pool = ThreadPoolExecutor(workers) if workers else None
    ahead: deque[tuple[Any, Callable[[], _WaitingImage]]] = deque()

    def start(image: Any, where: str) -> Callable[[], _WaitingImage]:
        """Start to read an image; what the returned function raises is raised in the image's turn."""
        try:
            kept = own_copy(image, where)  # a thread reads it after the iterator has gone on
        except DatasetError as error:
            return partial(_raise, error)
        return partial(read, kept, where) if pool is None else pool.submit(read, kept, where).result

    def next_one() -> Iterator[_WaitingImage]:
        image, result = ahead.popleft()
        try:
            yield replace(result(), image=image)
        except DatasetError as error:
            if on_error is None:
                raise
            on_error(image, error)

    try:
        for number, image in enumerate(images):
            ahead.append((image, start(image, f"images[{number}]")))
            if len(ahead) > 2 * workers:
                yield from next_one()
        while ahead:
            yield from next_one()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _raise(error: DatasetError) -> _WaitingImage:
    raise error


def _predict_in_order(
    predictor: BatchPredictor, images: Iterator[_WaitingImage], config: StreamConfig
) -> Iterator[tuple[_WaitingImage, Detections]]:
    """Batch images with others of similar size; yield the detections in the order of the images."""
    max_waiting = config.batch_size * _BATCHES_AHEAD if config.batch_size > 1 else 1
    pending: dict[int, _WaitingImage] = {}  # not yet yielded, by number
    results: dict[int, Detections] = {}
    num_read = num_yielded = num_bytes = 0
    is_exhausted = False
    while pending or not is_exhausted:
        while not is_exhausted and (not pending or (len(pending) < max_waiting and num_bytes < _MAX_WAITING_BYTES)):
            one = next(images, None)
            is_exhausted = one is None
            if one is not None:
                pending[num_read] = one
                num_bytes += one.num_bytes
                num_read += 1
        waiting = [number for number in pending if number not in results]
        if waiting:
            chosen = _next_batch(pending, waiting, config.batch_size, predictor.max_padding)
            results.update(
                zip(chosen, _predict(predictor, [pending[number] for number in chosen], config), strict=True)
            )
        while num_yielded in results:
            one = pending.pop(num_yielded)
            num_bytes -= one.num_bytes
            yield one, results.pop(num_yielded)
            num_yielded += 1


def _next_batch(
    pending: dict[int, _WaitingImage], waiting: Sequence[int], batch_size: int, max_padding: float
) -> list[int]:
    """Choose the image that has waited longest, and others of similar size; a tiled image is a batch of its own."""
    samples = ((number, pending[number].sample) for number in waiting)
    sizes = {number: image_size(sample) for number, sample in samples if sample is not None}
    if waiting[0] not in sizes:
        return [waiting[0]]
    return choose_batch(sizes, batch_size, max_padding)


def choose_batch(sizes: Mapping[int, tuple[int, int]], batch_size: int, max_padding: float) -> list[int]:
    """Choose the image that has waited longest, and those that need the least padding with it.

    Args:
        sizes: (height, width) of the waiting images, by number, longest waiting first.
        batch_size: maximum number of images.
        max_padding: maximum `padding_share` of the first image and each of the others.

    Returns:
        The numbers of the images.
    """
    (first, size), *others = sizes.items()
    paddings = ((padding_share(size, other), number) for number, other in others)
    return [first, *(number for padding, number in sorted(paddings) if padding <= max_padding)][:batch_size]


def padding_share(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Return the share of padding, 0 to 1, in a batch of two images of these (height, width)."""
    height, width = max(first[0], second[0]), max(first[1], second[1])
    return 1 - (first[0] * first[1] + second[0] * second[1]) / (2 * height * width)


def _predict(predictor: BatchPredictor, chosen: Sequence[_WaitingImage], config: StreamConfig) -> list[Detections]:
    samples = [one.sample for one in chosen if one.sample is not None]
    if len(samples) == len(chosen):
        return predictor.predict_samples(samples, config.min_scores)
    (one,) = chosen
    assert one.pixels is not None
    assert config.tiling is not None
    return [_predict_tiles(predictor, one.pixels, config.tiling, config)]


def _predict_tiles(
    predictor: BatchPredictor, pixels: UInt8[Tensor, "C H W"], tiling: Tiling, config: StreamConfig
) -> Detections:
    """Predict the whole image and each tile, and merge the detections."""
    size = (pixels.shape[1], pixels.shape[2])
    whole = unannotated(pixels)
    views = tiling.views(size)
    detections: list[Detections] = []
    # the first view is the whole image, whose shape differs from the tiles'
    starts = [0, *range(1, len(views), config.batch_size)]
    for start, end in zip(starts, [*starts[1:], len(views)], strict=True):
        cuts = [crop(whole, top, left, bottom - top, right - left) for left, top, right, bottom in views[start:end]]
        samples = [predictor.preprocess(cut.image) for cut in cuts]
        detections += predictor.predict_samples(samples, config.min_scores)
    return merge_views([one.translate(view[:2]) for one, view in zip(detections, views, strict=True)], views, size)
