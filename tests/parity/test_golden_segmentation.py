"""RF-DETR's masks give the numbers of their authors' code (../shared/golden/modern, README-foundation.md)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit.config.training import LossConfig, TrainingConfig
from detrkit.losses import criterion as criterion_module
from detrkit.losses import point_masks
from detrkit.losses.auxiliary_queries import AuxiliaryCriterion
from detrkit.losses.criterion import base_name, is_loss
from detrkit.losses.point_masks import mask_samples, random_points
from detrkit.models.detr import DETR
from detrkit.postprocess.boxes import to_detections
from detrkit.postprocess.masks import attach_masks
from detrkit.structures import Batch, LayerMaskSource, Predictions, Target
from detrkit.training.auxiliary_queries import with_auxiliary_queries
from detrkit.training.build import build_criterion
from tests.parameters import slow_except
from tests.parity.foundation_golden import formula, golden_images, golden_model, read_golden
from tests.parity.test_foundation_losses import COUNTS, NUM_CLASSES, RELATIVE, check_gradients, pairs_of
from tests.parity.test_golden_foundation import SIZES, close

MASKS = 3e-4  # absolute, of README-foundation.md
NAMES, TRAINED = ("rfdetr_seg_nano", "rfdetr_seg_small"), ("rfdetr_seg_nano_train",)


def targets(shared: Path, size: tuple[int, int]) -> list[Target]:
    drawn = [formula(shared).target(f"target{number}", count, NUM_CLASSES) for number, count in enumerate(COUNTS)]
    return [
        Target(
            torch.from_numpy(one["boxes"]),
            torch.from_numpy(one["labels"]),
            torch.from_numpy(formula(shared).masks(one["boxes"], *size)),
        )
        for one in drawn
    ]


def criterion_of(model: DETR) -> AuxiliaryCriterion:
    loss = LossConfig(cls_loss="ia_bce", cls_loss_coef=1.0, mask_loss_coef=5.0, dice_loss_coef=5.0)
    settings = TrainingConfig(loss=loss)
    criterion = with_auxiliary_queries(build_criterion(model.config, settings), model.config, settings)
    assert isinstance(criterion, AuxiliaryCriterion)
    return criterion


def draw_published_points(monkeypatch: pytest.MonkeyPatch, shared: Path, groups: int, layers: int) -> None:
    """Replace random points by those of the golden numbers, where the pairs of all groups are drawn together.

    There they are ordered by image and group, here by group, set of predictions (layers, then the encoder) and image.
    """
    uniform, names = formula(shared).uniform, [*map(str, range(layers - 1)), "last"]
    total, image_starts = groups * sum(COUNTS), np.cumsum([0, *(groups * count for count in COUNTS)])

    def of_group(label: str, group: int, count: int) -> Tensor:
        points = uniform(label, (total, count, 2))
        rows = [points[start + group * n :][:n] for start, n in zip(image_starts, COUNTS, strict=False)]
        return torch.from_numpy(np.concatenate(rows))

    def draws() -> Iterator[Any]:
        yield lambda _, count: torch.cat(
            [torch.from_numpy(uniform(f"points.match.{name}.0", (1, count, 2))) for name in (*names, "enc")]
        )
        for group in range(groups):
            for of_set in (names, ["enc"]):
                for part in range(2):
                    yield lambda _, count, group=group, of_set=of_set, part=part: torch.cat(
                        [of_group(f"points.loss.{name}.{part}", group, count) for name in of_set]
                    )

    remaining = draws()

    def published(*shape: int, device: torch.device) -> Tensor:
        points: Tensor = next(remaining)(*shape)
        assert points.shape == (*shape, 2)
        return points

    for module in (criterion_module, point_masks):
        monkeypatch.setattr(module, random_points.__name__, published)


def layer_masks(source: object, layers: int, queries: Tensor) -> list[Tensor]:
    """Return the masks of the same queries of both images after every layer."""
    assert isinstance(source, LayerMaskSource)
    counts = [len(queries)] * 2
    return [source.layer_masks_of(layer, queries.repeat(2), counts).unflatten(0, (2, -1)) for layer in range(layers)]


@pytest.mark.parametrize("name", slow_except((), NAMES))
def test_masks_of_all_layers_and_the_encoder_equal_those_of_the_authors(name: str, shared: Path) -> None:
    model, golden, images = golden_model(shared, name), read_golden(shared, name), golden_images(shared, name)
    with torch.inference_mode():
        predictions = model(images)
        masks = predictions.masks
        *others, last = layer_masks(predictions.mask_source, len(predictions.layer_boxes), torch.arange(100))
        assert predictions.proposals is not None
        (coarse,) = layer_masks(predictions.proposals.mask_source, 1, torch.arange(100))
    assert masks is not None
    assert masks.shape == (2, 100, images.shape[2] // 4, images.shape[3] // 4)
    close(masks[:, :6], golden["pred_masks_first6"], MASKS)
    close(masks.mean((2, 3)), golden["pred_masks_mean"], MASKS)
    close(masks.abs().mean((2, 3)), golden["pred_masks_absmean"], MASKS)
    torch.testing.assert_close(last, masks, rtol=0, atol=MASKS)
    for layer, one in enumerate(others):
        close(one.mean((2, 3)), golden[f"aux{layer}_masks_mean"], MASKS, f"layer {layer}")
    close(coarse[:, :2], golden["enc_masks_first2"], MASKS)
    close(coarse.mean((2, 3)), golden["enc_masks_mean"], MASKS)
    _check_detections(predictions, images, golden)


def _check_detections(predictions: Predictions, images: Tensor, golden: Any) -> None:
    """Compare masks of the original size; a pixel whose logit is next to 0 may differ."""
    batch = Batch(
        images,
        torch.zeros(2, *images.shape[2:], dtype=torch.bool),
        [],
        [0, 1],
        [(images.shape[2], images.shape[3])] * 2,
        list(SIZES),
    )
    names = [str(label) for label in range(91)]
    detections = to_detections(predictions, SIZES, range(91), names, 0.0)
    for image, one in enumerate(attach_masks(detections, predictions, batch)):
        shape, scores = golden[f"post{image}_masks_first3_shape"], golden[f"post{image}_scores"]
        expected = np.unpackbits(golden[f"post{image}_masks_first3_packed"], count=int(np.prod(shape))).reshape(shape)
        assert one.low_res_masks is not None
        assert one.masks is not None
        areas = one.masks.flatten(1).sum(1).numpy()
        gaps = np.abs(np.diff(scores, prepend=2, append=-1))
        is_clear = np.minimum(gaps[:-1], gaps[1:]) > 1e-4
        assert is_clear[:3].any()
        difference = (one.masks[:3].numpy() != expected.astype(bool)).mean((1, 2))
        assert difference[is_clear[:3]].max() < 1e-3
        np.testing.assert_allclose(
            areas[is_clear], golden[f"post{image}_mask_areas"][is_clear], rtol=0, atol=1e-3 * np.prod(SIZES[image])
        )


@pytest.mark.parametrize("name", slow_except((), NAMES))
def test_losses_and_matches_with_masks_equal_those_of_the_authors(
    name: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, golden, images = golden_model(shared, name), read_golden(shared, name), golden_images(shared, name)
    layers, objects = model.config.decoder_layers, targets(shared, (images.shape[2], images.shape[3]))
    draw_published_points(monkeypatch, shared, 1, layers)
    with torch.inference_mode():
        predictions = model(images)
        output = criterion_of(model)(predictions, objects)
        if "cost_last_image0" in golden:
            _check_costs(model, predictions, objects, shared, golden)
    for image in range(2):
        for layer in range(layers):
            expected = golden[f"match_{'last' if layer == layers - 1 else layer}_image{image}"]
            assert pairs_of(output.matches, layer, image) == expected.tolist()
    losses = {entry: golden[f"loss/{entry}"] for entry in output.losses if is_loss(entry)}
    assert {f"loss/{entry}" for entry in losses} == {entry for entry in golden if entry.startswith("loss/loss_")}
    for entry, expected in losses.items():
        np.testing.assert_allclose(output.losses[entry], expected, rtol=RELATIVE, err_msg=entry)
    np.testing.assert_allclose(output.total, golden["loss_total"], rtol=RELATIVE)


def _check_costs(model: DETR, predictions: Predictions, objects: list[Target], shared: Path, golden: Any) -> None:
    source = predictions.mask_source
    assert isinstance(source, LayerMaskSource)
    count = point_masks.num_matching_points(source.mask_size)
    points = torch.from_numpy(formula(shared).uniform("points.match.last.0", (1, count, 2)))
    samples = mask_samples(source, points.expand(source.num_layers, -1, -1), objects)
    logits, boxes = predictions.layer_class_logits, predictions.layer_boxes
    costs = criterion_of(model).criterion.matcher.costs(logits, boxes, objects, samples)[-1]
    for image, count in enumerate(COUNTS):
        np.testing.assert_allclose(costs[image, :, :count], golden[f"cost_last_image{image}"], atol=5e-4, rtol=0)


@pytest.mark.parametrize("name", slow_except((), TRAINED))
def test_losses_and_gradients_of_all_groups_with_masks_equal_those_of_the_authors(
    name: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, golden, images = golden_model(shared, name), read_golden(shared, name), golden_images(shared, name)
    predictions = model(images)
    groups = 1 + len(predictions.auxiliary)
    draw_published_points(monkeypatch, shared, groups, model.config.decoder_layers)
    output = criterion_of(model)(predictions, targets(shared, (images.shape[2], images.shape[3])))
    for entry in (one for one in output.losses if is_loss(one) and "_group" not in one):
        base = base_name(entry)
        others = output.losses[f"{base}_group{entry[len(base) :]}"]
        mean = (output.losses[entry] + (groups - 1) * others) / groups
        np.testing.assert_allclose(mean, golden[f"loss/{entry}"], rtol=RELATIVE, err_msg=entry)
    np.testing.assert_allclose(output.total.detach(), golden["loss_total"], rtol=RELATIVE)
    output.total.backward()
    check_gradients(model, golden, shared, name)
