"""Strong augmentation: photometric distortion, large-scale jitter, mosaic, MixUp.

Each maps samples to a sample with boxes xyxy in pixels and masks if all samples have them. `AugmentedDataset` applies them
before the paper's transform, and not in the last epochs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from detrkit.data.dataset import Transform, keep
from detrkit.data.samplers import SampleKey, mix_seeds
from detrkit.data.transforms.geometry import (
    EVAL_SHORT_SIDE,
    CropParams,
    RandomOrientation,
    TrainTransform,
    crop,
    image_size,
    max_long_side,
    resize,
    resized_size,
)
from detrkit.data.transforms.torchvision_ops import GridMosaic, iou_crop, zoom_out
from detrkit.ops.boxes import box_area
from detrkit.structures import Annotations, Normalization, Sample

_MIN_VISIBLE = 0.1  # fraction of its box that must remain of an object in a mosaic
_BATCH_SEED = 1  # distinguishes the seeds of batches from those of images
_DEIM_MIXUP_WEIGHTS = (0.45, 0.55)
_MIXUP_ALPHA = 32.0  # Beta(32, 32): about half of either image, as in YOLOX (arXiv:2107.08430)


@dataclass(frozen=True)
class PhotometricDistortion:
    """Change brightness, contrast, saturation, hue and the order of channels (SSD, arXiv:1512.02325, section 2.2).

    Ranges are torchvision's, and each change is applied with a probability of 0.5. For RGB or gray images.
    """

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample."""
        from torchvision.transforms import v2  # imported here, because it takes seconds

        return replace(sample, image=v2.RandomPhotometricDistort()(sample.image))


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (arXiv:2012.07177): resize by 0.1 to 2, and crop to at most the size in evaluation.

    torchvision's `v2.ScaleJitter` scales relative to one fixed target size for all images, whatever their aspect ratio.

    Attributes:
        image_size: shorter side in evaluation, pixels.
        min_scale: minimum factor.
        max_scale: maximum factor.
    """

    image_size: int = EVAL_SHORT_SIDE
    min_scale: float = 0.1
    max_scale: float = 2.0

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample."""
        eval_size = resized_size(image_size(sample), self.image_size, max_long_side(self.image_size))
        factor = float(torch.empty(()).uniform_(self.min_scale, self.max_scale))
        height, width = (max(1, round(side * factor)) for side in eval_size)
        resized = resize(sample, (height, width))
        return _random_crop(resized, (min(height, eval_size[0]), min(width, eval_size[1])))


@dataclass(frozen=True)
class Mosaic:
    """Four images in one (YOLOv4, arXiv:2004.10934), meeting at a random point; each is scaled to fill its quarter.

    Attributes:
        image_size: side of the mosaic, pixels.
    """

    image_size: int = EVAL_SHORT_SIDE

    def __call__(self, samples: Sequence[Sample]) -> Sample:
        """Combine four samples; the image id is that of the first."""
        side = self.image_size
        middle_y, middle_x = (int(torch.empty(()).uniform_(0.3, 0.7) * side) for _ in range(2))
        corners = [(0, 0), (0, middle_x), (middle_y, 0), (middle_y, middle_x)]
        sizes = [(height, width) for height in (middle_y, side - middle_y) for width in (middle_x, side - middle_x)]
        quarters = [_fill(sample, size) for sample, size in zip(samples, sizes, strict=True)]
        return replace(
            quarters[0],
            image=_place_images(quarters, corners, (side, side)),
            annotations=_place_objects(quarters, corners, (side, side)),
        )


