"""Mask losses and matching costs at random points (PointRend, arXiv:1912.08193; Mask2Former, arXiv:2112.01527, 3.3).

Instead of all pixels, logits and masks are compared at a sixteenth as many points as a predicted mask has values: in the
losses three quarters are those of least certainty among three times as many, in the matching all are uniformly distributed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from detrkit.losses.masks import dice_loss
from detrkit.structures import LayerMaskSource, Target

_VALUES_PER_POINT = 16
_OVERSAMPLING = 3
_UNCERTAIN_SHARE = 0.75


@dataclass(frozen=True)
class MaskSamples:
    """Predicted and true masks at points, for matching.

    Attributes:
        logits: of all queries after every layer.
        masks: of all objects; zeros beyond an image's number of objects.
    """

    logits: Float[Tensor, "T B Q P"]
    masks: Float[Tensor, "T B N P"]


def random_points(*shape: int, device: torch.device) -> Float[Tensor, "*shape 2"]:
    """Draw points (x, y) in 0 .. 1, uniformly."""
    return torch.rand(*shape, 2, device=device)


def num_matching_points(mask_size: tuple[int, int]) -> int:
    """Return the number of points that masks of a size are matched at."""
    return max(1, mask_size[0] * mask_size[1] // _VALUES_PER_POINT)


def mask_samples(source: LayerMaskSource, points: Float[Tensor, "T P 2"], targets: Sequence[Target]) -> MaskSamples:
    """Sample predictions and objects at the points of every layer.

    Args:
        source: computes the masks of the queries.
        points: of every layer, shared by all images and queries.
        targets: one per image, with masks.
    """
    padded = _padded_size(targets)
    count = max(len(target.labels) for target in targets)
    masks = points.new_zeros(len(points), len(targets), count, points.shape[1])
    for image, target in enumerate(targets):
        rows, columns = _pixels(points, padded)
        values = _values(_masks_of(target), slice(None), rows, columns)
        masks[:, image, : len(values)] = values.transpose(0, 1)
    return MaskSamples(source.at_points(points), masks)


def pairwise_mask_costs(samples: MaskSamples) -> tuple[Float[Tensor, "T B Q N"], Float[Tensor, "T B Q N"]]:
    """Compute the mean binary cross-entropy and the dice loss of every query and object."""
    logits, masks = samples.logits.float(), samples.masks.transpose(-1, -2)
    inside, outside = F.softplus(-logits) @ masks, F.softplus(logits) @ (1 - masks)
    probabilities = logits.sigmoid()
    sizes = probabilities.sum(-1)[..., None] + masks.sum(-2)[..., None, :]
    dice = 1 - (2 * (probabilities @ masks) + 1) / (sizes + 1)
    return (inside + outside) / logits.shape[-1], dice


def point_mask_losses(
    logits: Float[Tensor, "T P h w"],
    objects: Int64[Tensor, "T P"],
    counts: Sequence[int],
    targets: Sequence[Target],
) -> Float[Tensor, "2 T"]:
    """Compute mean binary cross-entropy and dice loss at points of each matched pair, summed over the pairs of each layer.

    Args:
        logits: masks of the matched queries after T layers, image by image, over the padded images.
        objects: index of the object of each pair among those of its image.
        counts: number of pairs of each image.
        targets: one per image, with masks.
    """
    pairs = logits.shape[:2]
    if not pairs[1]:
        return logits.sum((1, 2, 3)).expand(2, -1)
    flat = logits.flatten(0, 1)
    points = _uncertain_points(flat.detach())
    sampled = _bilinear(flat, points)
    rows, columns = _pixels(points, _padded_size(targets))
    of_images = (one.unflatten(0, pairs).split(list(counts), dim=1) for one in (rows, columns))
    parts = zip(targets, objects.split(list(counts), dim=1), *of_images, strict=True)
    truth = torch.cat([_values(_masks_of(target), *part) for target, *part in parts], dim=1).flatten(0, 1)
    cross_entropy = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(1)
    losses = torch.stack([cross_entropy, dice_loss(sampled[..., None], truth[..., None])])
    return losses.unflatten(1, pairs).sum(-1)


@torch.no_grad()
def _uncertain_points(logits: Float[Tensor, "P h w"]) -> Float[Tensor, "P n 2"]:
    """Draw points, most of them where the logits are next to zero."""
    count, height, width = logits.shape
    total = max(height, height * width // _VALUES_PER_POINT)
    kept = int(_UNCERTAIN_SHARE * total)
    candidates = random_points(count, _OVERSAMPLING * total, device=logits.device)
    certainty = _bilinear(logits, candidates).abs()
    chosen = certainty.topk(kept, dim=1, largest=False).indices
    uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([uncertain, random_points(count, total - kept, device=logits.device)], dim=1)


def _bilinear(logits: Float[Tensor, "P h w"], points: Float[Tensor, "P n 2"]) -> Float[Tensor, "P n"]:
    """Interpolate each mask at its points."""
    grid = (2 * points - 1)[:, None]
    return F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)[:, 0, 0]


def _pixels(points: Float[Tensor, "*n 2"], padded: tuple[int, int]) -> tuple[Int64[Tensor, "*n"], Int64[Tensor, "*n"]]:
    """Return the row and column of the pixel at every point of a padded image."""
    columns, rows = (
        (points[..., axis] * side - 0.5).clamp(0, side - 1).round().long() for axis, side in enumerate(padded[::-1])
    )
    return rows, columns


def _values(
    masks: Bool[Tensor, "N H W"],
    objects: Int64[Tensor, "T n"] | slice,
    rows: Int64[Tensor, "T *n"],
    columns: Int64[Tensor, "T *n"],
) -> Float[Tensor, "A B P"]:
    """Return the values of masks at pixels; those beyond the image are 0.

    Args:
        masks: of one image.
        objects: index of the mask of each pair; a slice takes all masks at the same pixels.
        rows: of the pixels, as of every pair, or shared by all masks.
        columns: likewise.
    """
    height, width = masks.shape[-2:]
    index = objects if isinstance(objects, slice) else objects[..., None]
    values = masks[index, rows.clamp(max=height - 1), columns.clamp(max=width - 1)]
    return (values & (rows < height) & (columns < width)).float()


def _masks_of(target: Target) -> Bool[Tensor, "N H W"]:
    assert target.masks is not None, "criteria compute mask losses of targets with masks only"
    return target.masks


def _padded_size(targets: Sequence[Target]) -> tuple[int, int]:
    """Return the height and width of the padded batch."""
    sizes = [target.masks.shape[-2:] for target in targets if target.masks is not None]
    return max(size[0] for size in sizes), max(size[1] for size in sizes)
