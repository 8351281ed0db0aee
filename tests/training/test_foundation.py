"""LW-DETR and RF-DETR are trained: all groups of queries, exact accumulation, resumed runs; the result predicts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import detrkit
from detrkit.checkpoints.sources import WEIGHTS_FILE
from detrkit.config.training import TrainingConfig
from detrkit.data.batching import collate
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.models.backbones.vit import ViTBackbone
from detrkit.structures import Batch, Target
from detrkit.training.build import build_criterion
from detrkit.training.train_step import TrainStep
from tests.api.shapes import StopAfter
from tests.datasets import write_coco
from tests.models.vit_models import SMALL, small_vit
from tests.rounding import assert_equal_up_to_rounding


def make_train_step(preset: str, changes: dict[str, Any] | None = None, **settings: Any) -> TrainStep:
    model = small_vit(preset, **(changes or {}))
    chosen = TrainingConfig(cls_loss="ia_bce", cls_loss_coef=1.0, lr=1e-3, backbone_lr=1e-3, **settings)
    train_step = TrainStep(model, build_criterion(model.config, chosen), chosen, torch.device("cpu"), 10)
    train_step.train()
    return train_step


def photos(count: int = 4) -> Batch:
    return collate(SyntheticShapes(count, 0, SyntheticStyle(size=64, max_objects=4)).draw_all())


def gradients(train_step: TrainStep) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in train_step.model.named_parameters() if one.grad is not None}


def assert_equal_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    largest = max(float(one.abs().max()) for one in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("preset", ["lwdetr-tiny", "rfdetr-seg-nano"])
@pytest.mark.parametrize("has_objects", [True, False])
def test_every_trained_weight_gets_a_gradient(preset: str, has_objects: bool) -> None:
    """DistributedDataParallel waits for all of them."""
    train_step, batch = make_train_step(preset), photos(2)
    if not has_objects:
        nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 64, dtype=torch.bool))
        batch = replace(batch, targets=[nothing] * 2)
    assert train_step.step([batch]).total.isfinite()
    trained = {name for name, one in train_step.model.named_parameters() if one.requires_grad}
    assert trained == gradients(train_step).keys()
    unused = "backbone.class_position" if preset == "lwdetr-tiny" else "backbone.mask_token"
    assert unused not in trained


def test_accumulated_batches_with_groups_equal_one_large_batch() -> None:
    whole = photos()
    halves = [
        Batch(
            whole.images[part], whole.padding_mask[part], whole.targets[part], whole.image_ids[part], whole.sizes[part],
            whole.original_sizes[part],
        )
        for part in (slice(0, 1), slice(1, 4))
    ]  # fmt: skip
    apart, together = make_train_step("rfdetr-nano"), make_train_step("rfdetr-nano")
    outputs = apart.step(halves), together.step([whole])
    assert_equal_up_to_rounding(outputs[0].total, outputs[1].total)
    for name in ("loss_ce", "loss_bbox_0", "loss_giou_enc"):
        assert_equal_up_to_rounding(outputs[0].losses[name], outputs[1].losses[name])
    assert_equal_gradients(gradients(apart), gradients(together))


@pytest.mark.parametrize("preset", ["lwdetr-tiny", "rfdetr-seg-nano"])
def test_activation_checkpointing_changes_no_gradient(preset: str) -> None:
    found = []
    for enabled in (False, True):
        train_step = make_train_step(preset, {"drop_path": 0.5}, activation_checkpointing=enabled)
        torch.manual_seed(1)  # of stochastic depth
        train_step.step([photos(3)])
        found.append(gradients(train_step))
    assert_equal_gradients(found[1], found[0])


def test_batch_with_nan_leaves_the_statistics_of_the_projector() -> None:
    train_step, batch = make_train_step("lwdetr-tiny"), photos(2)
    train_step.step([batch])
    before = {name: buffer.clone() for name, buffer in train_step.model.named_buffers() if "running" in name}
    train_step.step([replace(batch, images=batch.images * float("nan"))])
    assert before
    for name, buffer in train_step.model.named_buffers():
        assert name not in before or torch.equal(buffer, before[name]), name


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "photos", 6, 2)
    short = {"steps": 4, "batch_size": 2, "image_size": 64, "workers": 0, "gradient_accumulation": 1, "ema_decay": 0.9}

    def train(path: Path, *callbacks: detrkit.Callback) -> detrkit.TrainResult:
        model = {**SMALL, "drop_path": 0.3}
        return detrkit.train(
            data,
            "rfdetr-nano",
            output=path,
            recipe="reference",
            callbacks=callbacks,
            loggers=["jsonl"],
            **short,
            **model,
        )

    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    assert train(whole).is_complete
    assert not train(interrupted, StopAfter(2)).is_complete
    torch.manual_seed(123)
    detrkit.resume(interrupted, loggers=["jsonl"])
    expected, resumed = (load_file(folder / "last" / WEIGHTS_FILE) for folder in (whole, interrupted))
    assert expected.keys() == resumed.keys()
    assert [entry for entry in expected if not torch.equal(expected[entry], resumed[entry])] == []


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["lwdetr-tiny", "rfdetr-seg-nano"])
def test_a_run_trains_all_groups_and_its_detector_predicts(preset: str, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    for file in (data / "annotations").iterdir():
        document = json.loads(file.read_text())
        for entry in document["annotations"]:
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        file.write_text(json.dumps(document))
    result = detrkit.train(data, model=preset, output=tmp_path / "run", steps=2, batch_size=2, image_size=64, **SMALL)
    assert result.metrics
    assert ("mask_ap" in result.metrics) == detrkit.build_model(preset, **SMALL).config.mask_head
    detector = detrkit.Detector.load(tmp_path / "run")
    assert detector.model.config.group_detr == 2
    detections = detector.predict(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8), threshold=0.0)
    assert len(detections) == detector.model.config.detections_per_image


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.4] * 5),
        ("early", [0.4, 0.4, 0, 0, 0]),
        ("early_linear", [0.4, 0.2, 0, 0, 0]),
        ("late", [0, 0, 0.4, 0.4, 0.4]),
    ],
)
def test_stochastic_depth_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    train_step = make_train_step(
        "lwdetr-tiny", {"drop_path": 0.4}, drop_path_schedule=schedule, drop_path_cutoff=0.2
    )  # of 10 steps
    backbone, batch, rates = train_step.model.backbone, photos(1), []
    assert isinstance(backbone, ViTBackbone)
    for _ in expected:
        train_step.step([batch])
        rates.append(backbone.blocks[-1].drop_path)
    assert rates == pytest.approx(expected)
    assert train_step.model.config.drop_path == 0.4
