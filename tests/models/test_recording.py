"""Recorded attention: weights equal those of the forward pass, and no hooks are left behind."""

from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from detrkit import ConfigError, build_model
from detrkit.data.batching import collate
from detrkit.data.dataset import unannotated
from detrkit.models.attention.recording import KINDS, AttentionInputs, RecordedAttention, record_attention
from detrkit.models.detr import DETR
from detrkit.structures import Batch
from tests.detectors import small_detector
from tests.rounding import assert_equal_up_to_rounding


def padded_batch() -> Batch:
    torch.manual_seed(0)
    return collate([unannotated(torch.randint(0, 256, (3, *size), dtype=torch.uint8)) for size in ((40, 64), (64, 30))])


@pytest.fixture(scope="module", params=["pre-norm", "post-norm"])
def attentions(request: pytest.FixtureRequest) -> list[RecordedAttention]:
    model = small_detector(pre_norm=request.param == "pre-norm").model
    return record_attention(model, padded_batch())


def all_inputs(attentions: list[RecordedAttention]) -> Iterator[AttentionInputs]:
    for attention in attentions:
        for kind in KINDS:
            yield from attention.layers[kind]


def test_weights_sum_to_one_and_are_zero_in_the_padding(attentions: list[RecordedAttention]) -> None:
    num_padded = 0
    for inputs in all_inputs(attentions):
        weights = inputs.weights(None, None)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]), rtol=0, atol=1e-5)
        if inputs.padding_mask is not None:
            num_padded += int(inputs.padding_mask.sum())
            assert (weights[:, :, inputs.padding_mask[0]] == 0).all()
            unmasked = inputs.module.weights(inputs.queries, inputs.keys)[0]
            assert (unmasked[:, :, inputs.padding_mask[0]] > 0).any(), (
                "the weights of padding are zero even without a mask"
            )
    assert num_padded > 0


def test_weights_reproduce_the_output_of_the_layer(attentions: list[RecordedAttention]) -> None:
    for inputs in all_inputs(attentions):
        values = inputs.module.split_heads(inputs.module.value_projection(inputs.values))[0]
        attended = inputs.weights(None, None) @ values
        output = inputs.module.output_projection(attended.transpose(0, 1).flatten(1))
        assert_equal_up_to_rounding(output, inputs.output[0])


def test_selected_heads_and_queries_equal_those_of_the_full_matrix(attentions: list[RecordedAttention]) -> None:
    for kind in KINDS:
        whole = attentions[0].weights(kind)
        assert_equal_up_to_rounding(
            attentions[0].weights(kind, heads=[6, 1], queries=[4, 0, 3]), whole[[6, 1]][:, [4, 0, 3]]
        )
        assert_equal_up_to_rounding(attentions[0].mean_weights(kind, queries=[2]), whole.mean(0)[[2]])
    first = attentions[1].weights("encoder", 0)
    assert torch.equal(first, attentions[1].weights("encoder", -len(attentions[1].layers["encoder"])))
    assert not torch.equal(first, attentions[1].weights("encoder", -1))


def test_maps_are_the_weights_in_the_shape_of_the_feature_map(attentions: list[RecordedAttention]) -> None:
    attention = attentions[1]
    maps = attention.maps("decoder_cross", queries=[5])
    assert maps.shape == (8, 1, *attention.grid.cells)
    rows, columns = attention.grid.cells
    assert torch.equal(maps[3, 0, 2, 1], attention.weights("decoder_cross", queries=[5])[3, 0, 2 * columns + 1])
    assert maps.sum() == pytest.approx(8, abs=1e-4)
    assert rows * columns == attention.grid.num_tokens


def count_hooks(model: DETR) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_recording_changes_no_output_and_removes_its_hooks() -> None:
    model = small_detector().model.eval()
    batch = padded_batch()
    with torch.no_grad():
        before = model(batch.images, batch.padding_mask)
    attentions = record_attention(model, batch)
    for index, attention in enumerate(attentions):
        assert torch.equal(attention.predictions.layer_boxes[:, 0], before.layer_boxes[:, index])
        assert torch.equal(attention.predictions.class_logits[0], before.class_logits[index])
    assert count_hooks(model) == 0
    num_hooks = []
    model.heads.register_forward_pre_hook(lambda *_: num_hooks.append(count_hooks(model)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record_attention(model, batch)
    assert num_hooks == [0]  # those that record are on a copy
    assert count_hooks(model) == 0


def test_recording_holds_inputs_but_no_attention_matrix() -> None:
    attention = record_attention(small_detector().model, padded_batch())[0]
    width = 128
    for inputs in all_inputs([attention]):
        tensors = [inputs.queries, inputs.keys, inputs.values, inputs.output]
        assert all(tensor.shape[-1] == width for tensor in tensors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 2}, "layer=2 does not exist: encoder has 2 layers"),
        ({"heads": [8]}, "heads=8 is out of range; expected 0 to 7"),
        ({"queries": [64]}, "queries=64 is out of range; expected 0 to 63"),
        ({"queries": [-1]}, "queries=-1 is out of range; expected 0 to 63"),
    ],
)
def test_layers_heads_and_queries_out_of_range_are_rejected(
    attentions: list[RecordedAttention], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        attentions[0].weights("encoder", **arguments)  # type: ignore[arg-type]


def test_a_model_without_encoder_has_no_encoder_attention() -> None:
    attention = record_attention(build_model("detr-tiny", encoder_layers=0).eval(), padded_batch())[0]
    assert attention.layers["encoder"] == ()
    with pytest.raises(ConfigError, match="encoder has 0 layers"):
        attention.weights("encoder")


def test_detector_attention_belongs_to_the_predictions_of_the_same_image() -> None:
    detector = small_detector()
    image = Image.effect_mandelbrot((150, 90), (-2, -1, 1, 1), 20).convert("RGB")
    attention = detector.attention(image)
    detections = detector.predict(image, threshold=0)
    scores = attention.predictions.class_logits[0].softmax(-1)[:, :-1].max(-1).values
    assert_equal_up_to_rounding(scores.sort(descending=True).values, detections.scores)  # fused norms
    assert attention.grid.original == (90, 150)
    assert attention.grid.resized == (64, 106)
    assert attention.grid.cells == (8, 14)
    assert attention.weights("encoder", queries=[attention.grid.token_at(149, 89)]).shape == (8, 1, 112)
