"""What annotations alone show to be wrong: boxes, classes, photos without objects. Opens no photo.

Input: a `DatasetSplits`. Output: `Finding`s, worst first.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from detrkit._internal.text import printable
from detrkit.data.dataset import DatasetSplits, Split
from detrkit.data.records import Record, SplitName

Severity = Literal["error", "warning", "note"]
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
MAX_IMBALANCE = 100  # times that the most frequent class may outnumber the rarest before it is said
TINY = 2.0  # pixels a side, below which a box is most likely a slip
EDGE = 1.0  # pixels by which boxes may pass the photo's edge: rounding of the tool that drew them


@dataclass(frozen=True)
class Location:
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
    places: tuple[Location, ...]


@dataclass(frozen=True)
class ClassCount:
    """Objects of one class in every split."""

    category_id: int
    name: str
    objects: dict[SplitName, int]


def examine_annotations(
    folder: DatasetSplits, *, num_queries: int, image_size: int, stride: int
) -> tuple[Finding, ...]:
    """The cheap part, which opens no photo: boxes and classes. Arguments as in `examine`."""
    objects = [_Objects.of(split) for split in folder.splits.values()]
    return worst_first(
        [
            *_of_box_format(objects),
            *_of_single_boxes(objects),
            *_of_model(objects, num_queries, image_size, stride),
            *_of_empty_photos(objects),
            *_of_classes(folder.splits),
            *_of_class_names(folder.splits),
        ]
    )


def max_objects(folder: DatasetSplits) -> int:
    """How many objects the fullest photo has, crowds left out."""
    return max((int(_Objects.of(split).counts.max(initial=0)) for split in folder.splits.values()), default=0)


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort by severity, then by how often."""
    return tuple(sorted(findings, key=lambda one: (_ORDER[one.severity], -len(one.places))))


@dataclass(frozen=True)
class _Objects:
    """All objects of a split, a row each, so that a million of them are checked in seconds.

    Attributes:
        split: whose.
        photo: (N,) number of each object's photo.
        boxes: (N, 4) xyxy in pixels.
        labels: (N,)
        is_crowd: (N,)
        sizes: (N, 2) height and width of each object's photo.
    """

    split: Split
    photo: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, split: Split) -> "_Objects":
        """Read them off a split's columns."""
        arrays = split.records.arrays
        photo = np.repeat(np.arange(len(split.records)), arrays.object_ends.diff().numpy())
        boxes, labels, is_crowd = arrays.boxes.numpy(), arrays.labels.numpy(), arrays.is_crowd.numpy()
        return cls(split, photo, boxes, labels, is_crowd, arrays.sizes.numpy()[photo])

    @property
    def counts(self) -> np.ndarray:
        """(P,) objects of each photo, crowds left out."""
        return np.bincount(self.photo[~self.is_crowd], minlength=len(self.split.records))

    @property
    def sides(self) -> np.ndarray:
        """(N, 2) width and height of the boxes."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def leave_photo(self) -> np.ndarray:
        """(N,) whether a box passes its photo's edge."""
        beyond = np.maximum(-self.boxes[:, :2], self.boxes[:, 2:] - self.sizes[:, ::-1])
        return beyond.max(1, initial=-np.inf) > EDGE

    @property
    def are_copies(self) -> np.ndarray:
        """(N,) whether an object stands before in the same photo, box and class alike."""
        return _repeated(np.column_stack([self.photo, self.boxes, self.labels]))

    def places(self, chosen: np.ndarray) -> list[Location]:
        """Where chosen objects are."""
        places = []
        for index in chosen.nonzero()[0]:
            path = self.split.records.path(int(self.photo[index]))
            box = tuple(self.boxes[index].tolist())
            name = self.split.categories.names[self.labels[index]]
            places.append(Location(f"{path}: {name} at " + " ".join(f"{value:g}" for value in box), path, box))
        return places


def _of_empty_photos(objects: Sequence[_Objects]) -> Iterator[Finding]:
    paths = [
        records.path(index)
        for records in (of_split.split.records for of_split in objects)
        for index in (records.arrays.object_ends.diff() == 0).nonzero()[:, 0].tolist()
    ]
    empty = [Location(str(path), path) for path in paths]
    if empty:
        advice = "right if nothing is there: they teach what is no object"
        yield Finding("note", "photos without objects", advice, tuple(empty))


def _of_single_boxes(objects: Sequence[_Objects]) -> Iterator[Finding]:
    """Boxes that are wrong by themselves."""
    flat: list[Location] = []
    tiny: list[Location] = []
    outside: list[Location] = []
    copies: list[Location] = []
    for of_split in objects:
        has_area = np.asarray((of_split.sides > 0).all(1))
        flat += of_split.places(~has_area)
        tiny += of_split.places(has_area & (of_split.sides < TINY).any(1))
        outside += of_split.places(has_area & of_split.leave_photo)
        copies += of_split.places(of_split.are_copies)
    if outside:
        yield Finding("warning", "boxes that leave their photo", "they are cut at the edge", tuple(outside))
    if flat:
        yield Finding("warning", "boxes without an area", "they are left out", tuple(flat))
    if tiny:
        yield Finding("warning", f"boxes of less than {TINY:g} px", "slips of the mouse? look at them", tuple(tiny))
    if copies:
        yield Finding("warning", "objects annotated twice, box and class alike", "drop the copies", tuple(copies))


