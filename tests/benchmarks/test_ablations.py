"""Tables of the ablations: complete rows, trained on synthetic shapes for one step."""

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.ablations import TABLES, main, parse, row_scores

from benchmarks import ablations
from detrkit.config.model import ModelConfig
from detrkit.config.training import TrainingConfig
from detrkit.training.result import TrainResult
from tests.datasets import write_coco

SMALLEST = ["--steps", "1", "--batch-size", "2", "--workers", "0", "--image-size", "64"]


def test_rows_change_existing_fields_and_the_last_row_is_the_papers_model() -> None:
    for rows in TABLES.values():
        for row in rows:
            ModelConfig.model_validate(row.model)
            TrainingConfig.model_validate(row.training)
        assert ModelConfig.model_validate(rows[-1].model) == ModelConfig()
        assert rows[-1].published == 40.6
        assert len({row.name for row in rows}) == len(rows)
    assert [len(TABLES[name]) for name in ("encoder", "positions", "losses")] == [4, 5, 3]


@pytest.mark.slow
def test_complete_table_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = "losses"
    shapes = write_coco(tmp_path / "shapes", 2, 2)
    command = [table, str(shapes), "--model", "detr-tiny", "--output", str(tmp_path / "runs"), *SMALLEST]
    main(command)
    first = capsys.readouterr().out
    rows = TABLES[table]
    assert first.count(": training") == len(rows)
    lines = first.splitlines()[-len(rows) :]
    for row, line in zip(rows, lines, strict=True):
        assert [cell.strip() for cell in line.split("|")[1 : len(row.cells) + 1]] == list(row.cells)
        assert line.endswith(f"| {row.published} |")
    assert (tmp_path / "runs" / table / f"{table}.md").read_text().splitlines()[-len(rows) :] == lines
    dates = [(tmp_path / "runs" / table / row.name / "report.html").stat().st_mtime_ns for row in rows]
    main(command)
    again = capsys.readouterr().out
    assert "training" not in again
    assert again.splitlines()[-len(rows) :] == lines
    assert dates == [(tmp_path / "runs" / table / row.name / "report.html").stat().st_mtime_ns for row in rows]


@pytest.mark.slow
def test_stopped_row_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = write_coco(tmp_path / "shapes", 4, 2)
    row = TABLES["encoder"][0]
    options = [*SMALLEST, "--steps", "4", "--evaluate-every", "1"]
    _, config, _ = parse(["encoder", str(shapes), "--model", "detr-tiny", *options])
    train_from_config = ablations.train_from_config
    monkeypatch.setattr(ablations, "train_from_config", lambda *args: replace(train_from_config(*args), stopped_by=15))
    with pytest.raises(SystemExit, match="encoder-0: stopped; resume with the same command"):
        row_scores(row, config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
    resumed: list[Path] = []
    monkeypatch.setattr(
        ablations, "resume", lambda folder: resumed.append(folder) or TrainResult(tmp_path, config, None, 2, 4)
    )
    assert row_scores(row, config, tmp_path / "run") == row_scores(row, config, tmp_path / "run")
    assert resumed == [tmp_path / "run"]


def test_unknown_options_are_training_settings() -> None:
    table, config, output = parse(["encoder", "coco", "--epochs", "150", "--dropout", "0", "--device", "cuda"])
    assert (table, config.data, output) == ("encoder", "coco", Path("runs/ablations/encoder"))
    assert (config.training.epochs, config.training.hardware.device) == (150, "cuda")
    assert config.model_overrides == {"dropout": 0}
    assert config.recipe == "reference"
    assert parse(["encoder", "coco", "--recipe", "auto"])[1].recipe == "auto"
    with pytest.raises(SystemExit, match="expected settings as --name value"):
        parse(["encoder", "coco", "--epochs"])
