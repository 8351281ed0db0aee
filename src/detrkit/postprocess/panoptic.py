"""Panoptic segmentation: merge the masks of the queries into one map of segments (paper, section 4.4).

Styles:

- "corrected" (default): argmax over the masks, with stuff of one class merged, at the size of the original image.
- "reference": exactly the published code (segmentation.py, PostProcessPanoptic) with its two defects: merged stuff is split
  again when a small segment is dropped, and masks include the padding when they are resized.
- "huggingface": as in `transformers`: probabilities are weighted by scores, and segments that keep too little of their mask
  are dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops.masks import Size, resize_mask_logits, resize_nearest
from detrkit.postprocess.masks import extent_of_masks
from detrkit.structures import Batch, PanopticSegment, PanopticSegments, Predictions

Style = Literal["corrected", "reference", "huggingface"]
MIN_SCORE = 0.85  # as published, and in section 4.4 of the paper
MAX_DROPPED_AREA = 4  # pixels: segments of at most this area are dropped, as published
VOID = -1  # id of pixels without a segment, in the maps of this module


@dataclass(frozen=True)
class KeptQueries:
    """Queries of one image that take part in the segmentation.

    Attributes:
        logits: mask logits over the padded image.
        labels: best class of each query, 0 .. K-1.
        scores: of the labels.
        padded: size that the logits cover.
        processed: size of the processed image.
        original: size of the original image.
    """

    logits: Float[Tensor, "P _ _"]
    labels: Int64[Tensor, "P"]
    scores: Float[Tensor, "P"]
    padded: Size
    processed: Size
    original: Size

    def keep(self, index: Tensor) -> "KeptQueries":
        """Select some of the queries."""
        return replace(self, logits=self.logits[index], labels=self.labels[index], scores=self.scores[index])


@dataclass(frozen=True)
class SegmentMap:
    """Map of segments of one image.

    Attributes:
        ids: segment of every pixel, 0 .. S-1, or `VOID`.
        labels: of the segments.
        scores: of the segments; the highest of the merged queries.
        areas: in pixels.
    """

    ids: Int64[Tensor, "H W"]
    labels: tuple[int, ...]
    scores: tuple[float, ...]
    areas: tuple[int, ...]


def confident_queries(
    probabilities: Float[Tensor, "Q K"], no_object: Float[Tensor, "Q"] | None, threshold: float = MIN_SCORE
) -> Bool[Tensor, "Q"]:
    """Return which queries have a score above the threshold and are not "no object".

    Args:
        probabilities: of every class.
        no_object: probability of "no object"; None with sigmoid scores.
        threshold: which the score of the best class has to exceed.
    """
    scores = probabilities.max(-1).values
    is_confident = scores > threshold
    return is_confident if no_object is None else is_confident & (scores >= no_object)


def merge_segments(queries: KeptQueries, is_thing: Sequence[bool], style: Style = "corrected") -> SegmentMap:
    """Assign every pixel to one of the queries, and merge queries of one stuff class.

    Args:
        queries: of one image, see `keep_queries`.
        is_thing: whether each label is a thing; False for stuff.
        style: see the module.
    """
    if not len(queries.labels):
        empty = torch.full(queries.original, VOID, device=queries.logits.device)
        return SegmentMap(empty, (), (), ())
    return {"corrected": _corrected, "reference": _reference, "huggingface": _huggingface}[style](queries, is_thing)


def keep_queries(
    predictions: Predictions,
    batch: Batch,
    threshold: float = MIN_SCORE,
    padding_invariant: bool = False,
) -> list[KeptQueries]:
    """Select the confident queries of every image of a batch, and compute their masks.

    Args:
        predictions: of the batch.
        batch: whose sizes are used.
        threshold: score that a query has to exceed.
        padding_invariant: as of `attach_masks`; only for style "corrected".
    """
    probabilities = predictions.probabilities.cpu()
    no_object = predictions.after_layer(-1).layer_no_object[0].cpu() if predictions.class_scores == "softmax" else None
    kept = [
        (one, confident_queries(one, None if no_object is None else no_object[image], threshold))
        for image, one in enumerate(probabilities)
    ]
    counts = [int(keep.sum()) for _, keep in kept]
    masks = predictions.masks_of([keep.nonzero()[:, 0] for _, keep in kept], batch.sizes)
    mask_extent = extent_of_masks(masks, batch, padding_invariant)
    per_image = []
    for image, (logits, (one, keep)) in enumerate(zip(masks.split(counts), kept, strict=True)):
        scores, labels = (best.to(masks.device) for best in one[keep].max(-1))
        sizes = batch.sizes[image], batch.original_sizes[image]
        per_image.append(KeptQueries(logits, labels, scores, mask_extent, *sizes))
    return per_image


def to_segments(
    merged: SegmentMap, category_ids: Sequence[int], class_names: Sequence[str], is_thing: Sequence[bool]
) -> PanopticSegments:
    """Convert a map of segments into `PanopticSegments`, with ids from 1."""
    segments = tuple(
        PanopticSegment(number, label, category_ids[label], is_thing[label], score, area, class_names[label])
        for number, (label, score, area) in enumerate(zip(merged.labels, merged.scores, merged.areas, strict=True), 1)
    )
    return PanopticSegments((merged.ids + 1).to("cpu", torch.int32), segments)


def _corrected(queries: KeptQueries, is_thing: Sequence[bool]) -> SegmentMap:
    logits = resize_mask_logits(queries.logits, queries.padded, queries.processed, queries.original)
    merged_into = torch.tensor(_merge_stuff(queries.labels, is_thing), device=logits.device)
    segments = merged_into[logits.argmax(0)]
    while True:
        areas = segments.flatten().bincount(minlength=len(logits))
        dropped = (areas > 0) & (areas <= MAX_DROPPED_AREA)
        if not dropped.any():
            break
        # only their pixels are reassigned, to the most likely of the remaining segments
        holes = dropped[segments]
        remaining = logits[:, holes].masked_fill((areas <= MAX_DROPPED_AREA)[merged_into][:, None], float("-inf"))
        if remaining.isneginf().all():
            return SegmentMap(torch.full_like(segments, VOID), (), (), ())
        segments[holes] = merged_into[remaining.argmax(0)]
    return _numbered(segments, queries, merged_into)


def _merge_stuff(labels: Int64[Tensor, "P"], is_thing: Sequence[bool]) -> list[int]:
    """Return the query that each query is merged into: itself, or the first query of the same stuff class."""
    first: dict[int, int] = {}
    return [index if is_thing[label] else first.setdefault(label, index) for index, label in enumerate(labels.tolist())]


def _numbered(segments: Int64[Tensor, "H W"], queries: KeptQueries, merged_into: Int64[Tensor, "P"]) -> SegmentMap:
    """Number the remaining segments from 0."""
    areas = segments.flatten().bincount(minlength=len(merged_into))
    remaining = areas.nonzero()[:, 0]
    numbers = torch.full_like(areas, VOID)
    numbers[remaining] = torch.arange(len(remaining), device=remaining.device)
    best = torch.zeros_like(queries.scores).scatter_reduce(0, merged_into, queries.scores, "amax")
    return SegmentMap(
        numbers[segments],
        tuple(queries.labels[remaining].tolist()),
        tuple(best[remaining].tolist()),
        tuple(areas[remaining].tolist()),
    )


def _reference(queries: KeptQueries, is_thing: Sequence[bool]) -> SegmentMap:
    """Segment as the published code: resize with the padding, merge stuff once, then drop small segments."""
    logits = F.interpolate(queries.logits[:, None], queries.processed, mode="bilinear", align_corners=False)[:, 0]
    # the published code resizes the map of segments; resizing the logits gives the same result
    logits = resize_nearest(logits, queries.original)
    left = queries
    merged_into = torch.tensor(_merge_stuff(left.labels, is_thing), device=logits.device)
    while len(logits):
        ids = merged_into[logits.softmax(0).argmax(0)]
        areas = ids.flatten().bincount(minlength=len(logits))
        is_small = areas <= MAX_DROPPED_AREA
        if not is_small.any():
            return SegmentMap(ids, tuple(left.labels.tolist()), tuple(left.scores.tolist()), tuple(areas.tolist()))
        left, logits = left.keep(~is_small), logits[~is_small]
        merged_into = torch.arange(len(logits), device=logits.device)  # merged stuff is split again
    # the published map would contain the id of a segment that is not in its list
    return SegmentMap(torch.full(left.original, VOID, device=logits.device), (), (), ())


def _huggingface(
    queries: KeptQueries,
    is_thing: Sequence[bool],
    mask_threshold: float = 0.5,
    min_share: float = 0.8,
) -> SegmentMap:
    """Segment as `post_process_panoptic_segmentation` of `transformers`, with stuff as `label_ids_to_fuse`.

    A segment is kept if it has more than `min_share` of the pixels of its mask. The numbering is the same: after stuff was
    fused, a number may be used twice, and both are one segment with the label of the first.
    """
    probabilities = queries.logits.float().sigmoid()[None]
    probabilities = F.interpolate(probabilities, queries.original, mode="bilinear", align_corners=False)[0]
    probabilities *= queries.scores.view(-1, 1, 1)
    best_query = probabilities.argmax(0)
    mask_areas = (probabilities >= mask_threshold).sum((1, 2))
    areas_won = best_query.flatten().bincount(minlength=len(probabilities))
    is_kept = ((areas_won > 0) & (mask_areas > 0) & (areas_won / mask_areas > min_share)).tolist()
    ids = torch.full(queries.original, VOID, device=best_query.device)
    labels: dict[int, int] = {}
    scores: dict[int, float] = {}
    fused: dict[int, int] = {}
    number = VOID
    for query, (label, score) in enumerate(zip(queries.labels.tolist(), queries.scores.tolist(), strict=True)):
        if not is_kept[query]:
            continue
        number = fused.get(label, number + 1)
        ids[best_query == query] = number
        labels.setdefault(number, label)
        scores.setdefault(number, score)
        if not is_thing[label]:
            fused[label] = number
    areas = (ids + 1).flatten().bincount(minlength=len(labels) + 1)[1:]
    return SegmentMap(ids, tuple(labels.values()), tuple(scores.values()), tuple(areas.tolist()))
