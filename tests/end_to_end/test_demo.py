"""The demo with few images: a run folder with images, predictions and a report."""

import json
from pathlib import Path

import pytest

from detrkit import Detector
from detrkit.checkpoints.load import load_checkpoint
from detrkit.cli import main
from detrkit.data.formats.lookup import find_record
from detrkit.demo import run as demo
from detrkit.training.loggers.jsonl import read_metrics


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the demo to one epoch of 32 images."""
    monkeypatch.setattr(demo, "NUM_TRAIN", 32)
    monkeypatch.setattr(demo, "NUM_VAL", 12)
    for key in demo.EPOCHS:
        monkeypatch.setitem(demo.EPOCHS, key, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize(("model", "num_detections"), [("detrkit-s", 25 * 3), ("detr-tiny", 12)])
def test_demo_writes_a_run_folder_and_prints_what_to_try_next(
    model: demo.Model, num_detections: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--model", model, "--output", str(run)])
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "AP50" in out
    assert "Try next" in out
    assert load_checkpoint(run).categories.names == ("circle", "square", "triangle")
    assert [entry["kind"] for entry in read_metrics(run)] == ["train", "evaluation"]
    assert (run / "report.html").exists()
    assert len(list((run / "predictions").glob("*.png"))) == 12
    images = sorted((run / "drawings").glob("*.png"))
    assert len(images) == 12
    document = json.loads((run / "drawings" / "annotations.json").read_text())
    record = find_record(images[0], run / "drawings").records[0]
    assert record.labels.tolist() == [
        annotation["category_id"] - 1
        for annotation in document["annotations"]
        if annotation["image_id"] == record.image_id
    ]
    assert len(Detector.load(run).predict(images[0], threshold=0)) == num_detections


@pytest.mark.slow
@pytest.mark.usefixtures("few_images")
def test_panoptic_demo_trains_masks_and_prints_nothing_from_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = demo.run_demo(tmp_path / "run", task="panoptic")
    assert capsys.readouterr() == ("", "")
    assert result.is_complete
    assert "pq" in result.metrics
    assert load_checkpoint(tmp_path / "run").categories.is_thing == (True, True, True, False, False, False)
    assert "pq" in read_metrics(tmp_path / "run")[-1]


def test_training_and_validation_images_differ() -> None:
    data = demo.synthetic_data(20, 20, seed=3)
    train = {data.train.images[index].image.numpy().tobytes() for index in range(20)}
    val = {data.val[index].image.numpy().tobytes() for index in range(20)}
    assert not train & val
