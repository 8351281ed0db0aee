"""Analysis of detections: COCO metrics, best thresholds, error types, and the metrics of the report."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.coco import CocoEvaluation, CocoMetrics, evaluate_coco, metrics_to_json
from detrkit.evaluation.coco_matching import Matches, OverlappingPairs, compute_ious, match_detections
from detrkit.evaluation.report.section import Section
from detrkit.evaluation.thresholds import BestThresholds, best_thresholds
from detrkit.evaluation.tide import DetectionErrors, classify_errors

SCORES_FORMAT = "detrkit-scores-1"
DEFAULT_THRESHOLD = 0.5  # without a true positive, and so without a best threshold
MAX_WORST_IMAGES = 100  # listed in scores.json


@runtime_checkable
class MetricResult(Protocol):
    """A computed metric, which shows itself in scores.json and in the report."""

    def to_json(self) -> Any:
        """Convert to plain values, the metric's entry in scores.json; NaN becomes null there."""

    def to_section(self) -> Section | None:
        """Return the metric's section of the report, if it has one."""


@dataclass(frozen=True)
class Analysis:
    """Detections analysed against ground truth.

    Attributes:
        inputs: ground truth and detections.
        pairs: IoUs of detections and objects.
        matches: at IoU 0.5.
        coco: COCO metrics, which no threshold affects.
        best: thresholds with the highest F1.
        errors: error types at the best overall threshold.
        results: metrics of the report by name, in the report's order.
    """

    inputs: EvalInput
    pairs: OverlappingPairs
    matches: Matches
    coco: CocoEvaluation
    best: BestThresholds
    errors: DetectionErrors
    results: Mapping[str, MetricResult] = field(default_factory=dict)

    @property
    def metrics(self) -> CocoMetrics:
        """COCO metrics of the boxes."""
        return self.coco.metrics

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of the dataset's categories, in the order of the labels."""
        return self.inputs.ground_truth.categories.ids

    @property
    def threshold(self) -> float:
        """Score threshold at which errors are counted: the best one, or 0.5 without a true positive."""
        return self.errors.threshold

    def worst_images(self, limit: int) -> list[tuple[int, int]]:
        """List the images with the most errors, as (image id, number of errors); images without errors are left out."""
        counts = self.errors.errors_per_image(self.inputs)
        order = np.argsort(-counts, kind="stable")[:limit]
        image_ids = self.inputs.ground_truth.image_ids
        return [(int(image_ids[index]), int(counts[index])) for index in order if counts[index]]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values, the content of scores.json."""
        categories = self.inputs.ground_truth.categories
        content = {
            "format": SCORES_FORMAT,
            "num_images": self.metrics.num_images,
            "num_objects": self.metrics.num_objects,
            "num_detections": len(self.inputs.detections),
            "max_detections": self.metrics.max_detections,
            "metrics": metrics_to_json(self.metrics.values),
            "per_class": [
                {"category_id": category_id, **asdict(one), "best_threshold": None if best is None else asdict(best)}
                for category_id, one, best in zip(
                    categories.ids, self.metrics.per_class, self.best.per_class, strict=True
                )
            ],
            "thresholds": None if self.best.thresholds is None else self.best.thresholds.model_dump(mode="json"),
            "best_threshold": None if self.best.overall is None else asdict(self.best.overall),
            **{name: result.to_json() for name, result in self.results.items()},
            "worst_images": [
                {"image_id": image_id, "errors": count} for image_id, count in self.worst_images(MAX_WORST_IMAGES)
            ],
        }
        return dict(replace_nan(content))


# computes a metric of the report from everything known about the detections
Metric = Callable[[Analysis], MetricResult]


def analyse(
    ground_truth: GroundTruth,
    detections: DetectionArrays,
    max_detections: int,
    metrics: Mapping[str, Metric],
) -> Analysis:
    """Analyse detections.

    Args:
        ground_truth: annotated objects.
        detections: without a score threshold: the best ones are found here.
        max_detections: detections per image and class that count for the COCO metrics.
        metrics: of the report, by name, such as `registry.METRICS`.
    """
    inputs = EvalInput.align(ground_truth, detections)
    pairs = compute_ious(inputs)
    matches = match_detections(inputs, pairs)
    coco = evaluate_coco(inputs, max_detections)
    best = best_thresholds(inputs, matches)
    threshold = best.overall.threshold if best.overall else DEFAULT_THRESHOLD
    errors = classify_errors(inputs, pairs, matches, threshold, coco.ap50_gains)
    analysis = Analysis(inputs, pairs, matches, coco, best, errors)
    return replace(analysis, results={name: compute(analysis) for name, compute in metrics.items()})


def replace_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: replace_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
