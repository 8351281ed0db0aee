"""Tables of the convergence benchmark: valid rows, complete runs are not repeated, budgets are kept."""

import json
from pathlib import Path

import pytest
from benchmarks.convergence import (
    TABLES,
    insert_into,
    is_complete,
    main,
    parse,
    read_evaluations,
    run_row,
)

from benchmarks import convergence
from detrkit.config.training import TrainingConfig
from detrkit.models.presets import preset_config
from detrkit.training.run import TrainingRun
from tests.datasets import write_coco

SMALLEST = ["--minutes", "0.0001", "--batch-size", "2", "--workers", "0", "--image-size", "64"]


def test_rows_have_valid_models_and_settings() -> None:
    for rows in TABLES.values():
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            preset_config(row.model, **row.drawn_overrides, **row.settings)
            preset_config(row.model, **row.folder_overrides, **row.settings)
            TrainingConfig.model_validate(row.training)
    own, *others = TABLES["ingredients"]
    assert not own.settings
    assert not own.training
    assert all(row.model == own.model for row in others)


@pytest.mark.slow
def test_complete_table_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "_NUM_TIMINGS", 2)
    shapes = write_coco(tmp_path / "shapes", 2, 2)
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- convergence ingredients-shapes -->\nold\n<!-- end -->\nafter\n")
    rows = ["not-twice"]
    command = ["ingredients", str(shapes), "--seeds", "1", "2", "--rows", *rows, "--output", str(tmp_path), *SMALLEST]
    main([*command, "--split", "val", "--write", str(document)])
    first = capsys.readouterr().out
    assert first.count("training, 1 steps") == 2
    folder = tmp_path / "ingredients-shapes"
    assert set(json.loads((folder / "budget.json").read_text())["seconds"]) == set(rows)
    table = (folder / "ingredients.md").read_text()
    assert table.count("\n") == 3
    assert "without looking forward twice" in table
    assert (folder / "ingredients.png").read_bytes().startswith(b"\x89PNG")
    image = "\n![AP over the minutes of training](pictures/ingredients-shapes.png)\n"
    assert (
        document.read_text() == f"before\n<!-- convergence ingredients-shapes -->\n{table}{image}<!-- end -->\nafter\n"
    )
    assert (tmp_path / "pictures" / "ingredients-shapes.png").read_bytes() == (folder / "ingredients.png").read_bytes()
    with pytest.raises(SystemExit, match="the runs there have other training"):
        main([*command, "--batch-size", "1"])
    others = write_coco(tmp_path / "elsewhere" / "shapes", 2, 2)
    with pytest.raises(SystemExit, match="the runs there have other data"):
        main([command[0], str(others), *command[2:]])
    main([*command, "--split", "val"])
    again = capsys.readouterr().out
    assert "training" not in again
    assert again.endswith(table)


@pytest.mark.slow
def test_run_stopped_after_an_evaluation_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = write_coco(tmp_path / "shapes", 4, 2)
    command = ["ingredients", str(shapes), "--seeds", "1", "--rows", "detrkit-s", "--output", str(tmp_path), *SMALLEST]
    experiment, _ = parse(command)
    row = experiment.rows[0]

    class StoppedError(Exception):
        pass

    saves = []

    def save(run: TrainingRun, state: dict[str, object]) -> None:
        save_state(run, state)
        saves.append(state)
        if len(read_evaluations(experiment.folder(row, 1))) == 1:
            raise StoppedError

    save_state = TrainingRun.save_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "save_state", save)
        with pytest.raises(StoppedError):
            run_row(experiment, row, 1, steps=6)
    folder = experiment.folder(row, 1)
    assert saves
    assert read_evaluations(folder)
    assert not is_complete(folder, 6)
    (folder / "report.html").write_text("of a stopped run")
    capsys.readouterr()
    run_row(experiment, row, 1, steps=6)
    assert "resuming, 6 steps" in capsys.readouterr().out
    assert is_complete(folder, 6)
    run_row(experiment, row, 1, steps=6)
    assert "steps" not in capsys.readouterr().out


