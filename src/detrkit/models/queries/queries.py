"""Object queries as data: content, positions and reference boxes, and the groups they form in training.

DETR's queries are learned vectors. Those of its successors also have a reference: a point (Conditional DETR,
arXiv:2108.06152; Deformable DETR, arXiv:2010.04159) or an anchor box (DAB-DETR, arXiv:2201.12329). Boxes are predicted
relative to it: box = sigmoid(delta + reference), with references as logits (zero for plain DETR).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detrkit.models.feature_maps import FeatureMaps
from detrkit.structures import AuxiliaryKind, EncoderProposals

# maximum of reference logits: sigmoid(11.5) is 1 - 1e-5, where the published code clips before it takes logarithms
MAX_LOGIT = 11.512915


@dataclass(frozen=True)
class QueryGroup:
    """Queries that attend to each other and to no other queries; or several such groups of one size in a batch.

    Attributes:
        size: queries per group.
        count: number of groups.
        padding_mask: True for queries that pad images with fewer queries; other queries do not attend to them.
        attends_to_own: the queries also attend to the model's own queries, which are the first group (denoising as in DINO
            and RT-DETR).
    """

    size: int
    count: int = 1
    padding_mask: Bool[Tensor, "B E"] | None = None
    attends_to_own: bool = False

    @property
    def num_queries(self) -> int:
        """Number of queries of all groups."""
        return self.size * self.count

    def split(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "A E D"]:
        """Move the groups to the batch axis."""
        return tokens.unflatten(1, (self.count, self.size)).flatten(0, 1)

    def merge(self, tokens: Float[Tensor, "A E D"]) -> Float[Tensor, "B N D"]:
        """Undo `split`."""
        return tokens.unflatten(0, (-1, self.count)).flatten(1, 2)

    def attention_mask(self, num_own: int, device: torch.device) -> Bool[Tensor, "N S"]:
        """Return True where a query does not attend to another: keys are those of all groups, then the model's own."""
        number = torch.arange(self.num_queries, device=device) // self.size
        is_hidden = number[:, None] != number[None]
        return torch.cat([is_hidden, is_hidden.new_zeros(self.num_queries, num_own)], dim=1)

    def repeat_padding_mask(self) -> Bool[Tensor, "B N"] | None:
        """Return the padding mask of all groups."""
        return None if self.padding_mask is None else self.padding_mask.repeat(1, self.count)

    def split_padding_mask(self) -> Bool[Tensor, "A E"] | None:
        """Return the padding mask of each group, on the batch axis."""
        return None if self.padding_mask is None else self.padding_mask.repeat_interleave(self.count, 0)


@dataclass(frozen=True)
class Queries:
    """Object queries, input of the decoder.

    Attributes:
        content: input of the first decoder layer.
        positions: query position encodings, added to the content at every attention; zeros if the decoder computes them
            from anchors.
        reference: logits of reference points (x, y) or boxes (cx, cy, w, h); boxes themselves, which may exceed the image,
            for mixed queries; None for queries without a reference.
        proposals: predictions of the encoder for all cells, for its loss.
        groups: consecutive groups of queries, which do not attend to each other; empty for one group.
        auxiliary: training-only queries at the end of those above.
    """

    content: Float[Tensor, "B Q D"]
    positions: Float[Tensor, "B Q D"]
    reference: Float[Tensor, "B Q R"] | None = None
    proposals: EncoderProposals | None = None
    groups: tuple[QueryGroup, ...] = ()
    auxiliary: "tuple[AuxiliaryQueries, ...]" = ()

    @property
    def num_queries(self) -> int:
        """Number of queries, auxiliary ones included."""
        return self.content.shape[1]

    def with_auxiliary(self, auxiliary: "Sequence[AuxiliaryQueries]") -> "Queries":
        """Append auxiliary queries; each group attends only to itself."""
        if not auxiliary:
            return self
        parts = [self, *(one.queries for one in auxiliary)]
        references = [part.reference for part in parts if part.reference is not None]
        return replace(
            self,
            content=torch.cat([part.content for part in parts], dim=1),
            positions=torch.cat([part.positions for part in parts], dim=1),
            reference=torch.cat(references, dim=1) if references else None,
            groups=_merge_equal_groups(
                [*(self.groups or [QueryGroup(self.num_queries)]), *(one.group for one in auxiliary)]
            ),
            auxiliary=(*self.auxiliary, *auxiliary),
        )


