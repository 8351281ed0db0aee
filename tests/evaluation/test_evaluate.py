"""`detrkit.evaluate` from Python: sources, data, and the result object."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import detrkit
from detrkit import DatasetError, Detector
from detrkit.errors import ConfigError
from detrkit.evaluation.result import EvalResult
from tests.datasets import write_whole_photos


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset of image-sized circles, and a model that predicts nearly that."""
    return write_whole_photos(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def result(paths: tuple[Path, Path]) -> EvalResult:
    folder, weights = paths
    return detrkit.evaluate(weights, folder, workers=0, device="cpu")


class Circles(Dataset):
    """The validation images as `(image, target)`."""

    def __init__(self, folder: Path) -> None:
        self.split = detrkit.load_dataset(folder).val

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = self.split[index]
        return sample.image, {"boxes": sample.annotations.boxes, "labels": sample.annotations.labels}


def test_evaluate_returns_metrics_and_writes_and_prints_nothing(
    paths: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, weights = paths
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    steps: list[tuple[int, int]] = []
    result = detrkit.evaluate(
        weights, folder, workers=0, device="cpu", progress=lambda done, total: steps.append((done, total))
    )
    assert 0 < result.ap <= result.ap50 + 1e-12 <= 1 + 2e-12  # means of equal values are rounded differently
    assert result.metrics.values["ap75"] == result.ap75
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == before


def test_folder_splits_split_and_torch_dataset_give_the_same_metrics(
    paths: tuple[Path, Path], result: EvalResult
) -> None:
    folder, weights = paths
    splits = detrkit.load_dataset(folder)
    detector = Detector.load(weights)
    for data in (splits, splits.val, Circles(folder)):
        assert detrkit.evaluate(detector, data, workers=0).metrics.values == result.metrics.values
    named = detrkit.evaluate(detector, Circles(folder), classes=["circle", "square", "triangle"], workers=0)
    assert named.ap == result.ap
    with pytest.raises(ConfigError, match="'hexagon' is not one of the model's classes"):
        detrkit.evaluate(detector, Circles(folder), classes=["circle", "square", "hexagon"], workers=0)


def test_result_shows_and_converts_itself(result: EvalResult, tmp_path: Path) -> None:
    assert repr(result).startswith("EvalResult(")
    assert "AP50 " in repr(result)
    assert "\n" not in repr(result)
    assert "<td>AP50</td>" in result._repr_html_()
    assert [one.name for one in result.per_class] == ["circle", "square", "triangle"]
    assert result.thresholds is not None
    assert result.detections is not None
    assert result.to_json()["metrics"]["ap"] == result.ap
    frame = pytest.importorskip("pandas") and result.to_pandas()
    assert frame.loc[0, "ap"] == result.ap
    page = result.to_html(tmp_path / "report.html")
    assert "<h2>Metrics</h2>" in page.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_options_of_a_model_are_rejected_for_saved_predictions(paths: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ConfigError, match="by_layer=True needs a model"):
        detrkit.evaluate(tmp_path / "results.json", paths[0], by_layer=True)
    with pytest.raises(ConfigError, match="store_thresholds"):
        detrkit.evaluate(Detector.load(paths[1]), paths[0], store_thresholds=True)


def test_missing_split_is_rejected(paths: tuple[Path, Path]) -> None:
    with pytest.raises(DatasetError, match="no test split"):
        detrkit.evaluate(Detector.load(paths[1]), paths[0], split="test", workers=0)


def test_evaluation_restores_the_mode_of_the_model(paths: tuple[Path, Path]) -> None:
    torch.manual_seed(0)
    detector = Detector.load(paths[1])
    assert not detector.model.training
    detrkit.evaluate(detector, paths[0], workers=0)
    assert not detector.model.training
