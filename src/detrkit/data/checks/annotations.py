"""Checks of annotations: boxes, classes, images without objects. No image is read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detrkit._internal.text import plural, printable
from detrkit.data.dataset import DatasetSplits, Split
from detrkit.data.findings import Finding, Location, sort_findings
from detrkit.data.records import Record, SplitName

MAX_IMBALANCE = 100  # ratio of the most frequent to the rarest class from which it is reported
MIN_BOX_SIZE = 2.0  # pixels; smaller boxes are probably mistakes
EDGE_TOLERANCE = 1.0  # pixels by which boxes may exceed the image, for rounding


@dataclass(frozen=True)
class ClassCount:
    """Number of objects of a class in every split.

    Attributes:
        category_id: id of the class.
        name: of the class.
        objects: without crowds, by split.
        crowds: objects that are taken for crowds and not trained on, by split.
    """

    category_id: int
    name: str
    objects: dict[SplitName, int]
    crowds: dict[SplitName, int]


def examine_annotations(
    dataset: DatasetSplits, *, num_queries: int, image_size: int, stride: int, split: SplitName | None = None
) -> tuple[Finding, ...]:
    """Check boxes and classes; arguments as in `examine`."""
    if not dataset.splits:
        return ()
    objects = [_Objects.of(split) for split in dataset.splits.values()]
    classes = list(count_classes(dataset.splits))
    return sort_findings(
        [
            *_box_format_findings(objects),
            *_box_findings(objects),
            *_model_findings(objects, num_queries, image_size, stride),
            *_empty_image_findings(objects),
            *_crowd_findings(classes),
            *(_split_class_findings(classes, split) if split else _class_findings(classes)),
            *_class_name_findings(dataset.splits),
        ]
    )


def max_objects(dataset: DatasetSplits) -> int:
    """Return the maximum number of objects in an image, without crowds."""
    return max((int(_Objects.of(split).counts.max(initial=0)) for split in dataset.splits.values()), default=0)


@dataclass(frozen=True)
class _Objects:
    """All objects of a split as arrays, so that a million of them are checked in seconds.

    Attributes:
        split: of the objects.
        image: (N,) index of each object's image.
        boxes: (N, 4) xyxy in pixels.
        labels: (N,)
        is_crowd: (N,)
        sizes: (N, 2) height and width of each object's image.
    """

    split: Split
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, split: Split) -> "_Objects":
        """Collect the objects of a split."""
        arrays = split.records.arrays
        image = np.repeat(np.arange(len(split.records)), arrays.object_ends.diff().numpy())
        boxes, labels, is_crowd = arrays.boxes.numpy(), arrays.labels.numpy(), arrays.is_crowd.numpy()
        return cls(split, image, boxes, labels, is_crowd, arrays.sizes.numpy()[image])

    @property
    def counts(self) -> np.ndarray:
        """(P,) number of objects in each image, without crowds."""
        return np.bincount(self.image[~self.is_crowd], minlength=len(self.split.records))

    @property
    def sides(self) -> np.ndarray:
        """(N, 2) width and height of the boxes."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def exceeds_image(self) -> np.ndarray:
        """(N,) whether a box exceeds its image."""
        beyond = np.maximum(-self.boxes[:, :2], self.boxes[:, 2:] - self.sizes[:, ::-1])
        return beyond.max(1, initial=-np.inf) > EDGE_TOLERANCE

    @property
    def is_duplicate(self) -> np.ndarray:
        """(N,) whether an earlier object of the same image has the same box and class."""
        return _find_repeated(np.column_stack([self.image, self.boxes, self.labels]))

    def locations(self, chosen: np.ndarray) -> list[Location]:
        """Return the locations of chosen objects."""
        locations = []
        for index in chosen.nonzero()[0]:
            path = self.split.records.path(int(self.image[index]))
            box = tuple(self.boxes[index].tolist())
            name = self.split.categories.names[self.labels[index]]
            locations.append(Location(f"{path}: {name} at " + " ".join(f"{value:g}" for value in box), path, box))
        return locations


