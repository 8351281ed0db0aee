"""LW-DETR and RF-DETR give the numbers of their authors' code (../shared/golden/modern, README-foundation.md)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit import DETR
from detrkit.models.backbones.vit import ViTBackbone
from detrkit.models.interpolation import resize_table
from detrkit.postprocess.boxes import top_detections
from detrkit.structures import Predictions
from tests.parameters import slow_except
from tests.parity.foundation_golden import PRESET_OF_FILE, golden_images, golden_model, padded_images, read_golden

FEATURES, PROPOSALS, LOGITS, BOXES = 5e-5, 1e-5, 2e-4, 1e-4  # absolute, of README-foundation.md
FAST = ("lwdetr_tiny", "rfdetr_nano")
TRAINED = ("lwdetr_tiny_train", "rfdetr_nano_train")
SIZES = ((480, 640), (427, 640))  # (height, width) of the original images


def close(actual: Tensor, expected: Any, tolerance: float, message: str = "") -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance, err_msg=message)


def check_features(model: DETR, images: Tensor, golden: Mapping[str, Any]) -> None:
    """Compare position embeddings, features of the ViT and those of the projector."""
    backbone = model.backbone
    assert isinstance(backbone, ViTBackbone)
    maps = backbone(images)
    size = (maps[0].shape[-2], maps[0].shape[-1])
    table = resize_table(backbone.positions, size, antialias=backbone.is_dinov2).flatten(0, 1)
    if backbone.is_dinov2:
        table = torch.cat([backbone.class_position[None], table])
    close(table[:, :8], golden["pos_embed_first8"], 1e-5, "positions")
    for number, one in enumerate(maps):
        close(one.mean(1), golden[f"feat{number}_channelmean"], FEATURES, f"feature {number}")
        close(one.mean((2, 3)), golden[f"feat{number}_spatialmean"], FEATURES, f"feature {number}")
        close(one[:, :8, :6, :6], golden[f"feat{number}_crop"], FEATURES, f"feature {number}")
    assert f"feat{len(maps)}_crop" not in golden
    features = model.neck(maps, (images.shape[2], images.shape[3]))
    for level in range(len(features.sizes)):
        close(features.map_of(level)[:, :8], golden[f"projector{level}_first8"], FEATURES, f"level {level}")
        close(features.map_of(level).mean((2, 3)), golden[f"projector{level}_spatialmean"], FEATURES, f"level {level}")


@pytest.mark.parametrize("name", slow_except(FAST, PRESET_OF_FILE))
def test_predictions_equal_those_of_the_authors(name: str, shared: Path) -> None:
    model, golden, images = golden_model(shared, name), read_golden(shared, name), golden_images(shared, name)
    with torch.inference_mode():
        check_features(model, images, golden)
        predictions = model(images)
        queries = model.query_source(model.neck(model.backbone(images), (images.shape[2], images.shape[3])))
    proposals = predictions.proposals
    assert proposals is not None
    assert proposals.cells.tolist() == golden["enc_topk"].tolist()
    close(proposals.class_logits[:, :12], golden["enc_logits"], LOGITS)
    close(proposals.boxes, golden["enc_boxes"], PROPOSALS)
    close(queries.reference, golden["ref_points"], PROPOSALS)
    close(predictions.class_logits, golden["pred_logits"], LOGITS)
    close(predictions.boxes, golden["pred_boxes"], BOXES)
    for layer in range(len(predictions.layer_boxes) - 1):
        close(predictions.layer_class_logits[layer][:, :12], golden[f"aux{layer}_logits"], LOGITS, f"layer {layer}")
        close(predictions.layer_boxes[layer], golden[f"aux{layer}_boxes"], BOXES, f"layer {layer}")
    _check_detections(predictions, golden, is_clamped=name.startswith("rfdetr"))


def _check_detections(predictions: Predictions, golden: Mapping[str, Any], *, is_clamped: bool) -> None:
    best = top_detections(predictions, torch.tensor(SIZES))
    for image, (height, width) in enumerate(SIZES):
        expected = golden[f"post{image}_scores"]
        close(best.scores[image], expected, 1e-4)
        # labels and boxes of ranks whose score is unlike those of their neighbours
        gaps = np.abs(np.diff(expected, prepend=2, append=-1))
        is_clear = np.minimum(gaps[:-1], gaps[1:]) > 1e-4
        assert is_clear.any()
        assert best.labels[image].numpy()[is_clear].tolist() == golden[f"post{image}_labels"][is_clear].tolist()
        boxes = best.boxes[image]
        if is_clamped:  # which detrkit leaves to who draws or writes them
            boxes = boxes.clamp(torch.zeros(4), torch.tensor([width, height, width, height], dtype=torch.float32))
        close(boxes[torch.from_numpy(is_clear)], golden[f"post{image}_boxes"][is_clear], 640 * 2 * BOXES)


@pytest.mark.parametrize("name", FAST)
def test_predictions_of_a_padded_image_equal_those_of_the_authors(name: str, shared: Path) -> None:
    model, golden = golden_model(shared, name), read_golden(shared, name)
    with torch.inference_mode():
        predictions = model(*padded_images(shared, name))
    proposals = predictions.proposals
    assert proposals is not None
    assert proposals.cells.tolist() == golden["padded/enc_topk"].tolist()
    close(proposals.boxes, golden["padded/enc_boxes"], PROPOSALS)
    close(predictions.class_logits[:, :12], golden["padded/pred_logits_first12"], LOGITS)
    close(predictions.boxes, golden["padded/pred_boxes"], BOXES)


@pytest.mark.parametrize("name", TRAINED)
def test_predictions_of_all_groups_in_training_equal_those_of_the_authors(name: str, shared: Path) -> None:
    model, golden = golden_model(shared, name), read_golden(shared, name)
    predictions = model(golden_images(shared, name))
    groups = [predictions, *(one.predictions for one in predictions.auxiliary)]
    proposals = [one.proposals for one in groups]
    assert torch.stack([one.cells for one in proposals]).tolist() == golden["enc_topk"].tolist()
    close(torch.cat([one.class_logits[:, :2] for one in proposals], 1), golden["enc_logits"], LOGITS)
    close(torch.cat([one.boxes for one in proposals], 1), golden["enc_boxes"], PROPOSALS)
    close(torch.cat([one.class_logits[:, :4] for one in groups], 1), golden["pred_logits"], LOGITS)
    close(torch.cat([one.boxes for one in groups], 1), golden["pred_boxes"], BOXES)
    for layer in range(len(predictions.layer_boxes) - 1):
        logits, boxes = (
            torch.cat([getattr(one, kind)[layer, :, :count] for one in groups], 1)
            for kind, count in (("layer_class_logits", 1), ("layer_boxes", 4))
        )
        close(logits, golden[f"aux{layer}_logits"], LOGITS, f"layer {layer}")
        close(boxes, golden[f"aux{layer}_boxes"], BOXES, f"layer {layer}")
