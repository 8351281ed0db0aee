"""`detrkit.export` and `detrkit export`: exported, verified, loaded and evaluated; a bad export leaves nothing."""

import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import detrkit
from detrkit import Detector
from detrkit.checkpoints.export_formats import EXPORT_FORMATS
from detrkit.checkpoints.native import (
    Checkpoint,
    Preprocessing,
    Thresholds,
    default_preprocessing,
    save_checkpoint,
)
from detrkit.cli import main
from detrkit.data.synthetic import SHAPES
from detrkit.errors import ConfigError, DatasetError, ExportError
from detrkit.export import export as export_module
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.structures import Batch
from tests.datasets import write_coco
from tests.export.models import metadata_of, small_model
from tests.models.vit_models import small_vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    write_coco(root / "shapes", num_train=4, num_val=3, size=96)
    shutil.copytree(root / "shapes" / "val2017", root / "images")
    model = small_model()
    thresholds = Thresholds(overall=0.25, per_class={2: 0.4})
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=80), thresholds)
    save_checkpoint(root / "model.safetensors", checkpoint)
    return root


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    output = capsys.readouterr()
    return int(exit.value.code or 0), output.out, output.err


@pytest.mark.slow
def test_python_export_returns_differences_and_prints_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress: list[tuple[int, int]] = []
    result = detrkit.export(
        folder / "model.safetensors",
        "onnx",
        output=tmp_path / "model.onnx",
        data=folder / "shapes",
        image_size=64,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert capsys.readouterr() == ("", "")
    assert progress == [(1, 2), (2, 2)]
    assert (result.path, result.format, result.precision) == (tmp_path / "model.onnx", "onnx", "float32")
    assert result.max_difference < 1e-3
    assert result.ap_difference == pytest.approx(0, abs=1e-3)
    assert repr(result).startswith("ExportResult(")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]
    exported = Detector.load(result.path)
    assert exported.preprocessing.image_size == 64
    assert exported.thresholds == Detector.load(folder / "model.safetensors").thresholds
    assert detrkit.evaluate(result.path, folder / "shapes").ap is not None


