"""The transformer (paper, section 3.2, appendix A.3 and figure 10).

Positions are added to queries and keys at every attention and never to values, unless a `Place` says
otherwise. The decoder reads all object queries in parallel. Layers that attend otherwise (`models.conditional`,
`models.deformable`) say how, and share the rest.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.config.model import Place
from detrkit.models.activation_checkpointing import run
from detrkit.models.attention.multi_head import MultiHeadAttention
from detrkit.models.dropout import Dropout
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import Heads
from detrkit.models.positions import add_positions
from detrkit.models.queries.sources import LayerQueryPositions, Queries, QueryPositionEncoding, as_boxes, refined


@dataclass(frozen=True)
class LayerShape:
    """What layers of encoder and decoder have in common; fields as in `ModelConfig`."""

    width: int
    num_heads: int
    dim_feedforward: int
    dropout: float
    pre_norm: bool
    activation: Literal["relu", "prelu"] = "relu"
    num_feature_levels: int = 1
    num_points: int = 4


class Residual(nn.Module):
    """x + dropout(sublayer(x)) with layer norm: after the sum (post-norm, as published) or on the way in (pre-norm)."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.width)
        self.dropout = Dropout(shape.dropout)
        self.pre_norm = shape.pre_norm

    def before(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Prepare the input of the sublayer."""
        return self.norm(tokens) if self.pre_norm else tokens

    def after(self, tokens: Float[Tensor, "B N D"], change: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Add what the sublayer found."""
        tokens = tokens + self.dropout(change)
        return tokens if self.pre_norm else self.norm(tokens)


class FeedForward(nn.Module):
    """Two linear layers, applied to each token by itself."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.expand = nn.Linear(shape.width, shape.dim_feedforward)
        self.contract = nn.Linear(shape.dim_feedforward, shape.width)
        self.activation = nn.PReLU() if shape.activation == "prelu" else nn.ReLU()
        self.dropout = Dropout(shape.dropout)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Transform each token."""
        return self.contract(self.dropout(self.activation(self.expand(tokens))))


class EncoderLayer(nn.Module):
    """Self-attention between the cells, then a feed-forward network."""

    def __init__(self, shape: LayerShape, self_attention: nn.Module | None = None) -> None:
        super().__init__()
        self.self_attention = self_attention or MultiHeadAttention(shape.width, shape.num_heads, shape.dropout)
        self.self_attention_residual = Residual(shape)
        self.feed_forward = FeedForward(shape)
        self.feed_forward_residual = Residual(shape)

    def forward(
        self, tokens: Float[Tensor, "B S D"], positions: Float[Tensor, "B S D"], scene: FeatureMaps
    ) -> Float[Tensor, "B S D"]:
        """Let every token look around.

        Args:
            tokens: what the cells hold so far.
            positions: where they are.
            scene: how the cells lie, and which are padding.
        """
        found = self.attend(self.self_attention_residual.before(tokens), positions, scene)
        tokens = self.self_attention_residual.after(tokens, found)

        change = self.feed_forward(self.feed_forward_residual.before(tokens))
        return self.feed_forward_residual.after(tokens, change)

    def attend(
        self, values: Float[Tensor, "B S D"], positions: Float[Tensor, "B S D"], scene: FeatureMaps
    ) -> Float[Tensor, "B S D"]:
        """Look at all cells."""
        located = values + positions
        found: Tensor = self.self_attention(located, located, values, scene.padding_mask)
        return found


class Encoder(nn.Module):
    """A stack of encoder layers: tokens -> memory."""

    def __init__(
        self,
        layers: Iterable[EncoderLayer],
        shape: LayerShape,
        positions_at: Place = "attention",
        position_scale: nn.Module | None = None,
    ) -> None:
        """Stack the layers.

        Args:
            layers: first one first.
            shape: of the layers.
            positions_at: where positions are added.
            position_scale: says, before each layer, by what to scale positions, from what the cells hold (DAB-DETR).
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.positions_at = positions_at
        self.position_scale = position_scale
        self.activation_checkpointing = False
        # post-norm layers end with a norm of their own
        self.norm = nn.LayerNorm(shape.width) if shape.pre_norm else nn.Identity()

    def forward(self, scene: FeatureMaps) -> Float[Tensor, "B S D"]:
        """Turn tokens into the memory that the decoder reads."""
        tokens, positions = add_positions(scene.tokens, scene.positions, self.positions_at)
        for layer in self.layers:
            scaled = positions if self.position_scale is None else positions * self.position_scale(tokens)
            tokens = run(layer, self.activation_checkpointing, tokens, scaled, scene)
        return self.norm(tokens)


class DecoderLayer(nn.Module):
    """Self-attention between the queries, cross-attention to the memory, then a feed-forward network."""

    def __init__(
        self, shape: LayerShape, self_attention: nn.Module | None = None, cross_attention: nn.Module | None = None
    ) -> None:
        super().__init__()
        plain = (shape.width, shape.num_heads, shape.dropout)
        self.self_attention = self_attention or MultiHeadAttention(*plain)
        self.self_attention_residual = Residual(shape)
        self.cross_attention = cross_attention or MultiHeadAttention(*plain)
        self.cross_attention_residual = Residual(shape)
        self.feed_forward = FeedForward(shape)
        self.feed_forward_residual = Residual(shape)

    def forward(
        self, decoded: Float[Tensor, "B Q D"], place: LayerQueryPositions, scene: FeatureMaps
    ) -> Float[Tensor, "B Q D"]:
        """Let the queries agree on who takes what, and look at the photo.

        Args:
            decoded: what the queries have found so far.
            place: who and where they are.
            scene: with the encoder's memory.
        """
        found = self._attend_within_blocks(self.self_attention_residual.before(decoded), place)
        decoded = self.self_attention_residual.after(decoded, found)

        found = self.attend_to_scene(self.cross_attention_residual.before(decoded), place, scene)
        decoded = self.cross_attention_residual.after(decoded, found)

        change = self.feed_forward(self.feed_forward_residual.before(decoded))
        return self.feed_forward_residual.after(decoded, change)

    def _attend_within_blocks(
        self, values: Float[Tensor, "B Q D"], place: LayerQueryPositions
    ) -> Float[Tensor, "B Q D"]:
        if not place.blocks:
            return self.attend_to_queries(values, place)
        sizes, found = [block.num_queries for block in place.blocks], []
        parts = zip(place.blocks, values.split(sizes, 1), place.positions.split(sizes, 1), strict=True)
        for block, of_block, positions in parts:
            own_place = LayerQueryPositions(block.apart(positions), fillers=block.fillers_apart())
            found.append(block.together(self.attend_to_queries(block.apart(of_block), own_place)))
        return torch.cat(found, dim=1)

    def attend_to_queries(self, values: Float[Tensor, "B Q D"], place: LayerQueryPositions) -> Float[Tensor, "B Q D"]:
        """Look at all queries."""
        located = values + place.positions
        found: Tensor = self.self_attention(located, located, values, place.fillers)
        return found

    def attend_to_scene(
        self, values: Float[Tensor, "B Q D"], place: LayerQueryPositions, scene: FeatureMaps
    ) -> Float[Tensor, "B Q D"]:
        """Look at all cells."""
        located = values + place.positions
        found: Tensor = self.cross_attention(located, scene.located, scene.tokens, scene.padding_mask)
        return found


class Decoder(nn.Module):
    """A stack of decoder layers, each of which is asked for its answer (auxiliary losses, paper section 3.2)."""

    def __init__(
        self,
        layers: Iterable[DecoderLayer],
        norm: nn.Module,
        query_position_encoding: QueryPositionEncoding,
        *,
        positions_at: Place = "attention",
        queries_at: Place = "attention",
        refines: bool = False,
        learns_through_references: bool = False,
    ) -> None:
        """Stack the layers.

        Args:
            layers: first one first.
            norm: of what is read off each layer.
            query_position_encoding: tells each layer where its queries are.
            positions_at: where cells' positions are added.
            queries_at: where queries' positions are added.
            refines: whether each layer starts from the boxes of the one before it.
            learns_through_references: whether the loss of a layer's boxes also teaches the layer before, whose boxes they
                are counted from. Published DAB-DETR does, Deformable DETR does not.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.positions_at = positions_at
        self.queries_at = queries_at
        self.refines = refines
        self.learns_through_references = learns_through_references
        self.activation_checkpointing = False
        self.norm = norm
        self.query_position_encoding = query_position_encoding

    def forward(
        self, queries: Queries, scene: FeatureMaps, heads: Heads
    ) -> tuple[Float[Tensor, "T B Q D"], Float[Tensor, "T B Q 4"] | None]:
        """Decode all queries in parallel.

        Args:
            queries: where to start.
            scene: with the encoder's memory.
            heads: read boxes off each layer, where boxes are refined.

        Returns:
            The normalised state after every layer, and the logits that each layer's boxes are counted from; None for zero.
        """
        memory, cell_positions = add_positions(scene.tokens, scene.positions, self.positions_at)
        scene = replace(scene, tokens=memory, positions=cell_positions, located=memory + cell_positions)
        decoded, positions = add_positions(queries.content, queries.positions, self.queries_at)
        reference = counted_from = queries.reference
        after_layer, references = [], []
        for number, layer in enumerate(self.layers):
            place = self.query_position_encoding(number, decoded, positions, reference)
            place = replace(place, blocks=queries.blocks) if queries.blocks else place
            decoded = run(layer, self.activation_checkpointing, decoded, place, scene)
            after_layer.append(self.norm(decoded))
            references.append(counted_from)
            if self.refines and reference is not None and number + 1 < len(self.layers):
                counted_from = refined(reference, heads.box_head_of(number)(decoded))
                reference = counted_from.detach()
                if not self.learns_through_references:
                    counted_from = reference
        known = [as_boxes(one) for one in references if one is not None]
        return torch.stack(after_layer), torch.stack(known) if known else None
