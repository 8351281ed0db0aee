"""Rules across settings of a training run."""

import re
from typing import Any

import pytest

from detrkit.cli.flags import flag_style
from detrkit.config.run import run_config
from detrkit.config.training import TrainingConfig
from detrkit.config.validation import check_augmentation, check_evaluation, check_run
from detrkit.errors import ConfigError
from detrkit.models.presets import preset_config


def check(**settings: Any) -> None:
    config = run_config({"data": "x", "model": "detr-r50", **settings})
    preset = preset_config(config.model)
    check_run(config, preset_config(config.model, **config.model_overrides), preset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrastive_denoising": True}, "contrastive_denoising=True needs denoising copies to add negatives to"),
        (
            {"denoising": 2, "contrastive_denoising": True, "box_noise_scale": 0},
            "contrastive_denoising=True needs noise that makes negatives differ from the objects, but box_noise_scale=0",
        ),
        ({"hybrid_queries": 5}, "hybrid_queries=5 is less than the hybrid_repeats=6 matches of a single object"),
        ({"look_forward_twice": True}, "look_forward_twice=True needs a model whose layers refine each other's boxes"),
        (
            {"model": "conditional-detr-r50", "look_forward_twice": True},
            "look_forward_twice=True needs a model whose layers refine each other's boxes",
        ),
        (
            {"model": "dab-detr-r50", "look_forward_twice": True},
            "look_forward_twice=True has no effect: Conditional DETR, DAB-DETR, RT-DETR and D-FINE already pass",
        ),
        ({"cls_loss": "align"}, "cls_loss='align' needs sigmoid class scores, but the model has softmax scores"),
        (
            {"mask_head": True, "weights": "a", "query_groups": 2, "denoising": 1, "freeze": "boxes"},
            "denoising, query_groups only trains boxes, which freeze='boxes' keeps frozen",
        ),
        ({"mask_head": True, "freeze": "boxes"}, "freeze='boxes' leaves only the mask head trainable, but the boxes"),
        (
            {"mask_head": True, "freeze": "boxes", "weights": "imagenet"},
            "freeze='boxes' leaves only the mask head trainable, but the boxes",
        ),
        (
            {"train_on_val": True, "patience": 3},
            "train_on_val=True leaves no images for evaluation, which patience=3",
        ),
        (
            {"in_channels": 5, "photometric": 0.1},
            "photometric=0.1 is for RGB or grey images, and these have 5 channels",
        ),
        ({"box_noise_scale": 0.3}, "box_noise_scale=0.3 has no effect: there are no denoising queries"),
        ({"hybrid_repeats": 3}, "hybrid_repeats=3 has no effect: there are no hybrid queries"),
        (
            {"model": "detrkit-s", "eos_coef": 0.3},
            "eos_coef=0.3 has no effect: it weights the no-object class of softmax",
        ),
        (
            {"lr_drop": 0.9, "lr_scheduler": "cosine"},
            "lr_drop=0.9 has no effect: lr_scheduler='cosine' does not drop the learning rate",
        ),
        ({"augment": False, "mosaic": 0.5}, "mosaic=0.5 has no effect: augment=False disables augmentation"),
        ({"strong_aug_until": 0.5}, "strong_aug_until=0.5 has no effect: there is no strong augmentation"),
        ({"dice_loss_coef": 2.0}, "dice_loss_coef=2.0 has no effect: this model predicts no masks"),
        ({"offset_lr_factor": 0.1}, "offset_lr_factor=0.1 has no effect: it is for sampling offsets of deformable"),
        ({"num_points": 2}, "num_points=2 has no effect: this model has no deformable attention"),
        ({"max_detections": 50}, "max_detections=50 has no effect: it is for sigmoid scores"),
        (
            {"max_position_embeddings": 60},
            "max_position_embeddings=60 has no effect: it is for position_embedding='learned'",
        ),
        (
            {"position_embedding": "learned", "position_temperature": 20.0},
            "position_temperature=20.0 has no effect: it is for position_embedding='sine'",
        ),
        (
            {"scaled_positions": True, "encoder_layers": 0},
            "scaled_positions=True has no effect: this model has no encoder layers that use position encodings",
        ),
        ({"scaled_positions": True, "position_embedding": "none"}, "scaled_positions=True has no effect"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}") as error:
        check(**settings)
    assert "\n" not in str(error.value)


def test_valid_settings_pass() -> None:
    check()
    check(model="dab-detr-r50", encoder_layers=0)  # the preset's own scaled_positions stay
    check(model="dab-detr-r50", cls_loss="align")
    check(mask_head=True, freeze="boxes", weights="runs/boxes")
    check_augmentation(TrainingConfig(photometric=1), 1)
    check_augmentation(TrainingConfig(mosaic=1), 5)
    check_evaluation(TrainingConfig(patience=3))


def test_arguments_are_named_as_options_on_the_command_line() -> None:
    with pytest.raises(ConfigError) as error:
        check(augment=False, mosaic=0.5)
    assert error.value.render(flag_style).startswith("--mosaic 0.5 has no effect: --no-augment disables augmentation")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dim": 100}, "hidden_dim=100 must be a multiple of 4 and of num_heads=8"),
        ({"num_feature_levels": 3, "hidden_dim": 80, "num_heads": 4}, "hidden_dim=80 must be 64, 96, 128"),
        ({"mask_head": True, "hidden_dim": 96}, "mask_head=True needs hidden_dim to be a multiple of 128"),
        ({"backbone": "resnet18", "dilation": True}, "backbone='resnet18' cannot be dilated"),
        (
            {"decoder": "conditional"},
            "decoder='conditional' needs queries with reference points, but queries='learned'",
        ),
        ({"decoder": "deformable"}, "decoder='deformable' needs queries with reference points, but queries='learned'"),
        ({"with_box_refine": True}, "with_box_refine=True refines reference boxes, but queries='learned' has none"),
        ({"queries": "two_stage"}, "queries='two_stage' selects boxes to refine. Set with_box_refine=True."),
        ({"queries": "two_stage", "with_box_refine": True}, "queries='two_stage' ranks cells by a sigmoid score"),
        ({"two_stage_content": "memory"}, "two_stage_content='memory' is for queries='two_stage'"),
        ({"align_cells": True}, "align_cells=True is for deformable attention and queries='two_stage'"),
        ({"num_feature_levels": 3, "position_embedding": "learned"}, "position_embedding='learned' does not work with"),
        ({"queries": "points", "encoder_positions": "input"}, "other than 'attention' need dense attention"),
        (
            {"position_embedding": "learned", "encoder_positions": "none", "decoder_positions": "none"},
            "position_embedding='learned' cannot be trained if positions are added nowhere",
        ),
        (
            {"queries": "nothing"},
            "queries='nothing': input should be 'learned', 'points', 'anchors', 'two_stage', 'selected' or 'mixed'",
        ),
        ({"num_feature_levels": 9}, "num_feature_levels=9: input should be less than or equal to 8"),
    ],
)
def test_fields_of_a_model_that_contradict_each_other_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        preset_config("detr-r50", **fields)
    assert "\n" not in str(error.value)
