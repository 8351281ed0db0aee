"""Recipes of LW-DETR and RF-DETR: rates per block, weight decay, sizes of images and batches."""

from typing import Any

import pytest
import torch

from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.errors import ConfigError
from detrkit.models.build import model_without_memory
from detrkit.models.presets import PRESETS
from detrkit.training.multi_scale import rescale, scales
from detrkit.training.optimizer import build_optimizer, freeze_unused
from detrkit.training.planner import plan_model, plan_training


def planned(preset: str, recipe: str = "reference", **changes: Any) -> TrainingConfig:
    config = RunConfig(data="x", model=preset, recipe=recipe, weights="a.pth", **changes)  # type: ignore[arg-type]
    return plan_training(plan_model(config), set(), 118_287).config.training


@pytest.mark.parametrize(
    ("preset", "rates", "decayed"),
    [
        (
            "lwdetr-tiny",
            {
                "backbone.positions": 1.5e-4 * 0.8**7 * 0.49,
                "backbone.blocks.0.feed_forward.expand.weight": 1.5e-4 * 0.8**6 * 0.49,
                "backbone.blocks.5.attention_scale": 1.5e-4 * 0.8 * 0.49,
                "decoder.layers.0.cross_attention.offset_projection.weight": 0.7e-4,
                "neck.projection.levels.0.norm.bias": 1e-4,
                "query_source.content": 1e-4,
                "heads.class_head.bias": 1e-4,
            },
            {
                "backbone.positions": False,
                "backbone.blocks.5.attention_scale": False,
                "backbone.blocks.0.attention_norm.weight": False,
                "backbone.blocks.0.attention.query_projection.bias": False,
                "backbone.patch_embedding.weight": True,
                "neck.projection.levels.0.norm.bias": True,
                "query_source.content": True,
            },
        ),
        (
            "rfdetr-nano",
            {
                "backbone.tokens": 1.5e-4 * 0.8**14 * 0.49,
                "backbone.blocks.0.attention.key_projection.weight": 1.5e-4 * 0.8**13 * 0.49,
                "backbone.blocks.11.attention.key_projection.weight": 1.5e-4 * 0.8**2 * 0.49,
                "backbone.norm.weight": 1.5e-4 * 0.49,
                "decoder.norm.weight": 0.7e-4,
            },
            {
                "backbone.tokens": False,
                "backbone.patch_embedding.weight": False,
                "backbone.blocks.5.attention_scale": True,  # LayerScale
                "backbone.norm.weight": False,
            },
        ),
    ],
)
def test_learning_rates_and_weight_decay_of_parameters_are_the_published_ones(
    preset: str, rates: dict[str, float], decayed: dict[str, bool]
) -> None:
    settings, model = planned(preset), model_without_memory(PRESETS[preset])
    freeze_unused(model, settings)
    optimizer = build_optimizer(model, settings)
    group_of = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    parameters = dict(model.named_parameters())
    for name, rate in rates.items():
        assert group_of[id(parameters[name])]["lr"] == pytest.approx(rate), name
    for name, decays in decayed.items():
        assert group_of[id(parameters[name])]["weight_decay"] == (1e-4 if decays else 0), name
    unused = {name for name, one in parameters.items() if id(one) not in group_of}
    assert unused == {"backbone.class_position" if preset == "lwdetr-tiny" else "backbone.mask_token"}


def test_recipes_differ_in_length_and_averages() -> None:
    tiny, nano, xlarge = planned("lwdetr-tiny"), planned("rfdetr-nano"), planned("lwdetr-xlarge")
    assert (tiny.epochs, tiny.ema.ema_decay, tiny.image_size, tiny.keep_aspect_ratio) == (60, 0.9997, 640, False)
    assert (nano.epochs, nano.ema.ema_decay, nano.ema.ema_warmup_steps, nano.image_size) == (100, 0.993, 100, 384)
    assert xlarge.optimizer.weight_decay == 1e-3
    assert planned("lwdetr-small-obj365").optimizer.lr == 4e-4
    assert (tiny.loss.cls_loss, tiny.loss.cls_loss_coef, tiny.optimizer.clip_grad_norm) == ("ia_bce", 1.0, 0.1)
    auto = planned("rfdetr-nano", "auto")
    assert auto.loss.cls_loss == "ia_bce"
    assert auto.schedule.lr_scheduler == "cosine"


def test_rates_follow_a_given_learning_rate_of_the_backbone() -> None:
    given = TrainingConfig(lr=1e-3, backbone_lr=5e-4)
    factors = planned("rfdetr-nano", training=given).optimizer.lr_factors
    assert factors[r"^backbone\.norm\."] == pytest.approx(0.5 * 0.49)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 600}, "multiples of 32. The nearest are 576 x 576 and 608 x 608"),
        ({"keep_aspect_ratio": True}, "needs sides that are multiples of 32"),
        ({"query_groups": 3}, "groups of its own"),
    ],
)
def test_settings_that_the_model_cannot_have_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned("rfdetr-nano", training=TrainingConfig(**settings))


def test_batches_are_resized_to_multiples_of_patches_and_windows() -> None:
    assert scales(640, 1, 64) == [448, 512, 576, 640, 704, 768, 832, 896]  # LW-DETR's
    assert scales(384, 1, 32) == [288, 320, 352, 384, 416, 448, 480, 512]
    assert min(scales(128, 1, 64)) == 128
    sizes = {rescale(torch.zeros(1, 3, 384, 384), None, 1, seed, 32)[0].shape[2:] for seed in range(50)}
    assert {tuple(size) for size in sizes} == {(side, side) for side in scales(384, 1, 32)}
