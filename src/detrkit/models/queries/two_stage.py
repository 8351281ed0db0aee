"""Two-stage query selection: of Deformable DETR (arXiv:2010.04159, section 4.2 and appendix A.4), and of RT-DETR.

A class and box head predicts a box for every cell of the encoder's memory; the best are the queries of the decoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import BoxHead, ClassHead
from detrkit.models.layers import ActivationName
from detrkit.models.positions import encode_coordinates
from detrkit.models.queries.queries import MAX_LOGIT, Queries
from detrkit.structures import EncoderProposals

_ANCHOR_SIZE = 0.05  # of anchors on the finest map, relative to the image; doubled from map to map
_MAX_ANCHOR_SIZE = 0.9  # from the sixth map on, where a doubled anchor would exceed the image and be invalid
_MARGIN = 0.01  # relative to the image: anchors that come no further from its edges are invalid
_ROUNDING = 1e-6  # the first and last of 50 cells are at the margin exactly, which engines round to either side of it
INVALID_LOGIT = 1e4  # of invalid anchors: its sigmoid is 1; the published code has infinity


class EncoderQueries(nn.Module):
    """Base of both kinds of two-stage queries: scores of all cells, and the selection of the best ones.

    Args:
        num_queries: Q.
        width: D.
        num_classes: outputs of the class head.
        box_head: predicts boxes relative to the anchors.
        projected: project and normalise the memory first; False takes it as it is.

    Attributes:
        return_proposals: return the predictions of the encoder, for its loss.
    """

    def __init__(
        self, num_queries: int, width: int, num_classes: int, box_head: Callable[[int], BoxHead], projected: bool = True
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.return_proposals = True
        self.memory_projection: nn.Module = nn.Linear(width, width) if projected else nn.Identity()
        self.memory_norm: nn.Module = nn.LayerNorm(width) if projected else nn.Identity()
        self.class_head = ClassHead(width, num_classes, "sigmoid")
        self.box_head = box_head(width)

    def _score(
        self, memory: FeatureMaps, anchors_of_cells: tuple[Float[Tensor, "B S 4"], Bool[Tensor, "B S"]] | None = None
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S 4"], Float[Tensor, "B S K"]]:
        """Return projected memory, anchor and class logits of every cell.

        Args:
            memory: of all cells.
            anchors_of_cells: anchor of every cell, and whether it is valid; default: see `generate_anchors`.
        """
        anchors, is_valid = anchors_of_cells or generate_anchors(memory)
        projected = self._project(memory.tokens.masked_fill(~is_valid[..., None], 0.0))
        logits = self.class_head(projected).float()
        if memory.padding_mask is not None and memory.padding_invariant:  # excluded from selection and loss
            logits = logits.masked_fill(memory.padding_mask[..., None], -INVALID_LOGIT)
        return projected, anchors, logits

    def _select(
        self,
        projected: Float[Tensor, "B S D"],
        anchors: Float[Tensor, "B S 4"],
        scores: Float[Tensor, "B S"],
    ) -> "_Selection":
        """Select the best cells; if there are fewer than queries, the others get zero memory and an invalid anchor."""
        cells, is_missing = best_cells(scores, self.num_queries)
        empty = self._project(torch.zeros_like(projected[:, :1]))
        memory = torch.where(is_missing[..., None], empty, rows_of(projected, cells))
        own_anchors = rows_of(anchors, cells).masked_fill(is_missing[..., None], INVALID_LOGIT)
        return _Selection(cells, is_missing, memory, own_anchors)

    def _boxes(self, projected: Float[Tensor, "B S D"], anchors: Float[Tensor, "B S 4"]) -> Float[Tensor, "B S 4"]:
        return self.box_head(projected).float() + anchors

    def _project(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        projected: Tensor = self.memory_norm(self.memory_projection(tokens))
        return projected


@dataclass(frozen=True)
class _Selection:
    """The best cells of each image.

    Attributes:
        cells: their indices.
        is_missing: True where there are fewer cells than queries.
        memory: projected memory.
        anchors: logits.
    """

    cells: Int64[Tensor, "B Q"]
    is_missing: Bool[Tensor, "B Q"]
    memory: Float[Tensor, "B Q D"]
    anchors: Float[Tensor, "B Q 4"]


class TwoStageQueries(EncoderQueries):
    """The encoder's best boxes as references, and content and positions computed from their sine encoding.

    detrkit's presets add the memory of the selected cell to the content, as in RT-DETR (arXiv:2304.08069; here with its
    gradient), and a learned embedding per rank, as in DINO (arXiv:2203.03605), which distinguishes queries that start from
    the same object.

    Args:
        num_queries: Q.
        width: D.
        num_classes: outputs of the class head; only the first is used, as objectness.
        content_from_memory: add the memory and the embedding of the rank to the content.
    """

    denoising_labels = None
    weight: nn.Parameter | None

    def __init__(self, num_queries: int, width: int, num_classes: int, *, content_from_memory: bool = False) -> None:
        # as published, proposals start at their anchors; detrkit's presets learn faster without (docs/decisions, 9)
        super().__init__(num_queries, width, num_classes, partial(BoxHead, zero_init=not content_from_memory))
        self.query_projection = nn.Linear(2 * width, 2 * width)
        self.query_norm = nn.LayerNorm(2 * width)
        weight = nn.Parameter(torch.randn(num_queries, width)) if content_from_memory else None
        self.register_parameter("weight", weight)
        for projection in (self.memory_projection, self.query_projection):
            assert isinstance(projection, nn.Linear)
            nn.init.xavier_uniform_(projection.weight)

    def forward(self, memory: FeatureMaps) -> Queries:
        """Select the best proposals of each image."""
        projected, anchors, logits = self._score(memory)
        selected = self._select(projected, anchors, logits[..., 0])
        # the decoder's losses do not train the proposals
        reference = self._boxes(selected.memory, selected.anchors).detach()
        reference = reference.clamp(-MAX_LOGIT, MAX_LOGIT)
        positions, content = self.encode_boxes(reference, projected.dtype)
        if self.weight is not None:
            content = content + selected.memory + self.weight.to(content.dtype)
        proposals = None
        if self.return_proposals:
            proposals = EncoderProposals(logits, self._boxes(projected, anchors).sigmoid())
        return Queries(content, positions, reference, proposals)

    def at_boxes(self, content: Float[Tensor, "B Q D"], reference: Float[Tensor, "B Q 4"]) -> Queries:
        """Return queries that start from given boxes, with the positions of selected ones."""
        return Queries(content, self.encode_boxes(reference, content.dtype)[0], reference)

    def encode_boxes(
        self, reference: Float[Tensor, "B Q 4"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q D"]]:
        """Compute positions and content of queries from the logits of their boxes."""
        sine = encode_coordinates(reference.sigmoid(), self.query_norm.normalized_shape[0] // 4).to(dtype)
        positions, content = self.query_norm(self.query_projection(sine)).chunk(2, dim=-1)
        return positions, content


class SelectedQueries(EncoderQueries):
    """The encoder's best cells (RT-DETR, arXiv:2304.08069, section 4.3): references are their boxes, content their memory.

    Unlike in two-stage Deformable DETR, cells are ranked by their best class, boxes are predicted for the selected cells
    only, and the decoder computes the positions of the queries from their references. Its losses train neither boxes nor
    memory projection. As published, the memory of invalid anchors is zero here, but not in the decoder.

    Args:
        num_queries: Q.
        width: D.
        num_classes: K.
        activation: of the box head.
        projected: project and normalise the memory first, which DEIMv2 does not.

    Attributes:
        denoising_labels: embeddings of the K classes and of padding (zeros), the content of denoising queries in training.
    """

    def __init__(
        self,
        num_queries: int,
        width: int,
        num_classes: int,
        activation: ActivationName = "relu",
        *,
        projected: bool = True,
    ) -> None:
        labels = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)
        box_head = partial(BoxHead, zero_init=True, activation=activation)
        super().__init__(num_queries, width, num_classes, box_head, projected)
        self.denoising_labels = labels
        if isinstance(self.memory_projection, nn.Linear):
            nn.init.xavier_uniform_(self.memory_projection.weight)

    def forward(self, memory: FeatureMaps) -> Queries:
        """Select the best cells of each image."""
        projected, anchors, logits = self._score(memory)
        selected = self._select(projected, anchors, logits.amax(-1))
        boxes = self._boxes(selected.memory, selected.anchors)
        proposals = None
        if self.return_proposals:
            own_logits = rows_of(logits, selected.cells).masked_fill(selected.is_missing[..., None], -INVALID_LOGIT)
            proposals = EncoderProposals(own_logits, boxes.sigmoid(), class_agnostic=False, cells=selected.cells)
        queries = self.at_boxes(selected.memory.detach(), boxes.detach().clamp(-MAX_LOGIT, MAX_LOGIT))
        return replace(queries, proposals=proposals)

    def at_boxes(self, content: Float[Tensor, "B Q D"], reference: Float[Tensor, "B Q 4"]) -> Queries:
        """Return queries that start from given boxes; the decoder computes their positions."""
        return Queries(content, torch.zeros_like(content), reference)


def best_cells(scores: Float[Tensor, "B S"], count: int) -> tuple[Int64[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
    """Select the cells with the highest scores, in descending order.

    Returns:
        Indices of the cells, and True where there are none left: if there are fewer cells than queries.
    """
    num_cells = scores.shape[1]
    missing = torch.full_like(scores[:, :1], -torch.inf).expand(-1, count)
    cells = torch.cat([scores, missing], dim=1).topk(count, dim=1).indices
    return cells.clamp(max=num_cells - 1), cells >= num_cells


def rows_of(values: Float[Tensor, "B S C"], rows: Int64[Tensor, "B Q"]) -> Float[Tensor, "B Q C"]:
    """Select rows of each image."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))


