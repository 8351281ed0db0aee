"""Losses of RT-DETR, D-FINE and DEIM against golden numbers of the authors' code: ../shared/golden/modern."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detrkit import build_model, load_official_state_dict, state_dict_as_official
from detrkit.config.training import TrainingConfig
from detrkit.losses import realtime
from detrkit.losses.criterion import LossOutput
from detrkit.losses.matcher import MatchingInput, union_of_matches
from detrkit.losses.realtime import RealTimeCriterion
from detrkit.models.detr import DETR
from detrkit.models.queries.queries import QueryGroup
from detrkit.structures import Batch, Predictions, Target
from detrkit.training import train_step as train_step_module
from detrkit.training.auxiliary_queries import (
    ModelWithAuxiliaryQueries,
    build_auxiliary_queries,
    with_auxiliary_queries,
)
from detrkit.training.build import build_criterion
from detrkit.training.denoising import ImageNoise, NoisedBoxes, noised_boxes
from detrkit.training.realtime_recipes import reference_settings
from detrkit.training.train_step import TrainStep
from tests.parameters import slow_except
from tests.parity.modern_golden import PRESET_OF_FILE, formula, golden_images, golden_weights, read_golden

# discrete sampling is trained as a fine-tuning of the bilinear one, without golden losses
PRESETS = {name: preset for name, preset in PRESET_OF_FILE.items() if name != "rtdetrv2_r18vd_dsp"}
FILES = slow_except(("dfine_n",), PRESETS)
COUNTS, COPIES = [7, 3], 14
LOSS_NAMES = ("loss_vfl", "loss_mal", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf")


@dataclass(frozen=True)
class Golden:
    """A golden file, and the model, batch and settings that it was made with."""

    arrays: Any
    model: DETR
    batch: Batch
    settings: TrainingConfig
    noise: list[ImageNoise]

    @property
    def noised(self) -> NoisedBoxes:
        return noised_boxes(self.batch, self.settings, self.model.config, 0, self.noise)

    def predict(self) -> Predictions:
        generator = build_auxiliary_queries(self.model, self.settings)
        assert generator is not None
        predictions: Predictions = ModelWithAuxiliaryQueries(self.model, generator)(
            self.batch.images, noised=self.noised
        )
        return predictions

    def criterion(self) -> RealTimeCriterion:
        config = self.model.config
        criterion = with_auxiliary_queries(build_criterion(config, self.settings), config, self.settings)
        assert isinstance(criterion, RealTimeCriterion)
        return criterion


def load(shared: Path, name: str) -> Golden:
    """Build the model of a golden file in training mode, apart from the statistics of batch norm."""
    torch.manual_seed(0)
    model = build_model(PRESETS[name])
    weights = golden_weights(shared, name)
    load_official_state_dict(
        model, {entry: weights.get(entry, value) for entry, value in state_dict_as_official(model).items()}
    )
    keep_statistics(model.train())
    draws = formula(shared)
    targets = []
    for number, count in enumerate(COUNTS):
        drawn = draws.target(f"target{number}", count)
        targets.append(Target(torch.from_numpy(drawn["boxes"]), torch.from_numpy(drawn["labels"])))
    images, sizes = golden_images(shared), [(320, 320)] * 2
    batch = Batch(images, torch.zeros(2, 320, 320, dtype=torch.bool), targets, [0, 1], sizes, sizes)
    published = {setting: value for setting, (value, _) in reference_settings(PRESETS[name]).items()}
    settings = TrainingConfig(
        **{**published, "padding_invariant": False, "lr_scheduler": "constant", "warmup_steps": 0, "multi_scale": 0}
    )
    return Golden(read_golden(shared, name), model, batch, settings, golden_noise(shared))


def keep_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def golden_noise(shared: Path) -> list[ImageNoise]:
    """Return the noise of the golden files by image, in the order of `draw`."""
    drawn = formula(shared).denoising_noise("dn", 2, 2 * COPIES * max(COUNTS))

    def arranged(name: str) -> Tensor:
        """(image, object, side, copy, ...)"""
        values = torch.from_numpy(drawn[name])
        return values.unflatten(1, (COPIES, 2, max(COUNTS))).transpose(1, 3)

    part = arranged("part") + torch.tensor([0.0, 1.0])[None, None, :, None, None]
    shares = (2 * arranged("sign") - 1) * part
    labels = torch.where(arranged("label_uniform") < 0.25, arranged("new_label").long(), -1)
    return [(shares[image, :count], labels[image, :count]) for image, count in enumerate(COUNTS)]


def rows(pairs: np.ndarray) -> list[list[int]]:
    """Return pairs of a golden array, queries and objects, in the order of the queries."""
    return sorted(pairs.T.tolist() if pairs.shape[0] == 2 else pairs.tolist())


def v1_name(name: str, num_layers: int, file: str) -> str:
    """Return the name of a loss in RT-DETR (v1), which counts the encoder as a further auxiliary layer."""
    return name.replace("_enc_0", f"_aux_{num_layers - 1}") if file.startswith("rtdetr_") else name


def weighted(criterion: RealTimeCriterion, output: LossOutput) -> dict[str, float]:
    return {
        name: float(criterion.weight_dict[base] * loss)
        for name, loss in output.losses.items()
        for base in LOSS_NAMES
        if name.startswith(base)
    }


@pytest.mark.parametrize("name", PRESETS)
def test_denoising_queries_are_those_of_the_authors(shared: Path, name: str) -> None:
    arrays, noise = read_golden(shared, name), golden_noise(shared)
    published = {setting: value for setting, (value, _) in reference_settings(PRESETS[name]).items()}
    config = build_config(PRESETS[name])
    targets = [Target(torch.rand(count, 4), torch.zeros(count, dtype=torch.int64)) for count in COUNTS]
    for number, count in enumerate(COUNTS):
        drawn = formula(shared).target(f"target{number}", count)
        targets[number] = Target(torch.from_numpy(drawn["boxes"]), torch.from_numpy(drawn["labels"]))
    sizes = [(8, 8)] * 2
    batch = Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool), targets, [0, 1], sizes, sizes)
    noised = noised_boxes(batch, TrainingConfig(**published), config, 0, noise)
    assert noised.copies == int(arrays["dn_num_group"])
    assert torch.equal(noised.labels, torch.from_numpy(arrays["dn_input_class"]).long())
    boxes = noised.boxes.clamp(1e-5, 1 - 1e-5)
    torch.testing.assert_close(boxes, torch.from_numpy(arrays["dn_input_boxes"]), atol=1e-6, rtol=0)


def build_config(preset: str) -> Any:
    from detrkit.models.presets import preset_config

    return preset_config(preset)


def test_denoising_mask_is_that_of_the_authors(shared: Path) -> None:
    arrays = read_golden(shared, "rtdetr_r18vd")
    own, size = 300, 2 * max(COUNTS)
    group = QueryGroup(size, COPIES, attends_to_own=True)
    number = torch.arange(group.num_queries) // size
    hidden = torch.zeros(own + group.num_queries, own + group.num_queries, dtype=torch.bool)
    hidden[: group.num_queries, : group.num_queries] = number[:, None] != number  # published: denoising queries first
    hidden[group.num_queries :, : group.num_queries] = True
    expected = np.unpackbits(arrays["dn_mask_packed"], count=hidden.numel()).reshape(hidden.shape).astype(bool)
    assert np.array_equal(hidden.numpy(), expected)


@pytest.mark.parametrize("name", FILES)
def test_losses_matches_and_gradients_are_those_of_the_authors(shared: Path, name: str) -> None:
    golden = load(shared, name)
    arrays, criterion = golden.arrays, golden.criterion()
    predictions = golden.predict()
    check_matches(golden, predictions, criterion)
    output = criterion(predictions, golden.batch.targets)
    num_layers, losses = len(predictions.layer_boxes), weighted(criterion, output)
    expected = {entry.removeprefix("loss/"): float(arrays[entry]) for entry in arrays if entry.startswith("loss/")}
    stable = {entry.removeprefix("loss_stable/"): entry for entry in arrays if entry.startswith("loss_stable/")}
    expected |= {loss: float(arrays[entry]) for loss, entry in stable.items()}
    named = {v1_name(loss, num_layers, name): value for loss, value in losses.items()}
    # the last layer teaches itself nothing; features of a teacher are not distilled
    absent = set(expected) - set(named)
    assert all(loss == f"loss_ddf_dn_{num_layers - 1}" or loss.startswith("loss_distill") for loss in absent)
    assert set(named) <= set(expected)
    for loss, value in named.items():
        assert value == pytest.approx(expected[loss], rel=1e-4), loss
    if not stable:
        check_gradients(golden)


def check_matches(golden: Golden, predictions: Predictions, criterion: RealTimeCriterion) -> None:
    """Compare the matching of every set, and their union, in the authors' order: the final layer, then the others."""
    sets = realtime._prediction_sets(predictions)
    pairs = criterion.criterion.matcher.assign_all([MatchingInput(sets.logits, sets.boxes, golden.batch.targets)])[0]
    names = ["", *(name for name in sets.names if name)]
    for image in range(len(COUNTS)):
        for number, name in enumerate(names):
            chosen = pairs[:, (pairs[0] == sets.names.index(name)) & (pairs[1] == image)]
            assert sorted(chosen[2:].T.tolist()) == rows(golden.arrays[f"match{number}_image{image}"]), name
        stable = f"match_go_stable_image{image}"
        entry = stable if stable in golden.arrays else f"match_go_image{image}"
        if entry in golden.arrays:
            union = union_of_matches(pairs)
            chosen = union[:, union[1] == image]
            assert sorted(chosen[2:].T.tolist()) == rows(golden.arrays[entry])


