"""Boxes predicted by each query over a dataset (paper, section 4.3 and figure 7).

Every learned query specialises in some positions and sizes; most also have a mode of predicting image-sized boxes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detrkit.evaluation.arrays import DetectionArrays, GroundTruth
from detrkit.evaluation.paper.analysis import PaperAnalysis
from detrkit.evaluation.report.page import ReportFigure
from detrkit.visualization.charts import as_png, draw_query_map

SMALL_SIDE = 0.25  # of the image's sides: boxes below in both count as small; the paper gives no number
_MAX_PANELS = 20  # as in the paper
_LEARNED_NOTE = "Trained queries specialise in positions and sizes; if all look alike, train longer."
_PROPOSALS_NOTE = (
    "This model selects its queries anew on every image: query 0 starts from the box with the highest score, query 1 from "
    "the next. So a query has a rank but no position of its own, and all may look alike."
)


@dataclass(frozen=True)
class QueryMap:
    """Best box of each of Q queries on I images; NaN where a query is not part of the top-k of a sigmoid model.

    Attributes:
        centres: (Q, I, 2) x and y, relative to the image.
        sizes: (Q, I, 2) width and height, relative to the image.
        scores: (Q, I)
    """

    centres: np.ndarray
    sizes: np.ndarray
    scores: np.ndarray

    @property
    def is_defined(self) -> np.ndarray:
        """(Q, I) where the query has a box."""
        return ~np.isnan(self.centres[..., 0])

    @property
    def is_small(self) -> np.ndarray:
        """(Q, I) small in both directions."""
        return np.asarray((self.sizes < SMALL_SIDE).all(-1))

    @property
    def is_wide(self) -> np.ndarray:
        """(Q, I) not small, and at least as wide as high, relative to the image."""
        return ~self.is_small & (self.sizes[..., 0] >= self.sizes[..., 1])

    @property
    def is_tall(self) -> np.ndarray:
        """(Q, I) all others."""
        return self.is_defined & ~self.is_small & ~self.is_wide

    def highest_scoring(self, limit: int) -> np.ndarray:
        """Return the queries with the highest mean score, in ascending order."""
        return np.sort(np.argsort(-self.scores.mean(1), kind="stable")[:limit])

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to plain values, one entry per query."""
        shapes = {"small": self.is_small, "wide": self.is_wide, "tall": self.is_tall}
        rows: list[dict[str, Any]] = []
        for query, defined in enumerate(self.is_defined):
            row: dict[str, Any] = {"query": query, "mean_score": float(self.scores[query].mean())}
            if defined.any():
                centres = self.centres[query][defined]
                row |= {
                    "mean_centre": centres.mean(0).tolist(),
                    "spread": centres.std(0).tolist(),
                    "mean_size": self.sizes[query][defined].mean(0).tolist(),
                    **{name: float(mask[query][defined].mean()) for name, mask in shapes.items()},
                }
            rows.append(row)
        return rows


def analyse_queries(
    ground_truth: GroundTruth, detections: DetectionArrays, num_queries: int, *, are_proposals: bool
) -> PaperAnalysis:
    """Plot the boxes of each query (figure 7).

    Args:
        ground_truth: with the image sizes.
        detections: of all queries.
        num_queries: Q.
        are_proposals: queries are selected encoder proposals (two-stage), not learned.
    """
    query_map = map_queries(ground_truth, detections, num_queries)
    queries = query_map.highest_scoring(_MAX_PANELS).tolist()
    defined = query_map.is_defined
    shapes = {"small": query_map.is_small, "wide": query_map.is_wide, "tall": query_map.is_tall}
    figure = draw_query_map(
        [f"query {query}" for query in queries],
        [query_map.centres[query][defined[query]] for query in queries],
        [{name: mask[query][defined[query]] for name, mask in shapes.items()} for query in queries],
    )
    text = (
        f"Box centres predicted by a query, one point per image, whatever the score. Shown: of {num_queries} queries the "
        f"{len(queries)} with the highest mean score. Small: below {SMALL_SIDE:.0%} of the image in both directions. "
        + (_PROPOSALS_NOTE if are_proposals else _LEARNED_NOTE)
    )
    return PaperAnalysis("query_map", ReportFigure("Boxes by query", text, as_png(figure)), query_map.to_json())


def map_queries(ground_truth: GroundTruth, detections: DetectionArrays, num_queries: int) -> QueryMap:
    """Arrange detections by query; images without detections are left out.

    Args:
        ground_truth: with the image sizes.
        detections: sorted by descending score within each image.
        num_queries: Q.
    """
    images = np.searchsorted(ground_truth.image_ids, detections.image_ids)
    present, columns = np.unique(images, return_inverse=True)
    image_sizes = ground_truth.sizes[images][:, ::-1]  # width, height
    centres = np.full((num_queries, len(present), 2), np.nan)
    sizes, scores = centres.copy(), np.zeros(centres.shape[:2])
    # the first detection of a query on an image has its highest score
    _, first = np.unique(detections.queries * len(present) + columns, return_index=True)
    for values, of_detections in (
        (centres, (detections.boxes[:, :2] + detections.boxes[:, 2:] / 2) / image_sizes),
        (sizes, detections.boxes[:, 2:] / image_sizes),
        (scores, detections.scores),
    ):
        values[detections.queries[first], columns[first]] = of_detections[first]
    return QueryMap(centres, sizes, scores)
