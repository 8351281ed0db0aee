"""OpenVINO folders: float32 equals PyTorch, bfloat16 and int8 are close, for padded and unpadded images of any size."""

import copy
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.errors import CheckpointError, ConfigError
from detrkit.export.openvino import write_openvino
from detrkit.export.verify import compare
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.openvino import OpenVinoSession, load_openvino, read_openvino
from detrkit.models.detr import DETR
from tests.export.models import (
    CATEGORIES,
    SIZES,
    metadata_of,
    noise_batch,
    noise_samples,
    small_model,
    torch_engine,
    trace,
)


def lacks_avx() -> bool:
    """Return whether OpenVINO cannot run layer normalization for images of any size."""
    from torch.backends import cpu

    return platform.machine().lower() in ("x86_64", "amd64") and cpu.get_cpu_capability() == "DEFAULT"


pytestmark = pytest.mark.skipif(lacks_avx(), reason="OpenVINO needs a processor with AVX")


@pytest.fixture(scope="module")
def float32(exported: Callable[..., Path]) -> Path:
    return exported("openvino")


def session_of(engine: ExportedEngine) -> OpenVinoSession:
    assert isinstance(engine.session, OpenVinoSession)
    return engine.session


def quantized_nodes(folder: Path) -> tuple[Any, list[Any]]:
    network = load_openvino().Core().read_model(folder / "model.xml")
    return network, [node for node in network.get_ops() if node.get_type_name() == "FakeQuantize"]


def test_float32_equals_pytorch_for_new_and_repeated_sizes(model: DETR, float32: Path) -> None:
    """A size that is repeated without padding gets a network compiled for it."""
    engine = read_openvino(float32)
    for sizes in SIZES * 3:
        batch = noise_batch(sizes)
        expected, actual = torch_engine(model).predict(batch), engine.predict(batch)
        torch.testing.assert_close(actual.class_logits, expected.class_logits, rtol=0, atol=1e-3)
        torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-4)
    assert set(session_of(engine)._by_size) == {(1, 3, 96, 128)}


def test_predictions_are_not_overwritten_by_the_next_call(float32: Path) -> None:
    engine = read_openvino(float32)
    first = engine.predict(noise_batch([(96, 128)]))
    before = first.class_logits.clone()
    engine.predict(noise_batch([(80, 128)]))
    assert torch.equal(first.class_logits, before)


def test_network_that_returns_nothing_is_an_error(float32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO on x86 processors without AVX."""
    engine = read_openvino(float32)
    nothing = {"class_logits": torch.zeros(0, 10, 4), "boxes": torch.zeros(0, 10, 4)}
    monkeypatch.setattr(session_of(engine), "_infer", lambda _inputs: nothing)
    with pytest.raises(CheckpointError, match="OpenVINO cannot run it on this processor, x86 needs AVX"):
        engine.predict(noise_batch([(96, 128)]))


@pytest.mark.slow
def test_post_processing_in_the_graph_equals_pytorch(model: DETR, exported: Callable[..., Path]) -> None:
    engine = read_openvino(exported("openvino", postprocess=True))
    batches = [noise_batch(sizes) for sizes in ([(130, 97), (64, 200)], [(64, 96)], [(64, 96)], [(64, 96)])]
    comparison = compare(torch_engine(model), engine, batches, CATEGORIES, has_logits=False)
    assert comparison.max_score_difference < 1e-4
    assert comparison.max_box_difference < 1e-4
    assert comparison.num_matched == comparison.num_detections > 0


@pytest.mark.slow
def test_bfloat16_folder_is_half_as_large_and_computed_in_bfloat16(
    model: DETR, program_of: Callable[..., Any], float32: Path, tmp_path: Path
) -> None:
    write_openvino(copy.deepcopy(program_of(False)), metadata_of(model, precision="bfloat16"), tmp_path)
    engine = read_openvino(tmp_path)
    is_supported = "BF16" in load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert session_of(engine).settings["INFERENCE_PRECISION_HINT"] == ("bf16" if is_supported else "f32")
    assert session_of(read_openvino(float32)).settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert (tmp_path / "model.bin").stat().st_size < 0.6 * (float32 / "model.bin").stat().st_size
    comparison = compare(torch_engine(model), engine, [noise_batch(sizes) for sizes in SIZES * 3], CATEGORIES)
    assert comparison.mean_box_difference < 0.01
    assert comparison.num_matched >= 0.9 * comparison.num_detections > 0


@pytest.mark.slow
def test_int8_matches_detections_and_keeps_the_box_head_in_float(
    model: DETR, program_of: Callable[..., Any], tmp_path: Path
) -> None:
    samples = noise_samples([(96, side) for side in (96, 128, 112, 80)])
    write_openvino(copy.deepcopy(program_of(False)), metadata_of(model, precision="int8"), tmp_path, samples)
    network, quantized = quantized_nodes(tmp_path)
    assert len(quantized) > 20
    heads = [node for node in network.get_ops() if node.get_type_name() == "Sigmoid"]
    assert all(not is_preceded_by_quantization(node) for node in heads)
    batches = [noise_batch(sizes) for sizes in SIZES * 3]
    comparison = compare(torch_engine(model), read_openvino(tmp_path), batches, CATEGORIES)
    assert comparison.mean_box_difference < 0.03
    assert comparison.num_matched >= 0.7 * comparison.num_detections > 0


@pytest.mark.slow
def test_int8_keeps_positions_of_deformable_attention_in_float(tmp_path: Path) -> None:
    model = small_model("detrkit-s", encoder_layers=1, layerwise_heads=False)
    write_openvino(
        trace(model), metadata_of(model, precision="int8"), tmp_path, noise_samples([(96, side) for side in (96, 128)])
    )
    _, quantized = quantized_nodes(tmp_path)
    consumers = {
        target.get_node().get_type_name()
        for node in quantized
        if node.get_output_partial_shape(0).rank.get_length() != 4
        for target in node.output(0).get_target_inputs()
    }
    assert len(quantized) > 20
    # apart from feature maps, only linear layers are quantized: no sums, no sines
    assert consumers <= {"MatMul", "Gather", "Reshape", "Unsqueeze"}


@pytest.mark.slow
def test_int8_without_nncf_is_rejected(
    model: DETR, program_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match="precision='int8' needs nncf"):
        write_openvino(copy.deepcopy(program_of(False)), metadata_of(model, precision="int8"), tmp_path)


def is_preceded_by_quantization(node: Any) -> bool:
    """Return whether one of the 6 operations before a node, back to the last sum of tokens, is in int8."""
    for _ in range(6):
        node = node.input_value(0).get_node()
        if node.get_type_name() == "FakeQuantize":
            return True
    return False


@pytest.mark.slow
def test_telemetry_of_openvino_is_not_loaded() -> None:
    code = (
        "from detrkit.inference.engines.openvino import load_openvino; load_openvino(); import sys;"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
