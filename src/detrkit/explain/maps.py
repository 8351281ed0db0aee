"""Attention maps made small enough for a page: 8 bits a value, pooled where there are too many.

Every row of a map has a scale of its own: value = byte x scale / 255. All byte and float arrays lie in one block, and a
`Place` says where.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from detrkit.models.attention.recording import AttentionInputs, RecordedAttention
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs

# bytes, before they are written as text (4/3 of that): together with a photo they stay below 5 MB
_LAST_LAYER_BYTES = 730_000  # the last encoder layer, averaged over heads: 850 x 850, DETR's at 800 x 1066 px
_OTHER_LAYERS_BYTES = 950_000
_HEADS_BYTES = 600_000
_QUERIES_BYTES = 1_000_000
MAX_QUERIES = 100
POINT_UNITS = 8192  # to a side of the photo, of places of sampled points: they may lie a few photos away
_POINT_BYTES = 5  # two coordinates of two bytes each, and a weight
_VALUES_AT_ONCE = 16_000_000  # attention weights in memory, 64 MB


@dataclass(frozen=True)
class BlockLocation:
    """Where an array lies in the block: its first byte, its shape, its type."""

    offset: int
    shape: tuple[int, ...]
    type: str


@dataclass
class BinaryBlock:
    """Arrays one after the other, each beginning at a multiple of four bytes, as browsers want it."""

    content: bytearray = field(default_factory=bytearray)

    def add(self, array: np.ndarray) -> BlockLocation:
        """Append an array, little-endian."""
        self.content += bytes(-len(self.content) % 4)
        place = BlockLocation(len(self.content), array.shape, str(array.dtype))
        self.content += array.astype(array.dtype.newbyteorder("<")).tobytes()
        return place


@dataclass(frozen=True)
class PackedMaps:
    """Maps of one kind: bytes (..., rows, columns) and, per row, the largest value.

    Attributes:
        bytes: where the values lie.
        scales: where the largest values lie.
        row_pool: side of the square of cells that one row is the mean of.
        column_pool: the same of one column.
    """

    bytes: BlockLocation
    scales: BlockLocation
    row_pool: int = 1
    column_pool: int = 1


@dataclass(frozen=True)
class EncoderMaps:
    """The encoder's self-attention: averaged over heads, layer by layer; and per head, coarser."""

    layers: tuple[PackedMaps, ...]
    heads: PackedMaps


def pack(block: BinaryBlock, values: Float[Tensor, "*rows C"], row_pool: int = 1, column_pool: int = 1) -> PackedMaps:
    """Add maps to a block, each row with its own scale."""
    largest = values.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = (values / largest * 255).round().to(torch.uint8)
    return PackedMaps(block.add(levels.numpy()), block.add(largest[..., 0].numpy()), row_pool, column_pool)