def generate_anchors(memory: FeatureMaps) -> tuple[Float[Tensor, "B S 4"], Bool[Tensor, "B S"]]:
    """Compute the logits of a square anchor at every cell, and which anchors are valid: inside of the image."""
    anchors, is_valid = _anchors(memory)
    logits = torch.logit(anchors.clamp(_MARGIN / 2, 1 - _MARGIN / 2))
    return logits.masked_fill(~is_valid[..., None], INVALID_LOGIT), is_valid


def valid_anchors(memory: FeatureMaps) -> tuple[Float[Tensor, "B S 4"], Bool[Tensor, "B S"]]:
    """Compute a square anchor at every cell, zeros if it is invalid, and which are valid: inside of the image."""
    anchors, is_valid = _anchors(memory)
    return anchors.masked_fill(~is_valid[..., None], 0.0), is_valid


def _anchors(memory: FeatureMaps) -> tuple[Float[Tensor, "B S 4"], Bool[Tensor, "B S"]]:
    anchors = anchor_squares(memory.cell_centers())
    # with align_cells, the first cells of a ResNet have their centers at the image's edge, but see what is inside
    inside = anchors if memory.first_cells is None else anchor_squares(memory.cell_centers(aligned=False))
    is_valid = ((inside > _MARGIN + _ROUNDING) & (inside < 1 - _MARGIN - _ROUNDING)).all(-1)
    if memory.padding_mask is not None:
        is_valid = is_valid & ~memory.padding_mask
    return anchors, is_valid


def anchor_squares(centers: Sequence[Float[Tensor, "B _ 2"]]) -> Float[Tensor, "B S 4"]:
    """Place a square at every center; its size doubles from map to map."""
    sizes = [min(_ANCHOR_SIZE * 2.0**level, _MAX_ANCHOR_SIZE) for level in range(len(centers))]
    squares = [
        torch.cat([center, torch.full_like(center, size)], dim=-1) for center, size in zip(centers, sizes, strict=True)
    ]
    return torch.cat(squares, dim=1)
