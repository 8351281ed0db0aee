"""Attention maps packed for the page: 8 bits per value, pooled to a limited size.

Every row of a map has its own scale: value = byte * scale / 255. All arrays are stored in one block of bytes; an
`ArrayLocation` describes where.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from detrkit.models.attention.recording import LayerInputs, RecordedAttention
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs

# bytes before base64 encoding (x 4/3): together with the image, a page stays below 5 MB
_LAST_LAYER_BYTES = 730_000  # last encoder layer, mean of the heads: 850 x 850, DETR at 800 x 1066 px
_OTHER_LAYERS_BYTES = 950_000
_HEADS_BYTES = 600_000
_QUERIES_BYTES = 1_000_000
MAX_QUERIES = 100
POINT_UNITS = 8192  # per side of the image, for coordinates of sampling points, which may lie a few images away
_POINT_BYTES = 5  # two int16 coordinates and a uint8 weight
_MAX_VALUES_IN_MEMORY = 16_000_000  # attention weights computed at a time, 64 MB


@dataclass(frozen=True)
class ArrayLocation:
    """Location of an array in a block: byte offset, shape and dtype."""

    offset: int
    shape: tuple[int, ...]
    type: str


@dataclass
class BinaryBlock:
    """Concatenated arrays, each aligned to four bytes as JavaScript's typed arrays require."""

    content: bytearray = field(default_factory=bytearray)

    def add(self, array: np.ndarray) -> ArrayLocation:
        """Append an array, little-endian."""
        self.content += bytes(-len(self.content) % 4)
        location = ArrayLocation(len(self.content), array.shape, str(array.dtype))
        self.content += array.astype(array.dtype.newbyteorder("<")).tobytes()
        return location


@dataclass(frozen=True)
class PackedMaps:
    """Packed attention maps of one kind.

    Attributes:
        bytes: location of the values (..., rows, columns).
        scales: location of the largest value of every row.
        row_pool: side of the square of cells that one row is the mean of.
        column_pool: side of the square of cells that one column is the mean of.
    """

    bytes: ArrayLocation
    scales: ArrayLocation
    row_pool: int = 1
    column_pool: int = 1


@dataclass(frozen=True)
class EncoderMaps:
    """Encoder self-attention: the mean of the heads for every layer, and, at a lower resolution, every head."""

    layers: tuple[PackedMaps, ...]
    heads: PackedMaps


@dataclass(frozen=True)
class PackedPoints:
    """Sampling points of deformable cross-attention.

    Attributes:
        points: (queries, layers, heads, points, [x, y]) relative to the image, times `units`.
        weights: attention weights of the points as bytes, which sum to about 255 for every head.
        references: (queries, layers, [x, y]) of the reference points, in the same units.
        boxes: (queries, layers, [left, top, right, bottom]) of the reference boxes, likewise; None if there are none.
        counts: number of points on each feature map; points are ordered by map.
        units: units per side of the image.
    """

    points: ArrayLocation
    weights: ArrayLocation
    references: ArrayLocation
    boxes: ArrayLocation | None
    counts: tuple[int, ...]
    units: int = POINT_UNITS


def pack(block: BinaryBlock, values: Float[Tensor, "*rows C"], row_pool: int = 1, column_pool: int = 1) -> PackedMaps:
    """Add maps to a block, every row with its own scale."""
    largest = values.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = (values / largest * 255).round().to(torch.uint8)
    return PackedMaps(block.add(levels.numpy()), block.add(largest[..., 0].numpy()), row_pool, column_pool)


