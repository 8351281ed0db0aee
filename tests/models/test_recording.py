"""Attention on demand: the softmax that the model used, and nothing left behind."""

from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from detrkit import ConfigError, Detector, build_model
from detrkit.data.batching import collate
from detrkit.data.dataset import unannotated
from detrkit.models.attention.recording import KINDS, Attention, AttentionInputs, record_attention
from detrkit.models.detr import DETR
from detrkit.structures import Batch
from tests.explain.conftest import small_detector


def padded_batch() -> Batch:
    torch.manual_seed(0)
    return collate([unannotated(torch.randint(0, 256, (3, *size), dtype=torch.uint8)) for size in ((40, 64), (64, 30))])


@pytest.fixture(scope="module", params=["pre-norm", "post-norm"])
def attentions(request: pytest.FixtureRequest) -> list[Attention]:
    model = small_detector(pre_norm=request.param == "pre-norm").model
    return record_attention(model, padded_batch())


def all_inputs(attentions: list[Attention]) -> Iterator[AttentionInputs]:
    for attention in attentions:
        for kind in KINDS:
            yield from attention.layers[kind]


def test_rows_sum_to_one_and_padding_gets_exactly_nothing(attentions: list[Attention]) -> None:
    num_padded = 0
    for inputs in all_inputs(attentions):
        weights = inputs.weights(None, None)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]), rtol=0, atol=1e-5)
        if inputs.padding_mask is not None:
            num_padded += int(inputs.padding_mask.sum())
            assert (weights[:, :, inputs.padding_mask[0]] == 0).all()
            unmasked = inputs.module.weights(inputs.queries, inputs.keys)[0]
            assert (unmasked[:, :, inputs.padding_mask[0]] > 0).any(), "padding gets nothing anyway"
    assert num_padded > 0


def test_the_returned_weights_give_the_layers_own_output(attentions: list[Attention]) -> None:
    for inputs in all_inputs(attentions):
        values = inputs.module.split_heads(inputs.module.value_projection(inputs.values))[0]
        mixed = inputs.weights(None, None) @ values
        output = inputs.module.output_projection(mixed.transpose(0, 1).flatten(1))
        torch.testing.assert_close(output, inputs.output[0], rtol=0, atol=1e-5)


def test_chosen_heads_and_rows_are_those_of_the_whole(attentions: list[Attention]) -> None:
    for kind in KINDS:
        whole = attentions[0].weights(kind)
        torch.testing.assert_close(
            attentions[0].weights(kind, heads=[6, 1], rows=[4, 0, 3]), whole[[6, 1]][:, [4, 0, 3]]
        )
        torch.testing.assert_close(attentions[0].mean_weights(kind, rows=[2]), whole.mean(0)[[2]])
    first = attentions[1].weights("encoder", 0)
    assert torch.equal(first, attentions[1].weights("encoder", -len(attentions[1].layers["encoder"])))
    assert not torch.equal(first, attentions[1].weights("encoder", -1))


def test_maps_are_the_weights_laid_out_as_the_feature_map(attentions: list[Attention]) -> None:
    attention = attentions[1]
    maps = attention.maps("decoder_cross", rows=[5])
    assert maps.shape == (8, 1, *attention.grid.cells)
    rows, columns = attention.grid.cells
    assert torch.equal(maps[3, 0, 2, 1], attention.weights("decoder_cross", rows=[5])[3, 0, 2 * columns + 1])
    assert maps.sum() == pytest.approx(8, abs=1e-4)
    assert rows * columns == attention.grid.num_tokens


def hooks_of(model: DETR) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_observing_changes_nothing_and_leaves_nothing_behind() -> None:
    model = small_detector().model
    batch = padded_batch()
    with torch.no_grad():
        before = model(batch.images, batch.padding_mask, padding_invariant=True)
    attentions = record_attention(model, batch)
    for index, attention in enumerate(attentions):
        assert torch.equal(attention.predictions.layer_boxes[:, 0], before.layer_boxes[:, index])
        assert torch.equal(attention.predictions.class_logits[0], before.class_logits[index])
    assert hooks_of(model) == 0
    seen = []
    model.heads.register_forward_pre_hook(lambda *_: seen.append(hooks_of(model)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record_attention(model, batch)
    assert seen[0] > 0
    assert hooks_of(model) == 0


def test_only_inputs_are_held_and_no_matrix() -> None:
    attention = record_attention(small_detector().model, padded_batch())[0]
    width = 128
    for inputs in all_inputs([attention]):
        held = [inputs.queries, inputs.keys, inputs.values, inputs.output]
        assert all(tensor.shape[-1] == width for tensor in held)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": 2}, "found layer 2 of encoder, which has 2 layers"),
        ({"heads": [8]}, "found head 8, expected 0 to 7"),
        ({"rows": [64]}, "found token 64, expected 0 to 63"),
        ({"rows": [-1]}, "found token -1, expected 0 to 63"),
    ],
)
def test_what_does_not_exist_is_one_sentence(
    attentions: list[Attention], asked: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        attentions[0].weights("encoder", **asked)  # type: ignore[arg-type]


def test_a_model_without_encoder_has_no_encoder_attention() -> None:
    attention = record_attention(build_model("detr-tiny", encoder_layers=0).eval(), padded_batch())[0]
    assert attention.layers["encoder"] == ()
    with pytest.raises(ConfigError, match="has 0 layers"):
        attention.weights("encoder")


def test_the_detector_explains_the_photo_that_it_predicts(detector: Detector) -> None:
    photo = Image.effect_mandelbrot((150, 90), (-2, -1, 1, 1), 20).convert("RGB")
    attention = detector.attention(photo)
    found = detector.predict(photo, threshold=0)
    scores = attention.predictions.class_logits[0].softmax(-1)[:, :-1].max(-1).values
    torch.testing.assert_close(scores.sort(descending=True).values, found.scores)
    assert attention.grid.original == (90, 150)
    assert attention.grid.resized == (64, 106)
    assert attention.grid.cells == (8, 14)
    assert attention.weights("encoder", rows=[attention.grid.token_at(149, 89)]).shape == (8, 1, 112)