def _empty_image_findings(objects: Sequence[_Objects]) -> Iterator[Finding]:
    paths = [
        records.path(index)
        for records in (of_split.split.records for of_split in objects)
        for index in (records.arrays.object_ends.diff() == 0).nonzero()[:, 0].tolist()
    ]
    empty = [Location(str(path), path) for path in paths]
    if empty:
        advice = "fine if they show no objects: they are negative examples"
        yield Finding("note", "images without objects", advice, tuple(empty))


def _box_findings(objects: Sequence[_Objects]) -> Iterator[Finding]:
    """Find boxes that are wrong by themselves."""
    flat: list[Location] = []
    tiny: list[Location] = []
    outside: list[Location] = []
    copies: list[Location] = []
    for of_split in objects:
        has_area = np.asarray((of_split.sides > 0).all(1))
        flat += of_split.locations(~has_area)
        tiny += of_split.locations(has_area & (of_split.sides < MIN_BOX_SIZE).any(1))
        outside += of_split.locations(has_area & of_split.exceeds_image)
        copies += of_split.locations(of_split.is_duplicate)
    if outside:
        yield Finding("warning", "boxes that exceed their image", "they are clipped", tuple(outside))
    if flat:
        yield Finding("warning", "boxes without area", "they are left out", tuple(flat))
    if tiny:
        yield Finding(
            "warning", f"boxes smaller than {MIN_BOX_SIZE:g} px", "probably mistakes; look at them", tuple(tiny)
        )
    if copies:
        yield Finding(
            "warning", "objects annotated twice, with the same box and class", "drop the copies", tuple(copies)
        )


def _box_format_findings(objects: Sequence[_Objects]) -> Iterator[Finding]:
    """Find boxes that were probably written in another convention."""
    num_boxes = num_as_corners = num_relative = 0
    for of_split in objects:
        corners = of_split.sides
        lies_inside = (corners > of_split.boxes[:, :2]).all(1) & (corners <= of_split.sizes[:, ::-1]).all(1)
        num_boxes += len(corners)
        num_as_corners += int((of_split.exceeds_image & lies_inside).sum())
        is_large = of_split.sizes.min(1, initial=2**62) > 4
        num_relative += int((is_large & ((of_split.boxes >= 0) & (of_split.boxes <= 2)).all(1)).sum())
    if num_as_corners > num_boxes / 2:
        yield Finding(
            "error",
            f"{num_as_corners} of {num_boxes} boxes look like two corners (x1 y1 x2 y2)",
            "COCO boxes are x y width height; convert them",
            (),
        )
    if num_relative > num_boxes / 2:
        yield Finding(
            "error",
            f"{num_relative} of {num_boxes} boxes look relative to the image",
            "COCO and VOC boxes are in pixels; multiply by width and height",
            (),
        )


def _model_findings(objects: Sequence[_Objects], num_queries: int, image_size: int, stride: int) -> Iterator[Finding]:
    """Find images and objects that the model is too small for."""
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
        maximum = max(int(of_split.counts.max(initial=0)) for of_split in objects)
        yield Finding(
            "warning",
            f"images with more objects than the {num_queries} queries",
            f"the others cannot be detected; set num_queries to {2 * maximum}, twice the maximum per image",
            tuple(too_many),
        )
    if num_small:
        yield Finding(
            "note",
            f"{num_small} of {num_boxes} objects are smaller than the stride of {stride} px at image_size {image_size}",
            "if they matter, use a larger image_size, or more num_feature_levels or a preset with -dc5",
            (),
        )


def find_duplicates(record: Record) -> np.ndarray:
    """Return a mask (N,) of objects that repeat the box and class of an earlier one."""
    return _find_repeated(np.column_stack([record.boxes, record.labels]))


def _find_repeated(rows: np.ndarray) -> np.ndarray:
    """Return a mask (N,) of rows that are equal to an earlier one."""
    repeated = np.ones(len(rows), dtype=bool)
    repeated[np.unique(rows, axis=0, return_index=True)[1]] = False
    return repeated


