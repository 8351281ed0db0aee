"""Exports of all architectures but DETR equal PyTorch for padded batches of any size."""

import copy
from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints.export_formats import EXPORT_FORMATS
from detrkit.export.onnx import write_onnx
from detrkit.export.verify import compare, differences_of_best
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.onnx import read_onnx
from detrkit.models.detr import DETR
from detrkit.structures import Predictions
from tests.export.models import CATEGORIES, metadata_of, noise_batch, torch_engine, trace
from tests.models.vit_models import SMALL

PRESETS = {
    "conditional-detr-r50": {},
    "dab-detr-r50": {},
    # the other deformable models use a subset of its parts
    "deformable-detr-r50-two-stage": {"num_feature_levels": 2, "decoder_layers": 1},
    # DEIMv2-N's other parts are D-FINE's
    "deimv2-atto": {"backbone": "hgnetv2-atto", "encoder_layers": 0, "points_per_level": (3, 2)},
    "rtdetrv2-s-dsp": {},
    # two feature maps; LW-DETR has a subset of its parts
    "rfdetr-large-deprecated": {"backbone": "dinov2-small", "encoder_layers": 0, **SMALL, "decoder_layers": 1},
}
SIZES = [[(96, 128)], [(130, 97), (64, 200)], [(40, 75)]]
SIZES_OF_WINDOWS = [[(96, 128)], [(128, 96), (64, 192)], [(64, 96)]]  # multiples of 32


def model_of(preset: str) -> DETR:
    torch.manual_seed(0)
    few = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 10, "dim_feedforward": 32, "hidden_dim": 64}
    settings = {"backbone": "resnet-tiny", **few, **PRESETS[preset], "max_detections": 12}
    model = build_model(preset, num_classes=len(CATEGORIES), **settings).eval()
    gain = 1.0 if model.config.decoder_norm == "rms" else 1.5  # RMS norms keep means, which grow with the gain
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:  # many are initialised to zero
                parameter.normal_(0, 1.0 if name == "query_source.weight" else gain * parameter.shape[1] ** -0.5)
            elif parameter.ndim == 4:  # HGNetV2 initialises filters so small that all images have equal features
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
    return model


@pytest.mark.slow
# Conditional DETR, of which DAB-DETR has all parts, is exported with post-processing below
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "conditional-detr-r50"])
def test_every_engine_equals_pytorch(preset: str, tmp_path: Path) -> None:
    model = model_of(preset)
    program, metadata = trace(model), metadata_of(model)
    paths = {name: tmp_path / f"{name}{format.suffix}" for name, format in EXPORT_FORMATS.items()}
    for name, path in paths.items():
        EXPORT_FORMATS[name].write(copy.deepcopy(program), metadata, path)
    engines = [load_exported(path) for path in paths.values()]
    for sizes in SIZES if model.config.size_divisor == 1 else SIZES_OF_WINDOWS:
        batch = noise_batch(sizes)
        expected = torch_engine(model).predict(batch)
        assert expected.class_logits.std() > 0.1
        assert expected.boxes.std() > 0.05
        for engine in engines:
            actual = engine.predict(batch)
            assert (actual.class_scores, actual.max_detections) == ("sigmoid", 12)
            torch.testing.assert_close(actual.class_logits, expected.class_logits, rtol=0, atol=1e-3)
            torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_post_processing_in_the_graph_selects_the_best_pairs(tmp_path: Path) -> None:
    model = model_of("conditional-detr-r50")
    metadata = metadata_of(model, postprocess=True)
    write_onnx(trace(model, postprocess=True), metadata, tmp_path / "model.onnx")
    batches = [noise_batch(sizes) for sizes in SIZES]
    engine = read_onnx(tmp_path / "model.onnx")
    assert engine.predict(batches[1]).boxes.shape == (2, 12, 4)
    comparison = compare(torch_engine(model), engine, batches, CATEGORIES, has_logits=False)
    assert comparison.max_logit_difference is None
    comparison.check("float32")


def test_best_pairs_of_equal_scores_are_compared_in_any_order() -> None:
    scores, boxes = torch.tensor([0.5, 0.4999, 0.1]), torch.rand(1, 1, 3, 4) * 0.2 + 0.3
    first = Predictions(torch.logit(scores)[None, None, :, None], boxes, class_scores="sigmoid")
    order = [1, 0, 2]
    swapped = Predictions(torch.logit(scores)[None, None, :, None], boxes[:, :, order], class_scores="sigmoid")
    assert differences_of_best(first, swapped)[1].max() == 0
    moved = boxes.clone()
    moved[0, 0, 2, 0] += 0.25
    other = Predictions(torch.logit(scores)[None, None, :, None], moved, class_scores="sigmoid")
    assert differences_of_best(first, other)[1].max().item() == pytest.approx(0.25, abs=1e-6)


def test_best_pairs_of_different_scores_are_not_compared_with_each_other() -> None:
    """The pairs with the highest and the lowest score swap boxes."""
    boxes = torch.tensor([[0.2, 0.5, 0.1, 0.1], [0.3, 0.5, 0.1, 0.1], [0.6, 0.5, 0.1, 0.1]])
    logits = torch.logit(torch.tensor([0.5, 0.4999, 0.1]))[None, None, :, None]
    first = Predictions(logits, boxes[None, None], class_scores="sigmoid")
    second = Predictions(logits, boxes[None, None, [2, 1, 0]], class_scores="sigmoid")
    scores, distances = differences_of_best(first, second)
    assert not scores.any()
    # 0.6 instead of 0.3, the closer of two with equal scores; unchanged; 0.2 instead of 0.6
    torch.testing.assert_close(distances[0].amax(-1), torch.tensor([0.3, 0.0, 0.4]))
