"""Masks of the queries of one image, computed on demand and packed for the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from detrkit.data.categories import Categories
from detrkit.explain.packing import ArrayLocation, BinaryBlock
from detrkit.models.attention.recording import RecordedAttention
from detrkit.ops.masks import Size, covered_size, resize_nearest
from detrkit.postprocess.panoptic import keep_queries, merge_segments, to_segments
from detrkit.structures import Batch, MaskSource, PanopticSegments

MAX_MASK_SIDE = 134  # values; half of DETR's mask resolution at 800 x 1066 px
_MAX_SEGMENTS_SIDE = 267
_MAX_SEGMENTS = 255  # one byte per pixel, 0 for "no segment"


@dataclass(frozen=True)
class Masks:
    """Masks of one image, computed when requested.

    Attributes:
        source: computes masks of the image's queries.
        padded: (height, width) in pixels that masks are of, padding included.
        resized: (height, width) of the image as the model sees it, without padding.
        padding_invariant: as in `postprocess.masks.attach_masks`.
    """

    source: MaskSource
    padded: Size
    resized: Size
    padding_invariant: bool

    @torch.no_grad()
    def logits(self, queries: Int64[Tensor, "P"], counts: Sequence[int]) -> Float[Tensor, "P _ _"]:
        """Compute the mask logits of some queries, padding included."""
        return self.source.masks_of(queries, counts).float().cpu()

    @cached_property
    def cell_size(self) -> tuple[float, float]:
        """Height and width of a mask cell in pixels of the resized image."""
        cells = self.source.mask_size
        covers = covered_size(torch.empty(0, *cells), self.padded) if self.padding_invariant else self.padded
        return covers[0] / cells[0], covers[1] / cells[1]

    @property
    def pool(self) -> int:
        """Side of the square of cells that one value on the page is the mean of."""
        return -(-max(self._cells) // MAX_MASK_SIDE)

    @property
    def num_values(self) -> int:
        """Number of values of one mask on the page."""
        rows, columns = (-(-count // self.pool) for count in self._cells)
        return rows * columns

    def probabilities(self, queries: Sequence[int]) -> Float[Tensor, "P h w"]:
        """Compute the masks of some queries, cropped to the cells that overlap the image."""
        rows, columns = self._cells
        logits = self.logits(torch.tensor(queries, dtype=torch.int64), [len(queries)])
        return logits[:, :rows, :columns].sigmoid()

    @property
    def _cells(self) -> tuple[int, int]:
        """Rows and columns of cells that overlap the image."""
        rows, columns = (
            min(count, int(-(-length // side)))
            for count, length, side in zip(self.source.mask_size, self.resized, self.cell_size, strict=True)
        )
        return rows, columns


@dataclass(frozen=True)
class PackedMasks:
    """Masks in a block; probability = byte / 255.

    Attributes:
        bytes: location of the values (queries, rows, columns).
        cell: height and width of the area of one value, in pixels of the resized image.
    """

    bytes: ArrayLocation
    cell: tuple[float, float]


def masks_for(attention: RecordedAttention, padding_invariant: bool) -> Masks | None:
    """Return the masks of a recorded forward pass; None if the model has no mask head."""
    source = attention.predictions.mask_source
    if source is None:
        return None
    grid = attention.grid
    padded = grid.resized if padding_invariant else grid.padded
    return Masks(source, padded, grid.resized, padding_invariant)


def merge_masks(
    masks: Masks, attention: RecordedAttention, batch: Batch, categories: Categories, threshold: float
) -> PanopticSegments:
    """Merge the masks into a panoptic segmentation, as `Detector.segments` does.

    Args:
        masks: of the image.
        attention: of the image.
        batch: of the image alone.
        categories: of the model.
        threshold: minimum score of a query.
    """
    candidates = keep_queries(attention.predictions, batch, threshold, masks.padding_invariant)[0]
    merged = merge_segments(candidates, categories.things)
    return to_segments(merged, categories.ids, categories.names, categories.things)


def pack_masks(block: BinaryBlock, masks: Masks, queries: Sequence[int]) -> PackedMasks:
    """Add the masks of some queries to a block, 8 bits per value, pooled to at most `MAX_MASK_SIDE`."""
    probabilities, pool = masks.probabilities(queries), masks.pool
    pooled = F.avg_pool2d(probabilities[:, None], pool, ceil_mode=True, count_include_pad=False)[:, 0]
    levels = (pooled * 255).round().to(torch.uint8)
    return PackedMasks(block.add(levels.numpy()), (masks.cell_size[0] * pool, masks.cell_size[1] * pool))


def pack_segments(block: BinaryBlock, segments: PanopticSegments) -> ArrayLocation:
    """Add a segment map to a block, one byte per pixel at a reduced size; 0 is "no segment"."""
    longest = max(segments.ids.shape)
    scale = min(1.0, _MAX_SEGMENTS_SIDE / longest)
    height, width = (max(1, round(length * scale)) for length in segments.ids.shape)
    ids = resize_nearest(segments.ids, (height, width))
    return block.add(ids.where(ids <= _MAX_SEGMENTS, 0).to(torch.uint8).numpy())
