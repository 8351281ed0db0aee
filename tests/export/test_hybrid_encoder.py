"""ResNet-vd, HGNetV2 and the hybrid encoder: exports equal PyTorch for padded batches of any size."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detrkit.checkpoints.export_formats import EXPORT_FORMATS
from detrkit.export.graph import export_program
from detrkit.export.openvino import write_openvino
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.metadata import ExportPrecision
from detrkit.inference.engines.openvino import openvino_reason
from detrkit.models.detr import DETR
from detrkit.structures import Predictions
from tests.export.models import metadata_of, noise_batch, noise_samples, torch_engine, trace
from tests.models.hybrid_models import hybrid_model

# sides that are multiples of 32, odd ones, and ones that are odd on a feature map
SIZES = [[(96, 128)], [(130, 97), (64, 200)], [(65, 97)]]
SMALL = [[(33, 65)]]  # is padded to the smallest side of a graph, which only padding-invariant models ignore


def model_of(name: str) -> DETR:
    """Model with one decoder layer, whose scores differ between queries."""
    model = hybrid_model(name, num_queries=10, max_detections=12).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if parameter.ndim == 2 and part.startswith(("query_source", "decoder", "heads")):
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "padding_invariant"), [("dfine_n", True), ("rtdetr_r18vd", False)])
def test_every_engine_equals_pytorch(name: str, padding_invariant: bool, tmp_path: Path) -> None:
    model = model_of(name)
    program, metadata = trace(model, padding_invariant=padding_invariant), metadata_of(model)
    for format_name, format in EXPORT_FORMATS.items():
        path = tmp_path / f"{format_name}{format.suffix}"
        format.write(copy.deepcopy(program), metadata, path)
        engine = load_exported(path)
        for sizes in [*SIZES, SIZES[0], *(SMALL if padding_invariant else [])]:  # OpenVINO compiles for a repeated size
            batch = noise_batch(sizes)
            expected, actual = torch_engine(model, padding_invariant).predict(batch), engine.predict(batch)
            assert expected.class_logits.std() > 0.1
            logits, boxes = in_order_of(expected, actual)
            torch.testing.assert_close(logits, expected.class_logits, rtol=0, atol=1e-3)
            torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=1e-4)


def in_order_of(expected: Predictions, actual: Predictions) -> tuple[Tensor, Tensor]:
    """Return logits and boxes in the order of other queries: rounding may exchange the ranks of equally good cells."""
    values, others = (torch.cat([one.class_logits, one.boxes], -1) for one in (actual, expected))
    rows = torch.cdist(others, values).argmin(-1)
    assert torch.equal(rows.sort(1).values, torch.arange(rows.shape[1]).expand_as(rows))
    ordered = values.gather(1, rows[..., None].expand_as(values))
    return ordered[..., :-4], ordered[..., -4:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [("rtdetr_r18vd", "int8", 0.5)],
)
def test_openvino_computes_new_and_repeated_sizes_in_fewer_bits(
    name: str, precision: ExportPrecision, tolerance: float, tmp_path: Path
) -> None:
    model = model_of(name)
    metadata = metadata_of(model, precision=precision)
    write_openvino(trace(model), metadata, tmp_path, noise_samples([(96, 128)] * 2))
    engine = load_exported(tmp_path)
    batch = noise_batch(SIZES[0])
    expected = highest_logits(torch_engine(model).predict(batch))
    for _ in range(3):
        actual = highest_logits(engine.predict(batch))
        assert (actual - expected).abs().median() < tolerance  # of logits of about -4.4


def highest_logits(predictions: Predictions) -> torch.Tensor:
    """Return the highest logit of every query, sorted: queries of about equally good cells may be swapped."""
    return predictions.class_logits.amax(-1).sort().values


def test_reason_of_openvino_is_not_a_place_in_its_code() -> None:
    places = "Exception from core.cpp:117:\nException from plugin.cpp:54:\nCheck 'x' failed at node.cpp:345:\n"
    assert openvino_reason(RuntimeError(places + "No kernel for y\n\n")) == "No kernel for y"
    assert openvino_reason(RuntimeError("Check 'x' failed at node.cpp:345:")) == "Check 'x' failed at node.cpp:345:"


@pytest.mark.slow
def test_graph_has_neither_norms_nor_branches() -> None:
    program = export_program(model_of("dfine_n"), postprocess=False)
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [one for one in operators if "batch_norm" in one]
    weights = [name for name in program.state_dict if name.startswith("model.encoder.top_down.0.csp1.blocks.0.")]
    assert weights == [
        f"model.encoder.top_down.0.csp1.blocks.0.branch3x3.convolution.{kind}" for kind in ("weight", "bias")
    ]
