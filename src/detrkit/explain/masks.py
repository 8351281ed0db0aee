"""Masks on demand: where a query says its object lies, and how the photo is shared out, small enough for a page.

Input: what the mask head draws from, kept by `observe`. Output: probabilities of some queries; a map of segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from detrkit.data.categories import Categories
from detrkit.explain.maps import BinaryBlock, BlockLocation
from detrkit.models.attention.recording import RecordedAttention
from detrkit.models.detr import DETR
from detrkit.models.heads.panoptic import PanopticHead
from detrkit.ops.masks import Size, covered, nearest
from detrkit.postprocess.panoptic import candidates_of, merge_segments, to_segments
from detrkit.structures import Batch, MaskInputs, PanopticSegments

LONGEST_MASK = 134  # values: half of what DETR draws at 800 x 1066 px
_LONGEST_SEGMENTS = 267
_MAX_SEGMENTS = 255  # a byte a pixel, 0 for none


@dataclass(frozen=True)
class Masks:
    """Draws masks of one photo when somebody asks.

    Attributes:
        head: of the model.
        inputs: of the photo.
        resized: size of the photo as the model sees it, without padding.
        padding_invariant: as in `postprocess.masks.with_masks`.
    """

    head: PanopticHead
    inputs: MaskInputs
    resized: Size
    padding_invariant: bool

    @torch.no_grad()
    def logits(self, queries: Int64[Tensor, "P"], counts: Sequence[int]) -> Float[Tensor, "P _ _"]:
        """Draw the masks of some queries, padding included."""
        drawn = cast(Tensor, self.head(self.inputs, queries.to(self.inputs.decoded.device), counts))
        return drawn.float().cpu()

    @cached_property
    def cell(self) -> tuple[float, float]:
        """Height and width of a mask's cell, in pixels of the resized photo."""
        cells, padded = self.inputs.mask_size, self.inputs.padded
        covers = covered(torch.empty(0, *cells), padded) if self.padding_invariant else padded
        return covers[0] / cells[0], covers[1] / cells[1]

    @property
    def pool(self) -> int:
        """Side of the square of cells that one value in a page is the mean of."""
        return -(-max(self._cells) // LONGEST_MASK)

    @property
    def num_values(self) -> int:
        """Values of a mask in a page."""
        rows, columns = (-(-count // self.pool) for count in self._cells)
        return rows * columns

    def probabilities(self, queries: Sequence[int]) -> Float[Tensor, "P h w"]:
        """Draw the masks of some queries, cut to the cells that the photo covers."""
        rows, columns = self._cells
        logits = self.logits(torch.tensor(queries, dtype=torch.int64), [len(queries)])
        return logits[:, :rows, :columns].sigmoid()

    @property
    def _cells(self) -> tuple[int, int]:
        """Cells that the photo covers, in part at least."""
        rows, columns = (
            min(count, int(-(-length // side)))
            for count, length, side in zip(self.inputs.mask_size, self.resized, self.cell, strict=True)
        )
        return rows, columns


@dataclass(frozen=True)
class PackedMasks:
    """Masks in a block: probability = byte / 255.

    Attributes:
        bytes: where the values lie, (queries, rows, columns).
        cell: height and width of the square that a value stands for, in pixels of the resized photo.
    """

    bytes: BlockLocation
    cell: tuple[float, float]


def masks_of(model: DETR, attention: RecordedAttention, padding_invariant: bool) -> Masks | None:
    """Keep what it takes to draw masks; None where the model has no mask head."""
    inputs = attention.predictions.mask_inputs
    if model.mask_head is None or inputs is None:
        return None
    return Masks(model.mask_head, inputs, attention.grid.resized, padding_invariant)


def find_segments(
    masks: Masks, attention: RecordedAttention, batch: Batch, categories: Categories, threshold: float
) -> PanopticSegments:
    """Share the photo out among its segments, as `Detector.segments` does.

    Args:
        masks: of the photo.
        attention: of the photo.
        batch: of the photo alone.
        categories: of the model.
        threshold: least score of a query to take part.
    """
    chosen = candidates_of(attention.predictions, masks.logits, batch, threshold, masks.padding_invariant)[0]
    merged = merge_segments(chosen, categories.things)
    return to_segments(merged, categories.ids, categories.names, categories.things)


def pack_masks(block: BinaryBlock, masks: Masks, queries: Sequence[int]) -> PackedMasks:
    """Add the masks of some queries to a block, 8 bits a value, pooled where they are too fine for a page."""
    probabilities, pool = masks.probabilities(queries), masks.pool
    pooled = F.avg_pool2d(probabilities[:, None], pool, ceil_mode=True, count_include_pad=False)[:, 0]
    levels = (pooled * 255).round().to(torch.uint8)
    return PackedMasks(block.add(levels.numpy()), (masks.cell[0] * pool, masks.cell[1] * pool))


def pack_segments(block: BinaryBlock, segments: PanopticSegments) -> BlockLocation:
    """Add a map of segments, a byte a pixel and no finer than a page needs; 0 is none."""
    longest = max(segments.ids.shape)
    shrink = min(1.0, _LONGEST_SEGMENTS / longest)
    height, width = (max(1, round(length * shrink)) for length in segments.ids.shape)
    ids = nearest(segments.ids, (height, width))
    return block.add(ids.where(ids <= _MAX_SEGMENTS, 0).to(torch.uint8).numpy())
