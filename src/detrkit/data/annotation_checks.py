"""What annotations alone show to be wrong: boxes, classes, photos without objects. Opens no photo.

Input: a `DatasetFolder`. Output: `Finding`s, worst first.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from detrkit.data.formats.folder import DatasetFolder
from detrkit.data.records import Record, Split, SplitName

Severity = Literal["error", "warning", "note"]
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
MOST_UNEVEN = 100  # times that the most frequent class may outnumber the rarest before it is said
TINY = 2.0  # pixels a side, below which a box is most likely a slip
EDGE = 1.0  # pixels by which boxes may pass the photo's edge: rounding of the tool that drew them


@dataclass(frozen=True)
class Place:
    """Where a fault is: in words, and, as far as known, the photo and the box (xyxy in pixels)."""

    text: str
    photo: Path | None = None
    box: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Finding:
    """One kind of fault: what, where first, how often, and what to do.

    Severity "error" means that training would go wrong or stop; "warning", that it would learn less than it could; "note",
    that it is good to know.
    """

    severity: Severity
    what: str
    advice: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class ClassCount:
    """Objects of one class in every split."""

    category_id: int
    name: str
    objects: dict[SplitName, int]


def examine_annotations(
    folder: DatasetFolder, *, num_queries: int, image_size: int, stride: int
) -> tuple[Finding, ...]:
    """The cheap part, which opens no photo: boxes and classes. Arguments as in `examine`."""
    splits = splits_of(folder)
    return worst_first(
        [
            *_of_box_format(splits),
            *_of_single_boxes(splits),
            *_of_model(splits, num_queries, image_size, stride),
            *_of_empty_photos(splits),
            *_of_classes(splits),
        ]
    )


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort by severity, then by how often."""
    return tuple(sorted(findings, key=lambda one: (_ORDER[one.severity], -len(one.places))))


def splits_of(folder: DatasetFolder) -> dict[SplitName, Split]:
    """List the splits that there are, training first."""
    splits: dict[SplitName, Split] = {"train": folder.train, "val": folder.val}
    if folder.test is not None:
        splits["test"] = folder.test
    return splits


def _of_empty_photos(splits: dict[SplitName, Split]) -> Iterator[Finding]:
    empty = [
        Place(str(record.path), record.path)
        for split in splits.values()
        for record in split.records
        if not len(record.labels)
    ]
    if empty:
        advice = "right if nothing is there: they teach what is no object"
        yield Finding("note", "photos without objects", advice, tuple(empty))


def _of_single_boxes(splits: dict[SplitName, Split]) -> Iterator[Finding]:
    """Boxes that are wrong by themselves."""
    flat: list[Place] = []
    tiny: list[Place] = []
    outside: list[Place] = []
    copies: list[Place] = []
    for split in splits.values():
        for record in split.records:
            sides = record.boxes[:, 2:] - record.boxes[:, :2]
            has_area = (sides > 0).all(1)
            flat += _places(record, split, ~has_area)
            tiny += _places(record, split, has_area & (sides < TINY).any(1))
            outside += _places(record, split, has_area & _leaves_photo(record))
            copies += _places(record, split, is_copy(record))
    if outside:
        yield Finding("warning", "boxes that leave their photo", "they are cut at the edge", tuple(outside))
    if flat:
        yield Finding("warning", "boxes without an area", "they are left out", tuple(flat))
    if tiny:
        yield Finding("warning", f"boxes of less than {TINY:g} px", "slips of the mouse? look at them", tuple(tiny))
    if copies:
        yield Finding("warning", "objects annotated twice, box and class alike", "drop the copies", tuple(copies))


def _of_box_format(splits: dict[SplitName, Split]) -> Iterator[Finding]:
    """Boxes that were most likely written down in another convention."""
    num_boxes = num_as_corners = num_as_shares = 0
    for split in splits.values():
        for record in split.records:
            height, width = record.size
            corners = record.boxes[:, 2:] - record.boxes[:, :2]
            lies_inside = (corners > record.boxes[:, :2]).all(1) & (corners <= [width, height]).all(1)
            num_boxes += len(corners)
            num_as_corners += int((_leaves_photo(record) & lies_inside).sum())
            if min(record.size) > 4:
                num_as_shares += int(((record.boxes >= 0) & (record.boxes <= 2)).all(1).sum())
    if num_as_corners > num_boxes / 2:
        yield Finding(
            "error",
            f"{num_as_corners} of {num_boxes} boxes look like two corners (x1 y1 x2 y2)",
            "COCO wants x y width height; convert them",
            (),
        )
    if num_as_shares > num_boxes / 2:
        yield Finding(
            "error",
            f"{num_as_shares} of {num_boxes} boxes look like shares of the photo",
            "COCO and VOC want pixels; multiply by width and height",
            (),
        )


