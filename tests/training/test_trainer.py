"""The training loop: what is saved, when it ends, callbacks, and resuming bit for bit."""

import io
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from detrkit.config.training import TrainingConfig
from detrkit.errors import ConfigError, DetrkitError, NonFiniteError
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.losses.criterion import LossOutput
from detrkit.losses.matcher import Matches
from detrkit.models.detr import DETR
from detrkit.structures import Batch
from detrkit.training.callbacks import Callback, TrainingState
from detrkit.training.loggers import LOGGERS, Logger, LoggerCallback, build_loggers
from detrkit.training.loggers.base import Kind, LogContext
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.train_step import TrainStep
from detrkit.training.trainer import Trainer
from tests.training.steps import SETTINGS, drawn, make_train_step


@dataclass
class Checkpoints:
    """Returns prepared metrics, and records what is saved."""

    aps: list[float]
    saved: list[str] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def evaluate(self, _model: DETR) -> EvalMetrics:
        ap = self.aps.pop(0)
        return EvalMetrics(CocoMetrics({"ap": ap, "ap50": ap}, (), 1, 1))

    def save_weights(self, name: str, _model: DETR) -> None:
        self.saved.append(name)

    def save_state(self, state: dict[str, Any]) -> None:
        """As a file would: a copy, of what may be read safely."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        self.states.append(torch.load(buffer, weights_only=True))


class CountingStep(TrainStep):
    """Stands in for `TrainStep` where only the loop is of interest: counts steps, without a model."""

    def __init__(self) -> None:
        self.step_number = 0
        self.device = torch.device("cpu")
        self.skipped_steps: list[str] = []
        self.model = None  # type: ignore[assignment]
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])  # type: ignore[assignment]

    @property
    def best_model(self) -> Any:
        return None

    def train(self) -> None: ...

    def finish(self) -> None: ...

    def step(self, batches: Sequence[Batch]) -> LossOutput:
        self.step_number += 1
        total = torch.tensor(float(self.step_number))
        return LossOutput(total, {"loss_ce": total}, Matches(*[torch.zeros(0, dtype=torch.int64)] * 4))

    def state_dict(self) -> dict[str, Any]:
        return {"step_number": self.step_number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_number = state["step_number"]


class Batches:
    """Three batches of two images."""

    closing_from: tuple[int, int] | None = None

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        batch = Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool), [], [1, 2], [], [])
        return iter([batch] * (3 - self.first))

    def start_at(self, epoch: int, first: int) -> None:
        self.epoch, self.first = epoch, first

    def end_strong_augmentation(self) -> None:
        self.closing_from = (self.epoch, self.first)


def make_loop(
    checkpoints: Checkpoints, settings: TrainingConfig = SETTINGS, callbacks: Sequence[Callback] = ()
) -> Trainer:
    return Trainer(CountingStep(), Batches(), settings, checkpoints.evaluate, checkpoints, callbacks)


def make_trainer(
    checkpoints: Checkpoints, settings: TrainingConfig = SETTINGS, callbacks: Sequence[Callback] = ()
) -> Trainer:
    step = make_train_step(settings)
    return Trainer(step, drawn(settings), settings, checkpoints.evaluate, checkpoints, callbacks)


class Recorder(Callback):
    """Records all events, and requests a stop at one of them."""

    def __init__(self, stop_at: str = "") -> None:
        self.events: list[str] = []
        self.stop_at = stop_at

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def record(state: TrainingState, *_: object) -> None:
            self.events.append(name)
            if f"{name} {self.events.count(name)}" == self.stop_at:
                state.request_stop()

        return record


class MemoryLogger:
    """A logger from outside of the package."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []

    def open(self, context: LogContext) -> None:
        self.entries.append(("open", context.step))

    def scalars(self, kind: Kind, step: int, epoch: int, values: Any) -> None:
        self.entries.append((kind, step, epoch, set(values)))

    def images(self, step: int, images: Sequence[Any]) -> None:
        self.entries.append(("images", step, len(images)))

    def close(self) -> None:
        self.entries.append(("close",))


def fit_with_loggers(trainer: Trainer, folder: Path, loggers: Sequence[str | Logger] = ()) -> None:
    folder.mkdir(exist_ok=True)
    callback = LoggerCallback(build_loggers(loggers))
    trainer.callbacks.callbacks += (callback,)
    trainer.state.output = folder
    callback.on_train_start(trainer.state)
    try:
        trainer.fit()
    finally:
        callback.on_train_end(trainer.state)


