"""COCO detection metrics (cocodataset.org, "detection evaluation"), computed by hotcoco; equal to pycocotools'."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hotcoco import COCO, COCOeval

from detrkit.data.segmentation import rle_area
from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth

PUBLISHED_MAX_DETECTIONS = 100  # per image and class, in pycocotools and in published tables
IouType = Literal["bbox", "segm"]


def coco_metric_names(max_detections: int) -> tuple[str, ...]:
    """Return the names of the 12 COCO metrics, in COCO's order."""
    recalls = ("ar1", "ar10", f"ar{max_detections}", "ar_small", "ar_medium", "ar_large")
    return ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", *recalls)


COCO_METRICS = coco_metric_names(PUBLISHED_MAX_DETECTIONS)


@dataclass(frozen=True)
class ClassMetrics:
    """COCO metrics of one class, in 0 .. 1; NaN where the class has no object.

    Attributes:
        name: class name.
        num_objects: annotated objects without crowds.
        ap: average precision, mean over IoU 0.50 to 0.95.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of objects with an area below 32² px.
        ap_medium: of objects in between.
        ap_large: of objects with an area above 96² px.
        ar: average recall, mean over IoU 0.50 to 0.95.
    """

    name: str
    num_objects: int
    ap: float
    ap50: float
    ap75: float = float("nan")
    ap_small: float = float("nan")
    ap_medium: float = float("nan")
    ap_large: float = float("nan")
    ar: float = float("nan")


@dataclass(frozen=True)
class CocoMetrics:
    """COCO metrics of boxes or masks.

    Attributes:
        values: the 12 metrics by name, in 0 .. 1; -1 where undefined, as in COCO.
        per_class: metrics of each class.
        num_images: evaluated images.
        num_objects: annotated objects without crowds.
        max_detections: detections per image and class that count.
    """

    values: dict[str, float]
    per_class: tuple[ClassMetrics, ...]
    num_images: int
    num_objects: int
    max_detections: int = PUBLISHED_MAX_DETECTIONS

    @property
    def ap(self) -> float:
        """Average precision, mean over IoU 0.50 to 0.95."""
        return self.values["ap"]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values; None where a metric is undefined."""
        return {**asdict(self), "values": metrics_to_json(self.values)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CocoMetrics":
        """Convert from what `to_json` returned."""
        values = {name: -1.0 if value is None else value for name, value in content["values"].items()}
        per_class = tuple(ClassMetrics(**metrics) for metrics in content["per_class"])
        return cls(**{**content, "values": values, "per_class": per_class})


@dataclass(frozen=True)
class CocoEvaluation:
    """COCO metrics and the precision curves behind them.

    Attributes:
        metrics: the 12 metrics.
        precision: (10, 101, K) at IoU 0.50 to 0.95 and recall 0 to 1, for objects of all sizes; -1 for classes without
            objects.
        ap50_gains: AP50 that would be gained without the errors of one type, under TIDE's names (Bolya et al. 2020).
    """

    metrics: CocoMetrics
    precision: np.ndarray
    ap50_gains: dict[str, float]


def metrics_to_json(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace -1 and NaN, which mark undefined metrics, by None."""
    return {name: value if value >= 0 else None for name, value in values.items()}


def max_detections_to_evaluate(model_max_detections: int) -> int:
    """Return how many detections per image and class count: the published 100, or all of a model that returns more."""
    return max(PUBLISHED_MAX_DETECTIONS, model_max_detections)


def evaluate_boxes(
    annotations: GroundTruth | Path | dict[str, Any],
    results: DetectionArrays | Sequence[dict[str, Any]],
    image_ids: Collection[int] | None = None,
    max_detections: int = PUBLISHED_MAX_DETECTIONS,
) -> CocoMetrics:
    """Compute box AP.

    Args:
        annotations: ground truth, or COCO instances annotations as a path or their content.
        results: detections, or COCO results. They must not be filtered by score: AP needs low scores, too.
        image_ids: images to evaluate; None means all.
        max_detections: detections per image and class that count.
    """
    ground_truth = (
        annotations if isinstance(annotations, GroundTruth) else GroundTruth.from_coco(annotations, image_ids)
    )
    detections = results if isinstance(results, DetectionArrays) else DetectionArrays.from_coco(results)
    return evaluate_coco(EvalInput.align(ground_truth, detections), max_detections, ap50_gains=False).metrics


