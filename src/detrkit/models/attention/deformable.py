"""Deformable attention (Deformable DETR, arXiv:2010.04159, equations 2 and 3).

Every head of a query samples points on each of L feature maps around a reference and sums their interpolated values:
sum over l, k of A_lk * W x_l(p + offset_lk). The number of points may differ between maps (RT-DETRv2, arXiv:2407.17140);
with discrete sampling, the value of the nearest cell is taken instead of an interpolated one. D-FINE (arXiv:2410.13842)
leaves out the projection W: heads sample slices of the memory.

Sampling is implemented twice, equal up to rounding. In eager mode on a CPU, the four cells around a point are gathered as
rows of a table by `embedding_bag`, which adds them up on the way; in the backward pass, the points are sorted by cell and
gathered again. Elsewhere (GPU, compiled, exported) it is `grid_sample`, map by map.
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
from detrkit.models.layers import LayerConfig

Sizes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_points = config.points_per_level
        self.is_discrete = config.sampling == "discrete"  # then offsets have no gradient
        num_points = config.num_heads * sum(self.num_points)
        self.offset_projection = nn.Linear(config.width, 2 * num_points)
        self.weight_projection = nn.Linear(config.width, num_points)
        self.value_projection, self.output_projection = (
            nn.Linear(config.width, config.width) if config.value_projection else nn.Identity() for _ in range(2)
        )
        self.reset_parameters()
        if self.is_discrete:
            self.offset_projection.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Initialise offsets as a star: one direction per head, one cell further per point; equal weights, as published."""
        nn.init.zeros_(self.offset_projection.weight)
        angles = torch.arange(self.num_heads, device="cpu") * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1, count + 1, device="cpu") for count in self.num_points])
        with torch.no_grad():
            self.offset_projection.bias.copy_((steps[:, None] * directions[:, None]).flatten())
        nn.init.zeros_(self.weight_projection.weight)
        nn.init.zeros_(self.weight_projection.bias)
        for projection in (self.value_projection, self.output_projection):
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self, queries: Float[Tensor, "B N D"], references: Float[Tensor, "B N L R"], features: FeatureMaps
    ) -> Float[Tensor, "B N D"]:
        """Attend to sampling points around the references.

        Args:
            queries: with their positions added.
            references: points (x, y) or boxes (cx, cy, w, h) in 0 .. 1 of each map.
            features: to sample.
        """
        values = self.value_projection(features.tokens)
        if features.padding_mask is not None:
            values = values.masked_fill(features.padding_mask[..., None], 0.0)
        points, weights = self.sampled_points(queries, references, features)
        values = values.unflatten(-1, (self.num_heads, -1))
        sums = sample(values, features.sizes, points, weights.to(values.dtype), self.num_points)
        output: Tensor = self.output_projection(sums)
        return output

    def sampled_points(
        self, queries: Float[Tensor, "B N D"], references: Float[Tensor, "B N L R"], features: FeatureMaps
    ) -> tuple[Float[Tensor, "B N M P 2"], Float[Tensor, "B N M P"]]:
        """Compute the points that are read, as `points`; with discrete sampling, the centers of the nearest cells."""
        points, weights = self.points(queries, references, features.sizes)
        return nearest_cells(points, self.num_points, features) if self.is_discrete else points, weights

    def points(
        self, queries: Float[Tensor, "B N D"], references: Float[Tensor, "B N L R"], sizes: Sizes
    ) -> tuple[Float[Tensor, "B N M P 2"], Float[Tensor, "B N M P"]]:
        """Compute sampling points (x, y) in 0 .. 1 of each map, and their weights, which sum to 1 for every head.

        P counts the points of all maps, finest map first. The unit of offsets is a cell around reference points, and half a
        side, divided by the number of points on the map, around reference boxes.
        """
        offsets = _at_least_float32(self.offset_projection(queries)).unflatten(-1, (self.num_heads, -1, 2))
        weights = _at_least_float32(self.weight_projection(queries)).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        on_maps = [
            reference[:, :, None, None, :2] + self._in_units(offset, reference[:, :, None, None], size, count)
            for offset, reference, size, count in zip(
                offsets.split(self.num_points, 3), references.unbind(2), sizes, self.num_points, strict=True
            )
        ]
        return torch.cat(on_maps, dim=3), weights

    @staticmethod
    def _in_units(
        offset: Float[Tensor, "B N M P 2"],
        reference: Float[Tensor, "B N 1 1 R"],
        size: tuple[int, int],
        num_points: int,
    ) -> Float[Tensor, "B N M P 2"]:
        """Multiply offsets (x, y) by their unit on one map."""
        if reference.shape[-1] == 4:
            return offset * (reference[..., 2:] * (0.5 / num_points))
        height, width = size  # two divisions by numbers take a third of the time of one by a tensor of two elements
        return torch.stack([offset[..., 0] / width, offset[..., 1] / height], dim=-1)


