"""Learned query sources: vectors (DETR), vectors with points (Conditional, Deformable DETR), anchor boxes (DAB-DETR)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import in_float32, mlp
from detrkit.models.queries.queries import Queries


class LearnedQueries(nn.Module):
    """One learned position encoding per query, added at every attention; the content starts at zero (DETR)."""

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_queries, width))
        nn.init.normal_(self.weight)

    def forward(self, memory: FeatureMaps) -> Queries:
        """Return the same queries for every image."""
        positions = self.weight.expand(memory.tokens.shape[0], -1, -1).to(memory.tokens.dtype)
        return Queries(torch.zeros_like(positions), positions)


class PointQueries(nn.Module):
    """One learned embedding per query, from which its reference point is predicted.

    Conditional DETR predicts it with two layers, and the content starts at zero; Deformable DETR with one layer, and half
    of the embedding is the content.
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

    def forward(self, memory: FeatureMaps) -> Queries:
        """Return the same queries and points for every image."""
        embeddings = self.weight.expand(memory.tokens.shape[0], -1, -1)
        if self.with_content:
            positions, content = embeddings.chunk(2, dim=-1)
        else:
            positions, content = embeddings, torch.zeros_like(embeddings)
        points = in_float32(self.point_head, positions).float()
        dtype = memory.tokens.dtype
        return Queries(content.to(dtype), positions.to(dtype), points)


class AnchorQueries(nn.Module):
    """One learned anchor box per query, as logits; the content starts at zero (DAB-DETR)."""

    denoising_labels = None

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_queries, 4))
        self.width = width
        nn.init.normal_(self.weight)

    def forward(self, memory: FeatureMaps) -> Queries:
        """Return the same anchors for every image."""
        anchors = self.weight.expand(memory.tokens.shape[0], -1, -1).float()
        zeros = torch.zeros(*anchors.shape[:2], self.width, dtype=memory.tokens.dtype, device=anchors.device)
        return self.at_boxes(zeros, anchors)

    def at_boxes(self, content: Float[Tensor, "B Q D"], reference: Float[Tensor, "B Q 4"]) -> Queries:
        """Return queries that start from given boxes; the decoder computes their positions."""
        return Queries(content, torch.zeros_like(content), reference)