@dataclass(frozen=True)
class AuxiliaryQueries:
    """Training-only queries, masked from the model's own in self-attention (Group DETR, DN-DETR, H-DETR).

    Attributes:
        queries: the queries; for denoising, one group after the other.
        kind: what they are for.
        group: size and number of their groups.
    """

    queries: Queries
    kind: AuxiliaryKind
    group: QueryGroup


# encoder memory -> auxiliary queries
AuxiliaryQuerySource = Callable[[FeatureMaps], Sequence[AuxiliaryQueries]]


@dataclass(frozen=True)
class LayerQueryPositions:
    """Positions of the queries as input of one decoder layer.

    Attributes:
        positions: added to the content.
        sine: sine encoding of the reference points, for conditional cross-attention.
        reference: reference points (x, y) or boxes (cx, cy, w, h) in 0 .. 1 of the image.
        groups: as in `Queries`.
        padding_mask: True for queries that others do not attend to.
        others: states and positions of further queries that these attend to.
        attention_mask: True for queries, and then others, that a query does not attend to.
    """

    positions: Float[Tensor, "B Q D"]
    sine: Float[Tensor, "B Q D"] | None = None
    reference: Float[Tensor, "B Q R"] | None = None
    groups: tuple[QueryGroup, ...] = ()
    padding_mask: Bool[Tensor, "B Q"] | None = None
    others: tuple[Float[Tensor, "B N D"], Float[Tensor, "B N D"]] | None = None
    attention_mask: Bool[Tensor, "Q S"] | None = None

    def attended(
        self, states: Float[Tensor, "B Q D"]
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S D"], Bool[Tensor, "B S"] | None]:
        """Return states, positions and padding mask of all queries that these attend to: themselves, then the others."""
        if self.others is None:
            return states, self.positions, self.padding_mask
        all_states, positions = torch.cat([states, self.others[0]], 1), torch.cat([self.positions, self.others[1]], 1)
        padding_mask = self.padding_mask
        if padding_mask is not None:
            padding_mask = torch.cat([padding_mask, padding_mask.new_zeros(self.others[0].shape[:2])], dim=1)
        return all_states, positions, padding_mask


def _merge_equal_groups(groups: Sequence[QueryGroup]) -> tuple[QueryGroup, ...]:
    """Merge neighbouring groups of one size, which are computed in one batch; the first group stays alone."""
    merged = [groups[0]]
    for group in groups[1:]:
        last = merged[-1]
        has_padding = group.padding_mask is not None or last.padding_mask is not None
        is_equal = not has_padding and replace(group, count=last.count) == last
        if len(merged) > 1 and is_equal:
            merged[-1] = replace(last, count=last.count + group.count)
        else:
            merged.append(group)
    return tuple(merged)


def refine_reference(reference: Float[Tensor, "B Q R"], delta: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q 4"]:
    """Add the predicted delta of a layer to its reference: logits of the boxes that the next layer starts from."""
    return (reference_to_boxes(reference) + delta.float()).clamp(-MAX_LOGIT, MAX_LOGIT)


def reference_to_boxes(reference: Float[Tensor, "B Q R"]) -> Float[Tensor, "B Q 4"]:
    """Convert logits of points into logits of boxes, with zeros for width and height."""
    if reference.shape[-1] == 4:
        return reference
    return torch.cat([reference, torch.zeros_like(reference)], dim=-1)
