"""Decoder of LW-DETR and RF-DETR: references are not refined, so that all layers have the same query positions."""

from dataclasses import replace

import torch

from detrkit.models.decoder_output import DecoderOutput
from detrkit.models.decoders.transformer import TransformerDecoder
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import DetectionHeads
from detrkit.models.layers import checkpointed
from detrkit.models.queries.queries import Queries


class FixedReferenceDecoder(TransformerDecoder):
    """Stack of decoder layers that attend around the same boxes, which predictions of all layers are relative to."""

    def forward(self, queries: Queries, memory: FeatureMaps, heads: DetectionHeads) -> DecoderOutput:
        """Decode all queries in parallel. Arguments as of `TransformerDecoder`; references are boxes, not logits."""
        assert queries.reference is not None, "mixed queries have references"
        states, reference = queries.content, queries.reference
        encoded = reference
        if not memory.padding_invariant:  # as published, relative to the padded image
            encoded = memory.to_map_coordinates(reference)[:, :, 0]
        positions = self.query_position_encoding(0, states, queries.positions, encoded)
        positions = replace(positions, reference=reference, groups=queries.groups)
        all_states, layers = [], []
        for number, layer in enumerate(self.active_layers):
            states = checkpointed(layer, self.activation_checkpointing, states, positions, memory)
            if self.is_returned(number):
                layers.append(number)
                all_states.append(self.norm(states))
        return DecoderOutput(torch.stack(all_states), tuple(layers), reference.expand(len(layers), -1, -1, -1))