def _at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert half precision to float32: bfloat16 has too few values for the coordinates of points."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def nearest_cells(
    points: Float[Tensor, "B N M P 2"], num_points: Sequence[int], features: FeatureMaps
) -> Float[Tensor, "B N M P 2"]:
    """Move points to the center of the nearest cell on their map (RT-DETRv2, section 3.2); they get no gradient.

    The published code limits the column of a cell to the number of rows, which displaces points on the right of wide maps.
    That is kept unless the model is padding-invariant: then points are limited to the image's own cells.
    """
    moved = []
    for level, on_map in enumerate(points.split(list(num_points), 3)):
        height, width = features.sizes[level]
        # published: rounded towards zero, which is the same where the limits below are at least 0; OpenVINO has no trunc
        x, y = (on_map[..., 0] * width + 0.5).floor(), (on_map[..., 1] * height + 0.5).floor()
        if features.padding_invariant and features.image_cells is not None:
            last = (features.image_cells[:, level].ceil() - 1)[:, None, None, None]
            x, y = (torch.minimum(one.clamp(min=0), last[..., axis]) for axis, one in enumerate((x, y)))
        else:
            x = x.clamp(0, (width if features.padding_invariant else height) - 1)
            y = y.clamp(0, height - 1)
        moved.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height], dim=-1))
    return torch.cat(moved, dim=3).detach()


def sample(
    values: Float[Tensor, "B S M d"],
    sizes: Sizes,
    points: Float[Tensor, "B N M P 2"],
    weights: Float[Tensor, "B N M P"],
    num_points: Sequence[int],
) -> Float[Tensor, "B N D"]:
    """Compute weighted sums of bilinearly interpolated values; values outside of a map are zero.

    Args:
        values: of the cells of all maps, for every head.
        sizes: (height, width) of the maps.
        points: (x, y) in 0 .. 1 of each map; the first cell extends from 0 to 1 / width.
        weights: of the points.
        num_points: number of points on each map.
    """
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        sums: Tensor = _GatheredSum.apply(values, points, weights, tuple(sizes), tuple(num_points))
        return sums.to(values.dtype)
    return _sample_grids(values, sizes, points, weights, num_points)


