"""Masks of exported files are PyTorch's: alone, in padded batches, with post-processing, and through a `Detector`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from detrkit import Detector
from detrkit.checkpoints.native import Checkpoint, save_checkpoint
from detrkit.cli import main
from detrkit.data.categories import Categories
from detrkit.errors import ExportError
from detrkit.export.onnx_file import write_onnx
from detrkit.export.openvino_folder import write_openvino
from detrkit.export.program_file import write_program
from detrkit.export.verify import ExportComparison, compare
from detrkit.inference.engines.exported import CategoryEntry, ExportedEngine, ExportMetadata, make_metadata
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.torch import TorchEngine
from detrkit.models.detr import DETR
from detrkit.models.presets import build_model
from detrkit.structures import Batch, Detections, PanopticSegments, Predictions
from tests.detectors import small_detector
from tests.export.models import CATEGORIES, PREPROCESSING, batch_of, eager, small_model, traced

_THINGS = replace(CATEGORIES, is_thing=(True, False, True))
_CASES = [(format, postprocess) for format in ("onnx", "openvino", "torch") for postprocess in (False, True)]
_SIZES = [[(96, 128)], [(64, 64), (100, 70)], [(130, 97), (64, 200)], [(96, 128)], [(96, 128)]]


@pytest.fixture(scope="module")
def model() -> DETR:
    model = small_detector(mask_head=True).model.eval()
    with torch.no_grad():
        model.get_parameter("heads.class_head.bias")[-1] -= 2  # objects that are sure enough to be segments
        first = model.get_parameter("mask_head.input_stages.0.convolution.weight")
        first[:, model.config.hidden_dim :].mul_(400)  # what differs between queries, against what they share
    return model


@pytest.fixture(scope="module", params=_CASES, ids=lambda case: f"{case[0]}{', post-processed' * case[1]}")
def path(request: pytest.FixtureRequest, model: DETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    format, postprocess = request.param
    metadata = make_metadata(model.config, _THINGS, PREPROCESSING, "float32", postprocess)
    suffix = {"onnx": ".onnx", "openvino": "_openvino", "torch": ".pt2"}[format]
    place = tmp_path_factory.mktemp("masks") / f"model{suffix}"
    if format == "onnx":
        write_onnx(traced(model, postprocess), metadata, place)
    elif format == "torch":
        write_program(traced(model, postprocess), metadata, place)
    else:
        place.mkdir()
        write_openvino(traced(model, postprocess), metadata, place)
    return place


def _masks(engine: TorchEngine | ExportedEngine, batch: Batch) -> Tensor:
    predictions = engine.predict(batch)
    num_images, num_queries = predictions.boxes.shape[:2]
    queries = torch.arange(num_queries).repeat(num_images)
    return engine.compute_masks(predictions, batch, queries, [num_queries] * num_images).sigmoid()


@pytest.mark.parametrize("sizes", _SIZES[:3], ids=str)
def test_masks_are_those_of_pytorch(model: DETR, path: Path, sizes: list[tuple[int, int]]) -> None:
    batch = batch_of(sizes)
    expected = _masks(eager(model), batch)
    assert expected.std() > 0.05
    engine = load_exported(path)
    assert isinstance(engine, ExportedEngine)
    torch.testing.assert_close(_masks(engine, batch), expected, rtol=0, atol=1e-4)


def test_the_comparison_measures_masks(model: DETR, path: Path) -> None:
    engine = load_exported(path)
    batches = [batch_of(sizes) for sizes in _SIZES]
    has_logits = not engine.metadata.postprocess
    found = compare(eager(model), engine, batches, CATEGORIES, has_logits=has_logits)
    assert found.masks is not None
    assert found.masks < 1e-3
    found.check("float32")


def test_a_detector_of_the_file_gives_masks_and_segments(model: DETR, path: Path) -> None:
    photo = Image.effect_noise((150, 110), 80).convert("RGB")
    torch_detector = Detector.from_model(model, _THINGS, image_size=64)
    detector = Detector.load(path)
    assert detector.categories == _THINGS, "things and stuff survive"
    found, expected = (one.predict(photo, threshold=0.0) for one in (detector, torch_detector))
    assert isinstance(found, Detections)
    assert isinstance(expected, Detections)
    assert found.masks is not None
    assert expected.masks is not None
    assert found.masks.shape == (len(found), 110, 150)
    assert (found.masks == expected.masks).float().mean() > 0.995
    segments, wanted = (one.predict_segments(photo, threshold=0.1) for one in (detector, torch_detector))
    assert isinstance(segments, PanopticSegments)
    assert isinstance(wanted, PanopticSegments)
    assert len(wanted) > 0
    if load_exported(path).metadata.postprocess:
        # what the graph leaves of the scores does not tell how likely no object was: only who is surer than not takes part
        return
    assert [one.label for one in segments.segments] == [one.label for one in wanted.segments]
    assert (segments.ids == wanted.ids).float().mean() > 0.99


def test_masks_of_a_query_that_says_two_things_are_given_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(
        "detrkit-s", num_classes=3, num_queries=6, hidden_dim=64, decoder_layers=1, dim_feedforward=64, mask_head=True
    ).eval()
    torch.nn.init.normal_(model.get_parameter("heads.class_head.weight"), std=0.3)  # queries that differ
    metadata = make_metadata(model.config, _THINGS, PREPROCESSING, "float32", postprocess=True)
    write_onnx(traced(model, True), metadata, tmp_path / "model.onnx")
    photo = Image.effect_noise((150, 110), 80).convert("RGB")
    expected = Detector.from_model(model, _THINGS, image_size=64).predict(photo, threshold=0.0)
    found = Detector.load(tmp_path / "model.onnx").predict(photo, threshold=0.0)
    assert isinstance(found, Detections)
    assert isinstance(expected, Detections)
    assert found.masks is not None
    assert expected.masks is not None
    assert expected.queries is not None
    assert len(found) == len(expected) == 18  # six queries, three classes
    areas = expected.masks.float().mean((1, 2))
    assert areas.max() - areas.min() > 0.02, "masks that are alike could not be told from those of another query"
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert (found.masks == expected.masks).float().mean() > 0.995


def test_a_narrow_photo_keeps_its_masks_in_place(path: Path) -> None:
    """Graphs take 64 pixels at least; what is added to a photo for that is taken from its masks."""
    engine = load_exported(path)
    predictions = engine.predict(batch_of([(30, 75)]))
    assert predictions.masks is not None
    assert predictions.masks.shape[2:] == (8, 19)


def test_categories_of_which_nobody_said_are_written_as_before() -> None:
    assert CategoryEntry(id=1, name="a").model_dump() == {"id": 1, "name": "a"}
    model = small_model(mask_head=True)
    for categories in (CATEGORIES, _THINGS):
        text = make_metadata(model.config, categories, PREPROCESSING, "float32", False).to_text()
        assert ExportMetadata.from_text(text, "file").named_categories == categories
        assert ("isthing" in text) == (categories.is_thing is not None)


class _Off(TorchEngine):
    """PyTorch with a number added to one mask."""

    off = 0.0

    def compute_masks(self, predictions: Predictions, batch: Batch, queries: Tensor, counts: object) -> Tensor:
        masks = super().compute_masks(predictions, batch, queries, counts).clone()  # type: ignore[arg-type]
        masks[3, 2, 5] += self.off
        return masks


@pytest.mark.parametrize("off", [0.0, 0.05, float("nan")])
def test_one_value_of_one_mask_that_differs_is_found(model: DETR, off: float) -> None:
    other = _Off(model, torch.device("cpu"), padding_invariant=True)
    other.off = off
    found = compare(eager(model), other, [batch_of([(64, 64), (64, 96)])], CATEGORIES)
    if off == 0:
        assert found.masks == 0
        found.check("float32")
        return
    assert found.masks is not None
    assert found.masks > 0.002
    with pytest.raises(ExportError, match="differs from PyTorch by"):
        found.check("float32")


def test_without_a_mask_head_nothing_is_said_of_masks() -> None:
    lines = [
        ExportComparison(4, 1e-5, 1e-6, 1e-6, 1e-7, 10, 10, None, 1e-5, masks).lines()[0] for masks in (None, 2e-5)
    ]
    assert "mask" not in lines[0]
    assert lines[1].endswith("masks 2e-05")


def test_export_prints_what_differs_in_masks(
    model: DETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint(model.state_dict(), model.config, Categories(*vars(_THINGS).values()), PREPROCESSING)
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["export", "model.safetensors", "--format", "onnx"])
    output = capsys.readouterr()
    assert not left.value.code, output.err
    assert "of the photo's side, masks " in output.out