def check_gradients(golden: Golden) -> None:
    """Compare gradient norms in float64: each is as far from the authors' in float32 as their own float64 result.

    In float32 both sides round, gradients of norms and of factors of all activations of a layer by up to 0.9 %.
    """
    golden = in_float64(golden)
    with pytest.MonkeyPatch.context() as patch:
        convert = Tensor.float
        patch.setattr(Tensor, "float", lambda tensor: tensor if tensor.dtype == torch.float64 else convert(tensor))
        golden.criterion()(golden.predict(), golden.batch.targets).total.backward()
    with_gradients = deepcopy(golden.model)
    with torch.no_grad():
        for copy, parameter in zip(with_gradients.parameters(), golden.model.parameters(), strict=True):
            copy.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    gradients = state_dict_as_official(with_gradients)
    rounding = dict(zip(golden.arrays["float64_names"], golden.arrays["float64_difference"], strict=True))
    tolerance = 1.25 * float(rounding["gradnorm_values"])  # the noise of the boxes stays in float32
    for name, value in zip(golden.arrays["gradnorm_names"], golden.arrays["gradnorm_values"], strict=True):
        if "feature_projector" not in str(name):
            found = float(gradients[str(name)].norm())
            assert found == pytest.approx(float(value), rel=1e-6, abs=tolerance), name


