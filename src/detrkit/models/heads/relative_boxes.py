"""Boxes relative to reference boxes, as in LW-DETR and RF-DETR: the parametrisation of R-CNN (arXiv:1311.2524, appendix C).

Unlike those of DETR, they are not limited to the image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.models.decoder_output import DecoderOutput
from detrkit.models.heads.detection import DetectionHeads, apply_head
from detrkit.structures import Predictions


def move_boxes(boxes: Float[Tensor, "*N 4"], deltas: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Move boxes by fractions of their size, and scale their size by the exponential.

    Args:
        boxes: cxcywh.
        deltas: of the center, relative to the size, and of the logarithm of the size.
    """
    size = boxes[..., 2:]
    return torch.cat([boxes[..., :2] + deltas[..., :2] * size, deltas[..., 2:].exp() * size], dim=-1)


class RelativeBoxHeads(DetectionHeads):
    """Class and box heads whose boxes are relative to the references of the queries, in all layers the same."""

    def predict(self, decoded: DecoderOutput) -> Predictions:
        """Predict classes and boxes of all queries."""
        assert decoded.references is not None, "mixed queries have references"
        deltas = apply_head(self.box_head, decoded.states, decoded.layers).float()
        return self.predictions(decoded, move_boxes(decoded.references.float(), deltas))
