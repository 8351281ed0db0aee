"""Where each query looks: the centres of the boxes that it predicts over a dataset (paper, section 4.3 and figure 7).

Every query specialises in some places and sizes, and most have a mode in which they predict boxes of the whole photo.
"""

from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.columns import Found, Truth

SMALL_SIDE = 0.25  # of the photo's sides: boxes below in both are called small; the paper gives no number


@dataclass(frozen=True)
class QueryMap:
    """Boxes of Q queries on P photos.

    Attributes:
        centres: (Q, P, 2) x and y, 0 .. 1 of the photo.
        sizes: (Q, P, 2) width and height, 0 .. 1 of the photo.
        scores: (Q, P)
    """

    centres: np.ndarray
    sizes: np.ndarray
    scores: np.ndarray

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
        return ~self.is_small & ~self.is_wide

    def most_used(self, limit: int) -> np.ndarray:
        """The queries with the highest mean score, in their own order."""
        return np.sort(np.argsort(-self.scores.mean(1), kind="stable")[:limit])


def map_queries(truth: Truth, found: Found, num_queries: int) -> QueryMap:
    """Sort the detections of a model by query; photos that were not predicted are left out.

    Args:
        truth: knows the sizes of the photos.
        found: all queries of every photo, as `collect` gives them.
        num_queries: Q.
    """
    photos = np.searchsorted(truth.image_ids, found.image_ids)
    order = np.lexsort((photos, found.queries))
    sides = truth.sizes[photos][:, ::-1]  # width, height
    centres = (found.boxes[:, :2] + found.boxes[:, 2:] / 2) / sides
    return QueryMap(
        centres[order].reshape(num_queries, -1, 2),
        (found.boxes[:, 2:] / sides)[order].reshape(num_queries, -1, 2),
        found.scores[order].reshape(num_queries, -1),
    )
