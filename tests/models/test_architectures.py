"""Conditional, DAB and Deformable DETR and detrkit's presets: parts, padding invariance and precision."""

import math

import pytest
import torch
from torch.nn import functional

from detrkit import ConfigError, SetCriterion, build_model
from detrkit.config.model import BackboneName, ModelConfig
from detrkit.models.detr import DETR
from detrkit.models.fuse import fuse_for_inference
from detrkit.models.heads.detection import BoxHead
from detrkit.models.neck import LevelPadding, LevelProjection, MultiScaleProjection, masked_group_norm
from detrkit.models.positions import SinePositions, encode_coordinates
from detrkit.models.queries.position_encoding import QueryPositionEncoding
from detrkit.models.queries.queries import MAX_LOGIT, reference_to_boxes, refine_reference
from detrkit.models.queries.sources import AnchorQueries, PointQueries
from detrkit.models.queries.two_stage import generate_anchors
from detrkit.ops.padding import pad_to_batch
from detrkit.structures import Target
from tests.parameters import slow_except
from tests.rounding import assert_equal_up_to_rounding

SUCCESSORS = [
    "conditional-detr-r50",
    "dab-detr-r50-dc5",
    "deformable-detr-r50",
    "deformable-detr-r50-single-scale-dc5",
    "deformable-detr-r50-refine",
    "deformable-detr-r50-two-stage",
    "detrkit-s",
    "detrkit-m",
]
# combinations of settings that are not published
MIXTURES = {
    "deformable anchors": {
        "queries": "anchors",
        "encoder": "deformable",
        "decoder": "deformable",
        "num_feature_levels": 3,
        "with_box_refine": True,
    },
    "conditional points, refined": {"queries": "points", "decoder": "conditional", "with_box_refine": True},
    "dense encoder of two maps": {
        "queries": "two_stage",
        "decoder": "deformable",
        "num_feature_levels": 2,
        "with_box_refine": True,
    },
    "plain, with sigmoids": {},
}
SMALL = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 6, "num_classes": 3, "dim_feedforward": 64}


