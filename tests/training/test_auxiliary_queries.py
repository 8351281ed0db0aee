"""Training-only queries change the gradients, but neither predictions nor checkpoints."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit import Detector, build_model
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.config.setting_groups import PARTS
from detrkit.config.training import TrainingConfig
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.errors import ConfigError
from detrkit.losses.auxiliary_queries import AuxiliaryCriterion
from detrkit.losses.criterion import SetCriterion
from detrkit.losses.realtime import RealTimeCriterion
from detrkit.models.detr import DETR
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.detection import BoxHead
from detrkit.models.presets import preset_config
from detrkit.structures import Batch, Target
from detrkit.training.auxiliary_queries import (
    AuxiliaryQueryGenerator,
    ModelWithAuxiliaryQueries,
    build_auxiliary_queries,
    with_auxiliary_queries,
)
from detrkit.training.build import build_criterion
from detrkit.training.denoising import NoisedBoxes, noised_boxes
from detrkit.training.train_step import TrainStep
from tests.parameters import slow_except
from tests.rounding import assert_equal_up_to_rounding

CPU = torch.device("cpu")
SMALL = {
    "backbone": "resnet-tiny",
    "num_classes": 3,
    "num_queries": 7,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "hidden_dim": 64,
    "dim_feedforward": 32,
    "dropout": 0.0,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("detr-r50", {}),
    "plain with positions at the input": ("detr-r50", {"query_positions": "input"}),
    "masks": ("detr-tiny", {"mask_head": True}),
    "conditional": ("conditional-detr-r50", {}),
    "dab": ("dab-detr-r50", {}),
    "deformable": ("deformable-detr-r50", {"num_feature_levels": 2}),
    "refined": ("deformable-detr-r50-refine", {"num_feature_levels": 2}),
    "two-stage": ("deformable-detr-r50-two-stage", {"num_feature_levels": 2}),
    "detrkit-s with masks": ("detrkit-s", {"mask_head": True}),
}
AUXILIARY: dict[str, dict[str, Any]] = {
    "denoising": {"denoising": 2},
    "contrastive": {"denoising": 2, "contrastive_denoising": True},
    "groups": {"query_groups": 3},
    "hybrid": {"hybrid_queries": 9, "hybrid_repeats": 3},
    "all": {"denoising": 2, "contrastive_denoising": True, "query_groups": 3, "hybrid_queries": 9, "hybrid_repeats": 3},
}


def small(architecture: str) -> DETR:
    torch.manual_seed(0)
    name, changes = ARCHITECTURES[architecture]
    return build_model(name, **{**SMALL, **changes})


def images(count: int = 3) -> Batch:
    """Images with one object, several, and none."""
    samples = SyntheticShapes(count, 0, SyntheticStyle(size=64, max_objects=4)).draw_all()
    batch = collate(samples)
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    one = Target(batch.targets[0].boxes[:1], batch.targets[0].labels[:1])
    return replace(batch, targets=[one, *batch.targets[1:-1], empty])


def make_train_step(model: DETR, steps: int = 10, **settings: Any) -> TrainStep:
    chosen = TrainingConfig(**{"lr": 1e-3, **settings})
    return TrainStep(model, build_criterion(model.config, chosen), chosen, CPU, steps)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_of_the_model_do_not_depend_on_auxiliary_queries(architecture: str) -> None:
    model, batch = small(architecture).eval(), images()
    settings = TrainingConfig(**AUXILIARY["all"])
    generator = build_auxiliary_queries(model, settings)
    assert generator is not None
    noised = noised_boxes(batch, settings, model.config, 0)
    with torch.no_grad():
        alone = model(batch.images)
        with_auxiliary_queries = ModelWithAuxiliaryQueries(model, generator.eval())(batch.images, noised=noised)
    assert_equal_up_to_rounding(with_auxiliary_queries.layer_boxes, alone.layer_boxes)
    assert_equal_up_to_rounding(with_auxiliary_queries.layer_class_logits, alone.layer_class_logits)
    if alone.masks is not None:
        assert with_auxiliary_queries.masks is not None
        assert_equal_up_to_rounding(with_auxiliary_queries.masks, alone.masks)
    assert [one.kind for one in with_auxiliary_queries.auxiliary] == ["group", "group", "hybrid", "denoising"]
    assert [one.predictions.boxes.shape[1] for one in with_auxiliary_queries.auxiliary] == [7, 7, 9, 2 * noised.size]


@pytest.mark.parametrize("architecture", ["plain", "conditional", "dab", "refined"])
def test_groups_and_padding_are_masked_from_each_other(architecture: str) -> None:
    model, batch = small(architecture).eval(), images()
    settings = TrainingConfig(**AUXILIARY["all"])
    for head in model.heads.modules():
        if isinstance(head, BoxHead):  # as published, some start at zero, and say the same whatever was seen
            torch.nn.init.normal_(head.last.weight)
    with_auxiliary_queries = ModelWithAuxiliaryQueries(
        model, AuxiliaryQueryGenerator(model.config, settings, model.query_source).eval()
    ).eval()
    noised = noised_boxes(batch, settings, model.config, 0)
    assert noised.fillers is not None
    is_filler = noised.fillers.repeat(1, 2)
    first_copy = torch.arange(2 * noised.size) < noised.size
    changed = torch.where((is_filler | first_copy)[..., None], 0.3, noised.boxes)
    with torch.no_grad():
        before = with_auxiliary_queries(batch.images, noised=noised)
        after = with_auxiliary_queries(batch.images, noised=replace(noised, boxes=changed))
    for one, other in zip(before.auxiliary[:3], after.auxiliary[:3], strict=True):
        assert_equal_up_to_rounding(other.predictions.boxes, one.predictions.boxes)
    others = ~(is_filler | first_copy)
    boxes, boxes_after = before.auxiliary[3].predictions.boxes, after.auxiliary[3].predictions.boxes
    assert_equal_up_to_rounding(boxes_after[others], boxes[others])
    seen = first_copy & ~is_filler
    assert (boxes_after[seen] - boxes[seen]).abs().max() > 1e-3  # what was changed did change


def test_noised_boxes_of_two_stage_models_are_encoded_as_the_models_own() -> None:
    """A query of the model and a noised object at the same box have the same positions; their contents are their own."""
    model = small("two-stage")
    generator = build_auxiliary_queries(model, TrainingConfig(denoising=1))
    assert generator is not None
    tokens = torch.randn(1, 9, 64)
    memory = FeatureMaps(tokens, torch.zeros_like(tokens), None, ((3, 3),))
    own = model.query_source(memory)
    noised = NoisedBoxes(own.reference.sigmoid(), torch.arange(7)[None] % 3, 1, None)
    (extra,) = generator(memory, noised, model.query_source)
    torch.testing.assert_close(extra.queries.reference, own.reference, rtol=0, atol=1e-4)
    torch.testing.assert_close(extra.queries.positions, own.positions, rtol=0, atol=1e-4)
    assert torch.equal(extra.queries.content[0, :3], generator.labels.weight)


def test_criterion_has_the_settings_of_auxiliary_queries() -> None:
    detr = preset_config("detr-r50")
    loss = with_auxiliary_queries(SetCriterion(3), detr, TrainingConfig(**AUXILIARY["all"]))
    assert isinstance(loss, AuxiliaryCriterion)
    assert (loss.has_negatives, loss.hybrid_queries, loss.hybrid_repeats) == (True, 9, 3)
    plain = with_auxiliary_queries(SetCriterion(3), detr, TrainingConfig())
    assert isinstance(plain, AuxiliaryCriterion)
    assert (plain.has_negatives, plain.hybrid_queries) == (False, 0)
    settings = TrainingConfig(fgl_loss_coef=0.3, ddf_loss_coef=2.0, cls_loss="mal")
    dfine = preset_config("dfine-n", num_classes=3)
    selected = with_auxiliary_queries(build_criterion(dfine, settings), dfine, settings)
    assert isinstance(selected, RealTimeCriterion)
    weights = selected.weight_dict
    assert [weights[f"loss_{name}"] for name in ("fgl", "ddf", "mal", "bbox", "giou")] == [0.3, 2.0, 1.0, 5.0, 2.0]
    assert selected.criterion.matcher.cost_class == 2.0


@pytest.mark.parametrize("kind", slow_except(("all",), AUXILIARY))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_with_every_kind_of_auxiliary_queries(architecture: str, kind: str) -> None:
    model = small(architecture)
    refines = model.config.with_box_refine and model.config.decoder != "conditional"
    train_step = make_train_step(
        model,
        look_forward_twice=refines,
        cls_loss="align" if model.config.class_scores == "sigmoid" else "default",
        **AUXILIARY[kind],
    )
    assert train_step.auxiliary_queries is not None
    output = train_step.step([images()])
    train_step.finish()
    assert not train_step.skipped_steps
    assert output.total.isfinite()
    assert all(part.isfinite() for part in output.losses.values())
    # DistributedDataParallel waits for the gradient of every weight
    missing = [
        name
        for name, one in train_step.auxiliary_queries.named_parameters()
        if one.grad is None or not one.grad.isfinite().all()
    ]
    assert not missing
    assert any(
        bool(one.grad.abs().sum() > 0) for one in train_step.auxiliary_queries.parameters() if one.grad is not None
    )


@pytest.mark.parametrize("architecture", ["plain", "dab", "two-stage"])
def test_batch_without_objects_gives_finite_gradients(architecture: str) -> None:
    batch = images()
    batch = replace(batch, targets=[batch.targets[-1]] * 3)
    train_step = make_train_step(small(architecture), **AUXILIARY["all"])
    output = train_step.step([batch])
    assert train_step.auxiliary_queries is not None
    assert output.total.isfinite()
    assert float(output.losses["loss_ce_dn"]) == float(output.losses["loss_bbox_dn"]) == 0
    grads = [one.grad for one in train_step.auxiliary_queries.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


def test_checkpoint_contains_no_auxiliary_queries(tmp_path: Path) -> None:
    model, batch = small("plain"), images()
    names = list(model.state_dict())
    train_step = make_train_step(model, ema_decay=0.9, **AUXILIARY["all"])
    for _ in range(2):
        train_step.step([batch])
    best = train_step.best_model.eval()
    assert list(best.state_dict()) == names
    categories = Categories((1, 2, 3), ("a", "b", "c"))
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, Checkpoint(best.state_dict(), best.config, categories, Preprocessing(image_size=64)))
    loaded = Detector.load(str(file)).model
    assert isinstance(loaded, DETR)
    assert loaded.config == preset_config("detr-r50", **SMALL)
    with torch.no_grad():
        found, expected = loaded.eval()(batch.images), best(batch.images)
    assert all(torch.equal(loaded.state_dict()[name], best.state_dict()[name]) for name in names)
    assert_equal_up_to_rounding(found.boxes, expected.boxes)
    assert_equal_up_to_rounding(found.class_logits, expected.class_logits)


def test_auxiliary_queries_are_saved_and_resumed_bit_for_bit() -> None:
    settings = {**AUXILIARY["all"], "ema_decay": 0.9}
    whole = make_train_step(small("dab"), **settings)
    for _ in range(4):
        whole.step([images()])
    first = make_train_step(small("dab"), **settings)
    for _ in range(2):
        first.step([images()])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = make_train_step(small("dab"), **settings)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for _ in range(2):
        second.step([images()])
    for part in ("model", "auxiliary_queries"):
        one, other = whole.state_dict()[part], second.state_dict()[part]
        assert all(torch.equal(one[name], other[name]) for name in one), part
    start = AuxiliaryQueryGenerator(whole.model.config, whole.settings, whole.model.query_source).state_dict()
    assert start.keys() == whole.state_dict()["auxiliary_queries"].keys()


def test_step_without_auxiliary_queries_is_the_plain_criterion() -> None:
    train_step = make_train_step(small("plain"))
    output = train_step.step([images()])
    assert train_step.auxiliary_queries is None
    assert not any(name.endswith(("_dn", "_group", "_hybrid")) for name in output.losses)
    expected = build_criterion(train_step.model.config, train_step.settings)(
        small("plain").train()(images().images), images().targets
    )
    assert_equal_up_to_rounding(output.total, expected.total)


def test_accumulated_batches_with_auxiliary_queries_equal_one_large_batch() -> None:
    batch = images(4)

    def part(chosen: slice) -> Batch:
        return replace(
            batch,
            images=batch.images[chosen],
            padding_mask=batch.padding_mask[chosen],
            targets=batch.targets[chosen],
            image_ids=batch.image_ids[chosen],
            sizes=batch.sizes[chosen],
            original_sizes=batch.original_sizes[chosen],
        )

    whole, halves = (
        make_train_step(small("plain"), **AUXILIARY["all"]),
        make_train_step(small("plain"), **AUXILIARY["all"]),
    )
    output, added = whole.step([batch]), halves.step([part(slice(0, 2)), part(slice(2, 4))])
    for name in (name for name in output.losses if name.startswith("loss")):
        assert_equal_up_to_rounding(added.losses[name], output.losses[name])
    assert_equal_up_to_rounding(added.total, output.total)


@pytest.mark.parametrize("architecture", ["plain", "dab", "refined"])
def test_activation_checkpointing_gives_the_same_gradients_with_auxiliary_queries(architecture: str) -> None:
    kept, again = (
        make_train_step(small(architecture), activation_checkpointing=on, **AUXILIARY["all"]) for on in (False, True)
    )
    for train_step in (kept, again):
        train_step.train()
        train_step.step([images()])
    assert kept.auxiliary_queries is not None
    assert again.auxiliary_queries is not None
    for (name, one), other in zip(
        kept.auxiliary_queries.named_parameters(), again.auxiliary_queries.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_look_forward_twice_gives_the_previous_layer_a_gradient() -> None:
    def gradient(twice: bool) -> torch.Tensor:
        model = small("refined")
        train_step = make_train_step(model, look_forward_twice=twice)
        predictions = train_step.model(images().images)
        boxes: torch.Tensor = predictions.layer_boxes[-1].sum()
        head = model.heads.box_head_of(0)
        (found,) = torch.autograd.grad(boxes, [list(head.parameters())[-1]], allow_unused=True)
        return torch.zeros(4) if found is None else found

    assert not gradient(twice=False).any()
    assert gradient(twice=True).abs().min() > 0


def test_weight_decay_and_learning_rates_of_auxiliary_queries_follow_the_model() -> None:
    settings = {"weight_decay": 0.1, "decay_norms": False, "offset_lr_factor": 0.1, **AUXILIARY["all"]}
    train_step = make_train_step(small("deformable"), **settings)
    assert train_step.auxiliary_queries is not None
    of = {id(one): group for group in train_step.optimizer.param_groups for one in group["params"]}
    named = {name: of[id(one)] for name, one in train_step.auxiliary_queries.named_parameters()}
    assert named["groups.1.weight"]["weight_decay"] == named["hybrid.weight"]["weight_decay"] == 0
    assert named["labels.weight"]["weight_decay"] == 0.1
    assert named["groups.0.point_head.weight"]["initial_lr"] == pytest.approx(1e-4)
    assert named["position_head.0.weight"]["initial_lr"] == pytest.approx(1e-3)


def test_frozen_model_with_auxiliary_queries_is_rejected() -> None:
    parts = [part for part in PARTS if part != "mask_head"]
    with pytest.raises(ConfigError, match="nothing is left to train"):
        make_train_step(small("plain"), freeze=parts, query_groups=2)
