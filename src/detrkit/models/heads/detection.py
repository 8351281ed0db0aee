"""The prediction heads (paper, section 3.2, "prediction feed-forward networks"): decoded queries -> classes and boxes.

Input: (T, B, Q, D), every decoder layer at once; the heads are shared between layers, or each layer has its own.
"""

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.structures import ClassScores

_PRIOR = (
    0.01  # score that every class starts with, where each is a yes or no (focal loss, arXiv:1708.02002, section 4.1)
)


class ClassHead(nn.Linear):
    """One linear layer to K classes and, where they share one softmax, "no object" last."""

    def __init__(self, width: int, num_classes: int, class_scores: ClassScores = "softmax") -> None:
        super().__init__(width, num_classes + (class_scores == "softmax"))
        if class_scores == "sigmoid":
            nn.init.constant_(self.bias, math.log(_PRIOR / (1 - _PRIOR)))

    def forward(self, decoded: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape K1"]:
        """Read off the logits; under autocast in float32: rounded to bfloat16, many scores are equal and rank nothing."""
        return in_float32(super().forward, decoded)


class BoxHead(nn.Sequential):
    """Three linear layers with ReLU between them, to the logits of (cx, cy, w, h)."""

    def __init__(self, width: int, *, starts_at_zero: bool = False) -> None:
        """Build the head.

        Args:
            width: D.
            starts_at_zero: an untrained head leaves boxes where the references are.
        """
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
        if starts_at_zero:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the logits."""
        return cast(nn.Linear, self[-1])

    def forward(self, decoded: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape 4"]:
        """Read off the logits; under autocast in float32, for a box rounded to bfloat16 is off by several pixels."""
        return in_float32(super().forward, decoded)


def in_float32(
    read: Callable[[Float[Tensor, "*shape D"]], Float[Tensor, "*shape C"]], vectors: Float[Tensor, "*shape D"]
) -> Float[Tensor, "*shape C"]:
    """Read vectors by layers, as they are or, under autocast, in float32."""
    kind = vectors.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):  # "meta" has none
        return read(vectors)
    with torch.autocast(kind, enabled=False):
        return read(vectors.float())


class LayerwiseHeads(nn.ModuleList):
    """A head of its own for every decoder layer."""

    def forward(self, decoded: Float[Tensor, "T B Q D"]) -> Float[Tensor, "T B Q _"]:
        """Read off every layer by its own head; fewer layers than heads are the last ones."""
        return torch.stack([head(one) for head, one in zip(list(self)[-len(decoded) :], decoded, strict=True)])


class Heads(nn.Module):
    """What each query says: which class, and where."""

    def __init__(self, class_heads: Iterable[ClassHead], box_heads: Iterable[BoxHead]) -> None:
        """Take the heads.

        Args:
            class_heads: one for all layers, or one for each.
            box_heads: alike.
        """
        super().__init__()
        self.class_head = _joined(class_heads)
        self.box_head = _joined(box_heads)

    def box_head_of(self, layer: int) -> nn.Module:
        """The head that reads the boxes of one decoder layer."""
        return self.box_head[layer] if isinstance(self.box_head, LayerwiseHeads) else self.box_head

    def forward(
        self, decoded: Float[Tensor, "T B Q D"], references: Float[Tensor, "T B Q 4"] | None = None
    ) -> tuple[Float[Tensor, "T B Q K1"], Float[Tensor, "T B Q 4"]]:
        """Read class logits and boxes (cxcywh in 0 .. 1) off every query after every layer, in float32.

        Args:
            decoded: what the queries hold.
            references: logits that boxes are counted from; None for zero.
        """
        deltas = self.box_head(decoded).float()
        boxes = deltas if references is None else deltas + references
        return self.class_head(decoded).float(), boxes.sigmoid()


def _joined(heads: Iterable[nn.Module]) -> nn.Module:
    several = list(heads)
    return several[0] if len(several) == 1 else LayerwiseHeads(several)
