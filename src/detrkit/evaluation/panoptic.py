"""Panoptic quality (Kirillov et al., arXiv:1801.00868), by panopticapi's rules: PQ = SQ x RQ, class by class.

A predicted and a true segment of one class match when their intersection over union is above 0.5, void pixels left out of
the union; so each has at most one partner. SQ is the mean of these over matches, RQ the F1 of matching. A segment without a
partner is not counted as false when more than half of it lies on void pixels or on a crowd of its class.

Input: records with PNGs of segments, and `PanopticSegments`. Output: `PanopticCounts` of some photos, which are added over
photos and processes, and the `PanopticScores` made of all.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.records import Record
from detrkit.data.segment_png import read_ids
from detrkit.data.segmentation import segment_ids
from detrkit.structures import Annotations, PanopticSegments

_MATCHES_ABOVE = 0.5  # intersection over union
_IGNORED_ABOVE = 0.5  # share on void pixels and crowds


@dataclass(frozen=True)
class PanopticCounts:
    """What is counted class by class, K of them; sums over photos.

    Attributes:
        overlap: (K,) sum of the intersections over unions of matching segments.
        num_right: (K,) matching pairs.
        num_false: (K,) predicted segments without a partner.
        num_missed: (K,) true segments without one.
        num_images: that were compared.
    """

    overlap: np.ndarray
    num_right: np.ndarray
    num_false: np.ndarray
    num_missed: np.ndarray
    num_images: int = 0

    @classmethod
    def none(cls, num_classes: int) -> "PanopticCounts":
        """Nothing counted yet."""
        right, false, missed = np.zeros((3, num_classes), np.int64)
        return cls(np.zeros(num_classes), right, false, missed)

    @classmethod
    def joined(cls, parts: Iterable["PanopticCounts"], num_classes: int) -> "PanopticCounts":
        """Add up what was counted on several photos, or by several processes."""
        total = cls.none(num_classes)
        for part in parts:
            total = cls(
                *(mine + theirs for mine, theirs in zip(vars(total).values(), vars(part).values(), strict=True))
            )
        return total


@dataclass(frozen=True)
class Quality:
    """Means over classes that occur; NaN where none does."""

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True)
class ClassQuality:
    """Quality of one class; NaN where it neither occurs nor is predicted.

    Attributes:
        name: of the class.
        is_thing: or stuff; None where the dataset does not say.
        num_segments: true ones, without crowds.
        num_right: of them found.
        num_false: predicted segments that are none.
        pq: panoptic quality.
        sq: mean overlap of what is found.
        rq: F1 of finding.
    """

    name: str
    is_thing: bool | None
    num_segments: int
    num_right: int
    num_false: int
    pq: float
    sq: float
    rq: float


@dataclass(frozen=True)
class PanopticScores:
    """Panoptic quality of a set of predictions, 0 .. 1; things and stuff are None where the dataset does not say."""

    overall: Quality
    things: Quality | None
    stuff: Quality | None
    per_class: tuple[ClassQuality, ...]
    num_images: int
    num_segments: int

    @property
    def pq(self) -> float:
        """The number that models are compared by."""
        return self.overall.pq

    @property
    def groups(self) -> dict[str, Quality]:
        """What there is: all, things, stuff."""
        known = {"all": self.overall, "things": self.things, "stuff": self.stuff}
        return {name: quality for name, quality in known.items() if quality is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PanopticScores":
        """Read what `to_json` gave."""
        groups = {
            name: None if content[name] is None else Quality(**content[name]) for name in ("overall", "things", "stuff")
        }
        classes = tuple(ClassQuality(**one) for one in content["per_class"])
        return cls(**{**content, **groups, "per_class": classes})


@dataclass(frozen=True)
class GroundTruthSegments:
    """The annotated segments of one photo, S of them.

    Attributes:
        ids: (H, W) id of every pixel; those that are not in `segment_ids` are void.
        segment_ids: (S,) without 0.
        labels: (S,) 0 .. K-1.
        is_crowd: (S,) segments of many objects.
    """

    ids: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray

    @classmethod
    def from_record(cls, record: Record) -> "GroundTruthSegments":
        """Read the PNG of a record.

        Raises:
            DatasetError: it cannot be read.
        """
        assert record.mask_file is not None
        assert record.segmentations is not None
        ids = read_ids(record.mask_file, record.size).numpy()
        return cls(ids, segment_ids(record.segmentations).numpy(), record.labels, record.is_crowd)

    @classmethod
    def from_annotations(cls, annotations: Annotations) -> "GroundTruthSegments":
        """Take masks that do not overlap; the rest is void."""
        assert annotations.masks is not None
        numbers = np.arange(1, len(annotations.labels) + 1)
        ids = (annotations.masks.numpy() * numbers[:, None, None]).sum(0)
        return cls(ids, numbers, annotations.labels.numpy(), np.zeros(len(numbers), bool))


def ground_truth_segments(split: Split) -> Callable[[int], GroundTruthSegments]:
    """Return a function from the id of an image to its annotated segments, which are read when it is called."""
    index_of = {image_id: index for index, image_id in enumerate(split.records.image_ids)}
    if split.records.arrays.mask_files is None:
        return lambda image_id: GroundTruthSegments.from_annotations(
            split.read(index_of[image_id], masks=True).annotations
        )
    return lambda image_id: GroundTruthSegments.from_record(split.records[index_of[image_id]])


def evaluate_panoptic(split: Split, predicted: Iterable[tuple[int, PanopticSegments]]) -> PanopticScores:
    """Score predictions of a split's photos in one go. Arguments as in `count_panoptic`."""
    return score_panoptic(count_panoptic(split, predicted), split.categories)