@dataclass(frozen=True)
class MixUp:
    """Blend of two images with the objects of both (arXiv:1710.09412; for detection, arXiv:1902.04103).

    Attributes:
        weights: range of the first image's weight (DEIM: 0.45 to 0.55); None for Beta(32, 32).
    """

    weights: tuple[float, float] | None = None

    def __call__(self, sample: Sample, other: Sample) -> Sample:
        """Blend two samples over the larger height and width; the image id is that of the first."""
        if self.weights is None:
            weight = float(torch.distributions.Beta(_MIXUP_ALPHA, _MIXUP_ALPHA).sample())
        else:
            weight = float(torch.empty(()).uniform_(*self.weights))
        sizes = [image_size(sample), image_size(other)]
        canvas = (max(size[0] for size in sizes), max(size[1] for size in sizes))
        first, second = (_place_images([one], [(0, 0)], canvas) for one in (sample, other))
        blended = first * weight + second * (1 - weight)
        return replace(
            sample,
            image=blended.round().to(torch.uint8),
            annotations=_place_objects([sample, other], [(0, 0), (0, 0)], canvas),
        )


@dataclass(frozen=True)
class StrongAugmentation:
    """Probabilities of the strong augmentations.

    Attributes:
        image_size: shorter side in evaluation, pixels.
        photometric: probability of photometric distortion.
        scale_jitter: probability of large-scale jitter, which replaces the paper's resizing and cropping.
        mosaic: probability of a mosaic of four images.
        mixup: probability of blending with another image.
        orientation: flips and rotations of samples with large-scale jitter.
        zoom_out: probability of placing the image on a larger canvas.
        iou_crop: probability of a crop with a minimum IoU with an object.
        multi_scale: whether whole batches are resized, which the training step does.
        stretches: images are stretched to one size, as in RT-DETR; mosaic and MixUp are then those of DEIM.
    """

    image_size: int
    photometric: float = 0.0
    scale_jitter: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    orientation: RandomOrientation = field(default_factory=RandomOrientation)
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    multi_scale: bool = False
    stretches: bool = False

    @property
    def changes_anything(self) -> bool:
        """True if any augmentation is on."""
        probabilities = (self.photometric, self.scale_jitter, self.mosaic, self.mixup, self.zoom_out, self.iou_crop)
        return self.multi_scale or max(probabilities) > 0


class AugmentedDataset(Dataset[Sample]):
    """Augmented training samples, the same for the same seed, epoch and image in any process.

    Attributes:
        strong_epochs: with strong augmentation, unless the run is in its last part (`SampleKey.is_closing`).
        mosaic_epochs: those of them with mosaic and MixUp.
    """

    def __init__(
        self,
        images: Dataset[Sample],
        transform: Transform,
        *,
        seed: int,
        strong: StrongAugmentation | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        """Augment a dataset.

        Args:
            images: samples without transforms.
            transform: applied last to every sample, in every epoch.
            seed: of all randomness.
            strong: augmentation before `transform`.
            normalization: of the pixels; None is ImageNet's.
        """
        self.images = images
        self.transform = transform
        self.seed = seed
        self.strong = strong if strong is not None and strong.changes_anything else None
        self.strong_epochs = self.mosaic_epochs = range(1, sys.maxsize)
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]  # all of detrkit's datasets have a length

    def __getitem__(self, key: SampleKey) -> Sample:
        # the global generator, which dropout uses, must not depend on which process prepares the samples
        with torch.random.fork_rng(devices=[]):
            transform = self._transform_for(key)
            torch.default_generator.manual_seed(mix_seeds(self.seed, key.epoch, key.index))
            sample = self.images[key.index]
            strong = self._strong_for(key)
            sample = transform(sample) if strong is None else self._augment(sample, transform, strong)
            normalization = self.normalization or sample.normalization
            return replace(sample, normalization=normalization, is_strong=strong is not None)

    def _strong_for(self, key: SampleKey) -> StrongAugmentation | None:
        if self.strong is None or key.is_closing or key.epoch not in self.strong_epochs:
            return None
        return self.strong if key.epoch in self.mosaic_epochs else replace(self.strong, mosaic=0.0, mixup=0.0)

    def _transform_for(self, key: SampleKey) -> Transform:
        """Return the last transform, with the crop parameters of the sample's batch."""
        if key.batch is None or not isinstance(self.transform, TrainTransform):
            return self.transform
        torch.default_generator.manual_seed(mix_seeds(self.seed, key.epoch, key.batch, _BATCH_SEED))
        return partial(self.transform, params=CropParams.sample())

    def _augment(self, sample: Sample, transform: Transform, strong: StrongAugmentation) -> Sample:
        is_mosaic = _occurs(strong.mosaic)
        if is_mosaic:
            mosaic = GridMosaic(strong.image_size) if strong.stretches else Mosaic(strong.image_size)
            sample = mosaic([sample, *(self._random_sample() for _ in range(3))])
        if _occurs(strong.photometric):
            sample = PhotometricDistortion()(sample)
        if not is_mosaic:
            if _occurs(strong.zoom_out):
                sample = zoom_out(sample, 2 * strong.image_size)
            if _occurs(strong.iou_crop):
                sample = iou_crop(sample)
        jitters = _occurs(strong.scale_jitter)
        sample = ScaleJitter(strong.image_size)(strong.orientation(sample)) if jitters else transform(sample)
        if _occurs(strong.mixup):
            mixup = MixUp(_DEIM_MIXUP_WEIGHTS if strong.stretches else None)
            sample = mixup(sample, transform(self._random_sample()))
        return sample

    def _random_sample(self) -> Sample:
        return self.images[int(torch.randint(len(self), ()))]


