"""Reading and writing of results of any model: COCO results (boxes, masks) and COCO panoptic results.

Results files are untrusted: every entry is checked.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.files import write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.coco_json import read_json, resolve_inside
from detrkit.data.formats.values import integer
from detrkit.data.segment_png import read_ids, write_ids
from detrkit.data.segmentation import check_segmentation, rle_area
from detrkit.errors import DatasetError, arg, short
from detrkit.evaluation.arrays import DetectionArrays, GroundTruth
from detrkit.ops.segments import MAX_ID, VOID, unique_ids
from detrkit.structures import PanopticSegment, PanopticSegments

PANOPTIC_RESULTS_FILE = "panoptic_predictions.json"
_EXPECTED_RESULTS = (
    "expected COCO results: a list of objects with image_id, category_id, score, and bbox [x, y, width, height] or "
    "segmentation (compressed run lengths)"
)
_EXPECTED_PANOPTIC = "expected COCO panoptic results: 'annotations' with image_id, file_name and segments_info"
_WRONG_DATASET = f"check {arg('data')} and {arg('split')}"


def read_results(path: Path, ground_truth: GroundTruth, categories: Categories | None = None) -> DetectionArrays:
    """Read a COCO results file.

    Args:
        path: of the JSON.
        ground_truth: that the results will be evaluated against.
        categories: allowed in the results; by default those of the ground truth.

    Raises:
        DatasetError: the file is missing or malformed, or contains images or categories that the data does not have.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DatasetError(f"{path}: found {type(content).__name__}, {_EXPECTED_RESULTS}")
    results = [_read_result(entry, f"{path}: entry {index}") for index, entry in enumerate(content)]
    detections = DetectionArrays.from_coco(results)
    category_ids = np.array((categories or ground_truth.categories).ids)
    _check_known(path, "image_id", detections.image_ids, ground_truth.image_ids)
    _check_known(path, "category_id", detections.category_ids, category_ids)
    _check_mask_sizes(path, detections, ground_truth)
    return detections


def _check_known(path: Path, name: str, values: np.ndarray, known: np.ndarray) -> None:
    unknown = ~np.isin(values, known)
    if unknown.any():
        first = int(unknown.argmax())
        raise DatasetError(
            f"{path}: entry {first} has {name} {int(values[first])}, which the dataset does not have "
            f"({int(unknown.sum())} of {len(values)} entries); {_WRONG_DATASET}"
        )


def _check_mask_sizes(path: Path, detections: DetectionArrays, ground_truth: GroundTruth) -> None:
    if detections.masks is None:
        return
    size_of = dict(zip(ground_truth.image_ids.tolist(), ground_truth.sizes.tolist(), strict=True))
    for index, (image_id, mask) in enumerate(zip(detections.image_ids.tolist(), detections.masks, strict=True)):
        if mask["size"] != size_of[image_id]:
            raise DatasetError(
                f"{path}: entry {index} has a mask of {mask['size']} (height, width), but image {image_id} has "
                f"{size_of[image_id]}; masks must have the size of the original image"
            )


def _read_result(entry: Any, where: str) -> dict[str, Any]:
    """Check one result; ids that are written as floats, as pandas does, become integers.

    Raises:
        DatasetError: a field is missing or malformed.
    """
    if not isinstance(entry, dict):
        raise DatasetError(f"{where} is {short(entry)}, {_EXPECTED_RESULTS}")
    ids = {}
    for name in ("image_id", "category_id"):
        value: Any = entry.get(name)
        ids[name] = integer(int(value) if _is_finite(value) and value == int(value) else value, f"{where}: {name}")
    if not _is_finite(entry.get("score")):
        raise DatasetError(f"{where}: score: found {short(entry.get('score'))}, expected a finite number")
    mask, has_box = entry.get("segmentation"), "bbox" in entry
    if mask is not None and not _is_mask(mask):
        raise DatasetError(f"{where}: segmentation: found {short(mask)}, expected compressed run lengths")
    if not has_box and mask is None:
        raise DatasetError(f"{where} has neither bbox nor segmentation, {_EXPECTED_RESULTS}")
    if has_box and not _is_box(entry["bbox"]):
        raise DatasetError(f"{where}: bbox: found {short(entry['bbox'])}, expected [x, y, width, height] in pixels")
    return {**entry, **ids}


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box)) and box[2] >= 0 and box[3] >= 0


def _is_mask(mask: Any) -> bool:
    if not isinstance(mask, dict) or not isinstance(mask.get("size"), list) or not isinstance(mask.get("counts"), str):
        return False
    try:
        check_segmentation(mask, "")
        rle_area(mask)
    except (DatasetError, ValueError, TypeError, OverflowError):
        return False
    return bool(mask["counts"])  # without runs, it is of no size


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300 and math.isfinite(value)


