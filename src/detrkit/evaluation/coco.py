"""COCO box metrics (cocodataset.org, "detection evaluation"), by hotcoco, whose numbers are pycocotools' to the last digit.

Input: the annotations as a COCO document and the detections as COCO results. Output: the 12 numbers, and AP per class.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval

from detrkit.data.categories import Categories
from detrkit.data.formats.coco import read_json
from detrkit.data.records import Split
from detrkit.structures import Sample

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class ClassScore:
    """Scores of one category; NaN where no photo holds one."""

    name: str
    num_objects: int
    ap: float
    ap50: float


@dataclass(frozen=True)
class BoxScores:
    """Scores of a set of detections, 0 .. 1; -1 where there is nothing to score, as COCO has it."""

    numbers: dict[str, float]
    per_class: tuple[ClassScore, ...]
    num_photos: int
    num_objects: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "BoxScores":
        """Read what `to_json` gave."""
        return cls(**{**content, "per_class": tuple(ClassScore(**score) for score in content["per_class"])})

    @property
    def ap(self) -> float:
        """AP averaged over IoU 0.50 to 0.95, the number models are compared by."""
        return self.numbers["AP"]


def evaluate_boxes(
    annotations: Path | dict[str, Any], results: Sequence[dict[str, Any]], image_ids: Collection[int] | None = None
) -> BoxScores:
    """Score detections.

    Args:
        annotations: an instances JSON that `data.formats.coco` can read, or its content.
        results: one dict per detection: image_id, category_id, bbox (xywh in pixels), score. No threshold should have
            been applied: AP needs the weak ones, too.
        image_ids: photos that count; None counts all.
    """
    document = annotations if isinstance(annotations, dict) else read_json(annotations)
    image_of = {
        image_id: index + 1 for index, image_id in enumerate(sorted(entry["id"] for entry in document["images"]))
    }
    category_of = {number: index + 1 for index, number in enumerate(sorted(c["id"] for c in document["categories"]))}
    truth = COCO(_plain_document(document, image_of, category_of))
    plain_results = [
        {**entry, "image_id": image_of[entry["image_id"]], "category_id": category_of[entry["category_id"]]}
        for entry in results
        if entry["category_id"] in category_of  # the published head has slots for ids that COCO does not use
    ]
    evaluation = COCOeval(truth, truth.load_res(plain_results), "bbox")
    chosen = sorted(image_of.values() if image_ids is None else (image_of[image_id] for image_id in image_ids))
    evaluation.params.img_ids = chosen
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()  # fills in `stats` without printing
    numbers = dict(zip(NAMES, (float(value) for value in evaluation.stats), strict=True))
    per_class = _per_class(evaluation, truth, set(chosen))
    return BoxScores(numbers, per_class, len(chosen), sum(score.num_objects for score in per_class))


def _plain_document(document: dict[str, Any], image_of: dict[int, int], category_of: dict[int, int]) -> dict[str, Any]:
    """Reduce an instances document to what boxes are scored by, with ids 1, 2, 3 ...

    hotcoco is strict about types that COCO files in the wild are loose about, and about negative ids.
    """
    return {
        "images": [
            {"id": image_of[entry["id"]], "width": entry["width"], "height": entry["height"], "file_name": ""}
            for entry in document["images"]
        ],
        "annotations": [
            {
                "id": index + 1,
                "image_id": image_of[entry["image_id"]],
                "category_id": category_of[entry["category_id"]],
                "bbox": [float(value) for value in entry["bbox"]],
                "area": _area(entry),
                "iscrowd": int(bool(entry.get("iscrowd"))),
            }
            for index, entry in enumerate(document["annotations"])
        ],
        "categories": [{"id": category_of[entry["id"]], "name": entry["name"]} for entry in document["categories"]],
    }


def _area(annotation: dict[str, Any]) -> float:
    """Area of the object's outline, which decides whether it counts as small; of its box where none is given."""
    area = annotation.get("area")
    _, _, width, height = annotation["bbox"]
    return float(area) if isinstance(area, int | float) else float(width) * float(height)


def _per_class(evaluation: COCOeval, truth: COCO, image_ids: set[int]) -> tuple[ClassScore, ...]:
    # (IoU, recall, class), for objects of all sizes and the largest number of detections
    precision = np.asarray((evaluation.eval or {})["precision"])[:, :, :, 0, -1]
    counts: dict[int, int] = {}
    document = truth.dataset or {"annotations": [], "categories": []}
    for entry in document["annotations"]:
        if entry["image_id"] in image_ids and not entry.get("iscrowd", 0):
            counts[entry["category_id"]] = counts.get(entry["category_id"], 0) + 1
    names = {entry["id"]: entry["name"] for entry in document["categories"]}
    scores = []
    for index, category in enumerate(evaluation.params.cat_ids):
        of_class = precision[:, :, index]
        has_objects = bool((of_class > -1).any())
        scores.append(
            ClassScore(
                name=names[category],
                num_objects=counts.get(category, 0),
                ap=float(of_class[of_class > -1].mean()) if has_objects else float("nan"),
                ap50=float(of_class[0][of_class[0] > -1].mean()) if has_objects else float("nan"),
            )
        )
    return tuple(scores)


def annotations_of_split(split: Split) -> Path | dict[str, Any]:
    """What the detections of a split are judged by: its own COCO file, or a COCO document made of its records.

    Boxes without an area, which YOLO and VOC files hold by mistake, are left out of the document.
    """
    if split.source.suffix == ".json":
        return split.source
    annotations: list[dict[str, Any]] = []
    for record in split.records:
        objects = zip(record.boxes.tolist(), record.labels.tolist(), record.is_crowd.tolist(), strict=True)
        for (x1, y1, x2, y2), label, is_crowd in objects:
            if x2 > x1 and y2 > y1:
                annotations.append(
                    {
                        "image_id": record.image_id,
                        "category_id": split.categories.ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "iscrowd": is_crowd,
                    }
                )
    images = [{"id": one.image_id, "height": one.size[0], "width": one.size[1]} for one in split.records]
    return {"images": images, "annotations": annotations, "categories": split.categories.to_json()}


def annotations_of_samples(samples: Sequence[Sample], categories: Categories) -> dict[str, Any]:
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
