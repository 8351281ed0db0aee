"""Ground truth and detections of many images as flat arrays, which all metrics are computed from.

Boxes are xywh in pixels of the original images.
"""

from collections.abc import Collection, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.formats.coco_json import read_json
from detrkit.data.segmentation import rle_to_box, to_rle
from detrkit.errors import DatasetError


@dataclass(frozen=True)
class GroundTruth:
    """Annotated objects, N of them on I images.

    Attributes:
        image_ids: (I,) the dataset's image ids, ascending.
        sizes: (I, 2) height and width in pixels.
        categories: in ascending order of their ids.
        image_indices: (N,) index into `image_ids`.
        labels: (N,) index into `categories`.
        boxes: (N, 4) float64.
        areas: (N,) segmentation areas, which decide between small, medium and large; box areas where none is annotated.
        is_crowd: (N,) regions of many objects; detections inside are ignored.
        masks: (N,) COCO run-length encodings; None if they were not requested.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    categories: Categories
    image_indices: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    masks: np.ndarray | None = None

    @classmethod
    def from_coco(
        cls, annotations: Path | dict[str, Any], image_ids: Collection[int] | None = None, *, masks: bool = False
    ) -> "GroundTruth":
        """Read COCO annotations, leniently: only the fields that metrics need are looked at.

        Args:
            annotations: path of a COCO JSON, or its content.
            image_ids: images to evaluate; None means all.
            masks: also read the segmentations.

        Raises:
            DatasetError: masks are requested, and an object has none.
        """
        document = annotations if isinstance(annotations, dict) else read_json(annotations)
        selected = None if image_ids is None else set(image_ids)
        images = sorted((e for e in document["images"] if selected is None or e["id"] in selected), key=_id_of)
        index_of = {entry["id"]: index for index, entry in enumerate(images)}
        categories = sorted(document["categories"], key=_id_of)
        label_of = {entry["id"]: label for label, entry in enumerate(categories)}
        objects = [entry for entry in document["annotations"] if entry["image_id"] in index_of]
        boxes = np.array([entry["bbox"] for entry in objects], np.float64).reshape(-1, 4)
        sizes = [(entry["height"], entry["width"]) for entry in images]
        image_indices = [index_of[entry["image_id"]] for entry in objects]
        areas = np.array([_finite_or_nan(entry.get("area")) for entry in objects], np.float64)
        return cls(
            image_ids=np.array([entry["id"] for entry in images], np.int64),
            sizes=np.array(sizes, np.int64).reshape(-1, 2),
            categories=Categories(tuple(e["id"] for e in categories), tuple(e["name"] for e in categories)),
            image_indices=np.array(image_indices, np.int64),
            labels=np.array([label_of[entry["category_id"]] for entry in objects], np.int64),
            boxes=boxes,
            areas=np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
            is_crowd=np.array([bool(entry.get("iscrowd")) for entry in objects], bool),
            masks=_encode_masks(objects, [sizes[index] for index in image_indices]) if masks else None,
        )

    @property
    def num_objects(self) -> int:
        """Number of objects without crowds."""
        return int((~self.is_crowd).sum())

    def objects_per_class(self) -> np.ndarray:
        """Count the objects of every class, without crowds: (K,)."""
        return np.bincount(self.labels[~self.is_crowd], minlength=len(self.categories))


@dataclass(frozen=True)
class DetectionArrays:
    """Detections, D of them; those of one image are sorted by descending score.

    Attributes:
        image_ids: (D,) the dataset's image ids.
        category_ids: (D,) the dataset's category ids.
        boxes: (D, 4) float64.
        scores: (D,) in 0 .. 1.
        queries: (D,) index of the query that predicted it; -1 if unknown.
        masks: (D,) COCO run-length encodings with `counts` as a str; None without masks.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    queries: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        num_images = len(np.unique(self.image_ids))
        return f"DetectionArrays({len(self)} detections on {num_images} images, masks={self.masks is not None})"

    @classmethod
    def from_coco(cls, results: Sequence[dict[str, Any]]) -> "DetectionArrays":
        """Convert COCO results; a result without a box gets the bounding box of its mask."""
        masks = [entry.get("segmentation") for entry in results]
        has_masks = len(results) > 0 and None not in masks
        return cls(
            image_ids=np.array([entry["image_id"] for entry in results], np.int64),
            category_ids=np.array([entry["category_id"] for entry in results], np.int64),
            boxes=np.array(
                [entry["bbox"] if "bbox" in entry else rle_to_box(entry["segmentation"]) for entry in results],
                np.float64,
            ).reshape(-1, 4),
            scores=np.array([entry["score"] for entry in results], np.float64),
            queries=np.full(len(results), -1, np.int64),
            masks=object_array(masks) if has_masks else None,
        )

    @classmethod
    def concat(cls, parts: Sequence["DetectionArrays"]) -> "DetectionArrays":
        """Concatenate; masks are kept if every part that is not empty has them."""
        if not parts:
            return cls.from_coco([])
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _REQUIRED}
        masks = [part.masks for part in parts if len(part)]
        present = [array for array in masks if array is not None]
        return cls(**arrays, masks=np.concatenate(present) if present and len(present) == len(masks) else None)

    def select(self, index: np.ndarray) -> "DetectionArrays":
        """Select by a boolean mask or by indices."""
        masks = None if self.masks is None else self.masks[index]
        return DetectionArrays(**{name: getattr(self, name)[index] for name in _REQUIRED}, masks=masks)

    def to_coco(self) -> list[dict[str, Any]]:
        """Convert to COCO results."""
        columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
        results = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(*(column.tolist() for column in columns), strict=True)
        ]
        if self.masks is None:
            return results
        return [{**result, "segmentation": mask} for result, mask in zip(results, self.masks, strict=True)]


