"""The demo's way, in small: from nothing to a run folder with drawings, predictions and a report."""

import json
from pathlib import Path

import pytest

from detrkit import Detector
from detrkit.checkpoints.load import read_checkpoint
from detrkit.cli import main
from detrkit.data.formats.lookup import find_record
from detrkit.demo import run as demo
from detrkit.training.loggers.jsonl import read_metrics


@pytest.mark.parametrize(("model", "most"), [("detrkit-s", 25 * 3), ("detr-tiny", 12)])
def test_the_demo_leaves_a_run_folder(
    model: demo.Model, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "NUM_TRAIN", 48)
    monkeypatch.setattr(demo, "NUM_TEST", 12)
    monkeypatch.setitem(demo.EPOCHS, (model, "boxes"), 1)
    with pytest.raises(SystemExit) as left:
        main(["demo", "--model", model, "--output", str(tmp_path / "run")])
    assert not left.value.code
    out = capsys.readouterr().out
    assert "AP50" in out
    assert "Try next" in out
    run = tmp_path / "run"
    assert read_checkpoint(run).categories.names == ("circle", "square", "triangle")
    assert [entry["kind"] for entry in read_metrics(run)] == ["train", "evaluation"]
    assert (run / "report.html").exists()
    assert len(list((run / "predictions").glob("*.png"))) == 12
    drawings = sorted((run / "drawings").glob("*.png"))
    assert len(drawings) == 12
    document = json.loads((run / "drawings" / "annotations.json").read_text())
    found = find_record(drawings[0], run / "drawings").records[0]
    assert found.labels.tolist() == [
        one["category_id"] - 1 for one in document["annotations"] if one["image_id"] == found.image_id
    ]
    assert len(Detector.load(run).predict(drawings[0], threshold=0)) == most


@pytest.mark.parametrize("model", ["detrkit-s", "detr-tiny"])
def test_the_panoptic_demo_leaves_segments(
    model: demo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "NUM_TRAIN", 32)
    monkeypatch.setattr(demo, "NUM_TEST", 12)
    monkeypatch.setitem(demo.EPOCHS, (model, "panoptic"), 1)
    with pytest.raises(SystemExit) as left:
        main(["demo", "--task", "panoptic", "--model", model, "--output", str(tmp_path / "run")])
    assert not left.value.code
    assert "panoptic quality" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "run").categories.is_thing == (True, True, True, False, False, False)
    assert "pq" in read_metrics(tmp_path / "run")[-1]


def test_training_and_test_drawings_never_meet() -> None:
    data = demo.draw_data(20, 20, seed=3)
    train = {data.train.images[index].image.numpy().tobytes() for index in range(20)}
    test = {data.val[index].image.numpy().tobytes() for index in range(20)}
    assert not train & test
