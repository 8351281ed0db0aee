"""Deformable attention: compared with loops over the paper's formula; gradients and initialisation."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from detrkit.models.attention.deformable import DeformableAttention, _sample_grids, nearest_cells, sample
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import LayerConfig

SIZES = ((5, 7), (3, 4), (2, 2))
NUM_POINTS = (2, 3, 1)
NUM_CELLS = sum(height * width for height, width in SIZES)


def inputs(batch_size: int = 2, num_queries: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return values of 2 heads of width 4, and 2, 3 and 1 points on the maps, some of them outside."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch_size, NUM_CELLS, 2, 4, dtype=torch.float64, generator=generator)
    points = torch.rand(batch_size, num_queries, 2, 6, 2, dtype=torch.float64, generator=generator) * 1.4 - 0.2
    weights = torch.rand(batch_size, num_queries, 2, 6, dtype=torch.float64, generator=generator)
    return values, points, weights


def value_at(cells: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Interpolate the map (h, w, d) of one head bilinearly at (x, y) in cells, with zeros outside."""
    total = torch.zeros(cells.shape[-1], dtype=cells.dtype)
    for row in range(cells.shape[0]):
        for column in range(cells.shape[1]):
            total += max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row)) * cells[row, column]
    return total


def formula(values: torch.Tensor, points: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute equation 3 without projections: for every head, the sum over levels and points of A * x(p)."""
    batch_size, num_queries, num_heads, _, _ = points.shape
    sums = torch.zeros(batch_size, num_queries, num_heads, values.shape[-1], dtype=values.dtype)
    for image in range(batch_size):
        start = first = 0
        for (height, width), count in zip(SIZES, NUM_POINTS, strict=True):
            cells = values[image, start : start + height * width].view(height, width, num_heads, -1)
            start += height * width
            for query in range(num_queries):
                for head in range(num_heads):
                    for point in range(first, first + count):
                        x, y = points[image, query, head, point].tolist()
                        value = value_at(cells[:, :, head], x * width - 0.5, y * height - 0.5)
                        sums[image, query, head] += weights[image, query, head, point] * value
            first += count
    return sums.flatten(2)


@pytest.mark.parametrize("sampler", [sample, _sample_grids])
def test_samples_equal_the_formula(sampler: object) -> None:
    values, points, weights = inputs()
    torch.testing.assert_close(
        sampler(values, SIZES, points, weights, NUM_POINTS), formula(values, points, weights), rtol=0, atol=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [sample, _sample_grids])
def test_gradients_of_samples_equal_numerical_ones(sampler: object) -> None:
    leaves = [one.requires_grad_() for one in inputs(batch_size=2, num_queries=2)]
    assert torch.autograd.gradcheck(lambda *args: sampler(args[0], SIZES, *args[1:], NUM_POINTS), leaves)


def test_gradients_of_both_implementations_are_equal() -> None:
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(2, 3, 8, dtype=torch.float64, generator=generator)
    gradients = []
    for sampler in (sample, _sample_grids):
        leaves = [one.requires_grad_() for one in inputs()]
        gradients.append(torch.autograd.grad(sampler(leaves[0], SIZES, *leaves[1:], NUM_POINTS), leaves, grad_output))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtypes", list(itertools.product([torch.float64, torch.float32, torch.bfloat16], repeat=2)))
def test_gradients_of_values_and_points_have_their_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    exact = [one.requires_grad_() for one in inputs()]
    leaves = [one.detach().to(dtypes[index > 0]).requires_grad_() for index, one in enumerate(exact)]
    sums = sample(leaves[0], SIZES, *leaves[1:], NUM_POINTS)
    assert sums.dtype == dtypes[0]
    sums.sum().backward()
    assert [one.grad.dtype for one in leaves] == [one.dtype for one in leaves]
    if torch.bfloat16 not in dtypes:
        expected_gradients = torch.autograd.grad(sample(exact[0], SIZES, *exact[1:], NUM_POINTS).sum(), exact)
        for one, expected in zip(leaves, expected_gradients, strict=True):
            torch.testing.assert_close(one.grad.double(), expected, rtol=0, atol=1e-4)


def test_second_derivatives_on_a_cpu_are_rejected() -> None:
    values, points, weights = (one.requires_grad_() for one in inputs())
    first = torch.autograd.grad(sample(values, SIZES, points, weights, NUM_POINTS).sum(), points, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


def test_gradients_of_points_are_computed_without_those_of_values() -> None:
    values, points, weights = inputs()
    sums = sample(values, SIZES, points.requires_grad_(), weights, NUM_POINTS)
    sums.sum().backward()
    assert points.grad is not None
    assert points.grad.any()


@pytest.mark.parametrize("coordinate", [-1e30, -7.0, 0.0, 1.0, 7.0, 1e30, math.inf, -math.inf])
def test_samples_at_and_beyond_the_border_equal_the_formula(coordinate: float) -> None:
    values, points, weights = inputs()
    points[0, 0, :, ::2, 0] = coordinate
    points[1, 1, :, 1::2, 1] = coordinate
    leaves = [one.requires_grad_() for one in (values, points, weights)]
    sums = sample(values, SIZES, points, weights, NUM_POINTS)
    torch.testing.assert_close(sums, formula(values, points, weights), rtol=0, atol=1e-9)
    gradients = torch.autograd.grad(sums.sum(), leaves)
    assert all(each.isfinite().all() for each in gradients)
    if abs(coordinate) > 1:
        assert not gradients[1][0, 0, :, ::2].any()
        assert not gradients[2][0, 0, :, ::2].any()


def test_nan_point_changes_only_its_own_query() -> None:
    values, points, weights = inputs()
    expected = sample(values, SIZES, points, weights, NUM_POINTS)
    points[0, 1, 0, 0, 0] = math.nan  # of the first head: the first four channels
    sums = sample(values, SIZES, points, weights, NUM_POINTS)
    assert sums[0, 1, :4].isnan().all()
    sums[0, 1, :4] = expected[0, 1, :4]
    torch.testing.assert_close(sums, expected, rtol=0, atol=0)


CONFIG = LayerConfig(
    width=8, num_heads=2, dim_feedforward=8, dropout=0.0, pre_norm=False, num_feature_levels=3, num_points=NUM_POINTS
)


def make_features(padding_mask: torch.Tensor | None = None) -> FeatureMaps:
    tokens = torch.randn(2, NUM_CELLS, 8, generator=torch.Generator().manual_seed(2))
    return FeatureMaps(tokens, torch.zeros_like(tokens), padding_mask, SIZES)


@pytest.mark.parametrize("num_coordinates", [2, 4])
def test_attention_around_points_and_boxes_equals_the_formula(num_coordinates: int) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(CONFIG).double()
    for projection in (attention.offset_projection, attention.weight_projection):
        torch.nn.init.normal_(projection.weight, std=0.3)
    mask = torch.zeros(2, NUM_CELLS, dtype=torch.bool)
    mask[1, 5:9] = True
    features = make_features(mask)
    features = FeatureMaps(features.tokens.double(), features.positions.double(), mask, SIZES)
    queries = torch.randn(2, 3, 8, dtype=torch.float64)
    references = torch.rand(2, 3, 3, num_coordinates, dtype=torch.float64)

    # (B, N, heads, points, xy); the unit of offsets is a cell, or half a side of the box divided by the map's points
    offsets = attention.offset_projection(queries).view(2, 3, 2, 6, 2)
    weights = attention.weight_projection(queries).view(2, 3, 2, 6).softmax(-1)
    points = torch.empty_like(offsets)
    first = 0
    for level, ((height, width), count) in enumerate(zip(SIZES, NUM_POINTS, strict=True)):
        center, rows = references[:, :, None, level, None], slice(first, first + count)
        first += count
        if num_coordinates == 2:
            points[:, :, :, rows] = center + offsets[:, :, :, rows] / torch.tensor([width, height])
        else:
            points[:, :, :, rows] = center[..., :2] + offsets[:, :, :, rows] / count * center[..., 2:] / 2
    values = attention.value_projection(features.tokens).masked_fill(mask[..., None], 0.0).view(2, NUM_CELLS, 2, 4)
    expected = attention.output_projection(formula(values, points, weights))
    torch.testing.assert_close(attention(queries, references, features), expected, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("num_coordinates", [2, 4])
def test_gradients_of_attention_equal_numerical_ones(num_coordinates: int) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(CONFIG).double()
    features = make_features()
    leaves = [torch.randn(2, 2, 8, dtype=torch.float64), torch.rand(2, 2, 3, num_coordinates, dtype=torch.float64)]
    tokens = features.tokens.double()

    def attend(queries: torch.Tensor, references: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return attention(queries, references, FeatureMaps(tokens, tokens, None, SIZES))

    assert torch.autograd.gradcheck(attend, [one.requires_grad_() for one in (*leaves, tokens)])


def test_initial_offsets_point_in_one_direction_per_head() -> None:
    attention = DeformableAttention(LayerConfig(16, 8, 8, 0.0, False, num_feature_levels=2, num_points=3))
    offsets = attention.offset_projection.bias.view(8, 2, 3, 2)
    diagonal = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    for step in range(3):
        expected = (step + 1) * torch.tensor(diagonal, dtype=torch.float32)
        torch.testing.assert_close(offsets[:, 0, step], expected)
        torch.testing.assert_close(offsets[:, 1, step], expected)
    _, weights = attention.points(torch.randn(1, 2, 16), torch.rand(1, 2, 2, 2), ((4, 4), (2, 2)))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))


def test_points_under_autocast_are_float32() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(CONFIG)
    queries, references = torch.randn(2, 3, 8), torch.rand(2, 3, 3, 2)
    exact = attention(queries, references, make_features())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention(queries, references, make_features())
        points, _ = attention.points(queries, references, SIZES)
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.05)
    assert points.dtype == torch.float32
    assert math.isfinite(rounded.float().sum().item())


@pytest.mark.parametrize("sampler", [sample, _sample_grids])
def test_bfloat16_values_are_sampled_at_float32_points(sampler: Callable[..., torch.Tensor]) -> None:
    # alternating columns of 0 and 1; rounded points near the edges would be off by up to an eighth of a cell
    columns = (torch.arange(128) % 2).view(1, -1, 1, 1).bfloat16()
    coordinates = torch.arange(10.3, 120, 4)  # in cells, from the center of the first cell
    points = torch.stack([(coordinates + 0.5) / 128, torch.full_like(coordinates, 0.5)], -1).view(1, -1, 1, 1, 2)
    sums = sampler(columns, ((1, 128),), points, torch.ones(points.shape[:-1]), (1,))
    assert sums.dtype == torch.bfloat16
    torch.testing.assert_close(sums.flatten().float(), torch.full_like(coordinates, 0.3), rtol=0, atol=2e-3)


DISCRETE = replace(CONFIG, sampling="discrete")


@pytest.mark.parametrize("is_invariant", [False, True])
def test_discrete_sampling_takes_the_nearest_cell(is_invariant: bool) -> None:
    features = replace(make_features(), padding_invariant=is_invariant)  # the first map has 5 rows and 7 columns
    # x = 0.5 cells is rounded to column 1 (published), -0.2 and -1.4 towards the first, 6.4 to the last
    cells = torch.tensor([[0.5, 0.4], [-0.2, 2.6], [-1.4, 9.0], [6.4, 1.5], [4.6, -3.0], [0.0, 0.0]])
    points = (cells / torch.tensor([[7, 5], [7, 5], [4, 3], [4, 3], [4, 3], [2, 2]])).expand(2, 3, 2, 6, 2)
    moved = nearest_cells(points.double().requires_grad_(), NUM_POINTS, features)
    in_cells = moved[0, 0, 0] * torch.tensor([[7, 5], [7, 5], [4, 3], [4, 3], [4, 3], [2, 2]]) - 0.5
    last = 3 if is_invariant else 2  # the published code limits columns of the second map, 3 x 4, to the number of rows
    expected = torch.tensor([[1, 0], [0, 3], [0, 2], [last, 2], [last, 0], [0, 0]])
    torch.testing.assert_close(in_cells, expected.double(), rtol=0, atol=1e-6)
    assert not moved.requires_grad


def test_discrete_sampling_does_not_depend_on_padding() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(DISCRETE)
    torch.nn.init.normal_(attention.offset_projection.weight, std=3)
    queries, references = torch.randn(2, 3, 8), torch.rand(2, 3, 3, 4)
    whole = replace(make_features(), padding_invariant=True)
    padded_sizes = tuple((height + 2, width + 3) for height, width in SIZES)
    maps = [whole.map_of(level) for level in range(3)]
    padded = [torch.nn.functional.pad(one, (0, 3, 0, 2), value=9.0).flatten(2).transpose(1, 2) for one in maps]
    masks = [torch.nn.functional.pad(torch.zeros(2, *size), (0, 3, 0, 2), value=1).flatten(1) for size in SIZES]
    tokens = torch.cat(padded, 1)
    cells = torch.tensor([[width, height] for height, width in SIZES], dtype=torch.float32).expand(2, -1, -1)
    extents = cells / torch.tensor([[width, height] for height, width in padded_sizes])
    features = FeatureMaps(
        tokens, tokens, torch.cat(masks, 1).bool(), padded_sizes, cells, extents, padding_invariant=True
    )
    torch.testing.assert_close(
        attention(queries, references * extents.repeat(1, 1, 2)[:, None], features),
        attention(queries, references, whole),
    )


def test_attention_without_value_projection_samples_slices_of_the_memory() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(replace(CONFIG, value_projection=False))
    assert {name.partition(".")[0] for name in attention.state_dict()} == {"offset_projection", "weight_projection"}
    queries, references, features = torch.randn(2, 3, 8), torch.rand(2, 3, 3, 4), make_features()
    points, weights = attention.points(queries, references, SIZES)
    expected = formula(features.tokens.unflatten(-1, (2, 4)).double(), points, weights)
    torch.testing.assert_close(attention(queries, references, features).double(), expected, rtol=0, atol=1e-5)
