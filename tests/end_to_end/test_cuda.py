"""The CUDA path without a GPU: training, prediction, evaluation and explanation on a simulated device (`fake_cuda`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.synchronizations import architectures, count_transfers

import detrkit
from detrkit import Detector, build_model
from detrkit.config.model import ModelConfig
from detrkit.config.training import TrainingConfig
from detrkit.explain.document import page_document
from detrkit.inference.predict import predict_files
from detrkit.postprocess.panoptic import Style
from tests.datasets import write_coco, write_panoptic, write_whole_photos
from tests.fake_cuda import Transfers, fake_cuda
from tests.parameters import slow_except

ARCHITECTURES = dict(architectures())
FAST = ("deformable-detr-r50-two-stage", "dfine-n")
PRECISIONS = ("float32", "bfloat16", "float16")  # of architectures in turn: the copies do not depend on it
IMAGES = [np.zeros((48, 64, 3), np.uint8), np.full((64, 40, 3), 9, np.uint8)]
SMALL: dict[str, Any] = {"num_queries": 8, "decoder_layers": 1, "hidden_dim": 64}


def detector(name: str = "detr-tiny", **changes: Any) -> Detector:
    precision, categories = changes.pop("precision", "float32"), changes.pop("categories", None)
    model = build_model(name, **{"num_classes": 4} | SMALL | changes)
    return Detector.from_model(model, categories, image_size=64, device="cuda", precision=precision)


def assert_only_the_costs_are_waited_for(transfers: Transfers) -> None:
    """The second copy tells the host, one step later, whether the step was finite."""
    assert len(transfers.to_host) <= 2, transfers.to_host
    waits = [one.place.partition(":")[0] for one in transfers.to_host if one.blocks]
    assert waits == ["losses/matcher.py"], transfers.to_host
    assert not [one for one in transfers.to_device if one.blocks]


@pytest.mark.parametrize("name", slow_except(FAST, ARCHITECTURES))
def test_training_step_copies_to_the_host_at_most_twice(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    precision = PRECISIONS[list(ARCHITECTURES).index(name) % 3]
    settings = TrainingConfig(clip_grad_norm=0.1, ema_decay=0.9, precision=precision)
    # a second step, from which on the moving average averages, is the same for all
    transfers = count_transfers(ARCHITECTURES[name], settings, steps=2 if name == "detrkit-s" else 1)
    waits = sum(one.blocks for one in transfers.to_host)
    record_property("summary", f"{name}: {len(transfers.to_host)} copies to the host in a training step, {waits} waits")
    assert_only_the_costs_are_waited_for(transfers)


def two_stage() -> ModelConfig:
    return ARCHITECTURES["detrkit-s"].model_copy(update={"num_queries": 8})


@pytest.mark.parametrize(
    "settings",
    [
        {"denoising": 2, "contrastive_denoising": True, "cls_loss": "align", "look_forward_twice": True},
        {"query_groups": 2, "activation_checkpointing": True, "hybrid_queries": 12},
    ],
)
def test_training_only_queries_are_matched_with_the_same_copy(settings: dict[str, Any]) -> None:
    assert_only_the_costs_are_waited_for(count_transfers(two_stage(), TrainingConfig(**settings), steps=1))


def test_run_trains_evaluates_and_saves(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "photos", 4, 2)
    short = {"epochs": 1, "batch_size": 2, "image_size": 64, "workers": 0, "log_every": 1, "encoder_layers": 1}
    with fake_cuda():
        result = detrkit.train(folder, "detr-tiny", output=tmp_path / "run", device="cuda", **SMALL | short)
    assert result.config.training.hardware.device == "cuda"
    assert (tmp_path / "run" / "last" / "state.pt").is_file()


@pytest.mark.parametrize(
    ("name", "changes"),
    [("detr-tiny", {}), ("detr-tiny", {"precision": "auto"}), ("detrkit-s", {"precision": "bfloat16"})],
)
def test_detections_of_a_batch_are_one_copy(name: str, changes: dict[str, Any]) -> None:
    with fake_cuda() as transfers:
        model = detector(name, **changes)
        transfers.clear()
        detections = model.predict(IMAGES, threshold=0.0)
    assert [len(one) > 0 for one in detections] == [True, True]
    assert detections[0].boxes.device.type == "cpu"
    copies = [one.place for one in transfers.to_host if one.place.startswith("postprocess/")]
    assert len(copies) == 1
    assert changes.get("precision") == "auto" or len(transfers.to_host) == 1


def test_automatic_precision_compares_on_the_device() -> None:
    with fake_cuda(truth=True):  # detections are found, and are the same in both precisions
        automatic = detector(precision="auto")
        for _ in range(4):
            automatic.predict(IMAGES, threshold=0.0)
    assert automatic.engine.precision == "bfloat16"


def test_masks_and_segments_of_all_styles() -> None:
    styles: tuple[Style, ...] = ("corrected", "reference", "huggingface")
    with fake_cuda():
        panoptic = detector(mask_head=True, dilation=False)
        detections = panoptic.predict(IMAGES, threshold=0.0)
        segments = [panoptic.predict_segments(IMAGES, threshold=0.1, style=style) for style in styles]
    assert [tuple(one.masks.shape[1:]) for one in detections if one.masks is not None] == [(48, 64), (64, 40)]
    assert [[tuple(one.ids.shape) for one in of_style] for of_style in segments] == 3 * [[(48, 64), (64, 40)]]


def test_small_segments_are_dropped_on_the_device() -> None:
    with fake_cuda(truth=True):
        segments = detector(mask_head=True, dilation=False).predict_segments(IMAGES[0], threshold=0.1)
    assert segments.ids.device.type == "cpu"


def test_attention_explanation_and_stream() -> None:
    with fake_cuda():
        for name, kind in (("detr-tiny", "decoder_cross"), ("detrkit-s", "decoder_cross")):
            model = detector(name)
            assert model.attention(IMAGES[0]).maps(kind, layer=-1).shape[0] > 0
        assert detrkit.explain(model, IMAGES[0], threshold=0.1).threshold == 0.1
        assert len(list(model.stream(IMAGES, batch_size=2, workers=2))) == 2


@pytest.mark.parametrize("name", ["dfine-n", "rtdetrv2-s-dsp", "detrkit-s"])
def test_explanation_of_selected_queries_sampling_points_and_edges(name: str) -> None:
    with fake_cuda():
        explanation = detrkit.explain(detector(name, dim_feedforward=64), IMAGES[0], threshold=0)
        assert len(explanation.selected_cells().levels) == 8
        assert explanation.sampling_points([2]).reference_boxes is not None
        if name == "dfine-n":
            assert explanation.edge_distributions(3).boxes.shape == (1, 4)
        page_document(explanation)


def test_evaluation_and_prediction_of_files(tmp_path: Path) -> None:
    photos, weights = write_whole_photos(tmp_path)
    with fake_cuda() as transfers:
        assert detrkit.evaluate(weights, photos, device="auto").ap >= 0
        assert len([one for one in transfers.to_host if one.place.startswith("postprocess/boxes")]) == 3  # images
        result = predict_files(str(weights), [photos / "val2017"], output=tmp_path / "predictions", device="cuda")
    assert len(list((tmp_path / "predictions").iterdir())) > 0
    assert not result.errors


def test_panoptic_evaluation(tmp_path: Path) -> None:
    folder = write_panoptic(tmp_path / "panoptic")
    with fake_cuda():
        categories = detrkit.load_dataset(folder).categories
        panoptic = detector(mask_head=True, dilation=False, num_classes=3, categories=categories)
        assert detrkit.evaluate(panoptic, folder, device="cuda").pq >= 0


def test_operands_on_two_devices_fail() -> None:
    """A simulated device raises an error where a real one would."""
    with fake_cuda(), pytest.raises(RuntimeError, match=r"same device|two different devices"):
        torch.zeros(3, device="cuda") + torch.zeros(3)
