"""Sampling points and attention maps of a recorded deformable attention layer.

Deformable attention has no attention matrix: a query samples a few points of each feature map. They are recomputed from the
recorded inputs of the layer when requested. For attention maps, the weight of each point is spread over the four cells
around it, as bilinear interpolation does; weight outside the feature map is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.models.attention.deformable import DeformableAttention
from detrkit.models.feature_maps import FeatureMaps
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.ops.grid import Grid


@dataclass(frozen=True)
class SamplingPoints:
    """Sampling points of attention queries, in pixels of the original image.

    Attributes:
        points: (x, y) of every point, by head, query and point; those of the finest feature map come first.
        weights: attention weights of the points; they sum to 1 for every head and query.
        reference_points: (x, y) of the reference point of every query on every feature level.
        num_points: number of points on each feature map.
        reference_boxes: box (xyxy) of every query whose center is the reference point, and whose size scales the offsets of
            the points; None if references are points.
    """

    points: Float[Tensor, "M N P 2"]
    weights: Float[Tensor, "M N P"]
    reference_points: Float[Tensor, "N L 2"]
    num_points: tuple[int, ...]
    reference_boxes: Float[Tensor, "N 4"] | None = None

    @property
    def levels(self) -> list[int]:
        """Index of the feature map of every point."""
        return _levels_of(self.num_points)


@dataclass(frozen=True)
class DeformableAttentionInputs:
    """Inputs and output of one deformable attention layer for one image.

    Attributes:
        module: the attention layer.
        queries: attention queries, including their position encoding.
        references: reference points or boxes, relative to each feature map.
        features: sizes and coordinates of the feature maps.
        strides: pixels of the resized image per cell of each feature map.
        first_centers: distance from the image's edge to the center of the first cell of each feature map, in pixels of
            the resized image.
        grid: cells of the feature map that attention maps are computed for.
        level: index of that feature map.
        rows: queries that can be selected: all, or in the encoder the cells of the grid.
        output: output of the layer.
    """

    module: DeformableAttention
    queries: Float[Tensor, "1 N D"]
    references: Float[Tensor, "1 N L R"]
    features: FeatureMaps
    strides: tuple[int, ...]
    first_centers: tuple[float, ...]
    grid: Grid
    level: int
    rows: range
    output: Float[Tensor, "1 N D"]

    @property
    def num_queries(self) -> int:
        """Number of attention queries that can be selected."""
        return len(self.rows)

    @torch.no_grad()
    def sampling_points(
        self, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
    ) -> SamplingPoints:
        """Compute the sampling points of some heads and queries; None selects all."""
        rows = torch.tensor(self.rows if queries is None else [self.rows[query] for query in queries])
        embeddings, references = self.queries[:, rows], self.references[:, rows]
        sampled = self.module.sampled_points(embeddings, references, self.features)
        points, weights = (tensor[0].cpu() for tensor in sampled)
        selected = slice(None) if heads is None else list(heads)
        num_points = self.module.num_points
        levels = _levels_of(num_points)
        on_maps = references[0].cpu()
        return SamplingPoints(
            points=self._to_image(points, levels).transpose(0, 1)[selected],
            weights=weights.transpose(0, 1)[selected],
            reference_points=self._to_image(on_maps[:, None, :, :2], list(range(len(num_points))))[:, 0],
            num_points=num_points,
            reference_boxes=self._boxes_in_image(on_maps[:, 0]) if on_maps.shape[-1] == 4 else None,
        )

    def _boxes_in_image(self, boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
        """Convert boxes relative to the finest map (cxcywh) to pixels of the original image (xyxy)."""
        corners = cxcywh_to_xyxy(boxes).unflatten(-1, (2, 2))
        return self._to_image(corners[:, None], [0, 0])[:, 0].flatten(1)

    def _to_image(self, points: Float[Tensor, "N M P 2"], levels: Sequence[int]) -> Float[Tensor, "N M P 2"]:
        """Convert coordinates relative to the feature map of each point to pixels of the original image."""
        resized = torch.tensor(
            [[w * stride, h * stride] for (h, w), stride in zip(self.features.sizes, self.strides, strict=True)]
        )[levels]
        shifts = (torch.tensor(self.first_centers) - torch.tensor(self.strides) / 2)[levels]
        (height, width), (original_height, original_width) = self.grid.resized, self.grid.original
        scale = torch.tensor([original_width / width, original_height / height])
        return (points * resized + shifts[:, None]) * scale

    @torch.no_grad()
    def weights(self, heads: Sequence[int] | None, queries: Sequence[int] | None) -> Float[Tensor, "M N S"]:
        """Spread the weights of some heads and queries over the grid's cells; None selects all."""
        sampled = self.sampling_points(heads, queries)
        height, width = self.grid.cells
        (resized_height, resized_width), (original_height, original_width) = self.grid.resized, self.grid.original
        to_cells = torch.tensor([resized_width / original_width, resized_height / original_height]) / self.grid.stride
        first = self.first_centers[self.level] / self.strides[self.level]
        x, y = (sampled.points * to_cells - first).unbind(-1)
        weights = sampled.weights
        maps = torch.zeros(*weights.shape[:2], height * width)
        left, top = x.floor(), y.floor()
        for down, row_share in ((0, 1 - (y - top)), (1, y - top)):
            for right, column_share in ((0, 1 - (x - left)), (1, x - left)):
                row, column = (top + down).long(), (left + right).long()
                is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
                maps.scatter_add_(2, cell, weights * row_share * column_share * is_inside)
        return maps


def _levels_of(num_points: Sequence[int]) -> list[int]:
    return [level for level, count in enumerate(num_points) for _ in range(count)]