def max_queries(attention: RecordedAttention, num_mask_values: int = 0) -> int:
    """How many queries' maps find room, each with a mask of so many values."""
    layers = attention.layers["decoder_cross"]
    width = attention.grid.num_tokens + attention.predictions.boxes.shape[1]
    per_query = len(layers) * layers[0].module.num_heads * width + num_mask_values
    if isinstance(first := layers[0], DeformableAttentionInputs):
        per_query += len(layers) * first.module.num_heads * math.prod(first.module.per_head) * _POINT_BYTES
    return max(1, min(MAX_QUERIES, _QUERIES_BYTES // per_query))


def pack_decoder(
    block: BinaryBlock, attention: RecordedAttention, queries: Sequence[int]
) -> tuple[PackedMaps, PackedMaps]:
    """Pack what chosen queries attend to, (queries, layers, heads, tokens) and (queries, layers, heads, queries)."""
    cross, to_queries = (
        torch.stack([attention.weights(kind, layer, queries=queries) for layer in range(len(attention.layers[kind]))])
        for kind in ("decoder_cross", "decoder_self")
    )
    return pack(block, cross.movedim(2, 0)), pack(block, to_queries.movedim(2, 0))


@dataclass(frozen=True)
class PackedPoints:
    """Where chosen queries look, if at points.

    Attributes:
        places: (queries, layers, heads, points, [x, y]) in shares of the photo's sides, times `units`.
        weights: of the points, bytes that sum to about 255 for every head.
        references: (queries, layers, [x, y]), what the points are chosen around, like places.
        units: to a side of the photo.
    """

    places: BlockLocation
    weights: BlockLocation
    references: BlockLocation
    units: int = POINT_UNITS


def pack_points(block: BinaryBlock, attention: RecordedAttention, queries: Sequence[int]) -> PackedPoints | None:
    """Pack the points of deformable cross-attention, those of all feature maps; None where queries look at all cells."""
    layers = [layer for layer in attention.layers["decoder_cross"] if isinstance(layer, DeformableAttentionInputs)]
    if not layers:
        return None
    height, width = attention.grid.original
    sides = torch.tensor([width, height])
    found = [layer.sampling_points(queries=queries) for layer in layers]
    places = torch.stack([one.points.transpose(0, 1).flatten(2, 3) for one in found], dim=1)
    weights = torch.stack([one.weights.transpose(0, 1).flatten(2, 3) for one in found], dim=1)
    references = torch.stack([one.reference_points[:, 0] for one in found], dim=1)  # in pixels, alike on all maps
    return PackedPoints(
        block.add(_in_units(places / sides)),
        block.add((weights * 255).round().to(torch.uint8).numpy()),
        block.add(_in_units(references / sides)),
    )


def _in_units(shares: Float[Tensor, "*N 2"]) -> np.ndarray:
    limits = torch.iinfo(torch.int16)
    return (shares * POINT_UNITS).round().clamp(limits.min, limits.max).to(torch.int16).numpy()


def pack_encoder(block: BinaryBlock, attention: RecordedAttention) -> EncoderMaps | None:
    """Pack the encoder's self-attention as finely as there is room; None when there is no encoder."""
    layers = attention.layers["encoder"]
    if not layers:
        return None
    cells = attention.grid.cells
    last = _finest(cells, 1, _LAST_LAYER_BYTES)
    others = _finest(cells, max(1, len(layers) - 1), _OTHER_LAYERS_BYTES)
    per_head = _finest(cells, len(layers) * layers[0].module.num_heads, _HEADS_BYTES)
    averaged, of_heads = [], []
    for number, inputs in enumerate(layers):
        pools = last if number == len(layers) - 1 else others
        mean, heads = _pooled(inputs, cells, pools, per_head)
        averaged.append(pack(block, mean, *pools))
        of_heads.append(heads)
    return EncoderMaps(tuple(averaged), pack(block, torch.stack(of_heads), *per_head))


def _finest(cells: tuple[int, int], count: int, limit: int) -> tuple[int, int]:
    """The least pooling (of rows, of columns) with which `count` maps of all tokens stay within a number of bytes."""
    for column_pool in range(1, max(cells) + 1):
        for row_pool in range(1, column_pool + 1):
            if count * _num_blocks(cells, row_pool) * _num_blocks(cells, column_pool) <= limit:
                return row_pool, column_pool
    return max(cells), max(cells)


def _num_blocks(cells: tuple[int, int], pool: int) -> int:
    return -(-cells[0] // pool) * -(-cells[1] // pool)


def _pooled(
    inputs: AttentionInputs | DeformableAttentionInputs,
    cells: tuple[int, int],
    mean_pools: tuple[int, int],
    head_pools: tuple[int, int],
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "M R2 C2"]]:
    """One layer's maps: averaged over heads, and per head. Not all of its weights are in memory at once."""
    num_tokens = cells[0] * cells[1]
    step = max(1, _VALUES_AT_ONCE // (num_tokens * inputs.module.num_heads))
    means, heads = [], []
    for first in range(0, num_tokens, step):
        weights = inputs.weights(None, range(first, min(first + step, num_tokens)))
        means.append(_pool(weights.mean(0), cells, mean_pools[1]))
        heads.append(_pool(weights, cells, head_pools[1]))
    return _pool_rows(torch.cat(means), cells, mean_pools[0]), _pool_rows(torch.cat(heads, 1), cells, head_pools[0])


def _pool(maps: Float[Tensor, "*rows S"], cells: tuple[int, int], pool: int) -> Float[Tensor, "*rows C"]:
    """Average squares of cells; at the edges, of the cells that there are."""
    laid_out = maps.reshape(-1, 1, *cells)
    pooled = F.avg_pool2d(laid_out, pool, ceil_mode=True, count_include_pad=False)
    return pooled.reshape(*maps.shape[:-1], -1)


def _pool_rows(maps: Float[Tensor, "*heads S C"], cells: tuple[int, int], pool: int) -> Float[Tensor, "*heads R C"]:
    return _pool(maps.transpose(-1, -2), cells, pool).transpose(-1, -2)
