"""Noised ground truth for denoising queries (DN-DETR, arXiv:2203.01305; with negatives, DINO, arXiv:2203.03605).

The noise depends on seed, step and image only, not on the rest of the batch or on the number of processes. In RT-DETR and
D-FINE, padding up to the largest number of objects of the batch takes part in attention, as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detrkit.config.model import ModelConfig
from detrkit.config.setting_groups import AuxiliaryQueriesConfig
from detrkit.config.training import TrainingConfig
from detrkit.data.samplers import mix_seeds
from detrkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detrkit.ops.transfer import to_device_async
from detrkit.structures import Batch, Target

_MIN_SIDE = 0.1  # fraction of a side that noise leaves: boxes keep an area
# of one image: fractions by which boxes change, for G copies with C sides, and labels that replace the true ones or -1
ImageNoise = tuple[Float[Tensor, "_ C G 4"], Int64[Tensor, "_ C G"]]


@dataclass(frozen=True)
class NoisedBoxes:
    """Noised copies of the objects of each image, one copy after the other.

    A copy contains every object and then, with contrastive denoising, a negative of every object with more noise. Images
    with fewer objects than the others are padded. In RT-DETR and D-FINE padding is a query like others, without a size and
    with the label K, as published.

    Attributes:
        boxes: cxcywh, relative to the image without padding.
        labels: 0 .. K-1, or K for padding.
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


def noised_boxes(
    batch: Batch, settings: TrainingConfig, model: ModelConfig, step: int, noise: Sequence[ImageNoise] | None = None
) -> NoisedBoxes:
    """Copy the objects of a batch and add noise.

    Args:
        batch: on the device.
        settings: number of copies, kind and scale of the noise.
        model: number of classes, from which other labels are drawn, and treatment of padding.
        step: of the run.
        noise: of each image; default: drawn.
    """
    device, auxiliary = batch.images.device, settings.auxiliary_queries
    counts = [len(target.labels) for target in batch.targets]
    copies = auxiliary.num_copies(max(counts))
    noise = noise or [
        draw(count, auxiliary, copies, model.num_classes, mix_seeds(settings.seed, step, image_id % 2**64))
        for count, image_id in zip(counts, batch.image_ids, strict=True)
    ]
    shifts, others = (pad_sequence(list(each), batch_first=True, padding_value=-1) for each in zip(*noise, strict=True))
    shifts, others = (to_device_async(_at_least_one(each), device) for each in (shifts, others))
    attends_to_padding = model.queries == "selected"
    boxes, labels = _padded(batch.targets, *((0.0, model.num_classes) if attends_to_padding else (0.5, 0)))
    boxes = boxes[:, :, None, None].float()
    if auxiliary.box_noise == "center_size":
        shifted = move(boxes, shifts)
    else:
        shifted = move_corners(boxes, shifts, ordered=auxiliary.box_noise == "ordered_corners")
    # images, copies, objects or negatives, objects
    shifted = shifted.permute(0, 3, 2, 1, 4).flatten(1, 3)
    relabelled = torch.where(others < 0, labels[:, :, None, None], others).permute(0, 3, 2, 1).flatten(1)
    fillers = None if attends_to_padding else _fillers(counts, shifts.shape[2])
    return NoisedBoxes(shifted, relabelled, copies, None if fillers is None else to_device_async(fillers, device))


def draw(count: int, settings: AuxiliaryQueriesConfig, copies: int, num_classes: int, seed: int) -> ImageNoise:
    """Draw the noise of one image; C is 2 with negatives, otherwise 1.

    Returns:
        Fractions by which centres and sides change, at most `box_noise_scale` for objects and one to two times of it for
        negatives; and labels that replace the true ones, or -1.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    sides = 2 if settings.contrastive_denoising else 1
    shape = (count, sides, copies)
    sizes = torch.rand(*shape, 4, generator=generator) + torch.arange(sides)[:, None, None]
    signs = torch.randint(2, (*shape, 4), generator=generator) * 2 - 1
    is_other = torch.rand(shape, generator=generator) < settings.label_noise_ratio
    others = torch.randint(num_classes, shape, generator=generator)
    return settings.box_noise_scale * sizes * signs, torch.where(is_other, others, -1)


def move(boxes: Float[Tensor, "*#N 4"], shares: Float[Tensor, "*#N 4"]) -> Float[Tensor, "*#N 4"]:
    """Shift centres by fractions of half a side, and scale sides by 1 + fraction; boxes cxcywh in 0 .. 1."""
    centres, sides = boxes[..., :2], boxes[..., 2:]
    moved = (centres + shares[..., :2] * sides / 2).clamp(0, 1)
    grown = (sides * (1 + shares[..., 2:]).clamp(min=_MIN_SIDE)).clamp(max=1)
    return torch.cat([moved, grown], dim=-1)


def move_corners(
    boxes: Float[Tensor, "*#N 4"], shares: Float[Tensor, "*#N 4"], *, ordered: bool
) -> Float[Tensor, "*#N 4"]:
    """Shift two opposite corners by fractions of half a side, within the image; boxes cxcywh in 0 .. 1.

    Args:
        boxes: to move.
        shares: of left, top, right and bottom; beyond 1, corners may pass each other.
        ordered: boxes whose corners have passed each other have no size, as in DINO and RT-DETR; otherwise they have that
            between the corners, as in D-FINE.
    """
    corners = cxcywh_to_xyxy(boxes) + shares * torch.cat([boxes[..., 2:], boxes[..., 2:]], dim=-1) / 2
    moved = xyxy_to_cxcywh(corners.clamp(0, 1))
    size = moved[..., 2:].clamp(min=0) if ordered else moved[..., 2:].abs()
    return torch.cat([moved[..., :2], size], dim=-1)


def _padded(targets: Sequence[Target], box: float, label: int) -> tuple[Float[Tensor, "B N 4"], Int64[Tensor, "B N"]]:
    boxes = pad_sequence([target.boxes for target in targets], batch_first=True, padding_value=box)
    labels = pad_sequence([target.labels for target in targets], batch_first=True, padding_value=label)
    if not labels.shape[1]:
        return boxes.new_full((len(targets), 1, 4), box), labels.new_full((len(targets), 1), label)
    return boxes, labels


def _at_least_one(values: Tensor) -> Tensor:
    """Keep one position if no image has an object: DistributedDataParallel expects gradients of all weights."""
    return values if values.shape[1] else values.new_full((len(values), 1, *values.shape[2:]), -1)


def _fillers(counts: Sequence[int], sides: int) -> Bool[Tensor, "B E"] | None:
    """Return the padding mask of one copy; an image without objects has none, as attention needs at least one key."""
    size = max(1, *counts)
    if all(count in (0, size) for count in counts):
        return None
    is_filler = torch.arange(size) >= torch.tensor(counts)[:, None]
    is_filler &= torch.tensor(counts)[:, None] > 0
    return is_filler.repeat(1, sides)
