"""ResNets: torchvision's architecture, names of weights and results."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from detrkit.models.backbones.resnet import ResNetBackbone
from detrkit.models.convolution import FrozenBatchNorm2d


def with_random_statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict with norms that change their input."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5 if value.ndim == 1 else value
        for name, value in model.state_dict().items()
        if not name.startswith("fc.")
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dilation", [False, True])
@pytest.mark.parametrize("normalization", ["frozen", "batch"])
def test_features_equal_torchvision_s(name: str, dilation: bool, normalization: str) -> None:
    if dilation and name == "resnet18":
        pytest.skip("basic blocks are not dilated")
    norm = TorchvisionFrozenBatchNorm2d if normalization == "frozen" else nn.BatchNorm2d
    reference = getattr(resnet, name)(norm_layer=norm, replace_stride_with_dilation=[False, False, dilation]).eval()
    state = with_random_statistics(reference)
    reference.load_state_dict(state, strict=False)
    backbone = ResNetBackbone(name, normalization, dilation).eval()  # type: ignore[arg-type]
    backbone.body.load_state_dict(state)
    image = torch.rand(1, 3, 65, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = reference.maxpool(reference.relu(reference.bn1(reference.conv1(image))))
        stages = []
        for stage in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            features = stage(features)
            stages.append(features)
        for actual, expected in zip(backbone(image), stages, strict=True):
            # frozen norms are multiplied into the filters: another order of the same products
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_frozen_batch_norm_equals_torchvision_s_and_ignores_the_number_of_batches() -> None:
    ordinary = nn.BatchNorm2d(4)
    ordinary(torch.rand(2, 4, 5, 5))
    own, reference = FrozenBatchNorm2d(4), TorchvisionFrozenBatchNorm2d(4)
    for norm in (own, reference):
        norm.load_state_dict(ordinary.state_dict())
    images = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(own(images), reference(images))
    torch.testing.assert_close(own(images), ordinary.eval()(images))
    assert not list(own.parameters())
