"""Watches predictions while boxes are collected, and judges their masks: panoptic quality, or masks for mask AP."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit.data.categories import Categories
from detrkit.evaluation.panoptic import GroundTruthSegments, PanopticCounts, PanopticScores, count_photo, score_panoptic
from detrkit.inference.engines.torch import Engine, MaskEngine
from detrkit.models.detr import DETR
from detrkit.ops.masks import cut_masks
from detrkit.postprocess.masks import covered_by
from detrkit.postprocess.panoptic import MIN_SCORE, candidates_of, merge_segments, to_segments
from detrkit.structures import Batch, Predictions

# least scores of a query to take part that are tried; the published one is the last
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, MIN_SCORE)
Drawer = Callable[[Predictions, Batch, Int64[Tensor, "P"], Sequence[int]], Float[Tensor, "P _ _"]]


def drawer_of(model: DETR | Engine, padding_invariant: bool) -> Drawer:
    """What draws the masks of a model, or of an engine, which is not asked about padding."""
    if isinstance(model, MaskEngine):
        return model.compute_masks
    assert isinstance(model, DETR)
    head = model.mask_head
    assert head is not None, "only a model with a mask head draws masks"

    def draw(
        predictions: Predictions, batch: Batch, queries: Int64[Tensor, "P"], counts: Sequence[int]
    ) -> Float[Tensor, "P _ _"]:
        inputs = predictions.mask_inputs
        assert inputs is not None
        sizes = batch.sizes if padding_invariant and batch.is_padded else None
        drawn: Tensor = head(inputs, queries.to(inputs.decoded.device), counts, sizes)
        return drawn

    return draw


class PanopticEvaluator:
    """Counts what panoptic quality is made of, photo after photo, at several thresholds at once.

    Attributes:
        counts: by least score.
    """

    def __init__(
        self,
        draw: Drawer,
        categories: Categories,
        truth_of: Callable[[int], GroundTruthSegments],
        padding_invariant: bool,
        thresholds: Sequence[float] = THRESHOLDS,
    ) -> None:
        """Get ready.

        Args:
            draw: of `drawer_of`.
            categories: of the model and the data.
            truth_of: gives the true segments of a photo by its id.
            padding_invariant: as in `merge_batch`.
            thresholds: least scores of a query to take part, rising.
        """
        self.draw = draw
        self.categories = categories
        self.truth_of = truth_of
        self.padding_invariant = padding_invariant
        self.counts = dict.fromkeys(thresholds, PanopticCounts.none(len(categories)))

    def __call__(self, predictions: Predictions, batch: Batch) -> None:
        """Judge a batch."""
        categories = self.categories

        def draw(queries: Int64[Tensor, "P"], counts: Sequence[int]) -> Float[Tensor, "P _ _"]:
            return self.draw(predictions, batch, queries, counts)

        lowest = min(self.counts)
        for image_id, candidates in zip(
            batch.image_ids, candidates_of(predictions, draw, batch, lowest, self.padding_invariant), strict=True
        ):
            truth = self.truth_of(image_id)
            for least, counted in self.counts.items():
                merged = merge_segments(candidates.keep(candidates.scores > least), categories.things)
                found = to_segments(merged, categories.ids, categories.names, categories.things)
                counts = count_photo(truth, found, categories)
                self.counts[least] = PanopticCounts.joined([counted, counts], len(categories))

    def best(self, everyone: Sequence[dict[float, PanopticCounts]] | None = None) -> tuple[float, PanopticScores]:
        """The threshold of the best panoptic quality, and its scores.

        Args:
            everyone: counts of all processes; None when this one saw all photos.
        """
        together = everyone if everyone is not None else [self.counts]
        size = len(self.categories)
        scores = {
            least: score_panoptic(PanopticCounts.joined([one[least] for one in together], size), self.categories)
            for least in self.counts
        }
        # where nothing is found at any, the published one
        best = max(reversed(scores), key=lambda least: -1.0 if math.isnan(scores[least].pq) else scores[least].pq)
        return best, scores[best]


def masks_of_all(
    draw: Drawer, padding_invariant: bool
) -> Callable[[Predictions, Batch], Iterator[Bool[Tensor, "Q H W"]]]:
    """What `collect` makes masks with: of every query, one photo at a time."""

    def make(predictions: Predictions, batch: Batch) -> Iterator[Bool[Tensor, "Q H W"]]:
        num_queries, num_images = predictions.boxes.shape[1], len(batch.sizes)
        for photo, (size, original) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
            counts = [num_queries if index == photo else 0 for index in range(num_images)]
            logits = draw(predictions, batch, torch.arange(num_queries), counts)
            yield cut_masks(logits, covered_by(logits, batch, padding_invariant), size, original)

    return make
