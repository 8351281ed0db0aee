"""Recorded deformable attention: points, weights and maps are those of the forward pass."""

from typing import cast

import pytest
import torch

from detrkit import ConfigError, build_model
from detrkit.data.batching import collate
from detrkit.models.attention.deformable import DeformableAttention, sample
from detrkit.models.attention.recording import (
    KINDS,
    RecordedAttention,
    attention_modules,
    capture_calls,
    record_attention,
)
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
from detrkit.models.detr import DETR
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Annotations, Batch, Sample
from tests.detectors import realtime_detector
from tests.parameters import slow_except

SMALL = {"num_classes": 3, "num_queries": 6, "encoder_layers": 2, "decoder_layers": 2, "dim_feedforward": 64}


def random_model(name: str, **changes: object) -> DETR:
    torch.manual_seed(0)
    model = build_model(name, backbone="resnet-tiny", **{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any() and parameter.ndim == 2:
                parameter.normal_(0, 0.3 * parameter.shape[1] ** -0.5)
    return model


def batch() -> Batch:
    """Two images, one padded and resized from twice its size."""
    empty = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator), empty, index, original)
        for index, (size, original) in enumerate((((96, 128), (192, 256)), ((80, 64), (80, 64))))
    ]
    return collate(samples)


@pytest.mark.parametrize("name", ["conditional-detr-r50", "dab-detr-r50"])
def test_weights_of_conditional_attention_reproduce_the_output_of_the_layer(name: str) -> None:
    for attention in record_attention(random_model(name), batch()):
        for kind in KINDS:
            inputs = attention.inputs(kind, -1)
            weights = attention.weights(kind, -1)
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]), rtol=0, atol=1e-5)
            # in the decoder, the values were projected before the attention layer
            values = inputs.module.value_projection(inputs.values) if kind == "encoder" else inputs.values
            attended = weights[None] @ inputs.module.split_heads(values)
            expected = inputs.module.output_projection(attended.transpose(1, 2).flatten(2))
            torch.testing.assert_close(expected, inputs.output, rtol=0, atol=1e-5)


def record(name: str = "deformable-detr-r50-refine") -> list[RecordedAttention]:
    return record_attention(random_model(name, num_feature_levels=3, hidden_dim=64), batch())


def test_points_are_in_pixels_of_the_original_image() -> None:
    attention = record()[0]
    inputs = attention.inputs("encoder", 0)
    assert isinstance(inputs, DeformableAttentionInputs)
    # first row, second column of the coarsest map: 16 px per cell, times 2 for the original image
    sampled = inputs.sampling_points(queries=[1])
    assert sampled.reference_points[0].tolist() == [[48.0, 16.0]] * 3
    assert sampled.points.shape == (8, 1, 12, 2)
    assert sampled.num_points == (4, 4, 4)
    torch.testing.assert_close(sampled.weights.sum(2), torch.ones(8, 1))


