"""Queries that start from the encoder's best boxes (two-stage Deformable DETR, arXiv:2010.04159, 4.2 and appendix A.4).

Every cell of the memory proposes a box around itself; the best become the anchors of the decoder. Input: the scene after
the encoder. Output: `Queries`, and what the loss wants to know about all proposals.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import BoxHead, ClassHead
from detrkit.models.positions import encode_coordinates
from detrkit.models.queries.sources import LARGEST_LOGIT, Queries
from detrkit.structures import EncoderProposals

_SMALLEST_SIDE = 0.05  # of the photo: boxes proposed on the finest map; they double from map to map
_LARGEST_SIDE = 0.9  # of the photo: from the sixth map on, where doubling would leave it and nothing would be proposed
_MARGIN = 0.01  # of the photo's sides: cells closer to its edge propose nothing
_NOWHERE = 1e4  # a logit whose sigmoid is 1, where the published code says infinity


class TwoStageQueries(nn.Module):
    """The encoder's best boxes, and vectors made of their sines.

    In our own presets a query also holds what its cell did, as in RT-DETR (arXiv:2304.08069; here the cell learns from it),
    and a learned vector for its rank, as in DINO (arXiv:2203.03605): two that start from one object are told apart.
    """

    weight: nn.Parameter | None

    def __init__(self, num_queries: int, width: int, num_classes: int, *, from_cells: bool = False) -> None:
        """Build the heads and projections.

        Args:
            num_queries: Q.
            width: D.
            num_classes: outputs of the class head; only the first counts, for "something is here".
            from_cells: queries hold what cells held, and vectors of their ranks.
        """
        super().__init__()
        self.num_queries = num_queries
        self.memory_projection = nn.Linear(width, width)
        self.memory_norm = nn.LayerNorm(width)
        self.class_head = ClassHead(width, num_classes, "sigmoid")
        # as published, proposals start on their anchors; our own learned drawn shapes sooner without (RESULTS.md)
        self.box_head = BoxHead(width, starts_at_zero=not from_cells)
        self.query_projection = nn.Linear(2 * width, 2 * width)
        self.query_norm = nn.LayerNorm(2 * width)
        self.register_parameter("weight", nn.Parameter(torch.randn(num_queries, width)) if from_cells else None)
        for projection in (self.memory_projection, self.query_projection):
            nn.init.xavier_uniform_(projection.weight)

    def forward(self, scene: FeatureMaps, *, for_loss: bool = True) -> Queries:
        """Choose the best proposals of each photo.

        Args:
            scene: after the encoder.
            for_loss: whether all proposals are wanted, too.
        """
        anchors, is_valid = _anchors(scene)
        memory = self._read(scene.tokens.masked_fill(~is_valid[..., None], 0.0))
        logits = self.class_head(memory).float()
        if scene.padding_mask is not None and scene.is_exact:  # neither chosen nor learned from
            logits = logits.masked_fill(scene.padding_mask[..., None], -_NOWHERE)
        # the decoder learns to start from these boxes, and does not teach them
        held, around = self._best(memory, anchors, logits[..., 0])
        proposed = self._boxes(held, around).detach()
        proposed = proposed.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        positions, content = self.vectors_of(proposed, memory.dtype)
        if self.weight is not None:
            content = content + held + self.weight.to(content.dtype)
        proposals = EncoderProposals(logits, self._boxes(memory, anchors).sigmoid()) if for_loss else None
        return Queries(content, positions, proposed, proposals)

    def vectors_of(
        self, reference: Float[Tensor, "B Q 4"], kind: torch.dtype
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q D"]]:
        """Make positions and content of the logits of boxes."""
        sine = encode_coordinates(reference.sigmoid(), self.query_norm.normalized_shape[0] // 4).to(kind)
        positions, content = self.query_norm(self.query_projection(sine)).chunk(2, dim=-1)
        return positions, content

    def _boxes(self, memory: Float[Tensor, "B S D"], anchors: Float[Tensor, "B S 4"]) -> Float[Tensor, "B S 4"]:
        return self.box_head(memory).float() + anchors

    def _read(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        return self.memory_norm(self.memory_projection(tokens))

    def _best(
        self,
        memory: Float[Tensor, "B S D"],
        anchors: Float[Tensor, "B S 4"],
        scores: Float[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q 4"]]:
        """The cells that become queries, best first: what they hold, and their anchors.

        A photo with fewer cells than there are queries is filled up with cells that hold nothing and lie nowhere, as
        padding does.
        """
        num_cells = scores.shape[1]
        filler = torch.full_like(scores[:, :1], -torch.inf).expand(-1, self.num_queries)
        filled = torch.cat([scores, filler], dim=1)
        chosen = filled.topk(self.num_queries, dim=1).indices
        is_filler = (chosen >= num_cells)[..., None]
        index = chosen.clamp(max=num_cells - 1)[..., None]
        empty = self._read(torch.zeros_like(memory[:, :1]))
        held = torch.where(is_filler, empty, memory.gather(1, index.expand(-1, -1, memory.shape[-1])))
        return held, anchors.gather(1, index.expand(-1, -1, 4)).masked_fill(is_filler, _NOWHERE)


def _anchors(scene: FeatureMaps) -> tuple[Float[Tensor, "B S 4"], Bool[Tensor, "B S"]]:
    """Logits of a box around every cell, and which of them lie well inside the photo; elsewhere they are nowhere."""
    proposed = _around(scene.cell_centres())
    # a ResNet's first cells have their middles at the photo's very edge, and see what lies inside it
    inside = proposed if scene.first_cells is None else _around(scene.cell_centres(even=True))
    is_valid = ((inside > _MARGIN) & (inside < 1 - _MARGIN)).all(-1)
    if scene.padding_mask is not None:
        is_valid = is_valid & ~scene.padding_mask
    logits = torch.logit(proposed.clamp(_MARGIN / 2, 1 - _MARGIN / 2))
    return logits.masked_fill(~is_valid[..., None], _NOWHERE), is_valid


def _around(centres: Sequence[Float[Tensor, "B _ 2"]]) -> Float[Tensor, "B S 4"]:
    """A square around every cell, larger from map to map."""
    sides = [min(_SMALLEST_SIDE * 2.0**level, _LARGEST_SIDE) for level in range(len(centres))]
    squares = [torch.cat([at, torch.full_like(at, side)], dim=-1) for at, side in zip(centres, sides, strict=True)]
    return torch.cat(squares, dim=1)
