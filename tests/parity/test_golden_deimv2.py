"""DEIMv2 gives the numbers of its authors' code (../shared/golden/modern, README-foundation.md there)."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit import load_official_state_dict, state_dict_as_official
from detrkit.checkpoints.conversion import deimv2_official
from detrkit.checkpoints.conversion.key_mapping import without_step_counters
from detrkit.checkpoints.conversion.official import official_to_detrkit
from detrkit.checkpoints.infer_config import infer_config
from detrkit.config.training import TrainingConfig
from detrkit.losses import realtime
from detrkit.losses.criterion import LossOutput
from detrkit.losses.matcher import MatchingInput, union_of_matches
from detrkit.losses.realtime import RealTimeCriterion
from detrkit.models.build import model_without_memory
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS
from detrkit.postprocess.boxes import top_detections
from detrkit.structures import Batch, Predictions
from detrkit.training.auxiliary_queries import (
    ModelWithAuxiliaryQueries,
    build_auxiliary_queries,
    with_auxiliary_queries,
)
from detrkit.training.build import build_criterion
from detrkit.training.denoising import noised_boxes
from detrkit.training.realtime_recipes import reference_settings
from tests.parameters import slow_except
from tests.parity.deimv2_golden import (
    COPIES,
    SIZES,
    entries,
    golden_batch,
    golden_images,
    golden_model,
    golden_noise,
    golden_weights,
    read_golden,
)

# absolute; README-foundation.md has them: of evaluation, and of training, where batch norms use the batch
FEATURES = 5e-4
EVAL = {"reference": 5e-5, "logits": 2e-3, "boxes": 2e-4}
TRAIN = {"reference": 1e-4, "logits": 4e-3, "boxes": 3e-4}
ORIGINAL_SIZES = ((480, 640), (427, 640))
DISTINCT = 1e-4  # ranks whose scores differ by less from their neighbours' may be swapped
LOSS_NAMES = ("loss_mal", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf")


def close(actual: Tensor, expected: Any, tolerance: float, message: str = "") -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance, err_msg=message)


def check_maps(model: DETR, images: Tensor, golden: Mapping[str, Any]) -> None:
    """Compare feature maps of the backbone and of the encoder."""
    maps = model.backbone(images)
    memory = model.encoder(model.neck(maps, (images.shape[2], images.shape[3])))
    for number, features in enumerate(maps[-model.config.num_backbone_levels :]):
        close(features.mean(1), golden[f"feat{number}_channelmean"], FEATURES)
        close(features[:, :6], golden[f"feat{number}_first6"], FEATURES)
        close(features.mean((2, 3)), golden[f"feat{number}_spatialmean"], FEATURES)
    for level in range(2):
        fused = memory.map_of(level)
        close(fused[:, :8], golden[f"encoder{level}_first8"], FEATURES)
        close(fused.mean((2, 3)), golden[f"encoder{level}_spatialmean"], FEATURES)


def check_selection(predictions: Predictions, golden: Mapping[str, Any]) -> None:
    assert predictions.proposals is not None
    assert predictions.proposals.cells is not None
    assert predictions.proposals.cells.tolist() == golden["enc_topk"].tolist()
    selected = np.take_along_axis(golden["enc_max_logit"], golden["enc_topk"].astype(np.int64), axis=1)
    close(predictions.proposals.class_logits.amax(-1), selected, EVAL["logits"])


@pytest.mark.parametrize("size", slow_except(("atto",), SIZES))
def test_maps_queries_and_predictions_equal_those_of_the_authors(size: str, shared: Path) -> None:
    model, golden = golden_model(shared, size), read_golden(shared, size)
    images = golden_images(shared, golden)
    with torch.inference_mode():
        check_maps(model, images, golden)
        positions: list[Tensor] = []
        model.decoder.layers[0].register_forward_pre_hook(lambda _, args: positions.append(args[1].positions))
        predictions = model(images)
    check_selection(predictions, golden)
    close(predictions.proposals.boxes, golden["ref_points"], EVAL["reference"])
    close(positions[0][:, :6], golden["query_pos"], EVAL["boxes"])
    distributions = predictions.distributions
    assert distributions is not None
    close(distributions.initial_boxes, golden["pre_boxes"], EVAL["boxes"])
    close(distributions.references, golden["ref_initial"], EVAL["boxes"])
    close(distributions.initial_class_logits[:, :12], golden["pre_logits"], EVAL["logits"])
    close(distributions.layer_logits[-1][:, :6].flatten(2), golden["dec_corners_last_first6"], EVAL["logits"])
    close(predictions.class_logits, golden["pred_logits"], EVAL["logits"])
    close(predictions.boxes, golden["pred_boxes"], EVAL["boxes"])
    best = top_detections(predictions, torch.tensor(ORIGINAL_SIZES))
    for image in range(2):
        scores = golden[f"post{image}_scores"]
        close(best.scores[image], scores, EVAL["logits"])
        gaps = np.abs(np.diff(scores, prepend=np.inf, append=-np.inf))
        distinct = np.minimum(gaps[:-1], gaps[1:]) > DISTINCT
        assert distinct.sum() > 50
        assert best.labels[image].numpy()[distinct].tolist() == golden[f"post{image}_labels"][distinct].tolist()
        close(best.boxes[image][distinct], golden[f"post{image}_boxes"][distinct], 640 * EVAL["boxes"])


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_as_many_as_published(size: str, shared: Path) -> None:
    golden, model = read_golden(shared, size), model_without_memory(PRESETS[f"deimv2-{size}"])
    assert sum(one.numel() for one in model.parameters()) == int(golden["parameters"])
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trainable == int(golden["parameters_trainable"])


@pytest.mark.parametrize("size", SIZES)
def test_every_entry_of_the_published_files_is_loaded_and_written(size: str, shared: Path) -> None:
    model, listed = golden_model(shared, size), entries(shared, size)
    written = state_dict_as_official(model)
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == {name: shape for name, shape, _ in listed}
    for name, tensor in golden_weights(shared, size).items():
        assert torch.equal(written[name], tensor), name
    loaded = load_official_state_dict(model, written)
    assert set(loaded.loaded) == set(without_step_counters(model.state_dict()))


@pytest.mark.parametrize("size", SIZES)
def test_configs_follow_from_the_published_entries(size: str, shared: Path) -> None:
    model = golden_model(shared, size)
    written = state_dict_as_official(model)
    fields = deimv2_official.fields_from_state(written)
    assert infer_config(official_to_detrkit(written), **fields) == model.config
    assert infer_config(model.state_dict()) == model.config


@dataclass(frozen=True)
class Golden:
    """A golden file of training, and the model, batch and settings that it was made with."""

    arrays: Mapping[str, Any]
    model: DETR
    batch: Batch
    settings: TrainingConfig
    shared: Path

    @classmethod
    def load(cls, shared: Path, size: str) -> "Golden":
        arrays = read_golden(shared, f"{size}_train")
        model = golden_model(shared, size, num_queries=int(arrays["meta_num_queries"])).train()
        published = {name: value for name, (value, _) in reference_settings(f"deimv2-{size}").items()}
        settings = TrainingConfig(
            **{**published, "padding_invariant": False, "lr_scheduler": "constant", "warmup_steps": 0}
        )
        return cls(arrays, model, golden_batch(shared, arrays), settings, shared)

    def predict(self) -> Predictions:
        generator = build_auxiliary_queries(self.model, self.settings)
        assert generator is not None
        noised = noised_boxes(self.batch, self.settings, self.model.config, 0, golden_noise(self.shared))
        assert noised.copies == int(self.arrays["dn_num_group"]) == COPIES
        predictions: Predictions = ModelWithAuxiliaryQueries(self.model, generator)(self.batch.images, noised=noised)
        return predictions

    def criterion(self, **changes: Any) -> RealTimeCriterion:
        config, settings = self.model.config, self.settings.replace(**changes)
        criterion = with_auxiliary_queries(build_criterion(config, settings), config, settings)
        assert isinstance(criterion, RealTimeCriterion)
        return criterion


TRAINED = slow_except(("atto",), ("atto", "n"))


@pytest.mark.parametrize("size", TRAINED)
def test_maps_and_predictions_of_all_layers_in_training_equal_those_of_the_authors(size: str, shared: Path) -> None:
    golden = Golden.load(shared, size)
    arrays, model = golden.arrays, golden.model
    check_maps(deepcopy(model), golden.batch.images, arrays)
    predictions = golden.predict()
    assert predictions.proposals is not None
    assert predictions.proposals.cells is not None
    assert predictions.proposals.cells.tolist() == arrays["enc_topk"].tolist()
    close(predictions.proposals.boxes, arrays["enc_aux0_boxes"], TRAIN["reference"])
    close(predictions.proposals.class_logits[:, :12], arrays["enc_aux0_logits"], TRAIN["logits"])
    for layer in range(2):
        close(predictions.layer_boxes[layer], arrays[f"aux{layer}_boxes"], TRAIN["boxes"])
        close(predictions.layer_class_logits[layer][:, :12], arrays[f"aux{layer}_logits"], TRAIN["logits"])
    close(predictions.boxes, arrays["pred_boxes"], TRAIN["boxes"])
    close(predictions.class_logits, arrays["pred_logits"], TRAIN["logits"])
    noised = predictions.auxiliary[0].predictions
    close(noised.boxes, arrays["dn_last_boxes"], TRAIN["boxes"])
    close(noised.class_logits[:, :12], arrays["dn_last_logits"], TRAIN["logits"])
    assert noised.distributions is not None
    close(noised.distributions.initial_boxes, arrays["dn_pre_boxes"], TRAIN["boxes"])
    distributions = predictions.distributions
    assert distributions is not None
    close(distributions.layer_logits[-1][:, -6:].flatten(2), arrays["dec_corners_last_first6"], TRAIN["logits"])
    own = arrays["dn_num_split"][0]  # denoising queries come first there
    close(distributions.initial_boxes, arrays["pre_boxes"][:, own:], TRAIN["boxes"])
    close(distributions.initial_class_logits[:, -12:], arrays["pre_logits"], TRAIN["logits"])
    after = state_dict_as_official(model)
    for name in [one for one in arrays if one.startswith("after/")]:
        close(after[name.removeprefix("after/")], arrays[name], FEATURES, name)


def own_pairs(golden: Golden, predictions: Predictions, criterion: RealTimeCriterion) -> Tensor:
    sets = realtime._prediction_sets(predictions)
    inputs = [MatchingInput(sets.logits, sets.boxes, golden.batch.targets)]
    return criterion.criterion.matcher.assign_all(inputs)[0]


def check_matches(golden: Golden, predictions: Predictions, criterion: RealTimeCriterion, kind: str) -> None:
    sets, pairs = realtime._prediction_sets(predictions), own_pairs(golden, predictions, criterion)
    names = {"last": "", "0": "_aux_0", "1": "_aux_1", "pre": "_pre", "enc": "_enc_0"}
    for image in range(2):
        for theirs, own in names.items():
            chosen = pairs[:, (pairs[0] == sets.names.index(own)) & (pairs[1] == image)]
            expected = golden.arrays[f"{kind}_{theirs}_image{image}"].T.tolist()
            assert sorted(chosen[2:].T.tolist()) == sorted(expected), (kind, own)
        cost = f"{kind.replace('match', 'cost')}_last_image{image}"
        if cost in golden.arrays:
            matcher, last = criterion.criterion.matcher, sets.names.index("")
            costs = matcher.costs(sets.logits, sets.boxes, golden.batch.targets)[last, image].detach().numpy()
            has_area = (sets.boxes[last, image, :, 2:] > 0).all(-1).numpy()  # the authors clamp sides of inverted boxes
            expected = golden.arrays[cost]
            assert has_area.sum() > 25
            np.testing.assert_allclose(
                costs[has_area, : expected.shape[1]], expected[has_area], rtol=0, atol=TRAIN["logits"]
            )


def unions(pairs: Tensor) -> Iterator[Tensor]:
    """Unite matchings in all ways: queries that are matched equally often with several objects may have any of them."""
    union = union_of_matches(pairs)
    found, counts = pairs[1:].unique(dim=1, return_counts=True)
    options = []
    for _, image, query, _ in union.T.tolist():
        is_query = (found[0] == image) & (found[1] == query)
        options.append(found[2, is_query & (counts == counts[is_query].max())].tolist())
    for objects in product(*options):
        yield torch.cat([union[:3], torch.tensor(objects)[None]])


def with_union_of_the_authors(
    golden: Golden, predictions: Predictions, criterion: RealTimeCriterion, kind: str, patch: pytest.MonkeyPatch
) -> LossOutput:
    """Compute losses with the union that gives those of the authors, whose sorting breaks ties arbitrarily."""
    choices = list(unions(own_pairs(golden, predictions, criterion)))
    assert len(choices) <= 8
    expected = float(golden.arrays[f"{kind}loss_bbox_pre"])
    for union in choices:
        patch.setattr(realtime, "union_of_matches", lambda _, union=union: union)
        output = criterion(predictions, golden.batch.targets)
        if float(5 * output.losses["loss_bbox_pre"]) == pytest.approx(expected, rel=1e-4):
            return output
    pytest.fail(f"none of {len(choices)} unions has the authors' loss")


def check_losses(golden: Golden, criterion: RealTimeCriterion, output: LossOutput, kind: str) -> None:
    found = {
        name: float(criterion.weight_dict[base] * loss)
        for name, loss in output.losses.items()
        for base in LOSS_NAMES
        if name.startswith(base)
    }
    expected = {name.removeprefix(kind): float(value) for name, value in golden.arrays.items() if name.startswith(kind)}
    assert set(found) == set(expected)
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-3), name


@pytest.mark.parametrize("size", TRAINED)
def test_losses_and_matches_are_those_of_the_authors(size: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden.load(shared, size)
    predictions = golden.predict()
    on_union, criterion = golden.criterion(match_union=True), golden.criterion()
    output = with_union_of_the_authors(golden, predictions, on_union, "loss_uniset/", monkeypatch)
    check_losses(golden, on_union, output, "loss_uniset/")

    check_matches(golden, predictions, criterion, "match")
    output = criterion(predictions, golden.batch.targets)
    check_losses(golden, criterion, output, "loss/")
    assert float(output.total.detach()) == pytest.approx(float(golden.arrays["loss_total"]), rel=1e-3)

    criterion.criterion.matcher.by_quality = True
    monkeypatch.undo()
    check_matches(golden, predictions, criterion, "match_late")
    check_losses(golden, criterion, criterion(predictions, golden.batch.targets), "loss_late/")


@pytest.mark.parametrize("size", TRAINED)
def test_gradients_are_those_of_the_authors(size: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden.load(shared, size)
    predictions, criterion = golden.predict(), golden.criterion()
    if criterion.match_union:
        output = with_union_of_the_authors(golden, predictions, criterion, "loss/", monkeypatch)
    else:
        output = criterion(predictions, golden.batch.targets)
    output.total.backward()
    with_gradients = deepcopy(golden.model)
    with torch.no_grad():
        for copy, parameter in zip(with_gradients.parameters(), golden.model.parameters(), strict=True):
            copy.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    gradients = state_dict_as_official(with_gradients)
    largest = float(golden.arrays["gradnorm_all"])
    names = [name for name in golden.arrays if name.startswith("gradnorm/")]
    assert names
    for name in names:
        found, expected = float(gradients[name.removeprefix("gradnorm/")].norm()), float(golden.arrays[name])
        assert found == pytest.approx(max(expected, 0.0), rel=1e-2, abs=1e-5 * largest), name
