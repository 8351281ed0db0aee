"""ViT backbones: windows, positions, stochastic depth, sizes, and the projector of their maps."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from detrkit import build_model
from detrkit.errors import ConfigError
from detrkit.models.backbones.vit import ViTBackbone, ViTLayout
from detrkit.models.interpolation import resize_table
from detrkit.models.neck import LevelPadding
from detrkit.models.projector import ChannelLayerNorm, MultiScaleProjector

LAYOUT = ViTLayout(
    backbone_layers=2, patch_size=8, num_windows=2, global_layers=(1,), out_layers=(1, 2), position_grid=4
)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(7, 12), (40, 9), (24, 24)])
def test_tables_are_resized_as_by_interpolate(size: tuple[int, int], antialias: bool) -> None:
    table = torch.randn(24, 24, 5)
    expected = F.interpolate(table.permute(2, 0, 1)[None], size, mode="bicubic", antialias=antialias)
    resized = resize_table(table, size, antialias=antialias)
    # positions on the table are rounded to half a unit of 24 in the last place, and the filter's slope is below 3
    torch.testing.assert_close(resized, expected[0].permute(1, 2, 0), rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", ["vit-tiny", "dinov2-small"])
def test_windows_are_independent_before_the_first_global_block(name: str) -> None:
    backbone = ViTBackbone(name, LAYOUT).eval()  # type: ignore[arg-type]
    images = torch.randn(1, 3, 32, 48)
    changed = images.clone()
    changed[..., 16:, 24:] += 1  # the last of four windows
    with torch.no_grad():
        before, after = backbone(images), backbone(changed)
    local, of_all = [(new - old).abs().amax(1)[0] for old, new in zip(before, after, strict=True)]
    assert (local[2:, 3:] > 0).all()
    assert local[:2].max() == local[:, :3].max() == 0
    assert (of_all > 0).all()


@pytest.mark.parametrize("name", ["vit-tiny", "dinov2-small"])
def test_one_window_and_global_blocks_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    windowed = ViTBackbone(name, replace(LAYOUT, global_layers=(0, 1))).eval()  # type: ignore[arg-type]
    whole = ViTBackbone(name, replace(LAYOUT, num_windows=1)).eval()  # type: ignore[arg-type]
    whole.load_state_dict(windowed.state_dict())
    if windowed.tokens is not None:  # whose copies would count several times
        windowed.tokens = whole.tokens = None
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(windowed(images), whole(images))


def test_stochastic_depth_grows_with_the_block_and_leaves_out_whole_images() -> None:
    backbone = ViTBackbone("vit-tiny", replace(LAYOUT, backbone_layers=3, drop_path=0.5, out_layers=(3,)))
    assert [block.drop_path for block in backbone.blocks] == [0, 0.25, 0.5]
    tokens = torch.randn(64 * 4, 5, 192)
    block = backbone.blocks[2]
    output = block(tokens, 1, 4)
    is_changed = (output != tokens).any(-1).any(-1).unflatten(0, (64, 4))
    assert torch.equal(is_changed.all(1), is_changed.any(1))
    share = 1 - is_changed.all(1).float().mean().item()
    assert 0.05 < share < 0.5  # both branches are left out: 1 in 4
    block.eval()
    assert (block(tokens, 1, 4) != tokens).any(-1).all()


@pytest.mark.parametrize(
    ("preset", "size", "nearest"),
    [("lwdetr-tiny", (600, 650), "576 x 640 and 640 x 704"), ("rfdetr-base", (640, 20), "616 x 56 and 672 x 56")],
)
def test_images_that_cannot_be_cut_into_windows_are_refused_with_the_nearest_sizes(
    preset: str, size: tuple[int, int], nearest: str
) -> None:
    model = build_model(preset, group_detr=1)
    with pytest.raises(ConfigError, match=f"sides must be multiples of .* The nearest are {nearest}"):
        model(torch.zeros(1, 3, *size))


def test_parameters_without_a_gradient_are_known() -> None:
    for name in ("vit-tiny", "dinov2-small"):
        backbone = ViTBackbone(name, replace(LAYOUT, backbone_layers=3))  # type: ignore[arg-type]
        sum(one.square().sum() for one in backbone(torch.randn(1, 3, 32, 32))).backward()
        without = {id(one) for one in backbone.parameters() if one.grad is None}
        expected = [
            one
            for part in backbone.unused
            for one in ([part] if isinstance(part, torch.nn.Parameter) else part.parameters())
        ]
        assert without == {id(one) for one in expected}


def test_frozen_stages_are_the_embeddings_and_then_blocks() -> None:
    for stages in range(4):
        backbone = ViTBackbone("dinov2-small", LAYOUT, frozen_stages=stages)
        assert backbone.positions.requires_grad == (stages < 1)
        trained = [next(block.parameters()).requires_grad for block in backbone.blocks]
        assert trained == [stages < 2, stages < 3]


def test_projector_computes_a_map_for_every_scale() -> None:
    for norm in (torch.nn.BatchNorm2d, ChannelLayerNorm):
        projector = MultiScaleProjector((24, 24), 32, (2.0, 1.0, 0.5), norm)
        maps = projector([torch.randn(2, 24, 8, 12)] * 2, LevelPadding(None))
        assert [tuple(one.shape) for one in maps] == [(2, 32, 16, 24), (2, 32, 8, 12), (2, 32, 4, 6)]
        assert all(first.shape[1] == second.shape[1] for first, second in pairwise(maps))
