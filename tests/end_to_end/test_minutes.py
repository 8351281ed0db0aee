"""Time limit and dry run: planned steps, and the estimate of the time."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detrkit.cli import main
from detrkit.config.run import load_run_config
from detrkit.training import duration
from detrkit.training.duration import Throughput
from detrkit.training.run import TrainingRun
from tests.datasets import write_coco

SMALL = ["--batch-size", "2", "--workers", "0", "--image-size", "64", "--decoder-layers", "1", "--device", "cpu"]


def code_of(*arguments: str) -> object:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(duration, "_MIN_TIMED_STEPS", 1)
    monkeypatch.setattr(duration, "_MIN_TIMED_SECONDS", 0.0)
    return str(write_coco(tmp_path / "shapes", 5, 2))


def test_run_with_a_time_limit_equals_the_run_of_as_many_steps(
    shapes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = TrainingRun.measure_throughput

    def slow(run: TrainingRun) -> Throughput:
        measured = measure(run)
        assert measured.step > 0
        assert measured.evaluation > 0
        return Throughput(1.0, 0.25)

    monkeypatch.setattr(TrainingRun, "measure_throughput", slow)
    assert code_of("train", shapes, *SMALL, "--minutes", "0.06", "--output", str(tmp_path / "timed")) == 0
    assert "3 steps fit: 1.00 s each" in capsys.readouterr().out
    assert load_run_config(tmp_path / "timed" / "config.yaml").training.steps == 3
    assert code_of("train", shapes, *SMALL, "--steps", "3", "--output", str(tmp_path / "counted")) == 0
    timed, counted = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("timed", "counted"))
    assert timed.keys() == counted.keys()
    assert all(torch.equal(timed[name], counted[name]) for name in counted)


def test_dry_run_prints_an_estimate_and_writes_nothing(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("train", shapes, *SMALL, "--steps", "7", "--dry-run", "--output", str(tmp_path / "none")) == 0
    output = capsys.readouterr().out
    assert re.search(r"7 steps of \d+\.\d\d s", output)
    assert output.rstrip().endswith("nothing was written")
    assert not (tmp_path / "none").exists()


def test_dry_run_of_two_processes_times_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(duration, "_MIN_TIMED_STEPS", 1)
    monkeypatch.setattr(duration, "_MIN_TIMED_SECONDS", 0.0)
    shapes = str(write_coco(tmp_path / "shapes", 8, 2))
    assert code_of("train", shapes, *SMALL, "--epochs", "3", "--devices", "2", "--dry-run") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "6 steps of " in output  # 8 images, 2 per batch in 2 processes, 3 epochs
    assert "one of 2 processes timed" in output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--minutes", "0"], "--minutes 0.0 must be positive"),
        (["--minutes", "5", "--epochs", "3"], "--minutes and --epochs exclude each other"),
        (["--minutes", "5", "--devices", "2"], "--minutes needs a single process"),
        (["--minutes", "5", "--slurm", "partition=x"], "--minutes 5.0 times steps on this machine"),
        (["--dry-run", "--slurm", "partition=x"], "--dry-run times steps on this machine"),
    ],
)
def test_time_limit_that_cannot_be_planned_is_rejected(
    given: list[str], message: str, shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("train", shapes, *given, "--output", str(tmp_path / "none")) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()
