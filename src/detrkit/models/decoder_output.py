"""Output of the decoder, from which the heads compute predictions."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RefinedEdges:
    """Boxes whose edges the decoder refined by distributions (D-FINE, arXiv:2410.13842, section 4.1).

    Attributes:
        layer_logits: of the distances of the left, top, right and bottom edge after every layer, over N bins.
        layer_boxes: boxes after every layer, cxcywh relative to the image.
        references: boxes that the distances start from; without gradient.
        initial_boxes: the same boxes with gradient.
        initial_states: states after the first layer; None if it is not returned.
    """

    layer_logits: Float[Tensor, "T B Q 4 N"]
    layer_boxes: Float[Tensor, "T B Q 4"]
    references: Float[Tensor, "B Q 4"]
    initial_boxes: Float[Tensor, "B Q 4"]
    initial_states: Float[Tensor, "B Q D"] | None


@dataclass(frozen=True)
class DecoderOutput:
    """States of the queries after decoder layers.

    Attributes:
        states: normalised states after T layers.
        layers: index of each.
        references: logits of the references that each layer's boxes are predicted relative to; None for zero.
        edges: refined boxes, of D-FINE's decoder.
    """

    states: Float[Tensor, "T B Q D"]
    layers: tuple[int, ...]
    references: Float[Tensor, "T B Q 4"] | None = None
    edges: RefinedEdges | None = None
