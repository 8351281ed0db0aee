"""Hybrid encoder and its neck: positions, independence of padding, odd sizes, gradients, fusing."""

import math

import pytest
import torch
from torch import nn

from detrkit import build_model
from detrkit.config.model import ModelConfig
from detrkit.errors import ConfigError
from detrkit.explain.stages import capture_stages
from detrkit.models.attention.recording import record_attention
from detrkit.models.backbones.hgnet import HGNetBackbone
from detrkit.models.convolution import Clamp, ConvNorm
from detrkit.models.encoders.fusion import RepVGGBlock
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.fuse import fuse_for_inference
from detrkit.models.neck import LevelPadding, PooledProjection
from detrkit.models.positions import index_encoding
from detrkit.structures import Batch
from tests.models.hybrid_models import PARTS, hybrid_model, maps_of, run_parts
from tests.parameters import slow_except
from tests.rounding import assert_equal_up_to_rounding

OPERATIONS = 120  # convolutions and layers in a row, at most


@pytest.mark.parametrize(
    ("name", "number", "trained"),  # counted in the authors' checkpoints, and without what their code freezes
    [
        ("dfine_n", 2_554_220, 2_554_220),
        ("dfine_s", 5_871_900, 5_871_900),
        ("dfine_m", 13_825_666, 13_825_666),
        ("dfine_l", 22_850_912, 22_825_984),
        ("dfine_x", 54_228_320, 54_202_880),
        ("rtdetr_r18vd", 16_363_232, 16_363_232),
        ("rtdetr_r34vd", 26_471_392, 26_471_392),
        ("rtdetr_r50vd", 35_623_008, 35_594_496),
        ("rtdetr_r101vd", 69_287_904, 69_259_392),
    ],
)
def test_number_of_parameters_is_the_published_one(name: str, number: int, trained: int) -> None:
    with torch.device("meta"):
        model = hybrid_model(name)
    parameters = [one for part in (model.backbone, model.neck, model.encoder) for one in part.parameters()]
    assert sum(one.numel() for one in parameters) == number
    assert sum(one.numel() for one in parameters if one.requires_grad) == trained


def test_index_encoding_of_a_small_grid() -> None:
    encoded = index_encoding(2, 3, 8, torch.device("cpu"))[0]
    assert encoded.shape == (6, 8)
    row, column, slow = 1, 2, 0.01  # frequencies 1 and 1 / sqrt(10000)
    expected = [
        *(math.sin(row), math.sin(row * slow), math.cos(row), math.cos(row * slow)),
        *(math.sin(column), math.sin(column * slow), math.cos(column), math.cos(column * slow)),
    ]
    torch.testing.assert_close(encoded[5], torch.tensor(expected))


def positions_of(height: int, width: int, *, padding_invariant: bool) -> torch.Tensor:
    """Positions that the encoder adds to the cells of a map, (height, width, D)."""
    model = hybrid_model("dfine_n", num_feature_levels=1).eval()
    seen: list[torch.Tensor] = []
    layer = model.encoder.attention[0].layers[0]
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    tokens = torch.zeros(1, height * width, 128)
    features = FeatureMaps(tokens, tokens, None, ((height, width),), padding_invariant=padding_invariant)
    model.encoder(features)
    return seen[0][0].unflatten(0, (height, width))


def test_positions_are_numbered_as_the_authors_do() -> None:
    grid = index_encoding(3, 3, 128, torch.device("cpu"))[0].unflatten(0, (3, 3))
    torch.testing.assert_close(positions_of(3, 3, padding_invariant=False), grid)
    # 2 rows of 3 columns: cell p has the coordinates (p // 2, p % 2)
    published = positions_of(2, 3, padding_invariant=False)
    torch.testing.assert_close(published[0, 2], grid[1, 0])
    torch.testing.assert_close(published[1, 0], grid[1, 1])
    torch.testing.assert_close(published[1, 2], grid[2, 1])


def test_padding_invariant_positions_are_row_and_column() -> None:
    grid = index_encoding(3, 4, 128, torch.device("cpu"))[0].unflatten(0, (3, 4))
    torch.testing.assert_close(positions_of(2, 3, padding_invariant=True), grid[:2, :3])
    torch.testing.assert_close(positions_of(3, 4, padding_invariant=True), grid)


