"""Time limit and dry run from the command line. How well the limit is kept, a simulated clock shows in test_budget."""

import re
from pathlib import Path

import pytest
import yaml

from detrkit.checkpoints.files import read_training_state
from detrkit.cli import main
from detrkit.config.run import load_run_config
from detrkit.training import duration
from tests.datasets import write_coco

pytestmark = pytest.mark.slow

SMALL = ["--batch-size", "2", "--workers", "0", "--image-size", "64", "--decoder-layers", "1", "--device", "cpu"]


def code_of(*arguments: str) -> object:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("_WARM_UP_STEPS", "_WARM_UP_SECONDS", "_TIMED_SECONDS"):
        monkeypatch.setattr(duration, name, 0)
    monkeypatch.setattr(duration, "_TIMED_STEPS", 1)
    return str(write_coco(tmp_path / "shapes", 5, 2))


def test_run_with_a_time_limit_is_complete_and_evaluated(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "timed"
    assert code_of("train", shapes, *SMALL, "--minutes", "0.001", "--output", str(run)) == 0
    output = capsys.readouterr().out
    assert "time limit 0.1 s, from the start of the command to the written report" in output
    assert "evaluate_every by the clock: about 20 evaluations" in output
    training = load_run_config(run / "config.yaml").training
    assert (training.minutes, training.steps, training.evaluation.evaluate_every) == (0.001, None, None)
    state = read_training_state(run / "last" / "state.pt")
    assert (state["train_step"]["step_number"], state["num_steps"], state["budget"]["fraction"]) == (1, None, 1)
    assert (run / "report.html").is_file()
    assert code_of("train", "--resume", str(run)) == 2
    assert "the run has ended, after 1 epoch" in capsys.readouterr().err


def test_resumed_run_must_keep_its_kind_of_length(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "timed"
    assert code_of("train", shapes, *SMALL, "--minutes", "0.001", "--output", str(run)) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "minutes": None, "steps": 9}))
    assert code_of("train", "--resume", str(run)) == 2
    assert "gives 9 steps, but the run was started with a time limit" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (["--steps", "7"], r"7 steps of \d+\.\d\d s and 4 evaluations of \d+\.\d s take about \d+(\.\d)? s on"),
        (["--epochs", "1"], r"2 steps of \d+\.\d\d s and 1 evaluation of \d+\.\d s take about \d+(\.\d)? s on"),
        (["--minutes", "90"], r"\d+ steps of \d+\.\d\d s and \d+ evaluations of \d+\.\d s fit into 1 h 30 min on"),
    ],
)
def test_dry_run_prints_an_estimate_and_writes_nothing(
    length: list[str], expected: str, shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("train", shapes, *SMALL, *length, "--dry-run", "--output", str(tmp_path / "none")) == 0
    output = capsys.readouterr().out
    assert re.search(expected, output), output
    *_, estimate, hint = output.rstrip().splitlines()
    assert estimate.endswith("nothing was written")
    assert hint.endswith(f"check the images first: detrkit doctor {shapes}")
    assert not (tmp_path / "none").exists()


def test_dry_run_warns_of_a_batch_that_is_larger_than_the_dataset(
    shapes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("train", shapes, *SMALL[2:], "--batch-size", "500", "--steps", "1", "--dry-run") == 0
    assert "warning: batch_size 500 is larger than the 5 training images" in capsys.readouterr().out


def test_dry_run_of_two_processes_times_one(shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = str(write_coco(tmp_path / "more", 8, 2))
    assert code_of("train", shapes, *SMALL, "--epochs", "3", "--devices", "2", "--dry-run") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "6 steps of " in output  # 8 images, 2 per batch in 2 processes, 3 epochs
    assert "one of 2 processes timed" in output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--minutes", "0"], "--minutes: found 0; input should be greater than 0"),
        (["--minutes", "nan"], "--minutes: found nan; input should be a finite number"),
        (["--minutes", "5", "--epochs", "3"], "--epochs and --minutes exclude each other"),
        (["--minutes", "5", "--steps", "3"], "--steps and --minutes exclude each other"),
        (["--dry-run", "--slurm", "partition=x"], "--dry-run times steps on this machine"),
    ],
)
def test_time_limit_that_is_none_is_rejected(
    given: list[str], message: str, shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("train", shapes, *given, "--output", str(tmp_path / "none")) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (4.23, "4.2 s"), (47.6, "48 s"), (59.7, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_shown_in_their_two_largest_units(seconds: float, expected: str) -> None:
    from detrkit._internal.text import duration

    assert duration(seconds) == expected
