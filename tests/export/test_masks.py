"""Masks of exported models equal PyTorch's: alone, in padded batches, post-processed, and through a `Detector`."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from detrkit import Detector
from detrkit.checkpoints.export_formats import EXPORT_FORMATS
from detrkit.cli.export import comparison_lines
from detrkit.errors import ExportError
from detrkit.export.onnx import write_onnx
from detrkit.export.verify import ExportComparison, compare
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.metadata import CategoryEntry, ExportMetadata, make_metadata
from detrkit.inference.engines.torch import TorchEngine
from detrkit.models.detr import DETR
from detrkit.models.presets import build_model
from detrkit.structures import Batch, ComputedMasks, Detections, PanopticSegments, Predictions
from tests.detectors import small_detector
from tests.export.models import CATEGORIES, PREPROCESSING, metadata_of, noise_batch, small_model, torch_engine, trace
from tests.models.vit_models import small_vit

_THINGS = replace(CATEGORIES, is_thing=(True, False, True))
# post-processing is part of the traced graph, which is the same in all formats
_CASES = [("onnx", False), ("onnx", True), ("openvino", True), ("torch", False)]
_SIZES = [[(96, 128)], [(64, 64), (100, 70)], [(130, 97), (64, 200)], [(96, 128)], [(96, 128)]]


@pytest.fixture(scope="module")
def model() -> DETR:
    model = small_detector(mask_head=True).model.eval()
    with torch.no_grad():
        model.get_parameter("heads.class_head.bias")[-1] -= 2  # scores high enough for segments
        first = model.get_parameter("mask_head.input_stages.0.convolution.weight")
        first[:, model.config.hidden_dim :].mul_(400)  # the part that differs between queries
    return model


@pytest.fixture(scope="module")
def mask_program_of(model: DETR) -> Callable[[bool], torch.export.ExportedProgram]:
    return cache(lambda postprocess: trace(model, postprocess))


@pytest.fixture(scope="module", params=_CASES, ids=lambda case: f"{case[0]}{', post-processed' * case[1]}")
def path(
    request: pytest.FixtureRequest,
    model: DETR,
    mask_program_of: Callable[[bool], torch.export.ExportedProgram],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    name, postprocess = request.param
    format = EXPORT_FORMATS[name]
    metadata = make_metadata(model.config, _THINGS, PREPROCESSING, "float32", postprocess)
    path = tmp_path_factory.mktemp("masks") / f"model{format.suffix}"
    format.write(copy.deepcopy(mask_program_of(postprocess)), metadata, path)
    return path


def _masks(engine: TorchEngine | ExportedEngine, batch: Batch) -> Tensor:
    predictions = engine.predict(batch)
    num_images, num_queries = predictions.boxes.shape[:2]
    return predictions.masks_of([torch.arange(num_queries)] * num_images, batch.sizes).sigmoid()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", _SIZES[:3], ids=str)
def test_masks_equal_pytorch(model: DETR, path: Path, sizes: list[tuple[int, int]]) -> None:
    batch = noise_batch(sizes)
    expected = _masks(torch_engine(model), batch)
    assert expected.std() > 0.05
    engine = load_exported(path)
    assert isinstance(engine, ExportedEngine)
    torch.testing.assert_close(_masks(engine, batch), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_comparison_measures_masks(model: DETR, path: Path) -> None:
    engine = load_exported(path)
    batches = [noise_batch(sizes) for sizes in _SIZES]
    has_logits = not engine.metadata.postprocess
    found = compare(torch_engine(model), engine, batches, CATEGORIES, has_logits=has_logits)
    assert found.max_mask_difference is not None
    assert found.max_mask_difference < 1e-3
    found.check("float32")


@pytest.mark.slow
def test_detector_of_the_file_predicts_masks_and_segments(model: DETR, path: Path) -> None:
    image = Image.effect_noise((150, 110), 80).convert("RGB")
    torch_detector = Detector.from_model(model, _THINGS, image_size=64)
    detector = Detector.load(path)
    assert detector.categories == _THINGS, "things and stuff are kept"
    found, expected = (one.predict(image, threshold=0.0) for one in (detector, torch_detector))
    assert isinstance(found, Detections)
    assert isinstance(expected, Detections)
    assert found.masks is not None
    assert expected.masks is not None
    assert found.masks.shape == (len(found), 110, 150)
    assert (found.masks == expected.masks).float().mean() > 0.995
    segments, expected_segments = (one.predict_segments(image, threshold=0.1) for one in (detector, torch_detector))
    assert isinstance(segments, PanopticSegments)
    assert isinstance(expected_segments, PanopticSegments)
    assert len(expected_segments) > 0
    if load_exported(path).metadata.postprocess:
        # post-processed scores do not include "no object", so that segments differ
        return
    assert [one.label for one in segments.segments] == [one.label for one in expected_segments.segments]
    assert (segments.ids == expected_segments.ids).float().mean() > 0.99


@pytest.mark.slow
def test_query_detected_as_several_classes_has_its_mask_several_times(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(
        "detrkit-s", num_classes=3, num_queries=6, hidden_dim=64, decoder_layers=1, dim_feedforward=64, mask_head=True
    ).eval()
    torch.nn.init.normal_(model.get_parameter("heads.class_head.weight"), std=0.3)  # queries that differ
    metadata = make_metadata(model.config, _THINGS, PREPROCESSING, "float32", postprocess=True)
    write_onnx(trace(model, True), metadata, tmp_path / "model.onnx")
    image = Image.effect_noise((150, 110), 80).convert("RGB")
    expected = Detector.from_model(model, _THINGS, image_size=64).predict(image, threshold=0.0)
    found = Detector.load(tmp_path / "model.onnx").predict(image, threshold=0.0)
    assert isinstance(found, Detections)
    assert isinstance(expected, Detections)
    assert found.masks is not None
    assert expected.masks is not None
    assert expected.queries is not None
    assert len(found) == len(expected) == 18  # six queries, three classes
    areas = expected.masks.float().mean((1, 2))
    assert areas.max() - areas.min() > 0.02, "masks of different queries must differ"
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert (found.masks == expected.masks).float().mean() > 0.995


@pytest.mark.slow
def test_masks_of_a_narrow_image_are_cropped_to_it(path: Path) -> None:
    """The graph needs at least 64 pixels a side; the padding added for it is removed from the masks."""
    engine = load_exported(path)
    predictions = engine.predict(noise_batch([(30, 75)]))
    assert predictions.masks is not None
    assert predictions.masks.shape[2:] == (8, 19)


def test_isthing_is_written_only_if_known() -> None:
    assert CategoryEntry(id=1, name="a").model_dump() == {"id": 1, "name": "a"}
    model = small_model(mask_head=True)
    for categories in (CATEGORIES, _THINGS):
        text = make_metadata(model.config, categories, PREPROCESSING, "float32", False).to_text()
        assert ExportMetadata.from_text(text, "file").named_categories == categories
        assert ("isthing" in text) == (categories.is_thing is not None)


class _OffsetEngine(TorchEngine):
    """PyTorch with an offset added to one value of one mask."""

    offset = 0.0

    def predict(self, batch: Batch) -> Predictions:
        predictions = super().predict(batch)
        num_images, num_queries = predictions.boxes.shape[:2]
        masks = predictions.masks_of([torch.arange(num_queries)] * num_images, batch.sizes).clone()
        masks[3, 2, 5] += self.offset
        return replace(predictions, mask_source=ComputedMasks(masks.unflatten(0, (num_images, num_queries))))


@pytest.mark.parametrize("offset", [0.0, 0.05, float("nan")])
def test_one_different_mask_value_is_detected(model: DETR, offset: float) -> None:
    other = _OffsetEngine(model, torch.device("cpu"), padding_invariant=True)
    other.offset = offset
    found = compare(torch_engine(model), other, [noise_batch([(64, 64), (64, 96)])], CATEGORIES)
    if offset == 0:
        assert found.max_mask_difference == 0
        found.check("float32")
        return
    assert found.max_mask_difference is not None
    assert found.max_mask_difference > 0.002
    with pytest.raises(ExportError, match="differs from PyTorch by"):
        found.check("float32")


def test_mask_difference_is_printed_only_for_models_with_masks() -> None:
    comparison = ExportComparison(4, 1e-5, 1e-6, 1e-6, 1e-7, 10, 10, 1e-5)
    lines = [list(comparison_lines(one))[1] for one in (comparison, replace(comparison, max_mask_difference=2e-5))]
    assert "mask" not in lines[0]
    assert lines[1].endswith("masks 2e-05")


@pytest.mark.slow
def test_masks_of_detections_of_mixed_queries_equal_pytorch(tmp_path: Path) -> None:
    """Graphs with post-processing return the mask of each detection, of which a query may have several."""
    one_block = {"backbone_layers": 1, "global_layers": (), "out_layers": (1,), "decoder_layers": 1}
    model = small_vit("rfdetr-seg-nano", max_detections=12, **one_block).eval()
    program, metadata = trace(model, postprocess=True), metadata_of(model, postprocess=True)
    batches = [noise_batch(sizes) for sizes in ([(96, 128)], [(64, 64), (64, 96)])]
    for name in ("onnx", "torch"):
        format = EXPORT_FORMATS[name]
        path = tmp_path / f"{name}{format.suffix}"
        format.write(copy.deepcopy(program), metadata, path)
        comparison = compare(torch_engine(model), load_exported(path), batches, CATEGORIES, has_logits=False)
        comparison.check("float32")
        assert comparison.max_mask_difference is not None
        assert comparison.num_reordered == 0
