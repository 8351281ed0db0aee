"""Panoptic quality (Kirillov et al., arXiv:1801.00868), following panopticapi: PQ = SQ x RQ, per class.

A predicted and a true segment of one class match if their IoU, with void pixels left out of the union, is above 0.5; so
each has at most one match. SQ is the mean IoU of the matches, RQ the F1 of matching. An unmatched predicted segment is
ignored if more than half of it lies on void pixels or on a crowd of its class.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.evaluation.ground_truth import GroundTruthSegments, ground_truth_segments
from detrkit.structures import PanopticSegments

_MATCH_IOU = 0.5  # exclusive
_IGNORE_FRACTION = 0.5  # of a predicted segment on void pixels and crowds, exclusive


@dataclass(frozen=True)
class PanopticCounts:
    """Matching statistics per class, summed over images.

    Attributes:
        iou_sum: (K,) sum of the IoUs of matches.
        true_positives: (K,) matches.
        false_positives: (K,) unmatched predicted segments.
        false_negatives: (K,) unmatched true segments.
        num_images: number of images.
    """

    iou_sum: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    num_images: int = 0

    @classmethod
    def zeros(cls, num_classes: int) -> "PanopticCounts":
        """Return the counts of no image."""
        return cls(np.zeros(num_classes), *np.zeros((3, num_classes), np.int64))

    @classmethod
    def sum(cls, parts: Iterable["PanopticCounts"], num_classes: int) -> "PanopticCounts":
        """Add up counts of several images or processes."""
        total = cls.zeros(num_classes)
        for part in parts:
            total = cls(
                *(first + second for first, second in zip(vars(total).values(), vars(part).values(), strict=True))
            )
        return total


@dataclass(frozen=True)
class PanopticQuality:
    """Means over the classes that occur; NaN if none does."""

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True)
class ClassPanopticQuality:
    """Panoptic quality of one class; NaN if it neither occurs nor is predicted.

    Attributes:
        name: class name.
        is_thing: thing or stuff; None if the dataset does not distinguish them.
        num_segments: true segments without crowds.
        true_positives: matched ones.
        false_positives: unmatched predicted segments.
        pq: panoptic quality.
        sq: segmentation quality, the mean IoU of matches.
        rq: recognition quality, the F1 of matching.
    """

    name: str
    is_thing: bool | None
    num_segments: int
    true_positives: int
    false_positives: int
    pq: float
    sq: float
    rq: float

    @property
    def false_negatives(self) -> int:
        """Unmatched true segments."""
        return self.num_segments - self.true_positives


@dataclass(frozen=True)
class PanopticMetrics:
    """Panoptic quality, in 0 .. 1.

    Attributes:
        overall: mean over all classes.
        things: mean over things; None if the dataset does not distinguish things and stuff.
        stuff: mean over stuff; None likewise.
        per_class: of each class.
        num_images: evaluated images.
        num_segments: true segments without crowds.
    """

    overall: PanopticQuality
    things: PanopticQuality | None
    stuff: PanopticQuality | None
    per_class: tuple[ClassPanopticQuality, ...]
    num_images: int
    num_segments: int

    @property
    def pq(self) -> float:
        """Panoptic quality over all classes."""
        return self.overall.pq

    @property
    def groups(self) -> dict[str, PanopticQuality]:
        """Means by group: ``all``, and ``things`` and ``stuff`` if the dataset distinguishes them."""
        groups = {"all": self.overall, "things": self.things, "stuff": self.stuff}
        return {name: quality for name, quality in groups.items() if quality is not None}

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PanopticMetrics":
        """Convert from what `to_json` returned."""
        groups = {
            name: None if content[name] is None else PanopticQuality(**content[name])
            for name in ("overall", "things", "stuff")
        }
        per_class = tuple(ClassPanopticQuality(**quality) for quality in content["per_class"])
        return cls(**{**content, **groups, "per_class": per_class})


def evaluate_panoptic(split: Split, predicted: Iterable[tuple[int, PanopticSegments]]) -> PanopticMetrics:
    """Compute panoptic quality; arguments as in `count_panoptic`."""
    return panoptic_metrics(count_panoptic(split, predicted), split.categories)


def count_panoptic(split: Split, predicted: Iterable[tuple[int, PanopticSegments]]) -> PanopticCounts:
    """Match predicted segments to the ground truth, one image at a time.

    Args:
        split: of panoptic data.
        predicted: image ids and segments of some of the split's images. Segments of categories that the dataset does not
            have are ignored.

    Raises:
        DatasetError: a PNG of the ground truth cannot be read.
    """
    ground_truth_of = ground_truth_segments(split)
    counts = (count_image(ground_truth_of(image_id), segments, split.categories) for image_id, segments in predicted)
    return PanopticCounts.sum(counts, len(split.categories))


def count_image(
    ground_truth: GroundTruthSegments, predicted: PanopticSegments, categories: Categories
) -> PanopticCounts:
    """Match the segments of one image.

    Of several crowds of one class only the last one is taken into account, as in panopticapi.
    """
    label_of = {category_id: label for label, category_id in enumerate(categories.ids)}
    segments = [one for one in predicted.segments if one.category_id in label_of]
    ids = np.array([one.id for one in segments], np.int64)
    labels = np.array([label_of[one.category_id] for one in segments], np.int64)
    intersections = _intersections(ground_truth.ids, ground_truth.segment_ids, predicted.ids.cpu().numpy(), ids)
    true_areas, areas = intersections[1:].sum(1), intersections[:, 1:].sum(0)
    inside, on_void = intersections[1:, 1:], intersections[0, 1:]
    unions = true_areas[:, None] + areas - inside - on_void
    can_match = (ground_truth.labels[:, None] == labels) & ~ground_truth.is_crowd[:, None] & (inside > 0)
    ious = np.divide(inside, unions, out=np.zeros_like(unions), where=can_match)
    is_match = ious > _MATCH_IOU
    is_matched, is_true_positive = is_match.any(1), is_match.any(0)
    ignored = on_void.copy()
    crowds = {label: row for row, label in enumerate(ground_truth.labels.tolist()) if ground_truth.is_crowd[row]}
    for column, label in enumerate(labels.tolist()):
        if label in crowds:
            ignored[column] += inside[crowds[label], column]
    # segments without a pixel are not counted
    is_false_positive = ~is_true_positive & (areas > 0) & (ignored <= _IGNORE_FRACTION * areas)
    is_false_negative = ~is_matched & ~ground_truth.is_crowd & (true_areas > 0)
    num_classes = len(categories)
    matched_labels = ground_truth.labels[is_matched]
    return PanopticCounts(
        iou_sum=np.bincount(matched_labels, (ious * is_match).sum(1)[is_matched], minlength=num_classes),
        true_positives=np.bincount(matched_labels, minlength=num_classes),
        false_positives=np.bincount(labels[is_false_positive], minlength=num_classes),
        false_negatives=np.bincount(ground_truth.labels[is_false_negative], minlength=num_classes),
        num_images=1,
    )


def panoptic_metrics(counts: PanopticCounts, categories: Categories) -> PanopticMetrics:
    """Compute panoptic quality from the counts of all images."""
    num_segments = counts.true_positives + counts.false_negatives
    denominator = counts.true_positives + 0.5 * (counts.false_positives + counts.false_negatives)
    with np.errstate(invalid="ignore"):
        pq, rq = counts.iou_sum / denominator, counts.true_positives / denominator
    sq = np.where(np.isnan(pq), np.nan, counts.iou_sum / np.maximum(counts.true_positives, 1))
    is_thing = categories.is_thing
    per_class = tuple(
        ClassPanopticQuality(
            name=name,
            is_thing=None if is_thing is None else is_thing[label],
            num_segments=int(num_segments[label]),
            true_positives=int(counts.true_positives[label]),
            false_positives=int(counts.false_positives[label]),
            pq=float(pq[label]),
            sq=float(sq[label]),
            rq=float(rq[label]),
        )
        for label, name in enumerate(categories.names)
    )
    return PanopticMetrics(
        overall=_mean_quality(per_class),
        things=None if is_thing is None else _mean_quality([one for one in per_class if one.is_thing]),
        stuff=None if is_thing is None else _mean_quality([one for one in per_class if not one.is_thing]),
        per_class=per_class,
        num_images=counts.num_images,
        num_segments=int(num_segments.sum()),
    )


def _mean_quality(classes: Iterable[ClassPanopticQuality]) -> PanopticQuality:
    defined = np.array([(one.pq, one.sq, one.rq) for one in classes if not np.isnan(one.pq)]).reshape(-1, 3)
    pq, sq, rq = defined.mean(0).tolist() if len(defined) else [float("nan")] * 3
    return PanopticQuality(pq, sq, rq, len(defined))


def _intersections(
    true_ids: np.ndarray, true_segments: np.ndarray, predicted_ids: np.ndarray, predicted_segments: np.ndarray
) -> np.ndarray:
    """Count the common pixels of every pair of a true and a predicted segment.

    Counted over runs of equal neighbours, of which an image has a tenth as many as pixels.

    Returns:
        (S + 1, P + 1) float64; the first row and column are pixels of no segment.
    """
    if true_ids.shape != predicted_ids.shape:
        raise ValueError(f"predicted segments have {predicted_ids.shape} pixels, the image has {true_ids.shape}")
    true_flat, predicted_flat = true_ids.ravel(), predicted_ids.ravel()
    is_start = np.ones(len(true_flat), bool)
    is_start[1:] = (true_flat[1:] != true_flat[:-1]) | (predicted_flat[1:] != predicted_flat[:-1])
    starts = is_start.nonzero()[0]
    lengths = np.diff(starts, append=len(true_flat))
    rows = _position_of(true_segments, true_flat[starts])
    columns = _position_of(predicted_segments, predicted_flat[starts])
    width = len(predicted_segments) + 1
    table = np.bincount(rows * width + columns, lengths, minlength=(len(true_segments) + 1) * width)
    return table.reshape(-1, width)


def _position_of(segment_ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Position of each value in `segment_ids`, counted from 1; 0 if it is not in it."""
    if not len(segment_ids):
        return np.zeros(len(values), np.int64)
    order = np.argsort(segment_ids, kind="stable")
    positions = np.searchsorted(segment_ids[order], values).clip(max=len(segment_ids) - 1)
    return np.where(segment_ids[order][positions] == values, order[positions] + 1, 0)
