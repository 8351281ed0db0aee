"""Geometric transforms of training and evaluation (paper, section A.4; published code, datasets/transforms.py).

A transform maps a `Sample` to a `Sample`: a uint8 image, boxes xyxy in pixels, and masks if there are any. Sizes,
probabilities and the dropping of boxes are the paper's. If there are masks, an object that is cut by a crop gets the box of
its remaining mask; the published code clips the box.

The operations are torch's, and give torchvision's results to the bit; importing torchvision takes 4.4 s.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from detrkit.data.dataset import keep
from detrkit.ops.segments import masks_to_boxes, nonempty_masks
from detrkit.structures import Annotations, Sample

TRAIN_SHORT_SIDES = tuple(range(480, 801, 32))
CROP_SHORT_SIDES = (400, 500, 600)
CROP_SIDES = (384, 600)
EVAL_SHORT_SIDE = 800
MAX_LONG_SIDE = 1333
Interpolation = Literal["bilinear", "nearest", "bicubic", "lanczos"]
_HAS_LANCZOS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)  # before, transformers uses bicubic, too


def resized_size(size: tuple[int, int], short_side: int, max_size: int | None) -> tuple[int, int]:
    """Compute the size after resizing, exactly as the published code does.

    Args:
        size: (height, width) in pixels.
        short_side: requested length of the shorter side.
        max_size: maximum length of the longer side, which takes precedence.

    Returns:
        (height, width); the longer side is rounded down.
    """
    height, width = size
    shorter, longer = min(size), max(size)
    if max_size is not None and longer / shorter * short_side > max_size:
        short_side = round(max_size * shorter / longer)
        if short_side == 0:  # an image that is hardly more than a line
            return (1, max_size) if height < width else (max_size, 1)
    if shorter == short_side:
        return size
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def resize(sample: Sample, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> Sample:
    """Resize to (height, width): the image bilinearly with antialiasing by default, masks by nearest neighbor."""
    height, width = image_size(sample)
    if size == (height, width):
        return sample
    annotations = sample.annotations
    scale_y, scale_x = size[0] / height, size[1] / width
    return replace(
        sample,
        image=_resize_image(sample.image, size, interpolation),
        annotations=Annotations(
            boxes=annotations.boxes * torch.tensor([scale_x, scale_y, scale_x, scale_y]),
            labels=annotations.labels,
            masks=None if annotations.masks is None else resize_masks(annotations.masks, size),
        ),
    )


def _resize_image(
    image: UInt8[Tensor, "C H W"], size: tuple[int, int], interpolation: Interpolation
) -> UInt8[Tensor, "C h w"]:
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # strides that keep channels last in memory
    if interpolation == "nearest":
        return F.interpolate(batch, size, mode="nearest-exact")[0]
    mode = "bicubic" if interpolation == "lanczos" and not _HAS_LANCZOS else interpolation
    if size == (1, 1):  # torch's kernel for uint8 fails (2.15)
        single = F.interpolate(batch.float(), size, mode=mode, antialias=True)[0]
        return single.round_().clamp_(0, 255).to(torch.uint8)
    if interpolation != "bilinear":
        return F.interpolate(batch, size, mode=mode, antialias=True)[0]
    # torch resizes uint8 twice as fast as float with these instructions, and is slower without
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64"):
        return F.interpolate(batch, size, mode="bilinear", antialias=True)[0]
    return F.interpolate(batch.float(), size, mode="bilinear", antialias=True)[0].round_().to(torch.uint8)


def resize_masks(masks: Bool[Tensor, "N H W"], size: tuple[int, int]) -> Bool[Tensor, "N h w"]:
    """Resize masks to (height, width) by nearest neighbor.

    A mask so thin that it would vanish keeps all pixels that it touches instead.
    """
    if tuple(masks.shape[1:]) == size:
        return masks
    if not len(masks):
        return masks.new_zeros(0, *size)
    resized = masks.new_empty(len(masks), *size)
    for group, resized_group in zip(masks.split(8), resized.split(8), strict=True):
        # eight masks are the bits of one image, which is resized in an eighth of the time
        packed = np.zeros(masks.shape[1:], np.uint8)
        for bit, mask in enumerate(group.numpy()):
            packed |= mask.view(np.uint8) << np.uint8(bit)
        resized_bits = F.interpolate(torch.from_numpy(packed)[None, None], size, mode="nearest")[0, 0].numpy()
        for bit, mask in enumerate(resized_group.numpy()):
            np.not_equal(resized_bits & np.uint8(1 << bit), 0, out=mask)
    is_lost = ~nonempty_masks(resized) & nonempty_masks(masks)
    if is_lost.any():
        resized[is_lost] = F.adaptive_max_pool2d(masks[is_lost].float(), size) > 0
    return resized


def horizontal_flip(sample: Sample) -> Sample:
    """Flip left to right."""
    width = sample.image.shape[2]
    left, top, right, bottom = sample.annotations.boxes.unbind(1)
    return _flip(sample, -1, torch.stack([width - right, top, width - left, bottom], dim=1))


def vertical_flip(sample: Sample) -> Sample:
    """Flip top to bottom."""
    height = sample.image.shape[1]
    left, top, right, bottom = sample.annotations.boxes.unbind(1)
    return _flip(sample, -2, torch.stack([left, height - bottom, right, height - top], dim=1))


def _flip(sample: Sample, dim: int, boxes: Float[Tensor, "N 4"]) -> Sample:
    masks = sample.annotations.masks
    return replace(
        sample,
        image=sample.image.flip(dim),
        annotations=replace(sample.annotations, boxes=boxes, masks=None if masks is None else masks.flip(dim)),
    )


def rotate90(sample: Sample) -> Sample:
    """Rotate by 90 degrees, counterclockwise."""
    annotations, width = sample.annotations, sample.image.shape[2]
    left, top, right, bottom = annotations.boxes.unbind(1)
    return replace(
        sample,
        # channels stay last in memory
        image=sample.image.permute(1, 2, 0).rot90(1, (0, 1)).contiguous().permute(2, 0, 1),
        annotations=Annotations(
            boxes=torch.stack([top, width - right, bottom, width - left], dim=1),
            labels=annotations.labels,
            masks=None if annotations.masks is None else annotations.masks.rot90(1, (1, 2)),
        ),
    )


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut out a rectangle of the image, and drop the objects without any area inside it.

    Objects that are cut get the box of their remaining mask, if there are masks, and are dropped if it is empty.
    """
    annotations = sample.annotations
    shifted = annotations.boxes - torch.tensor([left, top, left, top])
    boxes = shifted.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    masks = None
    if annotations.masks is not None:
        masks = annotations.masks[:, top : top + height, left : left + width]
        is_cut = (boxes != shifted).any(1)
        boxes[is_cut] = masks_to_boxes(masks[is_cut]).to(boxes.dtype)
    cropped = Annotations(boxes, annotations.labels, masks)
    return replace(
        sample,
        image=sample.image[:, top : top + height, left : left + width],
        annotations=keep(cropped, (boxes[:, 2:] > boxes[:, :2]).all(1)),
    )


