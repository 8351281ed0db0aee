"""Heads of D-FINE (arXiv:2410.13842): boxes whose edges follow distributions over distances, and the quality of those.

Fine-grained distribution refinement (section 4.1): the first decoder layer predicts a box. Every layer then predicts, for
each edge, logits over distances from that box; they are added up from layer to layer, and the expectation moves the edge.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.models.decoder_output import DecoderOutput, RefinedEdges
from detrkit.models.heads.detection import BoxHead, DetectionHeads, LayerwiseHeads
from detrkit.models.layers import ACTIVATIONS, ActivationName, in_float32
from detrkit.structures import EdgeDistributions, Predictions

_INITIAL_UP = 0.5
_NUM_HIGHEST = 4  # probabilities of an edge that its quality is judged by
_QUALITY_WIDTH = 64


class DistanceBins(nn.Module):
    """Distances of the bins of a distribution, W(n) in the paper (equation 4): finest around zero.

    With a = up * reg_scale, they are -2a, then 1 - t ** k and t ** k - 1 around 0, then 2a, where the last power is a + 1.
    Both numbers are part of published weights, and not trained.

    Args:
        num_bins: number of intervals, 32 as published; there is one distance more.
        reg_scale: distances are in units of a box's width or height divided by it.
    """

    def __init__(self, num_bins: int, reg_scale: float) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.up = nn.Parameter(torch.tensor([_INITIAL_UP]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([reg_scale]), requires_grad=False)

    def forward(self) -> Float[Tensor, "N"]:
        """Compute the distances, ascending."""
        limit = self.up.float().abs() * self.scale
        powers = torch.arange(1, self.num_bins // 2, device=limit.device)
        distances = ((limit + 1) ** (2 / (self.num_bins - 2))) ** powers - 1
        return torch.cat([-2 * limit, -distances.flip(0), torch.zeros_like(limit), distances, 2 * limit])

    @property
    def scale(self) -> Float[Tensor, "1"]:
        """`reg_scale`, positive."""
        return self.reg_scale.float().abs()

    def move_edges(
        self, references: Float[Tensor, "*shape 4"], logits: Float[Tensor, "*shape 4 N"]
    ) -> Float[Tensor, "*shape 4"]:
        """Move the edges of boxes by the expected distances; results may exceed the image, or be inverted if untrained.

        Args:
            references: boxes, cxcywh.
            logits: of the distances of the left, top, right and bottom edge.
        """
        distances = (
            logits.float().softmax(-1) @ self.forward()
        ) / self.scale + 0.5  # in widths and heights, from the center
        center, size = references.float().split(2, dim=-1)
        top_left, bottom_right = center - distances[..., :2] * size, center + distances[..., 2:] * size
        return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


class QualityHead(nn.Sequential):
    """Location quality estimator: a number that sharp distributions of the edges add to the class logits of a query.

    It sees the highest probabilities of each edge, and their mean.
    """

    def __init__(self, activation: ActivationName = "relu") -> None:
        last = nn.Linear(_QUALITY_WIDTH, 1)
        super().__init__(nn.Linear(4 * (_NUM_HIGHEST + 1), _QUALITY_WIDTH), ACTIVATIONS[activation](), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, logits: Float[Tensor, "B Q 4 N"]) -> Float[Tensor, "B Q"]:
        """Compute the qualities, in float32 under autocast."""
        highest = logits.float().softmax(-1).topk(_NUM_HIGHEST, dim=-1).values
        statistics = torch.cat([highest, highest.mean(-1, keepdim=True)], dim=-1).flatten(-2)
        return in_float32(super().forward, statistics)[..., 0]


class FineGrainedHeads(DetectionHeads):
    """Class heads, and heads of the distributions of edges and of their quality, for every decoder layer.

    Args:
        class_heads: one per layer.
        edge_heads: one per layer, or one for all, to the logits of four distributions.
        quality_heads: one per layer.
        initial_box_head: of the first layer's box.
        bins: of the distributions.
        max_detections: as of `DetectionHeads`.
    """

    def __init__(
        self,
        class_heads: Iterable[nn.Module],
        edge_heads: Iterable[BoxHead],
        quality_heads: Iterable[QualityHead],
        initial_box_head: BoxHead,
        bins: DistanceBins,
        max_detections: int | None = None,
    ) -> None:
        super().__init__(class_heads, edge_heads, "sigmoid", max_detections)
        self.quality_head = LayerwiseHeads(quality_heads)
        self.initial_box_head = initial_box_head
        self.bins = bins

    def initial_boxes(
        self, states: Float[Tensor, "B Q D"], reference: Float[Tensor, "B Q 4"]
    ) -> Float[Tensor, "B Q 4"]:
        """Predict boxes from the states after the first layer, relative to the logits of the references."""
        boxes: Tensor = (self.initial_box_head(states).float() + reference).sigmoid()
        return boxes

    def edge_logits(self, layer: int, states: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q 4 N"]:
        """Predict the logits that one layer adds to those of the layers before."""
        logits: Tensor = self.box_head_of(layer)(states).float()
        return logits.unflatten(-1, (4, -1))

    def predict(self, decoded: DecoderOutput) -> Predictions:
        """Add the quality of the distributions to the class logits of every query; boxes are those of the decoder."""
        edges = decoded.edges
        assert edges is not None, "edges are refined by D-FINE's decoder"
        quality = self.quality_head(edges.layer_logits, decoded.layers)
        predictions = self.predictions(decoded, edges.layer_boxes)
        return replace(
            predictions,
            layer_class_logits=predictions.layer_class_logits + quality[..., None],
            distributions=self._distributions(edges, quality),
        )

    def _distributions(self, edges: RefinedEdges, quality: Float[Tensor, "T B Q"]) -> EdgeDistributions | None:
        """Return what the loss and explanations need; None if only the last layer is returned."""
        if edges.initial_states is None:
            return None
        class_head = self.class_head
        first = class_head[0] if isinstance(class_head, LayerwiseHeads) else class_head
        return EdgeDistributions(
            edges.layer_logits,
            edges.references,
            self.bins(),
            self.bins.scale[0],
            first(edges.initial_states).float(),
            edges.initial_boxes,
            quality,
        )
