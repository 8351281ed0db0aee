"""Which detection answers for which object, as COCO has it: the best score chooses first, and takes what it fits best.

Input: a `Case`. Output: overlaps of detections and objects, and pairs of them.
"""

from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.arrays import EvalInput

RIGHT = 0.5  # least IoU of a detection with the object it answers for
NEAR = 0.1  # least IoU at which a detection can be said to mean an object (TIDE, section 2.2)
_MAX_PAIRS = 500_000  # compared at a time: what fits into a processor's cache


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a detection and an object of the same photo with an IoU of at least NEAR, E of them.

    Attributes:
        detections: (E,) position in `Case.found`, rising.
        objects: (E,) position in `Case.truth`.
        ious: (E,); with crowds, the share of the detection that lies inside.
        has_same_class: (E,)
        has_crowd: (E,) whether the object is a crowd.
    """

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    has_same_class: np.ndarray
    has_crowd: np.ndarray

    def select(self, chosen: np.ndarray) -> "Overlaps":
        """Keep some."""
        return Overlaps(**{name: column[chosen] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Matching:
    """Who answers for whom.

    Attributes:
        object_of: (D,) the object that a detection answers for, or -1.
        detection_of: (N,) the detection that answers for an object, or -1.
        is_ignored: (D,) detections inside a crowd of their class: neither right nor wrong.
    """

    object_of: np.ndarray
    detection_of: np.ndarray
    is_ignored: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """(D,) detections that answer for an object."""
        return self.object_of >= 0


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """The place of each detection, best first; of equal scores the first comes first."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks


def compute_ious(case: EvalInput) -> Overlaps:
    """Compare every detection with every object of its photo."""
    truth = case.truth
    by_photo = np.argsort(truth.photos, kind="stable")
    counts = np.bincount(truth.photos, minlength=len(truth.image_ids))
    firsts = np.cumsum(counts) - counts
    per_detection = counts[case.photos]
    ends = np.cumsum(per_detection)
    parts = []
    start = 0
    while start < len(ends):
        limit = (ends[start - 1] if start else 0) + _MAX_PAIRS
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        detections = np.repeat(np.arange(start, stop), per_detection[start:stop])
        begins = np.repeat(ends[start:stop] - per_detection[start:stop], per_detection[start:stop])
        steps = np.arange(len(detections)) + (ends[start - 1] if start else 0) - begins
        parts.append(_near(case, detections, by_photo[firsts[case.photos[detections]] + steps]))
        start = stop
    if not parts:
        return _near(case, np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Overlaps(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])})


def _near(case: EvalInput, detections: np.ndarray, objects: np.ndarray) -> Overlaps:
    for axis in (0, 1):  # most pairs do not touch, and are left out before more is computed
        first, second = case.found.boxes[:, axis], case.truth.boxes[:, axis]
        ends = (first + case.found.boxes[:, axis + 2])[detections], (second + case.truth.boxes[:, axis + 2])[objects]
        touches = np.minimum(*ends) > np.maximum(first[detections], second[objects])
        detections, objects = detections[touches], objects[touches]
    ours, theirs = case.found.boxes[detections], case.truth.boxes[objects]
    shared = np.minimum(ours[:, :2] + ours[:, 2:], theirs[:, :2] + theirs[:, 2:]) - np.maximum(
        ours[:, :2], theirs[:, :2]
    )
    common = shared.clip(min=0).prod(1)
    our_area, their_area = ours[:, 2:].prod(1), theirs[:, 2:].prod(1)
    has_crowd = case.truth.is_crowd[objects]
    union = np.where(has_crowd, our_area, our_area + their_area - common)
    ious = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    same = case.labels[detections] == case.truth.labels[objects]
    near = ious >= NEAR
    return Overlaps(*(column[near] for column in (detections, objects, ious, same, has_crowd)))


def match(case: EvalInput, overlaps: Overlaps, min_iou: float = RIGHT) -> Matching:
    """Match detections and objects of the same class, as COCO does at one IoU.

    Whoever stands below in rank changes nothing: leaving out detections below a threshold leaves out their matches, and
    no others.
    """
    close = overlaps.select(overlaps.has_same_class & (overlaps.ious >= min_iou))
    ranks = ranks_of(case.found.scores)
    object_of = greedy_assign(close.select(~close.has_crowd), ranks)
    detection_of = np.full(len(case.truth.labels), -1)
    right = np.flatnonzero(object_of >= 0)
    detection_of[object_of[right]] = right
    is_ignored = np.zeros(len(ranks), bool)
    is_ignored[close.detections[close.has_crowd]] = True
    return Matching(object_of, detection_of, is_ignored & (object_of < 0))


def greedy_assign(pairs: Overlaps, ranks: np.ndarray) -> np.ndarray:
    """Let detections choose among the objects they are paired with: the best score first, each the largest IoU left.

    All choose at once and give way to whoever stands above them, until nobody has to: the outcome is the same.

    Args:
        pairs: who may take what.
        ranks: (D,) of the detections.

    Returns:
        (D,) the object of each detection, or -1.
    """
    # of equal overlaps the later object is taken, as pycocotools does
    order = np.lexsort((-pairs.objects, -pairs.ious, ranks[pairs.detections]))
    detections, objects = pairs.detections[order], pairs.objects[order]
    object_of = np.full(len(ranks), -1)
    while len(detections):
        is_first = np.r_[True, detections[1:] != detections[:-1]]
        holder = np.full(objects.max() + 1, len(ranks))
        np.minimum.at(holder, objects[is_first], ranks[detections[is_first]])
        stays = ranks[detections] <= holder[objects]
        if stays[is_first].all():
            object_of[detections[is_first]] = objects[is_first]
            break
        detections, objects = detections[stays], objects[stays]
    return object_of
