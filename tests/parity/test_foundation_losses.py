"""Losses of LW-DETR and RF-DETR against golden numbers of the authors' code: ../shared/golden/modern."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit.checkpoints.conversion.official import official_from_detrkit
from detrkit.config.training import LossConfig, TrainingConfig
from detrkit.losses.auxiliary_queries import AuxiliaryCriterion
from detrkit.losses.criterion import base_name, is_loss
from detrkit.losses.matcher import Matches
from detrkit.models.detr import DETR
from detrkit.structures import Predictions, Target
from detrkit.training.auxiliary_queries import with_auxiliary_queries
from detrkit.training.build import build_criterion
from tests.parameters import slow_except
from tests.parity.foundation_golden import (
    PRESET_OF_FILE,
    formula,
    golden_images,
    golden_model,
    published_files,
    read_golden,
)

NUM_CLASSES, COUNTS = 90, (7, 3)
TRAINED = ("lwdetr_tiny_train", "rfdetr_nano_train")
RELATIVE, GRADIENT, SMALL_GRADIENT = 1e-4, 2e-3, 1e-6  # of README-foundation.md


def targets(shared: Path) -> list[Target]:
    drawn = [formula(shared).target(f"target{number}", count, NUM_CLASSES) for number, count in enumerate(COUNTS)]
    return [Target(torch.from_numpy(one["boxes"]), torch.from_numpy(one["labels"])) for one in drawn]


def criterion_of(model: DETR) -> AuxiliaryCriterion:
    settings = TrainingConfig(loss=LossConfig(cls_loss="ia_bce", cls_loss_coef=1.0))
    criterion = with_auxiliary_queries(build_criterion(model.config, settings), model.config, settings)
    assert isinstance(criterion, AuxiliaryCriterion)
    return criterion


def pairs_of(matches: Matches, layer: int, image: int) -> list[list[int]]:
    is_own = (matches.layers == layer) & (matches.images == image)
    return torch.stack([matches.queries[is_own], matches.objects[is_own]]).tolist()


@pytest.mark.parametrize("name", slow_except(("lwdetr_tiny",), [one for one in PRESET_OF_FILE if "seg" not in one]))
def test_losses_and_matches_of_one_group_equal_those_of_the_authors(name: str, shared: Path) -> None:
    model, golden = golden_model(shared, name), read_golden(shared, name)
    objects = targets(shared)
    with torch.inference_mode():
        predictions = model(golden_images(shared, name))
        output = criterion_of(model)(predictions, objects)
    last = len(predictions.layer_boxes) - 1
    for image in range(2):
        for layer in range(last + 1):
            expected = golden[f"match_{'last' if layer == last else layer}_image{image}"]
            assert pairs_of(output.matches, layer, image) == expected.tolist()
    losses = {entry: golden[f"loss/{entry}"] for entry in output.losses if is_loss(entry)}
    assert {f"loss/{entry}" for entry in losses} == {entry for entry in golden if entry.startswith("loss/loss_")}
    for entry, expected in losses.items():
        np.testing.assert_allclose(output.losses[entry], expected, rtol=RELATIVE, err_msg=entry)
    np.testing.assert_allclose(output.total, golden["loss_total"], rtol=RELATIVE)
    if "cost_last_image0" in golden:
        _check_costs(model, predictions, objects, golden)


def _check_costs(model: DETR, predictions: Predictions, objects: list[Target], golden: object) -> None:
    matcher = criterion_of(model).criterion.matcher
    costs = matcher.costs(predictions.layer_class_logits[-1:], predictions.layer_boxes[-1:], objects)
    for image, count in enumerate(COUNTS):
        np.testing.assert_allclose(costs[0, image, :, :count], golden[f"cost_last_image{image}"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", slow_except((), TRAINED))
def test_losses_and_gradients_of_all_groups_equal_those_of_the_authors(name: str, shared: Path) -> None:
    model, golden = golden_model(shared, name), read_golden(shared, name)
    predictions = model(golden_images(shared, name))
    output = criterion_of(model)(predictions, targets(shared))
    groups = 1 + len(predictions.auxiliary)
    for entry in (one for one in output.losses if is_loss(one) and "_group" not in one):
        base = base_name(entry)
        others = output.losses[f"{base}_group{entry[len(base) :]}"]
        mean = (output.losses[entry] + (groups - 1) * others) / groups
        np.testing.assert_allclose(mean, golden[f"loss/{entry}"], rtol=RELATIVE, err_msg=entry)
    np.testing.assert_allclose(output.total.detach(), golden["loss_total"], rtol=RELATIVE)

    output.total.backward()
    check_gradients(model, golden, shared, name)


def check_gradients(model: DETR, golden: Mapping[str, Any], shared: Path, name: str) -> None:
    """Compare the norms of the gradients of all entries that the golden numbers have."""
    gradients = {
        entry: torch.zeros_like(one) if one.grad is None else one.grad for entry, one in model.named_parameters()
    }
    state = {**{entry: torch.zeros_like(one) for entry, one in model.state_dict().items()}, **gradients}
    by_name = official_from_detrkit(state, model.config)
    published = published_files(shared, name.partition("_")[0])[PRESET_OF_FILE[name.removesuffix("_train")][1]]["state"]
    total = float(golden["gradnorm_all"])
    names = [entry for entry, _, _ in published if f"gradnorm/{entry}" in golden]
    assert names
    for entry in names:
        expected = max(0.0, float(golden[f"gradnorm/{entry}"]))
        tolerance = max(GRADIENT * expected, SMALL_GRADIENT * total)
        assert abs(float(by_name[entry].norm()) - expected) <= tolerance, entry
