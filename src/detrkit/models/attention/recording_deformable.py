"""Where deformable attention looks: points and their weights, and the same as a map over cells.

Deformable attention has no matrix: a query looks at a few points of each feature map. They are computed again from what the
layer was given, when somebody asks. Spread over the four cells around each point, as interpolation does, the weights
make maps like those of other attention; what lies outside of the photo's map is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.models.attention.deformable import DeformableAttention
from detrkit.ops.grid import Grid


@dataclass(frozen=True)
class SampledPoints:
    """Where queries look.

    Attributes:
        points: (x, y) in pixels of the photo on disk.
        weights: of the points; they sum to 1 for every head and query.
        references: what the points are chosen around: (x, y) in pixels of the photo, on each feature map.
    """

    points: Float[Tensor, "M N L P 2"]
    weights: Float[Tensor, "M N L P"]
    references: Float[Tensor, "N L 2"]


@dataclass(frozen=True)
class SamplingInputs:
    """What one layer of deformable attention was given for one photo.

    Attributes:
        module: the layer.
        queries: what asked, position included.
        references: as the layer was given them.
        sizes: (height, width) of each feature map.
        strides: pixels of the resized photo per cell of each.
        first_centres: such pixels from the photo's edge to the middle of the first cell of each.
        grid: the map over which weights are spread.
        level: which of the feature maps that is.
        rows: which of the queries can be asked for: all, or in the encoder, the cells of the grid.
        output: what the layer gave.
    """

    module: DeformableAttention
    queries: Float[Tensor, "1 N D"]
    references: Float[Tensor, "1 N L R"]
    sizes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    first_centres: tuple[float, ...]
    grid: Grid
    level: int
    rows: range
    output: Float[Tensor, "1 N D"]

    @property
    def num_rows(self) -> int:
        """How many queries can be asked for."""
        return len(self.rows)

    @torch.no_grad()
    def sampled(self, heads: Sequence[int] | None = None, rows: Sequence[int] | None = None) -> SampledPoints:
        """Compute where some heads of some queries look; None takes all."""
        chosen = torch.tensor(self.rows if rows is None else [self.rows[row] for row in rows])
        queries, references = self.queries[:, chosen], self.references[:, chosen]
        points, weights = (one[0].cpu() for one in self.module.points(queries, references, self.sizes))
        kept = slice(None) if heads is None else list(heads)
        return SampledPoints(
            points=self._in_photo(points).transpose(0, 1)[kept],
            weights=weights.transpose(0, 1)[kept],
            references=self._in_photo(references[0, :, None, :, None, :2].cpu())[:, 0, :, 0],
        )

    def _in_photo(self, points: Float[Tensor, "N M L P 2"]) -> Float[Tensor, "N M L P 2"]:
        """Shares of each map -> pixels of the photo on disk."""
        resized = torch.tensor(
            [[w * stride, h * stride] for (h, w), stride in zip(self.sizes, self.strides, strict=True)]
        )
        shifts = torch.tensor(self.first_centres) - torch.tensor(self.strides) / 2
        (height, width), (original_height, original_width) = self.grid.resized, self.grid.original
        enlarged = torch.tensor([original_width / width, original_height / height])
        return (points * resized[:, None] + shifts[:, None, None]) * enlarged

    @torch.no_grad()
    def weights(self, heads: Sequence[int] | None, rows: Sequence[int] | None) -> Float[Tensor, "M N S"]:
        """Spread the weights of some heads and queries over the grid's cells; None takes all."""
        found = self.sampled(heads, rows)
        height, width = self.grid.cells
        (resized_height, resized_width), (original_height, original_width) = self.grid.resized, self.grid.original
        per_cell = torch.tensor([resized_width / original_width, resized_height / original_height]) / self.grid.stride
        first = self.first_centres[self.level] / self.strides[self.level]
        columns, lines = (found.points * per_cell - first).flatten(2, 3).unbind(-1)
        shares = found.weights.flatten(2)
        maps = torch.zeros(*shares.shape[:2], height * width)
        left, top = columns.floor(), lines.floor()
        for down, line_share in ((0, 1 - (lines - top)), (1, lines - top)):
            for right, column_share in ((0, 1 - (columns - left)), (1, columns - left)):
                line, column = (top + down).long(), (left + right).long()
                is_inside = (line >= 0) & (line < height) & (column >= 0) & (column < width)
                cell = line.clamp(0, height - 1) * width + column.clamp(0, width - 1)
                maps.scatter_add_(2, cell, shares * line_share * column_share * is_inside)
        return maps
