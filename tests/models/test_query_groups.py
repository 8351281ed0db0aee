"""Groups of queries in self-attention of the decoder: who attends to whom."""

import pytest
import torch
from torch import Tensor

from detrkit.models.decoders.conditional import ConditionalDecoderLayer
from detrkit.models.decoders.transformer import DecoderLayer
from detrkit.models.layers import LayerConfig
from detrkit.models.queries.queries import AuxiliaryQueries, LayerQueryPositions, Queries, QueryGroup

CONFIG = LayerConfig(width=8, num_heads=2, dim_feedforward=8, dropout=0.0, pre_norm=False)
OWN, SIZE, COUNT = 5, 3, 2


def queries(number: int) -> Queries:
    return Queries(torch.randn(2, number, 8), torch.randn(2, number, 8), torch.randn(2, number, 4))


def denoising(*, attends_to_own: bool, padding_mask: Tensor | None = None) -> AuxiliaryQueries:
    group = QueryGroup(SIZE, COUNT, padding_mask, attends_to_own)
    return AuxiliaryQueries(queries(SIZE * COUNT), "denoising", group)


def attend(layer: DecoderLayer, all_queries: Queries) -> Tensor:
    positions = LayerQueryPositions(all_queries.positions, groups=all_queries.groups)
    return layer._attend_within_groups(all_queries.content, positions)


def attend_to(layer: DecoderLayer, all_queries: Queries, rows: list[int], keys: list[int]) -> Tensor:
    """Attention of some rows to some keys, by the layer without groups."""
    both = [*rows, *(key for key in keys if key not in rows)]
    attended = layer.attend_to_queries(
        all_queries.content[:, both], LayerQueryPositions(all_queries.positions[:, both])
    )
    return attended[:, : len(rows)]


@pytest.mark.parametrize("layer_class", [DecoderLayer, ConditionalDecoderLayer])
@pytest.mark.parametrize("attends_to_own", [False, True])
def test_denoising_groups_see_themselves_and_if_set_the_own_queries_which_see_only_themselves(
    layer_class: type[DecoderLayer], attends_to_own: bool
) -> None:
    layer = DecoderLayer(CONFIG) if layer_class is DecoderLayer else ConditionalDecoderLayer(CONFIG, is_first=False)
    layer.eval()
    both = queries(OWN).with_auxiliary([denoising(attends_to_own=attends_to_own)])
    attended = attend(layer, both)

    own = list(range(OWN))
    torch.testing.assert_close(attended[:, :OWN], attend_to(layer, both, own, own))
    for copy in range(COUNT):
        rows = list(range(OWN + copy * SIZE, OWN + (copy + 1) * SIZE))
        expected = attend_to(layer, both, rows, [*rows, *(own if attends_to_own else [])])
        torch.testing.assert_close(attended[:, rows], expected)


def test_padding_of_a_group_is_masked_also_among_the_own_queries() -> None:
    layer = DecoderLayer(CONFIG).eval()
    padding = torch.tensor([[False, False, True], [False, False, False]])
    both = queries(OWN).with_auxiliary([denoising(attends_to_own=True, padding_mask=padding)])
    attended = attend(layer, both)

    rows, own = [OWN, OWN + 1], list(range(OWN))
    torch.testing.assert_close(attended[:1, rows], attend_to(layer, both, rows, [*rows, *own])[:1])
    rows = [OWN, OWN + 1, OWN + 2]
    torch.testing.assert_close(attended[1:, rows], attend_to(layer, both, rows, [*rows, *own])[1:])
