"""Collation of samples into a batch: images normalized and padded to a common size, boxes relative.

This is the one place where boxes are converted: from xyxy in pixels of the transformed image to cxcywh relative to that
image without padding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from detrkit.errors import check_minimum
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.ops.padding import empty_batch
from detrkit.structures import Batch, Sample, Target

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_batching(batch_size: int, workers: int) -> None:
    """Check the size of batches and the number of processes or threads that read images.

    Raises:
        ConfigError: the batch size is not positive, or the number of workers is negative.
    """
    check_minimum("batch_size", batch_size, 1)
    check_minimum("workers", workers, 0)


def normalization_stats(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel: ImageNet's for RGB, their average for other channels and gray."""
    return extend_to_channels(IMAGENET_MEAN, channels), extend_to_channels(IMAGENET_STD, channels)


def extend_to_channels(rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Extend values of red, green and blue to a number of channels: gray and further channels get their mean."""
    mean = round(sum(rgb) / len(rgb), 6)
    first = rgb if channels >= len(rgb) else ()
    return first + (mean,) * (channels - len(first))


def normalize(image: UInt8[Tensor, "C H W"], out: Float[Tensor, "C H W"] | None = None) -> Float[Tensor, "C H W"]:
    """Scale pixels to 0 .. 1 and normalize with ImageNet's mean and standard deviation.

    Args:
        image: the pixels.
        out: tensor to write to, which saves a copy: this is the slowest step of preparing a large image.
    """
    if out is None:
        out = torch.empty(image.shape)
    for pixels, target, mean, std in zip(image, out, *normalization_stats(len(image)), strict=True):
        torch.mul(pixels, 1 / (255 * std), out=target).sub_(mean / std)
    return out


def to_target(sample: Sample) -> Target:
    """Convert boxes from xyxy in pixels to cxcywh relative to the image; masks keep the size of the image.

    Masks are not padded: the padding would be copied between processes and to the device, and then ignored by the losses.
    """
    height, width = sample.image.shape[1:]
    boxes = xyxy_to_cxcywh(sample.annotations.boxes) / torch.tensor([width, height, width, height])
    masks = sample.annotations.masks
    # after a crop they are views, and a worker would send the whole storage
    return Target(boxes, sample.annotations.labels, None if masks is None else masks.contiguous())


def collate(samples: Sequence[Sample]) -> Batch:
    """Collate samples into a batch; the `collate_fn` of a `DataLoader`."""
    sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
    images, padding_mask = empty_batch(sizes, channels=samples[0].image.shape[0])
    for image, sample, (height, width) in zip(images, samples, sizes, strict=True):
        if sample.normalization is None:
            normalize(sample.image, out=image[:, :height, :width])
        else:
            image[:, :height, :width] = sample.normalization(sample.image)
    return Batch(
        images=images,
        padding_mask=padding_mask,
        targets=[to_target(sample) for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        sizes=sizes,
        original_sizes=[sample.original_size for sample in samples],
        is_strong=samples[0].is_strong,
    )