class _Unused:
    def run(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        raise AssertionError("it is not run")


def test_size_that_a_vit_cannot_cut_into_windows_is_refused_with_the_nearest_ones(folder: Path, tmp_path: Path) -> None:
    model = small_vit()
    path, message = tmp_path / "vit.safetensors", "sides must be multiples of 32. The nearest are 64 x 64 and 96 x 96"
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, default_preprocessing(model.config, 64)))
    with pytest.raises(ConfigError, match=message):
        detrkit.export(path, "onnx", output=tmp_path / "model.onnx", image_size=70)
    engine = ExportedEngine(_Unused(), metadata_of(model), "model.onnx")
    engine.check_size((64, 96))
    with pytest.raises(ConfigError, match=message):
        engine.check_size((70, 70))
    with pytest.raises(DatasetError, match="at least 64 px per side"):
        engine.check_size((32, 96))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "output"),
    [
        (["--format", "torch", "--data", "images"], "model.pt2"),
        (["--format", "openvino", "--precision", "int8", "--data", "shapes", "--postprocess"], "model_openvino"),
    ],
    ids=["torch", "openvino"],
)
def test_command_line_export_is_loaded_like_the_model(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    output: str,
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    code, out, err = run(["export", "model.safetensors", *options], capsys)
    assert code == 0, err
    assert "largest difference" in out
    assert ("AP " in out) == ("shapes" in options)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, output])
    assert not err
    detector, exported = Detector.load("model.safetensors"), Detector.load(output)
    assert (exported.categories, exported.thresholds) == (detector.categories, detector.thresholds)
    assert exported.preprocessing.image_size == 80
    image = min(Path("images").iterdir())
    assert len(exported.predict([image, image], threshold=0.0)[1]) == exported.engine.config.num_queries
    if "int8" not in options:
        actual, expected = exported.predict(image, 0.0), detector.predict(image, 0.0)
        torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-3)
        torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=0.1)
        assert actual.class_names == expected.class_names
    code, out, _ = run(["predict", output, str(image), "-o", f"{output}.predictions"], capsys)
    assert code == 0
    assert Path(f"{output}.predictions", f"{image.stem}.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_export_that_differs_from_pytorch_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    trace = export_module.export_program

    def trace_changed(model: torch.nn.Module, **settings: bool) -> torch.export.ExportedProgram:
        with torch.no_grad():
            model.get_parameter("heads.class_head.bias")[1] += 0.01
        program = trace(model, **settings)  # type: ignore[arg-type]
        with torch.no_grad():
            model.get_parameter("heads.class_head.bias")[1] -= 0.01
        return program

    monkeypatch.setattr(export_module, "export_program", trace_changed)
    with pytest.raises(
        ExportError, match=r"differs from PyTorch by 0\.01, expected at most 0\.001; nothing was written"
    ):
        detrkit.export(
            folder / "model.safetensors",
            format,
            output=tmp_path / EXPORT_FORMATS[format].default_output,
            max_images=1,
        )
    assert list(tmp_path.iterdir()) == []


class FakeFormat:
    """Writes nothing, so that a test of the comparison's images needs no export."""

    def write(self, *_: object) -> None:
        pass

    def read(self, _: Path) -> None:
        pass


@pytest.fixture
def compared_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that the next export compares; the export ends there with an `ExportError`."""
    batches: list[Batch] = []

    def compare(_model: object, _exported: object, given: Iterable[Batch], *_: object, **__: object) -> None:
        batches.extend(given)
        raise ExportError("enough")

    monkeypatch.setattr(export_module, "compare", compare)
    monkeypatch.setattr(export_module, "export_program", lambda *_, **__: None)
    monkeypatch.setattr(export_module, "EXPORT_FORMATS", {"torch": FakeFormat()})
    return batches


@pytest.mark.parametrize(("max_images", "count"), [(1, 1), (2, 2), (64, 4)])
def test_number_of_synthetic_images_is_limited(
    max_images: int, count: int, folder: Path, tmp_path: Path, compared_batches: list[Batch]
) -> None:
    with pytest.raises(ExportError, match="enough"):
        detrkit.export(folder / "model.safetensors", "torch", output=tmp_path / "model.pt2", max_images=max_images)
    assert sum(len(batch.image_ids) for batch in compared_batches) == count


class Pairs(Dataset[tuple[torch.Tensor, dict[str, torch.Tensor]]]):
    """Five images with one box each, in torchvision's form."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        target = {"boxes": torch.tensor([[2.0, 3.0, 40.0, 30.0]]), "labels": torch.tensor([index % len(SHAPES)])}
        return torch.full((3, 64, 80), 40 * index, dtype=torch.uint8), target


def test_splits_and_torch_datasets_are_compared_on_their_validation_images(
    folder: Path, tmp_path: Path, compared_batches: list[Batch]
) -> None:
    for data, count in ((detrkit.load_dataset(folder / "shapes"), 3), (Pairs(), 1)):
        compared_batches.clear()
        with pytest.raises(ExportError, match="enough"):
            detrkit.export(folder / "model.safetensors", "torch", output=tmp_path / "model.pt2", data=data)
        assert sum(len(batch.image_ids) for batch in compared_batches) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "format", "settings", "message"),
    [
        (
            "onnxscript",
            "onnx",
            {},
            "format='onnx' needs onnxscript; install it with: .*pip install 'detrkit\\[export\\]'",
        ),
        ("openvino", "openvino", {}, "pip install 'detrkit\\[openvino\\]'"),
    ],
)
def test_missing_package_is_reported_and_leaves_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    format: str,
    settings: dict[str, object],
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    output = tmp_path / EXPORT_FORMATS[format].default_output
    with pytest.raises(ConfigError, match=message):
        detrkit.export(folder / "model.safetensors", format, output=output, max_images=1, **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