def evaluate_masks(
    ground_truth: GroundTruth, detections: DetectionArrays, max_detections: int = PUBLISHED_MAX_DETECTIONS
) -> CocoMetrics:
    """Compute mask AP: the 12 metrics with the IoU of masks.

    Args:
        ground_truth: with masks.
        detections: with masks, unless there are none at all.
        max_detections: detections per image and class that count.
    """
    inputs = EvalInput.align(ground_truth, detections)
    return evaluate_coco(inputs, max_detections, ap50_gains=False, iou_type="segm").metrics


def evaluate_coco(
    inputs: EvalInput, max_detections: int, *, ap50_gains: bool = True, iou_type: IouType = "bbox"
) -> CocoEvaluation:
    """Compute COCO metrics and precision curves of boxes or masks."""
    ground_truth = inputs.ground_truth
    evaluation = run_hotcoco(inputs, max_detections, iou_type)
    content = evaluation.eval or {}
    precision, recall = np.asarray(content["precision"]), np.asarray(content["recall"])
    names = coco_metric_names(max_detections)
    metrics = CocoMetrics(
        values=dict(zip(names, (float(value) for value in evaluation.stats), strict=True)),
        per_class=_per_class(ground_truth, precision, recall),
        num_images=len(ground_truth.image_ids),
        num_objects=ground_truth.num_objects,
        max_detections=max_detections,
    )
    has_gains = ap50_gains and ground_truth.num_objects > 0 and len(inputs.detections) > 0
    gains = dict(evaluation.tide_errors()["delta_ap"]) if has_gains else {}
    return CocoEvaluation(metrics, precision[:, :, :, 0, -1], gains)


def run_hotcoco(inputs: EvalInput, max_detections: int, iou_type: IouType = "bbox") -> COCOeval:
    """Run hotcoco on ids 1, 2, 3 ...: it is strict where COCO files in the wild are not."""
    ground_truth, detections = inputs.ground_truth, inputs.detections
    true_masks, masks = _masks_of(inputs) if iou_type == "segm" else (None, None)
    annotations = COCO.from_arrays(
        [
            {"id": index + 1, "width": width, "height": height, "file_name": ""}
            for index, (height, width) in enumerate(ground_truth.sizes.tolist())
        ],
        [{"id": label + 1, "name": name} for label, name in enumerate(ground_truth.categories.names)],
        ground_truth.image_indices + 1,
        ground_truth.labels + 1,
        ground_truth.boxes,
        area=ground_truth.areas,
        iscrowd=ground_truth.is_crowd.astype(np.int64),
        segmentation=true_masks,
    )
    rows = np.column_stack([inputs.image_indices + 1.0, detections.boxes, detections.scores, inputs.labels + 1.0])
    results = annotations.load_res(rows, segmentation=masks)
    if masks is not None:
        # small, medium and large by mask area, as pycocotools does for results without boxes
        areas = np.array([rle_area(mask) for mask in masks], np.float64)
        results.update_anns(ids=np.arange(len(masks)) + 1, area=areas)
    evaluation = COCOeval(annotations, results, iou_type)
    evaluation.params.max_dets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # fills in `stats` without printing
    return evaluation


def _masks_of(inputs: EvalInput) -> tuple[list[Any], list[Any]]:
    true_masks, masks = inputs.ground_truth.masks, inputs.detections.masks
    assert true_masks is not None, "mask AP needs ground truth that was read with masks=True"
    assert masks is not None or not len(inputs.detections), "mask AP needs detections with masks"
    return list(true_masks), [] if masks is None else list(masks)


def _per_class(ground_truth: GroundTruth, precision: np.ndarray, recall: np.ndarray) -> tuple[ClassMetrics, ...]:
    """Average each class's (IoU, recall, class, area, max_dets) precision and (IoU, class, area, max_dets) recall."""
    counts = ground_truth.objects_per_class().tolist()
    return tuple(
        ClassMetrics(
            name=name,
            num_objects=counts[label],
            ap=_mean(precision[:, :, label, 0, -1]),
            ap50=_mean(precision[0, :, label, 0, -1]),
            ap75=_mean(precision[5, :, label, 0, -1]),
            ap_small=_mean(precision[:, :, label, 1, -1]),
            ap_medium=_mean(precision[:, :, label, 2, -1]),
            ap_large=_mean(precision[:, :, label, 3, -1]),
            ar=_mean(recall[:, label, 0, -1]),
        )
        for label, name in enumerate(ground_truth.categories.names)
    )


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")
