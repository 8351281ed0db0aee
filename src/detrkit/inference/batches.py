"""Predict one collated batch: detections, their masks, and panoptic segments.

Input: an engine and a `Batch` of preprocessed images. Output: one `Detections` or `PanopticSegments` per image, in pixels
of the original images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from detrkit.checkpoints.native import Preprocessing
from detrkit.data.categories import Categories
from detrkit.inference.engines.torch import Engine
from detrkit.postprocess.boxes import to_detections
from detrkit.postprocess.masks import attach_masks
from detrkit.postprocess.panoptic import Style, keep_queries, merge_segments, to_segments
from detrkit.structures import Batch, Detections, PanopticSegments, Predictions

MinScores = float | tuple[float, ...]  # one for all labels, or one per label
_Result = TypeVar("_Result", Detections, PanopticSegments)


@dataclass(frozen=True)
class BatchPostprocessor:
    """Runs an engine on batches and turns its predictions into detections and segments.

    Attributes:
        engine: runs the model.
        categories: names and ids of its classes.
        preprocessing: how its inputs were prepared.
    """

    engine: Engine
    categories: Categories
    preprocessing: Preprocessing

    @property
    def is_padding_invariant(self) -> bool:
        """Return whether results of an image are independent of the padding that a batch adds to it."""
        return self.preprocessing.padding_invariant and self.engine.config.supports_padding_invariance

    def detect(self, batch: Batch, min_scores: MinScores, min_segment_score: float | None) -> list[Detections]:
        """Predict the objects of every image.

        Args:
            batch: preprocessed images.
            min_scores: minimum score of a detection, 0 to 1.
            min_segment_score: minimum score of a query in the segments that panoptic models add; None leaves them out.
        """
        run = partial(self._detect, min_scores=min_scores, min_segment_score=min_segment_score)
        return self._run_per_size(batch, run)

    def segment(self, batch: Batch, min_score: float, style: Style) -> list[PanopticSegments]:
        """Predict the panoptic segments of every image.

        Args:
            batch: preprocessed images.
            min_score: minimum score of a query, 0 to 1.
            style: see `postprocess.panoptic`.
        """
        return self._run_per_size(
            batch, lambda part: self._merge_segments(self.engine.predict(part), part, min_score, style)
        )

    def _run_per_size(self, batch: Batch, run: Callable[[Batch], list[_Result]]) -> list[_Result]:
        """Run a batch as it is or, if padding would change the results, one unpadded batch per image size."""
        if self.is_padding_invariant or not batch.is_padded:
            return run(batch)
        parts = [iter(run(part)) for part in batch.unpadded()]
        part_of_size = dict(zip(dict.fromkeys(batch.sizes), parts, strict=True))
        return [next(part_of_size[size]) for size in batch.sizes]

    def _detect(self, batch: Batch, min_scores: MinScores, min_segment_score: float | None) -> list[Detections]:
        predictions = self.engine.predict(batch)
        categories = self.categories
        detections = to_detections(predictions, batch.original_sizes, categories.ids, categories.names, min_scores)
        if not self.engine.config.mask_head:
            return detections
        detections = attach_masks(detections, predictions, batch, self.preprocessing.padding_invariant)
        if min_segment_score is None:
            return detections
        segments = self._merge_segments(predictions, batch, min_segment_score, "corrected")
        return [replace(one, segments=own) for one, own in zip(detections, segments, strict=True)]

    def _merge_segments(
        self, predictions: Predictions, batch: Batch, min_score: float, style: Style
    ) -> list[PanopticSegments]:
        categories = self.categories
        is_exact = self.preprocessing.padding_invariant and style == "corrected"
        return [
            to_segments(
                merge_segments(candidates, categories.things, style),
                categories.ids,
                categories.names,
                categories.things,
            )
            for candidates in keep_queries(predictions, batch, min_score, is_exact)
        ]
