"""Classes and masks of the queries of one photo -> one map of segments, every pixel to one of them (paper, section 4.4).

Three styles. "corrected", the default, is the paper's argmax with stuff merged, at the photo's own size. "reference" is
the published code (segmentation.py, PostProcessPanoptic) bit for bit, with its two defects: parts of stuff that were
merged fall apart when a small segment is dropped, and padding is squeezed into the photo. "huggingface" is the rule of
`transformers`: probabilities weighed by scores, segments that lost most of their mask left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops.masks import Size, enlarge, nearest
from detrkit.postprocess.masks import covered_by
from detrkit.structures import Batch, PanopticSegment, PanopticSegments, Predictions

Style = Literal["corrected", "reference", "huggingface"]
MIN_SCORE = 0.85  # of the published code; the paper's section 4.4 has the same
SMALLEST = 4  # pixels: what is not larger is dropped, as published
VOID = -1  # pixels of no segment, in these maps


@dataclass(frozen=True)
class KeptQueries:
    """The kept queries of one photo.

    Attributes:
        logits: of masks, over the padded image.
        labels: of classes, 0 .. K-1.
        scores: of those.
        padded: size of the padded image.
        processed: size of the image within it.
        original: size of the photo.
    """

    logits: Float[Tensor, "P _ _"]
    labels: Int64[Tensor, "P"]
    scores: Float[Tensor, "P"]
    padded: Size
    processed: Size
    original: Size

    def keep(self, chosen: Tensor) -> "KeptQueries":
        """Choose some of them."""
        return replace(self, logits=self.logits[chosen], labels=self.labels[chosen], scores=self.scores[chosen])


@dataclass(frozen=True)
class Merged:
    """A map of segments.

    Attributes:
        ids: segment of every pixel, 0 .. S-1; VOID for none.
        labels: of the segments.
        scores: of the segments; of the best query where several were merged.
        areas: in pixels.
    """

    ids: Int64[Tensor, "H W"]
    labels: tuple[int, ...]
    scores: tuple[float, ...]
    areas: tuple[int, ...]


def kept_queries(
    probabilities: Float[Tensor, "Q K"], no_object: Float[Tensor, "Q"] | None, threshold: float = MIN_SCORE
) -> Bool[Tensor, "Q"]:
    """Tell which queries name an object and are sure of it: no-object is not their likeliest class.

    Args:
        probabilities: of every class.
        no_object: its probability; None where scores are sigmoids, which have none.
        threshold: that the best class has to exceed.
    """
    scores = probabilities.max(-1).values
    sure = scores > threshold
    return sure if no_object is None else sure & (scores >= no_object)


def merge_segments(candidates: KeptQueries, is_thing: Sequence[bool], style: Style = "corrected") -> Merged:
    """Give every pixel to one of the kept queries.

    Args:
        candidates: kept by `kept_queries`.
        is_thing: of each label; queries with the same label of stuff are one segment.
        style: see the module.
    """
    if not len(candidates.labels):
        nothing = torch.full(candidates.original, VOID, device=candidates.logits.device)
        return Merged(nothing, (), (), ())
    return {"corrected": _corrected, "reference": _reference, "huggingface": _huggingface}[style](candidates, is_thing)


def candidates_of(
    predictions: Predictions,
    batch: Batch,
    threshold: float = MIN_SCORE,
    padding_invariant: bool = False,
) -> list[KeptQueries]:
    """Keep the queries of every photo of a batch that take part; only their masks are drawn.

    Args:
        predictions: of the batch.
        batch: tells the sizes.
        threshold: least score of a query to be kept.
        padding_invariant: as in `with_masks`; not for the styles that follow others.
    """
    probabilities = predictions.probabilities.cpu()
    no_object = predictions.after_layer(-1).layer_no_object[0].cpu() if predictions.class_scores == "softmax" else None
    kept = [
        (one, kept_queries(one, None if no_object is None else no_object[photo], threshold))
        for photo, one in enumerate(probabilities)
    ]
    counts = [int(keep.sum()) for _, keep in kept]
    masks = predictions.masks_of([keep.nonzero()[:, 0] for _, keep in kept], batch.sizes)
    covers = covered_by(masks, batch, padding_invariant)
    found = []
    for image, (of_photo, (one, keep)) in enumerate(zip(masks.split(counts), kept, strict=True)):
        scores, labels = (best.to(masks.device) for best in one[keep].max(-1))
        sizes = batch.sizes[image], batch.original_sizes[image]
        found.append(KeptQueries(of_photo, labels, scores, covers, *sizes))
    return found


def to_segments(
    merged: Merged, category_ids: Sequence[int], class_names: Sequence[str], is_thing: Sequence[bool]
) -> PanopticSegments:
    """Name the segments of a photo, and number them from 1."""
    segments = tuple(
        PanopticSegment(number, label, category_ids[label], is_thing[label], score, area, class_names[label])
        for number, (label, score, area) in enumerate(zip(merged.labels, merged.scores, merged.areas, strict=True), 1)
    )
    return PanopticSegments((merged.ids + 1).to("cpu", torch.int32), segments)


def _corrected(candidates: KeptQueries, is_thing: Sequence[bool]) -> Merged:
    logits = enlarge(candidates.logits, candidates.padded, candidates.processed, candidates.original)
    first_of_kind = torch.tensor(_first_of_kind(candidates.labels, is_thing), device=logits.device)
    segments = first_of_kind[logits.argmax(0)]
    while True:
        areas = segments.flatten().bincount(minlength=len(logits))
        dropped = (areas > 0) & (areas <= SMALLEST)
        if not dropped.any():
            break
        # their pixels, and no others, go to whatever is the likeliest of what is left
        holes = dropped[segments]
        left = logits[:, holes].masked_fill((areas <= SMALLEST)[first_of_kind][:, None], float("-inf"))
        if left.isneginf().all():
            return Merged(torch.full_like(segments, VOID), (), (), ())
        segments[holes] = first_of_kind[left.argmax(0)]
    return _numbered(segments, candidates, first_of_kind)


def _first_of_kind(labels: Int64[Tensor, "P"], is_thing: Sequence[bool]) -> list[int]:
    """The query that each is merged into: itself, or the first with the same label of stuff."""
    first: dict[int, int] = {}
    return [index if is_thing[label] else first.setdefault(label, index) for index, label in enumerate(labels.tolist())]


def _numbered(segments: Int64[Tensor, "H W"], candidates: KeptQueries, first_of_kind: Int64[Tensor, "P"]) -> Merged:
    """Number the segments that are left from 0."""
    areas = segments.flatten().bincount(minlength=len(first_of_kind))
    left = areas.nonzero()[:, 0]
    new = torch.full_like(areas, VOID)
    new[left] = torch.arange(len(left), device=left.device)
    best = torch.zeros_like(candidates.scores).scatter_reduce(0, first_of_kind, candidates.scores, "amax")
    return Merged(
        new[segments],
        tuple(candidates.labels[left].tolist()),
        tuple(best[left].tolist()),
        tuple(areas[left].tolist()),
    )


def _reference(candidates: KeptQueries, is_thing: Sequence[bool]) -> Merged:
    """Follow the published code: enlarged over padding and all, merged once, and after that only dropped."""
    logits = F.interpolate(candidates.logits[:, None], candidates.processed, mode="bilinear", align_corners=False)[:, 0]
    # it looks for the winners and then drops pixels; dropping them first is less work, and gives the same
    logits = nearest(logits, candidates.original)
    left = candidates
    first_of_kind = torch.tensor(_first_of_kind(left.labels, is_thing), device=logits.device)
    while len(logits):
        ids = first_of_kind[logits.softmax(0).argmax(0)]
        areas = ids.flatten().bincount(minlength=len(logits))
        is_small = areas <= SMALLEST
        if not is_small.any():
            return Merged(ids, tuple(left.labels.tolist()), tuple(left.scores.tolist()), tuple(areas.tolist()))
        left, logits = left.keep(~is_small), logits[~is_small]
        first_of_kind = torch.arange(len(logits), device=logits.device)  # what was merged is on its own again
    # the published picture then shows the number of a segment that its list does not have
    return Merged(torch.full(left.original, VOID, device=logits.device), (), (), ())


def _huggingface(
    candidates: KeptQueries,
    is_thing: Sequence[bool],
    mask_threshold: float = 0.5,
    min_share: float = 0.8,
) -> Merged:
    """Follow `transformers`, `post_process_panoptic_segmentation` with the stuff as `label_ids_to_fuse`.

    A segment stays if more than `min_share` of what its own mask claims is left to it. Its numbering is kept too: a
    number can be given twice after stuff was fused, and then the two are one segment here as well, under the first label.
    """
    probabilities = candidates.logits.float().sigmoid()[None]
    probabilities = F.interpolate(probabilities, candidates.original, mode="bilinear", align_corners=False)[0]
    probabilities *= candidates.scores.view(-1, 1, 1)
    winners = probabilities.argmax(0)
    claimed = (probabilities >= mask_threshold).sum((1, 2))
    won = winners.flatten().bincount(minlength=len(probabilities))
    stays = ((won > 0) & (claimed > 0) & (won / claimed > min_share)).tolist()
    ids = torch.full(candidates.original, VOID, device=winners.device)
    labels: dict[int, int] = {}
    scores: dict[int, float] = {}
    fused: dict[int, int] = {}
    number = VOID
    for query, (label, score) in enumerate(zip(candidates.labels.tolist(), candidates.scores.tolist(), strict=True)):
        if not stays[query]:
            continue
        number = fused.get(label, number + 1)
        ids[winners == query] = number
        labels.setdefault(number, label)
        scores.setdefault(number, score)
        if not is_thing[label]:
            fused[label] = number
    areas = (ids + 1).flatten().bincount(minlength=len(labels) + 1)[1:]
    return Merged(ids, tuple(labels.values()), tuple(scores.values()), tuple(areas.tolist()))
