"""Training steps of RT-DETR and D-FINE: denoising in addition to the model's own queries, and batches of every kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import detrkit
from detrkit import build_model
from detrkit.checkpoints.sources import WEIGHTS_FILE
from detrkit.config.training import TrainingConfig
from detrkit.data.batching import collate
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.errors import ConfigError
from detrkit.models.detr import DETR
from detrkit.structures import Batch, Target
from detrkit.training.auxiliary_queries import ModelWithAuxiliaryQueries, build_auxiliary_queries
from detrkit.training.build import build_criterion
from detrkit.training.denoising import noised_boxes
from detrkit.training.realtime_recipes import common_settings
from detrkit.training.train_step import TrainStep
from tests.api.shapes import StopAfter
from tests.datasets import write_coco
from tests.rounding import assert_equal_up_to_rounding

SMALL = {"num_classes": 3, "num_queries": 7, "decoder_layers": 2, "hidden_dim": 64, "dim_feedforward": 32}
DENOISING: dict[str, Any] = {
    "denoising_queries": 6,
    "contrastive_denoising": True,
    "box_noise": "corners",
    "box_noise_scale": 1.0,
    "label_noise_ratio": 0.25,
}
LOSSES = ("match_union", "fgl_loss_coef", "ddf_loss_coef")
NO_OBJECTS = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def small(name: str) -> DETR:
    torch.manual_seed(0)
    return build_model(name, **SMALL)


def images(*, with_objects: bool = True) -> Batch:
    """Images with one object, several, and none."""
    batch = collate(SyntheticShapes(3, 0, SyntheticStyle(size=64, max_objects=4)).draw_all())
    if not with_objects:
        return replace(batch, targets=[NO_OBJECTS] * 3)
    one = Target(batch.targets[0].boxes[:1], batch.targets[0].labels[:1])
    return replace(batch, targets=[one, batch.targets[1], NO_OBJECTS])


def make_train_step(model: DETR, **settings: Any) -> TrainStep:
    chosen = TrainingConfig(**{"lr": 1e-3, "backbone_lr": 1e-3, "cls_loss": "vfl", **settings})
    return TrainStep(model, build_criterion(model.config, chosen), chosen, torch.device("cpu"), 10)


@pytest.mark.parametrize("name", ["rtdetr-r18", "dfine-n", "deimv2-atto"])
def test_denoising_changes_nothing_of_the_models_own_predictions(name: str) -> None:
    model, batch = small(name).eval(), images()
    settings = TrainingConfig(**DENOISING)
    generator = build_auxiliary_queries(model, settings)
    assert generator is not None
    assert not list(generator.parameters())  # label embeddings are part of the model, as in published weights
    noised = noised_boxes(batch, settings, model.config, 0)
    with torch.no_grad():
        alone = model(batch.images)
        with_denoising = ModelWithAuxiliaryQueries(model, generator)(batch.images, noised=noised)
    assert_equal_up_to_rounding(with_denoising.layer_boxes, alone.layer_boxes)
    assert_equal_up_to_rounding(with_denoising.layer_class_logits, alone.layer_class_logits)
    assert with_denoising.auxiliary[0].predictions.boxes.shape[1] == noised.labels.shape[1]


@pytest.mark.parametrize("with_objects", [True, False])
@pytest.mark.parametrize("has_denoising", [True, False])
@pytest.mark.parametrize("name", ["rtdetr-r18", "dfine-n", "deimv2-atto"])
def test_every_trained_weight_gets_a_gradient(name: str, has_denoising: bool, with_objects: bool) -> None:
    """DistributedDataParallel waits for all of them."""
    common = {setting: value for setting, (value, _) in common_settings(name).items() if setting in LOSSES}
    train_step = make_train_step(small(name), **common, **(DENOISING if has_denoising else {}))
    train_step.train()
    output = train_step.step([images(with_objects=with_objects)])
    assert output.total.isfinite()
    assert any("_dn_" in loss for loss in output.losses) == has_denoising
    missing = [key for key, value in train_step.model.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_groups": 3}, "query_groups and hybrid_queries do not work with queries='selected'"),
        ({"denoising": 2}, "needs denoising with negatives"),
        ({"denoising": 2, "denoising_queries": 9, "contrastive_denoising": True}, "exclude each other"),
        ({"look_forward_twice": True}, "has no effect"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_train_step(small("rtdetr-r18"), **settings)


# DEIM's mosaics, MixUp and flat cosine schedule; sizes, crops and denoising of D-FINE; DEIMv2's matching late in the run
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"),
    [("dfine-n", "auto"), ("deim-dfine-s", "reference"), ("deimv2-atto", "reference")],
)
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name: str, recipe: str, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "photos", 6, 2)
    short = {"steps": 6, "batch_size": 2, "image_size": 96, "workers": 0, "gradient_accumulation": 1}
    model = {key: value for key, value in SMALL.items() if key != "num_classes"}

    def train(path: Path, *callbacks: detrkit.Callback) -> detrkit.TrainResult:
        return detrkit.train(
            data, name, output=path, recipe=recipe, callbacks=callbacks, loggers=["jsonl"], **short, **model
        )

    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    assert train(whole).is_complete
    assert not train(interrupted, StopAfter(4)).is_complete
    torch.manual_seed(123)
    detrkit.resume(interrupted, loggers=["jsonl"])
    expected, resumed = (load_file(folder / "last" / WEIGHTS_FILE) for folder in (whole, interrupted))
    assert expected.keys() == resumed.keys()
    assert [entry for entry in expected if not torch.equal(expected[entry], resumed[entry])] == []


def test_late_in_training_queries_are_matched_by_score_and_iou() -> None:
    train_step = make_train_step(small("deimv2-atto"), quality_matching_from=0.5)  # of 10 steps
    matcher, seen = train_step.loss.criterion.matcher, []
    for _ in range(6):
        train_step.step([images()])
        seen.append(matcher.by_quality)
    assert seen == [False] * 5 + [True]
