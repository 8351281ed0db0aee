"""Decoder and heads of D-FINE and DEIMv2: distances, edges, gates, quality, and the refinement from layer to layer."""

import math

import pytest
import torch

from detrkit import ConfigError, build_model
from detrkit.models.decoders.fine_grained import GatedResidual
from detrkit.models.detr import DETR
from detrkit.models.fuse import fuse_for_inference
from detrkit.models.heads.fine_grained import DistanceBins, QualityHead
from detrkit.models.layers import LayerConfig, Residual, RMSNorm, SwiGLU
from detrkit.ops.padding import pad_to_batch


def test_rms_norms_are_computed_in_full_precision_with_autocast() -> None:
    tokens = torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        normalized = RMSNorm(8, eps=1e-6)(tokens.bfloat16())
    expected = tokens.bfloat16().float()
    expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normalized, expected)


@pytest.mark.parametrize(("scale", "ends", "first"), [(4.0, [-4.0, -2.0], 3), (8.0, [-8.0, -4.0], 5)])
def test_distances_are_finest_around_zero(scale: float, ends: list[float], first: float) -> None:
    distances = DistanceBins(32, scale)()
    assert distances.shape == (33,)
    torch.testing.assert_close(distances[:2], torch.tensor(ends))
    torch.testing.assert_close(distances, -distances.flip(0))
    assert float(distances[16]) == 0
    # powers of the 15th root of a + 1, where a is half of the largest distance
    assert math.isclose(float(distances[17]), first ** (1 / 15) - 1, rel_tol=1e-5)
    assert math.isclose(float(distances[18]), first ** (2 / 15) - 1, rel_tol=1e-5)


def test_edges_move_outwards_by_the_expected_distance() -> None:
    bins = DistanceBins(32, 4.0)
    box = torch.tensor([[0.5, 0.4, 0.2, 0.1]])
    logits = torch.full((1, 4, 33), -100.0)
    logits[0, :, 16] = 100.0  # distance 0
    torch.testing.assert_close(bins.move_edges(box, logits), box)
    logits[0, 0] = -100.0
    logits[0, 0, 32] = 100.0  # the left edge moves by 4 quarters of the width
    torch.testing.assert_close(bins.move_edges(box, logits), torch.tensor([[0.4, 0.4, 0.4, 0.1]]))
    logits[0, 3, 0] = 100.0  # the lower edge: half of -4, a quarter of the height each
    expected = torch.tensor([[0.4, 0.4 - 0.025, 0.4, 0.05]])
    torch.testing.assert_close(bins.move_edges(box, logits), expected)
    assert not any(parameter.requires_grad for parameter in bins.parameters())


def test_untrained_gates_average_states_and_attention() -> None:
    residual = GatedResidual(LayerConfig(8, 2, 8, 0.0, pre_norm=False))
    states, attended = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    torch.testing.assert_close(residual.after(states, attended), residual.norm((states + attended) / 2))
    torch.nn.init.constant_(residual.gate.bias[:8], 50.0)
    torch.nn.init.constant_(residual.gate.bias[8:], -50.0)
    torch.testing.assert_close(residual.after(states, attended), residual.norm(states))