def small(name: str, **changes: object) -> DETR:
    """Build a small model, with random weights instead of initial zeros."""
    torch.manual_seed(0)
    if name in MIXTURES:
        name, changes = "detr-tiny", {"class_scores": "sigmoid", **MIXTURES[name], **changes}
    model = build_model(name, **{**SMALL, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any() and parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model


@pytest.mark.parametrize("name", [*SUCCESSORS, *MIXTURES])
def test_predictions_have_valid_shapes_and_all_parameters_gradients(name: str) -> None:
    model = small(name)
    images, mask = pad_to_batch([torch.randn(3, 96, 128), torch.randn(3, 70, 101)])
    predictions = model(images, mask)
    assert predictions.layer_class_logits.shape == (2, 2, 6, 3)
    assert predictions.probabilities.shape == (2, 6, 3)
    assert predictions.layer_boxes.shape == (2, 2, 6, 4)
    assert ((predictions.layer_boxes > 0) & (predictions.layer_boxes < 1)).all()
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    SetCriterion(3, class_scores="sigmoid")(predictions, [target, target]).total.backward()
    without_gradient = [
        one for one, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not without_gradient


REALTIME = ["rtdetr-r18", "rtdetrv2-s-dsp", "dfine-n", "deimv2-n", "deimv2-atto"]
FAST = ("conditional-detr-r50", "deformable-detr-r50-two-stage", "detrkit-s", "dfine-n")


@pytest.mark.parametrize("name", [*slow_except(FAST, [*SUCCESSORS, *REALTIME]), *MIXTURES])
def test_predictions_are_independent_of_padding_if_padding_invariant(name: str) -> None:
    model = small(name).eval()
    small_image, large_image = torch.randn(3, 75, 90), torch.randn(3, 130, 201)
    with torch.inference_mode():
        model.padding_invariant = True
        alone, together = model(small_image[None]), model(*pad_to_batch([large_image, small_image]))
        model.padding_invariant = False
        published = model(*pad_to_batch([large_image, small_image]))
    assert_equal_up_to_rounding(together.class_logits[1], alone.class_logits[0])
    assert_equal_up_to_rounding(together.boxes[1], alone.boxes[0])
    assert (published.class_logits[1] - alone.class_logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["dab-detr-r50-dc5", "deformable-detr-r50-refine", "deformable-detr-r50-two-stage"])
def test_fused_model_returns_the_predictions_of_the_last_layer(name: str) -> None:
    model = small(name).eval()
    images = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        all_layers, last = model(images), fuse_for_inference(model)(images)
    assert last.layer_boxes.shape[0] == 1
    assert last.proposals is None
    assert_equal_up_to_rounding(last.boxes, all_layers.boxes)
    assert_equal_up_to_rounding(last.class_logits, all_layers.class_logits)


def test_untrained_boxes_of_dab_detr_equal_their_anchors() -> None:
    torch.manual_seed(0)
    model = build_model("dab-detr-r50", **SMALL).eval()
    with torch.inference_mode():
        predictions = model(torch.randn(1, 3, 64, 64))
    anchors = model.query_source.weight.sigmoid()
    torch.testing.assert_close(predictions.layer_boxes[:, 0], anchors.expand(2, -1, -1))
    # log(0.01 / 0.99): the initial score of every class is 0.01
    assert model.heads.class_head.bias.tolist() == pytest.approx([-4.59512] * 3)


def test_initial_boxes_of_deformable_detr_are_small() -> None:
    model = build_model("deformable-detr-r50-refine", **SMALL)
    assert model.heads.box_head[0].last.bias.tolist() == [0, 0, -2, -2]
    assert model.heads.box_head[1].last.bias.tolist() == [0, 0, 0, 0]
    two_stage = build_model("deformable-detr-r50-two-stage", **SMALL)
    assert two_stage.heads.box_head[0].last.bias.tolist() == [0, 0, 0, 0]
    assert not two_stage.get_parameter("query_source.box_head.4.weight").any()
    assert build_model("conditional-detr-r50", **SMALL).heads.box_head.last.bias.tolist() == [0, 0, 0, 0]


def test_references_that_are_points_or_boxes_are_refined() -> None:
    point, delta = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5, 0.5, -1.0, 3.0]]])
    assert reference_to_boxes(point).tolist() == [[[1.0, -2.0, 0.0, 0.0]]]
    assert refine_reference(point, delta).tolist() == [[[1.5, -1.5, -1.0, 3.0]]]
    assert refine_reference(torch.tensor([[[11.0, 0.0, 0.0, 0.0]]]), delta)[0, 0, 0].item() == pytest.approx(11.5)
    far = torch.full((1, 1, 4), 20.0)
    assert refine_reference(far, delta).tolist() == [[[pytest.approx(MAX_LOGIT)] * 4]]


def test_gradients_of_refined_references_flow_only_in_dab_detr() -> None:
    for name, has_gradient in (("dab-detr-r50", True), ("deformable-detr-r50-refine", False)):
        model = small(name)
        references = model.decoder(*_decoder_inputs(model), model.heads).references
        first = model.decoder.layers[0].feed_forward.contract.weight
        gradient = torch.autograd.grad(references[1].sum(), first, allow_unused=True)[0]
        assert (gradient is not None) == has_gradient, name


@pytest.mark.parametrize("name", ["dab-detr-r50", "deformable-detr-r50-refine"])
def test_gradients_of_attention_do_not_reach_the_boxes_of_the_previous_layer(name: str) -> None:
    """With look_forward_twice, gradients reach them through the refined references, not through attention."""
    model = small(name, backbone="resnet-tiny")
    model.decoder.look_forward_twice = True
    decoded = model.decoder(*_decoder_inputs(model), model.heads)
    states, references = decoded.states, decoded.references
    head = list(model.heads.box_head_of(0).parameters())
    assert all(one is None for one in torch.autograd.grad(states.sum(), head, allow_unused=True, retain_graph=True))
    assert all(one is not None for one in torch.autograd.grad(references[1].sum(), head))


def _decoder_inputs(model: DETR) -> tuple[object, object]:
    """Return the queries and the memory that a forward pass gives to the decoder."""
    captured: list[tuple[object, ...]] = []
    handle = model.decoder.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs))
    model(torch.randn(1, 3, 64, 64))
    handle.remove()
    return captured[0][0], captured[0][1]


