"""How a run is judged: boxes by COCO's numbers, masks by the same, segments by panoptic quality; whatever the data has."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from detrkit.checkpoints.native import Thresholds
from detrkit.data.records import Split
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.coco import (
    BoxScores,
    annotations_of_split,
    counted_detections,
    evaluate_boxes,
    evaluate_masks,
)
from detrkit.evaluation.inference_loop import MaskMaker, collect
from detrkit.evaluation.arrays import Case, Found, Truth
from detrkit.evaluation.scores import Scores
from detrkit.evaluation.segments import THRESHOLDS, SegmentJudge, drawer_of, masks_of_all
from detrkit.evaluation.thresholds import best_thresholds
from detrkit.inference.detector import Detector
from detrkit.inference.engines.torch import Runtime
from detrkit.models.detr import DETR
from detrkit.data.splits import RunData, true_segments_of
from detrkit.structures import Batch
from detrkit.distributed.collectives import from_first, gather


class Judge:
    """Scores models on a run's test photos, which its processes share out.

    Attributes:
        found: what the last model found, in the first process.
        segment_threshold: from which score on its queries make the best segments; None without segments.
    """

    def __init__(
        self, data: RunData, most_detections: int, batches: Iterable[Batch], device: torch.device, exact_padding: bool
    ) -> None:
        self.data = data
        self.batches = batches
        self.device = device
        self.exact_padding = exact_padding
        self.max_detections = counted_detections(most_detections)
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
        return with_segments(boxes, self.segment_threshold)

    def look_closer(self, found: Found) -> Analysis:
        """Analyse detections of all the photos."""
        return analyse(self.truth, found, self.max_detections)


@dataclass(frozen=True)
class MaskJudges:
    """What judges the masks of a model with a mask head, as far as the data can; nothing of other models.

    Attributes:
        masks: makes the masks that mask AP is measured by.
        segments: counts what panoptic quality is made of.
    """

    masks: MaskMaker | None = None
    segments: SegmentJudge | None = None

    @classmethod
    def of(cls, detector: Detector, model: DETR | Runtime, records: Split, *, learns_threshold: bool) -> "MaskJudges":
        """Choose them."""
        if not detector.runtime.config.panoptic or not records.records.have_outlines:
            return cls()
        exact_padding = detector.preprocessing.exact_padding
        draw = drawer_of(model, exact_padding)
        segments = None
        if records.records.columns.mask_files is not None:
            thresholds = THRESHOLDS if learns_threshold else (detector.least_segment_score("auto"),)
            truth_of = true_segments_of(records)
            segments = SegmentJudge(draw, detector.categories, truth_of, exact_padding, thresholds)
        return cls(masks_of_all(draw, exact_padding), segments)

    def scores(self, analysis: Analysis, records: Split, found: Found) -> tuple[Scores, float | None]:
        """All scores, and the least score of segments."""
        masks, panoptic, threshold = None, None, None
        if self.masks is not None:
            truth = Truth.read(annotations_of_split(records, masks=True), records.records.image_ids, masks=True)
            masks = evaluate_masks(truth, found, analysis.scores.max_detections)
        if self.segments is not None:
            threshold, panoptic = self.segments.best()
        return Scores(analysis.scores, masks, panoptic), threshold


def with_segments(boxes: Thresholds | None, segments: float | None) -> Thresholds | None:
    """Thresholds of boxes, and that of segments where there are any."""
    if segments is None:
        return boxes
    return (boxes or Thresholds(overall=0.5)).model_copy(update={"segments": segments})
