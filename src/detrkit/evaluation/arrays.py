"""Annotated and detected objects of many photos as columns, which is how everything here is counted.

Input: a COCO document, COCO results, or what a model said. Boxes are xywh in pixels of the original photos.
"""

from collections.abc import Collection, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.formats.coco import read_json
from detrkit.data.segmentation import rle_to_box, to_rle
from detrkit.errors import DatasetError


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of a set of photos; N objects on P photos.

    Attributes:
        image_ids: (P,) the dataset's own ids, rising.
        sizes: (P, 2) height and width in pixels.
        categories: in rising order of their ids.
        photos: (N,) position in `image_ids`.
        labels: (N,) position in `categories`.
        boxes: (N, 4) float64.
        areas: (N,) of the objects' outlines, which decide what counts as small; of the boxes where none is given.
        is_crowd: (N,) boxes around many objects, in which detections are neither right nor wrong.
        masks: (N,) run lengths as COCO has them; None where they were not asked for.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    categories: Categories
    photos: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    masks: np.ndarray | None = None

    @classmethod
    def read(
        cls, annotations: Path | dict[str, Any], image_ids: Collection[int] | None = None, *, masks: bool = False
    ) -> "GroundTruth":
        """Read a COCO document, or the file it is in.

        Files in the wild are loose about types and ids; of each entry only what boxes are scored by is looked at.

        Args:
            annotations: the document, or its path.
            image_ids: photos that count; None counts all.
            masks: read the objects' outlines, too.

        Raises:
            DatasetError: masks are asked for, and an object has none.
        """
        document = annotations if isinstance(annotations, dict) else read_json(annotations)
        chosen = None if image_ids is None else set(image_ids)
        photos = sorted((e for e in document["images"] if chosen is None or e["id"] in chosen), key=lambda e: e["id"])
        photo_of = {entry["id"]: index for index, entry in enumerate(photos)}
        named = sorted(((entry["id"], entry["name"]) for entry in document["categories"]), key=lambda pair: pair[0])
        label_of = {number: label for label, (number, _) in enumerate(named)}
        objects = [entry for entry in document["annotations"] if entry["image_id"] in photo_of]
        boxes = np.array([entry["bbox"] for entry in objects], np.float64).reshape(-1, 4)
        sizes = [(entry["height"], entry["width"]) for entry in photos]
        photo_numbers = [photo_of[entry["image_id"]] for entry in objects]
        given = np.array([_number(entry.get("area")) for entry in objects], np.float64)
        return cls(
            image_ids=np.array([entry["id"] for entry in photos], np.int64),
            sizes=np.array(sizes, np.int64).reshape(-1, 2),
            categories=Categories(tuple(number for number, _ in named), tuple(name for _, name in named)),
            photos=np.array(photo_numbers, np.int64),
            labels=np.array([label_of[entry["category_id"]] for entry in objects], np.int64),
            boxes=boxes,
            areas=np.where(np.isnan(given), boxes[:, 2] * boxes[:, 3], given),
            is_crowd=np.array([bool(entry.get("iscrowd")) for entry in objects], bool),
            masks=_masks_of(objects, [sizes[photo] for photo in photo_numbers]) if masks else None,
        )

    @property
    def num_objects(self) -> int:
        """Objects that a detection can answer for: all but crowds."""
        return int((~self.is_crowd).sum())

    def objects_per_class(self) -> np.ndarray:
        """Count the objects of every class, without crowds."""
        return np.bincount(self.labels[~self.is_crowd], minlength=len(self.categories))


@dataclass(frozen=True)
class DetectionArrays:
    """Detections of a set of photos, D of them, in an order in which those of one photo come best first.

    Attributes:
        image_ids: (D,) the dataset's own.
        category_ids: (D,) the dataset's own.
        boxes: (D, 4) float64.
        scores: (D,) 0 .. 1.
        queries: (D,) the query that spoke; -1 where nobody knows.
        masks: (D,) run lengths as COCO has them, `counts` a str; None where there are no masks.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    queries: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def from_coco(cls, results: Sequence[dict[str, Any]]) -> "DetectionArrays":
        """Read COCO results; those without a box get their mask's."""
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
            masks=objects_column(masks) if has_masks else None,
        )

    @classmethod
    def joined(cls, parts: Sequence["DetectionArrays"]) -> "DetectionArrays":
        """Lay several one after the other."""
        if not parts:
            return cls.from_coco([])
        flat = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ALWAYS}
        masks = [part.masks for part in parts if len(part)]
        known = [column for column in masks if column is not None]
        return cls(**flat, masks=np.concatenate(known) if known and len(known) == len(masks) else None)

    def select(self, chosen: np.ndarray) -> "DetectionArrays":
        """Keep some, by a mask or by indices in the wanted order."""
        masks = None if self.masks is None else self.masks[chosen]
        return DetectionArrays(**{name: getattr(self, name)[chosen] for name in _ALWAYS}, masks=masks)

    def to_coco(self) -> list[dict[str, Any]]:
        """List them as COCO results."""
        columns = (self.image_ids, self.category_ids, self.boxes, self.scores)
        results = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(*(column.tolist() for column in columns), strict=True)
        ]
        if self.masks is None:
            return results
        return [{**result, "segmentation": mask} for result, mask in zip(results, self.masks, strict=True)]


_ALWAYS = tuple(
    field.name for field in fields(DetectionArrays) if field.default is MISSING
)  # columns that every `Found` has


@dataclass(frozen=True)
class EvalInput:
    """Detections beside the truth that they are judged by, in the same numbers.

    Attributes:
        truth: the annotated objects.
        found: the detections of its photos and classes; others do not count.
        photos: (D,) position in `truth.image_ids`.
        labels: (D,) position in `truth.categories`.
    """

    truth: GroundTruth
    found: DetectionArrays
    photos: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, truth: GroundTruth, found: DetectionArrays) -> "EvalInput":
        """Leave out detections of other photos, and of classes that the data does not have.

        The published head has slots for category ids that COCO does not use.
        """
        photos = _positions(truth.image_ids, found.image_ids)
        labels = _positions(np.array(truth.categories.ids, np.int64), found.category_ids)
        counts = (photos >= 0) & (labels >= 0)
        if counts.all():
            return cls(truth, found, photos, labels)
        return cls(truth, found.select(counts), photos[counts], labels[counts])


def _positions(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted number stands among known ones, which rise; -1 where it does not."""
    if not len(known):
        return np.full(len(wanted), -1)
    places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[places] == wanted, places, -1)


def objects_column(values: Sequence[Any]) -> np.ndarray:
    """Make a column of anything, one value a row."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _masks_of(entries: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    found: list[dict[str, Any]] = []
    for entry, size in zip(entries, sizes, strict=True):
        try:
            found.append(to_rle(entry["segmentation"], size))
        except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise DatasetError(
                f"annotation {entry.get('id')} of image {entry['image_id']}: has no outline that can be read "
                f"({type(error).__name__}), expected a segmentation; run detrkit doctor, or score boxes alone"
            ) from None
    return objects_column(found)


def _number(value: Any) -> float:
    # compared first: an integer may have more digits than a float can hold
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else float("nan")
