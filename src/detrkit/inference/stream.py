"""Photos without end -> detections in the photos' own order, in memory that does not grow.

Threads open and resize photos ahead. A few photos wait, so that those of like shapes can be predicted together with
little padding; the one that has waited longest is always part of the next batch.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from detrkit.data.batching import check_batching
from detrkit.data.dataset import unannotated
from detrkit.data.images import tensor_to_image
from detrkit.data.transforms.geometry import crop, size_of
from detrkit.errors import DatasetError
from detrkit.inference.engines.torch import Engine
from detrkit.inference.images import ImageInput, read_image_input
from detrkit.ops.tiles import Tiling
from detrkit.postprocess.merge import merge_views
from detrkit.structures import Detections, Sample

_BATCHES_WAITING = 8  # among whose photos like shapes are looked for
_MAX_BYTES = 2**28  # of the pixels that wait: a dozen photos of a telephone, a hundred resized ones


@runtime_checkable
class BatchPredictor(Protocol):
    """What prepares and predicts: a `Detector`."""

    engine: Engine

    @property
    def max_padding(self) -> float:
        """Share of a batch that may be padding, when batches are put together of what waits."""

    def preprocess(self, pixels: UInt8[Tensor, "C H W"]) -> Sample:
        """Resize a photo; called by threads."""

    def predict_samples(self, samples: Sequence[Sample], threshold: float | tuple[float, ...]) -> list[Detections]:
        """Predict one batch."""


@dataclass(frozen=True)
class StreamConfig:
    """How photos are streamed; see `Detector.stream`."""

    threshold: float | tuple[float, ...]  # of all labels, or of each
    batch_size: int
    workers: int
    labels: frozenset[int] | None
    tiling: Tiling | None
    with_images: bool

    def __post_init__(self) -> None:
        """See that the numbers make sense.

        Raises:
            ConfigError: they do not.
        """
        check_batching(self.batch_size, self.workers)


@dataclass(frozen=True)
class _Opened:
    """A photo that waits to be predicted."""

    photo: ImageInput
    pixels: UInt8[Tensor, "C H W"] | None  # as it was, where it will be drawn on or cut into tiles
    sample: Sample | None  # resized, unless it is cut into tiles

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        tensors = (self.pixels, None if self.sample is None else self.sample.image)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def stream_photos(
    finder: BatchPredictor,
    photos: Iterable[ImageInput],
    settings: StreamConfig,
    fault: Callable[[ImageInput, DatasetError], None] | None,
) -> Generator[Detections, None, None]:
    """Open, group, predict; see `Detector.stream`.

    Raises:
        DatasetError: a photo cannot be read, and nobody listens to faults.
    """

    def open_one(photo: ImageInput) -> _Opened:
        pixels = read_image_input(photo, finder.engine.config.in_channels)
        views = [] if settings.tiling is None else settings.tiling.views((pixels.shape[1], pixels.shape[2]))
        is_cut = len(views) > 1
        keeps_pixels = settings.with_images or is_cut
        return _Opened(photo, pixels if keeps_pixels else None, None if is_cut else finder.preprocess(pixels))

    opened = _opened_ahead(photos, open_one, settings.workers, fault)
    for one, found in _in_order(finder, opened, settings):
        image = tensor_to_image(one.pixels) if settings.with_images and one.pixels is not None else None
        path = str(one.photo) if isinstance(one.photo, Path | str) else None
        if settings.labels is not None:
            found = found[[i for i, label in enumerate(found.labels.tolist()) if label in settings.labels]]
        yield replace(found, image=image, path=path)


def _opened_ahead(
    photos: Iterable[ImageInput],
    open_one: Callable[[ImageInput], _Opened],
    workers: int,
    fault: Callable[[ImageInput, DatasetError], None] | None,
) -> Iterator[_Opened]:
    """Open photos in threads, at most two ahead for each; hand them over in their order."""
    pool = ThreadPoolExecutor(workers) if workers else None
    ahead: deque[tuple[ImageInput, Future[_Opened] | None]] = deque()

    def next_one() -> Iterator[_Opened]:
        photo, future = ahead.popleft()
        try:
            yield future.result() if future is not None else open_one(photo)
        except DatasetError as error:
            if fault is None:
                raise
            fault(photo, error)

    try:
        for photo in photos:
            ahead.append((photo, None if pool is None else pool.submit(open_one, photo)))
            if len(ahead) > 2 * workers:
                yield from next_one()
        while ahead:
            yield from next_one()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _in_order(
    finder: BatchPredictor, opened: Iterator[_Opened], settings: StreamConfig
) -> Iterator[tuple[_Opened, Detections]]:
    """Let photos wait for others of their shape, and hand over what was found in the order in which they came."""
    most = settings.batch_size * _BATCHES_WAITING if settings.batch_size > 1 else 1
    held: dict[int, _Opened] = {}  # what waits to be predicted or to be handed over
    found: dict[int, Detections] = {}
    came = handed = num_bytes = 0
    is_over = False
    while held or not is_over:
        while not is_over and (not held or (len(held) < most and num_bytes < _MAX_BYTES)):
            one = next(opened, None)
            is_over = one is None
            if one is not None:
                held[came] = one
                num_bytes += one.num_bytes
                came += 1
        waiting = [number for number in held if number not in found]
        if waiting:
            chosen = _batch_of(held, waiting, settings.batch_size, finder.max_padding)
            found.update(zip(chosen, _predict(finder, [held[number] for number in chosen], settings), strict=True))
        while handed in found:
            one = held.pop(handed)
            num_bytes -= one.num_bytes
            yield one, found.pop(handed)
            handed += 1


def _batch_of(held: dict[int, _Opened], waiting: Sequence[int], batch_size: int, max_padding: float) -> list[int]:
    """Choose the photo that has waited longest, and others to go with it; a photo in tiles is a batch of its own."""
    samples = ((number, held[number].sample) for number in waiting)
    sizes = {number: size_of(sample) for number, sample in samples if sample is not None}
    if waiting[0] not in sizes:
        return [waiting[0]]
    return choose_batch(sizes, batch_size, max_padding)


def choose_batch(sizes: Mapping[int, tuple[int, int]], batch_size: int, max_padding: float) -> list[int]:
    """Choose the photo that has waited longest, and those that need the least padding beside it.

    Args:
        sizes: (height, width) of what waits, by number, longest first.
        batch_size: photos at most.
        max_padding: share of padding, of the first photo and each of the others.
    """
    (first, size), *others = sizes.items()
    paddings = ((share_of_padding(size, other), number) for number, other in others)
    return [first, *(number for padding, number in sorted(paddings) if padding <= max_padding)][:batch_size]


def share_of_padding(first: tuple[int, int], second: tuple[int, int]) -> float:
    """How much of a batch of two photos is padding; sizes are (height, width)."""
    height, width = max(first[0], second[0]), max(first[1], second[1])
    return 1 - (first[0] * first[1] + second[0] * second[1]) / (2 * height * width)


def _predict(finder: BatchPredictor, chosen: Sequence[_Opened], settings: StreamConfig) -> list[Detections]:
    samples = [one.sample for one in chosen if one.sample is not None]
    if len(samples) == len(chosen):
        return finder.predict_samples(samples, settings.threshold)
    (one,) = chosen
    assert one.pixels is not None
    assert settings.tiling is not None
    return [_predict_tiles(finder, one.pixels, settings.tiling, settings)]


def _predict_tiles(
    finder: BatchPredictor, pixels: UInt8[Tensor, "C H W"], tiling: Tiling, settings: StreamConfig
) -> Detections:
    """Look at the whole photo and at each tile, and merge what was found."""
    size = (pixels.shape[1], pixels.shape[2])
    whole = unannotated(pixels)
    views = tiling.views(size)
    found: list[Detections] = []
    # the first view is the whole photo, of another shape than the tiles
    starts = [0, *range(1, len(views), settings.batch_size)]
    for start, end in zip(starts, [*starts[1:], len(views)], strict=True):
        cuts = [crop(whole, top, left, bottom - top, right - left) for left, top, right, bottom in views[start:end]]
        found += finder.predict_samples([finder.preprocess(cut.image) for cut in cuts], settings.threshold)
    return merge_views([one.translate(view[:2]) for one, view in zip(found, views, strict=True)], views, size)
