"""Strong augmentation, beyond the paper's: other colours, other scales, several photos in one.

Each takes samples and gives a sample, boxes xyxy in pixels, masks following. `AugmentedDataset` puts them before the
paper's pipeline and switches them off for the last epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from detrkit.data.dataset import Transform, keep
from detrkit.data.samplers import SampleKey, mix_seeds
from detrkit.data.transforms.geometry import (
    EVAL_SHORT_SIDE,
    CropParams,
    RandomOrientation,
    TrainTransform,
    crop,
    max_long_side,
    resize,
    resized_size,
    size_of,
)
from detrkit.ops.boxes import box_area
from detrkit.structures import Annotations, Sample

_MIN_VISIBLE = 0.1  # share of its box that must be left of an object in a mosaic
_OF_BATCHES = 1  # tells their seeds from those of photos
_BLEND = 32.0  # Beta(32, 32): about half of either photo, as in YOLOX (arXiv:2107.08430)


@dataclass(frozen=True)
class PhotometricDistortion:
    """Change brightness, contrast, saturation, hue and the order of colours (SSD, arXiv:1512.02325, section 2.2).

    torchvision's ranges, each change for half of the samples. For photos in RGB or grey.
    """

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample."""
        image = v2.RandomPhotometricDistort()(tv_tensors.Image(sample.image))
        return replace(sample, image=image.as_subclass(Tensor))


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (arXiv:2012.07177): resize by 0.1 to 2, and cut out at most the size that tests use.

    Attributes:
        image_size: shorter side in tests, pixels.
        smallest: least factor.
        largest: greatest factor.
    """

    image_size: int = EVAL_SHORT_SIDE
    smallest: float = 0.1
    largest: float = 2.0

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample."""
        in_tests = resized_size(size_of(sample), self.image_size, max_long_side(self.image_size))
        factor = float(torch.empty(()).uniform_(self.smallest, self.largest))
        height, width = (max(1, round(side * factor)) for side in in_tests)
        resized = resize(sample, (height, width))
        return _random_crop(resized, (min(height, in_tests[0]), min(width, in_tests[1])))


@dataclass(frozen=True)
class Mosaic:
    """Four photos in one (YOLOv4, arXiv:2004.10934), meeting at a random point; each is scaled to fill its quarter.

    Attributes:
        image_size: shorter side in tests, pixels: the mosaic's sides.
    """

    image_size: int = EVAL_SHORT_SIDE

    def __call__(self, samples: Sequence[Sample]) -> Sample:
        """Put four samples together; the first lends its id."""
        side = self.image_size
        middle_y, middle_x = (int(torch.empty(()).uniform_(0.3, 0.7) * side) for _ in range(2))
        corners = [(0, 0), (0, middle_x), (middle_y, 0), (middle_y, middle_x)]
        sizes = [(height, width) for height in (middle_y, side - middle_y) for width in (middle_x, side - middle_x)]
        quarters = [_fill(sample, size) for sample, size in zip(samples, sizes, strict=True)]
        return replace(
            quarters[0],
            image=_lay_images(quarters, corners, (side, side)),
            annotations=_lay_objects(quarters, corners, (side, side)),
        )


@dataclass(frozen=True)
class MixUp:
    """Two photos seen through each other, with the objects of both (arXiv:1710.09412; for detection, arXiv:1902.04103)."""

    def __call__(self, sample: Sample, other: Sample) -> Sample:
        """Blend two samples over the larger height and width; the first lends its id."""
        share = float(torch.distributions.Beta(_BLEND, _BLEND).sample())
        sizes = [size_of(sample), size_of(other)]
        canvas = (max(size[0] for size in sizes), max(size[1] for size in sizes))
        first, second = (_lay_images([one], [(0, 0)], canvas) for one in (sample, other))
        blended = first * share + second * (1 - share)
        return replace(
            sample,
            image=blended.round().to(torch.uint8),
            annotations=_lay_objects([sample, other], [(0, 0), (0, 0)], canvas),
        )


@dataclass(frozen=True)
class StrongAugmentation:
    """How many of the samples are changed how.

    Attributes:
        image_size: shorter side in tests, pixels.
        photometric: share of the samples with other colours.
        scale_jitter: share resized by large-scale jitter, in place of the paper's resizing and cropping.
        mosaic: share put together from four photos.
        mixup: share blended with another photo.
        orientation: what mirrors and turns where the paper's pipeline does not.
    """

    image_size: int
    photometric: float = 0.0
    scale_jitter: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    orientation: RandomOrientation = field(default_factory=RandomOrientation)

    @property
    def changes_anything(self) -> bool:
        """Whether any of them is on."""
        return max(self.photometric, self.scale_jitter, self.mosaic, self.mixup) > 0