def test_query_position_encodings_equal_values_by_hand() -> None:
    torch.manual_seed(0)
    positions, states = torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    points = torch.tensor([[[0.25, 0.5], [0.75, 1 / 3]]])
    plain = QueryPositionEncoding(8, has_anchors=False, is_conditional=False)
    assert plain(0, states, positions, None).reference is None
    torch.testing.assert_close(plain(0, states, positions, points).reference, points)

    encoding = QueryPositionEncoding(8, has_anchors=False, is_conditional=True)
    first = encoding(0, states, positions, points).sine
    # row: 2 pi * 0.5 = pi in four channels of periods 1, 1, 100, 100; then column: 2 pi * 0.25
    angle_y, angle_x = math.pi, math.pi / 2
    expected = [math.sin(angle_y), math.cos(angle_y), math.sin(angle_y / 100), math.cos(angle_y / 100)]
    expected += [math.sin(angle_x), math.cos(angle_x), math.sin(angle_x / 100), math.cos(angle_x / 100)]
    torch.testing.assert_close(first[0, 0], torch.tensor(expected), rtol=0, atol=1e-5)
    second = encoding(1, states, positions, points).sine
    torch.testing.assert_close(second, first * encoding.content_scale(states))


def test_sine_encodings_of_anchors_are_modulated_by_the_predicted_size() -> None:
    torch.manual_seed(0)
    encoding = QueryPositionEncoding(8, has_anchors=True, is_conditional=True)
    torch.nn.init.zeros_(encoding.size_head[2].weight)
    torch.nn.init.zeros_(encoding.size_head[2].bias)  # predicted size 0.5
    anchors = torch.tensor([[[0.5, 0.5, 0.25, 0.125]]])
    modulated = encoding(0, torch.zeros(1, 1, 8), torch.zeros(1, 1, 8), anchors).sine[0, 0]
    plain = QueryPositionEncoding(8, has_anchors=False, is_conditional=True)(
        0, torch.zeros(1, 1, 8), torch.zeros(1, 1, 8), anchors
    ).sine
    # row channels by 0.5 / height, column channels by 0.5 / width
    torch.testing.assert_close(modulated, plain[0, 0] * torch.tensor([4.0] * 4 + [2.0] * 4))


@pytest.mark.parametrize("logit", [-MAX_LOGIT, -20.0, MAX_LOGIT])
def test_size_modulation_of_thin_anchors_is_finite_in_float16(logit: float) -> None:
    torch.manual_seed(0)
    encoding = QueryPositionEncoding(8, has_anchors=True, is_conditional=True)
    anchors = torch.full((1, 3, 4), logit, requires_grad=True)
    states = torch.randn(1, 3, 8)
    with torch.autocast("cpu", torch.float16):
        sine = encoding(1, states.half(), states.half(), anchors.sigmoid()).sine
    assert sine.isfinite().all()
    assert torch.autograd.grad(sine.float().sum(), anchors)[0].isfinite().all()
    exact = encoding(1, states, states, anchors.sigmoid()).sine
    if logit > 0:  # not clamped
        torch.testing.assert_close(sine.float(), exact, rtol=0, atol=0.02)


def test_references_of_point_and_anchor_queries_are_learned() -> None:
    points = small("conditional-detr-r50")
    queries = _decoder_inputs(points)[0]
    assert queries.reference.shape == (1, 6, 2)
    assert isinstance(points.query_source, PointQueries)
    assert not queries.content.any()
    anchors = small("dab-detr-r50")
    queries = _decoder_inputs(anchors)[0]
    assert isinstance(anchors.query_source, AnchorQueries)
    assert torch.equal(queries.reference[0], anchors.query_source.weight)


def test_masked_group_norm_excludes_padding() -> None:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(32, 64)
    torch.nn.init.normal_(norm.weight)
    features = torch.randn(2, 64, 5, 7)
    mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    mask[1, 3:] = mask[1, :, 4:] = True
    normalized = masked_group_norm(features, norm, mask)
    assert_equal_up_to_rounding(normalized[0], norm(features[:1])[0])
    assert_equal_up_to_rounding(normalized[1, :, :3, :4], norm(features[1:, :, :3, :4])[0])
    assert torch.equal(masked_group_norm(features, norm, None), norm(features))


