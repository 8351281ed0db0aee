"""The convergence tables: rows that exist, one ingredient each, trained once and then read, with budgets that stay."""

import json
from pathlib import Path

import pytest
from benchmarks.convergence import (
    TABLES,
    evaluations_of,
    has_ended,
    main,
    parsed,
    trained,
    write_into,
)

from benchmarks import convergence
from detrkit.config.training import TrainingConfig
from detrkit.models.presets import preset_config
from detrkit.training.run import Run
from tests.datasets import write_coco

SMALLEST = ["--minutes", "0.0001", "--batch-size", "2", "--workers", "0", "--image-size", "64"]


def test_every_row_is_a_model_that_can_be_built_with_settings_that_exist() -> None:
    for rows in TABLES.values():
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            preset_config(row.model, **row.drawn, **row.settings)
            preset_config(row.model, **row.photos, **row.settings)
            TrainingConfig.model_validate(row.training)
    own, *others = TABLES["ingredients"]
    assert not own.settings
    assert not own.training
    assert all(row.model == own.model for row in others)


def test_a_table_is_trained_once_and_then_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "_TIMINGS", 2)
    shapes = write_coco(tmp_path / "shapes", 2, 2)
    document = tmp_path / "RESULTS.md"
    document.write_text("before\n<!-- convergence ingredients-shapes -->\nold\n<!-- end -->\nafter\n")
    rows = ["detrkit-s", "not-twice"]
    command = ["ingredients", str(shapes), "--seeds", "1", "2", "--rows", *rows, "--output", str(tmp_path), *SMALLEST]
    main([*command, "--split", "val", "--write", str(document)])
    first = capsys.readouterr().out
    assert first.count("training, 1 steps") == 4
    folder = tmp_path / "ingredients-shapes"
    assert set(json.loads((folder / "budget.json").read_text())["seconds"]) == set(rows)
    table = (folder / "ingredients.md").read_text()
    assert table.count("\n") == 4
    assert "without looking forward twice" in table
    assert (folder / "ingredients.png").read_bytes().startswith(b"\x89PNG")
    shown = "\n![AP over the minutes of training](pictures/ingredients-shapes.png)\n"
    assert (
        document.read_text() == f"before\n<!-- convergence ingredients-shapes -->\n{table}{shown}<!-- end -->\nafter\n"
    )
    assert (tmp_path / "pictures" / "ingredients-shapes.png").read_bytes() == (folder / "ingredients.png").read_bytes()
    with pytest.raises(SystemExit, match="found runs with other training, expected"):
        main([*command, "--batch-size", "1"])
    others = write_coco(tmp_path / "elsewhere" / "shapes", 2, 2)
    with pytest.raises(SystemExit, match="found runs with other data, expected"):
        main([command[0], str(others), *command[2:]])
    main([*command, "--split", "val"])
    again = capsys.readouterr().out
    assert "training" not in again
    assert again.endswith(table)


def test_a_run_that_was_stopped_after_an_evaluation_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = write_coco(tmp_path / "shapes", 4, 2)
    command = ["ingredients", str(shapes), "--seeds", "1", "--rows", "detrkit-s", "--output", str(tmp_path), *SMALLEST]
    bench, _ = parsed(command)
    row = bench.rows[0]

    class StoppedError(Exception):
        pass

    saves = []

    def save(run: Run, state: dict[str, object]) -> None:
        saved(run, state)
        saves.append(state)
        if len(evaluations_of(bench.folder(row, 1))) == 1:
            raise StoppedError

    saved = Run.save_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_state", save)
        with pytest.raises(StoppedError):
            trained(bench, row, 1, steps=6)
    folder = bench.folder(row, 1)
    assert saves
    assert evaluations_of(folder)
    assert not has_ended(folder, 6)
    (folder / "report.html").write_text("of a run that was stopped")
    capsys.readouterr()
    trained(bench, row, 1, steps=6)
    assert "going on, 6 steps" in capsys.readouterr().out
    assert has_ended(folder, 6)
    trained(bench, row, 1, steps=6)
    assert "steps" not in capsys.readouterr().out