def _occurs(probability: float) -> bool:
    return probability > 0 and float(torch.rand(())) < probability


def _random_crop(sample: Sample, size: tuple[int, int]) -> Sample:
    height, width = image_size(sample)
    top = int(torch.randint(height - size[0] + 1, ()))
    left = int(torch.randint(width - size[1] + 1, ()))
    return crop(sample, top, left, *size)


def _fill(sample: Sample, size: tuple[int, int]) -> Sample:
    """Crop the largest part with the aspect ratio of a rectangle, at a random position, and resize it to the rectangle.

    Objects of which too little remains are dropped. Cropping first avoids enlarging a whole panorama.
    """
    height, width = image_size(sample)
    scale = min(height / size[0], width / size[1])
    part = (min(height, max(1, round(size[0] * scale))), min(width, max(1, round(size[1] * scale))))
    top = int(torch.randint(height - part[0] + 1, ()))
    left = int(torch.randint(width - part[1] + 1, ()))
    boxes = sample.annotations.boxes
    visible = torch.minimum(
        (boxes - torch.tensor([left, top, left, top])).clamp(min=0), torch.tensor([part[1], part[0], part[1], part[0]])
    )
    is_visible = box_area(visible) >= _MIN_VISIBLE * box_area(boxes)
    return resize(crop(replace(sample, annotations=keep(sample.annotations, is_visible)), top, left, *part), size)


def _place_images(
    samples: Sequence[Sample], corners: Sequence[tuple[int, int]], size: tuple[int, int]
) -> UInt8[Tensor, "C H W"]:
    """Place images on black, each with its top left corner at (top, left)."""
    canvas = torch.zeros(samples[0].image.shape[0], *size, dtype=torch.uint8)
    for sample, (top, left) in zip(samples, corners, strict=True):
        height, width = image_size(sample)
        canvas[:, top : top + height, left : left + width] = sample.image
    return canvas


def _place_objects(samples: Sequence[Sample], corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Annotations:
    """Move the objects along with their images; masks only if all images have them."""
    parts = [sample.annotations for sample in samples]
    shifts = [torch.tensor([left, top, left, top]) for top, left in corners]
    boxes = torch.cat([part.boxes + shift for part, shift in zip(parts, shifts, strict=True)])
    labels = torch.cat([part.labels for part in parts])
    if any(part.masks is None for part in parts):
        return Annotations(boxes, labels)
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for part, part_masks, (top, left) in zip(
        parts, masks.split([len(part.labels) for part in parts]), corners, strict=True
    ):
        assert part.masks is not None
        height, width = part.masks.shape[1:]
        part_masks[:, top : top + height, left : left + width] = part.masks
    return Annotations(boxes, labels, masks)
