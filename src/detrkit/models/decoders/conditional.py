"""Decoder layer with conditional cross-attention (Conditional DETR, arXiv:2108.06152, section 3.3; also DAB-DETR).

Queries and keys of cross-attention are the concatenation of content and position in every head, so the attention weights
are a sum of a content and a spatial term.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.models.attention.multi_head import ProjectedAttention
from detrkit.models.decoders.transformer import DecoderLayer
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import LayerConfig
from detrkit.models.queries.queries import LayerQueryPositions


class ConditionalDecoderLayer(DecoderLayer):
    """Decoder layer with separate projections of content and positions.

    Args:
        config: of the layer.
        is_first: the content of the first layer's queries is the same for all images, so it is compared with positions
            added, as in DETR.
    """

    def __init__(self, config: LayerConfig, *, is_first: bool) -> None:
        attention = (config.width, config.num_heads, config.dropout)
        super().__init__(config, ProjectedAttention(*attention), ProjectedAttention(*attention))
        width = config.width
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

    def attend_to_queries(
        self, states: Float[Tensor, "B Q D"], positions: LayerQueryPositions
    ) -> Float[Tensor, "B Q D"]:
        """Apply self-attention to the queries of one group."""
        project = self.self_projections
        queries = project["query_content"](states) + project["query_position"](positions.positions)
        key_states, key_positions, padding_mask = positions.attended(states)
        keys = project["key_content"](key_states) + project["key_position"](key_positions)
        attended: Tensor = self.self_attention(
            queries, keys, project["value"](key_states), padding_mask, positions.attention_mask
        )
        return attended

    def attend_to_memory(
        self, states: Float[Tensor, "B Q D"], positions: LayerQueryPositions, memory: FeatureMaps
    ) -> Float[Tensor, "B Q D"]:
        """Apply cross-attention to the content and the positions of all cells."""
        assert positions.sine is not None, "conditional attention needs sine encodings of the references"
        project = self.cross_projections
        query_content, key_content = project["query_content"](states), project["key_content"](memory.tokens)
        key_positions = project["key_position"](memory.positions)
        if self.is_first:
            query_content = query_content + project["query_position"](positions.positions)
            key_content = key_content + key_positions
        queries = self._concat_by_head(query_content, project["query_sine"](positions.sine))
        keys = self._concat_by_head(key_content, key_positions)
        attended: Tensor = self.cross_attention(queries, keys, project["value"](memory.tokens), memory.padding_mask)
        return attended

    def _concat_by_head(
        self, content: Float[Tensor, "B N D"], positions: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B N E"]:
        """Concatenate content and positions in every head."""
        heads = (self.cross_attention.num_heads, -1)
        return torch.cat([content.unflatten(-1, heads), positions.unflatten(-1, heads)], dim=-1).flatten(-2)


def _projection(width: int) -> nn.Linear:
    projection = nn.Linear(width, width)
    nn.init.xavier_uniform_(projection.weight)
    return projection
