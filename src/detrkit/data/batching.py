"""Samples -> a batch: normalised, padded to a common size, boxes relative. The one place that converts boxes.

Input: boxes xyxy in pixels of the transformed photo. Output: boxes cxcywh relative to that photo without padding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from detrkit.errors import ConfigError, arg
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
    if batch_size < 1:
        raise ConfigError(f"{arg('batch_size', batch_size)} is too small; use at least 1")
    if workers < 0:
        raise ConfigError(f"{arg('workers', workers)} is negative; use at least 0")


def normalization_stats(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every channel: ImageNet's for the first three, and their means for any others or for grey."""
    return extend_to_channels(IMAGENET_MEAN, channels), extend_to_channels(IMAGENET_STD, channels)


def extend_to_channels(of_colours: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Values of red, green and blue for another number of channels: grey and what comes after blue get their mean."""
    mean = round(sum(of_colours) / len(of_colours), 6)
    known = of_colours if channels >= len(of_colours) else ()
    return known + (mean,) * (channels - len(known))


def normalize(image: UInt8[Tensor, "C H W"], out: Float[Tensor, "C H W"] | None = None) -> Float[Tensor, "C H W"]:
    """Scale pixels to 0 .. 1, then to ImageNet's mean and deviation, which the backbones were trained with.

    Args:
        image: the pixels.
        out: where to write, to save a copy: this is the slowest step of preparing a large photo.
    """
    if out is None:
        out = torch.empty(image.shape)
    for pixels, target, mean, deviation in zip(image, out, *normalization_stats(len(image)), strict=True):
        torch.mul(pixels, 1 / (255 * deviation), out=target).sub_(mean / deviation)
    return out


def to_target(sample: Sample) -> Target:
    """Convert boxes from xyxy in pixels to cxcywh relative to the photo; masks stay of the photo's own size.

    They are not padded here: padding would be copied between processes and to the device, only to be left out of losses.
    """
    height, width = sample.image.shape[1:]
    boxes = xyxy_to_cxcywh(sample.annotations.boxes) / torch.tensor([width, height, width, height])
    masks = sample.annotations.masks
    # what a crop left is a view, and a worker would hand over all that it was cut from
    return Target(boxes, sample.annotations.labels, None if masks is None else masks.contiguous())


def collate(samples: Sequence[Sample]) -> Batch:
    """Make a batch of samples; a data loader's `collate_fn`."""
    sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
    images, padding_mask = empty_batch(sizes, channels=samples[0].image.shape[0])
    for image, sample, (height, width) in zip(images, samples, sizes, strict=True):
        normalize(sample.image, out=image[:, :height, :width])
    return Batch(
        images=images,
        padding_mask=padding_mask,
        targets=[to_target(sample) for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        sizes=sizes,
        original_sizes=[sample.original_size for sample in samples],
    )
