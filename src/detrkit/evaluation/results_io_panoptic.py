"""Panoptic results as files, COCO's form: a PNG of segment ids for every photo, and a JSON that names their categories.

`NAME.json` and its PNGs in the folder `NAME`, where panopticapi looks for them. Several processes write their own PNGs, and
the first of them the JSON. Reading is for results of any model: untrusted, so every entry is looked at before it counts.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit._internal.files import write_text
from detrkit.data.dataset import Split
from detrkit.data.formats.coco import integer, read_json, resolve_inside
from detrkit.data.segment_png import read_ids, write_ids
from detrkit.errors import DatasetError, short
from detrkit.ops.segments import LARGEST_ID, VOID, ids_in
from detrkit.structures import PanopticSegment, PanopticSegments

RESULTS_FILE = "panoptic_predictions.json"
_EXPECTED = "expected COCO panoptic results: 'annotations' with image_id, file_name and segments_info"


def write_segments(results: Path, image_id: int, found: PanopticSegments) -> dict[str, Any]:
    """Write one photo's PNG.

    Args:
        results: the JSON that will be written at the end.
        image_id: the dataset's own.
        found: the photo's segments.

    Returns:
        The photo's entry, for `write_panoptic_results`.
    """
    name = f"{image_id:012d}.png"
    write_ids(results.with_suffix("") / name, found.ids)
    segments = [
        {
            "id": one.id,
            "category_id": one.category_id,
            "isthing": int(one.is_thing),
            "score": round(one.score, 6),
            "area": one.area,
        }
        for one in found.segments
    ]
    return {"image_id": image_id, "file_name": name, "segments_info": segments}


def write_panoptic_results(results: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the JSON, when all PNGs are there."""
    ordered = sorted(entries, key=lambda entry: int(entry["image_id"]))
    write_text(results, json.dumps({"annotations": ordered}))


@dataclass(frozen=True)
class SegmentsFromFiles:
    """Results whose JSON has been looked at; a PNG is read when its photo's turn comes.

    Attributes:
        entries: (image id, PNG, its photo's size, segments) of every photo.
    """

    entries: tuple[tuple[int, Path, tuple[int, int], tuple[PanopticSegment, ...]], ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[int, PanopticSegments]]:
        """Read image ids and segments.

        Raises:
            DatasetError: a PNG cannot be read, or has ids that the JSON does not name.
        """
        for image_id, file, size, segments in self.entries:
            ids = read_ids(file, size)
            unnamed = ids_in(ids) - {VOID, *(one.id for one in segments)}
            if unnamed:
                raise DatasetError(
                    f"{file}: {len(unnamed)} ids of its pixels are not in the JSON's segments_info, first {min(unnamed)}; "
                    "write the two together"
                )
            yield image_id, PanopticSegments(ids, segments)


def read_panoptic_results(path: Path, split: Split) -> SegmentsFromFiles:
    """Read results that are to be judged by a split.

    Args:
        path: the JSON; its PNGs lie in a folder of its name, or beside it.
        split: of panoptic data.

    Raises:
        DatasetError: it is missing or malformed, speaks of photos or classes that the data does not have, or not of all
            photos.
    """
    content = read_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise DatasetError(f"{path}: found {short(content)}, {_EXPECTED}")
    folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
    sizes = dict(zip(split.records.image_ids, split.records.arrays.sizes.tolist(), strict=True))
    things = split.categories.is_thing or (True,) * len(split.categories)
    classes = {number: (label, things[label]) for label, number in enumerate(split.categories.ids)}
    entries: dict[int, tuple[int, Path, tuple[int, int], tuple[PanopticSegment, ...]]] = {}
    for index, entry in enumerate(annotations):
        where = f"{path}: annotations[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise DatasetError(f"{where}: found {short(entry)}, {_EXPECTED}")
        image_id = integer(entry.get("image_id"), f"{where}.image_id")
        if image_id not in sizes:
            raise DatasetError(
                f"{where}: has image_id {image_id}, which these photos do not have; name the dataset and split that were "
                "predicted"
            )
        if image_id in entries:
            raise DatasetError(f"{where}: image_id {image_id} stands twice; keep one")
        file = resolve_inside(folder, entry["file_name"], where)
        height, width = sizes[image_id]
        entries[image_id] = (image_id, file, (height, width), _segments(entry.get("segments_info"), classes, where))
    if len(entries) < len(sizes):
        first = next(image_id for image_id in sizes if image_id not in entries)
        raise DatasetError(
            f"{path}: has no entry for {len(sizes) - len(entries)} of {len(sizes)} photos, first {first}; predict all of "
            "them, with an empty PNG where nothing is found"
        )
    return SegmentsFromFiles(tuple(entries.values()))


def _segments(content: Any, classes: dict[int, tuple[int, bool]], where: str) -> tuple[PanopticSegment, ...]:
    """Read the segments of one image; `classes` maps category ids to labels and whether they are things."""
    if not isinstance(content, list):
        raise DatasetError(f"{where}.segments_info: found {short(content)}, expected a list of objects")
    found: dict[int, PanopticSegment] = {}
    for number, entry in enumerate(content):
        place = f"{where}.segments_info[{number}]"
        if not isinstance(entry, dict):
            raise DatasetError(f"{place}: found {short(entry)}, expected an object with id and category_id")
        segment_id = integer(entry.get("id"), f"{place}.id")
        category_id = integer(entry.get("category_id"), f"{place}.category_id")
        if not VOID < segment_id <= LARGEST_ID or segment_id in found:
            raise DatasetError(f"{place}.id: found {segment_id}, expected 1 to {LARGEST_ID}, each once")
        if category_id not in classes:
            raise DatasetError(
                f"{place}: has category_id {category_id}, which the dataset does not have; name the right dataset"
            )
        label, is_thing = classes[category_id]
        found[segment_id] = PanopticSegment(
            segment_id, label, category_id, is_thing, _score(entry.get("score")), _area(entry)
        )
    return tuple(found.values())


def _score(value: Any) -> float:
    is_score = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if is_score and math.isfinite(value) else 1.0


def _area(entry: dict[str, Any]) -> int:
    area = entry.get("area")
    return area if isinstance(area, int) and not isinstance(area, bool) and 0 <= area < 2**62 else 0
