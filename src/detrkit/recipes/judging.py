"""How a run is judged: boxes by COCO's numbers, masks by the same, segments by panoptic quality; whatever the data has."""

from collections.abc import Iterable

import torch

from detrkit.checkpoints.file import Thresholds
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.coco import BoxScores, counted_detections, evaluate_boxes, evaluate_masks
from detrkit.evaluation.collect import collect
from detrkit.evaluation.columns import Case, Found, Truth
from detrkit.evaluation.scores import Scores
from detrkit.evaluation.segments import SegmentJudge, drawer_of, masks_of_all
from detrkit.evaluation.thresholds import best_thresholds
from detrkit.models.detr import DETR
from detrkit.recipes.data import RunData
from detrkit.structures import Batch
from detrkit.training.processes import from_first, gather


class Judge:
    """Scores models on a run's test photos, which its processes share out.

    Attributes:
        found: what the last model found, in the first process.
        segment_threshold: from which score on its queries make the best segments; None without segments.
    """

    def __init__(
        self, data: RunData, num_queries: int, batches: Iterable[Batch], device: torch.device, exact_padding: bool
    ) -> None:
        self.data = data
        self.batches = batches
        self.device = device
        self.exact_padding = exact_padding
        self.max_detections = counted_detections(num_queries)
        self.truth = Truth.read(data.annotations, data.test_ids)
        self.true_masks = None if data.outlines is None else Truth.read(data.outlines, data.test_ids, masks=True)
        self.found: Found | None = None
        self.segment_threshold: float | None = None

    def score(self, model: DETR, is_first: bool) -> Scores:
        """Score a model; all processes call it, and all get the scores."""
        segments, masks = None, None
        if self.data.segments is not None:
            draw = drawer_of(model, self.exact_padding)
            segments = SegmentJudge(draw, self.data.categories, self.data.segments, self.exact_padding)
        elif self.true_masks is not None:
            masks = masks_of_all(drawer_of(model, self.exact_padding), self.exact_padding)
        mine = collect(
            model,
            self.batches,
            self.data.categories,
            self.device,
            self.exact_padding,
            masks=masks,
            watch=segments,
        )
        found = gather(mine)
        counts = gather([] if segments is None else [segments.counts])
        if not is_first:
            return from_first(None)
        self.found = Found.joined(found)
        panoptic = None
        if segments is not None:
            self.segment_threshold, panoptic = segments.best(counts)
        return from_first(
            Scores(
                boxes=evaluate_boxes(self.truth, self.found, max_detections=self.max_detections),
                masks=None if masks is None or self.true_masks is None else self._score_masks(self.true_masks),
                panoptic=panoptic,
            )
        )

    def _score_masks(self, truth: Truth) -> BoxScores:
        assert self.found is not None
        return evaluate_masks(truth, self.found, self.max_detections)

    @property
    def thresholds(self) -> Thresholds | None:
        """From which scores on the last model's objects are worth showing."""
        if self.found is None:
            return None
        boxes = best_thresholds(Case.of(self.truth, self.found)).to_store
        if self.segment_threshold is None:
            return boxes
        return (boxes or Thresholds(overall=0.5)).model_copy(update={"segments": self.segment_threshold})

    def look_closer(self, found: Found) -> Analysis:
        """Analyse detections of all the photos."""
        return analyse(self.truth, found, self.max_detections)