def test_quality_sees_the_four_highest_probabilities_of_each_edge_and_their_mean() -> None:
    head = QualityHead()
    logits = torch.randn(2, 3, 4, 33)
    assert not head(logits).any()  # initially
    seen = []
    head[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(logits)
    highest = logits.softmax(-1).sort(-1, descending=True).values[..., :4]
    expected = torch.cat([highest, highest.mean(-1, keepdim=True)], -1).flatten(2)
    torch.testing.assert_close(seen[0], expected)


def small(name: str = "dfine-n", **changes: object) -> DETR:
    torch.manual_seed(0)
    settings = {"num_classes": 3, "num_queries": 5, "hidden_dim": 64, "dim_feedforward": 32, "decoder_layers": 3}
    model = build_model(name, backbone="resnet-tiny", **{**settings, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and not parameter.any():
                parameter.normal_(0, 0.5 * parameter.shape[1] ** -0.5)
    return model


IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_logits_are_added_up_from_layer_to_layer_and_move_the_edges_of_the_first_boxes() -> None:
    model = small()
    predictions = model(IMAGES)
    distributions = predictions.distributions
    assert distributions is not None
    assert distributions.layer_logits.shape == (3, 2, 5, 4, 33)
    torch.testing.assert_close(distributions.references, distributions.initial_boxes)
    moved = model.heads.bins.move_edges(distributions.references.expand(3, -1, -1, -1), distributions.layer_logits)
    torch.testing.assert_close(predictions.layer_boxes, moved)
    # the last layer's boxes also train the first layer's edges, but nothing trains the references
    last = predictions.boxes.sum()
    head = list(model.heads.box_head_of(0).parameters())
    assert all(one is not None for one in torch.autograd.grad(last, head, allow_unused=True, retain_graph=True))
    first = list(model.heads.initial_box_head.parameters())
    assert all(one is None for one in torch.autograd.grad(last, first, allow_unused=True))


def test_quality_is_added_to_the_logits_of_all_classes() -> None:
    model = small()
    predictions = model(IMAGES)
    assert predictions.distributions is not None
    plain = predictions.layer_class_logits - predictions.distributions.layer_quality[..., None]
    torch.testing.assert_close(plain[0], predictions.distributions.initial_class_logits)
    assert predictions.after_layer(1).distributions is not None
    assert predictions.after_layer(1).distributions.layer_quality.shape == (1, 2, 5)


REALTIME = ["dfine-n", "deim-dfine-n", "rtdetr-r18", "rtdetrv2-s-dsp", "deim-rtdetrv2-s", "deimv2-atto", "deimv2-n"]


@pytest.mark.parametrize("name", REALTIME)
def test_fused_models_predict_the_last_layer(name: str) -> None:
    model = small(name).eval()
    with torch.inference_mode():
        expected, fused = model(IMAGES), fuse_for_inference(model)(IMAGES)
    assert len(fused.layer_boxes) == 1
    assert fused.distributions is None
    assert fused.proposals is None
    torch.testing.assert_close(fused.boxes, expected.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(fused.class_logits, expected.class_logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["dfine-n", "rtdetr-r18", "deimv2-atto"])
def test_evaluation_stops_after_an_earlier_layer_with_that_layers_heads(name: str) -> None:
    model = small(name, eval_decoder_layers=2).eval()
    complete = small(name).eval()
    complete.load_state_dict(model.state_dict())
    with torch.inference_mode():
        early, all_layers, fused = model(IMAGES), complete(IMAGES), fuse_for_inference(model)(IMAGES)
    torch.testing.assert_close(early.layer_boxes, all_layers.layer_boxes[:2])
    torch.testing.assert_close(early.layer_class_logits, all_layers.layer_class_logits[:2])
    torch.testing.assert_close(fused.boxes, all_layers.layer_boxes[1], rtol=0, atol=1e-4)
    model.train()
    assert len(model(IMAGES).layer_boxes) == 3


@pytest.mark.parametrize("name", ["dfine-n", "rtdetr-r18", "rtdetrv2-s-dsp", "deimv2-atto", "deimv2-n"])
def test_padded_images_of_padding_invariant_models_are_predicted_as_alone(name: str) -> None:
    model = small(name).eval()
    model.padding_invariant = True
    images, padding = pad_to_batch([IMAGES[0], IMAGES[1, :, :, :64]])
    with torch.inference_mode():
        both, alone = model(images, padding), model(IMAGES[1:, :, :, :64])
    assert both.proposals is not None
    assert alone.proposals is not None
    # equally good cells may be swapped
    rows = torch.cdist(alone.proposals.boxes[0], both.proposals.boxes[1]).argmin(1)
    torch.testing.assert_close(both.boxes[1, rows], alone.boxes[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(both.class_logits[1, rows], alone.class_logits[0], rtol=0, atol=1e-3)


def test_gated_feed_forward_network_by_hand() -> None:
    """Two inputs, one gate, one value: contract(silu(x0) * x1)."""
    config = LayerConfig(2, 1, 2, 0.0, pre_norm=False, feed_forward="swiglu")
    network = SwiGLU(config)
    with torch.no_grad():
        network.expand.weight.copy_(torch.eye(2))
        network.contract.weight.copy_(torch.tensor([[1.0], [-2.0]]))
    gated = 3 / (1 + math.exp(-3)) * 5
    torch.testing.assert_close(network(torch.tensor([[[3.0, 5.0]]])), torch.tensor([[[gated, -2 * gated]]]))


def test_rms_norm_divides_by_the_root_of_the_mean_square() -> None:
    config = LayerConfig(2, 1, 2, 0.0, pre_norm=False, norm="rms")
    normalized = Residual(config).after(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[0.0, 3.0]]]))
    torch.testing.assert_close(normalized, torch.tensor([[[3.0, 4.0]]]) / 12.5**0.5)


def positions_of_layers(model: DETR) -> list[torch.Tensor]:
    """Return the positions of the queries in every decoder layer."""
    seen: list[torch.Tensor] = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[1].positions))
    with torch.inference_mode():
        model(IMAGES)
    return seen


@pytest.mark.parametrize(("name", "is_kept"), [("deimv2-atto", True), ("dfine-n", False)])
def test_positions_of_initial_boxes_are_kept_in_all_layers_if_they_do_not_follow(name: str, is_kept: bool) -> None:
    first, second, third = positions_of_layers(small(name).eval())
    assert torch.equal(first, second) == torch.equal(first, third) == is_kept


def test_a_shared_box_head_serves_all_layers_and_class_heads_do_not() -> None:
    model = small("deimv2-atto")
    assert model.heads.box_head_of(0) is model.heads.box_head_of(2)
    assert len(model.heads.class_head) == 3
    assert not [name for name in model.state_dict() if name.startswith("query_source.memory_")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_norm": "rms"}, "decoder_norm='rms' is for decoder='fine_grained', found decoder='deformable'"),
        ({"shared_box_head": True}, "shared_box_head=True is for decoder='fine_grained'"),
    ],
)
def test_settings_of_the_fine_grained_decoder_need_it(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model("rtdetr-r18", **changes)
    with pytest.raises(ConfigError, match="selection_projection=False is for queries='selected', found"):
        build_model("detr-tiny", selection_projection=False)
    with pytest.raises(ConfigError, match="dim_feedforward=33 must be even with decoder_feed_forward='swiglu'"):
        build_model("deimv2-atto", dim_feedforward=33)
