"""Packed convolutions and linear layers compute the same as PyTorch's, and are used where they may be."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from detrkit import build_model
from detrkit.inference.engines.torch import TorchEngine
from detrkit.models import packed_layers
from detrkit.models.convolution import Clamp
from detrkit.models.fuse import fuse_for_inference
from detrkit.models.packed_layers import PackedConv2d, PackedLinear, _activation_of, can_pack, pack_layers
from detrkit.structures import Batch
from tests.rounding import assert_equal_up_to_rounding

pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no packed layers")


def num_packed(model: nn.Module) -> int:
    return sum(isinstance(module, PackedConv2d | PackedLinear) for module in model.modules())


def batch_of(*sides: int) -> Batch:
    size = (sides[0], sides[1])
    return Batch(torch.rand(1, 3, *size), torch.zeros(1, *size, dtype=torch.bool), [], [0], [size], [size])


@pytest.mark.parametrize(
    "activation",
    [nn.Identity(), nn.ReLU(), nn.SiLU(), Clamp(-0.2, is_minimum=True), Clamp(0.2, is_minimum=False)],
    ids=["none", "relu", "silu", "minimum", "maximum"],
)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups", "bias"),
    [
        (3, 1, 1, 1, 1, True),
        (3, 2, 1, 1, 8, True),
        (1, 1, 0, 1, 1, False),
        (3, 1, 2, 2, 2, True),
        (2, 1, 0, 1, 1, True),
    ],
)
def test_packed_convolution_and_activation_equal_pytorch(
    activation: nn.Module, kernel: int, stride: int, padding: int, dilation: int, groups: int, bias: bool
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 16, kernel, stride, padding, dilation, groups, bias).eval()
    found = _activation_of(activation)
    packed = PackedConv2d(convolution, found) if found is not None else PackedConv2d(convolution)
    with torch.inference_mode():
        for shape in ((1, 8, 20, 13), (1, 8, 33, 7), (3, 8, 20, 13)):  # packed for the first of them
            features = torch.randn(shape).contiguous(memory_format=torch.channels_last)
            assert_equal_up_to_rounding(packed(features), activation(convolution(features)))


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.SiLU(), nn.GELU(), nn.GELU("tanh")], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_layer_and_activation_equal_pytorch(activation: nn.Module, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias).eval()
    found = _activation_of(activation)
    packed = PackedLinear(linear, found) if found is not None else PackedLinear(linear)
    with torch.inference_mode():
        for shape in ((1, 30, 24), (3, 7, 24), (24,), (2, 5, 4, 24), (0, 24)):  # packed for the first of them
            tokens = 3 * torch.randn(shape)
            assert_equal_up_to_rounding(packed(tokens), activation(linear(tokens)))
        strided = torch.randn(24, 9).T
        assert_equal_up_to_rounding(packed(strided), activation(linear(strided)))


@pytest.mark.parametrize("name", ["dfine-n", "rtdetr-r18"])
def test_packed_models_equal_fused_ones(name: str) -> None:
    torch.manual_seed(0)
    fused = fuse_for_inference(build_model(name, num_classes=3, num_queries=20).eval())
    packed = fuse_for_inference(fused)
    pack_layers(packed)
    assert num_packed(packed) > 50
    assert not any(type(module) is nn.Conv2d for module in packed.modules())
    images = torch.rand(2, 3, 96, 128)
    with torch.inference_mode():
        expected, actual = (
            one.encoder(one.neck(one.backbone(images, None), (96, 128), None)) for one in (fused, packed)
        )
    assert_equal_up_to_rounding(actual.tokens, expected.tokens)


def test_engine_packs_for_float32_only_and_follows_the_weights() -> None:
    model = build_model("detr-tiny", num_classes=2, encoder_layers=1, decoder_layers=1).eval()
    num_layers = sum(type(module) in (nn.Conv2d, nn.Linear) for module in model.modules())
    batch = batch_of(64, 96)
    engine = TorchEngine(model, None, True)
    before = engine.predict(batch)
    assert num_packed(engine.fused_model) == num_layers
    assert num_packed(model) == 0
    for part in (model.backbone, model.decoder):
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.mul_(1.1)
        after = engine.predict(batch)
        assert not torch.equal(before.class_logits, after.class_logits)
        with torch.inference_mode():
            expected = model(batch.images)
        assert_equal_up_to_rounding(after.class_logits, expected.class_logits)
        before = after
    reduced = TorchEngine(model, None, True, "bfloat16")
    reduced.predict(batch)
    assert num_packed(reduced.fused_model) == 0


def test_hooks_are_called() -> None:
    fused = fuse_for_inference(build_model("dfine-n", num_classes=2).eval())
    convolution, activation = fused.backbone.body.stem.stem1.convolution, fused.encoder.top_down[0].conv1.activation
    calls: list[nn.Module] = []
    for module in (convolution, activation):
        module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    pack_layers(fused)
    with torch.inference_mode():
        fused(torch.rand(1, 3, 64, 64))
    assert calls == [convolution, activation]


def test_nothing_is_packed_where_the_operators_are_missing_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_relu(self: PackedConv2d, features: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(features, self.weight, self.bias, 2, 1)

    def missing(*arguments: object) -> torch.Tensor:
        raise AttributeError("mkldnn_reorder_conv2d_weight")

    for forward in (not_relu, missing):
        can_pack.cache_clear()
        monkeypatch.setattr(packed_layers.PackedConv2d, "forward", forward)
        assert not can_pack()
        fused = fuse_for_inference(build_model("detr-tiny", num_classes=2).eval())
        pack_layers(fused)
        assert num_packed(fused) == 0
        monkeypatch.undo()
        can_pack.cache_clear()