def test_drawings_are_planned_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "NUM_TRAIN", 40)
    monkeypatch.setattr(convergence, "NUM_TEST", 4)
    bench, _ = parsed(["ingredients", "drawn", "--output", str(tmp_path), "--batch-size", "8"])
    mosaic = next(row for row in bench.rows if row.name == "mosaic")
    config, data = bench.open(mosaic, seed=7, steps=20)
    assert (config.training.batch_size, config.training.seed, config.training.steps) == (8, 7, 20)
    assert config.training.loss.iou_aware
    assert data.train.strong is not None
    assert bench.run(mosaic, seed=7, steps=20).data.train.strong_epochs == 3  # 0.7 of the 4 rounds that 20 steps are
    _, plain = bench.open(bench.rows[0], seed=7, steps=20)
    assert plain.train.strong is None
    convergence.drawings.cache_clear()


def test_photos_are_framed_and_looked_at_alike_by_all_architectures(tmp_path: Path) -> None:
    shapes = write_coco(tmp_path / "shapes", 4, 2)
    bench, _ = parsed(["peers", str(shapes), "--num-queries", "70", "--backbone", "resnet50"])
    configs = [bench.open(row, seed=1, steps=5)[0] for row in bench.rows]
    alike = ("image_size", "train_scale", "batch_size", "clip_grad_norm", "horizontal_flip", "crop")
    assert len({tuple(config.training[name] for name in alike) for config in configs}) == 1
    models = [preset_config(config.model, **config.model_overrides) for config in configs]
    assert {model.num_queries for model in models} == {70}
    assert [model.strides for model in models] == [(16,), (16,), (16,), (16, 32), (16, 32)]
    bench, _ = parsed(["peers", str(shapes)])
    assert {preset_config(row.model, **bench.fields_of(row)).num_queries for row in bench.rows} == {50}


def test_an_evaluation_written_twice_counts_once(tmp_path: Path) -> None:
    entries = [{"kind": "evaluation", "step": step, "ap": ap} for step, ap in ((5, 0.1), (5, 0.1), (9, 0.2))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert [one["step"] for one in evaluations_of(tmp_path)] == [5, 9]


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--rows: found nothing-like, expected some of plain, conditional"):
        parsed(["peers", "drawn", "--rows", "nothing-like"])
    with pytest.raises(SystemExit, match="--split: drawings are judged by 500"):
        parsed(["peers", "drawn", "--split", "test"])
    with pytest.raises(SystemExit, match="--minutes: found 0, expected more"):
        parsed(["peers", "drawn", "--minutes", "0"])
    with pytest.raises(SystemExit, match="--seed: every run's is decided by its row, --seeds"):
        parsed(["peers", "drawn", "--seed", "7"])
    with pytest.raises(SystemExit, match="--crop: drawings are shown as they are"):
        parsed(["peers", "drawn", "--crop", "1"])
    for name, value, told in (
        ("--learning-rat", "3", "'learning_rat' does not exist"),
        ("--lr", "abc", "lr='abc': input should"),
        ("--hidden-dimm", "3", "hidden_dimm"),
    ):
        with pytest.raises(SystemExit, match=told):
            main(["peers", "drawn", "--output", str(tmp_path), name, value])
    with pytest.raises(SystemExit, match="nonexistent"):
        main(["peers", "drawn", "--output", str(tmp_path), "--write", str(tmp_path / "nonexistent.md")])
    with pytest.raises(SystemExit, match="found nothing"):
        main(["peers", str(tmp_path / "nowhere"), "--output", str(tmp_path)])
    document = tmp_path / "a.md"
    document.write_text("nothing")
    with pytest.raises(SystemExit, match="expected a place for the table"):
        write_into(document, "peers-drawn", "| |")
