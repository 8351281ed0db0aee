"""OpenVINO folders: float32 as PyTorch, bfloat16 and int8 near it, with and without padding, sizes seen before or not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit.export.openvino_folder import write_openvino
from detrkit.export.verify import compare
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.openvino import OpenVinoSession, load_openvino, read_openvino
from detrkit.models.detr import DETR
from detrkit.structures import Annotations, Sample
from tests.export.models import CATEGORIES, SIZES, batch_of, described, eager, small_model, traced


@pytest.fixture(scope="module")
def model() -> DETR:
    return small_model()


@pytest.fixture(scope="module")
def program(model: DETR) -> torch.export.ExportedProgram:
    return traced(model)


@pytest.fixture(scope="module")
def float32(model: DETR, program: torch.export.ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float32")
    write_openvino(program, described(model), folder)
    return folder


def session_of(engine: ExportedEngine) -> OpenVinoSession:
    assert isinstance(engine.session, OpenVinoSession)
    return engine.session


def test_float32_gives_the_numbers_of_pytorch_in_every_order_of_sizes(model: DETR, float32: Path) -> None:
    """A size that comes again, unpadded, gets a network of its own, which has to say the same."""
    engine = read_openvino(float32)
    for sizes in SIZES + SIZES + SIZES:
        batch = batch_of(sizes)
        expected, found = eager(model).predict(batch), engine.predict(batch)
        torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)
    assert set(session_of(engine)._by_size) == {(1, 3, 96, 128)}


def test_an_answer_outlives_the_next_one(float32: Path) -> None:
    engine = read_openvino(float32)
    first = engine.predict(batch_of([(96, 128)]))
    kept = first.class_logits.clone()
    engine.predict(batch_of([(80, 128)]))
    assert torch.equal(first.class_logits, kept)


def test_post_processing_in_the_graph(model: DETR, tmp_path: Path) -> None:
    write_openvino(traced(model, postprocess=True), described(model, postprocess=True), tmp_path)
    engine = read_openvino(tmp_path)
    batches = [batch_of(sizes) for sizes in ([(130, 97), (64, 200)], [(64, 96)], [(64, 96)], [(64, 96)])]
    comparison = compare(eager(model), engine, batches, CATEGORIES, has_logits=False)
    assert comparison.scores < 1e-4
    assert comparison.boxes < 1e-4
    assert comparison.num_found == comparison.num_detections > 0


def test_bfloat16_is_a_property_of_the_folder(
    model: DETR, program: torch.export.ExportedProgram, float32: Path, tmp_path: Path
) -> None:
    write_openvino(program, described(model, precision="bfloat16"), tmp_path)
    engine = read_openvino(tmp_path)
    can = "BF16" in load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert session_of(engine).settings["INFERENCE_PRECISION_HINT"] == ("bf16" if can else "f32")
    assert session_of(read_openvino(float32)).settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert (tmp_path / "model.bin").stat().st_size < 0.6 * (float32 / "model.bin").stat().st_size
    batches = [batch_of(sizes) for sizes in SIZES + SIZES + SIZES]
    comparison = compare(eager(model), engine, batches, CATEGORIES)
    assert comparison.mean_boxes < 0.01
    assert comparison.num_found >= 0.9 * comparison.num_detections > 0


def test_int8_finds_the_same_objects(model: DETR, program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    generator = torch.Generator().manual_seed(1)
    samples = [
        Sample(torch.randint(0, 256, (3, 96, side), dtype=torch.uint8, generator=generator), nothing, 0, (96, side))
        for side in (96, 128, 112, 80)
    ]
    write_openvino(program, described(model, precision="int8"), tmp_path, samples)
    network = load_openvino().Core().read_model(tmp_path / "model.xml")
    quantized = [node for node in network.get_ops() if node.get_type_name() == "FakeQuantize"]
    assert len(quantized) > 20
    heads = [node for node in network.get_ops() if node.get_type_name() == "Sigmoid"]
    assert all(not _is_quantized(node) for node in heads), "the box head stays in float"
    batches = [batch_of(sizes) for sizes in SIZES + SIZES + SIZES]
    comparison = compare(eager(model), read_openvino(tmp_path), batches, CATEGORIES)
    assert comparison.mean_boxes < 0.03
    assert comparison.num_found >= 0.7 * comparison.num_detections > 0


def test_int8_leaves_places_in_float(tmp_path: Path) -> None:
    model = small_model("detrkit-s", encoder_layers=1, layerwise_heads=False)
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    generator = torch.Generator().manual_seed(1)
    photos = [torch.randint(0, 256, (3, 96, side), dtype=torch.uint8, generator=generator) for side in (96, 128)]
    samples = [Sample(one, nothing, 0, (96, one.shape[2])) for one in photos]
    write_openvino(traced(model), described(model, precision="int8"), tmp_path, samples)
    network = load_openvino().Core().read_model(tmp_path / "model.xml")
    quantized = [node for node in network.get_ops() if node.get_type_name() == "FakeQuantize"]
    asked = {
        target.get_node().get_type_name()
        for node in quantized
        if node.get_output_partial_shape(0).rank.get_length() != 4
        for target in node.output(0).get_target_inputs()
    }
    assert len(quantized) > 20
    assert asked <= {"MatMul", "Gather", "Reshape", "Unsqueeze"}, "besides maps, linear layers alone; no sums, no sines"


def _is_quantized(node: object) -> bool:
    """Whether anything between a node and the last sum of tokens before it is int8."""
    for _ in range(6):
        node = node.input_value(0).get_node()  # type: ignore[attr-defined]
        if node.get_type_name() == "FakeQuantize":
            return True
    return False


def test_nobody_is_told_that_openvino_is_used() -> None:
    code = (
        "from detrkit.inference.engines.openvino import load_openvino; load_openvino(); import sys;"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
