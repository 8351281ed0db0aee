"""Deformable attention: against loops written from the paper's formula, its gradients, and how it starts."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from detrkit.models.attention.deformable import DeformableAttention, _sample_grids, sample
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import LayerConfig

SIZES = ((5, 7), (3, 4), (2, 2))
NUM_CELLS = sum(height * width for height, width in SIZES)


def inputs(batch_size: int = 2, num_queries: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values of 2 heads, 4 wide; 2 points on each map, some of them outside."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch_size, NUM_CELLS, 2, 4, dtype=torch.float64, generator=generator)
    points = torch.rand(batch_size, num_queries, 2, 3, 2, 2, dtype=torch.float64, generator=generator) * 1.4 - 0.2
    weights = torch.rand(batch_size, num_queries, 2, 3, 2, dtype=torch.float64, generator=generator)
    return values, points, weights


def value_at(cells: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Bilinear interpolation of one head's map (h, w, d) at (x, y), counted in cells; nothing lies outside."""
    total = torch.zeros(cells.shape[-1], dtype=cells.dtype)
    for row in range(cells.shape[0]):
        for column in range(cells.shape[1]):
            total += max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row)) * cells[row, column]
    return total


def by_the_formula(values: torch.Tensor, points: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Equation 3 without its projections: for every head, the sum over levels and points of A * x(p)."""
    batch_size, num_queries, num_heads, num_feature_levels, num_points, _ = points.shape
    mixed = torch.zeros(batch_size, num_queries, num_heads, values.shape[-1], dtype=values.dtype)
    for photo in range(batch_size):
        start = 0
        for level in range(num_feature_levels):
            height, width = SIZES[level]
            cells = values[photo, start : start + height * width].view(height, width, num_heads, -1)
            start += height * width
            for query in range(num_queries):
                for head in range(num_heads):
                    for point in range(num_points):
                        x, y = points[photo, query, head, level, point].tolist()
                        found = value_at(cells[:, :, head], x * width - 0.5, y * height - 0.5)
                        mixed[photo, query, head] += weights[photo, query, head, level, point] * found
    return mixed.flatten(2)


@pytest.mark.parametrize("sampler", [sample, _sample_grids])
def test_sampling_equals_the_formula(sampler: object) -> None:
    values, points, weights = inputs()
    torch.testing.assert_close(
        sampler(values, SIZES, points, weights), by_the_formula(values, points, weights), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("sampler", [sample, _sample_grids])
def test_gradients_of_sampling_are_right(sampler: object) -> None:
    leaves = [one.requires_grad_() for one in inputs(batch_size=2, num_queries=2)]
    assert torch.autograd.gradcheck(lambda *given: sampler(given[0], SIZES, *given[1:]), leaves)


def test_both_ways_of_sampling_have_the_same_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    wanted = torch.randn(2, 3, 8, dtype=torch.float64, generator=generator)
    gradients = []
    for sampler in (sample, _sample_grids):
        leaves = [one.requires_grad_() for one in inputs()]
        gradients.append(torch.autograd.grad(sampler(leaves[0], SIZES, *leaves[1:]), leaves, wanted))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kinds", list(itertools.product([torch.float64, torch.float32, torch.bfloat16], repeat=2)))
def test_values_and_points_of_other_types_have_gradients_of_their_own(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    exact = [one.requires_grad_() for one in inputs()]
    leaves = [one.detach().to(kinds[index > 0]).requires_grad_() for index, one in enumerate(exact)]
    mixed = sample(leaves[0], SIZES, *leaves[1:])
    assert mixed.dtype == kinds[0]
    mixed.sum().backward()
    assert [one.grad.dtype for one in leaves] == [one.dtype for one in leaves]
    if torch.bfloat16 not in kinds:
        wanted = torch.autograd.grad(sample(exact[0], SIZES, *exact[1:]).sum(), exact)
        for one, expected in zip(leaves, wanted, strict=True):
            torch.testing.assert_close(one.grad.double(), expected, rtol=0, atol=1e-4)


def test_there_are_no_gradients_of_gradients_on_a_cpu_rather_than_wrong_ones() -> None:
    values, points, weights = (one.requires_grad_() for one in inputs())
    first = torch.autograd.grad(sample(values, SIZES, points, weights).sum(), points, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


def test_gradients_of_points_and_weights_need_none_of_the_values() -> None:
    values, points, weights = inputs()
    mixed = sample(values, SIZES, points.requires_grad_(), weights)
    mixed.sum().backward()
    assert points.grad is not None
    assert points.grad.any()


@pytest.mark.parametrize("place", [-1e30, -7.0, 0.0, 1.0, 7.0, 1e30, math.inf, -math.inf])
def test_points_on_the_border_and_beyond_find_what_the_formula_finds(place: float) -> None:
    values, points, weights = inputs()
    points[0, 0, :, :, 0, 0] = place
    points[1, 1, :, :, 1, 1] = place
    leaves = [one.requires_grad_() for one in (values, points, weights)]
    found = sample(values, SIZES, points, weights)
    torch.testing.assert_close(found, by_the_formula(values, points, weights), rtol=0, atol=1e-9)
    gradients = torch.autograd.grad(found.sum(), leaves)
    assert all(each.isfinite().all() for each in gradients)
    if abs(place) > 1:
        assert not gradients[1][0, 0, :, :, 0].any()
        assert not gradients[2][0, 0, :, :, 0].any()


def test_a_point_that_is_no_number_spoils_its_own_query_alone() -> None:
    values, points, weights = inputs()
    expected = sample(values, SIZES, points, weights)
    points[0, 1, 0, 0, 0, 0] = math.nan  # of the first head, whose values are the first four
    found = sample(values, SIZES, points, weights)
    assert found[0, 1, :4].isnan().all()
    found[0, 1, :4] = expected[0, 1, :4]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


SHAPE = LayerConfig(
    width=8, num_heads=2, dim_feedforward=8, dropout=0.0, pre_norm=False, num_feature_levels=3, num_points=2
)


def scene(padding_mask: torch.Tensor | None = None) -> FeatureMaps:
    tokens = torch.randn(2, NUM_CELLS, 8, generator=torch.Generator().manual_seed(2))
    return FeatureMaps(tokens, torch.zeros_like(tokens), padding_mask, SIZES)


@pytest.mark.parametrize("num_coordinates", [2, 4])
def test_a_layer_equals_the_formula_around_points_and_boxes(num_coordinates: int) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(SHAPE).double()
    for projection in (attention.offset_projection, attention.weight_projection):
        torch.nn.init.normal_(projection.weight, std=0.3)
    mask = torch.zeros(2, NUM_CELLS, dtype=torch.bool)
    mask[1, 5:9] = True
    seen = scene(mask)
    seen = FeatureMaps(seen.tokens.double(), seen.positions.double(), mask, SIZES)
    queries = torch.randn(2, 3, 8, dtype=torch.float64)
    references = torch.rand(2, 3, 3, num_coordinates, dtype=torch.float64)

    # (B, N, heads, levels, points, xy); offsets count cells, or halves of the box's sides divided by the number of points
    offsets = attention.offset_projection(queries).view(2, 3, 2, 3, 2, 2)
    weights = attention.weight_projection(queries).view(2, 3, 2, 6).softmax(-1).view(2, 3, 2, 3, 2)
    points = torch.empty_like(offsets)
    for level, (height, width) in enumerate(SIZES):
        around = references[:, :, None, level, None]
        if num_coordinates == 2:
            points[:, :, :, level] = around + offsets[:, :, :, level] / torch.tensor([width, height])
        else:
            points[:, :, :, level] = around[..., :2] + offsets[:, :, :, level] / 2 * around[..., 2:] / 2
    values = attention.value_projection(seen.tokens).masked_fill(mask[..., None], 0.0).view(2, NUM_CELLS, 2, 4)
    expected = attention.output_projection(by_the_formula(values, points, weights))
    torch.testing.assert_close(attention(queries, references, seen), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_coordinates", [2, 4])
def test_gradients_of_a_layer_are_right(num_coordinates: int) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(SHAPE).double()
    seen = scene()
    leaves = [torch.randn(2, 2, 8, dtype=torch.float64), torch.rand(2, 2, 3, num_coordinates, dtype=torch.float64)]
    tokens = seen.tokens.double()

    def attend(queries: torch.Tensor, references: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return attention(queries, references, FeatureMaps(tokens, tokens, None, SIZES))

    assert torch.autograd.gradcheck(attend, [one.requires_grad_() for one in (*leaves, tokens)])


def test_heads_start_looking_in_all_directions() -> None:
    attention = DeformableAttention(LayerConfig(16, 8, 8, 0.0, False, num_feature_levels=2, num_points=3))
    offsets = attention.offset_projection.bias.view(8, 2, 3, 2)
    diagonal = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    for step in range(3):
        expected = (step + 1) * torch.tensor(diagonal, dtype=torch.float32)
        torch.testing.assert_close(offsets[:, 0, step], expected)
        torch.testing.assert_close(offsets[:, 1, step], expected)
    _, weights = attention.points(torch.randn(1, 2, 16), torch.rand(1, 2, 2, 2), ((4, 4), (2, 2)))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))


def test_under_autocast_points_are_not_rounded() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(SHAPE)
    queries, references = torch.randn(2, 3, 8), torch.rand(2, 3, 3, 2)
    exact = attention(queries, references, scene())
    with torch.autocast("cpu", torch.bfloat16):
        rough = attention(queries, references, scene())
        points, _ = attention.points(queries, references, SIZES)
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.05)
    assert points.dtype == torch.float32
    assert math.isfinite(rough.float().sum().item())


@pytest.mark.parametrize("sampler", [sample, _sample_grids])
def test_values_in_bfloat16_are_looked_for_where_the_points_are(sampler: Callable[..., torch.Tensor]) -> None:
    # columns hold 0 and 1 in turns; rounded, points near the edges would lie up to an eighth of a cell off
    columns = (torch.arange(128) % 2).view(1, -1, 1, 1).bfloat16()
    places = torch.arange(10.3, 120, 4)  # from the centre of the first cell on, in cells
    points = torch.stack([(places + 0.5) / 128, torch.full_like(places, 0.5)], -1).view(1, -1, 1, 1, 1, 2)
    found = sampler(columns, ((1, 128),), points, torch.ones(points.shape[:-1]))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.flatten().float(), torch.full_like(places, 0.3), rtol=0, atol=2e-3)
