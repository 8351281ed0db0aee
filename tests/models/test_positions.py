"""Position injection: at every attention, at the input, or nowhere (paper, table 3)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints.conversion.convert import convert
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.synthetic import SHAPES
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.decoders.transformer import DecoderLayer, TransformerDecoder
from detrkit.models.encoders.transformer import EncoderLayer, TransformerEncoder
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import BoxHead, ClassHead, DetectionHeads
from detrkit.models.layers import LayerConfig
from detrkit.models.positions import inject_positions
from detrkit.models.queries.position_encoding import QueryPositionEncoding
from detrkit.models.queries.queries import Queries

CONFIG = LayerConfig(width=16, num_heads=2, dim_feedforward=32, dropout=0.0, pre_norm=False)


def feature_maps(tokens: torch.Tensor, positions: torch.Tensor) -> FeatureMaps:
    return FeatureMaps(tokens, positions, None, ((1, tokens.shape[1]),))


def test_injected_positions_equal_values_by_hand() -> None:
    tokens, positions = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[10.0, 20.0]]])
    expected = {
        "attention": ([1.0, 2.0], [10.0, 20.0]),
        "input": ([11.0, 22.0], [0.0, 0.0]),
        "none": ([1.0, 2.0], [0.0, 0.0]),
    }
    for injection, (tokens_out, added) in expected.items():
        result = inject_positions(tokens, positions, injection)  # type: ignore[arg-type]
        assert (result[0][0, 0].tolist(), result[1][0, 0].tolist()) == (tokens_out, added)


def test_positions_injected_at_the_input_equal_positions_added_before() -> None:
    torch.manual_seed(0)
    encoder = TransformerEncoder([EncoderLayer(CONFIG), EncoderLayer(CONFIG)], torch.nn.Identity(), "input")
    tokens, positions = torch.randn(2, 1, 5, 16)
    zeros = torch.zeros_like(positions)
    expected = encoder(feature_maps(tokens + positions, zeros)).tokens
    torch.testing.assert_close(encoder(feature_maps(tokens, positions)).tokens, expected)

    layers = [DecoderLayer(replace(CONFIG, pre_norm=True)) for _ in range(2)]
    encoding = QueryPositionEncoding(16, has_anchors=False, is_conditional=False)
    decoder = TransformerDecoder(
        layers, torch.nn.LayerNorm(16), encoding, memory_injection="input", query_injection="input"
    )
    heads = DetectionHeads([ClassHead(16, 3)], [BoxHead(16)])
    queries = Queries(torch.zeros(1, 3, 16), torch.randn(1, 3, 16))
    decoded = decoder(queries, feature_maps(tokens, positions), heads)
    result = decoded.states
    assert decoded.references is None
    torch.testing.assert_close(decoder(queries, feature_maps(tokens + positions, zeros), heads).states, result)
    assert not torch.allclose(decoder(queries, feature_maps(tokens, zeros), heads).states, result)


def class_logits(**settings: object) -> torch.Tensor:
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=3, **settings).eval()
    torch.manual_seed(1)
    with torch.inference_mode():
        return model(torch.randn(1, 3, 64, 64)).class_logits


def test_outputs_of_all_injections_are_different() -> None:
    variants = [{}, {"encoder_positions": "input"}, {"decoder_positions": "none"}, {"query_positions": "input"}]
    variants += [{"position_embedding": "none"}]
    outputs = [class_logits(**settings) for settings in variants]
    for first in range(len(outputs)):
        for second in range(first):
            assert not torch.allclose(outputs[first], outputs[second]), (variants[first], variants[second])
    without = class_logits(encoder_positions="none", decoder_positions="none")
    torch.testing.assert_close(without, class_logits(position_embedding="none"))


def test_encoder_without_positions_is_permutation_equivariant() -> None:
    torch.manual_seed(0)
    encoder = TransformerEncoder([EncoderLayer(CONFIG)], torch.nn.Identity(), "none")
    tokens, positions = torch.randn(2, 1, 5, 16)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = encoder(feature_maps(tokens[:, order], positions)).tokens
    torch.testing.assert_close(permuted, encoder(feature_maps(tokens, positions)).tokens[:, order])


def test_unused_learned_positions_are_rejected() -> None:
    with pytest.raises(ConfigError, match="Set position_embedding='none'"):
        build_model("detr-tiny", position_embedding="learned", encoder_positions="none", decoder_positions="none")
    with pytest.raises(ConfigError, match="Set position_embedding='none'"):
        build_model("detr-tiny", position_embedding="learned", encoder_layers=0, decoder_positions="none")


@pytest.mark.parametrize("format", ["official", "huggingface"])
def test_conversion_to_formats_without_position_injection_is_rejected(format: str, tmp_path: Path) -> None:
    model = build_model("detr-r18", num_classes=3, query_positions="input", encoder_layers=1, decoder_layers=1)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing()))
    output = tmp_path / ("out.pth" if format == "official" else "out")
    with pytest.raises(CheckpointError, match="position encodings elsewhere"):
        convert(str(path), output, format)  # type: ignore[arg-type]
    assert convert(str(path), tmp_path / "b.safetensors", "detrkit").max_difference == 0