def write_segments(results: Path, image_id: int, segments: PanopticSegments) -> dict[str, Any]:
    """Write the PNG of one image, into a folder named like the results file.

    Args:
        results: the JSON that `write_panoptic_results` will write.
        image_id: the dataset's image id.
        segments: of the image.

    Returns:
        The image's entry for `write_panoptic_results`.
    """
    name = f"{image_id:012d}.png"
    write_ids(results.with_suffix("") / name, segments.ids)
    infos = [
        {
            "id": one.id,
            "category_id": one.category_id,
            "isthing": int(one.is_thing),
            "score": round(one.score, 6),
            "area": one.area,
        }
        for one in segments.segments
    ]
    return {"image_id": image_id, "file_name": name, "segments_info": infos}


def write_panoptic_results(results: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the JSON, after all PNGs have been written."""
    ordered = sorted(entries, key=lambda entry: int(entry["image_id"]))
    write_text(results, json.dumps({"annotations": ordered}))


@dataclass(frozen=True)
class PanopticResults:
    """Panoptic results whose JSON has been checked; PNGs are read while iterating over (image id, segments).

    Attributes:
        entries: image id, PNG, image size and segments of every image.
    """

    entries: tuple[tuple[int, Path, tuple[int, int], tuple[PanopticSegment, ...]], ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[int, PanopticSegments]]:
        """Read the images' segments.

        Raises:
            DatasetError: a PNG cannot be read, or contains ids that the JSON does not list.
        """
        for image_id, file, size, segments in self.entries:
            ids = read_ids(file, size)
            unlisted = unique_ids(ids) - {VOID, *(one.id for one in segments)}
            if unlisted:
                raise DatasetError(
                    f"{file}: {len(unlisted)} segment ids are not in the JSON's segments_info, first {min(unlisted)}; "
                    "the PNGs do not belong to this JSON"
                )
            yield image_id, PanopticSegments(ids, segments)


def read_panoptic_results(path: Path, split: Split) -> PanopticResults:
    """Read a COCO panoptic results file.

    Args:
        path: of the JSON; its PNGs are in a folder of the same name, or in the same folder.
        split: of panoptic data, that the results will be evaluated against.

    Raises:
        DatasetError: the file is missing or malformed, contains images or categories that the data does not have, or
            does not contain all images.
    """
    content = read_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise DatasetError(f"{path}: found {short(content)}, {_EXPECTED_PANOPTIC}")
    folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
    sizes = dict(zip(split.records.image_ids, split.records.arrays.sizes.tolist(), strict=True))
    things = split.categories.is_thing or (True,) * len(split.categories)
    classes = {category_id: (label, things[label]) for label, category_id in enumerate(split.categories.ids)}
    entries: dict[int, tuple[int, Path, tuple[int, int], tuple[PanopticSegment, ...]]] = {}
    for index, entry in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise DatasetError(f"{where}: found {short(entry)}, {_EXPECTED_PANOPTIC}")
        image_id = integer(entry.get("image_id"), f"{where}.image_id")
        if image_id not in sizes:
            raise DatasetError(f"{where}: has image_id {image_id}, which the dataset does not have; {_WRONG_DATASET}")
        if image_id in entries:
            raise DatasetError(f"{where}: image_id {image_id} occurs twice; keep one entry")
        height, width = sizes[image_id]
        segments = _read_segments(entry.get("segments_info"), classes, where)
        entries[image_id] = (image_id, resolve_inside(folder, entry["file_name"], where), (height, width), segments)
    if len(entries) < len(sizes):
        first = next(image_id for image_id in sizes if image_id not in entries)
        raise DatasetError(
            f"{path}: has no entry for {len(sizes) - len(entries)} of {len(sizes)} images, first {first}; panoptic results "
            "must contain all images, with an all-zero PNG where nothing is detected"
        )
    return PanopticResults(tuple(entries.values()))


def _read_segments(content: Any, classes: dict[int, tuple[int, bool]], where: str) -> tuple[PanopticSegment, ...]:
    """Read the segments of one image; `classes` maps category ids to labels and whether they are things."""
    if not isinstance(content, list):
        raise DatasetError(f"{where}.segments_info: found {short(content)}, expected a list of objects")
    segments: dict[int, PanopticSegment] = {}
    for number, entry in enumerate(content):
        place = f"{where}.segments_info[{number}]"
        if not isinstance(entry, dict):
            raise DatasetError(f"{place}: found {short(entry)}, expected an object with id and category_id")
        segment_id = integer(entry.get("id"), f"{place}.id")
        category_id = integer(entry.get("category_id"), f"{place}.category_id")
        if not VOID < segment_id <= MAX_ID or segment_id in segments:
            raise DatasetError(f"{place}.id: found {segment_id}, expected unique ids from 1 to {MAX_ID}")
        if category_id not in classes:
            raise DatasetError(
                f"{place}: has category_id {category_id}, which the dataset does not have; {_WRONG_DATASET}"
            )
        label, is_thing = classes[category_id]
        score, area = _score(entry.get("score")), _area(entry.get("area"))
        segments[segment_id] = PanopticSegment(segment_id, label, category_id, is_thing, score, area)
    return tuple(segments.values())


def _score(value: Any) -> float:
    is_score = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if is_score and math.isfinite(value) else 1.0


def _area(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else 0