def in_float64(golden: Golden) -> Golden:
    targets = [replace(target, boxes=target.boxes.double()) for target in golden.batch.targets]
    batch = replace(golden.batch, images=golden.batch.images.double(), targets=targets)
    return replace(golden, model=deepcopy(golden.model).double(), batch=batch)


@contextmanager
def fixed_noise(golden: Golden) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step_module, "noised_boxes", lambda *_: golden.noised)
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "third"),
    # relative differences allowed in the first two steps and in the third. Adam's first steps amplify rounding of
    # gradients: with one and with two threads, the third step of D-FINE here differs by 0.6 %. In dfine_n and
    # deim_dfine_s, the authors break ties of the union in another order.
    [
        ("rtdetr_r18vd", 1e-3, 1e-3),
        ("rtdetrv2_r18vd", 1e-3, 1e-3),
        ("dfine_s", 1e-3, 2e-2),
        ("dfine_n", 1e-2, 2e-2),
        ("deim_dfine_s", 1e-2, 2e-2),
    ],
)
def test_three_training_steps_are_those_of_the_authors(shared: Path, name: str, first: float, third: float) -> None:
    golden = load(shared, name)
    model = golden.model
    loss = build_criterion(model.config, golden.settings)
    train_step = TrainStep(model, loss, golden.settings, torch.device("cpu"), 1000)
    keep_statistics(model)
    norms: list[float] = []
    totals = []
    with fixed_noise(golden), pytest.MonkeyPatch.context() as patch:
        compute = torch.nn.utils.get_total_norm
        patch.setattr(
            torch.nn.utils,
            "get_total_norm",
            lambda grads: norms.append(float(compute(grads).detach())) or compute(grads),
        )
        totals = [float(train_step.step([golden.batch]).total.detach()) for _ in range(3)]
    for values, entry in ((totals, "trajectory_loss"), (norms, "trajectory_gradnorm")):
        expected = golden.arrays[entry].tolist()
        assert values[:2] == pytest.approx(expected[:2], rel=first), entry
        assert values[2] == pytest.approx(expected[2], rel=third), entry
    assert train_step.average is not None
    averaged = train_step.average.module
    for trained, entry in ((model, "trajectory_logits_first16"), (averaged, "trajectory_ema_logits_first16")):
        with torch.no_grad():
            predictions = trained.eval()(golden.batch.images)
        logits = torch.from_numpy(golden.arrays[entry])
        # near-ties of the selection may be in another order, and their rows with them
        differences = (predictions.class_logits[:, :16] - logits).abs()
        assert float(differences.median()) < 10 * third, entry
