"""Augmentations of SSD and DEIM by torchvision: zoom-out, crop by IoU, and a mosaic with a random affine transform."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from detrkit.data.transforms.geometry import image_size, resize, resized_size
from detrkit.ops.segments import masks_to_boxes
from detrkit.structures import Annotations, Sample

_MIN_SIDE = 1.0  # pixels: smaller boxes are dropped, as published
_AFFINE: dict[str, Any] = {"degrees": 10, "translate": (0.1, 0.1), "scale": (0.5, 1.5)}  # of DEIM's mosaic


def zoom_out(sample: Sample, max_side: int) -> Sample:
    """Place an image on a black canvas of 1 to 4 times its sides (SSD, arXiv:1512.02325, section 2.2).

    Args:
        sample: to transform.
        max_side: longer sides are resized to it before, unlike in the published code: a canvas of a large photo would not
            fit into the memory.
    """
    from torchvision.transforms import v2  # imported here, because it takes seconds

    longer = max(image_size(sample))
    if longer > max_side:
        height, width = image_size(sample)
        sample = resize(sample, (max(1, height * max_side // longer), max(1, width * max_side // longer)))
    return apply_torchvision(sample, v2.RandomZoomOut(fill=0, side_range=(1.0, 4.0), p=1.0))


def iou_crop(sample: Sample) -> Sample:
    """Crop a rectangle whose IoU with an object is above a random minimum, or nothing (SSD, section 2.2)."""
    from torchvision.transforms import v2  # imported here, because it takes seconds

    return apply_torchvision(sample, v2.RandomIoUCrop(), cuts=True) if len(sample.annotations.labels) else sample


@dataclass(frozen=True)
class GridMosaic:
    """Four images in a grid, then rotated, moved and scaled at random (DEIM, arXiv:2412.04234, section 3.2).

    Each is resized to half the size in evaluation; cells of the grid are as large as the largest.

    Attributes:
        image_size: side in evaluation, pixels.
    """

    image_size: int

    def __call__(self, samples: Sequence[Sample]) -> Sample:
        """Combine four samples; the image id is that of the first."""
        from torchvision.transforms import v2  # imported here, because it takes seconds

        short, long = self.image_size // 2, self.image_size
        resized = [resize(one, resized_size(image_size(one), short, long)) for one in samples]
        height, width = (max(image_size(one)[axis] for one in resized) for axis in (0, 1))
        canvas = torch.zeros(resized[0].image.shape[0], 2 * height, 2 * width, dtype=torch.uint8)
        boxes, masks = [], []
        for number, one in enumerate(resized):
            top, left = number // 2 * height, number % 2 * width
            bottom, right = top + image_size(one)[0], left + image_size(one)[1]
            canvas[:, top:bottom, left:right] = one.image
            boxes.append(one.annotations.boxes + torch.tensor([left, top, left, top]))
            if one.annotations.masks is not None:
                placed = torch.zeros(len(one.annotations.labels), 2 * height, 2 * width, dtype=torch.bool)
                placed[:, top:bottom, left:right] = one.annotations.masks
                masks.append(placed)
        labels = torch.cat([one.annotations.labels for one in resized])
        has_masks = len(masks) == len(samples)
        annotations = Annotations(torch.cat(boxes), labels, torch.cat(masks) if has_masks else None)
        return apply_torchvision(
            replace(samples[0], image=canvas, annotations=annotations), v2.RandomAffine(**_AFFINE, fill=0), cuts=True
        )


def apply_torchvision(sample: Sample, transform: Callable[..., Any], *, cuts: bool = False) -> Sample:
    """Apply a transform of torchvision to an image with its boxes and masks, and drop objects without a pixel inside.

    Args:
        sample: to transform.
        transform: of torchvision.
        cuts: objects may be cut or rotated; if there are masks, boxes are then those of what remains.
    """
    from torchvision import tv_tensors

    size, annotations = image_size(sample), sample.annotations
    parts: dict[str, Any] = {
        "image": tv_tensors.Image(sample.image),
        "boxes": tv_tensors.BoundingBoxes(annotations.boxes, format="XYXY", canvas_size=size),
    }
    if annotations.masks is not None:
        parts["masks"] = tv_tensors.Mask(annotations.masks)
    changed = transform(parts)
    image = changed["image"].as_subclass(torch.Tensor)
    height, width = image.shape[1:]
    boxes = changed["boxes"].as_subclass(torch.Tensor)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    masks = changed["masks"].as_subclass(torch.Tensor) if "masks" in changed else None
    if masks is not None and cuts:
        boxes = masks_to_boxes(masks).to(boxes.dtype)
    is_kept = (boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE).all(1)
    kept = Annotations(boxes[is_kept], annotations.labels[is_kept], None if masks is None else masks[is_kept])
    return replace(sample, image=image, annotations=kept)
