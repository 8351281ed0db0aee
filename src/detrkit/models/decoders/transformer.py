"""Transformer decoder (paper, section 3.2, appendix A.3 and figure 10): all object queries in parallel."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.config.model import PositionInjection
from detrkit.models.attention.multi_head import MultiHeadAttention
from detrkit.models.decoder_output import DecoderOutput
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import DetectionHeads
from detrkit.models.layers import LayerConfig, Residual, checkpointed, feed_forward
from detrkit.models.positions import inject_positions
from detrkit.models.queries.position_encoding import BoxPositionEncoding, QueryPositionEncoding
from detrkit.models.queries.queries import LayerQueryPositions, Queries, reference_to_boxes, refine_reference


class DecoderLayer(nn.Module):
    """Self-attention between the queries, cross-attention to the memory, then a feed-forward network.

    Args:
        config: of the layer.
        self_attention: attention module; None for dense multi-head attention.
        cross_attention: likewise.
    """

    def __init__(
        self, config: LayerConfig, self_attention: nn.Module | None = None, cross_attention: nn.Module | None = None
    ) -> None:
        super().__init__()
        dense = (config.width, config.num_heads, config.dropout)
        self.self_attention = self_attention or MultiHeadAttention(*dense)
        self.self_attention_residual = Residual(config)
        self.cross_attention = cross_attention or MultiHeadAttention(*dense)
        self.cross_attention_residual = Residual(config)
        self.feed_forward = feed_forward(config)
        self.feed_forward_residual = Residual(config)

    def forward(
        self, states: Float[Tensor, "B Q D"], positions: LayerQueryPositions, memory: FeatureMaps
    ) -> Float[Tensor, "B Q D"]:
        """Compute the next state of the queries.

        Args:
            states: of the queries.
            positions: of the queries.
            memory: output of the encoder.
        """
        attended = self._attend_within_groups(self.self_attention_residual.before(states), positions)
        states = self.self_attention_residual.after(states, attended)

        attended = self.attend_to_memory(self.cross_attention_residual.before(states), positions, memory)
        states = self.cross_attention_residual.after(states, attended)

        output = self.feed_forward(self.feed_forward_residual.before(states))
        return self.feed_forward_residual.after(states, output)

    def _attend_within_groups(
        self, states: Float[Tensor, "B Q D"], positions: LayerQueryPositions
    ) -> Float[Tensor, "B Q D"]:
        if not positions.groups:
            return self.attend_to_queries(states, positions)
        sizes, attended = [group.num_queries for group in positions.groups], []
        parts = zip(positions.groups, states.split(sizes, 1), positions.positions.split(sizes, 1), strict=True)
        first_states, first_positions = states[:, : sizes[0]], positions.positions[:, : sizes[0]]
        for group, group_states, group_positions in parts:
            if group.attends_to_own:  # one masked attention: keys of the model's own queries are projected once
                others = LayerQueryPositions(
                    group_positions,
                    padding_mask=group.repeat_padding_mask(),
                    others=(first_states, first_positions),
                    attention_mask=group.attention_mask(sizes[0], states.device),
                )
                attended.append(self.attend_to_queries(group_states, others))
                continue
            own = LayerQueryPositions(group.split(group_positions), padding_mask=group.split_padding_mask())
            attended.append(group.merge(self.attend_to_queries(group.split(group_states), own)))
        return torch.cat(attended, dim=1)

    def attend_to_queries(
        self, states: Float[Tensor, "B Q D"], positions: LayerQueryPositions
    ) -> Float[Tensor, "B Q D"]:
        """Apply self-attention to the queries of one group."""
        queries = states + positions.positions
        values, key_positions, padding_mask = positions.attended(states)
        keys = queries if values is states else values + key_positions
        attended: Tensor = self.self_attention(queries, keys, values, padding_mask, positions.attention_mask)
        return attended

    def attend_to_memory(
        self, states: Float[Tensor, "B Q D"], positions: LayerQueryPositions, memory: FeatureMaps
    ) -> Float[Tensor, "B Q D"]:
        """Apply cross-attention to all cells."""
        queries = states + positions.positions
        attended: Tensor = self.cross_attention(queries, memory.keys, memory.tokens, memory.padding_mask)
        return attended


class TransformerDecoder(nn.Module):
    """Stack of decoder layers; predictions are made after each (auxiliary losses, paper section 3.2).

    Args:
        layers: first to last.
        norm: applied to the states after each layer.
        query_position_encoding: computes the query positions before each layer.
        memory_injection: where positions of the cells are added.
        query_injection: where positions of the queries are added.
        with_box_refine: each layer starts from the boxes of the previous one.
        look_forward_twice: the loss of a layer's boxes also trains the previous layer, whose boxes they refine (DINO's
            name). Published DAB-DETR and RT-DETR do, Deformable DETR does not.
        eval_layers: number of layers that are run outside of training; None for all.

    Attributes:
        activation_checkpointing: recompute activations in the backward pass.
        return_intermediate: return the states after all layers; False returns those after the last one only.
    """

    def __init__(
        self,
        layers: Iterable[DecoderLayer],
        norm: nn.Module,
        query_position_encoding: QueryPositionEncoding | BoxPositionEncoding,
        *,
        memory_injection: PositionInjection = "attention",
        query_injection: PositionInjection = "attention",
        with_box_refine: bool = False,
        look_forward_twice: bool = False,
        eval_layers: int | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.memory_injection = memory_injection
        self.query_injection = query_injection
        self.with_box_refine = with_box_refine
        self.look_forward_twice = look_forward_twice
        self.eval_layers = eval_layers
        self.activation_checkpointing = False
        self.return_intermediate = True
        self.norm = norm
        self.query_position_encoding = query_position_encoding

    def forward(self, queries: Queries, memory: FeatureMaps, heads: DetectionHeads) -> DecoderOutput:
        """Decode all queries in parallel.

        Args:
            queries: input of the first layer.
            memory: output of the encoder.
            heads: whose box heads refine the references between layers.
        """
        memory = self.prepare(memory)
        states, positions = inject_positions(queries.content, queries.positions, self.query_injection)
        queries = replace(queries, positions=positions)
        reference = box_reference = queries.reference  # where to attend; what boxes are predicted relative to
        all_states, all_references, layers = [], [], []
        for number, layer in enumerate(self.active_layers):
            coordinates = None if reference is None else reference.sigmoid()
            states = self.run_layer(number, layer, states, queries, coordinates, memory)
            if self.is_returned(number):
                layers.append(number)
                all_states.append(self.norm(states))
                all_references.append(box_reference)
            if self.with_box_refine and reference is not None and not self.is_last(number):
                box_reference = refine_reference(reference, heads.box_head_of(number)(states))
                reference = box_reference.detach()
                if not self.look_forward_twice:
                    box_reference = reference
        references = [reference_to_boxes(one) for one in all_references if one is not None]
        return DecoderOutput(torch.stack(all_states), tuple(layers), torch.stack(references) if references else None)

    @property
    def active_layers(self) -> list[nn.Module]:
        """The layers to run: outside of training, the first `eval_layers`."""
        return list(self.layers) if self.training else list(self.layers)[: self.eval_layers]

    def is_last(self, number: int) -> bool:
        """Return whether a layer is the last one to run."""
        return number + 1 == len(self.active_layers)

    def is_returned(self, number: int) -> bool:
        """Return whether the states after a layer are returned."""
        return self.return_intermediate or self.is_last(number)

    def prepare(self, memory: FeatureMaps) -> FeatureMaps:
        """Add the positions of the cells to the memory, as all layers need them."""
        tokens, positions = inject_positions(memory.tokens, memory.positions, self.memory_injection)
        return replace(memory, tokens=tokens, positions=positions, keys=tokens + positions)

    def run_layer(
        self,
        number: int,
        layer: nn.Module,
        states: Float[Tensor, "B Q D"],
        queries: Queries,
        reference: Float[Tensor, "B Q R"] | None,
        memory: FeatureMaps,
    ) -> Float[Tensor, "B Q D"]:
        """Run one layer on the states; `reference` are points or boxes in 0 .. 1 of the image."""
        positions = self.query_position_encoding(number, states, queries.positions, reference)
        if queries.groups:
            positions = replace(positions, groups=queries.groups)
        next_states: Tensor = checkpointed(layer, self.activation_checkpointing, states, positions, memory)
        return next_states
