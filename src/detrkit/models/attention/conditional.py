"""Attention with content and place apart (Conditional DETR, arXiv:2108.06152, section 3.3; also in DAB-DETR).

In cross-attention, content is compared with content and place with place: queries and keys are both, one after the other in
every head, so that a query can look for a place whatever is there. Input and output as of `DecoderLayer`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.models.attention.multi_head import ProjectedAttention
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.sources import LayerQueryPositions
from detrkit.models.transformer import DecoderLayer, LayerShape


class ConditionalDecoderLayer(DecoderLayer):
    """A decoder layer whose attentions project content and place by themselves."""

    def __init__(self, shape: LayerShape, *, is_first: bool) -> None:
        """Build the layer.

        Args:
            shape: of all layers.
            is_first: before the first layer content says nothing yet, so that its content is compared with positions added,
                as in DETR.
        """
        plain = (shape.width, shape.num_heads, shape.dropout)
        super().__init__(shape, ProjectedAttention(*plain), ProjectedAttention(*plain))
        width = shape.width
        self.self_projections = nn.ModuleDict(
            {
                name: _projection(width)
                for name in ("query_content", "query_position", "key_content", "key_position", "value")
            }
        )
        names = ["query_content", "query_sine", "key_content", "key_position", "value"]
        self.cross_projections = nn.ModuleDict(
            {name: _projection(width) for name in [*names, *(["query_position"] if is_first else [])]}
        )
        self.is_first = is_first

    def attend_to_queries(self, values: Float[Tensor, "B Q D"], place: LayerQueryPositions) -> Float[Tensor, "B Q D"]:
        """Look at all queries."""
        project = self.self_projections
        queries = project["query_content"](values) + project["query_position"](place.positions)
        keys = project["key_content"](values) + project["key_position"](place.positions)
        found: Tensor = self.self_attention(queries, keys, project["value"](values), place.fillers)
        return found

    def attend_to_scene(
        self, values: Float[Tensor, "B Q D"], place: LayerQueryPositions, scene: FeatureMaps
    ) -> Float[Tensor, "B Q D"]:
        """Look at all cells, for what they hold and where they are."""
        assert place.sine is not None, "the guide of conditional layers gives sines"
        project = self.cross_projections
        content, cells = project["query_content"](values), project["key_content"](scene.tokens)
        cell_places = project["key_position"](scene.positions)
        if self.is_first:
            content = content + project["query_position"](place.positions)
            cells = cells + cell_places
        queries = self._by_head(content, project["query_sine"](place.sine))
        keys = self._by_head(cells, cell_places)
        found: Tensor = self.cross_attention(queries, keys, project["value"](scene.tokens), scene.padding_mask)
        return found

    def _by_head(self, content: Float[Tensor, "B N D"], places: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        """Give every head its share of both."""
        heads = (self.cross_attention.num_heads, -1)
        both = torch.cat([content.unflatten(-1, heads), places.unflatten(-1, heads)], dim=-1)
        return both.flatten(-2)


def _projection(width: int) -> nn.Linear:
    projection = nn.Linear(width, width)
    nn.init.xavier_uniform_(projection.weight)
    return projection