def test_coarser_maps_than_the_backbones_are_computed() -> None:
    projection = MultiScaleProjection((8, 16), 32, num_feature_levels=4)
    levels = [torch.randn(1, 4, 24, 40), torch.randn(1, 8, 12, 20), torch.randn(1, 16, 6, 10)]
    maps = projection(levels, LevelPadding(None))
    assert [tuple(one.shape[1:]) for one in maps] == [(32, 12, 20), (32, 6, 10), (32, 3, 5), (32, 2, 3)]
    first, second = projection.levels[2], projection.levels[3]
    assert isinstance(first, LevelProjection)
    assert isinstance(second, LevelProjection)
    # the first from the backbone's last map, the second from the first
    torch.testing.assert_close(maps[2], first.norm(first.convolution(levels[-1])))
    torch.testing.assert_close(maps[3], second.norm(second.convolution(maps[2])))


@pytest.mark.parametrize(
    ("changes", "strides"),
    [
        ({}, (32,)),
        ({"dilation": True}, (16,)),
        ({"num_feature_levels": 4}, (8, 16, 32, 64)),
        ({"num_feature_levels": 2}, (16, 32)),
        ({"num_feature_levels": 5, "dilation": True}, (8, 16, 16, 32, 64)),
        ({"num_feature_levels": 4, "backbone": "resnet-tiny"}, (4, 8, 16, 32)),
    ],
)
def test_strides_of_configs_equal_values_by_hand(changes: dict[str, object], strides: tuple[int, ...]) -> None:
    config = ModelConfig(**changes)
    assert config.strides == strides
    assert config.stride == strides[0]


@pytest.mark.parametrize("name", ["deformable-detr-r50-single-scale", "deformable-detr-r50-two-stage"])
def test_image_with_fewer_cells_than_queries_has_finite_predictions(name: str) -> None:
    model = small(name, num_queries=100).eval()
    with torch.inference_mode():
        predictions = model(torch.randn(1, 3, 64, 64))  # 85 cells on four maps
    assert predictions.boxes.shape == (1, 100, 4)
    assert predictions.boxes.isfinite().all()
    assert predictions.class_logits.isfinite().all()


