"""Deformable attention (Deformable DETR, arXiv:2010.04159, equations 2 and 3): a few sampled points instead of all cells.

Every head of a query looks at K points on each of L feature maps, around a reference point, and mixes what lies there:
sum over l, k of A_lk * W x_l(p + offset_lk), where x is interpolated between cells. Input: queries, references, a scene.
Output: (B, N, D).

Sampling is written twice, equal up to rounding. Where torch runs the operations one by one on a CPU, cells are gathered as
rows of a table, four for each point, by `embedding_bag`, which adds them up on the way; backwards, the points are sorted by
cell and gathered again. Elsewhere (GPU, compiled, exported) it is `grid_sample`, map by map.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.sources import LayerQueryPositions
from detrkit.models.transformer import DecoderLayer, EncoderLayer, LayerShape

Sizes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Mixes the values at points that each query chooses."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.per_head = (shape.num_feature_levels, shape.num_points)
        num_points = shape.num_heads * shape.num_feature_levels * shape.num_points
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
        num_feature_levels, num_points = self.per_head
        steps = torch.arange(1, num_points + 1)[:, None] * directions[:, None, None]
        with torch.no_grad():
            self.offset_projection.bias.copy_(steps.expand(-1, num_feature_levels, -1, -1).flatten())
        nn.init.zeros_(self.weight_projection.weight)
        nn.init.zeros_(self.weight_projection.bias)
        for projection in (self.value_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, queries: Float[Tensor, "B N D"], references: Float[Tensor, "B N L R"], scene: FeatureMaps
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
        self, values: Float[Tensor, "B S D"], positions: Float[Tensor, "B S D"], scene: FeatureMaps
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
        self, values: Float[Tensor, "B Q D"], place: LayerQueryPositions, scene: FeatureMaps
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
        mixed = torch.zeros(len(points) * points.shape[1] * points.shape[2], values.shape[-1], dtype=kind)
        for level, table in enumerate(_with_borders(values.to(kind), sizes)):
            among = _Among.cells_of(points[:, :, :, level].to(kind), sizes[level])
            shares = torch.cat(among.shares(weights[:, :, :, level].flatten(0, 2).to(kind)), dim=1)
            mixed += F.embedding_bag(among.corners(), table.flatten(0, 3), mode="sum", per_sample_weights=shares)
        return mixed.view(len(points), points.shape[1], -1)

    @staticmethod
    @once_differentiable  # gradients of gradients would be wrong
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, points, weights = ctx.saved_tensors
        kind = torch.promote_types(values.dtype, torch.float32)
        wanted = gradients[0].to(kind).reshape(-1, values.shape[-1])
        of_maps: list[Tensor] = []
        of_points, of_weights = torch.empty_like(points), torch.empty_like(weights)
        for level, table in enumerate(_with_borders(values.to(kind), ctx.sizes)):
            among = _Among.cells_of(points[:, :, :, level].to(kind), ctx.sizes[level])
            on_map = weights[:, :, :, level].flatten(0, 2).to(kind)
            of_shares = _products(among.corners(), table.flatten(0, 3), wanted)
            of_point, of_weight = among.gradients(of_shares, on_map)
            of_points[:, :, :, level] = of_point.view_as(points[:, :, :, level])
            of_weights[:, :, :, level] = of_weight.view_as(weights[:, :, :, level])
            if ctx.needs_input_grad[0]:
                of_maps.append(_scattered(among, among.shares(on_map), wanted, table.shape))
        of_values = torch.cat(of_maps, dim=1).to(values.dtype) if of_maps else torch.zeros_like(values)
        return of_values, of_points, of_weights, None


def _products(
    rows: Int[Tensor, "R P"], table: Float[Tensor, "V d"], wanted: Float[Tensor, "R d"]
) -> Float[Tensor, "R P"]:
    """Of the table's rows with the gradient of their sum: the gradient of their shares in it."""
    shares = torch.ones(rows.shape, dtype=table.dtype, requires_grad=True)
    with torch.enable_grad():
        mixed = F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)
    return torch.autograd.grad(mixed, shares, wanted)[0]


def _with_borders(values: Float[Tensor, "B S M d"], sizes: Sizes) -> Iterator[Float[Tensor, "B H W M d"]]:
    """Each map with a border of zeros, one cell wide, that stands for all that lies outside."""
    for of_map, (height, width) in zip(values.split([h * w for h, w in sizes], dim=1), sizes, strict=True):
        yield F.pad(of_map.unflatten(1, (height, width)), (0, 0, 0, 0, 1, 1, 1, 1))


