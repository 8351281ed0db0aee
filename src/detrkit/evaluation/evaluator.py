"""How a run is judged: boxes by COCO's numbers, masks by the same, segments by panoptic quality; whatever the data has."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from detrkit.checkpoints.native import Thresholds
from detrkit.data.dataset import Split
from detrkit.distributed.collectives import broadcast_from_first, gather
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.coco import (
    CocoMetrics,
    annotations_of_split,
    evaluate_boxes,
    evaluate_masks,
    max_detections_to_evaluate,
)
from detrkit.evaluation.inference_loop import MaskMaker, collect
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.panoptic import ground_truth_segments
from detrkit.evaluation.segments import THRESHOLDS, PanopticEvaluator, drawer_of, masks_of_all
from detrkit.evaluation.thresholds import best_thresholds
from detrkit.inference.detector import Detector
from detrkit.inference.engines.torch import Engine
from detrkit.models.detr import DETR
from detrkit.structures import Batch


class Evaluator:
    """Scores models on a run's test photos, which its processes share out.

    Attributes:
        found: what the last model found, in the first process.
        segment_threshold: from which score on its queries make the best segments; None without segments.
    """

    def __init__(
        self,
        split: Split,
        max_detections: int,
        batches: Iterable[Batch],
        device: torch.device,
        padding_invariant: bool,
        *,
        masks: bool = False,
    ) -> None:
        """Read the ground truth of a split.

        Args:
            split: images and ground truth.
            max_detections: of the model, per image.
            batches: of the images; this process's part of them.
            device: of the model.
            padding_invariant: run the model without the influence of padding.
            masks: evaluate masks, or panoptic segments if the split has them.
        """
        has_masks = masks and split.has_masks
        self.categories = split.categories
        self.batches = batches
        self.device = device
        self.padding_invariant = padding_invariant
        self.max_detections = max_detections_to_evaluate(max_detections)
        ids = split.records.image_ids
        self.truth = GroundTruth.read(annotations_of_split(split), ids)
        self.segments = ground_truth_segments(split) if has_masks and split.has_segments else None
        self.true_masks = None
        if has_masks and self.segments is None:
            self.true_masks = GroundTruth.read(annotations_of_split(split, masks=True), ids, masks=True)
        self.found: DetectionArrays | None = None
        self.segment_threshold: float | None = None

    def score(self, model: DETR, is_first: bool) -> EvalMetrics:
        """Score a model; all processes call it, and all get the scores."""
        segments, masks = None, None
        if self.segments is not None:
            draw = drawer_of(model, self.padding_invariant)
            segments = PanopticEvaluator(draw, self.categories, self.segments, self.padding_invariant)
        elif self.true_masks is not None:
            masks = masks_of_all(drawer_of(model, self.padding_invariant), self.padding_invariant)
        mine = collect(
            model,
            self.batches,
            self.categories,
            self.device,
            self.padding_invariant,
            masks=masks,
            watch=segments,
        )
        found = gather(mine)
        counts = gather([] if segments is None else [segments.counts])
        if not is_first:
            return broadcast_from_first(None)
        self.found = DetectionArrays.joined(found)
        panoptic = None
        if segments is not None:
            self.segment_threshold, panoptic = segments.best(counts)
        return broadcast_from_first(
            EvalMetrics(
                boxes=evaluate_boxes(self.truth, self.found, max_detections=self.max_detections),
                masks=None if masks is None or self.true_masks is None else self._score_masks(self.true_masks),
                panoptic=panoptic,
            )
        )

    def _score_masks(self, truth: GroundTruth) -> CocoMetrics:
        assert self.found is not None
        return evaluate_masks(truth, self.found, self.max_detections)

    @property
    def thresholds(self) -> Thresholds | None:
        """From which scores on the last model's objects are worth showing."""
        if self.found is None:
            return None
        boxes = best_thresholds(EvalInput.of(self.truth, self.found)).to_store
        return with_segments(boxes, self.segment_threshold)

    def look_closer(self, found: DetectionArrays) -> Analysis:
        """Analyse detections of all the photos."""
        return analyse(self.truth, found, self.max_detections)


@dataclass(frozen=True)
class MaskEvaluators:
    """What judges the masks of a model with a mask head, as far as the data can; nothing of other models.

    Attributes:
        masks: makes the masks that mask AP is measured by.
        segments: counts what panoptic quality is made of.
    """

    masks: MaskMaker | None = None
    segments: PanopticEvaluator | None = None

    @classmethod
    def of(
        cls, detector: Detector, model: DETR | Engine, records: Split, *, learns_threshold: bool
    ) -> "MaskEvaluators":
        """Choose them."""
        if not detector.engine.config.mask_head or not records.has_masks:
            return cls()
        padding_invariant = detector.preprocessing.padding_invariant
        draw = drawer_of(model, padding_invariant)
        segments = None
        if records.has_segments:
            thresholds = THRESHOLDS if learns_threshold else (detector.resolve_segment_threshold("auto"),)
            truth_of = ground_truth_segments(records)
            segments = PanopticEvaluator(draw, detector.categories, truth_of, padding_invariant, thresholds)
        return cls(masks_of_all(draw, padding_invariant), segments)

    def scores(self, analysis: Analysis, records: Split, found: DetectionArrays) -> tuple[EvalMetrics, float | None]:
        """All scores, and the least score of segments."""
        masks, panoptic, threshold = None, None, None
        if self.masks is not None:
            truth = GroundTruth.read(annotations_of_split(records, masks=True), records.records.image_ids, masks=True)
            masks = evaluate_masks(truth, found, analysis.scores.max_detections)
        if self.segments is not None:
            threshold, panoptic = self.segments.best()
        return EvalMetrics(analysis.scores, masks, panoptic), threshold


def with_segments(boxes: Thresholds | None, segments: float | None) -> Thresholds | None:
    """Thresholds of boxes, and that of segments where there are any."""
    if segments is None:
        return boxes
    return (boxes or Thresholds(overall=0.5)).model_copy(update={"segments": segments})