def test_selected_proposals_have_the_highest_scores_outside_of_the_padding() -> None:
    model = small("deformable-detr-r50-two-stage").eval()
    images, mask = pad_to_batch([torch.randn(3, 128, 128), torch.randn(3, 128, 64)])
    with torch.inference_mode():
        model.padding_invariant = True
        predictions = model(images, mask)
        queries, memory = _decoder_inputs_of(model, images, mask)
    scores = predictions.proposals.class_logits[..., 0].masked_fill(memory.padding_mask, -torch.inf)
    best = scores.topk(6, dim=1).indices
    expected = predictions.proposals.boxes.gather(1, best[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(queries.reference.sigmoid(), expected, rtol=0, atol=1e-4)
    assert scores.shape == (2, 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2)


def test_content_from_memory_is_the_sum_of_memory_rank_embedding_and_box_encoding() -> None:
    images, mask = pad_to_batch([torch.randn(3, 128, 128)])
    contents = {}
    for content in ("box", "memory"):
        model = small("detrkit-s", two_stage_content=content).eval()
        with torch.inference_mode():
            queries, memory = _decoder_inputs_of(model, images, mask)
            source = model.query_source
            contents[content] = queries.content
            if content == "memory":
                projected = source.memory_norm(source.memory_projection(memory.tokens))
                best = source.class_head(projected)[..., 0].topk(6, dim=1).indices
                rest = queries.content - source.weight - projected[0, best[0]]
                box_content = source.encode_boxes(queries.reference, torch.float32)[1]
                torch.testing.assert_close(rest, box_content, rtol=0, atol=1e-4)
            else:
                assert source.weight is None
    assert contents["memory"].shape == contents["box"].shape


@pytest.mark.parametrize("padding", [0, 40])
def test_cell_centers_and_map_coordinates_equal_values_by_hand(padding: int) -> None:
    # 43 px are 5.375 cells of 8 px; as published, the first of six cells ends at a sixth of the image. The first cell of a
    # ResNet is centered at the first pixel, so an aligned map begins half a cell before the image
    images = functional.pad(torch.randn(1, 3, 64, 43), (0, padding))
    mask = torch.arange(43 + padding).expand(1, 64, -1) >= 43
    feature_maps = [
        _decoder_inputs_of(small("detrkit-s", align_cells=align), images, mask)[1] for align in (True, False)
    ]
    centers, ends, shifts = ((0.5 / 43, 0.5 / 64), (1 / 12, 1 / 16)), (43 / 8, 6), (3.5 / 8, 0)
    for maps, center, end, shift in zip(feature_maps, centers, ends, shifts, strict=True):
        width = maps.sizes[0][1]
        torch.testing.assert_close(maps.cell_centers()[0][0, 0], torch.tensor(center))
        torch.testing.assert_close(maps.cell_centers(aligned=False)[0][0, 0, 1], torch.tensor(1 / 16))
        on_map = maps.to_map_coordinates(torch.ones(1, 1, 4))[0, 0, 0]
        expected = torch.tensor([(end + shift) / width, 1 + shift / 8, end / width, 1.0])
        torch.testing.assert_close(on_map, expected)


@pytest.mark.parametrize("align_cells", [True, False])
def test_cell_centers_converted_to_map_coordinates_are_centers_on_the_map(align_cells: bool) -> None:
    images = torch.randn(1, 3, 64, 43)
    mask = torch.arange(43).expand(1, 64, -1) >= 40
    _, memory = _decoder_inputs_of(small("detrkit-s", num_feature_levels=3, align_cells=align_cells), images, mask)
    for level, (centers, (height, width)) in enumerate(zip(memory.cell_centers(), memory.sizes, strict=True)):
        on_map = memory.to_map_coordinates(centers)[0, :, level].view(height, width, 2)
        torch.testing.assert_close(on_map[0, :, 0], (torch.arange(width) + 0.5) / width)
        torch.testing.assert_close(on_map[:, 0, 1], (torch.arange(height) + 0.5) / height)


@pytest.mark.parametrize("name", ["resnet-tiny", "resnet18", "timm:resnet18"])
def test_receptive_field_of_resnet_cells_is_centered_at_their_first_pixel(name: BackboneName) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    backbone = small("detr-tiny", backbone=name, backbone_normalization="frozen", dilation=False).backbone.eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            # equal weights, so that the gradient is the receptive field
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    backbone.body.maxpool = torch.nn.AvgPool2d(3, 2, 1)
    images = torch.ones(1, 3, 449, 449, requires_grad=True)
    levels = backbone(images)
    strides = (4, 8, 16, 32)[: len(levels)]
    for features, stride, first in zip(levels, strides, backbone.first_cell_centers, strict=True):
        cell = features.shape[-1] // 2
        (gradient,) = torch.autograd.grad(features[0, :, cell, cell].log().sum(), images, retain_graph=True)
        profile = gradient.sum((0, 1, 2)).double()
        center = float((profile * (torch.arange(449) + 0.5)).sum() / profile.sum())
        assert center == pytest.approx(cell * stride + first, abs=1e-3)


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "timm:convnext_atto"])
def test_first_cells_of_patch_and_same_padded_backbones_are_centered_at_half_a_stride(name: str) -> None:
    pytest.importorskip("timm")
    assert small("detr-tiny", backbone=name, dilation=False).backbone.first_cell_centers == (2, 4, 8, 16)


def test_first_cell_centers_of_added_maps_equal_those_of_the_last_backbone_map() -> None:
    pytest.importorskip("timm")
    centers = small("detrkit-s", backbone="timm:tf_efficientnet_lite0", num_feature_levels=5).neck.first_cell_centers
    assert centers == (4, 8, 16, 16, 16)
    assert small("detrkit-s", num_feature_levels=4).neck.first_cell_centers == (0.5, 0.5, 0.5, 0.5)
    assert small("detrkit-s", align_cells=False).neck.first_cell_centers == (4, 8)


