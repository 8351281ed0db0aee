"""The prediction heads (paper, section 3.2, "prediction feed-forward networks"): decoded queries -> classes and boxes.

Input: (T, B, Q, D), every decoder layer at once; the heads are shared between layers.
"""

from jaxtyping import Float
from torch import Tensor, nn


class ClassHead(nn.Linear):
    """One linear layer to K classes and, last, "no object"."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes + 1)


class BoxHead(nn.Sequential):
    """Three linear layers with ReLU between them, to the logits of (cx, cy, w, h)."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


class Heads(nn.Module):
    """What each query says: which class, and where."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.class_head = ClassHead(width, num_classes)
        self.box_head = BoxHead(width)

    def forward(self, decoded: Float[Tensor, "T B Q D"]) -> tuple[Float[Tensor, "T B Q K1"], Float[Tensor, "T B Q 4"]]:
        """Read class logits and boxes (cxcywh in 0 .. 1) off every query after every layer, in float32.

        Under autocast, a box rounded to bfloat16 would be off by several pixels.
        """
        return self.class_head(decoded).float(), self.box_head(decoded).float().sigmoid()
