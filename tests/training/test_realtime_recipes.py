"""Recipe "reference" of the real-time presets: groups of parameters, schedules and averages as published."""

import gzip
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.checkpoints.native import default_preprocessing
from detrkit.config.run import RunConfig
from detrkit.config.setting_groups import EMAConfig
from detrkit.config.training import TrainingConfig
from detrkit.models.build import model_without_memory
from detrkit.models.presets import PRESETS, preset_config
from detrkit.models.presets_realtime import REALTIME_PRESETS
from detrkit.training.multi_scale import rescale, scales
from detrkit.training.optimizer import build_optimizer, freeze_unused
from detrkit.training.planner import plan_model, plan_training
from detrkit.training.realtime_recipes import published_training
from detrkit.training.schedule import lr_factor
from detrkit.training.train_step import MovingAverage
from tests.parameters import slow_except

# preset: file with the published groups, and elements of weights that only training with a teacher has
GROUPS = {
    **{
        f"rtdetr-{size}": f"rtdetr_{size.replace('r50-m', 'r50vd_m') if size == 'r50-m' else size + 'vd'}"
        for size in ("r18", "r34", "r50-m", "r50", "r101")
    },
    "rtdetrv2-s": "rtdetrv2_s_r18vd",
    "rtdetrv2-ms": "rtdetrv2_ms_r34vd",
    "rtdetrv2-m": "rtdetrv2_m_r50vd_m",
    "rtdetrv2-l": "rtdetrv2_l_r50vd",
    "rtdetrv2-x": "rtdetrv2_x_r101vd",
    "rtdetrv2-s-sp1": "rtdetrv2_r18vd_sp1",
    "rtdetrv2-s-dsp": "rtdetrv2_s_dsp",
    **{f"dfine-{size}": f"dfine_{size}" for size in "nsmlx"},
    "dfine-s-obj365": "dfine_s_obj365",
    **{f"deim-dfine-{size}": f"deim_dfine_{size}" for size in "nsmlx"},
    **{f"deim-rtdetrv2-{size}": f"deim_rtdetrv2_{size}" for size in ("s", "ms", "m", "l", "x")},
    **{f"rtdetrv4-{size}": f"rtdetrv4_{size}" for size in "sm"},
}


def planned(preset: str, **changes: Any) -> TrainingConfig:
    config = RunConfig(data="x", model=preset, recipe="reference", weights="a.pth", **changes)
    return plan_training(plan_model(config), set(), 118_287).config.training


SMALL = ("rtdetr-r18", "rtdetrv2-s", "dfine-n", "deim-dfine-n", "rtdetrv4-s")


@pytest.mark.parametrize("preset", slow_except(SMALL, GROUPS))
def test_groups_of_parameters_have_the_published_sizes_rates_and_decays(shared: Path, preset: str) -> None:
    with gzip.open(shared / f"golden/modern/state_dict_{GROUPS[preset]}.json.gz", "rt", encoding="utf-8") as file:
        content = json.load(file)
    expected: dict[tuple[float, float], int] = defaultdict(int)
    for _, elements, rate, decay in content["optimizer_groups_count_elements_lr_wd"]:
        if elements:
            expected[rate, decay] += elements
    model, settings = model_without_memory(preset_config(preset)), planned(preset)
    freeze_unused(model, settings)
    if preset.startswith("rtdetrv4"):  # a projection that is trained by a teacher only
        expected[settings.optimizer.lr, settings.optimizer.weight_decay] -= 256 * 768 + 768
    found: dict[tuple[float, float], int] = defaultdict(int)
    for group in build_optimizer(model, settings).param_groups:
        found[group["lr"], group["weight_decay"]] += sum(parameter.numel() for parameter in group["params"])
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("preset", ["deim-dfine-s", "rtdetr-r18"])
@pytest.mark.parametrize("recipe", ["reference", "auto"])
def test_half_the_learning_rate_halves_that_of_every_group_of_parameters(preset: str, recipe: str) -> None:
    published = published_training(preset)
    assert published is not None
    config = RunConfig(data="x", model=preset, recipe=recipe, weights="a.pth")
    slower = config.replace(training=TrainingConfig(lr=published.lr / 2))
    plans = [plan_training(plan_model(config), set(), 1000), plan_training(plan_model(slower), {"lr"}, 1000)]
    model = model_without_memory(preset_config(preset))
    rates = [
        [(group["lr"], len(group["params"])) for group in build_optimizer(model, plan.config.training).param_groups]
        for plan in plans
    ]
    assert rates[1] == [(rate / 2, count) for rate, count in rates[0]]
    (scaled,) = [choice for choice in plans[1].choices if choice.name == "backbone_lr"]
    assert scaled.source == "run"
    assert scaled.reason == (
        f"scaled like lr {published.lr / 2:g}: published are lr {published.lr:g} and backbone_lr {published.backbone_lr:g}"
    )
    given = slower.replace(training=TrainingConfig(lr=published.lr / 2, backbone_lr=3e-6))
    assert plan_training(plan_model(given), {"lr", "backbone_lr"}, 1000).config.training["backbone_lr"] == 3e-6


@pytest.mark.parametrize("preset", REALTIME_PRESETS)
def test_every_preset_has_a_published_training(preset: str) -> None:
    assert published_training(preset) is not None
    assert published_training("detr-r50") is None
    settings = planned(preset)
    side = {"deimv2-atto": 320, "deimv2-femto": 416}.get(preset, 640)
    assert default_preprocessing(preset_config(preset)).size == (side, side)
    assert (settings.image_size, settings.keep_aspect_ratio, settings.normalize) == (side, False, False)
    assert settings.optimizer.clip_grad_norm == 0.1
    assert settings.auxiliary_queries.denoising_queries == 100