def max_queries(attention: RecordedAttention, num_mask_values: int = 0) -> int:
    """Return the number of queries whose maps fit into the page, each with a mask of `num_mask_values` values."""
    layers = attention.layers["decoder_cross"]
    width = attention.grid.num_tokens + attention.predictions.boxes.shape[1]
    per_query = len(layers) * layers[0].module.num_heads * width + num_mask_values
    if isinstance(first := layers[0], DeformableAttentionInputs):
        per_query += len(layers) * first.module.num_heads * sum(first.module.num_points) * _POINT_BYTES
    if (edges := attention.predictions.distributions) is not None:
        per_query += edges.layer_logits[:, 0, 0].numel()
    return max(1, min(MAX_QUERIES, _QUERIES_BYTES // per_query))


def pack_decoder(
    block: BinaryBlock, attention: RecordedAttention, queries: Sequence[int]
) -> tuple[PackedMaps, PackedMaps]:
    """Pack cross-attention (queries, layers, heads, tokens) and self-attention (queries, layers, heads, queries)."""
    cross, self_attention = (
        torch.stack([attention.weights(kind, layer, queries=queries) for layer in range(len(attention.layers[kind]))])
        for kind in ("decoder_cross", "decoder_self")
    )
    return pack(block, cross.movedim(2, 0)), pack(block, self_attention.movedim(2, 0))


def pack_points(block: BinaryBlock, attention: RecordedAttention, queries: Sequence[int]) -> PackedPoints | None:
    """Pack the sampling points of all feature levels; None if the cross-attention is dense."""
    layers = [layer for layer in attention.layers["decoder_cross"] if isinstance(layer, DeformableAttentionInputs)]
    if not layers:
        return None
    height, width = attention.grid.original
    size = torch.tensor([width, height])
    sampled = [layer.sampling_points(queries=queries) for layer in layers]
    points = torch.stack([one.points.transpose(0, 1) for one in sampled], dim=1)
    weights = torch.stack([one.weights.transpose(0, 1) for one in sampled], dim=1)
    references = torch.stack([one.reference_points[:, 0] for one in sampled], dim=1)  # equal on all levels
    boxes = [one.reference_boxes for one in sampled if one.reference_boxes is not None]
    return PackedPoints(
        block.add(_to_units(points / size)),
        block.add((weights * 255).round().to(torch.uint8).numpy()),
        block.add(_to_units(references / size)),
        block.add(_to_units((torch.stack(boxes, dim=1).unflatten(-1, (2, 2)) / size).flatten(-2))) if boxes else None,
        sampled[0].num_points,
    )


def _to_units(relative: Float[Tensor, "*N"]) -> np.ndarray:
    limits = torch.iinfo(torch.int16)
    return (relative * POINT_UNITS).round().clamp(limits.min, limits.max).to(torch.int16).numpy()


def pack_encoder(block: BinaryBlock, attention: RecordedAttention) -> EncoderMaps | None:
    """Pack the encoder's self-attention at the highest resolution that fits; None if there is no encoder."""
    layers = attention.layers["encoder"]
    if not layers:
        return None
    cells = attention.grid.cells
    last = _min_pooling(cells, 1, _LAST_LAYER_BYTES)
    others = _min_pooling(cells, max(1, len(layers) - 1), _OTHER_LAYERS_BYTES)
    per_head = _min_pooling(cells, len(layers) * layers[0].module.num_heads, _HEADS_BYTES)
    means, heads = [], []
    for index, inputs in enumerate(layers):
        pools = last if index == len(layers) - 1 else others
        mean, of_heads = _pooled_weights(inputs, cells, pools, per_head)
        means.append(pack(block, mean, *pools))
        heads.append(of_heads)
    return EncoderMaps(tuple(means), pack(block, torch.stack(heads), *per_head))


def _min_pooling(cells: tuple[int, int], count: int, max_bytes: int) -> tuple[int, int]:
    """Return the smallest pooling (of rows, of columns) at which `count` maps of all tokens fit into `max_bytes`."""
    for column_pool in range(1, max(cells) + 1):
        for row_pool in range(1, column_pool + 1):
            if count * _num_blocks(cells, row_pool) * _num_blocks(cells, column_pool) <= max_bytes:
                return row_pool, column_pool
    return max(cells), max(cells)


def _num_blocks(cells: tuple[int, int], pool: int) -> int:
    return -(-cells[0] // pool) * -(-cells[1] // pool)


def _pooled_weights(
    inputs: LayerInputs,
    cells: tuple[int, int],
    mean_pools: tuple[int, int],
    head_pools: tuple[int, int],
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "M R2 C2"]]:
    """Compute one layer's pooled maps, mean of the heads and per head, in chunks that fit into memory."""
    num_tokens = cells[0] * cells[1]
    step = max(1, _MAX_VALUES_IN_MEMORY // (num_tokens * inputs.module.num_heads))
    means, heads = [], []
    for first in range(0, num_tokens, step):
        weights = inputs.weights(None, range(first, min(first + step, num_tokens)))
        means.append(_pool(weights.mean(0), cells, mean_pools[1]))
        heads.append(_pool(weights, cells, head_pools[1]))
    return _pool_rows(torch.cat(means), cells, mean_pools[0]), _pool_rows(torch.cat(heads, 1), cells, head_pools[0])


def _pool(maps: Float[Tensor, "*rows S"], cells: tuple[int, int], pool: int) -> Float[Tensor, "*rows C"]:
    """Average squares of cells; incomplete squares at the edges are averaged over their cells."""
    images = maps.reshape(-1, 1, *cells)
    pooled = F.avg_pool2d(images, pool, ceil_mode=True, count_include_pad=False)
    return pooled.reshape(*maps.shape[:-1], -1)


def _pool_rows(maps: Float[Tensor, "*heads S C"], cells: tuple[int, int], pool: int) -> Float[Tensor, "*heads R C"]:
    return _pool(maps.transpose(-1, -2), cells, pool).transpose(-1, -2)
