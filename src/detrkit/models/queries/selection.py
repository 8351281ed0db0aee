"""The cells that the queries of an image are from, for explanations of two-stage query selection."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.two_stage import anchor_squares, best_cells, generate_anchors, rows_of
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import EncoderProposals


@dataclass(frozen=True)
class QuerySelection:
    """Cells of the encoder's memory that the queries of one image are from; query 0 is from the one with the highest score.

    There are N of them: as many as queries, or all cells if these are fewer; further queries have no cell. Boxes are xyxy
    in pixels of the original image.

    Attributes:
        levels: index of the feature map of each cell, finest first.
        positions: row and column of each cell on its map.
        scores: score that the cells were ranked by, 0 to 1: of the best class, or that of being an object.
        labels: best class, 0..K-1; None if proposals have no classes, as in Deformable DETR.
        areas: area of each cell.
        anchors: square around the center of each cell that its box was predicted from.
        is_valid: False for anchors at most 0.01 of the image's side from its edge, which the model does not use: these
            cells have no features, and their box is meaningless.
        boxes: box predicted for each cell, which the first decoder layer starts from.
        sizes: (height, width) of each feature map in cells.
    """

    levels: Int64[Tensor, "N"]
    positions: Int64[Tensor, "N 2"]
    scores: Float[Tensor, "N"]
    labels: Int64[Tensor, "N"] | None
    areas: Float[Tensor, "N 4"]
    anchors: Float[Tensor, "N 4"]
    is_valid: Bool[Tensor, "N"]
    boxes: Float[Tensor, "N 4"]
    sizes: tuple[tuple[int, int], ...]


def query_selections(
    proposals: EncoderProposals, memory: FeatureMaps, num_queries: int, original_sizes: Sequence[tuple[int, int]]
) -> list[QuerySelection]:
    """Describe the cells that the queries of each image are from.

    Args:
        proposals: of the forward pass.
        memory: that the cells are of.
        num_queries: Q.
        original_sizes: (height, width) of the original images.
    """
    count = min(num_queries, memory.tokens.shape[1])
    logits, boxes, cells = proposals.class_logits.float(), proposals.boxes.float(), proposals.cells
    if proposals.class_agnostic:
        logits = logits[..., :1]
    if cells is None:  # proposals of all cells, of which the model selected the best in the same way
        cells, _ = best_cells(logits.amax(-1), count)
        logits, boxes = rows_of(logits, cells), rows_of(boxes, cells)
    cells, logits, boxes = cells[:, :count], logits[:, :count], boxes[:, :count]
    _, is_valid = generate_anchors(memory)
    squares, areas = anchor_squares(memory.cell_centers()), _cell_areas(memory)
    starts = torch.tensor([height * width for height, width in memory.sizes]).cumsum(0)
    widths = torch.tensor([width for _, width in memory.sizes])
    selections = []
    for index, (height, width) in enumerate(original_sizes):
        own = cells[index]
        level = torch.searchsorted(starts, own.cpu(), right=True)
        on_map = own.cpu() - torch.cat([starts.new_zeros(1), starts])[level]
        side = torch.tensor([width, height, width, height])
        selections.append(
            QuerySelection(
                levels=level,
                positions=torch.stack([on_map // widths[level], on_map % widths[level]], dim=-1),
                scores=logits[index].amax(-1).sigmoid().cpu(),
                labels=None if proposals.class_agnostic else logits[index].argmax(-1).cpu(),
                areas=areas[index, own].cpu().clamp(0, 1) * side,
                anchors=cxcywh_to_xyxy(squares[index, own].cpu()) * side,
                is_valid=is_valid[index, own].cpu(),
                boxes=cxcywh_to_xyxy(boxes[index].cpu()) * side,
                sizes=memory.sizes,
            )
        )
    return selections


def _cell_areas(memory: FeatureMaps) -> Float[Tensor, "B S 4"]:
    """Compute the area of every cell, xyxy relative to the image."""
    areas = []
    for level, (centers, (height, width)) in enumerate(zip(memory.cell_centers(), memory.sizes, strict=True)):
        cells = centers.new_tensor([[width, height]])
        if memory.image_cells is not None:
            cells = memory.image_cells[:, level]
        half = (0.5 / cells)[:, None].expand_as(centers)
        areas.append(torch.cat([centers - half, centers + half], dim=-1))
    return torch.cat(areas, dim=1)
