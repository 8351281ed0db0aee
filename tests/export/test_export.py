"""`detrkit export` from files to files: exported, compared, predicted with and scored; and nothing left of a bad export."""

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from detrkit import Detector
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds, save_checkpoint
from detrkit.cli import main
from detrkit.data.synthetic import SHAPES
from detrkit.errors import ExportError
from detrkit.export import export as recipe
from detrkit.structures import Batch
from tests.datasets import write_coco
from tests.export.models import small_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    write_coco(root / "shapes", num_train=4, num_val=3, size=96)
    model = small_model(decoder_layers=1)
    thresholds = Thresholds(overall=0.25, per_class={2: 0.4})
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=80), thresholds)
    save_checkpoint(root / "model.safetensors", checkpoint)
    return root


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    output = capsys.readouterr()
    return int(left.value.code or 0), output.out, output.err


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (["--format", "onnx", "--data", "shapes", "--image-size", "64"], "model.onnx"),
        (["--format", "torch", "--data", "bare"], "model.pt2"),
        (["--format", "openvino", "--precision", "int8", "--data", "shapes", "--postprocess"], "model_openvino"),
    ],
    ids=["onnx", "torch", "openvino"],
)
def test_exported_files_predict_and_are_scored_like_the_model(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    output: str,
) -> None:
    monkeypatch.chdir(place)
    if not Path("bare").exists():
        shutil.copytree("shapes/val2017", "bare")
    before = sorted(path.name for path in place.iterdir())
    code, out, err = run(["export", "model.safetensors", *options], capsys)
    assert code == 0, err
    assert "largest difference" in out
    assert ("AP " in out) == ("shapes" in options)
    assert sorted(path.name for path in place.iterdir()) == sorted([*before, output])
    assert max(len(line) for line in err.splitlines() or [""]) <= 80

    detector, exported = Detector.load("model.safetensors"), Detector.load(output)
    assert exported.categories == detector.categories
    assert exported.thresholds == detector.thresholds
    assert exported.preprocessing.image_size == (64 if "--image-size" in options else 80)
    photo = next(iter(sorted(Path("bare").iterdir())))
    assert len(exported.predict([photo, photo], threshold=0.0)[1]) == exported.engine.config.num_queries
    if "--image-size" not in options and "int8" not in options:
        found, expected = exported.predict(photo, 0.0), detector.predict(photo, 0.0)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.1)
        assert found.class_names == expected.class_names
    code, out, _ = run(["evaluate", output, "shapes", "--workers", "0", "-o", f"{output}.json"], capsys)
    assert code == 0
    assert len(json.loads(Path(f"{output}.json").read_text())) == 3 * exported.engine.config.num_queries
    code, out, _ = run(["predict", output, str(photo), "-o", f"{output}.found"], capsys)
    assert code == 0
    assert Path(f"{output}.found", f"{photo.stem}.json").is_file()


@pytest.mark.parametrize(("format", "output"), recipe.DEFAULT_OUTPUT.items())
def test_nothing_is_left_of_an_export_that_says_something_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str, output: str
) -> None:
    real = recipe.export_program

    def spoiled(model: torch.nn.Module, **settings: bool) -> torch.export.ExportedProgram:
        with torch.no_grad():
            model.get_parameter("heads.class_head.bias").add_(torch.tensor([0.0, 0.01, 0.0, 0.0]))
        return real(model, **settings)  # type: ignore[arg-type]

    class Reference(recipe.TorchEngine):
        def predict(self, batch):  # type: ignore[no-untyped-def]
            with torch.no_grad():
                self.model.heads.class_head.bias[1] -= 0.01
                found = super().predict(batch)
                self.model.heads.class_head.bias[1] += 0.01
            return found

    monkeypatch.setattr(recipe, "export_program", spoiled)
    monkeypatch.setattr(recipe, "TorchEngine", Reference)
    folder = place / f"bad_{format}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    code, _, err = run(["export", "../model.safetensors", "--format", format, "-o", output], capsys)
    assert code == 2
    assert "float32 network differs from PyTorch by 0.01, expected at most 0.001; nothing was written" in err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("asked", "drawn"), [(1, "1 drawn photo;"), (2, "2 drawn photos;"), (64, "4 drawn photos;")])
def test_no_more_photos_are_drawn_than_asked_for(
    asked: int,
    drawn: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    batches: list[Batch] = []

    def compare(_model: object, _exported: object, given: Iterable[Batch], *_: object, **__: object) -> None:
        batches.extend(given)
        raise ExportError("enough")

    monkeypatch.setattr(recipe, "compare", compare)
    monkeypatch.setattr(recipe, "export_program", lambda *_, **__: None)
    monkeypatch.setattr(recipe, "_write", lambda *_: None)
    monkeypatch.setattr(recipe, "load_exported", lambda _: None)
    output = str(tmp_path / "model.pt2")
    code, out, err = run(
        ["export", "model.safetensors", "--format", "torch", "--photos", str(asked), "-o", output], capsys
    )
    assert (code, err.strip()) == (2, "error: enough")
    assert f"checked on {drawn}" in out
    assert sum(len(batch.image_ids) for batch in batches) == int(drawn[0])


@pytest.mark.parametrize(
    ("missing", "options", "says"),
    [
        ("onnxscript", ["--format", "onnx"], "needs onnxscript; pip install 'detrkit[export]'"),
        ("openvino", ["--format", "openvino"], "pip install 'detrkit[openvino]'"),
        ("nncf", ["--format", "openvino", "--precision", "int8", "--data", "shapes"], "needs nncf"),
    ],
)
def test_a_missing_package_is_one_sentence_and_leaves_nothing(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    options: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = run(["export", "model.safetensors", *options, "-o", "never"], capsys)
    if options[1] == "onnx":  # the suffix is looked at first
        code, _, err = run(["export", "model.safetensors", *options, "-o", "never.onnx"], capsys)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not list(place.glob("*never*"))
