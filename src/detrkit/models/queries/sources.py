"""What object queries start from, and where they look next.

DETR's queries are learned vectors. In its successors each has a place, too: a point (Conditional DETR, arXiv:2108.06152;
Deformable DETR, arXiv:2010.04159), or an anchor box (DAB-DETR, arXiv:2201.12329), from which boxes are counted: a box is
sigmoid(delta + reference), where the reference is made of logits and zero for plain DETR.

Input: the encoder's scene. Output: `Queries`; and, before every decoder layer, a `LayerQueryPositions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import in_float32
from detrkit.models.positions import encode_coordinates
from detrkit.structures import AuxiliaryKind, EncoderProposals

# of references: sigmoid(11.5) is 1 - 1e-5, where the published code cuts off before it takes logarithms
LARGEST_LOGIT = 11.512915
_LARGEST_HALF_RATIO = 256.0  # float16 ends at 65504, and sums of products with the ratio follow


@dataclass(frozen=True)
class QueryGroup:
    """Queries that see each other and no others; or several such blocks of one size, which are computed together.

    Attributes:
        size: queries in one block.
        count: blocks.
        fillers: True on queries that only fill up a photo that has fewer; the others do not see them.
    """

    size: int
    count: int = 1
    fillers: Bool[Tensor, "B E"] | None = None

    @property
    def num_queries(self) -> int:
        """Queries in all blocks."""
        return self.size * self.count

    def apart(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "A E D"]:
        """Make a batch of the blocks."""
        return tokens.unflatten(1, (self.count, self.size)).flatten(0, 1)

    def together(self, tokens: Float[Tensor, "A E D"]) -> Float[Tensor, "B N D"]:
        """Put the blocks next to each other again."""
        return tokens.unflatten(0, (-1, self.count)).flatten(1, 2)

    def fillers_apart(self) -> Bool[Tensor, "A E"] | None:
        """The fillers of each block."""
        return None if self.fillers is None else self.fillers.repeat_interleave(self.count, 0)


@dataclass(frozen=True)
class Queries:
    """Where the decoder starts.

    Attributes:
        content: its first input.
        positions: who the queries are: added to content at attentions; zeros where anchors tell it layer by layer.
        reference: logits of the points (x, y) or boxes (cx, cy, w, h) that they start from; None for nowhere.
        proposals: what the encoder said about all cells, if it was asked and the loss will want to know.
        blocks: next to each other, none of which sees another; empty where all queries see all.
    """

    content: Float[Tensor, "B Q D"]
    positions: Float[Tensor, "B Q D"]
    reference: Float[Tensor, "B Q R"] | None = None
    proposals: EncoderProposals | None = None
    blocks: tuple[QueryGroup, ...] = ()


@dataclass(frozen=True)
class AuxiliaryQueries:
    """A block of queries that are decoded beside the model's own, while training (Group DETR, DN-DETR, H-DETR).

    Attributes:
        queries: where they start; for denoising, one copy after the other.
        helper: what they are there for.
        block: how they lie.
    """

    queries: Queries
    helper: AuxiliaryKind
    block: QueryGroup


# what the encoder left -> queries beside the model's own
AuxiliaryQuerySource = Callable[[FeatureMaps], Sequence[AuxiliaryQueries]]


@dataclass(frozen=True)
class LayerQueryPositions:
    """What a decoder layer is told about its queries, besides their content.

    Attributes:
        positions: added to the content.
        sine: sines of the place that conditional cross-attention compares with the cells' positions.
        reference: the place itself, (x, y) or (cx, cy, w, h), 0 .. 1 of the photo.
        blocks: of `Queries`.
        fillers: True on queries that the others should not see.
    """

    positions: Float[Tensor, "B Q D"]
    sine: Float[Tensor, "B Q D"] | None = None
    reference: Float[Tensor, "B Q R"] | None = None
    blocks: tuple[QueryGroup, ...] = ()
    fillers: Bool[Tensor, "B Q"] | None = None


class LearnedQueries(nn.Module):
    """One learned vector per query, added at every attention; the first input is zero (DETR)."""

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_queries, width))
        nn.init.normal_(self.weight)

    def forward(self, scene: FeatureMaps, *, for_loss: bool = True) -> Queries:
        """Hand the vectors to every photo."""
        positions = self.weight.expand(scene.tokens.shape[0], -1, -1).to(scene.tokens.dtype)
        return Queries(torch.zeros_like(positions), positions)


class PointQueries(nn.Module):
    """One learned vector per query, off which its point is read.

    Conditional DETR reads it by two layers, and its first input is zero; Deformable DETR by one, and half of its vectors is
    the first input.
    """

    def __init__(self, num_queries: int, width: int, *, with_content: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_queries, width * (2 if with_content else 1)))
        self.point_head = nn.Linear(width, 2) if with_content else mlp(width, width, 2)
        self.with_content = with_content
        nn.init.normal_(self.weight)
        if isinstance(self.point_head, nn.Linear):
            nn.init.xavier_uniform_(self.point_head.weight)
            nn.init.zeros_(self.point_head.bias)

    def forward(self, scene: FeatureMaps, *, for_loss: bool = True) -> Queries:
        """Hand vectors and points to every photo."""
        vectors = self.weight.expand(scene.tokens.shape[0], -1, -1)
        if self.with_content:
            positions, content = vectors.chunk(2, dim=-1)
        else:
            positions, content = vectors, torch.zeros_like(vectors)
        points = in_float32(self.point_head, positions).float()
        kind = scene.tokens.dtype
        return Queries(content.to(kind), positions.to(kind), points)


class AnchorQueries(nn.Module):
    """One learned box per query (DAB-DETR), kept as logits; the first input is zero."""

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_queries, 4))
        self.width = width
        nn.init.normal_(self.weight)

    def forward(self, scene: FeatureMaps, *, for_loss: bool = True) -> Queries:
        """Hand the boxes to every photo."""
        anchors = self.weight.expand(scene.tokens.shape[0], -1, -1).float()
        nothing = torch.zeros(*anchors.shape[:2], self.width, dtype=scene.tokens.dtype, device=anchors.device)
        return Queries(nothing, nothing, anchors)


class QueryPositionEncoding(nn.Module):
    """Tells a decoder layer where its queries are.

    DETR's and Deformable DETR's queries have positions of their own. Conditional cross-attention compares sines of the
    point with the cells' positions, scaled by what the query holds; DAB-DETR makes positions out of the anchor, and gives
    sines of wide and high boxes less weight, relative to the size that the query expects.
    """

    def __init__(self, width: int, *, has_anchors: bool, is_conditional: bool) -> None:
        super().__init__()
        self.position_head = mlp(2 * width, width, width) if has_anchors else None
        self.content_scale = mlp(width, width, width) if is_conditional else None
        self.size_head = mlp(width, width, 2) if has_anchors and is_conditional else None

    def forward(
        self,
        layer: int,
        decoded: Float[Tensor, "B Q D"],
        positions: Float[Tensor, "B Q D"],
        reference: Float[Tensor, "B Q R"] | None,
    ) -> LayerQueryPositions:
        """Say where the queries are before a layer.

        Args:
            layer: its number, from 0; before the first, content says nothing, and scales nothing.
            decoded: what the queries hold.
            positions: of `Queries`.
            reference: logits of where they are.
        """
        if reference is None:
            return LayerQueryPositions(positions)
        place = reference.sigmoid()
        if self.position_head is None and self.content_scale is None:
            return LayerQueryPositions(positions, reference=place)
        width = decoded.shape[-1]
        # rows before columns, as the cells' positions have it
        row_first = place[..., :2].flip(-1)
        if place.shape[-1] == 4:
            row_first = torch.cat([row_first, place[..., 2:]], dim=-1)
        sine = encode_coordinates(row_first, width // 2).to(decoded.dtype)
        if self.position_head is not None:
            positions = self.position_head(sine)
        if self.content_scale is None:
            return LayerQueryPositions(positions, reference=place)
        sine = sine[..., :width]
        if layer > 0:
            sine = sine * self.content_scale(decoded)
        if self.size_head is not None:
            sine = sine * self._size_ratio(decoded, place)
        return LayerQueryPositions(positions, sine, place)

    def _size_ratio(self, decoded: Float[Tensor, "B Q D"], place: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q D"]:
        """Expected height over the anchor's for the sines of the row, widths for those of the column."""
        assert self.size_head is not None
        expected = self.size_head(decoded).sigmoid()
        ratio = expected / place[..., 2:]  # of sides before rounding, the square of which the gradient is divided by
        if expected.dtype == torch.float16:
            ratio = ratio.clamp(max=_LARGEST_HALF_RATIO)
        return ratio.flip(-1).to(expected.dtype).repeat_interleave(decoded.shape[-1] // 2, dim=-1)


def concat_queries(own: Queries, extra: Sequence[AuxiliaryQueries]) -> Queries:
    """Put extra queries behind the model's own, each block for itself."""
    parts = [own, *(one.queries for one in extra)]
    references = [part.reference for part in parts if part.reference is not None]
    blocks = [QueryGroup(own.content.shape[1])]
    for block in (one.block for one in extra):
        last = blocks[-1]
        if len(blocks) > 1 and block.size == last.size and block.fillers is None and last.fillers is None:
            blocks[-1] = replace(last, count=last.count + block.count)
        else:
            blocks.append(block)
    return Queries(
        torch.cat([part.content for part in parts], dim=1),
        torch.cat([part.positions for part in parts], dim=1),
        torch.cat(references, dim=1) if references else None,
        own.proposals,
        tuple(blocks),
    )


def refined(reference: Float[Tensor, "B Q R"], delta: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q 4"]:
    """Logits of the next boxes: what a layer found, counted from where it looked."""
    return (as_boxes(reference) + delta.float()).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def as_boxes(reference: Float[Tensor, "B Q R"]) -> Float[Tensor, "B Q 4"]:
    """Logits of points as logits of boxes: what is said about sizes is counted from zero."""
    if reference.shape[-1] == 4:
        return reference
    return torch.cat([reference, torch.zeros_like(reference)], dim=-1)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two linear layers with ReLU between them."""
    layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))
    for layer in (layers[0], layers[2]):
        nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]  # a linear layer
    return layers
