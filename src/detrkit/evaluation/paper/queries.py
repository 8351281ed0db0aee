"""Where each query looks: the centres of the boxes that it predicts over a dataset (paper, section 4.3 and figure 7).

Every query specialises in some places and sizes, and most have a mode in which they predict boxes of the whole photo.
"""

from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.arrays import DetectionArrays, GroundTruth

SMALL_SIDE = 0.25  # of the photo's sides: boxes below in both are called small; the paper gives no number


@dataclass(frozen=True)
class QueryMap:
    """Boxes of Q queries on P photos. Where a query is not part of the answer (sigmoid scores), centre and size are NaN.

    Attributes:
        centres: (Q, P, 2) x and y, 0 .. 1 of the photo.
        sizes: (Q, P, 2) width and height, 0 .. 1 of the photo.
        scores: (Q, P)
    """

    centres: np.ndarray
    sizes: np.ndarray
    scores: np.ndarray

    @property
    def is_known(self) -> np.ndarray:
        """(Q, P) where queries are part of the answer."""
        return ~np.isnan(self.centres[..., 0])

    @property
    def is_small(self) -> np.ndarray:
        """(Q, P) boxes that are small in both directions."""
        return np.asarray((self.sizes < SMALL_SIDE).all(-1))

    @property
    def is_wide(self) -> np.ndarray:
        """(Q, P) other boxes that are wider than high, in shares of the photo."""
        return ~self.is_small & (self.sizes[..., 0] >= self.sizes[..., 1])

    @property
    def is_tall(self) -> np.ndarray:
        """(Q, P) the rest."""
        return self.is_known & ~self.is_small & ~self.is_wide

    def most_used(self, limit: int) -> np.ndarray:
        """The queries with the highest mean score, in their own order."""
        return np.sort(np.argsort(-self.scores.mean(1), kind="stable")[:limit])


def map_queries(truth: GroundTruth, found: DetectionArrays, num_queries: int) -> QueryMap:
    """Sort the detections of a model by query; photos that were not predicted are left out.

    Args:
        truth: knows the sizes of the photos.
        found: the answers of every photo, best first, as `collect` gives them.
        num_queries: Q.
    """
    photos = np.searchsorted(truth.image_ids, found.image_ids)
    seen, columns = np.unique(photos, return_inverse=True)
    sides = truth.sizes[photos][:, ::-1]  # width, height
    centres = np.full((num_queries, len(seen), 2), np.nan)
    sizes, scores = centres.copy(), np.zeros(centres.shape[:2])
    # a query's best answer on a photo is its first one
    _, first = np.unique(found.queries * len(seen) + columns, return_index=True)
    for values, of_found in (
        (centres, (found.boxes[:, :2] + found.boxes[:, 2:] / 2) / sides),
        (sizes, found.boxes[:, 2:] / sides),
        (scores, found.scores),
    ):
        values[found.queries[first], columns[first]] = of_found[first]
    return QueryMap(centres, sizes, scores)