def _of_model(splits: dict[SplitName, Split], num_queries: int, image_size: int, stride: int) -> Iterator[Finding]:
    """Objects that the model is too small for."""
    too_many: list[Place] = []
    num_boxes = num_small = 0
    for split in splits.values():
        for record in split.records:
            num_objects = int((~record.is_crowd).sum())
            if num_objects > num_queries:
                too_many.append(Place(f"{record.path}: {num_objects} objects", record.path))
            sides = (record.boxes[:, 2:] - record.boxes[:, :2]) * image_size / min(record.size)
            num_boxes += len(sides)
            num_small += int((sides.max(1, initial=0) < stride).sum())
    if too_many:
        yield Finding(
            "warning",
            f"photos with more objects than the {num_queries} queries",
            "the rest cannot be found; train with --set num_queries=NUMBER, twice the most objects of a photo or more",
            tuple(too_many),
        )
    if num_small:
        yield Finding(
            "note",
            f"{num_small} of {num_boxes} objects are smaller than a cell of {stride} px when photos have {image_size} px",
            "if they matter: a larger --image-size, or a DC5 model",
            (),
        )


def _leaves_photo(record: Record) -> np.ndarray:
    height, width = record.size
    beyond = np.maximum(-record.boxes[:, :2], record.boxes[:, 2:] - [width, height])
    return beyond.max(1, initial=-np.inf) > EDGE


def is_copy(record: Record) -> np.ndarray:
    """Which objects stand before in the same photo, box and class alike: (N,) bool."""
    rows = [(*box, label) for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)]
    return np.array([row in rows[:index] for index, row in enumerate(rows)], dtype=bool)


def _places(record: Record, split: Split, chosen: np.ndarray) -> list[Place]:
    places = []
    for index in chosen.nonzero()[0]:
        box = tuple(record.boxes[index].tolist())
        name = split.categories.names[record.labels[index]]
        places.append(Place(f"{record.path}: {name} at " + " ".join(f"{value:g}" for value in box), record.path, box))
    return places


def _of_classes(splits: dict[SplitName, Split]) -> Iterator[Finding]:
    classes = list(count_classes(splits))
    unlearned = tuple(Place(one.name) for one in classes if not one.objects["train"] and any(one.objects.values()))
    unused = tuple(Place(one.name) for one in classes if not any(one.objects.values()))
    unjudged = tuple(Place(one.name) for one in classes if one.objects["train"] and not one.objects["val"])
    if not any(one.objects["train"] for one in classes):
        yield Finding("error", "no object in the training split", "annotate some; crowds do not count", ())
    elif unlearned:
        yield Finding("warning", "classes that the training split does not show", "divide the photos anew", unlearned)
    if unused:
        yield Finding(
            "warning", "classes without any object", "drop them from the list of classes, or annotate them", unused
        )
    if unjudged:
        yield Finding("warning", "classes that the validation split does not show", "their AP cannot be told", unjudged)
    counts = sorted((one.objects["train"], one.name) for one in classes if one.objects["train"])
    if counts and counts[-1][0] > MOST_UNEVEN * counts[0][0]:
        (rarest, rare), (most, frequent) = counts[0], counts[-1]
        yield Finding(
            "note",
            f"{frequent} has {most} objects, {rare} {rarest}",
            "expect little of the rare classes; add photos",
            (),
        )


def count_classes(splits: dict[SplitName, Split]) -> Iterator[ClassCount]:
    """Count the objects of every class, without crowds, in the order of the labels."""
    categories = splits["train"].categories
    counts = {
        name: Counter(label for record in split.records for label in record.labels[~record.is_crowd].tolist())
        for name, split in splits.items()
    }
    for label, (number, class_name) in enumerate(zip(categories.ids, categories.names, strict=True)):
        yield ClassCount(number, class_name, {name: count[label] for name, count in counts.items()})
