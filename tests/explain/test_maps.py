"""Packed maps: 8 bits of each row, pooled no more than needed, small whatever they hold."""

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit import Predictions
from detrkit.explain.explanation import Explanation
from detrkit.explain.maps import BinaryBlock, BlockLocation, PackedMaps, max_queries, pack, pack_decoder, pack_encoder
from detrkit.models.attention.multi_head import MultiHeadAttention
from detrkit.models.attention.recording import KINDS, AttentionInputs, RecordedAttention
from detrkit.ops.grid import Grid


def unpacked(block: BinaryBlock, packed: PackedMaps) -> Tensor:
    def array(place: BlockLocation) -> np.ndarray:
        count = int(np.prod(place.shape))
        return np.frombuffer(bytes(block.content), place.type, count, place.offset).reshape(place.shape)

    return torch.from_numpy(array(packed.bytes) * (array(packed.scales)[..., None] / np.float32(255)))


def test_a_value_is_off_by_half_a_level_at_most() -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 3, 40).softmax(-1)
    block = BinaryBlock()
    block.add(np.zeros(3, np.uint8))  # the next array must begin at a multiple of four
    packed = pack(block, values)
    assert packed.bytes.offset % 4 == packed.scales.offset % 4 == 0
    error = (unpacked(block, packed) - values).abs()
    assert (error <= values.amax(-1, keepdim=True) / 255 / 2 * 1.001).all()


def test_small_maps_are_kept_whole(explanation: Explanation) -> None:
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


def imagined_attention(cells: tuple[int, int], width: int = 16, num_queries: int = 100) -> RecordedAttention:
    """Attention of six layers and eight heads over random tokens, without a backbone before it."""
    torch.manual_seed(0)

    def layer(asking: int, asked: int) -> AttentionInputs:
        module = MultiHeadAttention(width, num_heads=8, dropout=0.0).requires_grad_(False)
        queries, keys = torch.randn(1, asking, width), torch.randn(1, asked, width)
        return AttentionInputs(module, 3 * queries, 3 * keys, keys, None, queries)

    tokens = cells[0] * cells[1]
    sides = {"encoder": (tokens, tokens), "decoder_self": (num_queries,) * 2, "decoder_cross": (num_queries, tokens)}
    size = (cells[0] * 32, cells[1] * 32)
    return RecordedAttention(
        Grid(cells, 32, size, size, size),
        Predictions(torch.zeros(6, 1, num_queries, 5), torch.zeros(6, 1, num_queries, 4)),
        {kind: tuple(layer(*sides[kind]) for _ in range(6)) for kind in KINDS},
    )


@pytest.mark.parametrize("cells", [(25, 34), (50, 67)])
def test_maps_of_a_large_photo_leave_room_for_it_in_five_megabytes(cells: tuple[int, int]) -> None:
    attention = imagined_attention(cells)
    block = BinaryBlock()
    encoder = pack_encoder(block, attention)
    kept = max_queries(attention)
    pack_decoder(block, attention, range(kept))
    assert encoder is not None
    assert len(block.content) * 4 / 3 < 4_500_000  # as text, if nothing could be compressed
    if cells == (25, 34):  # the published model's: the last layer is whole, and a score of queries is there
        assert (encoder.layers[-1].row_pool, encoder.layers[-1].column_pool) == (1, 1)
        assert {(one.row_pool, one.column_pool) for one in encoder.layers[:-1]} == {(1, 2)}
        assert kept >= 20
        means = unpacked(block, encoder.layers[0])[:2]
        expected = torch.nn.functional.avg_pool2d(
            attention.mean_weights("encoder", 0, queries=[0, 1]).reshape(2, 1, *cells), 2, ceil_mode=True
        ).flatten(1)
        torch.testing.assert_close(means, expected, rtol=0, atol=float(expected.max()) / 250)
