"""Length of a run: a number of optimizer steps, or a time limit that is followed by the clock.

Learning rates, augmentation, evaluations and the end of a run are functions of `fraction`, the part of its length that is
over. For a number of steps it is exact and the same on every machine. For a time limit it is measured after every step, so
that a run which becomes slower or faster still ends in time, with a schedule that has reached its end.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

from detrkit.config.training import TrainingConfig
from detrkit.distributed.collectives import broadcast_numbers, is_distributed
from detrkit.training.duration import EVALUATION_SHARE, MAX_EVALUATIONS, planned_epochs, planned_steps

_SECONDS_BETWEEN_TICKS = 1.0  # with several processes, which exchange the fraction then
_MAX_STEPS_BETWEEN_TICKS = 20
_WARM_UP_STEPS = 20  # steps after which their duration is a measure
_SMOOTHING = 0.1  # weight of the latest steps in the mean duration of a step
_REPORT_SHARE = 0.02  # of the time so far, for reports that are written while training
Clock = Callable[[], float]


@runtime_checkable
class Budget(Protocol):
    """How long a run is."""

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the whole run; None for a time limit."""

    @property
    def num_epochs(self) -> int | None:
        """Epochs of the whole run, of which the last may be cut short; None for a time limit."""

    def fraction_after(self, step: int) -> float:
        """Part of the run that is over when so many steps were taken, 0..1."""

    def is_over_after(self, step: int) -> bool:
        """Return whether no step is to follow so many."""

    def start(self, step: int) -> None:
        """Begin the first step of this process, after so many of a run that is resumed."""

    def advance(self, step: int) -> None:
        """Called by all processes after every optimizer step."""

    def evaluates_after(self, epoch: int) -> bool:
        """Return whether an evaluation is due after an epoch that is not the last; called by all processes."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Enclose an evaluation and the writing of its checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues from."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class StepBudget:
    """A number of optimizer steps.

    Attributes:
        num_steps: of the run.
        num_epochs: that they are.
    """

    def __init__(self, num_steps: int, num_epochs: int = 1, evaluate_every: int = 1) -> None:
        """Set the length.

        Args:
            num_steps: of the run.
            num_epochs: that they are.
            evaluate_every: epochs between evaluations.
        """
        self.num_steps = num_steps
        self.num_epochs = num_epochs
        self._evaluate_every = evaluate_every

    def fraction_after(self, step: int) -> float:
        """Part of the run that is over when so many steps were taken, 0..1."""
        return min(step / max(self.num_steps, 1), 1)

    def is_over_after(self, step: int) -> bool:
        """Return whether no step is to follow so many."""
        return step >= self.num_steps

    def start(self, step: int) -> None:
        """Begin; nothing depends on the time."""

    def advance(self, step: int) -> None:
        """Advance; the fraction follows from the number of steps alone."""

    def evaluates_after(self, epoch: int) -> bool:
        """Return whether an evaluation is due after an epoch."""
        return epoch % self._evaluate_every == 0

    def evaluating(self) -> AbstractContextManager[None]:
        """Enclose an evaluation, whose duration does not matter."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, by which a changed run is recognised."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing: the fraction follows from the number of steps alone."""


class TimeBudget:
    """A time limit, with everything that follows the last step: evaluation, checkpoints and report.

    The fraction is 0 at the first step and 1 when the time that is left is reserved for what follows. It never decreases:
    every step advances it by the part that its duration was of the remaining time, so it reaches 1 at the right moment even
    if the reserve is corrected on the way. The first process measures, and the others receive its fraction.

    Attributes:
        seconds: time limit.
        fraction: part of the training that is over, 0..1.
        step_seconds: mean duration of the latest steps; 0 before the first one.
    """

    num_steps = None
    num_epochs = None

    def __init__(
        self,
        seconds: float,
        evaluate_every: int | None = None,
        *,
        started: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            seconds: time limit.
            evaluate_every: epochs between evaluations; None for as many as the time allows.
            started: value of the clock when the run began; default: now.
            clock: returns seconds.
        """
        self.seconds = seconds
        self.fraction = 0.0
        self.step_seconds = 0.0
        self._evaluate_every = evaluate_every
        self._clock = clock
        self._started = clock() if started is None else started
        self._before = 0.0  # seconds that the run took before it was resumed
        self._ticked = 0.0  # elapsed seconds at the last measurement, ...
        self._step = self._next_tick = 0  # ... and the numbers of its step and of the next one to measure
        self._aside = 0.0  # seconds of evaluations since then, which are no steps
        self._evaluated = 0.0  # elapsed seconds at the last evaluation
        self._evaluation, self._report, self._exit = 0.0, 0.0, 0.0  # expected seconds of each
        self._reported: float | None = None  # elapsed seconds at the last report
        self._seconds_of_step = 0.0  # `step_seconds` at the last evaluation
        self._is_warm = False  # whether that evaluation came after enough steps
        self._timed_steps = 0

    @property
    def elapsed(self) -> float:
        """Seconds that the run took so far, in this process and before."""
        return self._before + self._clock() - self._started

    @property
    def reserve(self) -> float:
        """Expected seconds of what follows the last step.

        The last evaluation and the report are expected to take as many steps' time as at the evaluation before. If that was
        among the first steps, which are slow, they are not expected to become faster.
        """
        change = self.step_seconds / self._seconds_of_step if self._seconds_of_step else 1.0
        change = change if self._is_warm else max(1.0, change)
        return change * (self._evaluation + self._report) + self._exit

    def fraction_after(self, step: int) -> float:
        """Part of the run that is over; the clock decides, not the number of steps."""
        return self.fraction

    def is_over_after(self, step: int) -> bool:
        """Return whether the time that is left is reserved for what follows the last step."""
        return self.fraction >= 1

    @property
    def is_report_due(self) -> bool:
        """True if a report is to be written while training: the first one tells how long the last one will take."""
        elapsed = self.elapsed
        if self.fraction >= 1 or self.seconds - self.reserve - elapsed < self._report:  # the last one follows
            return False
        return self._reported is None or self._report <= _REPORT_SHARE * (elapsed - self._reported)

    def expect(self, evaluation: float = 0.0, report: float = 0.0, exit: float = 0.0) -> None:
        """Set the expected seconds of an evaluation and of the report, before the first of either, and of the exit."""
        self._evaluation, self._report = self._evaluation or evaluation, self._report or report
        self._exit = exit

    def start(self, step: int) -> None:
        """Begin the first step of this process: what came before it is no part of the schedule."""
        self._ticked, self._step, self._next_tick = self.elapsed, step, step + 1
        self._evaluated = self._evaluated or self._ticked

    def advance(self, step: int) -> None:
        """Measure the fraction, at the latest a second after the last time."""
        if step < self._next_tick:
            return
        elapsed = self.elapsed
        self._time_steps(step, elapsed - self._ticked - self._aside)
        left, passed = self.seconds - self.reserve - self._ticked, elapsed - self._ticked
        # less than half a step is left: another one would end later than this one ends early
        is_over = left - passed <= self.step_seconds / 2
        fraction = 1.0 if is_over else self.fraction + (1 - self.fraction) * passed / left
        self._ticked, self._step, self._aside = elapsed, step, 0.0
        self.fraction, interval = broadcast_numbers((fraction, self._interval()))
        self._next_tick = step + round(interval)

    def evaluates_after(self, epoch: int) -> bool:
        """Return whether an evaluation is due after an epoch: `evaluate_every`, or about 20 of them by the clock.

        They take at most 10 % of the time, and none is made shortly before the last one.
        """
        if self._evaluate_every is not None:
            return epoch % self._evaluate_every == 0
        elapsed = self.elapsed
        spacing = max(self.seconds / MAX_EVALUATIONS, self._evaluation / EVALUATION_SHARE)
        left = self.seconds - self.reserve - elapsed
        is_due = elapsed - self._evaluated >= spacing and left >= spacing / 2
        return bool(broadcast_numbers((float(is_due),))[0])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Measure an evaluation and the writing of its checkpoints, without a report."""
        self._evaluated, reports = self.elapsed, self._aside
        yield
        elapsed, reports = self.elapsed, self._aside - reports
        self._evaluation, self._seconds_of_step = elapsed - self._evaluated - reports, self.step_seconds
        self._is_warm = self._timed_steps >= _WARM_UP_STEPS
        self._aside += self._evaluation
        # no time for a step and yet another evaluation: this one was the last
        is_over = self.seconds - self.reserve - elapsed <= self.step_seconds / 2
        (self.fraction,) = broadcast_numbers((1.0 if is_over else self.fraction,))

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Measure the writing of a report."""
        start = self.elapsed
        yield
        self._reported = self.elapsed
        self._report = self._reported - start
        self._aside += self._report

    def state_dict(self) -> dict[str, Any]:
        """Return the time that was used, and what was measured."""
        return {
            "seconds": self.seconds,
            "elapsed": self.elapsed,
            "fraction": self.fraction,
            "step_seconds": self.step_seconds,
            "evaluated": self._evaluated,
            "evaluation": self._evaluation,
            "report": self._report,
            "reported": self._reported,
            "seconds_of_step": self._seconds_of_step,
            "is_warm": self._is_warm,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the time that was left; what this process has taken so far counts, too."""
        # float() raises errors for values of other kinds, which a damaged file may hold
        self._before, self.fraction, self.step_seconds = (
            float(state[name]) for name in ("elapsed", "fraction", "step_seconds")
        )
        self._evaluated, self._evaluation, self._report, self._seconds_of_step = (
            float(state[name]) for name in ("evaluated", "evaluation", "report", "seconds_of_step")
        )
        self._reported = None if state["reported"] is None else float(state["reported"])
        self._is_warm = bool(state["is_warm"])

    def _interval(self) -> int:
        """Return the number of steps until the fraction is measured again: about a second of several processes."""
        if not is_distributed():
            return 1
        return min(max(1, int(_SECONDS_BETWEEN_TICKS / max(self.step_seconds, 1e-6))), _MAX_STEPS_BETWEEN_TICKS)

    def _time_steps(self, step: int, seconds: float) -> None:
        """Update the mean duration of a step."""
        mean = seconds / max(1, step - self._step)
        self._timed_steps += 1
        self.step_seconds = (
            mean if not self.step_seconds else self.step_seconds + _SMOOTHING * (mean - self.step_seconds)
        )


def budget_of(num_batches: int, settings: TrainingConfig, started: float | None = None) -> StepBudget | TimeBudget:
    """Return the length of a run with so many batches per epoch.

    Args:
        num_batches: per epoch and process.
        settings: of the run.
        started: value of `time.monotonic` when the run began; default: now.
    """
    every = settings.evaluation.evaluate_every
    if settings.minutes is not None:
        return TimeBudget(60 * settings.minutes, every, started=started)
    num_epochs = planned_epochs(num_batches, settings)
    return StepBudget(planned_steps(num_batches, settings), num_epochs, every or -(-num_epochs // MAX_EVALUATIONS))
