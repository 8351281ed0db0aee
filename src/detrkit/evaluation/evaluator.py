"""Evaluators: box AP, mask AP and panoptic quality of a model during training, panoptic quality in one pass."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from detrkit.checkpoints.native import Thresholds
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.distributed.collectives import broadcast_from_first, gather
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.arrays import DetectionArrays, EvalInput
from detrkit.evaluation.coco import evaluate_boxes, evaluate_masks, max_detections_to_evaluate
from detrkit.evaluation.ground_truth import GroundTruthSegments, ground_truth_of_split, ground_truth_segments
from detrkit.evaluation.inference_loop import MaskFunction, run_inference
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.panoptic import PanopticCounts, PanopticMetrics, count_image, panoptic_metrics
from detrkit.evaluation.registry import METRICS
from detrkit.evaluation.thresholds import best_thresholds
from detrkit.models.detr import DETR
from detrkit.ops.masks import binarize_masks
from detrkit.postprocess.masks import extent_of_masks
from detrkit.postprocess.panoptic import MIN_SCORE, keep_queries, merge_segments, to_segments
from detrkit.structures import Batch, Predictions

# minimum scores of queries that are tried for panoptic segmentation; the last one is the published one
SEGMENT_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, MIN_SCORE)


def full_size_masks(padding_invariant: bool) -> MaskFunction:
    """Return a function that yields the masks of all queries at the original image size, for `run_inference`."""

    def masks_of(predictions: Predictions, batch: Batch) -> Iterator[Bool[Tensor, "Q H W"]]:
        num_queries, num_images = predictions.boxes.shape[1], len(batch.sizes)
        for image, (size, original_size) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
            queries = [torch.arange(num_queries if index == image else 0) for index in range(num_images)]
            logits = predictions.masks_of(queries, batch.sizes)
            yield binarize_masks(logits, extent_of_masks(logits, batch, padding_invariant), size, original_size)

    return masks_of


class PanopticEvaluator:
    """Accumulates panoptic statistics batch by batch, at several score thresholds.

    Attributes:
        counts: statistics by threshold.
    """

    def __init__(
        self,
        categories: Categories,
        ground_truth_of: Callable[[int], GroundTruthSegments],
        padding_invariant: bool,
        thresholds: Sequence[float] = SEGMENT_THRESHOLDS,
    ) -> None:
        """Start with no image.

        Args:
            categories: of the model and the data.
            ground_truth_of: returns the segments of an image by its id.
            padding_invariant: see `postprocess.panoptic`.
            thresholds: minimum scores of queries, ascending.
        """
        self.categories = categories
        self.ground_truth_of = ground_truth_of
        self.padding_invariant = padding_invariant
        self.counts = dict.fromkeys(thresholds, PanopticCounts.zeros(len(categories)))

    def __call__(self, predictions: Predictions, batch: Batch) -> None:
        """Add a batch."""
        categories = self.categories
        lowest = min(self.counts)
        per_image = keep_queries(predictions, batch, lowest, self.padding_invariant)
        for image_id, candidates in zip(batch.image_ids, per_image, strict=True):
            ground_truth = self.ground_truth_of(image_id)
            for threshold, total in self.counts.items():
                merged = merge_segments(candidates.keep(candidates.scores > threshold), categories.things)
                segments = to_segments(merged, categories.ids, categories.names, categories.things)
                counts = count_image(ground_truth, segments, categories)
                self.counts[threshold] = PanopticCounts.sum([total, counts], len(categories))

    def best(self, per_process: Sequence[dict[float, PanopticCounts]] | None = None) -> tuple[float, PanopticMetrics]:
        """Return the threshold with the highest panoptic quality, and the metrics at it.

        Args:
            per_process: counts of all processes; None if this process evaluated all images.
        """
        parts = [self.counts] if per_process is None else per_process
        num_classes = len(self.categories)
        metrics = {
            threshold: panoptic_metrics(
                PanopticCounts.sum([part[threshold] for part in parts], num_classes), self.categories
            )
            for threshold in self.counts
        }
        # ties go to the published threshold
        best = max(reversed(metrics), key=lambda one: -1.0 if math.isnan(metrics[one].pq) else metrics[one].pq)
        return best, metrics[best]


class Evaluator:
    """Evaluates models on a split, whose images may be distributed over processes.

    Attributes:
        detections: of the last model, in the first process.
        segment_threshold: minimum query score with the highest panoptic quality; None without panoptic data.
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
            padding_invariant: see `DETR.forward`.
            masks: evaluate masks, or panoptic segments if the split has them.
        """
        has_masks = masks and split.has_masks
        self.categories = split.categories
        self.batches = batches
        self.device = device
        self.padding_invariant = padding_invariant
        self.max_detections = max_detections_to_evaluate(max_detections)
        self.ground_truth = ground_truth_of_split(split)
        self.segments_of = ground_truth_segments(split) if has_masks and split.has_segments else None
        self.mask_ground_truth = None
        if has_masks and self.segments_of is None:
            self.mask_ground_truth = ground_truth_of_split(split, masks=True)
        self.detections: DetectionArrays | None = None
        self.segment_threshold: float | None = None

    def evaluate(self, model: DETR, is_first: bool) -> EvalMetrics:
        """Evaluate a model; called by all processes, and all get the metrics."""
        panoptic_evaluator, masks = None, None
        if self.segments_of is not None:
            panoptic_evaluator = PanopticEvaluator(self.categories, self.segments_of, self.padding_invariant)
        elif self.mask_ground_truth is not None:
            masks = full_size_masks(self.padding_invariant)
        detections = run_inference(
            model,
            self.batches,
            self.categories,
            self.device,
            self.padding_invariant,
            masks=masks,
            on_batch=panoptic_evaluator,
        )
        gathered = gather(detections)
        counts = gather([] if panoptic_evaluator is None else [panoptic_evaluator.counts])
        if not is_first:
            return broadcast_from_first(None)
        self.detections = DetectionArrays.concat(gathered)
        panoptic = None
        if panoptic_evaluator is not None:
            self.segment_threshold, panoptic = panoptic_evaluator.best(counts)
        mask_metrics = None
        if self.mask_ground_truth is not None:
            mask_metrics = evaluate_masks(self.mask_ground_truth, self.detections, self.max_detections)
        boxes = evaluate_boxes(self.ground_truth, self.detections, max_detections=self.max_detections)
        return broadcast_from_first(EvalMetrics(boxes, mask_metrics, panoptic))

    @property
    def thresholds(self) -> Thresholds | None:
        """Score thresholds of the last model that maximise F1, and its panoptic quality."""
        if self.detections is None:
            return None
        boxes = best_thresholds(EvalInput.align(self.ground_truth, self.detections)).thresholds
        return with_segment_threshold(boxes, self.segment_threshold)

    def analyse(self, detections: DetectionArrays) -> Analysis:
        """Analyse detections of all images."""
        return analyse(self.ground_truth, detections, self.max_detections, METRICS)


def with_segment_threshold(thresholds: Thresholds | None, segments: float | None) -> Thresholds | None:
    """Add the threshold of panoptic segments, if there is one."""
    if segments is None:
        return thresholds
    return (thresholds or Thresholds(overall=0.5)).model_copy(update={"segments": segments})