def count_panoptic(split: Split, predicted: Iterable[tuple[int, PanopticSegments]]) -> PanopticCounts:
    """Compare predictions with the truth, one photo after the other: nothing of a photo is kept.

    Args:
        split: of panoptic data.
        predicted: image ids and segments, any part of the split's photos; segments whose category id
            the dataset does not have do not count, like detections of such.

    Raises:
        DatasetError: a PNG of the truth cannot be read.
    """
    place_of = {image_id: place for place, image_id in enumerate(split.records.image_ids)}
    counts = (
        count_photo(GroundTruthSegments.from_record(split.records[place_of[image_id]]), segments, split.categories)
        for image_id, segments in predicted
    )
    return PanopticCounts.joined(counts, len(split.categories))


def count_photo(truth: GroundTruthSegments, found: PanopticSegments, categories: Categories) -> PanopticCounts:
    """Compare the segments of one photo.

    Of several crowds of one class the last counts, as in panopticapi.
    """
    label_of = {number: label for label, number in enumerate(categories.ids)}
    known = [one for one in found.segments if one.category_id in label_of]
    found_ids = np.array([one.id for one in known], np.int64)
    found_labels = np.array([label_of[one.category_id] for one in known], np.int64)
    shared = _shared_pixels(truth.ids, truth.segment_ids, found.ids.cpu().numpy(), found_ids)
    true_areas, areas = shared[1:].sum(1), shared[:, 1:].sum(0)
    inside, on_void = shared[1:, 1:], shared[0, 1:]
    unions = true_areas[:, None] + areas - inside - on_void
    can_match = (truth.labels[:, None] == found_labels) & ~truth.is_crowd[:, None] & (inside > 0)
    overlaps = np.divide(inside, unions, out=np.zeros_like(unions), where=can_match)
    matches = overlaps > _MATCHES_ABOVE
    is_found, is_right = matches.any(1), matches.any(0)
    ignored = on_void.copy()
    crowd_of = {label: row for row, label in enumerate(truth.labels.tolist()) if truth.is_crowd[row]}
    for column, label in enumerate(found_labels.tolist()):
        if label in crowd_of:
            ignored[column] += inside[crowd_of[label], column]
    # a segment that no pixel has is neither right nor false
    is_false = ~is_right & (areas > 0) & (ignored <= _IGNORED_ABOVE * areas)
    is_missed = ~is_found & ~truth.is_crowd & (true_areas > 0)
    size = len(categories)
    return PanopticCounts(
        overlap=np.bincount(truth.labels[is_found], (overlaps * matches).sum(1)[is_found], minlength=size),
        num_right=np.bincount(truth.labels[is_found], minlength=size),
        num_false=np.bincount(found_labels[is_false], minlength=size),
        num_missed=np.bincount(truth.labels[is_missed], minlength=size),
        num_images=1,
    )


