"""Model and criterion of a run: coefficients and matching costs follow the settings."""

from pathlib import Path

import pytest
import torch

from detrkit import build_model, state_dict_as_official
from detrkit.config.run import run_config
from detrkit.config.training import TrainingConfig
from detrkit.data.categories import contiguous_coco_categories
from detrkit.losses.classification import IoUAwareClassification
from detrkit.models.presets import preset_config
from detrkit.training.build import build_criterion, build_model_for, with_architecture_of_weights
from detrkit.training.planner import plan_model

WEIGHTS = {
    "cls_loss_coef": 1.5,
    "bbox_loss_coef": 4.0,
    "giou_loss_coef": 3.0,
    "mask_loss_coef": 7.0,
    "dice_loss_coef": 6.0,
}


def test_loss_coefficients_are_the_given_ones_and_matching_costs_are_equal() -> None:
    settings = TrainingConfig.model_validate({**WEIGHTS, "eos_coef": 0.3, "padding_invariant": False})
    loss = build_criterion(preset_config("detr-tiny"), settings)
    assert loss.weight_dict == {
        "loss_ce": 1.5, "loss_bbox": 4.0, "loss_giou": 3.0, "loss_mask": 7.0, "loss_dice": 6.0,
        "loss_mask_ce": 7.0, "loss_mask_dice": 6.0,
    }  # fmt: skip
    matcher = loss.matcher
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (1.5, 4.0, 3.0)
    assert (loss.eos_coef, loss.padding_invariant, loss.masks_only) == (0.3, False, False)
    masks_only = TrainingConfig(padding_invariant=True, freeze="boxes")
    other = build_criterion(preset_config("detr-tiny", mask_head=True), masks_only)
    assert (other.eos_coef, other.padding_invariant, other.masks_only) == (0.1, True, True)


def test_iou_aware_classification_is_used_in_matching_and_loss() -> None:
    loss = build_criterion(preset_config("detrkit-s"), TrainingConfig(cls_loss="align"))
    assert isinstance(loss.classification, IoUAwareClassification)
    assert loss.matcher.classification is loss.classification


@pytest.mark.parametrize(("normalize", "is_warned"), [(None, False), (True, True)])
def test_weights_of_other_pixels_are_warned_of(
    normalize: bool | None, is_warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The published weights of real-time detectors are of pixels in 0 .. 1, and so is their training."""
    path = tmp_path / "dfine.pth"
    torch.save({"model": state_dict_as_official(build_model("dfine-n"))}, path)
    given = {} if normalize is None else {"normalize": normalize}
    config = plan_model(run_config({"data": "x", "model": "dfine-n", "weights": str(path), **given}))
    build_model_for(config, contiguous_coco_categories())
    assert any("normalised otherwise" in record.getMessage() for record in caplog.records) is is_warned


@pytest.mark.parametrize(
    ("file", "model", "activation", "words"),
    [
        ("best.pth", "dfine-n", "relu", ()),
        ("best.pth", "deim-dfine-n", "silu", ()),
        ("deim_dfine_hgnetv2_n.pth", "deim-dfine-n", "silu", ()),
        ("deim_dfine_hgnetv2_n.pth", "dfine-n", "relu", ("the file's name says DEIM",)),
    ],
)
def test_model_to_be_trained_decides_between_dfine_and_deim(
    file: str, model: str, activation: str, words: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / file
    torch.save({"model": state_dict_as_official(build_model("dfine-n"))}, path)
    config = plan_model(run_config({"data": "x", "model": model, "weights": str(path)}))
    built, _ = build_model_for(config, contiguous_coco_categories())
    assert built.config.activation == activation
    said = [record.getMessage() for record in caplog.records if "DEIM" in record.getMessage()]
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))


def test_closest_preset_has_the_sizes_of_the_weights(tmp_path: Path) -> None:
    """D-FINE's S to X have the same width, and other learning rates."""
    path = tmp_path / "model.pth"
    torch.save({"model": state_dict_as_official(build_model("dfine-m"))}, path)
    config = with_architecture_of_weights(run_config({"data": "x", "weights": str(path)}))
    assert config.model == "dfine-m"
