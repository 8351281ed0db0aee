"""ONNX files: the numbers of PyTorch for photos of any size in batches of any size, and a file that people can read."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from detrkit.data.batching import IMAGENET_MEAN, IMAGENET_STD
from detrkit.export.onnx_file import write_onnx
from detrkit.inference.engines.onnx import read_onnx
from detrkit.models.detr import DETR
from detrkit.postprocess.boxes import best_class_boxes
from tests.export.models import SIZES, batch_of, described, eager, small_model, traced


@pytest.fixture(scope="module")
def model() -> DETR:
    return small_model()


@pytest.fixture(scope="module")
def path(model: DETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(traced(model), described(model), path)
    return path


@pytest.fixture(scope="module")
def pixel_path(model: DETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "pixels.onnx"
    write_onnx(traced(model, postprocess=True), described(model, postprocess=True), path)
    return path


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_and_boxes_are_those_of_pytorch(model: DETR, path: Path, sizes: list[tuple[int, int]]) -> None:
    batch = batch_of(sizes)
    expected, found = eager(model).predict(batch), read_onnx(path).predict(batch)
    assert expected.class_logits.std() > 1
    torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_a_photo_does_not_depend_on_the_others_in_its_batch(path: Path) -> None:
    engine = read_onnx(path)
    together = engine.predict(batch_of([(70, 90), (128, 100)]))
    generator_twin = batch_of([(70, 90), (128, 100)])
    alone = engine.predict(
        type(generator_twin)(
            images=generator_twin.images[:1, :, :70, :90],
            padding_mask=generator_twin.padding_mask[:1, :70, :90],
            targets=generator_twin.targets[:1],
            image_ids=[0],
            sizes=[(70, 90)],
            original_sizes=[(70, 90)],
        )
    )
    torch.testing.assert_close(alone.class_logits[0], together.class_logits[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(alone.boxes[0], together.boxes[0], rtol=0, atol=1e-4)


def test_post_processing_in_the_graph_is_that_of_the_house(model: DETR, pixel_path: Path) -> None:
    batch = batch_of([(130, 97), (64, 200)])
    sizes = torch.tensor([[260, 194], [480, 1500]])
    session = onnxruntime.InferenceSession(str(pixel_path), providers=["CPUExecutionProvider"])
    given = {"images": batch.images.numpy(), "padding_mask": batch.padding_mask.numpy(), "sizes": sizes.numpy()}
    found = dict(zip((one.name for one in session.get_outputs()), session.run(None, given), strict=True))
    predictions = eager(model).predict(batch)
    scores, labels, boxes = best_class_boxes(predictions.class_logits, predictions.boxes, sizes)
    np.testing.assert_allclose(found["scores"], scores, atol=1e-4)
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_allclose(found["boxes"], boxes, atol=1e-4 * 1500)


def test_a_file_with_post_processing_gives_the_same_scores_labels_and_boxes(model: DETR, pixel_path: Path) -> None:
    batch = batch_of([(130, 97), (64, 200)])
    sizes = torch.tensor(batch.original_sizes)
    expected, found = (
        best_class_boxes(one.class_logits, one.boxes, sizes)
        for one in (eager(model).predict(batch), read_onnx(pixel_path).predict(batch))
    )
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-4)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=0.05)


def test_the_file_is_readable_by_people(model: DETR, path: Path) -> None:
    file = onnx.load(path)
    onnx.checker.check_model(file)
    graph = file.graph
    axes = {
        one.name: [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in graph.input
    }
    assert axes == {"images": ["batch", 3, "height", "width"], "padding_mask": ["batch", "height", "width"]}
    assert [one.name for one in graph.output] == ["class_logits", "boxes"]
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    for wanted in (
        "backbone.body.layer1.0.conv1/Conv",
        "encoder.layers.0.self_attention/Softmax",
        "heads.box_head.4/Add",
    ):
        assert wanted in names
    weights = {one.name for one in graph.initializer}
    ends = {one.name for one in graph.output}
    assert all(value == node.name or value in ends for node in graph.node for value in node.output)
    assert all(re.match(r"[a-z_]+\.|constant_", name) or "/" in name for name in weights), "no numbers for names"
    assert "constant_[0.5]" in weights, "queries and keys are each scaled by the fourth root of 1/16"
    assert "positions/Div_2.table" in weights, "the wavelengths of the sines"
    assert "backbone.body.conv1.weight" in weights
    assert "decoder.layers.1.feed_forward.expand.weight_transposed" in weights
    assert not {node.op_type for node in graph.node} & {"BatchNormalization", "IsNaN"}, "norms are folded, guards gone"
    assert not re.search(rb"/detrkit/|\.py", path.read_bytes()), "no paths of the machine that wrote it"


def test_the_metadata_tell_classes_and_preprocessing(path: Path) -> None:
    metadata = {one.key: one.value for one in onnx.load(path).metadata_props}
    assert json.loads(metadata["names"]) == {"0": "circle", "1": "dog <br>", "2": "Flasche"}
    assert json.loads(metadata["category_ids"]) == {"0": 3, "1": 18, "2": 44}
    preprocessing = json.loads(metadata["preprocessing"])
    assert preprocessing["mean"] == list(IMAGENET_MEAN)
    assert preprocessing["deviation"] == list(IMAGENET_STD)
    assert preprocessing["image_size"] == 64
    assert read_onnx(path).metadata == described(small_model())


@pytest.mark.parametrize(
    ("name", "overrides", "padding_invariant"),
    [
        ("detr-r18", {"hidden_dim": 32, "dim_feedforward": 64, "position_embedding": "learned"}, False),
        ("detr-r18", {"hidden_dim": 128, "dim_feedforward": 64, "mask_head": True}, True),
        ("detr-tiny", {"in_channels": 5}, True),
    ],
    ids=["frozen norms, learned positions, padding as published", "mask head", "five channels"],
)
def test_other_models(name: str, overrides: dict[str, object], padding_invariant: bool, tmp_path: Path) -> None:
    model = small_model(name, decoder_layers=1, **overrides)
    write_onnx(traced(model, padding_invariant=padding_invariant), described(model), tmp_path / "model.onnx")
    batch = batch_of([(96, 128), (128, 64)], model.config.in_channels)
    expected, found = eager(model, padding_invariant).predict(batch), read_onnx(tmp_path / "model.onnx").predict(batch)
    torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)