@pytest.mark.parametrize("size", [(97, 131), (33, 65), (64, 96)])
@pytest.mark.parametrize(
    "name", ["dfine_n", "rtdetr_r18vd", "deimv2_atto", *slow_except((), ["rtdetr_r50vd", "deimv2_n", "deimv2_pico"])]
)
def test_maps_of_an_image_do_not_depend_on_its_padding(name: str, size: tuple[int, int]) -> None:
    model = hybrid_model(name).eval()
    model.padding_invariant = True
    height, width = size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    batch, mask = torch.zeros(2, 3, height + 61, width + 45), torch.zeros(2, height + 61, width + 45, dtype=torch.bool)
    batch[0, :, :height, :width], batch[1] = image[0], 1.0
    mask[0, height:], mask[0, :, width:] = True, True
    with torch.no_grad():
        alone, memory = run_parts(model, image)
        together, padded_memory = run_parts(model, batch, mask)
    pairs = zip([*alone, *maps_of(memory)], [*together, *maps_of(padded_memory)], strict=True)
    for expected, actual in pairs:
        cropped = actual[:1, :, : expected.shape[2], : expected.shape[3]]
        assert_equal_up_to_rounding(cropped, expected, operations=OPERATIONS)


@pytest.mark.parametrize("name", ["dfine_n", "rtdetr_r18vd", "deimv2_atto"])
def test_all_parameters_receive_gradients(name: str) -> None:
    model = hybrid_model(name).train()
    _, memory = run_parts(model, torch.rand(2, 3, 64, 64))
    weights = torch.linspace(0, 1, memory.tokens.shape[1])[:, None]  # norms hide a constant
    loss = (memory.tokens.square() * weights).mean()
    loss.backward()
    parts = [*model.backbone.named_parameters(), *model.neck.named_parameters(), *model.encoder.named_parameters()]
    assert not [name for name, parameter in parts if parameter.grad is None]


@pytest.mark.parametrize(
    "name",
    [
        "dfine_n",
        "rtdetr_r18vd",
        *slow_except((), ("dfine_l", "rtdetr_r50vd", "dfine_x", "deimv2_n")),
    ],
)
def test_fused_parts_give_the_same_maps(name: str) -> None:
    model = hybrid_model(name, attention_levels=2).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse_for_inference(model)
    assert not [one for one in fused.modules() if "BatchNorm" in type(one).__name__]
    assert all(one.branch1x1 is None for one in fused.modules() if isinstance(one, RepVGGBlock))
    images, mask = torch.rand(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 48:] = True
    with torch.no_grad():
        for padding_invariant in (False, True):
            model.padding_invariant = fused.padding_invariant = padding_invariant
            _, expected = run_parts(model, images, mask)
            _, actual = run_parts(fused, images, mask)
            assert_equal_up_to_rounding(actual.tokens, expected.tokens, operations=OPERATIONS)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    shared = zip(fused.encoder.attention.parameters(), model.encoder.attention.parameters(), strict=True)
    assert all(first is second for first, second in shared)  # to save memory


@pytest.mark.parametrize("scale", [1.5, -0.7, 0.0])
def test_affine_maps_of_either_sign_are_fused(scale: float) -> None:
    model = hybrid_model("dfine_n").eval()
    block = model.backbone.body.stem.stem1
    with torch.no_grad():
        block.affine.scale.fill_(scale)
        block.affine.bias.fill_(-0.3)
    fused = fuse_for_inference(model).backbone.body.stem.stem1
    assert isinstance(fused.activation, Clamp)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert_equal_up_to_rounding(fused(images), block(images), operations=2)


def test_parts_with_hooks_stay_as_they_are() -> None:
    model = hybrid_model("dfine_n").eval()
    repvgg = next(one for one in model.encoder.modules() if isinstance(one, RepVGGBlock))
    assert isinstance(repvgg.branch1x1, ConvNorm)
    repvgg.branch1x1.norm.register_forward_hook(lambda *_: None)
    model.backbone.body.stem.stem1.affine.register_forward_hook(lambda *_: None)
    fused = fuse_for_inference(model)
    kept = [one for one in fused.encoder.modules() if isinstance(one, RepVGGBlock) and one.branch1x1 is not None]
    assert len(kept) == 1
    assert not isinstance(fused.backbone.body.stem.stem1.activation, Clamp)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, actual = run_parts(model, images)[1], run_parts(fused, images)[1]
        assert_equal_up_to_rounding(actual.tokens, expected.tokens, operations=OPERATIONS)


def test_activation_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    results = []
    for enabled in (False, True):
        model = hybrid_model("dfine_n").train()
        model.activation_checkpointing = enabled
        assert model.backbone.activation_checkpointing is enabled
        _, memory = run_parts(model, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
        memory.tokens.square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        results.append(gradients | dict(model.named_buffers()))
    assert results[0].keys() == results[1].keys()
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, msg=name)


def test_initial_weights_are_the_published_ones() -> None:
    torch.manual_seed(0)
    model = build_parts()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
    expand = model.encoder.attention[0].layers[0].feed_forward.expand
    bound = 1 / expand.in_features**0.5  # of nn.Linear
    assert 0.95 * bound < float(expand.weight.detach().abs().max()) <= bound
    assert float(expand.bias.detach().abs().max()) > 0


