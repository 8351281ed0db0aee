"""How many objects of one class are found as their number grows (paper, appendix A.5 and figure 12).

Every query answers for at most one object: the number that is found cannot grow beyond the number of queries, and mostly
falls behind before, for crowds of one class are rare in training.
"""

from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import compute_ious, match


@dataclass(frozen=True)
class Count:
    """Photos with one number of objects.

    Attributes:
        present: objects on each of the photos.
        found_mean: of them that are found, on average.
        found_min: on the worst photo.
        found_max: on the best.
        shown_mean: detections that are shown, right or not.
    """

    present: int
    found_mean: float
    found_min: int
    found_max: int
    shown_mean: float


def count_found(case: EvalInput, threshold: float) -> tuple[Count, ...]:
    """Count objects that are found with a score of at least `threshold`, by the number that is there."""
    matching = match(case, compute_ious(case))
    is_shown = case.found.scores >= threshold
    num_images = len(case.truth.image_ids)
    present = np.bincount(case.truth.photos[~case.truth.is_crowd], minlength=num_images)
    shown = np.bincount(case.photos[is_shown], minlength=num_images)
    found = np.bincount(case.photos[is_shown & matching.is_right], minlength=num_images)
    return tuple(
        Count(
            present=int(number),
            found_mean=float(found[present == number].mean()),
            found_min=int(found[present == number].min()),
            found_max=int(found[present == number].max()),
            shown_mean=float(shown[present == number].mean()),
        )
        for number in np.unique(present)
    )
