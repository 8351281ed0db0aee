"""Output of `detrkit train`: true defaults, the plan, the command after a stop or a run that learned nothing."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from detrkit.cli import main, training_console
from detrkit.cli.settings import RunSettings
from detrkit.cli.training_console import ConsoleProgress, print_plan, print_result, print_resume_command
from detrkit.config.run import RunConfig, run_config
from detrkit.config.training import CHOSEN_SETTINGS, SETTING_GROUPS, setting_field
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.training import next_run
from detrkit.training.callbacks import Callback, TrainingState
from detrkit.training.next_run import learned_almost_nothing, suggest_next_run
from detrkit.training.planner import MIN_STEPS, plan_model, plan_training
from detrkit.training.result import TrainResult
from tests.datasets import write_coco

SMALL = ["--batch-size", "2", "--workers", "0", "--image-size", "64", "--decoder-layers", "1", "--device", "cpu"]


def code_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code


def test_help_names_defaults_that_the_model_or_the_plan_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    options = {f"--{name.replace('_', '-')}": shown for name, shown in CHOSEN_SETTINGS.items()}
    for option, shown in options.items():
        after = text.split(f"{option} ", 1)[1]
        assert after[after.index("[default: ") :].startswith(f"[default: {shown}]"), option
    for wrong in ("[default: 800]", "[default: 300]", "[default: 1e-05]"):
        assert wrong not in text
    assert "--eos-coef FLOAT weight of the no-object class in the cross-entropy [default: 0.1]" in text


def test_settings_that_are_chosen_exist_and_are_not_given_by_default() -> None:
    assert set(CHOSEN_SETTINGS) <= set(SETTING_GROUPS)
    for name in CHOSEN_SETTINGS:
        assert RunSettings().model_dump()[name] == setting_field(name).get_default(call_default_factory=True)
    assert not RunSettings().model_fields_set


def evaluation(ap50: float, ap: float = 0.01) -> EvalMetrics:
    return EvalMetrics(CocoMetrics({"ap": ap, "ap50": ap50}, (), 6, 20))


def result_of(tmp_path: Path, ap50: float = 0.02, steps: int = 76, **settings: Any) -> TrainResult:
    config = run_config({"data": "my photos", **settings})
    return TrainResult(tmp_path / "first run", config, evaluation(ap50), epochs=3, steps=steps)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (evaluation(0.016), True),
        (evaluation(0.0), True),
        (evaluation(0.3), False),
        (evaluation(-1.0), False),  # no ground truth
        (None, False),
    ],
)
def test_run_that_learned_almost_nothing_is_recognised(metrics: EvalMetrics | None, expected: bool) -> None:
    assert learned_almost_nothing(metrics) is expected


@pytest.mark.parametrize(
    ("lite0", "resnet", "given", "steps", "expected"),
    [
        (True, True, {}, 76, {"model": "detrkit-s", "weights": "imagenet", "backbone": "timm:tf_efficientnet_lite0"}),
        (False, True, {}, 76, {"model": "detrkit-m", "weights": "imagenet"}),
        (False, False, {}, 76, {"model": "detrkit-s", "minutes": 200}),
        (False, False, {}, MIN_STEPS["scratch"], {"model": "detrkit-s", "overfit": 8}),
        (True, True, {"weights": "imagenet"}, 76, {"model": "detrkit-m", "weights": "imagenet", "minutes": 100}),
        (True, True, {"weights": "runs/a", "model": "detr-r50"}, 9, {"weights": "runs/a", "minutes": 30}),
        (True, True, {"weights": "imagenet"}, 10**5, {"weights": "imagenet", "overfit": 8}),
    ],
)
def test_next_run_works_here_without_a_network(
    lite0: bool,
    resnet: bool,
    given: dict[str, Any],
    steps: int,
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(next_run, "installed_lite0", lambda: tmp_path if lite0 else None)
    monkeypatch.setattr(next_run, "find_spec", lambda _name: object())
    monkeypatch.setattr(next_run, "cached_imagenet_weights", lambda _name: tmp_path if resnet else None)
    monkeypatch.setattr(next_run, "_seconds_per_step", lambda *_: 1.0)
    config = run_config({"data": "photos", **given})
    settings = suggest_next_run(config, steps, tmp_path).settings
    assert settings.items() >= expected.items()
    run_config({"data": "photos", **settings})  # a valid configuration
    if "overfit" not in expected:
        plan_model(run_config({"data": "photos", **settings}))


def test_duration_of_a_step_is_read_from_the_log(tmp_path: Path) -> None:
    lines = [
        f'{{"kind": "train", "step": {n}, "epoch": 1, "images_per_second": {rate}}}'
        for n, rate in enumerate((1.0, 2.0, 9.0))
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join([*lines, '{"kind": "evaluation", "step": 3, "epoch": 1, "ap": 0.0}'])
    )
    config = run_config({"data": "photos", "batch_size": 4, "gradient_accumulation": 2})
    assert next_run._seconds_per_step(config, tmp_path) == 4
    assert next_run._seconds_per_step(config, tmp_path / "none") == 1


def test_command_of_the_next_run_can_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "first run-2").mkdir()
    print_result(result_of(tmp_path, format="coco"))
    output = capsys.readouterr().out
    assert "Almost nothing was learned in 76 steps" in output
    command = output[output.index("detrkit train") :].splitlines()[0]
    assert command.startswith("detrkit train 'my photos' --model ")
    assert command.endswith(f"--format coco --output '{tmp_path}/first run-3'")
    print_result(result_of(tmp_path, ap50=0.4))
    assert "Almost nothing" not in capsys.readouterr().out


def test_stopped_run_prints_the_command_that_continues_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["detrkit"])  # whether or not pytest was started as a module, or by uv
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    print_resume_command(tmp_path)
    assert not capsys.readouterr().out, "nothing was saved"
    for name in ("run", "a run; with spaces"):
        (tmp_path / name / "last").mkdir(parents=True)
        (tmp_path / name / "last" / "state.pt").touch()
        print_resume_command(tmp_path / name)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"continue with: detrkit train --resume {tmp_path}/run"
    assert second == f"continue with: detrkit train --resume '{tmp_path}/a run; with spaces'"


class Interrupt(Callback):
    """Presses Ctrl-C once or twice after the first step."""

    times = 1

    def on_step_end(self, state: TrainingState) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(("times", "code"), [(1, 130), (2, 130)])
def test_ctrl_c_prints_the_command_that_continues_the_run(
    times: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Console(Interrupt, ConsoleProgress):
        def on_step_end(self, state: TrainingState) -> None:
            ConsoleProgress.on_step_end(self, state)
            if state.step == 4:  # after the first evaluation, which saved the run
                capsys.readouterr()
                try:
                    super().on_step_end(state)
                finally:
                    said.append(capsys.readouterr().out)

    Console.times = times
    monkeypatch.setattr("sys.argv", ["detrkit"])
    monkeypatch.setattr(training_console, "ConsoleProgress", Console)
    shapes, run = write_coco(tmp_path / "shapes", 4, 2), tmp_path / "run"
    arguments = ["train", str(shapes), *SMALL, "--epochs", "9", "--evaluate-every", "1", "--output", str(run)]
    assert code_of(*arguments) == code
    assert "stopping after the current step or evaluation, then saving the run; press Ctrl-C again" in said[0]
    assert f"continue with: detrkit train --resume {run}" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_started", [False, True])
def test_signal_is_acknowledged_before_the_step_ends(
    number: signal.Signals, is_started: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    state, progress = TrainingState(), ConsoleProgress()
    state.stop.on_signal = lambda: progress.on_stop_signal(state)
    with state.stop:
        if is_started:
            progress.on_train_start(state)
        capsys.readouterr()
        os.kill(os.getpid(), number)
        said = capsys.readouterr().out
        progress.on_exception(state, RuntimeError())
    assert "stopping after the current step or evaluation, then saving the run" in said
    assert ("press Ctrl-C again to stop at once" in said) is (number == signal.SIGINT)


@pytest.mark.parametrize(
    ("model", "weights", "note"),
    [("detrkit-s", None, True), ("detrkit-m", "imagenet", True), ("detr-r50", "imagenet", False)],
)
def test_plan_says_whether_transformers_can_load_the_model(
    model: str, weights: str | None, note: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(data="photos", model=model, weights=weights)
    print_plan(plan_training(plan_model(config), set(), 100))
    output = capsys.readouterr().out
    assert ("transformers cannot load this architecture" in output) is note
    assert "suits" not in output
    assert "default of" not in output
