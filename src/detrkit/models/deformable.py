"""Deformable attention (Deformable DETR, arXiv:2010.04159, equations 2 and 3): a few sampled points instead of all cells.

Every head of a query looks at K points on each of L feature maps, around a reference point, and mixes what lies there:
sum over l, k of A_lk * W x_l(p + offset_lk), where x is interpolated between cells. Input: queries, references, a scene.
Output: (B, N, D).

Sampling is written twice, equal up to rounding. Where torch runs the operations one by one on a CPU, cells are gathered as
rows of a table, four for each point, by `embedding_bag`, which adds them up on the way; backwards, the rows are sorted by
cell and gathered again. Elsewhere (GPU, compiled, exported) it is `grid_sample`, map by map.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.pyramid import Scene
from detrkit.models.queries import QueryPlace
from detrkit.models.transformer import DecoderLayer, EncoderLayer, LayerShape

Sizes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Mixes the values at points that each query chooses."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.per_head = (shape.num_levels, shape.sampling_points)
        num_points = shape.num_heads * shape.num_levels * shape.sampling_points
        self.offset_projection = nn.Linear(shape.width, 2 * num_points)
        self.weight_projection = nn.Linear(shape.width, num_points)
        self.value_projection = nn.Linear(shape.width, shape.width)
        self.output_projection = nn.Linear(shape.width, shape.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let heads look in all directions, each point one step further, all weights alike, as published."""
        nn.init.zeros_(self.offset_projection.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        num_levels, num_points = self.per_head
        steps = torch.arange(1, num_points + 1)[:, None] * directions[:, None, None]
        with torch.no_grad():
            self.offset_projection.bias.copy_(steps.expand(-1, num_levels, -1, -1).flatten())
        nn.init.zeros_(self.weight_projection.weight)
        nn.init.zeros_(self.weight_projection.bias)
        for projection in (self.value_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, queries: Float[Tensor, "B N D"], references: Float[Tensor, "B N L R"], scene: Scene
    ) -> Float[Tensor, "B N D"]:
        """Look around the references.

        Args:
            queries: what asks, position included.
            references: points (x, y), or boxes (cx, cy, w, h), 0 .. 1 of each map.
            scene: what is looked at.
        """
        values = self.value_projection(scene.tokens)
        if scene.padding_mask is not None:
            values = values.masked_fill(scene.padding_mask[..., None], 0.0)
        points, weights = self.points(queries, references, scene.sizes)
        values = values.unflatten(-1, (self.num_heads, -1))
        return self.output_projection(sample(values, scene.sizes, points, weights.to(values.dtype)))

    def points(
        self, queries: Float[Tensor, "B N D"], references: Float[Tensor, "B N L R"], sizes: Sizes
    ) -> tuple[Float[Tensor, "B N M L P 2"], Float[Tensor, "B N M L P"]]:
        """Choose where to look: points (x, y) in 0 .. 1 of each map, and their weights, which sum to 1 for every head.

        Around a point, offsets count cells; within a box, halves of its sides.
        """
        per_head = (self.num_heads, *self.per_head)
        offsets = _unrounded(self.offset_projection(queries)).unflatten(-1, (*per_head, 2))
        weights = _unrounded(self.weight_projection(queries)).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        around = references[:, :, None, :, None]
        if references.shape[-1] == 2:
            on_maps = [
                around[:, :, :, level] + torch.stack([offset[..., 0] / width, offset[..., 1] / height], dim=-1)
                for level, ((height, width), offset) in enumerate(zip(sizes, offsets.unbind(3), strict=True))
            ]
            points = torch.stack(on_maps, dim=3)
        else:
            points = around[..., :2] + offsets / self.per_head[1] * around[..., 2:] * 0.5
        return points, weights.unflatten(-1, self.per_head)


class DeformableEncoderLayer(EncoderLayer):
    """An encoder layer whose cells look at a few points around themselves, on every map."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape, DeformableAttention(shape))

    def attend(
        self, values: Float[Tensor, "B S D"], positions: Float[Tensor, "B S D"], scene: Scene
    ) -> Float[Tensor, "B S D"]:
        """Look around every cell."""
        centres = scene.in_maps(torch.cat(scene.cell_centres(), dim=1))
        found: Tensor = self.self_attention(values + positions, centres, scene.holding(values))
        return found


class DeformableDecoderLayer(DecoderLayer):
    """A decoder layer whose queries look at a few points around where they are, on every map."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape, cross_attention=DeformableAttention(shape))

    def attend_to_scene(
        self, values: Float[Tensor, "B Q D"], place: QueryPlace, scene: Scene
    ) -> Float[Tensor, "B Q D"]:
        """Look around every query."""
        assert place.reference is not None, "queries of deformable attention are somewhere"
        references = scene.in_maps(place.reference)
        found: Tensor = self.cross_attention(values + place.positions, references, scene)
        return found


def _unrounded(numbers: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In float32 at least: under autocast, points would be rounded to bfloat16, which knows 256 places."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def sample(
    values: Float[Tensor, "B S M d"],
    sizes: Sizes,
    points: Float[Tensor, "B N M L P 2"],
    weights: Float[Tensor, "B N M L P"],
) -> Float[Tensor, "B N D"]:
    """Mix interpolated values; outside of a map they are zero.

    Args:
        values: of the cells of all maps, for every head.
        sizes: (height, width) of the maps.
        points: (x, y) in 0 .. 1 of each map, whose first cell reaches from 0 to 1 / width.
        weights: of the points.
    """
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        mixed: Tensor = _GatheredSum.apply(values, points, weights, tuple(sizes))
        return mixed.to(values.dtype)
    return _sample_grids(values, sizes, points, weights)


def _sample_grids(
    values: Float[Tensor, "B S M d"],
    sizes: Sizes,
    points: Float[Tensor, "B N M L P 2"],
    weights: Float[Tensor, "B N M L P"],
) -> Float[Tensor, "B N D"]:
    """By `grid_sample`, whose batch are photos and heads; it wants points in the values' type, so both are float32."""
    kind, values = values.dtype, _unrounded(values)
    start, mixed = 0, torch.zeros((), dtype=values.dtype, device=values.device)
    for level, (height, width) in enumerate(sizes):
        of_map = values[:, start : start + height * width]
        start += height * width
        maps = of_map.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))
        grid = (2 * points[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1).to(values.dtype)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        of_points = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        mixed = mixed + (sampled * of_points).sum(-1)
    return mixed.unflatten(0, (values.shape[0], -1)).permute(0, 3, 1, 2).flatten(2).to(kind)


class _GatheredSum(torch.autograd.Function):
    """By `embedding_bag`; nothing but the inputs is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, weights: Tensor, sizes: Sizes) -> Tensor:
        # under autocast values may come in bfloat16, in which sums would be rounded
        ctx.save_for_backward(values, points, weights)
        ctx.sizes = sizes
        kind = torch.promote_types(values.dtype, torch.float32)
        table = values.to(kind).flatten(0, 2)
        mixed = table.new_zeros(len(points) * points.shape[1] * points.shape[2], table.shape[-1])
        for level in range(len(sizes)):
            rows, shares = _corners(points[:, :, :, level], weights[:, :, :, level], sizes, level, values.shape[1])
            mixed += F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares.to(kind))
        return mixed.view(len(points), points.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, points, weights = ctx.saved_tensors
        kind = torch.promote_types(values.dtype, torch.float32)
        table = values.to(kind).flatten(0, 2)
        wanted = gradients[0].to(kind).reshape(-1, table.shape[-1])
        of_table = torch.zeros_like(table)
        of_points, of_weights = torch.empty_like(points), torch.empty_like(weights)
        for level in range(len(ctx.sizes)):
            leaves = points[:, :, :, level].detach().requires_grad_(), weights[:, :, :, level].detach().requires_grad_()
            with torch.enable_grad():
                rows, shares = _corners(*leaves, ctx.sizes, level, values.shape[1])
                shares = shares.to(kind)
                mixed = F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=shares)
            of_points[:, :, :, level], of_weights[:, :, :, level] = torch.autograd.grad(mixed, leaves, wanted)
            if ctx.needs_input_grad[0]:
                of_table += _scattered(rows, shares.detach(), wanted, len(table))
        return of_table.view_as(values).to(values.dtype), of_points, of_weights, None


def _corners(
    points: Float[Tensor, "B N M P 2"], weights: Float[Tensor, "B N M P"], sizes: Sizes, level: int, num_cells: int
) -> tuple[Int[Tensor, "R C"], Float[Tensor, "R C"]]:
    """The four cells around every point of one map: their rows in the table of all values, and what they count for.

    Cells outside of the map count for nothing.
    """
    batch_size, _, num_heads, _ = weights.shape
    height, width = sizes[level]
    first = sum(rows * columns for rows, columns in sizes[:level])
    columns, rows = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = columns.detach().floor(), rows.detach().floor()
    right_share, lower_share = columns - left, rows - top
    across = [(left, 1 - right_share), (left + 1, right_share)]
    down = [(top, (1 - lower_share) * weights), (top + 1, lower_share * weights)]
    cells, shares = [], []
    for row, row_share in down:
        is_row = (row >= 0) & (row < height)
        row_start = row.clamp(0, height - 1) * width
        for column, column_share in across:
            is_inside = is_row & (column >= 0) & (column < width)
            cells.append((row_start + column.clamp(0, width - 1)).int())
            shares.append(row_share * column_share * is_inside)
    heads = torch.arange(num_heads, dtype=torch.int32)[:, None]
    photos = torch.arange(batch_size, dtype=torch.int32)[:, None, None, None] * num_cells
    table_rows = (torch.cat(cells, dim=-1) + (photos + first)) * num_heads + heads
    return table_rows.flatten(0, 2), torch.cat(shares, dim=-1).flatten(0, 2)


def _scattered(
    rows: Int[Tensor, "R C"], shares: Float[Tensor, "R C"], gradients: Float[Tensor, "R d"], num_rows: int
) -> Float[Tensor, "V d"]:
    """Add up, for every row of the table, the gradients of the sums that it was part of.

    The transpose of the gathering is gathering, too, once the entries are sorted by row.
    """
    sorted_rows, order = rows.flatten().sort(stable=True)
    starts = torch.searchsorted(sorted_rows, torch.arange(num_rows, dtype=torch.int32))
    bags = torch.div(order, rows.shape[1], rounding_mode="floor")
    of_row: Tensor = F.embedding_bag(bags, gradients, starts, mode="sum", per_sample_weights=shares.flatten()[order])
    return of_row
