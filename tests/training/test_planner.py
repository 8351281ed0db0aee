"""Planner: settings chosen for model, dataset and weights; given settings are kept."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit import state_dict_as_official
from detrkit.benchmark.describe_data import _first_samples
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.config.model import ModelConfig
from detrkit.config.run import RunConfig
from detrkit.config.training import CHOSEN_SETTINGS, TrainingConfig
from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleDataset
from detrkit.data.samplers import BatchGrouping, SampleKey
from detrkit.data.torch_dataset import read_torch_dataset
from detrkit.errors import CheckpointError
from detrkit.evaluation.coco import ClassMetrics, CocoMetrics
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.models.presets import build_model
from detrkit.structures import Annotations, Sample
from detrkit.training.build import with_architecture_of_weights
from detrkit.training.data import TrainingData, open_data, training_dataset
from detrkit.training.duration import Throughput, estimate_duration, planned_steps, steps_per_epoch
from detrkit.training.overfit_check import check_overfit
from detrkit.training.planner import TrainingPlan, plan_model, plan_training
from detrkit.training.train import prepare
from tests.datasets import write_coco

CATEGORIES = Categories(ids=(1, 2), names=("cat", "dog"))


def planned(num_images: int, **given: object) -> TrainingPlan:
    settings = TrainingConfig.model_validate(given.pop("training", {}))
    config = RunConfig.model_validate({"data": "x", "training": settings, "model": "detr-r50", **given})
    return plan_training(plan_model(config), set(settings.explicit), num_images)


def test_choices_contain_the_defaults_of_a_preset() -> None:
    plan = planned(1000, model="detrkit-s", training={"batch_size": 8})
    told = {choice.name: choice.value for choice in plan.choices}
    assert told["image_size"] == plan.config.training.image_size == 320
    assert told["cls_loss"] == "align"
    assert "batch_size" not in told, "it was given"
    overfit = planned(8, model="detrkit-s", training={"overfit": 8})
    assert {choice.name for choice in overfit.choices} <= {*told, "batch_size"}, "those of the preset"


@pytest.mark.parametrize("recipe", ["auto", "reference"])
@pytest.mark.parametrize("weights", [None, "imagenet", "runs/first"])
@pytest.mark.parametrize("length", [{}, {"steps": 100}, {"minutes": 5}, {"overfit": 8}])
def test_reasons_explain_instead_of_naming_the_preset(recipe: str, weights: str | None, length: dict[str, int]) -> None:
    for model in ("detrkit-s", "detrkit-m", "detr-tiny", "detr-r50", "dab-detr-r50", "deformable-detr-r50"):
        for choice in planned(24, model=model, recipe=recipe, weights=weights, training=length).choices:
            assert len(choice.reason.split()) > 1, choice
            assert model not in choice.reason
            assert not re.search("suits|default of|recipe|preset", choice.reason), choice
            if recipe == "auto":  # what --help says about them
                assert choice.name in CHOSEN_SETTINGS


@pytest.mark.parametrize("recipe", ["auto", "reference"])
def test_choices_contain_the_published_settings_of_an_architecture(recipe: str) -> None:
    from_scratch, pretrained = (
        {choice.name: (choice.value, choice.reason) for choice in plan.choices}
        for plan in (
            planned(1000, model="deformable-detr-r50", recipe=recipe, weights=weights) for weights in (None, "imagenet")
        )
    )
    assert pretrained["lr"] == (2e-4, "as published")
    assert pretrained["backbone_lr"] == (2e-5, "as published")
    assert pretrained["offset_lr_factor"] == (0.1, "as published")
    assert from_scratch["backbone_lr"][0] == 2e-4
    assert "random weights" in from_scratch["backbone_lr"][1]
    assert ("padding_invariant" in pretrained) == (recipe == "reference")


def test_deformable_detr_tiny_has_the_published_offset_learning_rate() -> None:
    changes = {"queries": "points", "decoder": "deformable", "class_scores": "sigmoid"}
    training = planned(1000, model="detr-tiny", model_overrides=changes).config.training
    assert (training["offset_lr_factor"], training["lr"], training["cls_loss"]) == (0.1, 5e-4, "default")


def test_pretrained_backbone_keeps_frozen_norms_and_stages() -> None:
    changes = {"backbone": "timm:tf_efficientnet_lite0"}
    config = RunConfig(data="x", model="detrkit-s", backbone_weights="a.pth", model_overrides=changes)
    settings = plan_model(config).model_overrides
    assert (settings["backbone_normalization"], settings["frozen_backbone_stages"]) == ("frozen", 2)
    given = config.replace(model_overrides={**changes, "frozen_backbone_stages": 0})
    assert plan_model(given).model_overrides["frozen_backbone_stages"] == 0
    scratch = config.replace(backbone_weights=None)
    assert plan_model(scratch).model_overrides["backbone_normalization"] == "batch"


def test_detrkit_presets_have_their_own_defaults() -> None:
    training = planned(1000, model="detrkit-s").config.training
    assert (training["cls_loss"], training["look_forward_twice"], training["offset_lr_factor"]) == (
        "align",
        True,
        1.0,
    )
    assert (training["denoising"], training["contrastive_denoising"]) == (3, True)
    assert (training.batch_size, training["cls_loss_coef"], training["lr"]) == (4, 3.0, 1e-3)
    assert training["backbone_lr"] == 1e-3  # from scratch
    pretrained = planned(1000, model="detrkit-m", weights="imagenet").config.training
    assert (pretrained["lr"], pretrained["backbone_lr"]) == (1e-3, 5e-4)
    adapted = planned(1000, model="detrkit-m", weights="runs/first").config.training
    assert (adapted["lr"], adapted["backbone_lr"], adapted.batch_size) == (1e-3, 5e-4, 4)
    published = planned(1000, model="deformable-detr-r50", weights="runs/first").config.training
    assert published["lr"] == 2e-4
    settings = {"class_scores": "softmax", "queries": "points", "two_stage_content": "box", "with_box_refine": False}
    changed = planned(1000, model="detrkit-s", model_overrides=settings, training={"lr": 3e-4})
    assert (changed.config.training["cls_loss"], changed.config.training["look_forward_twice"]) == ("default", False)
    assert changed.config.training["lr"] == 3e-4
    masks = planned(
        1000, model="detrkit-s", model_overrides={"mask_head": True}, weights="a", training={"freeze": "boxes"}
    )
    assert not masks.config.training["look_forward_twice"]  # it teaches boxes, which stay as they are
    assert (
        masks.config.training["denoising"],
        masks.config.training["contrastive_denoising"],
    ) == (0, False)


@pytest.mark.parametrize(
    ("given", "copies", "is_contrastive"),
    [
        ({"denoising": 0}, 0, False),
        ({"denoising": 5}, 5, True),
        ({"box_noise_scale": 0.0}, 3, False),
        ({"box_noise_scale": 0.6}, 3, True),
        ({"contrastive_denoising": False}, 3, False),
    ],
)
def test_denoising_defaults_of_detrkit_presets_follow_given_settings(
    given: dict[str, Any], copies: int, is_contrastive: bool
) -> None:
    planning = planned(1000, model="detrkit-s", training=given)
    training = planning.config.training
    assert (training["denoising"], training["contrastive_denoising"]) == (
        copies,
        is_contrastive,
    )
    told = {choice.name for choice in planning.choices}
    assert ("denoising" in told) is ("denoising" not in given)
    assert ("contrastive_denoising" in told) is (is_contrastive and "contrastive_denoising" not in given)


def test_architecture_of_the_weights_is_used_unless_a_model_is_given(tmp_path: Path) -> None:
    model = build_model("detr-tiny", num_classes=2, decoder_layers=1, num_queries=7)
    checkpoint = Checkpoint(model.state_dict(), model.config, CATEGORIES, Preprocessing(image_size=96))
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    config = RunConfig(data="x", weights=str(tmp_path / "a.safetensors"))
    taken = with_architecture_of_weights(config)
    found = taken.model_overrides["decoder_layers"], taken.model_overrides["num_queries"], taken.training.image_size
    assert (taken.model, *found) == ("detr-tiny", 1, 7, 96)
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "model.safetensors", checkpoint)
    (tmp_path / "run" / "config.yaml").write_text("model: detr-r18\n")
    of_run = with_architecture_of_weights(RunConfig(data="x", weights=str(tmp_path / "run")))
    assert of_run.model == "detr-r18", "the preset in its config.yaml"
    assert "num_classes" not in taken.model_overrides
    fewer = with_architecture_of_weights(config.replace(model_overrides={"num_queries": 3}))
    assert fewer.model_overrides["num_queries"] == 3
    named = config.model_validate({**config.model_dump(), "model": "detr-r18"})
    assert with_architecture_of_weights(named) is named
    with pytest.raises(CheckpointError, match=r"^weights='nowhere': nowhere: "):
        with_architecture_of_weights(RunConfig(data="x", weights="nowhere"))
    data = str(write_coco(tmp_path / "shapes", 2, 2))
    plan, _ = prepare(config.replace(data=data))
    assert plan.config.training.image_size == 96
    assert "model detr-tiny and image size 96 px are those of the weights" in plan.notes
    assert "image_size" not in {choice.name for choice in plan.choices}


def test_pretrained_weights_and_larger_datasets_need_fewer_epochs() -> None:
    epochs = {
        (start, count): planned(count, weights=start).config.training.epochs
        for start in (None, "imagenet", "runs/first")
        for count in (100, 10_000)
    }
    for start in (None, "imagenet", "runs/first"):
        assert epochs[start, 100] > epochs[start, 10_000]
    for count in (100, 10_000):
        assert epochs[None, count] > epochs["imagenet", count] > epochs["runs/first", count]


def test_every_choice_has_a_reason_and_a_valid_value() -> None:
    plan = planned(205, weights="imagenet")
    assert {choice.name for choice in plan.choices} == {
        "epochs", "lr_scheduler", "warmup_steps", "ema_decay", "decay_norms", "evaluate_every",
    }  # fmt: skip
    for choice in plan.choices:
        assert plan.config.training[choice.name] == choice.value
        assert str(choice).startswith(f"{choice.name} {choice.value}: ")
    TrainingConfig.model_validate(plan.config.training.model_dump())


def test_small_sets_are_fine_tuned_without_changes_of_scale() -> None:
    def scales(num_images: int, **given: object) -> tuple[object, object, object]:
        augmentation = planned(num_images, model="dfine-n", **given).config.training
        return augmentation["photometric"], augmentation["zoom_out"], augmentation["iou_crop"]

    published = (0.5, 0.5, 0.8)
    assert scales(100, weights="runs/first") == (0.5, 0.0, 0.0)
    assert scales(300, weights="runs/first") == published
    assert scales(100) == published
    assert scales(100, weights="runs/first", recipe="reference") == published
    assert scales(100, weights="runs/first", training={"iou_crop": 0.2}) == (0.5, 0.0, 0.2)
    told = [str(one) for one in planned(1, model="dfine-n", weights="runs/first").choices if one.name == "zoom_out"]
    assert told == ["zoom_out 0.0: higher AP after fine-tuning with 1 image: no zoom-out, no crop by IoU"]
    unfrozen = planned(100, model="dfine-n", weights="runs/first").config.training
    assert unfrozen["freeze"] == ()


def test_given_settings_are_kept() -> None:
    given = {
        "epochs": 7,
        "lr_scheduler": "step",
        "ema_decay": 0.0,
        "evaluate_every": 1,
        "warmup_steps": 0,
    }
    plan = planned(100, weights="runs/first", training=given)
    assert {name: plan.config.training[name] for name in given} == given
    assert {choice.name for choice in plan.choices} == {"decay_norms"}
    assert planned(100, training={"steps": 50}).config.training.epochs == 300


def test_reference_recipe_is_the_training_of_the_paper() -> None:
    training = planned(
        5000, recipe="reference", weights="imagenet", training={"batch_size": 4, "devices": 2}
    ).config.training
    assert training.gradient_accumulation == 8
    expected = TrainingConfig(
        batch_size=4, devices=2, gradient_accumulation=8, padding_invariant=False, group_by_aspect_ratio=False
    )
    assert training == expected
    assert (training.epochs, training["lr_scheduler"], training["lr_drop"]) == (300, "step", 2 / 3)
    assert (training["lr"], training["backbone_lr"], training["weight_decay"]) == (
        1e-4,
        1e-5,
        1e-4,
    )


def test_processes_started_by_torchrun_count_for_accumulation() -> None:
    config = plan_model(RunConfig(data="x", recipe="reference", training=TrainingConfig(batch_size=4)))
    assert plan_training(config, {"batch_size"}, 5000, num_processes=8).config.training.gradient_accumulation == 2


def test_planned_values_computed_by_hand() -> None:
    training = planned(205, model="detrkit-m", weights="imagenet").config.training
    # 51 steps of 4 photos: 118 rounds have 6,000 of them, and 50 more
    assert (training.epochs, training["warmup_steps"]) == (168, 168 * 51 // 20)
    assert (training["ema_decay"], training["evaluate_every"]) == (0.999, 9)
    short = planned(205, model="detrkit-m", weights="imagenet", training={"steps": 100}).config.training
    assert (short["warmup_steps"], short["ema_decay"]) == (5, 0.99)
    assert planned(205, training={"steps": 30_000}).config.training["warmup_steps"] == 1000
    given = planned(205, model="detrkit-s", training={"backbone_lr": 3e-5}).config.training
    assert (given["lr"], given["backbone_lr"]) == (1e-3, 3e-5)
    masks = planned(
        205, model="detr-r50-panoptic", weights="a", recipe="reference", training={"freeze": "boxes"}
    ).config.training
    assert (masks.epochs, masks["lr_drop"]) == (25, 0.6)


@pytest.mark.parametrize(("num_images", "rounds"), [(100, 6000 // 2 + 50), (364, 6000 // 6 + 50), (7, 6000 + 50)])
def test_accumulated_steps_are_counted_as_the_trainer_takes_them(num_images: int, rounds: int) -> None:
    training = planned(
        num_images, weights="imagenet", training={"batch_size": 8, "gradient_accumulation": 8}
    ).config.training
    assert training.epochs == rounds  # 12 batches are two updates, 45 are six, and one is one
    num_batches = max(1, num_images // 8)
    assert planned_steps(num_batches, training) == rounds * steps_per_epoch(num_batches, training)
    assert training["warmup_steps"] == min(1000, planned_steps(num_batches, training) // 20)


def test_run_of_steps_is_evaluated_at_most_20_times() -> None:
    assert (
        planned(100, training={"batch_size": 1, "steps": 4000}).config.training["evaluate_every"] == 2
    )  # of 40 epochs
    assert planned(100, training={"batch_size": 1, "steps": 50}).config.training["evaluate_every"] == 1


@pytest.mark.parametrize("recipe", ["auto", "reference"])
@pytest.mark.parametrize("weights", [None, "imagenet", "runs/first"])
def test_time_limit_is_planned_without_a_number_of_steps(recipe: str, weights: str | None) -> None:
    for model in ("detrkit-s", "detr-r50", "dab-detr-r50"):
        plan = planned(24, model=model, recipe=recipe, weights=weights, training={"minutes": 12})
        training = plan.config.training
        assert (training.minutes, training.steps, training["evaluate_every"]) == (12, None, None)
        assert "epochs" not in {choice.name for choice in plan.choices}
        if recipe == "auto":
            assert (training["warmup_steps"], training["warmup_until"], training["ema_decay"]) == (1000, 0.05, 0.999)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"warmup_steps": 7}, {"warmup_steps": 7, "warmup_until": 1.0}),
        ({"warmup_until": 0.2}, {"warmup_steps": 1000, "warmup_until": 0.2}),
        ({"evaluate_every": 3, "ema_decay": 0.5}, {"evaluate_every": 3, "ema_decay": 0.5, "warmup_steps": 1000}),
    ],
)
def test_settings_that_are_given_with_a_time_limit_are_kept(given: dict[str, Any], expected: dict[str, Any]) -> None:
    training = planned(100, training={"minutes": 5, **given}).config.training
    assert {name: training[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 60, "batch_size": 8}, (600, 60, 300 + 360)),  # 10 steps each
        ({"steps": 35, "evaluate_every": 2}, (35, 2, 17.5 + 12)),  # the last epoch is cut short
        ({"steps": 1005, "evaluate_every": None}, (1005, 17, 502.5 + 102)),  # 101 epochs, every sixth
        ({"minutes": 10, "evaluate_every": None}, (1080, 10, 600)),  # of 6 s: not 20, but 10 % of the time
        ({"minutes": 10, "evaluate_every": 1}, (552, 54, 600)),  # 5 s of training, 6 s of evaluation
        ({"minutes": 0.01}, (1, 1, 0.6)),
    ],
)
def test_duration_is_estimated_by_hand(settings: dict[str, Any], expected: tuple[int, int, float]) -> None:
    estimate = estimate_duration(Throughput(0.5, 6.0), 10, TrainingConfig.model_validate(settings))
    assert (estimate.num_steps, estimate.num_evaluations, estimate.seconds) == expected


@pytest.mark.parametrize(
    ("given", "number", "expected"),
    [
        ({"batch_size": 500}, 24, "batch_size 500 is larger than the 24 training images"),
        ({"batch_size": 2}, 1, "batch_size 2 is larger than the 1 training image:"),
        ({"batch_size": 8, "overfit": 4}, 100, "batch_size 8 is larger than the 4 training images"),
        (
            {"batch_size": 8, "gradient_accumulation": 4},
            24,
            "gradient_accumulation 4 of batch_size 8 is more than the 24",
        ),
        ({"batch_size": 24}, 24, None),
        ({}, 1, None),
    ],
)
def test_batches_that_the_dataset_cannot_fill_are_warned_of(
    given: dict[str, Any], number: int, expected: str | None
) -> None:
    notes = planned(number, training=given).notes
    assert (notes == ()) if expected is None else (expected in notes[0] and notes[0].startswith("warning: "))


def test_overfit_run_has_no_choices() -> None:
    assert not planned(8, training={"overfit": 8}).choices


def run_data(annotations: Annotations) -> TrainingData:
    sample = Sample(torch.zeros(3, 100, 200, dtype=torch.uint8), annotations, 1, (100, 200))
    photos = SampleDataset([sample])
    train = training_dataset(photos, TrainingConfig(overfit=1))
    split = read_torch_dataset(photos, Categories((1, 2), ("cat", "dog")))
    return TrainingData(train, BatchGrouping.ungrouped(1), split, photos, photos)


def test_training_sizes_are_centred_on_the_evaluation_size_for_detrkit_presets() -> None:
    own = planned(1000, model="detrkit-s", training={"image_size": 80}).config.training
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    sample = Sample(torch.zeros(3, 100, 120, dtype=torch.uint8), nothing, 1, (100, 120))
    for settings, expected in ((own, (60, 100)), (TrainingConfig(image_size=80), (48, 80))):
        photos = training_dataset(SampleDataset([sample]), settings)
        sides = [min(photos[SampleKey(0, 1, batch)].image.shape[1:]) for batch in range(200)]
        assert (min(sides), max(sides)) == expected


def test_flips_and_rotations_follow_their_probability() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :20, :20] = 255
    sample = Sample(image, Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), 1, (40, 40))
    corners = {"horizontal_flip": (0, -1), "vertical_flip": (-1, 0), "rotate90": (-1, 0)}
    for name, corner in corners.items():
        for share in (0.0, 1.0):
            given = {"horizontal_flip": 0, "crop": 0, "image_size": 40, "train_scale": 1.5, name: share}
            photos = training_dataset(SampleDataset([sample]), TrainingConfig.model_validate(given))
            turned = photos[SampleKey(0, 1)].image
            assert turned[0][0, 0] == 255 * (1 - share)
            assert turned[0][corner] == 255 * share


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_crops_follow_their_probability(share: float) -> None:
    middle = Annotations(torch.tensor([[0.5, 0.5, 0.9, 0.9]]), torch.zeros(1, dtype=torch.int64))
    sample = Sample(torch.zeros(3, 200, 100, dtype=torch.uint8), middle, 1, (200, 100))
    photos = training_dataset(SampleDataset([sample]), TrainingConfig(image_size=100, crop=share))
    shapes = [photos[SampleKey(0, 1, batch)].image.shape for batch in range(100)]
    cut = sum(height != 2 * width for _, height, width in shapes)
    assert share * 100 - 20 < cut < share * 100 + 20
    assert share != 0 or cut == 0


def test_strong_augmentation_ends_at_strong_aug_until(tmp_path: Path) -> None:
    settings = {"mosaic": 1.0, "augment": True, "image_size": 64, "steps": 10, "batch_size": 2, "strong_aug_until": 0.6}
    given = {"data": str(write_coco(tmp_path / "shapes", 4, 2)), "model": "detr-tiny"}
    plan, data = prepare(RunConfig.model_validate({**given, "training": settings}))
    _first_samples(plan.config, data, count=1, epoch=1)
    assert data.train.strong_epochs == range(1, 4)  # 0.6 of the five rounds that ten steps are
    plain = TrainingConfig.model_validate({**settings, "mosaic": 0.0})
    untouched = training_dataset(data.train.images, plain)
    same = [
        torch.equal(data.train[SampleKey(1, epoch)].image, untouched[SampleKey(1, epoch)].image)
        for epoch in (1, 3, 4, 5)
    ]
    assert same == [False, False, True, True]


def scores(ap: float) -> EvalMetrics:
    return EvalMetrics(
        CocoMetrics({"ap": ap}, (ClassMetrics("cat", 2, ap, ap), ClassMetrics("dog", 1, 1.0, 1.0)), 1, 3)
    )


def test_overfit_report_lists_likely_causes() -> None:
    boxes = torch.tensor([[10.0, 10, 90, 90], [10, 10, 90, 91], [5, 5, 8, 9]])
    data = run_data(Annotations(boxes, torch.tensor([0, 1, 0])))
    model = ModelConfig(num_queries=2)
    report = check_overfit(scores(0.4), data, model, image_size=100)
    assert (report.passed, report.metric, report.value, report.goal) == (False, "ap", 0.4, 0.95)
    causes = "\n".join(report.causes)
    assert "an image has 3 objects, but the model 2 queries: set num_queries=6" in causes
    assert "1 objects are smaller than half a cell of 32 px" in causes
    assert "1 pairs of boxes coincide" in causes
    assert "some classes have a low AP (cat 0.40)" in causes
    fitted = check_overfit(scores(0.97), data, model, 100)
    assert fitted.passed
    assert not fitted.causes


@pytest.mark.parametrize("recipe", ["auto", "reference"])
def test_plans_are_valid_for_any_dataset_size(recipe: str) -> None:
    for count in (1, 2, 7, 118_287):
        plan = planned(count, recipe=recipe)
        assert TrainingConfig.model_validate(plan.config.training.model_dump()) == plan.config.training


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("detr-r50", (1e-4, 1e-5, 1.0, 1.0)),
        ("conditional-detr-r50", (1e-4, 1e-5, 2.0, 1.0)),
        ("dab-detr-r50", (1e-4, 1e-5, 2.0, 1.0)),
        ("deformable-detr-r50-two-stage", (2e-4, 2e-5, 2.0, 0.1)),
    ],
)
def test_learning_rates_and_class_weights_are_the_published_ones(model: str, expected: tuple[float, ...]) -> None:
    training = planned(1000, model=model, weights="imagenet").config.training
    found = (
        training["lr"],
        training["backbone_lr"],
        training["cls_loss_coef"],
        training["offset_lr_factor"],
    )
    assert found == expected
    assert planned(1000, model=model, training={"cls_loss_coef": 3.0}).config.training["cls_loss_coef"] == 3.0


def test_given_lr_drop_selects_the_step_schedule() -> None:
    config = plan_model(RunConfig(data="x", training=TrainingConfig(lr_drop=0.9)))
    assert plan_training(config, {"lr_drop"}, 100).config.training["lr_scheduler"] == "step"
    assert plan_training(config, set(), 100).config.training["lr_scheduler"] == "cosine"


@pytest.mark.parametrize(
    ("model", "epochs", "lr_drop", "together"),
    [("detr-r50", 300, 2 / 3, 64), ("dab-detr-r50", 50, 0.8, 16), ("deformable-detr-r50", 50, 0.8, 32)],
)
def test_reference_recipe_follows_each_architecture(model: str, epochs: int, lr_drop: float, together: int) -> None:
    training = planned(1000, model=model, recipe="reference", weights="imagenet").config.training
    assert (training.epochs, training["lr_drop"]) == (epochs, lr_drop)
    assert training.gradient_accumulation * training.batch_size == together
    assert not training.padding_invariant


def test_training_images_are_augmented_as_planned(tmp_path: Path) -> None:
    """The plan is made after the data was opened: the number of images decides on the augmentation."""
    data = str(write_coco(tmp_path / "photos", num_train=3))
    model = build_model("dfine-n", num_classes=2)
    torch.save({"model": state_dict_as_official(model)}, tmp_path / "dfine.pth")
    config = RunConfig.model_validate({"data": data, "model": "dfine-n", "weights": str(tmp_path / "dfine.pth")})
    plan, opened = prepare(config)
    assert plan.config.training["zoom_out"] == 0.0
    strong = opened.train.strong
    assert strong is not None
    assert (strong.photometric, strong.zoom_out, strong.iou_crop) == (0.5, 0.0, 0.0)
    assert strong == open_data(plan.config).train.strong  # as processes and resumed runs open it
