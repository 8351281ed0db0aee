"""DETR: shapes, presets, padding invariance, attention, positions and masks."""

import socket

import pytest
import torch

from detrkit import ConfigError, ModelConfig, build_model
from detrkit.models.attention.multi_head import MultiHeadAttention
from detrkit.models.positions import LearnedPositions, SinePositions
from detrkit.models.presets import PRESETS
from detrkit.models.presets_foundation import FOUNDATION_PRESETS
from detrkit.models.presets_realtime import REALTIME_PRESETS
from detrkit.ops.padding import pad_to_batch
from tests.rounding import assert_equal_up_to_rounding

SMALL = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 6, "num_classes": 3, "dim_feedforward": 64}


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Randomise the statistics of norms, as in trained models."""
    torch.manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model


@pytest.mark.parametrize("name", ["detr-r18", "detr-tiny", "detr-r50-dc5", "detr-r50-panoptic"])
def test_shapes_of_predictions(name: str) -> None:
    model = build_model(name, **SMALL)
    predictions = model(torch.randn(2, 3, 64, 96))
    assert model.training
    assert predictions.layer_class_logits.shape == (2, 2, 6, 4)
    assert predictions.layer_boxes.shape == (2, 2, 6, 4)
    assert torch.equal(predictions.boxes, predictions.layer_boxes[-1])
    assert ((predictions.boxes > 0) & (predictions.boxes < 1)).all()
    assert (predictions.masks is not None) == name.endswith("panoptic")
    if predictions.masks is not None:
        assert predictions.masks.shape == (2, 6, 16, 24)


def test_presets_are_the_published_models_and_detrkits_own() -> None:
    published = [f"detr-{depth}{kind}" for depth in ("r50", "r101") for kind in ("", "-dc5")]
    successors = {f"{kind}-{name}" for kind in ("conditional", "dab") for name in published}
    deformable = {
        f"deformable-detr-r50{kind}" for kind in ("", "-single-scale", "-single-scale-dc5", "-refine", "-two-stage")
    }
    tables = {"table-transformer-detection", "table-transformer-structure-recognition"}
    own = {"detr-r18", "detr-tiny", "detrkit-s", "detrkit-m"}
    panoptic = {f"{name}-panoptic" for name in published}
    realtime = {f"rtdetr-{name}" for name in ("r18", "r34", "r50-m", "r50", "r101")}
    realtime |= {f"{kind}-{size}" for kind in ("rtdetrv2", "deim-rtdetrv2") for size in ("s", "ms", "m", "l", "x")}
    realtime |= {f"{kind}-{size}" for kind in ("dfine", "deim-dfine") for size in "nsmlx"}
    realtime |= {f"rtdetrv4-{size}" for size in "smlx"}
    realtime |= {f"deimv2-{size}" for size in ("atto", "femto", "pico", "n")}
    assert realtime <= set(REALTIME_PRESETS)
    variants = ("-obj365", "-obj2coco", "-dsp", "-sp1", "-sp2", "-sp3")
    assert all(name.endswith(variants) for name in set(REALTIME_PRESETS) - realtime)
    foundation = {
        f"lwdetr-{size}{data}" for size in ("tiny", "small", "medium", "large", "xlarge") for data in ("", "-obj365")
    }
    foundation |= {f"rfdetr-{size}" for size in ("nano", "small", "medium", "base", "large", "large-deprecated")}
    sizes = ("nano", "small", "medium", "large", "xlarge", "2xlarge", "preview")
    foundation |= {f"rfdetr-seg-{size}" for size in sizes}
    assert set(FOUNDATION_PRESETS) == foundation
    others = {*published, *panoptic, *successors, *deformable, *tables, *own}
    assert set(PRESETS) - set(REALTIME_PRESETS) - foundation == others


def test_initial_weights_of_attention_maps_are_scaled_up_in_the_mask_head() -> None:
    torch.manual_seed(0)
    head = build_model("detr-tiny", mask_head=True).mask_head
    assert head is not None
    weight = head.get_parameter("input_stages.0.convolution.weight")
    feature_std, map_std = weight[:, : head.width].std(), weight[:, head.width :].std()
    assert 1800 < map_std / feature_std < 2200  # maps sum to 1 over heads and cells


def test_building_a_model_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    build_model("detr-r18")


@pytest.mark.parametrize("name", ["detr-r18", "detr-r50-dc5", "detr-tiny"])
@pytest.mark.parametrize("positions", ["sine", "learned"])
def test_predictions_are_independent_of_padding_if_padding_invariant(name: str, positions: str) -> None:
    model = randomize(build_model(name, position_embedding=positions, **SMALL)).eval()
    small, large = torch.randn(3, 75, 90), torch.randn(3, 130, 101)
    with torch.inference_mode():
        model.padding_invariant = True
        alone, together = model(small[None]), model(*pad_to_batch([large, small]))
        model.padding_invariant = False
        published = model(*pad_to_batch([large, small]))
    assert_equal_up_to_rounding(together.class_logits[1], alone.class_logits[0])
    assert_equal_up_to_rounding(together.boxes[1], alone.boxes[0])
    # as published, they depend on it
    assert (published.class_logits[1] - alone.class_logits[0]).abs().max() > 1e-3


def test_padding_invariance_changes_nothing_without_padding() -> None:
    model = build_model("detr-r18", **SMALL).eval()
    images, mask = pad_to_batch([torch.randn(3, 64, 64)] * 2)
    with torch.inference_mode():
        published = model(images).boxes
        model.padding_invariant = True
        assert_equal_up_to_rounding(model(images, mask).boxes, published)


def test_attention_equals_the_formula_without_the_padding() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, num_heads=2, dropout=0.0)
    queries, keys, values = torch.randn(1, 3, 8), torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    padding = torch.tensor([[False, False, False, True]])
    q, k, v = attention.query_projection(queries), attention.key_projection(keys), attention.value_projection(values)
    outputs = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        logits = q[0, :, part] @ k[0, :3, part].T / 2  # square root of 4 channels per head
        outputs.append(logits.softmax(-1) @ v[0, :3, part])
    expected = attention.output_projection(torch.cat(outputs, dim=-1))
    torch.testing.assert_close(attention(queries, keys, values, padding)[0], expected)


def test_initial_projections_have_xavier_bounds_of_one_packed_matrix() -> None:
    attention = MultiHeadAttention(64, num_heads=8, dropout=0.0)
    assert attention.query_projection.weight.abs().max() <= (6 / (4 * 64)) ** 0.5
    assert attention.query_projection.weight.abs().max() > 0.98 * (6 / (4 * 64)) ** 0.5
    assert attention.output_projection.weight.abs().max() > 0.98 * (6 / (2 * 64)) ** 0.5


def test_sine_positions_equal_values_by_hand() -> None:
    encoded = SinePositions(8)(torch.zeros(1, 2, 4, dtype=torch.bool))
    angle_y, angle_x = torch.tensor(3.14159265), torch.tensor(2 * 3.14159265)  # row 1 of 2, column 4 of 4
    expected = [angle_y.sin(), angle_y.cos(), (angle_y / 100).sin(), (angle_y / 100).cos()]
    expected += [angle_x.sin(), angle_x.cos(), (angle_x / 100).sin(), (angle_x / 100).cos()]
    torch.testing.assert_close(encoded[0, 0, 3], torch.stack(expected), rtol=0, atol=1e-5)


def test_positions_of_unpadded_images_are_cached() -> None:
    positions = SinePositions(8)
    with torch.inference_mode():
        first = positions(torch.zeros(3, 2, 4, dtype=torch.bool), is_padded=False)
    assert_equal_up_to_rounding(first, positions(torch.zeros(3, 2, 4, dtype=torch.bool)), terms=1, operations=2)
    again = positions(torch.zeros(2, 2, 4, dtype=torch.bool), is_padded=False)
    assert again.data_ptr() == first.data_ptr()
    assert not again.is_inference()  # training can use encodings cached in inference
    assert positions(torch.zeros(2, 4, 2, dtype=torch.bool), is_padded=False).shape == (2, 4, 2, 8)


def test_feature_map_larger_than_learned_positions_is_rejected() -> None:
    positions = LearnedPositions(8, max_size=5)
    assert positions(torch.zeros(2, 5, 3, dtype=torch.bool)).shape == (2, 5, 3, 8)
    with pytest.raises(ConfigError, match=r"6 x 3 cells.*positions for 5 x 5.*max_position_embeddings=6"):
        positions(torch.zeros(1, 6, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("detr-r5", {}, "model='detr-r5' is not a preset; did you mean 'detr-r50'"),
        ("detr-r50", {"num_querys": 3}, "num_querys is not a setting of models; did you mean 'num_queries'"),
        ("detr-r50", {"num_queries": 0}, "num_queries=0: input should be greater"),
        ("detr-r50", {"hidden_dim": 100}, "hidden_dim=100 must be a multiple"),
        ("detr-r18", {"dilation": True}, "backbone='resnet18' cannot be dilated"),
    ],
)
def test_invalid_preset_or_setting_is_rejected(name: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, **overrides)


def test_frozen_stages_are_the_published_ones() -> None:
    model = build_model("detr-r18", **SMALL)
    frozen = {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert all(p.requires_grad for p in build_model("detr-tiny").parameters())
    assert build_model("detr-tiny").config == ModelConfig.model_validate(PRESETS["detr-tiny"].model_dump())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_boxes_on_cuda_equal_those_on_the_cpu() -> None:
    model = build_model("detr-r18", **SMALL).eval()
    images, mask = pad_to_batch([torch.randn(3, 96, 64), torch.randn(3, 64, 96)])
    with torch.inference_mode():
        expected = model(images, mask)
        actual = model.cuda()(images.cuda(), mask.cuda())
    torch.testing.assert_close(actual.boxes.cpu(), expected.boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["detr-r18", "detr-r50-dc5", "detr-tiny"])
def test_masks_are_independent_of_padding_if_padding_invariant(name: str) -> None:
    changes = {} if name == "detr-tiny" else {"hidden_dim": 128}
    model = randomize(build_model(name, mask_head=True, **{**SMALL, **changes})).eval()
    small, large = torch.randn(3, 75, 90), torch.randn(3, 130, 101)
    queries, sizes = [torch.tensor([4, 1]), torch.tensor([0, 5])], [(130, 101), (75, 90)]
    model.padding_invariant = True
    with torch.inference_mode():
        alone = model(small[None]).masks[0, [0, 5]]
        padded = model(*pad_to_batch([large, small]))
    masks, published = padded.masks_of(queries, sizes), padded.masks_of(queries)
    height, width = alone.shape[-2:]
    assert_equal_up_to_rounding(masks[2:, :height, :width], alone)
    assert (published[2:, :height, :width] - alone).abs().max() > 1e-3
    # the padding repeats the edge of the image, so that interpolation at the edge is the same
    assert torch.equal(
        masks[2:, height:, :width], masks[2:, height - 1 : height, :width].expand_as(masks[2:, height:, :width])
    )


@pytest.mark.parametrize("name", ["detr-r18", "detr-tiny", "detr-r50-panoptic"])
def test_masks_of_selected_queries_equal_those_of_all(name: str) -> None:
    model = randomize(build_model(name, **{**SMALL, "mask_head": True, "num_queries": 40})).eval()
    images, padding_mask = pad_to_batch([torch.randn(3, 64, 96), torch.randn(3, 80, 64)])
    with torch.inference_mode():
        predictions = model(images, padding_mask)
    all_masks = predictions.masks
    some = predictions.masks_of([torch.arange(40), torch.tensor([39, 3])])
    none = predictions.masks_of([torch.arange(0), torch.arange(0)])
    assert_equal_up_to_rounding(some[:40], all_masks[0])
    assert_equal_up_to_rounding(some[40:], all_masks[1, [39, 3]])
    assert none.shape == (0, 20, 24)