def test_step_schedules_of_rtdetrv2_and_dfine_are_a_warmup_and_then_constant() -> None:
    v2, dfine = planned("rtdetrv2-s"), planned("dfine-s")
    assert [lr_factor(step, 0.0, v2) for step in (0, 999, 1999, 5000)] == [1 / 2000, 0.5, 1, 1]
    assert [lr_factor(step, 0.0, dfine) for step in (0, 249, 499)] == [1 / 500, 0.5, 1]
    assert lr_factor(10**6, 1.0, dfine) == 1
    assert lr_factor(0, 0.0, planned("rtdetr-r18")) == 1


def test_flat_cosine_schedule_of_deim() -> None:
    """132 epochs: flat until 64, then to one half at 120."""
    settings = planned("deim-dfine-s")
    assert lr_factor(999, 0.0, settings) == pytest.approx(0.25)
    at = [lr_factor(10**6, epoch / 132, settings) for epoch in (10, 63.9, 92, 120, 131)]
    assert at == pytest.approx([1, 1, 0.75, 0.5, 0.5])


def test_decay_of_the_average_rises_as_published() -> None:
    average = MovingAverage.__new__(MovingAverage)
    average.settings = EMAConfig(ema_decay=0.9999, ema_warmup_steps=2000)
    assert average.decay_after(99) == pytest.approx(0.9999 * (1 - math.exp(-0.05)))
    assert average.decay_after(0) == pytest.approx(0.0005, rel=1e-2)
    average.settings = EMAConfig(ema_decay=0.999)
    assert [average.decay_after(count) for count in (0, 10, 10**6)] == [0, 11 / 20, 0.999]


def test_sizes_of_multi_scale_training() -> None:
    sizes = scales(640, 3)
    assert sorted(sizes) == [480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800]
    assert scales(640, 20).count(640) == 20


def test_batches_are_resized_by_a_seed_with_their_padding() -> None:
    images = torch.rand(2, 3, 128, 64)
    padding = torch.zeros(2, 128, 64, dtype=torch.bool)
    padding[1, :, 32:] = True
    seen = set()
    for seed in range(20):
        resized, mask = rescale(images, padding, 1, seed)
        again, _ = rescale(images, padding, 1, seed)
        assert mask is not None
        assert torch.equal(resized, again)
        assert resized.shape[2] == 2 * resized.shape[3] == mask.shape[1]
        assert torch.equal(mask.float().mean((1, 2)), torch.tensor([0.0, 0.5]))
        seen.add(resized.shape[2])
    assert seen == {96, 128, 160}
    assert rescale(images, None, 1, 0)[1] is None


def test_deim_has_mosaics_until_the_flat_part_ends() -> None:
    augmentation = planned("deim-dfine-m").augmentation
    assert (augmentation.mosaic, augmentation.mixup) == (0.5, 0.5)
    assert augmentation.strong_aug_from * 102 == pytest.approx(4)
    assert augmentation.mosaic_until * 102 == pytest.approx(49)
    assert augmentation.strong_aug_until * 102 == pytest.approx(90)
    assert len(PRESETS) > len(REALTIME_PRESETS)


def test_reference_settings_of_deimv2() -> None:
    """500 epochs: flat until 250, to one half at 468, strong augmentation until 400; N has a constant rate."""
    atto, n = planned("deimv2-atto"), planned("deimv2-n")
    assert (atto.schedule.warmup, atto.schedule.warmup_steps, atto.optimizer.lr) == ("quadratic", 3999, 2e-3)
    at = [lr_factor(10**6, epoch / 500, atto) for epoch in (10, 249.9, 359, 468, 499)]
    assert at == pytest.approx([1, 1, 0.75, 0.5, 0.5], abs=1e-6)
    assert lr_factor(10**6, 1.0, n) == 1
    augmentation = atto.augmentation
    assert [round(500 * one) for one in (augmentation.mosaic_until, augmentation.strong_aug_until)] == [250, 400]
    assert (augmentation.mosaic, augmentation.mixup, n.augmentation.mosaic, n.augmentation.mixup) == (0.3, 0, 0.5, 0.5)
    assert (atto.loss.match_union, atto.loss.fgl_loss_coef, atto.loss.ddf_loss_coef) == (False, 0, 0)
    assert (n.loss.match_union, n.loss.fgl_loss_coef, n.loss.ddf_loss_coef) == (True, 0.15, 1.5)
    assert [round(500 * atto.loss.quality_matching_from), round(160 * n.loss.quality_matching_from)] == [450, 136]
    assert {one.loss.cls_loss for one in (atto, n)} == {"mal"}
    assert (n.gradient_accumulation * n.batch_size, planned("deimv2-pico").optimizer.backbone_lr) == (32, 8e-4)


@pytest.mark.parametrize("preset", ["deimv2-atto", "deimv2-femto", "deimv2-n"])
def test_norms_of_deimv2_do_not_decay_where_their_authors_names_say_norm(preset: str) -> None:
    model = model_without_memory(preset_config(preset))
    decaying = {
        id(one)
        for group in build_optimizer(model, planned(preset)).param_groups
        if group["weight_decay"]
        for one in group["params"]
    }
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decaying}
    pooled = {
        f"{part}.norm.weight" for part in ("neck.projection.downsample.pointwise", "encoder.downsample.0.pointwise")
    }
    pooled |= {name.replace("weight", "bias") for name in pooled} if preset == "deimv2-atto" else set()
    assert {name for name in names if ".norm." in name} == (set() if preset == "deimv2-n" else pooled)
    assert ("decoder.layers.0.feed_forward.expand.bias" in names) == (preset == "deimv2-atto")
    assert "backbone.body.stages.0.blocks.0.layers.0.affine.bias" in names
