"""Callbacks of a training run, and the state that they are given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from detrkit._internal.signals import StopSignal
from detrkit.evaluation.metrics import EvalMetrics

if TYPE_CHECKING:
    from PIL.Image import Image

    from detrkit.checkpoints.adapt import Adaptation
    from detrkit.models.detr import DETR
    from detrkit.training.planner import TrainingPlan

Event = Literal[
    "on_train_start",
    "on_epoch_start",
    "on_step_end",
    "on_log",
    "on_evaluate_end",
    "on_epoch_end",
    "on_stop_signal",
    "on_train_end",
]


@dataclass
class TrainingState:
    """Progress of a run, as callbacks see it.

    Attributes:
        output: run folder.
        model: the model that is trained; None outside of a run.
        plan: settings of the run and the reasons for them; None outside of `detrkit.train`.
        adaptation: what was loaded from `weights`; None without a checkpoint to start from.
        num_epochs, num_steps: of the whole run; None for a run with a time limit.
        fraction: part of the run that is over, 0..1.
        epoch: current epoch, from 1.
        step: optimizer steps taken.
        losses: averages since the previous log: ``loss``, its parts by their published names, ``lr`` and
            ``images_per_second``.
        evaluation: latest metrics on the validation split; None before the first evaluation.
        is_best: whether the latest evaluation was the best so far.
    """

    output: Path = Path()
    model: "DETR | None" = None
    plan: "TrainingPlan | None" = None
    adaptation: "Adaptation | None" = None
    num_epochs: int | None = 0
    num_steps: int | None = 0
    fraction: float = 0.0
    epoch: int = 1
    step: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    evaluation: EvalMetrics | None = None
    is_best: bool = False
    stop: StopSignal = field(default_factory=StopSignal, repr=False)
    draw_examples: "Callable[[], Sequence[Image]]" = field(default=tuple, repr=False)

    @property
    def metrics(self) -> dict[str, float]:
        """Latest metrics on the validation split by name: ``ap``, ``ap50``, ...; empty before the first evaluation."""
        return {} if self.evaluation is None else dict(self.evaluation.values)

    def request_stop(self) -> None:
        """Ask to stop after the current step; the run is saved, and `detrkit.resume` continues it."""
        self.stop.requested = True


class Callback:
    """Base class of callbacks: override the events of interest.

    Callbacks are called in the first process only. They may read the state and call `TrainingState.request_stop`. With
    several devices they are pickled: define them in a module, and expect changes of their attributes to stay in the
    training process.

    Every event takes `state`: step, losses, metrics, model and folder of the run.
    """

    def on_train_start(self, state: TrainingState) -> None:
        """Called once, before the first step of this process (of a resumed run, too)."""

    def on_epoch_start(self, state: TrainingState) -> None:
        """Called before the first step of an epoch."""

    def on_step_end(self, state: TrainingState) -> None:
        """Called after every optimizer step."""

    def on_log(self, state: TrainingState) -> None:
        """Called every `log_every` steps, with new averages in `state.losses`."""

    def on_evaluate_end(self, state: TrainingState) -> None:
        """Called after an evaluation, with new metrics in `state.evaluation`."""

    def on_checkpoint(self, state: TrainingState, path: Path) -> None:
        """Called after weights were written to `path`, ``last/`` or ``best/`` of the run folder."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """Called after an epoch, its evaluation included."""

    def on_stop_signal(self, state: TrainingState) -> None:
        """Called at once when a signal, `state.stop.received`, asks to stop; the current step or evaluation still ends.

        It runs in the handler of the signal, in the midst of a step: print a line, change no tensor.
        """

    def on_train_end(self, state: TrainingState) -> None:
        """Called once after the last step, also if the run was stopped; the report is already written."""

    def on_exception(self, state: TrainingState, error: BaseException) -> None:
        """Called instead of `on_train_end` if the run fails; `error` is raised afterwards."""


class CallbackList(Callback):
    """Calls several callbacks in order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = tuple(callbacks)

    def call(self, event: Event, state: TrainingState) -> None:
        """Call one event of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, event)(state)

    def on_checkpoint(self, state: TrainingState, path: Path) -> None:
        """Call the event of all callbacks."""
        for callback in self.callbacks:
            callback.on_checkpoint(state, path)

    def on_exception(self, state: TrainingState, error: BaseException) -> None:
        """Call the event of all callbacks."""
        for callback in self.callbacks:
            callback.on_exception(state, error)
