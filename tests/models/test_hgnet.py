"""HGNetV2: timm's results for all sizes, and independence of padding."""

import pytest
import torch

from detrkit.models.backbones.hgnet import VARIANTS, HGNetBackbone
from detrkit.models.convolution import LearnableAffine
from tests.rounding import assert_equal_up_to_rounding

DEIMV2_SIZES = ("hgnetv2-atto", "hgnetv2-femto", "hgnetv2-pico")  # timm lacks them: tests/parity/test_golden_deimv2.py


def with_random_norms(module: torch.nn.Module) -> None:
    """Draw norms and affine maps that change their input."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name > "hgnetv2-b1" else [])
        for name in VARIANTS
        if name not in DEIMV2_SIZES
    ],
)
def test_features_equal_timm_s(name: str) -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model(name.replace("-", "_"), features_only=True).eval()
    with_random_norms(reference)
    backbone = HGNetBackbone(name, affine=name <= "hgnetv2-b3").eval()
    state = reference.state_dict()
    assert len(state) == len(backbone.body.state_dict())
    # both list their weights in the order of their use
    backbone.body.load_state_dict(dict(zip(backbone.body.state_dict(), state.values(), strict=True)))
    assert backbone.channels == tuple(reference.feature_info.channels())
    assert backbone.strides == tuple(reference.feature_info.reduction())
    images = torch.rand(1, 3, 65, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for actual, expected in zip(backbone(images), reference(images), strict=True):
            assert_equal_up_to_rounding(actual, expected, operations=60)


def test_affine_maps_follow_activations_only() -> None:
    backbone = HGNetBackbone("hgnetv2-b0")
    affine = [name for name, module in backbone.named_modules() if isinstance(module, LearnableAffine)]
    assert "body.stages.3.blocks.0.layers.0.depthwise.affine" in affine
    assert not [name for name in affine if "pointwise" in name or "downsample" in name]
    assert not [one for one in HGNetBackbone("hgnetv2-b0", affine=False).modules() if isinstance(one, LearnableAffine)]


def test_frozen_stem_and_norms_are_not_trained() -> None:
    backbone = HGNetBackbone("hgnetv2-b4", "frozen", frozen_stages=1, affine=False)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen == [
        f"body.stem.{part}.convolution.weight" for part in ("stem1", "stem2a", "stem2b", "stem3", "stem4")
    ]
    assert not [name for name, _ in backbone.named_parameters() if "norm" in name]


def test_first_cell_is_where_its_gradient_is() -> None:
    # one filter everywhere: only the geometry decides where an output looks
    backbone = HGNetBackbone("hgnetv2-b0", affine=False).eval()
    for parameter in backbone.parameters():
        parameter.data.fill_(1.0 / parameter[0].numel() if parameter.ndim == 4 else 0.0)
    for name, parameter in backbone.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
    side = 512
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)).requires_grad_()
    maps = backbone(images)
    for one, stride, center in zip(maps[:2], backbone.strides, backbone.first_cell_centers, strict=False):
        cell = one.shape[-1] // 2  # far from the edges
        (gradient,) = torch.autograd.grad(one[0, :, cell, cell].sum(), images, retain_graph=True)
        weights = gradient[0].sum((0, 1))
        pixels = torch.arange(side) + 0.5
        assert float((weights * pixels).sum() / weights.sum()) - cell * stride == pytest.approx(center, abs=0.5)
