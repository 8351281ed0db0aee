"""RT-DETR, RT-DETRv2, D-FINE, DEIM and RT-DETRv4 give the numbers of their authors' code (../shared/golden/modern)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit.models.build import model_without_memory
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.presets import PRESETS
from detrkit.models.queries.two_stage import generate_anchors
from detrkit.postprocess.boxes import top_detections
from detrkit.structures import Predictions
from tests.parameters import slow_except
from tests.parity.modern_golden import (
    PRESET_OF_FILE,
    golden_images,
    golden_model,
    read_golden,
    rectangular_image,
    set_train_mode,
)

FAST = ("rtdetr_r18vd", "rtdetrv2_r18vd_dsp", "dfine_n")
FAST_IN_TRAINING = ("rtdetr_r18vd", "dfine_n")
LARGE = ("dfine_m", "dfine_l", "dfine_x")  # rounding errors grow with depth; README-realtime.md has the tolerances
SIZES = ((480, 640), (640, 427))  # (height, width) of the original images


def logits_tolerance(name: str) -> float:
    return 3e-3 if name in LARGE else 5e-4


def boxes_tolerance(name: str) -> float:
    return 2e-4 if name == "dfine_x" else 3e-5


def close(actual: Tensor, expected: Any, tolerance: float, message: str = "") -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance, err_msg=message)


def rows_of(predictions: Predictions, selected: np.ndarray) -> Tensor:
    """Return the row of every selected cell: equally good ones may be swapped."""
    assert predictions.proposals is not None
    cells = predictions.proposals.cells
    assert cells is not None
    assert [sorted(one) for one in cells.tolist()] == [sorted(one) for one in selected.tolist()]
    return torch.stack(
        [
            torch.tensor([own.index(cell) for cell in expected])
            for own, expected in zip(cells.tolist(), selected.tolist(), strict=True)
        ]
    )


def in_order(values: Tensor, rows: Tensor) -> Tensor:
    """Select rows of every image; values (B, Q, ...)."""
    return torch.stack([one[row] for one, row in zip(values, rows, strict=True)])


def check_predictions(name: str, logits: Tensor, boxes: Tensor, expected_logits: Any, expected_boxes: Any) -> None:
    if name != "rtdetrv2_r18vd_dsp":
        close(logits, expected_logits, logits_tolerance(name))
        close(boxes, expected_boxes, boxes_tolerance(name))
        return
    # sampling takes the nearest cell: a difference in the last bit moves a sample by a cell
    for actual, expected, usual, largest in ((logits, expected_logits, 5e-4, 0.1), (boxes, expected_boxes, 1e-4, 2e-3)):
        difference = np.abs(actual.numpy() - expected)
        assert np.quantile(difference, 0.99) < usual
        assert difference.max() < largest


@pytest.mark.parametrize("name", slow_except(FAST, PRESET_OF_FILE))
def test_predictions_equal_those_of_the_authors(name: str, shared: Path) -> None:
    model, golden = golden_model(shared, name), read_golden(shared, name)
    with torch.inference_mode():
        predictions = model(golden_images(shared))
        rectangular = model(rectangular_image(shared))
    assert predictions.proposals is not None
    rows = rows_of(predictions, golden["topk_ind"])
    close(in_order(predictions.proposals.class_logits.amax(-1), rows), golden["topk_score"], 1e-3)
    logits, boxes = in_order(predictions.class_logits, rows), in_order(predictions.boxes, rows)
    check_predictions(name, logits, boxes, golden["pred_logits"], golden["pred_boxes"])
    if name != "rtdetrv2_r18vd_dsp":
        _check_detections(name, predictions, rows, golden)

    rows = rows_of(rectangular, golden["rect_topk_ind"])
    logits = in_order(rectangular.class_logits, rows)[:, :32]
    boxes = in_order(rectangular.boxes, rows)
    check_predictions(name, logits, boxes, golden["rect_pred_logits_first32"], golden["rect_pred_boxes"])


def _check_detections(name: str, predictions: Predictions, rows: Tensor, golden: Mapping[str, Any]) -> None:
    best = top_detections(predictions, torch.tensor(SIZES))
    for image in range(2):
        close(best.scores[image], golden[f"post{image}_scores"], 1e-4)
        row_of_query = {int(query): row for row, query in enumerate(rows[image])}
        pairs = [
            row_of_query[int(query)] * predictions.class_logits.shape[-1] + int(label)
            for query, label in zip(best.queries[image], best.labels[image], strict=True)
        ]
        expected = golden["post_index"][image].tolist()
        shared_pairs = set(pairs) & set(expected)
        assert len(shared_pairs) >= len(expected) - 2  # the last ones may be equally good
        own = torch.tensor([pairs.index(pair) for pair in shared_pairs])
        theirs = [expected.index(pair) for pair in shared_pairs]
        close(best.boxes[image][own], golden[f"post{image}_boxes"][theirs], 640 * boxes_tolerance(name))
        assert best.labels[image][own].tolist() == golden[f"post{image}_labels"][theirs].tolist()


@pytest.mark.parametrize("name", slow_except(FAST_IN_TRAINING, PRESET_OF_FILE))
def test_predictions_of_all_layers_and_of_the_encoder_in_training_equal_those_of_the_authors(
    name: str, shared: Path
) -> None:
    model, golden = set_train_mode(golden_model(shared, name)), read_golden(shared, name)
    predictions = model(golden_images(shared))
    assert predictions.proposals is not None
    rows = rows_of(predictions, golden["topk_ind"])
    is_discrete = name == "rtdetrv2_r18vd_dsp"
    logits_atol, boxes_atol = (0.1, 2e-3) if is_discrete else (logits_tolerance(name), boxes_tolerance(name))
    num_layers = len(predictions.layer_boxes)
    for layer in range(num_layers):
        part = "train_final" if layer + 1 == num_layers else f"aux{layer}"
        boxes = in_order(predictions.layer_boxes[layer], rows)
        logits = in_order(predictions.layer_class_logits[layer], rows)[:, :16]
        close(boxes, golden[f"{part}_boxes"], boxes_atol, part)
        close(logits, golden[f"{part}_logits_first16"], logits_atol, part)
    assert f"aux{num_layers - 1}_boxes" not in golden
    close(in_order(predictions.proposals.boxes, rows), golden["enc_boxes"], boxes_atol)
    close(in_order(predictions.proposals.class_logits, rows)[:, :16], golden["enc_logits_first16"], 1e-3)
    assert predictions.proposals.class_logits.requires_grad
    if "project" in golden:
        _check_distributions(name, predictions, rows, golden)


def _check_distributions(name: str, predictions: Predictions, rows: Tensor, golden: Mapping[str, Any]) -> None:
    distributions = predictions.distributions
    assert distributions is not None
    boxes_atol, corners_atol = boxes_tolerance(name), 4e-3 if name in LARGE else 5e-4
    for layer, logits in enumerate(distributions.layer_logits):
        corners = in_order(logits, rows)[:, :16].flatten(2)
        close(corners, golden[f"corners{layer}_first16"], corners_atol, f"corners{layer}")
        quality = in_order(distributions.layer_quality[layer], rows)
        close(quality, golden[f"lqe{layer}_delta"], logits_tolerance(name), f"lqe{layer}")
    close(in_order(distributions.references, rows), golden["refs"], boxes_atol)
    assert not distributions.references.requires_grad
    close(in_order(distributions.initial_boxes, rows), golden["pre_boxes"], boxes_atol)
    logits = in_order(distributions.initial_class_logits, rows)[:, :16]
    close(logits, golden["pre_logits_first16"], logits_tolerance(name))
    close(distributions.bin_values, golden["project"], 1e-6)
    assert float(distributions.reg_scale) == float(golden["reg_scale"][0])


@pytest.mark.parametrize("name", ["rtdetr_r18vd", "dfine_n"])
def test_anchors_are_valid_where_those_of_the_authors_are(name: str, shared: Path) -> None:
    golden, num_levels = read_golden(shared, name), PRESETS[PRESET_OF_FILE[name]].num_feature_levels
    invalid = {}
    for size in ((256, 448), (640, 640)):
        sizes = tuple((size[0] // stride, size[1] // stride) for stride in (8, 16, 32)[-num_levels:])
        tokens = torch.zeros(1, sum(height * width for height, width in sizes), 1)
        invalid[size] = ~generate_anchors(FeatureMaps(tokens, tokens, None, sizes))[1]
    expected = np.unpackbits(golden["rect_valid_packed"])[: int(golden["rect_valid_count"][1])]
    assert (~invalid[256, 448][0]).int().tolist() == expected.tolist()
    assert int(invalid[640, 640].sum()) == int(golden["anchors640_invalid"])
    assert invalid[640, 640].numel() == int(golden["anchors640_total"])


@pytest.mark.parametrize("name", PRESET_OF_FILE)
def test_parameters_are_as_many_as_published(name: str, shared: Path) -> None:
    golden, model = read_golden(shared, name), model_without_memory(PRESETS[PRESET_OF_FILE[name]])
    assert sum(one.numel() for one in model.parameters()) == int(golden["parameters"])
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trainable == int(golden["parameters_trainable"])