def _sample_grids(
    values: Float[Tensor, "B S M d"],
    sizes: Sizes,
    points: Float[Tensor, "B N M P 2"],
    weights: Float[Tensor, "B N M P"],
    num_points: Sequence[int],
) -> Float[Tensor, "B N D"]:
    """Sample by `grid_sample`, with images and heads as its batch; it needs values and points of one dtype: float32."""
    dtype, values = values.dtype, _at_least_float32(values)
    start, sums = 0, torch.zeros((), dtype=values.dtype, device=values.device)
    counts = list(num_points)
    levels = zip(sizes, points.split(counts, 3), weights.split(counts, 3), strict=True)
    for (height, width), level_points, level_weights in levels:
        level_values = values[:, start : start + height * width]
        start += height * width
        maps = level_values.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))
        grid = (2 * level_points - 1).transpose(1, 2).flatten(0, 1).to(values.dtype)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        sums = sums + (sampled * level_weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return sums.unflatten(0, (values.shape[0], -1)).permute(0, 3, 1, 2).flatten(2).to(dtype)


class _GatheredSum(torch.autograd.Function):
    """Sample by `embedding_bag`; only the inputs are saved for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, points: Tensor, weights: Tensor, sizes: Sizes, num_points: Sequence[int]
    ) -> Tensor:
        ctx.save_for_backward(values, points, weights)
        ctx.sizes, ctx.num_points = sizes, list(num_points)
        # values may be bfloat16 under autocast, in which sums would be rounded
        dtype = torch.promote_types(values.dtype, torch.float32)
        sums = torch.zeros(len(points) * points.shape[1] * points.shape[2], values.shape[-1], dtype=dtype)
        by_level = points.to(dtype).split(ctx.num_points, 3), weights.to(dtype).split(ctx.num_points, 3)
        for table, size, level_points, one in zip(_pad_maps(values.to(dtype), sizes), sizes, *by_level, strict=True):
            corners = _Corners.of_points(level_points, size)
            level_weights = one.flatten(0, 2)
            corner_weights = torch.cat(corners.weights(level_weights), dim=1)
            sums += F.embedding_bag(corners.rows(), table.flatten(0, 3), mode="sum", per_sample_weights=corner_weights)
        return sums.view(len(points), points.shape[1], -1)

    @staticmethod
    @once_differentiable  # second derivatives are not implemented
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        values, points, weights = ctx.saved_tensors
        dtype = torch.promote_types(values.dtype, torch.float32)
        grad_sums = grads[0].to(dtype).reshape(-1, values.shape[-1])
        grad_maps: list[Tensor] = []
        grad_points, grad_weights = torch.empty_like(points), torch.empty_like(weights)
        grads_by_level = (grad_points.split(ctx.num_points, 3), grad_weights.split(ctx.num_points, 3))
        by_level = points.to(dtype).split(ctx.num_points, 3), weights.to(dtype).split(ctx.num_points, 3)
        levels = zip(_pad_maps(values.to(dtype), ctx.sizes), ctx.sizes, *by_level, *grads_by_level, strict=True)
        for table, size, level_points, one, of_points, of_weights in levels:
            corners = _Corners.of_points(level_points, size)
            level_weights = one.flatten(0, 2)
            grad_corner_weights = _row_products(corners.rows(), table.flatten(0, 3), grad_sums)
            grad_point, grad_weight = corners.gradients(grad_corner_weights, level_weights)
            of_points.copy_(grad_point.view_as(of_points))
            of_weights.copy_(grad_weight.view_as(of_weights))
            if ctx.needs_input_grad[0]:
                grad_maps.append(_scatter(corners, corners.weights(level_weights), grad_sums, table.shape))
        grad_values = torch.cat(grad_maps, dim=1).to(values.dtype) if grad_maps else torch.zeros_like(values)
        return grad_values, grad_points, grad_weights, None, None


def _row_products(
    rows: Int[Tensor, "R P"], table: Float[Tensor, "V d"], grad_sums: Float[Tensor, "R d"]
) -> Float[Tensor, "R P"]:
    """Compute the products of rows of the table with the gradient of their sum: the gradient of their weights in it."""
    weights = torch.ones(rows.shape, dtype=table.dtype, requires_grad=True)
    with torch.enable_grad():
        sums = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
    return torch.autograd.grad(sums, weights, grad_sums)[0]


def _pad_maps(values: Float[Tensor, "B S M d"], sizes: Sizes) -> Iterator[Float[Tensor, "B H W M d"]]:
    """Split values into maps, each padded with a border of zeros, one cell wide, for points outside."""
    for level_values, (height, width) in zip(values.split([h * w for h, w in sizes], dim=1), sizes, strict=True):
        yield F.pad(level_values.unflatten(1, (height, width)), (0, 0, 0, 0, 1, 1, 1, 1))


@dataclass(frozen=True)
class _Corners:
    """The four cells around every point on a padded map; one row R per image, query and head.

    Attributes:
        upper_left: rows of the upper left cells in the table of all padded cells and heads.
        right, below: row offsets of the cell to the right, and of the one below.
        x, y: position of the point between the centers of the cells, in 0 .. 1.
        slopes: derivatives of x and y with respect to the point; 0 beyond the border.
    """

    upper_left: Int[Tensor, "R P"]
    right: int
    below: int
    x: Float[Tensor, "R P"]
    y: Float[Tensor, "R P"]
    slopes: tuple[Float[Tensor, "R P"], Float[Tensor, "R P"]]

    @classmethod
    def of_points(cls, points: Float[Tensor, "B N M P 2"], size: tuple[int, int]) -> "_Corners":
        """Find the cells around points (x, y) in 0 .. 1 of a map of that (height, width)."""
        batch_size, _, num_heads, _, _ = points.shape
        height, width = size
        left, x, x_slope = _locate(points[..., 0], width)
        top, y, y_slope = _locate(points[..., 1], height)
        images = torch.arange(batch_size, dtype=torch.int32)[:, None, None, None] * (height + 2)
        heads = torch.arange(num_heads, dtype=torch.int32)[:, None]
        rows = ((images + top) * (width + 2) + left) * num_heads + heads
        rows, x, y, x_slope, y_slope = (each.flatten(0, 2) for each in (rows, x, y, x_slope, y_slope))
        return cls(rows, num_heads, (width + 2) * num_heads, x, y, (x_slope, y_slope))

    def rows(self) -> Int[Tensor, "R C"]:
        """Concatenate the rows of all upper left cells, upper right, lower left, lower right."""
        offsets = (0, self.right, self.below, self.below + self.right)
        return torch.cat([self.upper_left + offset for offset in offsets], dim=1)

    def weights(self, point_weights: Float[Tensor, "R P"]) -> list[Float[Tensor, "R P"]]:
        """Compute the bilinear weights of the four cells."""
        lower = point_weights * self.y
        upper = point_weights - lower
        upper_right, lower_right = upper * self.x, lower * self.x
        return [upper - upper_right, upper_right, lower - lower_right, lower_right]

    def gradients(
        self, grad_corner_weights: Float[Tensor, "R C"], point_weights: Float[Tensor, "R P"]
    ) -> tuple[Float[Tensor, "R P 2"], Float[Tensor, "R P"]]:
        """Compute the gradients of points and of their weights from those of the bilinear weights."""
        upper_left, upper_right, lower_left, lower_right = grad_corner_weights.chunk(4, dim=1)
        upper_step, lower_step = upper_right - upper_left, lower_right - lower_left
        upper = torch.addcmul(upper_left, self.x, upper_step)
        lower = torch.addcmul(lower_left, self.x, lower_step)
        x_slope, y_slope = self.slopes
        grad_x = torch.lerp(upper_step, lower_step, self.y) * point_weights * x_slope
        grad_y = (lower - upper) * point_weights * y_slope
        return torch.stack([grad_x, grad_y], dim=-1), torch.lerp(upper, lower, self.y)


def _locate(
    coordinates: Float[Tensor, "*shape"], num_cells: int
) -> tuple[Int[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return the padded cell before each coordinate, the distance from its center, and the derivative of the distance."""
    unclamped = coordinates * num_cells + 0.5
    cells = unclamped.clamp(0, num_cells + 1)
    before = cells.int().clamp(0, num_cells)  # NaN becomes a valid cell, and its weight stays NaN
    return before, cells - before, (unclamped == cells) * float(num_cells)


def _scatter(
    corners: _Corners, weights: Sequence[Float[Tensor, "R P"]], grad_sums: Float[Tensor, "R d"], shape: torch.Size
) -> Float[Tensor, "B S M d"]:
    """Sum, for every cell, the gradients of the sums that it was part of.

    The transpose of gathering is again gathering once the points are sorted by their upper left cell: for each of the four
    corners, gradients are summed at that cell, and the map of sums is then shifted to the corner.
    """
    rows, order = corners.upper_left.flatten().sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(shape[:-1].numel(), dtype=torch.int32))
    bags = torch.div(order, corners.upper_left.shape[1], rounding_mode="floor")
    sums = [
        F.embedding_bag(bags, grad_sums, starts, mode="sum", per_sample_weights=weight.flatten()[order]).view(shape)
        for weight in weights
    ]
    upper_left, upper_right, lower_left, lower_right = sums
    grad_map = (
        upper_left[:, 1:-1, 1:-1] + upper_right[:, 1:-1, :-2] + lower_left[:, :-2, 1:-1] + lower_right[:, :-2, :-2]
    )
    return grad_map.flatten(1, 2)
