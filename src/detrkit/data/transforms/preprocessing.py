"""Preprocessing of a model: resizing by the rules of its image processor, and its normalisation.

The rules are those of transformers' DETR processors, with their rounding; detrkit's own models use `EvalTransform`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from detrkit.data.transforms.geometry import Interpolation, RandomOrientation, image_size, resize, resized_size
from detrkit.structures import Sample
from detrkit.structures.normalization import Normalization

ResizeMode = Literal["shorter_side", "fit", "stretch", "none"]
Rounding = Literal["published", "transformers"]


@dataclass(frozen=True)
class ResizeRule:
    """Rule for the size of resized images.

    Attributes:
        mode: "shorter_side" resizes it to `size[0]` unless the longer side exceeds `size[1]`; "fit" keeps the aspect ratio
            and fills a box (height, width); "stretch" resizes to (height, width); "none" keeps the size.
        size: two lengths in pixels, as above.
        rounding: how sides are rounded with "shorter_side": as the published DETR code, or as transformers does.
    """

    mode: ResizeMode
    size: tuple[int, int]
    rounding: Rounding = "published"

    def __call__(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) to which an image of this (height, width) is resized."""
        if self.mode == "none":
            return size
        if self.mode == "stretch":
            return self.size
        if self.mode == "fit":
            scale = min(length / side for length, side in zip(self.size, size, strict=True))
            return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
        compute = resized_size if self.rounding == "published" else transformers_size
        return compute(size, *self.size)


def transformers_size(size: tuple[int, int], short_side: int, max_size: int) -> tuple[int, int]:
    """Compute the size after resizing as transformers does, which rounds the longer side of limited images otherwise.

    Args:
        size: (height, width) in pixels.
        short_side: requested length of the shorter side.
        max_size: maximum length of the longer side, which takes precedence.
    """
    height, width = size
    shorter, longer = float(min(size)), float(max(size))
    exact = float(short_side)
    if longer / shorter * short_side > max_size:
        exact = max_size * shorter / longer
        short_side = round(exact)
    if min(size) == short_side:
        return size
    if width < height:
        return max(1, int(exact * height / width)), max(1, short_side)
    return max(1, short_side), max(1, int(exact * width / height))


@dataclass(frozen=True)
class StretchTransform:
    """Flip at random and stretch to one size, as RT-DETR and D-FINE are trained.

    Attributes:
        image_size: height and width, pixels.
        orientation: flips and rotations.
    """

    image_size: int
    orientation: RandomOrientation = field(default_factory=RandomOrientation)

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample."""
        return resize(self.orientation(sample), (self.image_size, self.image_size))


@dataclass(frozen=True)
class ModelTransform:
    """Resize an image as a model expects it, and note its normalisation for `collate`."""

    resize: ResizeRule
    interpolation: Interpolation = "bilinear"
    normalization: Normalization | None = None

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample."""
        sample = resize(sample, self.resize(image_size(sample)), self.interpolation)
        return replace(sample, normalization=self.normalization)
