"""Noised ground truth for denoising queries (DN-DETR, arXiv:2203.01305; with negatives, DINO, arXiv:2203.03605).

The noise depends on seed, step and image only, not on the rest of the batch or on the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detrkit.config.training import TrainingConfig
from detrkit.data.samplers import mix_seeds
from detrkit.ops.transfer import to_device_async
from detrkit.structures import Batch, Target

_MIN_SIDE = 0.1  # fraction of a side that noise leaves: boxes keep an area


@dataclass(frozen=True)
class NoisedBoxes:
    """Noised copies of the objects of each image, one copy after the other.

    A copy contains every object and then, with contrastive denoising, a negative of every object with more noise. Images
    with fewer objects than the others are padded.

    Attributes:
        boxes: cxcywh, relative to the image without padding.
        labels: 0 .. K-1.
        copies: number of copies.
        fillers: padding of one copy; None without padding.
    """

    boxes: Float[Tensor, "B N 4"]
    labels: Int64[Tensor, "B N"]
    copies: int
    fillers: Bool[Tensor, "B E"] | None  # of one copy

    @property
    def size(self) -> int:
        """Queries per copy."""
        return self.labels.shape[1] // self.copies


def noised_boxes(batch: Batch, settings: TrainingConfig, num_classes: int, step: int) -> NoisedBoxes:
    """Copy the objects of a batch and add noise.

    Args:
        batch: on the device.
        settings: number of copies and scale of the noise.
        num_classes: K, from which other labels are drawn.
        step: of the run.
    """
    device = batch.images.device
    drawn = [
        draw(len(target.labels), settings, num_classes, mix_seeds(settings.seed, step, image_id % 2**64))
        for target, image_id in zip(batch.targets, batch.image_ids, strict=True)
    ]
    shifts, others = (pad_sequence(list(each), batch_first=True) for each in zip(*drawn, strict=True))
    shifts, others = (to_device_async(_at_least_one(each), device) for each in (shifts, others))
    boxes, labels = _padded(batch.targets)
    sides, copies = shifts.shape[2], shifts.shape[3]
    # images, copies, objects or negatives, objects
    shifted = move(boxes[:, :, None, None].float(), shifts).permute(0, 3, 2, 1, 4).flatten(1, 3)
    relabelled = torch.where(others < 0, labels[:, :, None, None], others).permute(0, 3, 2, 1).flatten(1)
    counts = [len(target.labels) for target in batch.targets]
    fillers = _fillers(counts, sides)
    return NoisedBoxes(shifted, relabelled, copies, None if fillers is None else to_device_async(fillers, device))


def draw(
    count: int, settings: TrainingConfig, num_classes: int, seed: int
) -> tuple[Float[Tensor, "N G C 4"], Int64[Tensor, "N G C"]]:
    """Draw the noise of one image; G is 2 with negatives, otherwise 1.

    Returns:
        Fractions by which centres and sides change, at most `box_noise_scale` for objects and one to two times of it for
        negatives; and labels that replace the true ones, or -1.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    sides = 2 if settings.auxiliary_queries.contrastive_denoising else 1
    shape = (count, sides, settings.auxiliary_queries.denoising)
    sizes = torch.rand(*shape, 4, generator=generator) + torch.arange(sides)[:, None, None]
    signs = torch.randint(2, (*shape, 4), generator=generator) * 2 - 1
    is_other = torch.rand(shape, generator=generator) < settings.auxiliary_queries.label_noise_ratio
    others = torch.randint(num_classes, shape, generator=generator)
    return settings.auxiliary_queries.box_noise_scale * sizes * signs, torch.where(is_other, others, -1)


def move(boxes: Float[Tensor, "*#N 4"], shares: Float[Tensor, "*#N 4"]) -> Float[Tensor, "*#N 4"]:
    """Shift centres by fractions of half a side, and scale sides by 1 + fraction; boxes cxcywh in 0 .. 1."""
    centres, sides = boxes[..., :2], boxes[..., 2:]
    moved = (centres + shares[..., :2] * sides / 2).clamp(0, 1)
    grown = (sides * (1 + shares[..., 2:]).clamp(min=_MIN_SIDE)).clamp(max=1)
    return torch.cat([moved, grown], dim=-1)


def _padded(targets: Sequence[Target]) -> tuple[Float[Tensor, "B N 4"], Int64[Tensor, "B N"]]:
    boxes = pad_sequence([target.boxes for target in targets], batch_first=True, padding_value=0.5)
    labels = pad_sequence([target.labels for target in targets], batch_first=True)
    if not labels.shape[1]:
        return boxes.new_full((len(targets), 1, 4), 0.5), labels.new_zeros(len(targets), 1)
    return boxes, labels


def _at_least_one(values: Tensor) -> Tensor:
    """Keep one position if no image has an object: DistributedDataParallel expects gradients of all weights."""
    return values if values.shape[1] else values.new_zeros(len(values), 1, *values.shape[2:])


def _fillers(counts: Sequence[int], sides: int) -> Bool[Tensor, "B E"] | None:
    """Return the padding mask of one copy; an image without objects has none, as attention needs at least one key."""
    size = max(1, *counts)
    if all(count in (0, size) for count in counts):
        return None
    is_filler = torch.arange(size) >= torch.tensor(counts)[:, None]
    is_filler &= torch.tensor(counts)[:, None] > 0
    return is_filler.repeat(1, sides)