def test_best_and_last_weights_are_saved_and_metrics_logged(tmp_path: Path) -> None:
    checkpoints, logger = Checkpoints([0.2, -1.0]), MemoryLogger()
    trainer = make_trainer(checkpoints)
    fit_with_loggers(trainer, tmp_path, ["tensorboard", logger])
    assert checkpoints.saved == ["last", "best", "last", "last", "last"]  # before and after each evaluation
    assert trainer.progress.best is not None
    assert (trainer.progress.best.ap, trainer.progress.epoch) == (0.2, 3)
    entries = read_metrics(tmp_path)
    losses = [entry for entry in entries if entry["kind"] == "train"]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "lr", "images_per_second"} <= set(losses[0])
    evaluations = [entry for entry in entries if entry["kind"] == "evaluation"]
    assert [(entry["epoch"], entry["ap"], entry["best"]) for entry in evaluations] == [(1, 0.2, True), (2, None, False)]
    assert list((tmp_path / "tensorboard").iterdir())
    assert logger.entries[0] == ("open", 0)
    assert logger.entries[-3:] == [("evaluation", 6, 2, {"best", "ap", "ap50"}), ("images", 6, 0), ("close",)]


def test_callbacks_are_called_in_order() -> None:
    recorder = Recorder()
    make_loop(Checkpoints([0.1]), SETTINGS.replace(epochs=1, log_every=2), [recorder]).fit()
    assert recorder.events == [
        "on_epoch_start", "on_step_end", "on_step_end", "on_log", "on_step_end", "on_log", "on_checkpoint",
        "on_checkpoint", "on_evaluate_end", "on_checkpoint", "on_epoch_end",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stop_at", "step", "epoch", "batch"),
    [("on_step_end 2", 2, 1, 2), ("on_evaluate_end 1", 3, 2, 0), ("on_epoch_end 1", 3, 2, 0)],
)
def test_callback_stops_the_run_which_is_saved(stop_at: str, step: int, epoch: int, batch: int) -> None:
    checkpoints = Checkpoints([0.1, 0.2])
    loop = make_loop(checkpoints, callbacks=[Recorder(stop_at)])
    loop.fit()
    assert not loop.has_ended
    assert checkpoints.states[-1]["train_step"]["step_number"] == step
    assert (checkpoints.states[-1]["progress"]["epoch"], checkpoints.states[-1]["progress"]["batch"]) == (epoch, batch)


def test_unknown_logger_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"^loggers='tensorbord': .* did you mean 'tensorboard'"):
        build_loggers(["tensorbord"])
    with pytest.raises(ConfigError, match="expected a list of names"):
        build_loggers("tensorboard")  # a string is a sequence of strings
    assert all(isinstance(logger, Logger) for logger in build_loggers(list(LOGGERS)))


def test_train_on_val_keeps_the_last_checkpoint_as_the_best() -> None:
    checkpoints = Checkpoints([0.2, 0.1])
    loop = make_loop(checkpoints, SETTINGS.replace(train_on_val=True))
    loop.fit()
    assert checkpoints.saved == ["last", "best", "last"] * 2
    assert loop.progress.best is not None
    assert loop.progress.best.ap == 0.1


def test_failed_evaluation_is_repeated_by_a_resumed_run() -> None:
    def fail(_model: DETR) -> EvalMetrics:
        raise DetrkitError("an image is broken")

    checkpoints, again = Checkpoints([]), Checkpoints([0.2, 0.1])
    loop = make_loop(checkpoints)
    loop.evaluate = fail
    with pytest.raises(DetrkitError, match="broken"):
        loop.fit()
    other = make_loop(again)
    other.load_state_dict(checkpoints.states[-1])
    assert other.train_step.step_number == 3
    other.fit()
    assert not again.aps, "the first epoch is evaluated, too"
    assert (other.train_step.step_number, other.progress.epoch) == (6, 3)


def test_first_checkpoint_is_the_best_even_without_ground_truth() -> None:
    checkpoints = Checkpoints([-1.0, -1.0])
    make_loop(checkpoints).fit()
    assert checkpoints.saved == ["last", "best", "last"] * 2


def test_latest_checkpoint_is_the_best_while_ap_is_zero_but_patience_counts() -> None:
    checkpoints = Checkpoints([0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0])
    loop = make_loop(checkpoints, SETTINGS.replace(epochs=7, patience=4))
    loop.fit()
    assert loop.progress.evaluations_since_best == 2
    # the fifth was better, the sixth and seventh are not
    assert checkpoints.saved == ["last", "best", "last"] * 5 + ["last", "last"] * 2
    impatient = make_loop(Checkpoints([0.0, 0.0, 0.0]), SETTINGS.replace(epochs=7, patience=2))
    impatient.fit()
    assert impatient.progress.epoch == 4


