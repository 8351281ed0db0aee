"""That the loss of a run weighs what its settings say."""

from detrkit.losses.classification import AlignedClasses
from detrkit.models.presets import preset_config
from detrkit.training.build import loss_for
from detrkit.config.training import TrainingSettings

WEIGHTS = {"class_weight": 1.5, "box_weight": 4.0, "giou_weight": 3.0, "mask_weight": 7.0, "dice_weight": 6.0}


def test_every_weight_is_the_one_that_was_given_and_matching_costs_are_alike() -> None:
    settings = TrainingSettings.model_validate({**WEIGHTS, "no_object_weight": 0.3, "exact_padding": False})
    loss = loss_for(preset_config("detr-tiny"), settings)
    assert loss.weights == {
        "loss_ce": 1.5, "loss_bbox": 4.0, "loss_giou": 3.0, "loss_mask": 7.0, "loss_dice": 6.0,
    }  # fmt: skip
    matcher = loss.matcher
    assert (matcher.class_cost, matcher.box_cost, matcher.giou_cost) == (1.5, 4.0, 3.0)
    assert (loss.no_object_weight, loss.exact_padding, loss.masks_only) == (0.3, False, False)
    other = loss_for(preset_config("detr-tiny"), TrainingSettings(exact_padding=True), masks_only=True)
    assert (other.no_object_weight, other.exact_padding, other.masks_only) == (0.1, True, True)


def test_scores_that_learn_the_overlap_are_matched_as_they_are_judged() -> None:
    loss = loss_for(preset_config("detrkit-s"), TrainingSettings(iou_aware=True))
    assert isinstance(loss.classification, AlignedClasses)
    assert loss.matcher.classification is loss.classification
