"""The paper's train and test pipelines (section A.4; published code, datasets/transforms.py), on uint8 tensors.

A transform takes a `Sample` and gives a `Sample`; boxes are xyxy in pixels, and masks, where there are any, follow.
The geometry is torchvision's; the sizes, their chances and the dropping of boxes are the paper's. Where
there are masks, an object that a crop cuts gets the box of what is left of its mask; the published code cuts its box.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from detrkit.data.dataset import keep
from detrkit.ops.segments import have_pixels, masks_to_boxes
from detrkit.structures import Annotations, Sample

TRAIN_SHORT_SIDES = tuple(range(480, 801, 32))
CROP_SHORT_SIDES = (400, 500, 600)
CROP_SIDES = (384, 600)
EVAL_SHORT_SIDE = 800
MAX_LONG_SIDE = 1333


def resized_size(size: tuple[int, int], short_side: int, max_size: int | None) -> tuple[int, int]:
    """Compute the size after resizing, to the pixel as the published code does.

    Args:
        size: (height, width) in pixels.
        short_side: wanted length of the shorter side.
        max_size: limit of the longer side, which wins.

    Returns:
        (height, width); the longer side is rounded down.
    """
    height, width = size
    shorter, longer = min(size), max(size)
    if max_size is not None and longer / shorter * short_side > max_size:
        short_side = round(max_size * shorter / longer)
        if short_side == 0:  # a photo that is little more than a line
            return (1, max_size) if height < width else (max_size, 1)
    if shorter == short_side:
        return size
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize to (height, width), the photo bilinear with antialiasing, masks by their nearest pixels."""
    masks = sample.annotations.masks
    boxes_alone = replace(sample, annotations=replace(sample.annotations, masks=None))
    resized = _apply(boxes_alone, lambda x: transforms.resize(x, list(size), antialias=True))
    if masks is None:
        return resized
    return replace(resized, annotations=replace(resized.annotations, masks=resize_masks(masks, size)))


def resize_masks(masks: Bool[Tensor, "N H W"], size: tuple[int, int]) -> Bool[Tensor, "N h w"]:
    """Resize masks to (height, width) by their nearest pixels, in one byte a pixel.

    A mask that is so thin that no pixel of it is nearest to any keeps those that it falls on instead: nothing is lost.
    """
    if tuple(masks.shape[1:]) == size:
        return masks
    if not len(masks):
        return masks.new_zeros(0, *size)
    resized = masks.new_empty(len(masks), *size)
    for some, their in zip(masks.split(8), resized.split(8), strict=True):
        # eight masks are the bits of one picture, which is resized in an eighth of the time
        together = np.zeros(masks.shape[1:], np.uint8)
        for bit, mask in enumerate(some.numpy()):
            together |= mask.view(np.uint8) << np.uint8(bit)
        wide = F.interpolate(torch.from_numpy(together)[None, None], size, mode="nearest")[0, 0].numpy()
        for bit, mask in enumerate(their.numpy()):
            np.not_equal(wide & np.uint8(1 << bit), 0, out=mask)
    is_lost = ~have_pixels(resized) & have_pixels(masks)
    if is_lost.any():
        resized[is_lost] = F.adaptive_max_pool2d(masks[is_lost].float(), size) > 0
    return resized


def horizontal_flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    return _apply(sample, transforms.horizontal_flip)


def vertical_flip(sample: Sample) -> Sample:
    """Mirror top and bottom."""
    return _apply(sample, transforms.vertical_flip)


def rotate90(sample: Sample) -> Sample:
    """Turn by 90 degrees, counterclockwise."""
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
    """Cut out a rectangle; objects without any area inside it are dropped.

    Objects that the rectangle cuts get the box of what is left of their masks, where there are any, and are dropped if
    nothing is.
    """
    cropped = _apply(sample, lambda x: transforms.crop(x, top, left, height, width))
    annotations = cropped.annotations
    if annotations.masks is not None:
        shifted = sample.annotations.boxes - torch.tensor([left, top, left, top])
        is_cut = (annotations.boxes != shifted).any(1)
        left_of_them = masks_to_boxes(annotations.masks[is_cut])
        boxes = annotations.boxes.clone()
        boxes[is_cut] = left_of_them.to(boxes.dtype)
        annotations = replace(annotations, boxes=boxes)
    boxes = annotations.boxes
    return replace(cropped, annotations=keep(annotations, (boxes[:, 2:] > boxes[:, :2]).all(1)))


