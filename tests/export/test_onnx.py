"""ONNX files: PyTorch's outputs for images and batches of any size, and readable names."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from detrkit.data.batching import IMAGENET_MEAN, IMAGENET_STD
from detrkit.errors import CheckpointError
from detrkit.export.onnx import write_onnx
from detrkit.inference.engines.onnx import read_onnx
from detrkit.models.detr import DETR
from detrkit.postprocess.boxes import best_class_boxes
from detrkit.structures import Batch
from tests.export.models import SIZES, metadata_of, noise_batch, small_model, torch_engine, trace


@pytest.fixture(scope="module")
def path(exported: Callable[..., Path]) -> Path:
    return exported("onnx")


@pytest.fixture(scope="module")
def pixel_path(exported: Callable[..., Path]) -> Path:
    return exported("onnx", postprocess=True)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_and_boxes_equal_pytorch(model: DETR, path: Path, sizes: list[tuple[int, int]]) -> None:
    batch = noise_batch(sizes)
    expected, actual = torch_engine(model).predict(batch), read_onnx(path).predict(batch)
    assert expected.class_logits.std() > 1
    torch.testing.assert_close(actual.class_logits, expected.class_logits, rtol=0, atol=1e-3)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_image_does_not_depend_on_its_batch(path: Path) -> None:
    engine = read_onnx(path)
    together = engine.predict(noise_batch([(70, 90), (128, 100)]))
    batch = noise_batch([(70, 90), (128, 100)])
    alone = engine.predict(
        Batch(
            images=batch.images[:1, :, :70, :90],
            padding_mask=batch.padding_mask[:1, :70, :90],
            targets=batch.targets[:1],
            image_ids=[0],
            sizes=[(70, 90)],
            original_sizes=[(70, 90)],
        )
    )
    torch.testing.assert_close(alone.class_logits[0], together.class_logits[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(alone.boxes[0], together.boxes[0], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_post_processing_in_the_graph_equals_pytorch(model: DETR, pixel_path: Path) -> None:
    batch = noise_batch([(130, 97), (64, 200)])
    sizes = torch.tensor([[260, 194], [480, 1500]])
    session = onnxruntime.InferenceSession(str(pixel_path), providers=["CPUExecutionProvider"])
    given = {"images": batch.images.numpy(), "padding_mask": batch.padding_mask.numpy(), "sizes": sizes.numpy()}
    actual = dict(zip((one.name for one in session.get_outputs()), session.run(None, given), strict=True))
    predictions = torch_engine(model).predict(batch)
    scores, labels, boxes = best_class_boxes(predictions.class_logits, predictions.boxes, sizes)
    np.testing.assert_allclose(actual["scores"], scores, atol=1e-4)
    np.testing.assert_array_equal(actual["labels"], labels)
    np.testing.assert_allclose(actual["boxes"], boxes, atol=1e-4 * 1500)


def test_engine_of_a_post_processed_file_equals_pytorch(model: DETR, pixel_path: Path) -> None:
    batch = noise_batch([(130, 97), (64, 200)])
    sizes = torch.tensor(batch.original_sizes)
    expected, actual = (
        best_class_boxes(one.class_logits, one.boxes, sizes)
        for one in (torch_engine(model).predict(batch), read_onnx(pixel_path).predict(batch))
    )
    torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-4)
    assert torch.equal(actual[1], expected[1])
    torch.testing.assert_close(actual[2], expected[2], rtol=0, atol=0.05)


def test_nodes_weights_and_axes_have_readable_names(model: DETR, path: Path) -> None:
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
    for expected in (
        "backbone.body.layer1.0.conv1/Conv",
        "encoder.layers.0.self_attention/Softmax",
        "heads.box_head.4/Add",
    ):
        assert expected in names
    weights = {one.name for one in graph.initializer}
    ends = {one.name for one in graph.output}
    assert all(value == node.name or value in ends for node in graph.node for value in node.output)
    assert all(re.match(r"[a-z_]+\.|constant_", name) or "/" in name for name in weights), "no numbers as names"
    assert "constant_[0.5]" in weights, "queries and keys are each scaled by the fourth root of 1/16"
    assert "neck.positions/Div_2.table" in weights, "wavelengths of the sine position encoding"
    assert "backbone.body.conv1.weight" in weights
    assert "decoder.layers.0.feed_forward.expand.weight_transposed" in weights
    assert not {node.op_type for node in graph.node} & {"BatchNormalization", "IsNaN"}, "norms are fused"
    assert not re.search(rb"/detrkit/|\.py", path.read_bytes()), "no paths of source files"


def test_metadata_hold_classes_and_preprocessing(model: DETR, path: Path) -> None:
    metadata = {one.key: one.value for one in onnx.load(path).metadata_props}
    assert json.loads(metadata["names"]) == ["circle", "dog <br>", "Flasche"]
    assert json.loads(metadata["category_ids"]) == [3, 18, 44]
    preprocessing = json.loads(metadata["preprocessing"])
    assert preprocessing["mean"] == list(IMAGENET_MEAN)
    assert preprocessing["std"] == list(IMAGENET_STD)
    assert (preprocessing["image_size"], preprocessing["max_size"], preprocessing["resize"]) == (
        64,
        107,
        "shorter_side",
    )
    assert read_onnx(path).metadata == metadata_of(model)


@pytest.mark.slow
def test_five_channels_frozen_norms_learned_positions_and_published_padding_equal_pytorch(tmp_path: Path) -> None:
    settings = {"in_channels": 5, "hidden_dim": 32, "dim_feedforward": 64, "position_embedding": "learned"}
    model = small_model("detr-r18", **settings)
    write_onnx(trace(model, padding_invariant=False), metadata_of(model), tmp_path / "model.onnx")
    batch = noise_batch([(96, 128), (128, 64)], channels=5)
    expected = torch_engine(model, padding_invariant=False).predict(batch)
    actual = read_onnx(tmp_path / "model.onnx").predict(batch)
    torch.testing.assert_close(actual.class_logits, expected.class_logits, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_metadata_that_is_no_text_is_an_error(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(path.read_bytes().replace(b'"circle"', b'"\x80\xff\x80\xff\x80\xff"'))
    with pytest.raises(CheckpointError, match="not readable as ONNX"):
        read_onnx(damaged)
    assert capfd.readouterr() == ("", "")
