"""Losses of edge distributions (D-FINE, arXiv:2410.13842): fine-grained localization and distillation."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit.losses.matcher import MatchedObjects, Matches
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import EdgeDistributions

_EPS = 1e-16  # added to sides that distances are divided by, as published
_TEMPERATURE = 5.0  # of the distillation


def edge_targets(
    references: Float[Tensor, "P 4"],
    boxes: Float[Tensor, "P 4"],
    bin_values: Float[Tensor, "N"],
    reg_scale: Float[Tensor, ""] | float,
) -> tuple[Int64[Tensor, "P 4"], Float[Tensor, "P 4"]]:
    """Compute where the edges of objects lie between the bins of their references' distributions.

    Args:
        references: that distances are relative to, cxcywh.
        boxes: of the objects, cxcywh.
        bin_values: distance of every bin, ascending.
        reg_scale: distances are in units of the reference's sides divided by it, from half of it outwards.

    Returns:
        The bin left of every edge, and the weight of the bin right of it in 0 .. 1; the left one has the rest. Edges are
        left, top, right and bottom; those beyond all bins are at the first or the last one.
    """
    centers, sides = references[:, :2], references[:, 2:] / reg_scale + _EPS
    corners = cxcywh_to_xyxy(boxes)
    distances = torch.cat([(centers - corners[:, :2]) / sides, (corners[:, 2:] - centers) / sides], dim=1)
    distances = (distances - 0.5 * reg_scale).contiguous()
    last = len(bin_values) - 1
    left = torch.searchsorted(bin_values, distances, right=True) - 1
    inside = left.clamp(0, last - 1)
    to_left = (distances - bin_values[inside]).abs()
    to_right = (bin_values[inside + 1] - distances).abs()
    weight = torch.where(left < 0, 0.0, torch.where(left >= last, 1.0, to_left / (to_left + to_right)))
    return inside, weight


def fine_grained_localization(
    distributions: EdgeDistributions,
    matches: Matches,
    objects: MatchedObjects,
    iou: Float[Tensor, "T B Q"],
    num_boxes: Float[Tensor, ""] | float,
) -> Float[Tensor, "T"]:
    """Compute D-FINE's FGL of each layer: cross-entropies of the two bins at every edge, weighted by the box's IoU.

    Args:
        distributions: of all layers.
        matches: pairs of queries and objects, equally many in every layer.
        objects: matched objects, in the order of `matches`.
        iou: of the boxes of all queries with their objects.
        num_boxes: divisor.
    """
    index = matches.layers, matches.images, matches.queries
    references = distributions.references[matches.images, matches.queries]
    left, weight = edge_targets(references, objects.boxes, distributions.bin_values, distributions.reg_scale)
    log_probabilities = distributions.layer_logits[index].log_softmax(-1)
    at_bins = log_probabilities.gather(-1, torch.stack([left, left + 1], dim=-1))
    entropies = -((1 - weight) * at_bins[..., 0] + weight * at_bins[..., 1]).sum(-1)
    num_layers = len(distributions.layer_logits)
    by_layer = (iou[index] * entropies).view(num_layers, len(entropies) // num_layers)
    return by_layer.sum(1) / num_boxes


def distillation_focal(
    student_logits: Float[Tensor, "T B Q 4 N"],
    teacher_logits: Float[Tensor, "B Q 4 N"],
    iou: Float[Tensor, "T B Q"],
    is_matched: Bool[Tensor, "B Q"],
    teacher_scores: Float[Tensor, "B Q"],
    matched_share: float,
) -> Float[Tensor, "T"]:
    """Compute D-FINE's DDF of each layer: divergence of its distributions from those of the last layer.

    Matched queries are weighted by the IoU of their boxes, others by the teacher's best class score.

    Args:
        student_logits: of the layers that learn.
        teacher_logits: of the last layer; detached here.
        iou: of the students' boxes with their objects.
        is_matched: whether a query has an object.
        teacher_scores: best class score of each query after the last layer.
        matched_share: weight of the mean over matched queries; the mean over the others has the rest.
    """
    teacher = (teacher_logits.detach() / _TEMPERATURE).log_softmax(-1)
    student = (student_logits / _TEMPERATURE).log_softmax(-1)
    divergence = (teacher.exp() * (teacher - student)).sum((-1, -2)) / 4  # mean of the edges
    losses = _TEMPERATURE**2 * divergence * torch.where(is_matched, iou, teacher_scores).detach()
    return matched_share * _mean_of(losses, is_matched) + (1 - matched_share) * _mean_of(losses, ~is_matched)


def matched_share(num_matched: int, num_queries: int) -> float:
    """Return the share of matched queries in DDF: the root of their number, relative to the sum of both roots."""
    matched, unmatched = num_matched**0.5, (num_queries - num_matched) ** 0.5
    return matched / (matched + unmatched)


def _mean_of(losses: Float[Tensor, "T B Q"], chosen: Bool[Tensor, "B Q"]) -> Float[Tensor, "T"]:
    """Return the mean over chosen queries of each layer; 0 if there are none."""
    return (losses * chosen).sum((1, 2)) / chosen.sum().clamp(min=1)