def test_initial_points_lie_in_a_ring_around_the_reference_point() -> None:
    torch.manual_seed(0)
    settings = {"num_feature_levels": 3, "hidden_dim": 64, "backbone": "resnet-tiny", **SMALL}
    attention = record_attention(build_model("deformable-detr-r50", **settings).eval(), batch())[0]
    sampled = attention.inputs("decoder_cross", 0).sampling_points(heads=[0], queries=[2])
    # the first head samples to the right: 1, 2, 3 and 4 cells of 4, 8 and 16 px, times 2 for the original image
    steps = sampled.points[0, 0].unflatten(0, (3, 4)) - sampled.reference_points[0][:, None]
    expected = torch.tensor([[8.0, 16.0, 24.0, 32.0], [16.0, 32.0, 48.0, 64.0], [32.0, 64.0, 96.0, 128.0]])
    torch.testing.assert_close(steps[..., 0], expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(steps[..., 1], torch.zeros(3, 4), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["encoder", "decoder_cross"])
def test_maps_sum_to_the_weights_of_the_points_inside(kind: str) -> None:
    for attention in record():
        inputs = attention.inputs(kind, 0)  # type: ignore[arg-type]
        assert isinstance(inputs.module, DeformableAttention)
        weights = attention.weights(kind, 0)  # type: ignore[arg-type]
        assert weights.shape[1:] == (inputs.num_queries, attention.grid.num_tokens)
        sampled = inputs.sampling_points()
        stride, (height, width) = attention.grid.stride, attention.grid.cells
        scale = attention.grid.original[0] / attention.grid.resized[0]
        cells = sampled.points / (scale * stride)
        # points at least half a cell inside the map keep their whole weight
        inside = ((cells >= 0.5) & (cells <= torch.tensor([width - 0.5, height - 0.5]))).all(-1)
        outside = ((cells < -0.5) | (cells > torch.tensor([width + 0.5, height + 0.5]))).any(-1)
        total = weights.sum(-1)
        assert (total >= (sampled.weights * inside).sum(2) - 1e-5).all()
        assert (total <= (sampled.weights * ~outside).sum(2) + 1e-5).all()


def test_point_at_the_center_of_a_cell_gives_that_cell_all_weight() -> None:
    model = random_model("deformable-detr-r50-single-scale", num_points=1, hidden_dim=64)
    attention = record_attention(model, batch())[0]
    inputs = attention.inputs("encoder", 0)
    with torch.no_grad():
        inputs.module.offset_projection.weight.zero_()
        inputs.module.offset_projection.bias.zero_()
    weights = inputs.weights(heads=[0], queries=[3])
    expected = torch.zeros(1, 1, attention.grid.num_tokens)
    expected[0, 0, 3] = 1
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


def test_dense_attention_to_several_feature_maps_is_rejected() -> None:
    model = random_model("detr-tiny", num_feature_levels=2, class_scores="sigmoid")
    with pytest.raises(ConfigError, match="attends densely to 2 feature maps"):
        record_attention(model, batch())


REALTIME = ["rtdetr-r18", "rtdetrv2-s", "rtdetrv2-s-dsp", "dfine-n", "deim-dfine-n", "rtdetrv2-s-sp2"]


@pytest.mark.parametrize("padding_invariant", slow_except((True,), [False, True]))
@pytest.mark.parametrize("name", [*REALTIME, "deformable-detr-r50-refine"])
def test_recorded_points_reproduce_the_output_of_the_layer(name: str, padding_invariant: bool) -> None:
    if name == "deformable-detr-r50-refine":
        model = random_model(name, num_feature_levels=3, hidden_dim=64)
    else:
        model = cast(DETR, realtime_detector(name).model)
    model.padding_invariant = padding_invariant
    images = batch()
    modules = attention_modules(model)["decoder_cross"]
    with capture_calls(modules) as calls, torch.no_grad():
        model(images.images, images.padding_mask)
    for index, attention in enumerate(record_attention(model, images)):
        for layer, module in enumerate(modules):
            inputs = attention.inputs("decoder_cross", layer)
            assert isinstance(inputs, DeformableAttentionInputs)
            features, sampled = calls[module][0]["features"], inputs.sampling_points()
            scale = torch.tensor(inputs.grid.original).flip(0) / torch.tensor(inputs.grid.resized).flip(0)
            # from pixels of the original image to shares of the maps
            maps = torch.tensor([[w, h] for h, w in features.sizes]) * torch.tensor(inputs.strides)[:, None]
            shifts = torch.tensor(inputs.first_centers) - torch.tensor(inputs.strides) / 2
            on_maps = (sampled.points / scale - shifts[sampled.levels, None]) / maps[sampled.levels]
            values = inputs.module.value_projection(features.tokens[index : index + 1])
            if features.padding_mask is not None:
                values = values.masked_fill(features.padding_mask[index : index + 1, :, None], 0.0)
            points, weights = on_maps.transpose(0, 1)[None], sampled.weights.transpose(0, 1)[None]
            sums = sample(values.unflatten(-1, (8, -1)), features.sizes, points, weights, sampled.num_points)
            expected = inputs.module.output_projection(sums)
            torch.testing.assert_close(expected, inputs.output, rtol=0, atol=1e-4 * float(values.abs().max()))


def test_discrete_points_are_centers_of_cells() -> None:
    model = cast(DETR, realtime_detector("rtdetrv2-s-dsp").model)
    attention = record_attention(model, batch())[0]
    sampled = attention.inputs("decoder_cross", 0).sampling_points()  # type: ignore[union-attr]
    for level, points in enumerate(sampled.points.split(list(sampled.num_points), 2)):
        cells = points / (2 * (8 << level)) - 0.5  # the image is resized to half
        torch.testing.assert_close(cells, cells.round(), rtol=0, atol=1e-4)
    assert sampled.num_points == (4, 4, 4)


@pytest.mark.parametrize("name", REALTIME)
def test_references_of_a_layer_are_the_boxes_of_the_layer_before(name: str) -> None:
    model = cast(DETR, realtime_detector(name).model)
    model.padding_invariant = True
    for attention in record_attention(model, batch()):
        height, width = attention.grid.original
        side = torch.tensor([width, height, width, height])
        assert attention.selection is not None
        before = attention.selection.boxes
        for layer, boxes in enumerate(attention.predictions.layer_boxes[:, 0]):
            sampled = attention.inputs("decoder_cross", layer).sampling_points()  # type: ignore[union-attr]
            assert sampled.reference_boxes is not None
            torch.testing.assert_close(sampled.reference_boxes, before, rtol=0, atol=2e-3)
            centers = sampled.reference_boxes.unflatten(-1, (2, 2)).mean(1)
            torch.testing.assert_close(sampled.reference_points[:, 0], centers, rtol=0, atol=1e-3)
            before = cxcywh_to_xyxy(boxes) * side


def test_reference_points_without_size_have_no_boxes() -> None:
    attention = record("deformable-detr-r50")[0]
    assert attention.inputs("decoder_cross", 0).sampling_points().reference_boxes is None  # type: ignore[union-attr]
    assert attention.selection is None


def test_distributions_are_of_the_image_itself() -> None:
    model, images = cast(DETR, realtime_detector().model), batch()
    with torch.no_grad():
        expected = model(images.images, images.padding_mask).distributions
    for index, attention in enumerate(record_attention(model, images)):
        own = attention.predictions.distributions
        assert own is not None
        torch.testing.assert_close(own.probabilities[:, 0], expected.probabilities[:, index])
        torch.testing.assert_close(own.references[0], expected.references[index])
        torch.testing.assert_close(own.layer_quality[:, 0], expected.layer_quality[:, index])
