"""Decoder of D-FINE (arXiv:2410.13842) and DEIMv2: edges of boxes are refined from layer to layer as distributions."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.models.decoder_output import DecoderOutput, RefinedEdges
from detrkit.models.decoders.deformable import DeformableDecoderLayer
from detrkit.models.decoders.transformer import TransformerDecoder
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.fine_grained import FineGrainedHeads
from detrkit.models.layers import LayerConfig, Residual
from detrkit.models.queries.position_encoding import BoxPositionEncoding
from detrkit.models.queries.queries import Queries


class GatedResidual(Residual):
    """Weighted sum of states and attended memory, whose weights in 0 .. 1 are computed from both, then a norm.

    It stands in for the residual connection of cross-attention ("target gating layer" in the paper).
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(2 * config.width, 2 * config.width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def after(self, tokens: Float[Tensor, "B N D"], output: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Combine the states with the output of cross-attention."""
        of_tokens, of_output = self.gate(torch.cat([tokens, output], dim=-1)).sigmoid().chunk(2, dim=-1)
        normalized: Tensor = self.norm(of_tokens * tokens + of_output * output)
        return normalized


class FineGrainedDecoderLayer(DeformableDecoderLayer):
    """Decoder layer with deformable cross-attention without projections.

    Args:
        config: of the layer.
        gated: cross-attention has a gate instead of a residual connection, as in D-FINE.
    """

    def __init__(self, config: LayerConfig, *, gated: bool = True) -> None:
        super().__init__(replace(config, value_projection=False))
        if gated:
            self.cross_attention_residual = GatedResidual(config)


class FineGrainedDecoder(TransformerDecoder):
    """Stack of decoder layers that refine distributions of the edges of boxes (section 4.1)."""

    def forward(self, queries: Queries, memory: FeatureMaps, heads: FineGrainedHeads) -> DecoderOutput:  # type: ignore[override]
        """Decode all queries in parallel. Arguments as of `TransformerDecoder`."""
        assert queries.reference is not None, "D-FINE's queries are selected cells, which have boxes"
        memory, states = self.prepare(memory), queries.content
        initial, reference = queries.reference, queries.reference.sigmoid()
        assert isinstance(self.query_position_encoding, BoxPositionEncoding)
        queries = self.query_position_encoding.prepare(queries, reference)
        initial_boxes = initial_states = start = edges = previous = None
        all_states, all_edges, all_boxes, layers = [], [], [], []
        for number, layer in enumerate(self.active_layers):
            states = self.run_layer(number, layer, states, queries, reference, memory)
            if start is None or initial_boxes is None:
                initial_boxes, initial_states = heads.initial_boxes(states, initial), states
                start = initial_boxes.detach()
            of_layer = heads.edge_logits(number, states if previous is None else states + previous)
            edges = of_layer if edges is None else edges + of_layer
            boxes = heads.bins.move_edges(start, edges)
            if self.is_returned(number):
                layers.append(number)
                all_states.append(states)
                all_edges.append(edges)
                all_boxes.append(boxes)
            reference, previous = boxes.detach(), states.detach()
        assert start is not None
        assert initial_boxes is not None
        refined = RefinedEdges(
            torch.stack(all_edges),
            torch.stack(all_boxes),
            start,
            initial_boxes,
            initial_states if self.return_intermediate else None,
        )
        return DecoderOutput(torch.stack(all_states), tuple(layers), edges=refined)
