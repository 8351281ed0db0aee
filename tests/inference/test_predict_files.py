"""`predict_files` from Python: results, progress, errors, and nothing printed."""

import json
from pathlib import Path

import pytest
from PIL import Image

from detrkit import Detector, predict_files
from detrkit.checkpoints.native import save_checkpoint
from detrkit.errors import ConfigError
from detrkit.inference.predict import FileResult
from tests.inference.test_detector import shape_image


@pytest.fixture(scope="module")
def folder(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and three images."""
    root = tmp_path_factory.mktemp("files")
    save_checkpoint(root / "model.safetensors", detector.to_checkpoint())
    (root / "images").mkdir()
    for number in range(3):
        shape_image(number, 64, 48).save(root / "images" / f"{number}.png")
    return root


def test_result_holds_counts_and_files_and_nothing_is_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_text("not an image")
    calls: list[tuple[int, int]] = []
    results: list[FileResult] = []
    result = predict_files(
        folder / "model.safetensors",
        [folder / "images", tmp_path / "bad.jpg"],
        output=tmp_path / "output",
        threshold=0,
        write="json,parquet",
        progress=lambda done, total: calls.append((done, total)),
        on_result=results.append,
    )
    assert (result.num_inputs, result.num_predicted, result.num_resumed) == (4, 3, 0)
    assert result.num_objects == sum(len(one.detections or ()) for one in results)
    assert [bool(one.error) for one in results] == [False, False, False, True]
    assert len(result.errors) == 1
    assert result.errors[0].startswith(str(tmp_path / "bad.jpg"))
    assert calls == [(done, 4) for done in range(1, 5)]
    assert result.lines == tmp_path / "output" / "predictions.jsonl"
    assert result.table == tmp_path / "output" / "predictions.parquet"
    assert len(json.loads((tmp_path / "output" / "0.json").read_text())["objects"]) == len(results[0].detections or ())
    assert repr(result).startswith("PredictResult(3 of 4 inputs predicted, ")
    assert result.stopped_by is None
    assert capsys.readouterr() == ("", "")


def test_one_partition_predicts_every_nth_image_and_is_resumed(folder: Path, tmp_path: Path) -> None:
    settings = {"output": tmp_path, "write": ("jsonl",), "partition": "0/2"}
    result = predict_files(folder / "model.safetensors", folder / "images", **settings)
    assert (result.num_inputs, result.num_predicted, result.num_resumed) == (2, 2, 0)
    again = predict_files(folder / "model.safetensors", folder / "images", **settings)
    assert (again.num_inputs, again.num_predicted, again.num_resumed) == (2, 0, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": 0.5}, "treshold is not a setting; did you mean 'threshold'"),
        ({"threshold": 50}, "threshold=50 is not a score"),
        ({"batch_size": 0}, "batch_size=0: input should be greater than or equal to 1"),
        ({"write": "jsnl"}, "write='jsnl' is not an output; did you mean 'jsonl'"),
        ({"partition": "2/2"}, "partition='2/2' is not INDEX/COUNT"),
        ({"classes": "sqare"}, "classes='sqare' is not a class of this model; did you mean 'square'"),
        ({"device": "gpu9"}, "device='gpu9' is not a device"),
    ],
)
def test_errors_name_the_python_argument(
    folder: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        predict_files(folder / "model.safetensors", folder / "images", output=tmp_path / "output", **settings)
    assert message in str(error.value)
    assert not (tmp_path / "output").exists()


def test_class_name_with_a_comma_is_recognised(detector: Detector, tmp_path: Path) -> None:
    renamed = Detector.from_model(detector.model, ["circle", "box, square", "star"], image_size=64)
    save_checkpoint(tmp_path / "model.safetensors", renamed.to_checkpoint())
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    results: list[FileResult] = []
    predict_files(
        tmp_path / "model.safetensors",
        tmp_path / "image.png",
        output=tmp_path / "output",
        threshold=0,
        classes="box, square",
        on_result=results.append,
    )
    (result,) = results
    assert result.detections is not None
    assert set(result.detections.class_names) <= {"box, square"}