class AugmentedDataset(Dataset[Sample]):
    """Photos as they are learned from: changed at random, alike for the same seed, epoch and photo in any process."""

    def __init__(
        self,
        photos: Dataset[Sample],
        transform: Transform,
        *,
        seed: int,
        strong: StrongAugmentation | None = None,
        strong_epochs: int = 0,
    ) -> None:
        """Put augmentation before photos.

        Args:
            photos: untransformed.
            transform: the last change of every sample, in every epoch.
            seed: of all randomness.
            strong: changes before it.
            strong_epochs: epochs, from the first on, that see them.
        """
        self.photos = photos
        self.transform = transform
        self.seed = seed
        self.strong = strong if strong is not None and strong.changes_anything else None
        self.strong_epochs = strong_epochs

    def __len__(self) -> int:
        return len(self.photos)  # type: ignore[arg-type]  # every dataset of ours has a length

    def __getitem__(self, draw: SampleKey) -> Sample:
        # the caller's own randomness, dropout for one, must not depend on who prepares samples
        with torch.random.fork_rng(devices=[]):
            transform = self._transform_of(draw)
            torch.default_generator.manual_seed(mix_seeds(self.seed, draw.epoch, draw.index))
            if self.strong is None or draw.epoch > self.strong_epochs:
                return transform(self.photos[draw.index])
            return self._changed(self.photos[draw.index], transform, self.strong)

    def _transform_of(self, draw: SampleKey) -> Transform:
        """The last change, with the sizes of the sample's batch."""
        if draw.batch is None or not isinstance(self.transform, TrainTransform):
            return self.transform
        torch.default_generator.manual_seed(mix_seeds(self.seed, draw.epoch, draw.batch, _OF_BATCHES))
        return partial(self.transform, framing=CropParams.drawn())

    def _changed(self, sample: Sample, transform: Transform, strong: StrongAugmentation) -> Sample:
        if _happens(strong.mosaic):
            sample = Mosaic(strong.image_size)([sample, *(self._another() for _ in range(3))])
        if _happens(strong.photometric):
            sample = PhotometricDistortion()(sample)
        jitters = _happens(strong.scale_jitter)
        sample = ScaleJitter(strong.image_size)(strong.orientation(sample)) if jitters else transform(sample)
        if _happens(strong.mixup):
            sample = MixUp()(sample, transform(self._another()))
        return sample

    def _another(self) -> Sample:
        return self.photos[int(torch.randint(len(self), ()))]


def _happens(share: float) -> bool:
    return share > 0 and float(torch.rand(())) < share


def _random_crop(sample: Sample, size: tuple[int, int]) -> Sample:
    height, width = size_of(sample)
    top = int(torch.randint(height - size[0] + 1, ()))
    left = int(torch.randint(width - size[1] + 1, ()))
    return crop(sample, top, left, *size)


def _fill(sample: Sample, size: tuple[int, int]) -> Sample:
    """Cut out the largest part with a rectangle's proportions, somewhere, and resize it to the rectangle.

    Objects of which too little is left are dropped. Cutting first keeps a panorama from being enlarged as a whole.
    """
    height, width = size_of(sample)
    scale = min(height / size[0], width / size[1])
    part = (min(height, max(1, round(size[0] * scale))), min(width, max(1, round(size[1] * scale))))
    top = int(torch.randint(height - part[0] + 1, ()))
    left = int(torch.randint(width - part[1] + 1, ()))
    boxes = sample.annotations.boxes
    visible = torch.minimum(
        (boxes - torch.tensor([left, top, left, top])).clamp(min=0), torch.tensor([part[1], part[0], part[1], part[0]])
    )
    is_left = box_area(visible) >= _MIN_VISIBLE * box_area(boxes)
    return resize(crop(replace(sample, annotations=keep(sample.annotations, is_left)), top, left, *part), size)


def _lay_images(
    samples: Sequence[Sample], corners: Sequence[tuple[int, int]], size: tuple[int, int]
) -> UInt8[Tensor, "C H W"]:
    """Lay photos on black, each with its top left corner at (top, left)."""
    canvas = torch.zeros(samples[0].image.shape[0], *size, dtype=torch.uint8)
    for sample, (top, left) in zip(samples, corners, strict=True):
        height, width = size_of(sample)
        canvas[:, top : top + height, left : left + width] = sample.image
    return canvas


def _lay_objects(samples: Sequence[Sample], corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Annotations:
    """Move the objects of photos to where these are laid; masks only if all photos have them."""
    parts = [sample.annotations for sample in samples]
    shifts = [torch.tensor([left, top, left, top]) for top, left in corners]
    boxes = torch.cat([part.boxes + shift for part, shift in zip(parts, shifts, strict=True)])
    labels = torch.cat([part.labels for part in parts])
    if any(part.masks is None for part in parts):
        return Annotations(boxes, labels)
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for part, of_part, (top, left) in zip(
        parts, masks.split([len(part.labels) for part in parts]), corners, strict=True
    ):
        assert part.masks is not None
        height, width = part.masks.shape[1:]
        of_part[:, top : top + height, left : left + width] = part.masks
    return Annotations(boxes, labels, masks)