def test_anchors_of_aligned_first_cells_are_valid() -> None:
    # their centers are half a pixel from the image's edge, closer than the margin of 0.01
    model = small("detrkit-s").eval()
    anchors = generate_anchors(_decoder_inputs_of(model, torch.randn(1, 3, 128, 128), None)[1])
    assert anchors[1].all()
    assert anchors[0][0, 0, :2].sigmoid().tolist() == pytest.approx([0.005, 0.005], abs=1e-6)  # 0.5 / 128, clamped


def test_anchors_of_seven_maps_are_valid() -> None:
    model = small("deformable-detr-r50-two-stage", backbone="resnet18", num_feature_levels=7).eval()
    _, memory = _decoder_inputs_of(model, torch.randn(1, 3, 64, 64), None)
    anchors, is_valid = generate_anchors(memory)
    assert is_valid.all()
    sides = [float(one[0, 0, 2].sigmoid()) for one in anchors.split([h * w for h, w in memory.sizes], 1)]
    assert sides == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 0.9, 0.9])


def test_sine_positions_of_aligned_cells_encode_their_centers() -> None:
    positions = SinePositions(64, num_levels=2)
    encoded = positions(
        torch.zeros(1, 8, 6, dtype=torch.bool),
        is_padded=False,
        level=1,
        image_cells=torch.tensor([[43 / 8, 8]]),
        first_cell=0.25,
    )
    columns = (torch.arange(6) + 0.25) * 8 / 43
    expected = encode_coordinates(torch.stack([torch.full((6,), 2.25 / 8), columns], -1)[None], 32)[0]
    torch.testing.assert_close(encoded[0, 2] - positions.levels[1], expected, rtol=0, atol=1e-5)


def test_align_cells_with_a_backbone_of_other_strides_is_rejected() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"strides 16, 32, but those of backbone=.* are 16, 32, 64"):
        small("detrkit-s", backbone="timm:efficientvit_m0")
    small("detrkit-s", backbone="timm:efficientvit_m0", align_cells=False)


def test_box_head_under_autocast_computes_in_float32() -> None:
    torch.manual_seed(0)
    head, states = BoxHead(16), torch.randn(2, 5, 16)
    expected = head(states)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(states), expected)
        assert head(states.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", ["detrkit-s", "conditional-detr-r50", "deformable-detr-r50"])
def test_scores_and_references_under_autocast_are_float32(name: str) -> None:
    model, images = small(name, backbone="resnet-tiny").eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        predictions = model(images)
        queries, _ = _decoder_inputs_of(model, images, None)
    outputs = [predictions.class_logits, queries.reference]
    if predictions.proposals is not None:
        outputs.append(predictions.proposals.class_logits)
    for one in outputs:
        assert (one != one.bfloat16().float()).any()


def test_scores_in_the_padding_are_invalid_with_a_backbone_that_uses_padding() -> None:
    pytest.importorskip("timm")
    model = small("detrkit-s", backbone="timm:resnet10t").eval()
    images, mask = pad_to_batch([torch.randn(3, 64, 64), torch.randn(3, 64, 128)])
    with torch.inference_mode():
        model.padding_invariant = True
        logits = model(images, mask).proposals.class_logits[0, :, 0]
    _, memory = _decoder_inputs_of(model, images, mask)
    assert torch.equal(logits == -1e4, memory.padding_mask[0])
    assert memory.padding_mask[0].any()


def test_align_cells_without_mask_equals_an_empty_mask() -> None:
    model, images = small("detrkit-s").eval(), torch.randn(2, 3, 61, 43)
    with torch.inference_mode():
        unmasked, masked = model(images), model(images, torch.zeros(2, 61, 43, dtype=torch.bool))
    assert_equal_up_to_rounding(unmasked.boxes, masked.boxes)


def _decoder_inputs_of(model: DETR, images: torch.Tensor, mask: torch.Tensor) -> tuple[object, ...]:
    captured: list[tuple[object, ...]] = []
    handle = model.decoder.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs))
    model.padding_invariant = True
    model(images, mask)
    handle.remove()
    return captured[0][:2]


def test_timm_backbone_provides_several_feature_maps() -> None:
    pytest.importorskip("timm")
    model = build_model("deformable-detr-r50", backbone="timm:resnet10t", **SMALL)
    predictions = model(torch.randn(1, 3, 96, 128))
    assert predictions.boxes.shape == (1, 6, 4)
    assert len(model.neck.projection.levels) == 4
