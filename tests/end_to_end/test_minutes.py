"""A run of so many minutes: as many steps as there is time for, and otherwise the run that so many steps are."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detrkit.cli import main
from detrkit.config.run import load_run_config
from detrkit.training import run as training_run
from detrkit.training.run import Run
from detrkit.training.trainer import Throughput
from tests.datasets import write_coco

SMALL = ["--batch-size", "2", "--workers", "0", "--image-size", "64", "--decoder-layers", "1", "--device", "cpu"]


def code_of(*arguments: str) -> object:
    """Run a command; tell its exit code."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(training_run, "_TIMED_STEPS", 1)
    monkeypatch.setattr(training_run, "_TIMED_SECONDS", 0.0)
    return str(write_coco(tmp_path / "shapes", 5, 2))


def test_a_run_of_minutes_is_the_run_of_as_many_steps(
    shapes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Run.measure_pace

    def slow(run: Run) -> Throughput:
        measured = measure(run)
        assert measured.step > 0
        assert measured.evaluation > 0
        return Throughput(1.0, 0.25)

    monkeypatch.setattr(Run, "measure_pace", slow)
    assert code_of("train", shapes, *SMALL, "--minutes", "0.06", "--output", str(tmp_path / "timed")) == 0
    assert "3 updates in 0.06 min: 1.00 s each" in capsys.readouterr().out
    assert load_run_config(tmp_path / "timed" / "config.yaml").training.steps == 3
    assert code_of("train", shapes, *SMALL, "--steps", "3", "--output", str(tmp_path / "counted")) == 0
    timed, counted = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("timed", "counted"))
    assert timed.keys() == counted.keys()
    assert all(torch.equal(timed[name], counted[name]) for name in counted)


def test_a_dry_run_tells_the_time_and_writes_nothing(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("train", shapes, *SMALL, "--steps", "7", "--dry-run", "--output", str(tmp_path / "none")) == 0
    told = capsys.readouterr().out
    assert re.search(r"7 updates of \d+\.\d\d s each", told)
    assert told.rstrip().endswith("nothing was written")
    assert not (tmp_path / "none").exists()


def test_a_dry_run_counts_the_steps_of_one_of_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_run, "_TIMED_STEPS", 1)
    monkeypatch.setattr(training_run, "_TIMED_SECONDS", 0.0)
    shapes = str(write_coco(tmp_path / "shapes", 8, 2))
    assert code_of("train", shapes, *SMALL, "--epochs", "3", "--devices", "2", "--dry-run") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "6 updates of " in told  # 8 photos, 2 at a time in 2 processes, 3 times
    assert "one of 2 processes timed alone" in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--minutes", "0"], "--minutes 0 must be positive"),
        (["--minutes", "5", "--epochs", "3"], "--minutes and --epochs exclude each other"),
        (["--minutes", "5", "--devices", "2"], "--minutes needs a single process"),
        (["--minutes", "5", "--slurm", "partition=x"], "--minutes: steps are timed here"),
        (["--dry-run", "--slurm", "partition=x"], "--dry-run: steps are timed here"),
    ],
)
def test_minutes_that_cannot_be_counted_are_refused(
    given: list[str], told: str, shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("train", shapes, *given, "--output", str(tmp_path / "none")) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()
