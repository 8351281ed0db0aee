"""Mixed query selection (DINO, arXiv:2203.03605, section 3.4) as in LW-DETR and RF-DETR: selected boxes, learned content.

The query of rank i starts from the box of the i-th best cell, which a learned delta of that rank refines, and has learned
content of that rank. In training there are several groups of queries (Group DETR, arXiv:2207.13085), each with its own
heads for cells and its own tables; predictions use the first.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import BoxHead
from detrkit.models.heads.relative_boxes import move_boxes
from detrkit.models.queries.queries import AuxiliaryQueries, Queries, QueryGroup
from detrkit.models.queries.two_stage import INVALID_LOGIT, EncoderQueries, rows_of, valid_anchors
from detrkit.structures import EncoderProposals


@dataclass(frozen=True)
class _Group:
    """The selected queries of one group."""

    content: Float[Tensor, "B Q D"]
    reference: Float[Tensor, "B Q 4"]
    proposals: EncoderProposals


class ProposalGroup(EncoderQueries):
    """Heads that score cells and predict a box from each, for one group of queries."""

    def __init__(self, num_queries: int, width: int, num_classes: int) -> None:
        super().__init__(num_queries, width, num_classes, partial(BoxHead, zero_init=True))
        nn.init.xavier_uniform_(cast(Tensor, self.memory_projection.weight))

    def forward(
        self,
        memory: FeatureMaps,
        anchors: tuple[Float[Tensor, "B S 4"], Bool[Tensor, "B S"]],
        content: Float[Tensor, "Q D"],
        deltas: Float[Tensor, "Q 4"],
    ) -> _Group:
        """Select the best cells.

        Args:
            memory: of all cells.
            anchors: box of every cell, and whether it is valid.
            content: learned content of every rank.
            deltas: learned delta of every rank.
        """
        projected, _, logits = self._score(memory, anchors)
        selected = self._select(projected, anchors[0], logits.amax(-1))
        boxes = move_boxes(selected.anchors, self.box_head(selected.memory).float())
        missing = selected.is_missing[..., None]
        own_logits = rows_of(logits, selected.cells).masked_fill(missing, -INVALID_LOGIT)
        # as published, queries without a cell start from their learned delta as a box
        rows = deltas.float().expand(boxes.shape[0], -1, -1)
        reference = torch.where(missing, rows, move_boxes(boxes.detach(), rows))
        tokens = content.to(projected.dtype).expand(boxes.shape[0], -1, -1)
        proposals = EncoderProposals(
            own_logits, boxes, class_agnostic=False, cells=selected.cells, states=selected.memory
        )
        return _Group(tokens, reference, proposals)


class MixedQueries(nn.Module):
    """Queries with a selected box and learned content per rank.

    Args:
        num_queries: Q.
        width: D.
        num_classes: K.
        num_groups: of queries in training.

    Attributes:
        return_proposals: return the predictions of the encoder, for its loss.
    """

    def __init__(self, num_queries: int, width: int, num_classes: int, num_groups: int = 1) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.return_proposals = True
        self.groups = nn.ModuleList(ProposalGroup(num_queries, width, num_classes) for _ in range(num_groups))
        self.content = nn.Parameter(torch.empty(num_groups, num_queries, width))
        self.box_deltas = nn.Parameter(torch.zeros(num_groups, num_queries, 4))
        nn.init.normal_(self.content)
        self._share_initial_weights()

    def forward(self, memory: FeatureMaps) -> Queries:
        """Select the queries of each image: of all groups in training, else of the first."""
        anchors = valid_anchors(memory)
        count = len(self.groups) if self.training else 1
        own, *others = [
            group(memory, anchors, self.content[index], self.box_deltas[index])
            for index, group in enumerate(self.groups[:count])
        ]
        queries = self._queries([own, *others])
        if not others:
            return queries
        auxiliary = tuple(
            AuxiliaryQueries(self._queries([one]), "group", QueryGroup(self.num_queries)) for one in others
        )
        return Queries(
            queries.content,
            queries.positions,
            queries.reference,
            own.proposals if self.return_proposals else None,
            groups=(QueryGroup(self.num_queries, count),),  # all in one batch
            auxiliary=auxiliary,
        )

    def _queries(self, groups: list[_Group]) -> Queries:
        content = torch.cat([one.content for one in groups], dim=1)
        reference = torch.cat([one.reference for one in groups], dim=1)
        proposals = groups[0].proposals if self.return_proposals else None
        return Queries(content, torch.zeros_like(content), reference, proposals)

    def _share_initial_weights(self) -> None:
        """Start all groups from the same weights of their class and box heads, as published."""
        first, *others = self.groups
        for other in others:
            for name in ("class_head", "box_head"):
                other.get_submodule(name).load_state_dict(first.get_submodule(name).state_dict())