def score_panoptic(counts: PanopticCounts, categories: Categories) -> PanopticScores:
    """Make scores of what was counted on all photos."""
    num_segments = counts.num_right + counts.num_missed
    halves = counts.num_right + 0.5 * (counts.num_false + counts.num_missed)
    with np.errstate(invalid="ignore"):
        pq, rq = counts.overlap / halves, counts.num_right / halves
    sq = np.where(np.isnan(pq), np.nan, counts.overlap / np.maximum(counts.num_right, 1))
    kinds = categories.is_thing
    per_class = tuple(
        ClassQuality(
            name=name,
            is_thing=None if kinds is None else kinds[label],
            num_segments=int(num_segments[label]),
            num_right=int(counts.num_right[label]),
            num_false=int(counts.num_false[label]),
            pq=float(pq[label]),
            sq=float(sq[label]),
            rq=float(rq[label]),
        )
        for label, name in enumerate(categories.names)
    )
    return PanopticScores(
        overall=_mean_quality(per_class),
        things=None if kinds is None else _mean_quality([one for one in per_class if one.is_thing]),
        stuff=None if kinds is None else _mean_quality([one for one in per_class if not one.is_thing]),
        per_class=per_class,
        num_images=counts.num_images,
        num_segments=int(num_segments.sum()),
    )


def _mean_quality(classes: Iterable[ClassQuality]) -> Quality:
    known = np.array([(one.pq, one.sq, one.rq) for one in classes if not np.isnan(one.pq)]).reshape(-1, 3)
    pq, sq, rq = known.mean(0).tolist() if len(known) else [float("nan")] * 3
    return Quality(pq, sq, rq, len(known))


def _shared_pixels(
    true_ids: np.ndarray, true_segments: np.ndarray, found_ids: np.ndarray, found_segments: np.ndarray
) -> np.ndarray:
    """Count the pixels of every pair of a true and a found segment; the first row and column are those of none.

    Counted over runs of equal neighbours, of which a photo has a tenth as many as pixels.

    Returns:
        (S + 1, F + 1) float64.
    """
    if true_ids.shape != found_ids.shape:
        raise ValueError(f"segments of {found_ids.shape} pixels, the photo has {true_ids.shape}")
    true_flat, found_flat = true_ids.ravel(), found_ids.ravel()
    is_start = np.ones(len(true_flat), bool)
    is_start[1:] = (true_flat[1:] != true_flat[:-1]) | (found_flat[1:] != found_flat[:-1])
    starts = is_start.nonzero()[0]
    lengths = np.diff(starts, append=len(true_flat))
    rows = _places(true_segments, true_flat[starts])
    columns = _places(found_segments, found_flat[starts])
    width = len(found_segments) + 1
    table = np.bincount(rows * width + columns, lengths, minlength=(len(true_segments) + 1) * width)
    return table.reshape(-1, width)


def _places(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted id stands among known ones, from 1; 0 where it does not."""
    if not len(known):
        return np.zeros(len(wanted), np.int64)
    order = np.argsort(known, kind="stable")
    places = np.searchsorted(known[order], wanted).clip(max=len(known) - 1)
    return np.where(known[order][places] == wanted, order[places] + 1, 0)