@dataclass(frozen=True)
class RandomOrientation:
    """Mirror some of the samples left to right, as in the paper; and those without an up in more ways, if asked.

    Attributes:
        horizontal_flip: share that is mirrored left to right.
        vertical_flip: share that is mirrored top to bottom.
        rotate90: share that is turned by 90 degrees.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    rotate90: float = 0.0

    def __call__(self, sample: Sample, at: float | None = None) -> Sample:
        """Transform a sample; `at`, 0 .. 1, decides on the quarter turn in place of chance."""
        if torch.rand(()) < self.horizontal_flip:
            sample = horizontal_flip(sample)
        if self.vertical_flip and torch.rand(()) < self.vertical_flip:
            sample = vertical_flip(sample)
        if self.rotate90 and (float(torch.rand(())) if at is None else at) < self.rotate90:
            sample = rotate90(sample)
        return sample


@dataclass(frozen=True)
class RandomResize:
    """Resize the shorter side to one of several lengths."""

    short_sides: Sequence[int]
    max_size: int | None = None

    def __call__(self, sample: Sample, at: float | None = None) -> Sample:
        """Transform a sample; `at`, 0 .. 1, chooses the length in place of chance."""
        short_side = self.short_sides[_chosen(len(self.short_sides), at)]
        return resize(sample, resized_size(size_of(sample), short_side, self.max_size))


@dataclass(frozen=True)
class RandomSizeCrop:
    """Cut out a rectangle of random size and place; sides shorter than `smallest` are kept whole."""

    smallest: int
    largest: int

    def __call__(self, sample: Sample, at: tuple[float, float] | None = None) -> Sample:
        """Transform a sample; `at`, 0 .. 1 each, chooses height and width in place of chance."""
        height, width = (self._side(side, one) for side, one in zip(size_of(sample), at or (None, None), strict=True))
        top, left = (
            int(torch.randint(whole - part + 1, ()))
            for whole, part in zip(size_of(sample), (height, width), strict=True)
        )
        return crop(sample, top, left, height, width)

    def _side(self, whole: int, at: float | None) -> int:
        most = min(whole, self.largest)
        least = min(whole, self.smallest)
        return least + _chosen(most + 1 - least, at)


@dataclass(frozen=True)
class CropParams:
    """What decides the size of a training sample, each a number in 0 .. 1.

    Photos of one shape that share it come out alike and need no padding; where they are cut and mirrored is their own.

    Attributes:
        crops: whether a part is cut out.
        before: length that the photo is resized to before that.
        height: of the part.
        width: of the part.
        after: length that is resized to at the end.
        turns: whether width and height change places.
    """

    crops: float
    before: float
    height: float
    width: float
    after: float
    turns: float

    @classmethod
    def drawn(cls) -> "CropParams":
        """Draw one."""
        return cls(*torch.rand(6).tolist())


@dataclass(frozen=True)
class TrainTransform:
    """Mirror and turn; then, for some photos, cut out a part; then one of the training sizes.

    Attributes:
        image_size: shortest side in tests, in pixels; all sizes of the paper scale with it (800 gives the paper's).
        crop_probability: how often a part is cut out.
        orientation: what mirrors and turns.
    """

    image_size: int = EVAL_SHORT_SIDE
    crop_probability: float = 0.5
    orientation: RandomOrientation = field(default_factory=RandomOrientation)

    def __call__(self, sample: Sample, framing: CropParams | None = None) -> Sample:
        """Transform a sample; with its batch's framing, or one of its own."""
        framing = framing or CropParams.drawn()
        sample = self.orientation(sample, framing.turns)
        if framing.crops < self.crop_probability:
            # the published code sets no limit to the long side here, and a panorama eats the machine
            enlarged = RandomResize(self._scaled(CROP_SHORT_SIDES), 4 * max_long_side(self.image_size))
            sample = enlarged(sample, framing.before)
            sample = RandomSizeCrop(*self._scaled(CROP_SIDES))(sample, (framing.height, framing.width))
        return RandomResize(self._scaled(TRAIN_SHORT_SIDES), max_long_side(self.image_size))(sample, framing.after)

    def _scale(self, length: int) -> int:
        return max(1, round(length * self.image_size / EVAL_SHORT_SIDE))

    def _scaled(self, lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._scale(length) for length in lengths)


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side to `image_size` (800 in the paper), the longer to at most `max_long_side` of it (1333)."""

    __test__ = False  # not a test case, whatever its name

    image_size: int = EVAL_SHORT_SIDE

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample."""
        return resize(sample, resized_size(size_of(sample), self.image_size, max_long_side(self.image_size)))


def max_long_side(short_side: int) -> int:
    """Pixels that the longer side of a photo may have at most, where the shorter is to have so many."""
    return max(1, round(MAX_LONG_SIDE * short_side / EVAL_SHORT_SIDE))


def _chosen(count: int, at: float | None) -> int:
    """One of `count` numbers, from 0: at that share of them, or any."""
    return int(torch.randint(count, ())) if at is None else min(int(at * count), count - 1)


def size_of(sample: Sample) -> tuple[int, int]:
    """(height, width) of a sample as it is now."""
    return sample.image.shape[1], sample.image.shape[2]


def _apply(sample: Sample, operation: Callable[[Tensor], Tensor]) -> Sample:
    """Apply a torchvision operation to the image, the boxes and the masks alike."""
    annotations = sample.annotations
    boxes = tv_tensors.BoundingBoxes(annotations.boxes, format="XYXY", canvas_size=size_of(sample))
    masks = annotations.masks
    return replace(
        sample,
        image=operation(tv_tensors.Image(sample.image)).as_subclass(Tensor),
        annotations=Annotations(
            boxes=operation(boxes).as_subclass(Tensor),
            labels=annotations.labels,
            masks=None if masks is None else operation(tv_tensors.Mask(masks)).as_subclass(Tensor),
        ),
    )