@dataclass(frozen=True)
class RandomOrientation:
    """Flip samples horizontally, as in the paper, and optionally vertically or by 90 degrees.

    Attributes:
        horizontal_flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        rotate90: probability of a rotation by 90 degrees.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    rotate90: float = 0.0

    def __call__(self, sample: Sample, rotation: float | None = None) -> Sample:
        """Transform a sample; `rotation`, 0 .. 1, replaces the random number of the rotation."""
        if torch.rand(()) < self.horizontal_flip:
            sample = horizontal_flip(sample)
        if self.vertical_flip and torch.rand(()) < self.vertical_flip:
            sample = vertical_flip(sample)
        if self.rotate90 and (float(torch.rand(())) if rotation is None else rotation) < self.rotate90:
            sample = rotate90(sample)
        return sample


@dataclass(frozen=True)
class RandomResize:
    """Resize the shorter side to one of several lengths at random."""

    short_sides: Sequence[int]
    max_size: int | None = None

    def __call__(self, sample: Sample, choice: float | None = None) -> Sample:
        """Transform a sample; `choice`, 0 .. 1, replaces the random choice of the length."""
        short_side = self.short_sides[_choose(len(self.short_sides), choice)]
        return resize(sample, resized_size(image_size(sample), short_side, self.max_size))


@dataclass(frozen=True)
class RandomSizeCrop:
    """Crop a rectangle of random size and position; sides shorter than `min_size` are kept."""

    min_size: int
    max_size: int

    def __call__(self, sample: Sample, choice: tuple[float, float] | None = None) -> Sample:
        """Transform a sample; `choice`, 0 .. 1 each, replaces the random choice of height and width."""
        height, width = (
            self._side(side, one) for side, one in zip(image_size(sample), choice or (None, None), strict=True)
        )
        top, left = (
            int(torch.randint(whole - part + 1, ()))
            for whole, part in zip(image_size(sample), (height, width), strict=True)
        )
        return crop(sample, top, left, height, width)

    def _side(self, whole: int, choice: float | None) -> int:
        longest, shortest = min(whole, self.max_size), min(whole, self.min_size)
        return shortest + _choose(longest + 1 - shortest, choice)


@dataclass(frozen=True)
class CropParams:
    """Random numbers in 0 .. 1 that decide the size of a training sample.

    Images of one size that share them come out alike and need no padding; the position of the crop and the flips differ.

    Attributes:
        crop: whether to crop.
        size_before: length that the image is resized to before cropping.
        height: of the crop.
        width: of the crop.
        size_after: length that the image is resized to at the end.
        rotation: whether to rotate by 90 degrees.
    """

    crop: float
    size_before: float
    height: float
    width: float
    size_after: float
    rotation: float

    @classmethod
    def sample(cls) -> "CropParams":
        """Draw random parameters."""
        return cls(*torch.rand(6).tolist())


@dataclass(frozen=True)
class TrainTransform:
    """Training transform of the paper: flip, crop with a probability, and resize to one of the training sizes.

    Attributes:
        image_size: shorter side in evaluation, pixels; all sizes of the paper scale with it (800 gives the paper's).
        crop_probability: probability of cropping.
        orientation: flips and rotations.
    """

    image_size: int = EVAL_SHORT_SIDE
    crop_probability: float = 0.5
    orientation: RandomOrientation = field(default_factory=RandomOrientation)

    def __call__(self, sample: Sample, params: CropParams | None = None) -> Sample:
        """Transform a sample, with the crop parameters of its batch or its own."""
        params = params or CropParams.sample()
        sample = self.orientation(sample, params.rotation)
        if params.crop < self.crop_probability:
            # limited, unlike in the published code: a panorama would exhaust the memory
            enlarged = RandomResize(self._scaled(CROP_SHORT_SIDES), 4 * max_long_side(self.image_size))
            sample = enlarged(sample, params.size_before)
            sample = RandomSizeCrop(*self._scaled(CROP_SIDES))(sample, (params.height, params.width))
        return RandomResize(self._scaled(TRAIN_SHORT_SIDES), max_long_side(self.image_size))(sample, params.size_after)

    def _scale(self, length: int) -> int:
        return max(1, round(length * self.image_size / EVAL_SHORT_SIDE))

    def _scaled(self, lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._scale(length) for length in lengths)


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side to `image_size` (800 in the paper), the longer to at most `max_long_side` (1333)."""

    image_size: int = EVAL_SHORT_SIDE

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample."""
        return resize(sample, resized_size(image_size(sample), self.image_size, max_long_side(self.image_size)))


def max_long_side(short_side: int) -> int:
    """Return the maximum length of the longer side, for a length of the shorter side."""
    return max(1, round(MAX_LONG_SIDE * short_side / EVAL_SHORT_SIDE))


def _choose(count: int, choice: float | None) -> int:
    """Return a number in 0 .. count - 1: at a fraction of the range, or at random."""
    return int(torch.randint(count, ())) if choice is None else min(int(choice * count), count - 1)


def image_size(sample: Sample) -> tuple[int, int]:
    """(height, width) of a sample's image as it is now."""
    return sample.image.shape[1], sample.image.shape[2]
