"""Successors exported: the numbers of PyTorch for padded batches of any size, with and without post-processing."""

from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.export.onnx_file import write_onnx
from detrkit.export.openvino_folder import write_openvino
from detrkit.export.program_file import write_program
from detrkit.export.verify import _differences_of_best, compare
from detrkit.inference.engines.onnx import read_onnx
from detrkit.inference.engines.openvino import read_openvino
from detrkit.inference.engines.program import read_program
from detrkit.models.detr import DETR
from detrkit.structures import Predictions
from tests.export.models import CATEGORIES, batch_of, described, eager, traced

KINDS = {
    "conditional-detr-r50": {},
    "dab-detr-r50": {},
    # with points in the encoder and boxes in the decoder, it has all that the other deformable ones have
    "deformable-detr-r50-two-stage": {"num_feature_levels": 2, "decoder_layers": 1},
}
SIZES = [[(96, 128)], [(130, 97), (64, 200)], [(40, 75)]]


def model_of(kind: str) -> DETR:
    torch.manual_seed(0)
    few = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 10, "dim_feedforward": 32, "hidden_dim": 64}
    settings = {"backbone": "resnet-tiny", "max_detections": 12, **few, **KINDS[kind]}
    model = build_model(kind, num_classes=len(CATEGORIES), **settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:  # much of it starts at zero
                parameter.normal_(0, 1.0 if name == "query_source.weight" else 1.5 * parameter.shape[1] ** -0.5)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_gives_the_numbers_of_pytorch(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    program, metadata = traced(model), described(model)
    (tmp_path / "openvino").mkdir()
    write_onnx(program, metadata, tmp_path / "model.onnx")
    write_openvino(program, metadata, tmp_path / "openvino")
    write_program(program, metadata, tmp_path / "model.pt2")
    engines = [read_onnx(tmp_path / "model.onnx"), read_openvino(tmp_path / "openvino")]
    engines.append(read_program(tmp_path / "model.pt2"))
    for sizes in SIZES:
        batch = batch_of(sizes)
        expected = eager(model).predict(batch)
        assert expected.class_logits.std() > 0.1
        assert expected.boxes.std() > 0.05
        for engine in engines:
            found = engine.predict(batch)
            assert (found.class_scores, found.max_detections) == ("sigmoid", 12)
            torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=0, atol=1e-3)
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_post_processing_in_the_graph_chooses_the_best_pairs(tmp_path: Path) -> None:
    model = model_of("conditional-detr-r50")
    metadata = described(model, postprocess=True)
    write_onnx(traced(model, postprocess=True), metadata, tmp_path / "model.onnx")
    batches = [batch_of(sizes) for sizes in SIZES]
    engine = read_onnx(tmp_path / "model.onnx")
    assert engine.predict(batches[1]).boxes.shape == (2, 12, 4)
    comparison = compare(eager(model), engine, batches, CATEGORIES, has_logits=False)
    assert comparison.logits is None
    comparison.check("float32")


def test_best_pairs_are_compared_whatever_their_order() -> None:
    scores, boxes = torch.tensor([0.5, 0.4999, 0.1]), torch.rand(1, 1, 3, 4) * 0.2 + 0.3
    first = Predictions(torch.logit(scores)[None, None, :, None], boxes, class_scores="sigmoid")
    order = [1, 0, 2]
    swapped = Predictions(torch.logit(scores)[None, None, :, None], boxes[:, :, order], class_scores="sigmoid")
    assert _differences_of_best(first, swapped)[1].max() == 0
    moved = boxes.clone()
    moved[0, 0, 2, 0] += 0.25
    other = Predictions(torch.logit(scores)[None, None, :, None], moved, class_scores="sigmoid")
    assert _differences_of_best(first, other)[1].max().item() == pytest.approx(0.25, abs=1e-6)


def test_best_pairs_of_other_scores_do_not_stand_in_for_each_other() -> None:
    """The surest and the least sure of three change boxes: the box of either is somewhere, and belongs to another score."""
    boxes = torch.tensor([[0.2, 0.5, 0.1, 0.1], [0.3, 0.5, 0.1, 0.1], [0.6, 0.5, 0.1, 0.1]])
    logits = torch.logit(torch.tensor([0.5, 0.4999, 0.1]))[None, None, :, None]
    first = Predictions(logits, boxes[None, None], class_scores="sigmoid")
    second = Predictions(logits, boxes[None, None, [2, 1, 0]], class_scores="sigmoid")
    scores, places = _differences_of_best(first, second)
    assert not scores.any()
    # at 0.6 in place of 0.3, the closer of two that are equally sure; where it was; at 0.2 in place of 0.6
    torch.testing.assert_close(places[0].amax(-1), torch.tensor([0.3, 0.0, 0.4]))