_REQUIRED = tuple(field.name for field in fields(DetectionArrays) if field.default is MISSING)


@dataclass(frozen=True)
class EvalInput:
    """Ground truth and detections with common indices.

    Attributes:
        ground_truth: N objects on I images.
        detections: D detections on these images, of these categories.
        image_indices: (D,) index into `ground_truth.image_ids`.
        labels: (D,) index into `ground_truth.categories`.
    """

    ground_truth: GroundTruth
    detections: DetectionArrays
    image_indices: np.ndarray
    labels: np.ndarray

    @classmethod
    def align(cls, ground_truth: GroundTruth, detections: DetectionArrays) -> "EvalInput":
        """Look up the indices of the detections' images and categories.

        Detections on other images or of other categories are dropped: the published DETR has logits for category ids that
        COCO does not use.
        """
        image_indices = _index_of(ground_truth.image_ids, detections.image_ids)
        labels = _index_of(np.array(ground_truth.categories.ids, np.int64), detections.category_ids)
        valid = (image_indices >= 0) & (labels >= 0)
        if valid.all():
            return cls(ground_truth, detections, image_indices, labels)
        return cls(ground_truth, detections.select(valid), image_indices[valid], labels[valid])


def _index_of(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Index of each value in an ascending array; -1 if it is not in it."""
    if not len(ascending):
        return np.full(len(values), -1)
    indices = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return np.where(ascending[indices] == values, indices, -1)


def object_array(values: Sequence[Any]) -> np.ndarray:
    """Make a one-dimensional array of Python objects."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _encode_masks(entries: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    masks: list[dict[str, Any]] = []
    for entry, size in zip(entries, sizes, strict=True):
        try:
            masks.append(to_rle(entry["segmentation"], size))
        except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise DatasetError(
                f"annotation {entry.get('id')} of image {entry['image_id']} has no readable segmentation "
                f"({type(error).__name__}); run detrkit doctor on the dataset, or evaluate boxes only"
            ) from None
    return object_array(masks)


def _id_of(entry: dict[str, Any]) -> Any:
    return entry["id"]


def _finite_or_nan(value: Any) -> float:
    # compared before the conversion: an integer may have more digits than a float can represent
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else float("nan")
