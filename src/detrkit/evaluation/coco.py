"""COCO metrics (cocodataset.org, "detection evaluation"), by hotcoco, whose numbers are pycocotools' to the last digit.

Input: annotated objects and detections. Output: the 12 numbers, scores per class and size, and the curves behind them; of
boxes, or of masks where truth and detections have them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hotcoco import COCO, COCOeval

from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.segmentation import read_masks, rle_area
from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.ops.masks import encode_masks
from detrkit.structures import Sample

PUBLISHED_MAX_DETECTIONS = 100  # per photo and class, in pycocotools and in published tables


def coco_metric_names(max_detections: int) -> tuple[str, ...]:
    """The 12 numbers, in COCO's order."""
    recalls = ("ar1", "ar10", f"ar{max_detections}", "ar_small", "ar_medium", "ar_large")
    return ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", *recalls)


COCO_METRICS = coco_metric_names(PUBLISHED_MAX_DETECTIONS)


@dataclass(frozen=True)
class ClassMetrics:
    """Scores of one category, averaged over IoU 0.50 to 0.95 unless said otherwise; NaN where there is nothing to score.

    Attributes:
        name: of the category.
        num_objects: in the photos, without crowds.
        ap: average precision.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of objects below 32² px.
        ap_medium: of those between.
        ap_large: of objects above 96² px.
        ar: average recall.
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
    """Scores of a set of detections, 0 .. 1; -1 where there is nothing to score, as COCO has it."""

    values: dict[str, float]
    per_class: tuple[ClassMetrics, ...]
    num_images: int
    num_objects: int
    max_detections: int = PUBLISHED_MAX_DETECTIONS  # of one class on one photo, that count

    def to_json(self) -> dict[str, Any]:
        """Plain values; None where there is nothing to score."""
        return {**asdict(self), "values": metrics_to_json(self.values)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CocoMetrics":
        """Read what `to_json` gave."""
        values = {name: -1.0 if value is None else value for name, value in content["values"].items()}
        per_class = tuple(ClassMetrics(**score) for score in content["per_class"])
        return cls(**{**content, "values": values, "per_class": per_class})

    @property
    def ap(self) -> float:
        """AP averaged over IoU 0.50 to 0.95, the number models are compared by."""
        return self.values["ap"]


@dataclass(frozen=True)
class CocoEvaluation:
    """What COCO's evaluation gives.

    Attributes:
        scores: the numbers.
        precision: (10, 101, K), at IoU 0.50 to 0.95 and recall 0 to 1, for objects of all sizes; -1 for classes without
            objects.
        gains: AP50 that would be added if errors of a kind were mended (TIDE, Bolya et al. 2020), under its names.
    """

    scores: CocoMetrics
    precision: np.ndarray
    gains: dict[str, float]


def metrics_to_json(values: Mapping[str, float]) -> dict[str, float | None]:
    """Put None in place of COCO's -1, and of NaN: there is nothing to score."""
    return {name: value if value >= 0 else None for name, value in values.items()}


def max_detections_to_evaluate(max_detections: int) -> int:
    """How many detections of one class on one photo count: 100 as published, and all of a model that can say more."""
    return max(PUBLISHED_MAX_DETECTIONS, max_detections)


def evaluate_boxes(
    annotations: GroundTruth | Path | dict[str, Any],
    results: DetectionArrays | Sequence[dict[str, Any]],
    image_ids: Collection[int] | None = None,
    max_detections: int = PUBLISHED_MAX_DETECTIONS,
) -> CocoMetrics:
    """Score detections.

    Args:
        annotations: an instances JSON that `data.formats.coco` can read, or its content.
        results: detections; or one dict each: image_id, category_id, bbox (xywh in pixels), score. No threshold should
            have been applied: AP needs the weak ones, too.
        image_ids: photos that count; None counts all.
        max_detections: of one class on one photo, that count.
    """
    truth = annotations if isinstance(annotations, GroundTruth) else GroundTruth.read(annotations, image_ids)
    found = results if isinstance(results, DetectionArrays) else DetectionArrays.from_coco(results)
    return evaluate_coco(EvalInput.of(truth, found), max_detections, with_gains=False).scores


def evaluate_masks(
    truth: GroundTruth, found: DetectionArrays, max_detections: int = PUBLISHED_MAX_DETECTIONS
) -> CocoMetrics:
    """Score the masks of detections: the same 12 numbers, by intersection over union of masks.

    Args:
        truth: annotated objects with masks.
        found: detections with masks; none at all may come without.
        max_detections: of one class on one photo, that count.
    """
    return evaluate_coco(EvalInput.of(truth, found), max_detections, with_gains=False, kind="segm").scores