def _of_box_format(objects: Sequence[_Objects]) -> Iterator[Finding]:
    """Boxes that were most likely written down in another convention."""
    num_boxes = num_as_corners = num_as_shares = 0
    for of_split in objects:
        corners = of_split.sides
        lies_inside = (corners > of_split.boxes[:, :2]).all(1) & (corners <= of_split.sizes[:, ::-1]).all(1)
        num_boxes += len(corners)
        num_as_corners += int((of_split.leave_photo & lies_inside).sum())
        is_large = of_split.sizes.min(1, initial=2**62) > 4
        num_as_shares += int((is_large & ((of_split.boxes >= 0) & (of_split.boxes <= 2)).all(1)).sum())
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


def _of_model(objects: Sequence[_Objects], num_queries: int, image_size: int, stride: int) -> Iterator[Finding]:
    """Objects that the model is too small for."""
    too_many: list[Location] = []
    num_boxes = num_small = 0
    for of_split in objects:
        records, counts = of_split.split.records, of_split.counts
        crowded = [(records.path(index), counts[index]) for index in (counts > num_queries).nonzero()[0].tolist()]
        too_many += [Location(f"{path}: {count} objects", path) for path, count in crowded]
        longest = of_split.sides.max(1, initial=0) * (image_size / of_split.sizes.min(1, initial=2**62))
        num_boxes += len(longest)
        num_small += int((longest < stride).sum())
    if too_many:
        most = max(int(of_split.counts.max(initial=0)) for of_split in objects)
        yield Finding(
            "warning",
            f"photos with more objects than the {num_queries} queries",
            f"the rest cannot be found; train with --num-queries {2 * most}, twice what the fullest photo has",
            tuple(too_many),
        )
    if num_small:
        yield Finding(
            "note",
            f"{num_small} of {num_boxes} objects are smaller than a cell of {stride} px when photos have {image_size} px",
            "if they matter: a larger --image-size, or a finer map (--num-feature-levels, or a preset with -dc5)",
            (),
        )


def is_copy(record: Record) -> np.ndarray:
    """Which objects stand before in the same photo, box and class alike: (N,) bool."""
    return _repeated(np.column_stack([record.boxes, record.labels]))


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Which rows of a table stand before in it: (N,) bool."""
    repeated = np.ones(len(rows), dtype=bool)
    repeated[np.unique(rows, axis=0, return_index=True)[1]] = False
    return repeated


def _of_classes(splits: dict[SplitName, Split]) -> Iterator[Finding]:
    classes = list(count_classes(splits))
    unlearned = tuple(Location(one.name) for one in classes if not one.objects["train"] and any(one.objects.values()))
    unused = tuple(Location(one.name) for one in classes if not any(one.objects.values()))
    unjudged = tuple(Location(one.name) for one in classes if one.objects["train"] and not one.objects["val"])
    if not any(one.objects["train"] for one in classes):
        yield Finding("error", "no object in the training split", "annotate some; crowds do not count", ())
    elif unlearned:
        yield Finding("warning", "classes that the training split does not show", "divide the photos anew", unlearned)
    if unused:
        yield Finding(
            "warning", "classes without any object", "drop them from the list of classes, or annotate them", unused
        )
    if not any(one.objects["val"] for one in classes):
        advice = "nothing can be judged, and the last checkpoint counts as the best; annotate some"
        yield Finding("warning", "no object in the validation split", advice, ())
    elif unjudged:
        yield Finding("warning", "classes that the validation split does not show", "their AP cannot be told", unjudged)
    counts = sorted((one.objects["train"], one.name) for one in classes if one.objects["train"])
    if counts and counts[-1][0] > MAX_IMBALANCE * counts[0][0]:
        (rarest, rare), (most, frequent) = counts[0], counts[-1]
        yield Finding(
            "note",
            f"{frequent} has {most} objects, {rare} {rarest}",
            "expect little of the rare classes; add photos",
            (),
        )


def _of_class_names(splits: dict[SplitName, Split]) -> Iterator[Finding]:
    categories = splits["train"].categories
    twice = {name for name, count in Counter(categories.names).items() if count > 1}
    named = list(zip(categories.ids, categories.names, strict=True))
    for what, advice, wrong in (
        ("class names that stand twice", "nobody can tell the classes apart; rename them", lambda name: name in twice),
        ("classes without a name", "name them", lambda name: not name.strip()),
        ("class names with characters that are not shown", "take them out", lambda name: printable(name) != name),
    ):
        places = tuple(Location(f"{name!r}, id {number}") for number, name in named if wrong(name))
        if places:
            yield Finding("warning", what, advice, places)


def count_classes(splits: dict[SplitName, Split]) -> Iterator[ClassCount]:
    """Count the objects of every class, without crowds, in the order of the labels."""
    categories = splits["train"].categories
    counts = {
        name: Counter(split.records.arrays.labels[~split.records.arrays.is_crowd].tolist())
        for name, split in splits.items()
    }
    for label, (number, class_name) in enumerate(zip(categories.ids, categories.names, strict=True)):
        yield ClassCount(number, class_name, {name: count[label] for name, count in counts.items()})