def test_run_killed_in_its_last_evaluation_takes_no_further_step() -> None:
    def killed(_model: DETR) -> EvalMetrics:
        raise KeyboardInterrupt

    settings, checkpoints = SETTINGS.replace(epochs=1, steps=2), Checkpoints([])
    loop = make_loop(checkpoints, settings)
    loop.evaluate = killed
    with pytest.raises(KeyboardInterrupt):
        loop.fit()
    other = make_loop(Checkpoints([0.3]), settings)
    other.load_state_dict(checkpoints.states[-1])
    other.fit()
    assert (other.train_step.step_number, other.progress.epoch) == (2, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_after_the_current_step_and_saves_it(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints([0.5, 0.6])
    loop = make_loop(checkpoints)
    original = loop.train_step.step

    def stop_at_fifth(batches: Sequence[Batch]) -> LossOutput:
        if loop.train_step.step_number == 4:
            os.kill(os.getpid(), number)
        return original(batches)

    monkeypatch.setattr(loop.train_step, "step", stop_at_fifth)
    before = signal.getsignal(number)
    with loop.state.stop:
        loop.fit()
    assert signal.getsignal(number) is before
    assert loop.state.stop.received == number
    assert (loop.progress.epoch, loop.train_step.step_number) == (2, 5)
    assert checkpoints.saved == ["last", "best", "last", "last"]
    assert checkpoints.states[-1]["progress"]["batch"] == 2


def test_run_ends_after_its_steps_or_without_improvement() -> None:
    loop = make_loop(Checkpoints([0.1, 0.2]), SETTINGS.replace(steps=4))
    loop.fit()
    assert (loop.progress.epoch, loop.train_step.step_number) == (3, 4)
    loop = make_loop(Checkpoints([0.1, 0.3, 0.3, 0.2]), SETTINGS.replace(epochs=9, patience=2))
    loop.fit()
    assert loop.progress.epoch == 5
    assert loop.has_ended


def test_too_many_non_finite_steps_end_the_run_without_changing_weights() -> None:
    trainer = make_trainer(Checkpoints([0.0, 0.0]), SETTINGS.replace(max_nonfinite_steps=3))
    with torch.no_grad():
        trainer.train_step.model.heads.class_head.weight.fill_(float("inf"))
    before = {name: tensor.clone() for name, tensor in trainer.train_step.model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"last 3 steps were not finite \(step 3 skipped: loss_ce"):
        trainer.fit()
    for name, parameter in trainer.train_step.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_runs_with_the_same_seed_are_equal(tmp_path: Path) -> None:
    losses = []
    for name in ("a", "b"):
        fit_with_loggers(make_trainer(Checkpoints([0.1, 0.2])), tmp_path / name)
        losses.append([entry["loss"] for entry in read_metrics(tmp_path / name) if entry["kind"] == "train"])
    assert losses[0] == losses[1]


RESUMED = {
    "epochs": 3,
    "ema_decay": 0.9,
    "gradient_accumulation": 2,
    "lr_scheduler": "cosine",
    "warmup_steps": 3,
    "workers": 0,
}
AUXILIARY = {"denoising": 2, "contrastive_denoising": True, "query_groups": 2, "hybrid_queries": 12}


@pytest.mark.parametrize(
    ("stop_at", "auxiliary"),
    [(2, AUXILIARY), *(pytest.param(step, {}, marks=pytest.mark.slow) for step in (1, 2, 3, 5))],
)
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stop_at: int, auxiliary: dict[str, Any]) -> None:
    settings = SETTINGS.replace(**RESUMED, **auxiliary)
    whole = make_trainer(Checkpoints([0.1, 0.3, 0.2]), settings)
    whole.fit()

    checkpoints = Checkpoints([0.1, 0.3, 0.2])
    make_trainer(checkpoints, settings, [Recorder(f"on_step_end {stop_at}")]).fit()
    torch.manual_seed(123)  # another process starts with another state
    second = make_trainer(checkpoints, settings)
    torch.manual_seed(321)
    second.load_state_dict(checkpoints.states[-1])
    second.fit()
    assert second.progress.best is not None
    assert second.progress.best.ap == 0.3
    assert second.train_step.step_number == whole.train_step.step_number
    for resumed, expected in (
        (second.train_step.model, whole.train_step.model),
        (second.train_step.best_model, whole.train_step.best_model),
        (second.train_step.auxiliary_queries or nn.Module(), whole.train_step.auxiliary_queries or nn.Module()),
    ):
        for (name, one), other in zip(resumed.state_dict().items(), expected.state_dict().values(), strict=True):
            assert torch.equal(one, other), name


def test_metrics_of_an_evaluation_that_was_not_saved_are_written_once(tmp_path: Path) -> None:
    settings, checkpoints = SETTINGS.replace(epochs=1), Checkpoints([0.1, 0.3])
    fit_with_loggers(make_loop(checkpoints, settings), tmp_path)
    other = make_loop(Checkpoints([0.1]), settings)
    other.load_state_dict(checkpoints.states[-2])  # as by a process that was killed right after the evaluation
    fit_with_loggers(other, tmp_path)
    assert [entry["kind"] for entry in read_metrics(tmp_path)] == ["train"] * 3 + ["evaluation"]


def test_incomplete_last_line_of_metrics_is_ignored(tmp_path: Path) -> None:
    entry = {"kind": "train", "step": 1, "epoch": 1, "loss": 2.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(entry) + '\n{"kind": "train", "step": 2, "lo')
    assert read_metrics(tmp_path) == [entry]