@dataclass(frozen=True)
class _Among:
    """Where points lie among the cells of a map with its border; a row for every photo, query and head.

    Attributes:
        upper_left: rows of the cells left above the points, in the table of all bordered cells and heads.
        beside, below: how many rows further the cell to the right lies, and the one below.
        across, down: of the way from that cell's centre to the next ones', 0 .. 1.
        slopes: how far those go when a point (x, y) moves; 0 beyond the border.
    """

    upper_left: Int[Tensor, "R P"]
    beside: int
    below: int
    across: Float[Tensor, "R P"]
    down: Float[Tensor, "R P"]
    slopes: tuple[Float[Tensor, "R P"], Float[Tensor, "R P"]]

    @classmethod
    def cells_of(cls, points: Float[Tensor, "B N M P 2"], size: tuple[int, int]) -> "_Among":
        """Look where points (x, y) in 0 .. 1 of a map of that height and width are."""
        batch_size, _, num_heads, _, _ = points.shape
        height, width = size
        left, across, x_slope = _between(points[..., 0], width)
        top, down, y_slope = _between(points[..., 1], height)
        photos = torch.arange(batch_size, dtype=torch.int32)[:, None, None, None] * (height + 2)
        heads = torch.arange(num_heads, dtype=torch.int32)[:, None]
        rows = ((photos + top) * (width + 2) + left) * num_heads + heads
        rows, across, down, x_slope, y_slope = (each.flatten(0, 2) for each in (rows, across, down, x_slope, y_slope))
        return cls(rows, num_heads, (width + 2) * num_heads, across, down, (x_slope, y_slope))

    def corners(self) -> Int[Tensor, "R C"]:
        """Rows of the four cells around the points: all upper left ones, upper right, lower left, lower right."""
        steps = (0, self.beside, self.below, self.below + self.beside)
        return torch.cat([self.upper_left + step for step in steps], dim=1)

    def shares(self, weights: Float[Tensor, "R P"]) -> list[Float[Tensor, "R P"]]:
        """What those four cells count for."""
        lower = weights * self.down
        upper = weights - lower
        upper_right, lower_right = upper * self.across, lower * self.across
        return [upper - upper_right, upper_right, lower - lower_right, lower_right]

    def gradients(
        self, of_shares: Float[Tensor, "R C"], weights: Float[Tensor, "R P"]
    ) -> tuple[Float[Tensor, "R P 2"], Float[Tensor, "R P"]]:
        """Of points and of weights, from those of the shares."""
        upper_left, upper_right, lower_left, lower_right = of_shares.chunk(4, dim=1)
        upper_step, lower_step = upper_right - upper_left, lower_right - lower_left
        upper = torch.addcmul(upper_left, self.across, upper_step)
        lower = torch.addcmul(lower_left, self.across, lower_step)
        x_slope, y_slope = self.slopes
        of_x = torch.lerp(upper_step, lower_step, self.down) * weights * x_slope
        of_y = (lower - upper) * weights * y_slope
        return torch.stack([of_x, of_y], dim=-1), torch.lerp(upper, lower, self.down)


def _between(
    places: Float[Tensor, "*shape"], num_cells: int
) -> tuple[Int[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Along one side of a bordered map: the cell before each place, how far it is from its centre, and that one's slope."""
    asked = places * num_cells + 0.5
    cells = asked.clamp(0, num_cells + 1)
    before = cells.int().clamp(0, num_cells)  # what is no number becomes a cell, and its share stays none
    return before, cells - before, (asked == cells) * float(num_cells)


def _scattered(
    among: _Among, shares: Sequence[Float[Tensor, "R P"]], gradients: Float[Tensor, "R d"], shape: torch.Size
) -> Float[Tensor, "B S M d"]:
    """Add up, for every cell, the gradients of the sums that it was part of.

    The transpose of the gathering is gathering, too, once the points are sorted by their upper left cell: for each of the
    four corners they add up in that cell, from where the map of sums moves to the cells that are meant.
    """
    rows, order = among.upper_left.flatten().sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(shape[:-1].numel(), dtype=torch.int32))
    bags = torch.div(order, among.upper_left.shape[1], rounding_mode="floor")
    sums = [
        F.embedding_bag(bags, gradients, starts, mode="sum", per_sample_weights=share.flatten()[order]).view(shape)
        for share in shares
    ]
    upper_left, upper_right, lower_left, lower_right = sums
    of_map = upper_left[:, 1:-1, 1:-1] + upper_right[:, 1:-1, :-2] + lower_left[:, :-2, 1:-1] + lower_right[:, :-2, :-2]
    return of_map.flatten(1, 2)