def build_parts() -> nn.Module:
    """Model with initial weights."""
    from detrkit.models.build import model_from_config

    return model_from_config(ModelConfig(num_classes=3, **PARTS["dfine_n"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_dim": 130}, "encoder_dim=130 must be a multiple of 4"),
        ({"num_feature_levels": 4}, "at most 3 feature maps"),
        ({"decoder": "dense", "queries": "learned", "with_box_refine": False}, "no position encodings"),
        ({"attention_levels": 3, "num_feature_levels": 2}, "attention_levels=3 exceeds"),
        ({"encoder": "deformable"}, "is for encoder='hybrid'"),
        ({"learnable_affine_block": True, "backbone": "resnet18-vd"}, "is for HGNetV2 backbones"),
        ({"dilation": True}, "cannot be dilated"),
        ({"fusion_block": "lite", "num_feature_levels": 3}, "fuses 2 feature maps, found num_feature_levels=3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{**PARTS["dfine_n"], **changes})


def test_hybrid_encoder_settings_need_the_hybrid_encoder() -> None:
    with pytest.raises(ConfigError, match="fusion_depth=2 is for encoder='hybrid', found encoder='dense'"):
        build_model("detr-r18", fusion_depth=2)


def test_backbone_has_affine_maps_where_the_imagenet_weights_have_them() -> None:
    small = ModelConfig(**{**PARTS["dfine_n"]})
    assert small.has_learnable_affine_block
    assert not ModelConfig(**{**PARTS["dfine_n"], "backbone": "hgnetv2-b4"}).has_learnable_affine_block
    assert not ModelConfig(**{**PARTS["dfine_n"], "learnable_affine_block": False}).has_learnable_affine_block
    assert isinstance(hybrid_model("dfine_n").backbone, HGNetBackbone)


def test_attention_of_the_coarsest_map_can_be_shown() -> None:
    model = hybrid_model("dfine_n", encoder_layers=2, attention_levels=2).eval()
    images, mask = torch.rand(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, 64:] = True
    sizes = [(96, 128), (64, 128)]
    batch = Batch(images, mask, targets=[], image_ids=[], sizes=sizes, original_sizes=sizes)
    first, second = record_attention(model, batch)
    assert first.grid.cells == (3, 4)
    assert len(first.layers["encoder"]) == 2
    for recorded, unpadded in ((first, 12), (second, 8)):
        weights = recorded.weights("encoder", 1)
        assert weights.shape == (8, 12, 12)
        torch.testing.assert_close(weights[..., :unpadded].sum(-1), torch.ones(8, 12))
    assert not record_attention(hybrid_model("dfine_n", encoder_layers=0).eval(), batch)[0].layers["encoder"]


def test_stages_of_the_model_are_described() -> None:
    model = hybrid_model("rtdetr_r18vd").eval()
    with torch.no_grad(), capture_stages(model) as stages:
        model(torch.rand(1, 3, 64, 96))
    encoder = next(stage for stage in stages if stage.part == "encoder")
    assert encoder.file == "models/encoders/hybrid.py"
    assert encoder.description == (
        "the cells of the coarsest map attend to each other, with sine encodings of their positions; convolutions pass "
        "features from the coarsest map to the finest and back; each map is projected once more; the output is called "
        "memory"
    )
    assert "neck.positions" not in [stage.part for stage in stages]
    assert next(stage for stage in stages if stage.part == "backbone").file == "models/backbones/resnet_vd.py"


def test_a_coarser_map_is_pooled_with_the_mean_of_its_cells() -> None:
    """3 x 3 cells of ones become 2 x 2: corners see 4 ones in windows of 9, and all get the mean of the map."""
    projection = PooledProjection(1, 4).eval()
    with torch.no_grad():
        for convolution in (one for one in projection.modules() if isinstance(one, torch.nn.Conv2d)):
            convolution.weight.copy_(torch.eye(4, convolution.in_channels)[:, :, None, None])
        fine, coarse = projection([torch.ones(1, 1, 3, 3)], LevelPadding(None))
    scale = (1 + 1e-5) ** -0.5  # of every norm, whose epsilon is added to a variance of 1
    assert fine.shape == (1, 4, 3, 3)
    pooled = torch.nn.functional.silu(torch.tensor(4 / 9 * scale * scale))
    expected = torch.nn.functional.silu(2 * pooled * scale)
    torch.testing.assert_close(coarse[0, 0], expected.expand(2, 2))
    zero = torch.nn.functional.silu(torch.zeros(()))
    torch.testing.assert_close(coarse[0, 1], zero.expand(2, 2))