def test_synthetic_images_need_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "NUM_TRAIN", 40)
    monkeypatch.setattr(convergence, "NUM_VAL", 4)
    experiment, _ = parse(["ingredients", "drawn", "--output", str(tmp_path), "--batch-size", "8"])
    mosaic = next(row for row in experiment.rows if row.name == "mosaic")
    config, data = experiment.open(mosaic, seed=7, steps=20)
    assert (config.training.batch_size, config.training.seed, config.training.steps) == (8, 7, 20)
    assert config.training.loss.cls_loss == "align"
    assert data.train.strong is not None
    strong = experiment.run(mosaic, seed=7, steps=20).data.train.strong_epochs
    assert strong == range(1, 4)  # 0.7 of the 4 epochs that 20 steps make
    _, plain = experiment.open(experiment.rows[0], seed=7, steps=20)
    assert plain.train.strong is None
    convergence.drawn_data.cache_clear()


def test_architectures_share_augmentation_and_number_of_queries(tmp_path: Path) -> None:
    shapes = write_coco(tmp_path / "shapes", 4, 2)
    experiment, _ = parse(["peers", str(shapes), "--num-queries", "70", "--backbone", "resnet50"])
    configs = [experiment.open(row, seed=1, steps=5)[0] for row in experiment.rows]
    shared = ("image_size", "train_scale", "batch_size", "clip_grad_norm", "horizontal_flip", "crop")
    assert len({tuple(config.training[name] for name in shared) for config in configs}) == 1
    models = [preset_config(config.model, **config.model_overrides) for config in configs]
    assert {model.num_queries for model in models} == {70}
    assert [model.strides for model in models] == [(16,), (16,), (16,), (16, 32), (16, 32)]
    experiment, _ = parse(["peers", str(shapes)])
    assert {preset_config(row.model, **experiment.model_overrides(row)).num_queries for row in experiment.rows} == {50}


def test_evaluation_written_twice_counts_once(tmp_path: Path) -> None:
    entries = [
        {"kind": "evaluation", "step": step, "epoch": 1, "ap": ap} for step, ap in ((5, 0.1), (5, 0.1), (9, 0.2))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert [entry["step"] for entry in read_evaluations(tmp_path)] == [5, 9]


def test_invalid_options_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--rows nothing-like: no such rows; expected some of plain, conditional"):
        parse(["peers", "drawn", "--rows", "nothing-like"])
    with pytest.raises(SystemExit, match="--split: synthetic images have a validation split only"):
        parse(["peers", "drawn", "--split", "test"])
    with pytest.raises(SystemExit, match="--minutes 0: expected more than 0"):
        parse(["peers", "drawn", "--minutes", "0"])
    with pytest.raises(SystemExit, match="--seed is determined by the row, --seeds"):
        parse(["peers", "drawn", "--seed", "7"])
    with pytest.raises(SystemExit, match="--crop has no effect on synthetic images"):
        parse(["peers", "drawn", "--crop", "1"])
    for name, value, message in (
        ("--learning-rat", "3", "'learning_rat' does not exist"),
        ("--lr", "abc", "lr='abc': input should"),
        ("--hidden-dimm", "3", "hidden_dimm"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["peers", "drawn", "--output", str(tmp_path), name, value])
    with pytest.raises(SystemExit, match="nonexistent"):
        main(["peers", "drawn", "--output", str(tmp_path), "--write", str(tmp_path / "nonexistent.md")])
    with pytest.raises(SystemExit, match="no such file or folder"):
        main(["peers", str(tmp_path / "nowhere"), "--output", str(tmp_path)])
    document = tmp_path / "a.md"
    document.write_text("nothing")
    with pytest.raises(SystemExit, match="to insert the table"):
        insert_into(document, "peers-drawn", "| |")
