"""Packed attention maps: 8 bits per value, pooled no more than needed, limited in size."""

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit import Predictions
from detrkit.explain.explanation import Explanation
from detrkit.explain.packing import (
    ArrayLocation,
    BinaryBlock,
    PackedMaps,
    max_queries,
    pack,
    pack_decoder,
    pack_encoder,
)
from detrkit.models.attention.multi_head import MultiHeadAttention
from detrkit.models.attention.recording import KINDS, AttentionInputs, RecordedAttention
from detrkit.ops.grid import Grid


def unpacked(block: BinaryBlock, packed: PackedMaps) -> Tensor:
    def array(location: ArrayLocation) -> np.ndarray:
        count = int(np.prod(location.shape))
        return np.frombuffer(bytes(block.content), location.type, count, location.offset).reshape(location.shape)

    return torch.from_numpy(array(packed.bytes) * (array(packed.scales)[..., None] / np.float32(255)))


def test_packing_error_is_at_most_half_a_level() -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 3, 40).softmax(-1)
    block = BinaryBlock()
    block.add(np.zeros(3, np.uint8))  # the next array must be aligned to four bytes
    packed = pack(block, values)
    assert packed.bytes.offset % 4 == packed.scales.offset % 4 == 0
    error = (unpacked(block, packed) - values).abs()
    assert (error <= values.amax(-1, keepdim=True) / 255 / 2 * 1.001).all()


def test_small_maps_are_not_pooled(explanation: Explanation) -> None:
    attention = explanation.attention
    block = BinaryBlock()
    encoder = pack_encoder(block, attention)
    cross, to_queries = pack_decoder(block, attention, [4, 2])
    assert encoder is not None
    expected = attention.weights("encoder", 0)
    assert (encoder.heads.row_pool, encoder.heads.column_pool) == (1, 1)
    torch.testing.assert_close(unpacked(block, encoder.heads)[0], expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(unpacked(block, encoder.layers[0]), expected.mean(0), rtol=0, atol=2e-3)
    expected = attention.weights("decoder_cross", 1, queries=[4, 2]).transpose(0, 1)
    torch.testing.assert_close(unpacked(block, cross)[:, 1], expected, rtol=0, atol=2e-3)
    expected = attention.weights("decoder_self", 2, queries=[4, 2]).transpose(0, 1)
    torch.testing.assert_close(unpacked(block, to_queries)[:, 2], expected, rtol=0, atol=2e-3)


def random_attention(cells: tuple[int, int], width: int = 16, num_queries: int = 100) -> RecordedAttention:
    """Attention of six layers with eight heads over random tokens, without a model."""
    torch.manual_seed(0)

    def layer(num_queries: int, num_keys: int) -> AttentionInputs:
        module = MultiHeadAttention(width, num_heads=8, dropout=0.0).requires_grad_(False)
        queries, keys = torch.randn(1, num_queries, width), torch.randn(1, num_keys, width)
        return AttentionInputs(module, 3 * queries, 3 * keys, keys, None, queries)

    tokens = cells[0] * cells[1]
    sides = {"encoder": (tokens, tokens), "decoder_self": (num_queries,) * 2, "decoder_cross": (num_queries, tokens)}
    size = (cells[0] * 32, cells[1] * 32)
    return RecordedAttention(
        Grid(cells, 32, size, size, size),
        Predictions(torch.zeros(6, 1, num_queries, 5), torch.zeros(6, 1, num_queries, 4)),
        {kind: tuple(layer(*sides[kind]) for _ in range(6)) for kind in KINDS},
    )


@pytest.mark.parametrize("cells", [(25, 34), pytest.param((50, 67), marks=pytest.mark.slow)])
def test_maps_of_a_large_image_fit_into_a_page_of_five_megabytes(cells: tuple[int, int]) -> None:
    attention = random_attention(cells)
    block = BinaryBlock()
    encoder = pack_encoder(block, attention)
    num_queries = max_queries(attention)
    pack_decoder(block, attention, range(num_queries))
    assert encoder is not None
    assert len(block.content) * 4 / 3 < 4_500_000  # as base64, if nothing could be compressed
    if cells == (25, 34):  # DETR at 800 x 1066 px: the last layer is not pooled, and at least 20 queries are included
        assert (encoder.layers[-1].row_pool, encoder.layers[-1].column_pool) == (1, 1)
        assert {(one.row_pool, one.column_pool) for one in encoder.layers[:-1]} == {(1, 2)}
        assert num_queries >= 20
        means = unpacked(block, encoder.layers[0])[:2]
        expected = torch.nn.functional.avg_pool2d(
            attention.mean_weights("encoder", 0, queries=[0, 1]).reshape(2, 1, *cells), 2, ceil_mode=True
        ).flatten(1)
        torch.testing.assert_close(means, expected, rtol=0, atol=float(expected.max()) / 250)
