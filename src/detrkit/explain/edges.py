"""Distributions of the edges of one query's box (D-FINE, arXiv:2410.13842, section 4.1), in pixels of the image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import EdgeDistributions

EDGE_NAMES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class QueryEdges:
    """Distributions of the left, top, right and bottom edge of one query's box after every decoder layer.

    Attributes:
        probabilities: of every bin.
        distances: by which each bin moves an edge from the reference, in pixels; ascending, outwards is positive.
        reference: box that all distances start from, the one of the first layer before its distributions; xyxy in pixels.
        quality: what the sharpness of the distributions adds to all class logits of the query after every layer.
    """

    probabilities: Float[Tensor, "T 4 N"]
    distances: Float[Tensor, "4 N"]
    reference: Float[Tensor, "4"]
    quality: Float[Tensor, "T"]

    @property
    def positions(self) -> Float[Tensor, "4 N"]:
        """Position of an edge at every bin: x of the left and right edge, y of the top and bottom edge, in pixels."""
        return self.reference[:, None] + self.distances * _OUTWARDS[:, None]

    @property
    def moved(self) -> Float[Tensor, "T 4"]:
        """Expected distance of every edge after every layer, in pixels; outwards is positive."""
        return (self.probabilities * self.distances).sum(-1)

    @property
    def boxes(self) -> Float[Tensor, "T 4"]:
        """Boxes that the expected distances give: the predictions of the layers, xyxy in pixels."""
        return self.reference + self.moved * _OUTWARDS


_OUTWARDS = torch.tensor([-1.0, -1.0, 1.0, 1.0])


def query_edges(distributions: EdgeDistributions, query: int, size: tuple[int, int]) -> QueryEdges:
    """Select the distributions of one query.

    Args:
        distributions: for one image (B = 1).
        query: index of the query.
        size: (height, width) of the image.
    """
    height, width = size
    reference = cxcywh_to_xyxy(distributions.references[0, query].float()) * torch.tensor(
        [width, height, width, height]
    )
    sides = (reference[2:] - reference[:2]).repeat(2)
    of_query = distributions.of_queries(slice(query, query + 1))
    return QueryEdges(
        probabilities=of_query.probabilities[:, 0, 0],
        distances=sides[:, None] * (distributions.bin_values.float() / distributions.reg_scale),
        reference=reference,
        quality=of_query.layer_quality[:, 0, 0].float(),
    )