def _crowd_findings(classes: Sequence[ClassCount]) -> Iterator[Finding]:
    """Report objects that are taken for crowds; a warning where these are most of a class."""
    counts = [(one.name, sum(one.crowds.values()), sum(one.objects.values())) for one in classes]
    most, some = (
        tuple(
            Location(f"{name}: {crowds} of {plural(crowds + objects, 'object')}")
            for name, crowds, objects in counts
            if crowds and (crowds > objects) is is_most
        )
        for is_most in (True, False)
    )
    if most:
        yield Finding(
            "warning",
            "classes most of whose objects are crowds (iscrowd 1, difficult)",
            "crowds are not trained on; some tools mark every mask as a crowd: if these are single objects, set it to 0",
            most,
        )
    if some:
        yield Finding(
            "note",
            "classes with crowds (iscrowd 1, difficult)",
            "they stand for groups of objects, and are neither trained on nor evaluated",
            some,
        )


def _split_class_findings(classes: Sequence[ClassCount], split: SplitName) -> Iterator[Finding]:
    """Report classes without objects in the only split that is examined."""
    unused = tuple(Location(one.name) for one in classes if not one.objects.get(split))
    if len(unused) == len(classes):
        yield Finding("error", f"no object in the {split} split", "annotate some; crowds do not count", ())
    elif unused:
        yield Finding("note", f"classes without objects in the {split} split", "their AP cannot be computed", unused)


def _class_findings(classes: Sequence[ClassCount]) -> Iterator[Finding]:
    not_in_train = tuple(
        Location(one.name) for one in classes if not one.objects.get("train") and any(one.objects.values())
    )
    unused = tuple(Location(one.name) for one in classes if not any(one.objects.values()))
    not_in_val = tuple(Location(one.name) for one in classes if one.objects.get("train") and not one.objects.get("val"))
    if not any(one.objects.get("train") for one in classes):
        yield Finding("error", "no object in the training split", "annotate some; crowds are not trained on", ())
    elif not_in_train:
        yield Finding(
            "warning", "classes without objects in the training split", "split the images differently", not_in_train
        )
    if unused:
        yield Finding(
            "warning", "classes without any object", "drop them from the list of classes, or annotate them", unused
        )
    if not any(one.objects.get("val") for one in classes):
        advice = "metrics cannot be computed, and the last checkpoint is taken as the best; annotate some"
        yield Finding("warning", "no object in the validation split", advice, ())
    elif not_in_val:
        yield Finding(
            "warning", "classes without objects in the validation split", "their AP cannot be computed", not_in_val
        )
    counts = sorted((one.objects["train"], one.name) for one in classes if one.objects.get("train"))
    if counts and counts[-1][0] > MAX_IMBALANCE * counts[0][0]:
        (min_count, rare), (max_count, frequent) = counts[0], counts[-1]
        yield Finding(
            "note",
            f"{frequent} has {max_count} objects, {rare} {min_count}",
            "rare classes will be detected poorly; add images of them",
            (),
        )


def _class_name_findings(splits: dict[SplitName, Split]) -> Iterator[Finding]:
    categories = next(iter(splits.values())).categories
    repeated = {name for name, count in Counter(categories.names).items() if count > 1}
    named = list(zip(categories.ids, categories.names, strict=True))
    for title, advice, is_wrong in (
        ("class names that occur twice", "rename them", lambda name: name in repeated),
        ("classes without a name", "name them", lambda name: not name.strip()),
        ("class names with control characters", "remove them", lambda name: printable(name) != name),
    ):
        locations = tuple(Location(f"{name!r}, id {number}") for number, name in named if is_wrong(name))
        if locations:
            yield Finding("warning", title, advice, locations)


def count_classes(splits: dict[SplitName, Split]) -> Iterator[ClassCount]:
    """Count the objects and crowds of every class, in the order of the labels."""
    if not splits:
        return
    categories = next(iter(splits.values())).categories
    arrays = {name: split.records.arrays for name, split in splits.items()}
    objects = {name: Counter(one.labels[~one.is_crowd].tolist()) for name, one in arrays.items()}
    crowds = {name: Counter(one.labels[one.is_crowd].tolist()) for name, one in arrays.items()}
    for label, (number, class_name) in enumerate(zip(categories.ids, categories.names, strict=True)):
        of_class = ({name: count[label] for name, count in counts.items()} for counts in (objects, crowds))
        yield ClassCount(number, class_name, *of_class)
