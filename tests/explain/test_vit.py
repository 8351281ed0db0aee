"""Recorded attention of ViTs: weights of cells within their windows and globally, and the page that shows them."""

import json

import pytest
import torch

from detrkit import ConfigError, Detector, Sample
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.explain.document import page_document
from detrkit.explain.explain import explain_sample
from detrkit.models.attention.recording import record_attention
from detrkit.models.attention.recording_windows import WindowAttentionInputs
from tests.models.vit_models import small_vit


def as_rows(inputs: WindowAttentionInputs, tokens: torch.Tensor) -> torch.Tensor:
    """Order the tokens of all windows row by row, without those that are no cells."""
    cells, positions = inputs._cells()
    rows = torch.empty(inputs.num_queries, tokens.shape[-1])
    rows[cells.flatten()] = tokens[:, positions].flatten(0, 1)
    return rows


@pytest.mark.parametrize("layer", [0, 1])
def test_weights_of_all_cells_reproduce_the_output_of_a_block(layer: int) -> None:
    model = small_vit("lwdetr-tiny").eval()
    samples = SyntheticShapes(2, 0, SyntheticStyle(size=96)).draw_all()
    batch = collate([Sample(one.image[:, :64], one.annotations, one.image_id, (64, 96)) for one in samples])
    inputs = record_attention(model, batch)[1].layers["encoder"][layer]
    assert isinstance(inputs, WindowAttentionInputs)
    assert inputs.grid.cells == (4, 6)
    assert inputs.is_global == (layer == 1)
    attention = inputs.module
    with torch.no_grad():
        values = attention.split_heads(attention.value_projection(as_rows(inputs, inputs.tokens))[None])[0]
        mixed = inputs.weights(None, None) @ values
        output = attention.output_projection(mixed.transpose(0, 1).flatten(1))
    torch.testing.assert_close(output, as_rows(inputs, inputs.output))
    chosen = inputs.weights([5, 2], [7, 20])
    torch.testing.assert_close(chosen, inputs.weights(None, None)[[5, 2]][:, [7, 20]])


def test_cells_attend_within_their_window_and_to_its_class_token() -> None:
    detector = Detector.from_model(small_vit("rfdetr-nano").eval(), image_size=64)
    attention = detector.attention(torch.randint(0, 256, (3, 40, 80), dtype=torch.uint8))
    local, everywhere = (attention.maps("encoder", layer, queries=[5])[:, 0] for layer in (0, 1))
    assert local.shape == (6, 4, 4)
    assert local[:, 2:].max() == local[:, :, 2:].max() == 0
    assert (everywhere > 0).all()
    for of_heads in (local, everywhere):
        assert ((of_heads.sum((1, 2)) > 0.5) & (of_heads.sum((1, 2)) < 1)).all()
    inputs = attention.inputs("encoder", 0)
    assert isinstance(inputs, WindowAttentionInputs)
    assert inputs.window_box(5) == (0, 0, 40, 20)
    assert inputs.window_box(6) == (40, 0, 80, 20)
    last = attention.inputs("encoder", 1)
    assert isinstance(last, WindowAttentionInputs)
    assert last.window_box(5) is None
    with pytest.raises(ConfigError, match="encoder has 2 layers"):
        attention.inputs("encoder", 2)


def test_page_shows_masks_of_queries() -> None:
    detector = Detector.from_model(
        small_vit("rfdetr-seg-nano").eval(), Categories((1, 2, 5), ("a", "b", "c")), image_size=64
    )
    explanation = explain_sample(detector, SyntheticShapes(1, 5, SyntheticStyle(size=80))[0], threshold=0)
    assert explanation.masks is not None
    assert explanation.masks.cell_size == (4.0, 4.0)
    probabilities = explanation.masks.probabilities([0, 3])
    assert probabilities.shape == (2, 16, 16)
    masks = explanation.attention.predictions.masks
    assert masks is not None
    torch.testing.assert_close(probabilities, masks[0, [0, 3]].sigmoid(), rtol=0, atol=1e-5)
    (stage,) = (one for one in explanation.stages if one.part == "mask_head")
    assert "4 x 4 pixels" in stage.description
    assert stage.file == "models/heads/dot_product.py"
    document = json.loads(json.dumps(page_document(explanation).document))
    assert document["masks"]["bytes"]["shape"][1:] == [16, 16]


def test_page_has_the_maps_of_every_block_and_head_of_models_with_several_feature_maps() -> None:
    model = small_vit("lwdetr-large", hidden_dim=96, num_heads=12, cross_attention_heads=24, backbone="vit-tiny")
    detector = Detector.from_model(model.eval(), Categories((1, 2, 5), ("a", "b", "c")), image_size=96)
    sample = SyntheticShapes(1, 5, SyntheticStyle(size=80))[0]
    explanation = explain_sample(detector, sample, threshold=0)
    document = json.loads(json.dumps(page_document(explanation).document))
    assert document["model"]["windows"] == {"perSide": 2, "globalLayers": [1], "hasClassToken": False}
    assert document["model"]["heads"] == {"encoder": 12, "self": 12, "cross": 24}
    assert document["grid"]["cells"] == [6, 6]
    assert [level["cells"] for level in document["levels"]] == [[12, 12], [3, 3]]
    assert document["maps"]["encoder"]["heads"]["bytes"]["shape"] == [2, 12, 36, 36]
    assert document["maps"]["cross"]["bytes"]["shape"][1:] == [2, 24, 36]
    figure = explanation.figure("encoder", points=[(10, 10)], layer=0)
    assert len(figure.axes) == 2