def evaluate_coco(
    case: EvalInput, max_detections: int, *, with_gains: bool = True, kind: Literal["bbox", "segm"] = "bbox"
) -> CocoEvaluation:
    """Score boxes or masks of detections, and keep what the scores are made of."""
    truth = case.truth
    evaluation = _run(case, max_detections, kind)
    content = evaluation.eval or {}
    precision, recall = np.asarray(content["precision"]), np.asarray(content["recall"])
    scores = CocoMetrics(
        values=dict(zip(coco_metric_names(max_detections), (float(value) for value in evaluation.stats), strict=True)),
        per_class=_per_class(truth, precision, recall),
        num_images=len(truth.image_ids),
        num_objects=truth.num_objects,
        max_detections=max_detections,
    )
    can_gain = with_gains and truth.num_objects > 0 and len(case.found) > 0
    gains = dict(evaluation.tide_errors()["delta_ap"]) if can_gain else {}
    return CocoEvaluation(scores, precision[:, :, :, 0, -1], gains)


def _run(case: EvalInput, max_detections: int, kind: Literal["bbox", "segm"] = "bbox") -> COCOeval:
    """Let hotcoco count, on ids 1, 2, 3 ...: it is strict about what COCO files in the wild are loose about."""
    truth, found = case.truth, case.found
    true_masks, masks = _masks_of(case) if kind == "segm" else (None, None)
    judge = COCO.from_arrays(
        [
            {"id": index + 1, "width": width, "height": height, "file_name": ""}
            for index, (height, width) in enumerate(truth.sizes.tolist())
        ],
        [{"id": label + 1, "name": name} for label, name in enumerate(truth.categories.names)],
        truth.photos + 1,
        truth.labels + 1,
        truth.boxes,
        area=truth.areas,
        iscrowd=truth.is_crowd.astype(np.int64),
        segmentation=true_masks,
    )
    rows = np.column_stack([case.photos + 1.0, found.boxes, found.scores, case.labels + 1.0])
    answers = judge.load_res(rows, segmentation=masks)
    if masks is not None:
        # small, medium and large by the mask, as pycocotools has it for results without boxes
        answers.update_anns(
            ids=np.arange(len(masks)) + 1, area=np.array([rle_area(mask) for mask in masks], np.float64)
        )
    evaluation = COCOeval(judge, answers, kind)
    evaluation.params.max_dets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # fills in `stats` without printing
    return evaluation


def _masks_of(case: EvalInput) -> tuple[list[Any], list[Any]]:
    assert case.truth.masks is not None, "masks are scored against a truth that was read with masks=True"
    assert case.found.masks is not None or not len(case.found), "detections without masks cannot be scored by masks"
    return list(case.truth.masks), [] if case.found.masks is None else list(case.found.masks)


def _per_class(truth: GroundTruth, precision: np.ndarray, recall: np.ndarray) -> tuple[ClassMetrics, ...]:
    """Average (IoU, recall, class, size, detections) and (IoU, class, size, detections), class by class."""
    counts = truth.objects_per_class().tolist()
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
        for label, name in enumerate(truth.categories.names)
    )


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def annotations_of_split(split: Split, *, masks: bool = False) -> Path | dict[str, Any]:
    """What the detections of a split are judged by: its own COCO file, or a COCO document made of its records.

    Boxes without an area, which YOLO and VOC files hold by mistake, are left out of the document. Of panoptic data, things
    are judged, as in published numbers: detections of stuff neither help nor harm.

    Args:
        split: of any form.
        masks: with the masks of panoptic segments, whose PNGs are read; a COCO file has its own.

    Raises:
        DatasetError: a PNG cannot be read.
    """
    is_panoptic = split.records.arrays.mask_files is not None
    if split.source.suffix == ".json" and not is_panoptic:
        return split.source
    things = split.categories.is_thing if is_panoptic else None
    is_judged = things if things and any(things) else (True,) * len(split.categories)
    annotations: list[dict[str, Any]] = []
    for record in split.records:
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        chosen = ((sides > 0).all(1) & np.array(is_judged)[record.labels]).nonzero()[0]
        outlines = encode_masks(read_masks(record, chosen)) if masks else [None] * len(chosen)
        for index, outline in zip(chosen.tolist(), outlines, strict=True):
            x1, y1, x2, y2 = record.boxes[index].tolist()
            entry = {
                "image_id": record.image_id,
                "category_id": split.categories.ids[record.labels[index]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": bool(record.is_crowd[index]),
            }
            shape = {} if outline is None else {"segmentation": outline, "area": rle_area(outline)}
            annotations.append({**entry, **shape})
    images = [{"id": one.image_id, "height": one.size[0], "width": one.size[1]} for one in split.records]
    categories = [entry for entry, judged in zip(split.categories.to_json(), is_judged, strict=True) if judged]
    return {"images": images, "annotations": annotations, "categories": categories}


def samples_to_coco(samples: Sequence[Sample], categories: Categories) -> dict[str, Any]:
    """Write samples, transformed or not, as a COCO document in pixels of the samples."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in samples:
        height, width = sample.image.shape[1:]
        name = f"{sample.image_id}.png"
        images.append({"id": sample.image_id, "height": height, "width": width, "file_name": name})
        objects = zip(sample.annotations.boxes.tolist(), sample.annotations.labels.tolist(), strict=True)
        for (x1, y1, x2, y2), label in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": categories.ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories.to_json()}
