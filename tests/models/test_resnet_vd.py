"""ResNet-vd: timm's results, and shortcuts that average whole cells of the image only."""

import pytest
import torch

from detrkit.models.backbones.resnet import average_pool
from detrkit.models.backbones.resnet_vd import ResNetVdBackbone
from tests.models.test_hgnet import with_random_norms
from tests.rounding import assert_equal_up_to_rounding


def test_features_equal_timm_s() -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model("resnet50d", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    with_random_norms(reference)
    backbone = ResNetVdBackbone("resnet50-vd", "batch").eval()
    own, state = backbone.body.state_dict(), reference.state_dict()
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in state.values()]
    backbone.body.load_state_dict(dict(zip(own, state.values(), strict=True)))
    images = torch.rand(1, 3, 65, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for actual, expected in zip(backbone(images), reference(images), strict=True):
            assert_equal_up_to_rounding(actual, expected, operations=53)


@pytest.mark.parametrize("name", ["resnet18-vd", "resnet50-vd"])
def test_first_block_of_every_stage_has_a_projected_shortcut(name: str) -> None:
    body = ResNetVdBackbone(name).body
    for number in range(1, 5):
        first, *others = getattr(body, f"layer{number}")
        assert first.pools_shortcut is (number > 1)
        assert first.downsample[0].stride == (1, 1)
        assert all(block.downsample is None for block in others)


def test_stem_is_the_first_frozen_part() -> None:
    backbone = ResNetVdBackbone("resnet50-vd", frozen_stages=1)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen == [f"body.conv1.{index}.convolution.weight" for index in range(3)]


def test_average_pool_counts_cells_of_the_image_only() -> None:
    features = torch.tensor([[1.0, 3.0, 5.0], [2.0, 4.0, 7.0], [8.0, 6.0, 9.0]])[None, None]
    expected = torch.tensor([[2.5, 6.0], [7.0, 9.0]])
    torch.testing.assert_close(average_pool(features, None)[0, 0], expected)
    padded, mask = torch.full((1, 1, 6, 4), 100.0), torch.ones(1, 6, 4, dtype=torch.bool)
    padded[..., :3, :3], mask[:, :3, :3] = features, False
    pooled = average_pool(padded, mask)[0, 0]
    torch.testing.assert_close(pooled[:2], expected)
    assert pooled[2].tolist() == [0, 0]
