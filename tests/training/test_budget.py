"""Lengths of runs: a number of steps, and a time limit that is followed by a clock, which is simulated here."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from detrkit.config.training import TrainingConfig
from detrkit.losses.criterion import LossOutput
from detrkit.models.detr import DETR
from detrkit.structures import Batch
from detrkit.training.budget import StepBudget, TimeBudget, budget_of
from detrkit.training.callbacks import Callback, TrainingState
from detrkit.training.trainer import Trainer
from tests.parameters import slow_except
from tests.training.steps import SETTINGS, drawn, make_train_step
from tests.training.test_trainer import Batches, Checkpoints, CountingStep, Recorder

LIMIT = 720.0  # seconds


class Machine:
    """A clock that advances by what steps, evaluations and checkpoints take on a machine.

    Attributes:
        now: seconds.
        step: seconds of a step that starts at a time.
        evaluation: seconds of an evaluation, relative to a step.
        save: seconds of a checkpoint, relative to a step.
        report: seconds of the report, relative to a step.
    """

    def __init__(
        self, step: Callable[[float], float], evaluation: float = 4.0, save: float = 0.1, report: float = 3.0
    ) -> None:
        self.now = 0.0
        self.step, self.evaluation, self.save, self.report = step, evaluation, save, report

    def __call__(self) -> float:
        return self.now

    def work(self, steps: float = 1.0) -> None:
        self.now += steps * self.step(self.now)


class TimedStep(CountingStep):
    """Counts steps, each of which takes its time."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def step(self, batches: Sequence[Batch]) -> LossOutput:
        self.machine.work()
        return super().step(batches)


class TimedCheckpoints(Checkpoints):
    """Evaluates and saves, which takes its time."""

    def __init__(self, machine: Machine) -> None:
        super().__init__([])
        self.machine = machine

    def evaluate(self, model: DETR) -> Any:
        self.aps.append(0.1)
        self.machine.work(self.machine.evaluation)
        return super().evaluate(model)

    def save_weights(self, name: str, model: DETR) -> None:
        self.machine.work(self.machine.save)
        super().save_weights(name, model)


class Fractions(Callback):
    """Records the fraction after every step, and the steps at which there were evaluations."""

    def __init__(self) -> None:
        self.fractions: list[float] = []
        self.evaluated: list[int] = []

    def on_step_end(self, state: TrainingState) -> None:
        self.fractions.append(state.fraction)

    def on_evaluate_end(self, state: TrainingState) -> None:
        self.evaluated.append(state.step)


class Reports(Callback):
    """Writes reports while training, as real runs do."""

    def __init__(self, machine: Machine, budget: TimeBudget) -> None:
        self.machine, self.budget, self.count = machine, budget, 0

    def on_evaluate_end(self, state: TrainingState) -> None:
        if self.budget.is_report_due:
            with self.budget.reporting():
                self.machine.work(self.machine.report)
            self.count += 1


def run(machine: Machine, settings: TrainingConfig, limit: float = LIMIT, start_up: float = 10.0) -> Fractions:
    """Train with a time limit, write the report, and return what was recorded."""
    budget = TimeBudget(limit, settings.evaluation.evaluate_every, clock=machine)
    machine.now += start_up
    first = machine.step(machine.now)
    budget.expect(evaluation=machine.evaluation * first, report=machine.report * first)
    recorder, checkpoints, reports = Fractions(), TimedCheckpoints(machine), Reports(machine, budget)
    callbacks = [recorder, reports]
    Trainer(TimedStep(machine), Batches(), settings, checkpoints.evaluate, checkpoints, callbacks, None, budget).fit()
    machine.work(machine.report)
    assert recorder.evaluated[-1] == len(recorder.fractions), "the last weights are evaluated"
    return recorder


IDLE, LOADED = 2.0, 8.5  # seconds per step
MACHINES: dict[str, Callable[[float], float]] = {
    "idle": lambda _now: IDLE,
    "loaded": lambda _now: LOADED,
    "fast": lambda _now: 0.25,
    "slow first steps": lambda now: LOADED if now < 40 else IDLE,
    "loaded later": lambda now: IDLE if now < 300 else LOADED,
    "loaded at the end": lambda now: IDLE if now < 600 else 5.0,
    "idle at the end": lambda now: LOADED if now < 500 else IDLE,
    "alternating": lambda now: IDLE if now // 60 % 2 else LOADED,
    "uneven": lambda now: 1.0 + (now * 7.3) % 3.0,
}
BY_THE_CLOCK = SETTINGS.replace(evaluate_every=None, log_every=1000)


@pytest.mark.parametrize("machine", MACHINES)
def test_run_ends_within_five_percent_of_its_time_limit(machine: str) -> None:
    simulated = Machine(MACHINES[machine])
    recorder = run(simulated, BY_THE_CLOCK)
    assert 0.95 * LIMIT <= simulated.now <= 1.05 * LIMIT
    assert recorder.fractions == sorted(recorder.fractions)
    # an evaluation while the machine is slow can leave no time for another one, and so be the last
    assert recorder.fractions[-1] >= (0.9 if machine == "alternating" else 1)
    assert 0 < recorder.fractions[0] < 0.05, "the schedule begins with the first step, not with the command"
    largest = max(after - before for before, after in pairwise(recorder.fractions))
    assert largest < 0.13, "no part of the schedule is left out"


@pytest.mark.parametrize("every", slow_except((None, 1), [None, 1, 10, 10**6]))
@pytest.mark.parametrize("evaluation", slow_except((0.5, 30.0), [0.5, 4.0, 30.0]))
@pytest.mark.parametrize("limit", slow_except((120.0,), [120.0, 720.0]))
def test_time_limit_includes_evaluations_of_any_cost(every: int | None, evaluation: float, limit: float) -> None:
    simulated = Machine(lambda _now: 0.5, evaluation=evaluation, report=6.0)
    recorder = run(simulated, BY_THE_CLOCK.replace(evaluate_every=every), limit)
    # an evaluation that was asked for and leaves no time for another one is the last
    early = 0.5 * evaluation if every in (1, 10) else 0.0
    assert 0.95 * limit - early <= simulated.now <= 1.05 * limit
    if every is None:
        assert len(recorder.evaluated) <= 21
        assert (len(recorder.evaluated) - 1) * evaluation * 0.5 <= 0.1 * limit
    if every == 10**6:
        assert len(recorder.evaluated) == 1


def test_number_of_steps_follows_the_speed_of_the_machine() -> None:
    idle, loaded = (run(Machine(MACHINES[name]), BY_THE_CLOCK) for name in ("idle", "loaded"))
    assert len(idle.fractions) > 4 * len(loaded.fractions)
    slow_start = run(Machine(MACHINES["slow first steps"]), BY_THE_CLOCK)
    assert len(slow_start.fractions) > 0.9 * len(idle.fractions), "the plan does not keep the speed of the first steps"


def test_evaluations_are_spread_over_the_time() -> None:
    recorder = run(Machine(lambda _now: 0.2, evaluation=1.0), BY_THE_CLOCK)
    assert 17 <= len(recorder.evaluated) <= 21
    gaps = [after - before for before, after in pairwise(recorder.evaluated)]
    assert max(gaps[:-1]) - min(gaps[:-1]) <= 6  # steps: two epochs


@pytest.mark.parametrize("limit", [0.001, 1.0, 30.0])
def test_limit_that_is_too_short_takes_one_step_and_evaluates_it(limit: float) -> None:
    recorder = run(Machine(lambda _now: 5.0), BY_THE_CLOCK, limit, start_up=20.0)
    assert (recorder.fractions, recorder.evaluated) == ([1.0], [1])


def test_strong_augmentation_ends_by_the_clock() -> None:
    machine = Machine(MACHINES["slow first steps"])
    budget = TimeBudget(LIMIT, clock=machine)
    loader, checkpoints, recorder = Batches(), TimedCheckpoints(machine), Fractions()
    settings = BY_THE_CLOCK.replace(strong_aug_until=0.8)
    Trainer(TimedStep(machine), loader, settings, checkpoints.evaluate, checkpoints, [recorder], None, budget).fit()
    assert loader.closing_from is not None
    epoch = loader.closing_from[0]
    assert recorder.fractions[3 * (epoch - 1) - 1] < 0.8 <= recorder.fractions[3 * epoch - 1]


def stop_and_resume(machine: Machine, stop_at: str, away: float) -> tuple[Trainer, list[float]]:
    """Run until a stop, and again some time later; return the second trainer and all fractions."""
    settings = BY_THE_CLOCK
    first, checkpoints = Fractions(), TimedCheckpoints(machine)
    budget = TimeBudget(LIMIT, clock=machine)
    callbacks = [first, Recorder(stop_at)]
    Trainer(TimedStep(machine), Batches(), settings, checkpoints.evaluate, checkpoints, callbacks, None, budget).fit()
    machine.now += away
    second = Fractions()
    resumed = Trainer(
        TimedStep(machine), Batches(), settings, checkpoints.evaluate, checkpoints, [second], None,
        TimeBudget(LIMIT, clock=machine),
    )  # fmt: skip
    resumed.load_state_dict(checkpoints.states[-1])
    resumed.fit()
    return resumed, first.fractions + second.fractions


@pytest.mark.parametrize("stop_at", ["on_step_end 1", "on_step_end 50", "on_evaluate_end 3", "on_epoch_end 20"])
def test_resumed_run_continues_with_the_time_that_was_left(stop_at: str) -> None:
    away = 10_000.0
    machine = Machine(MACHINES["idle"])
    resumed, fractions = stop_and_resume(machine, stop_at, away)
    assert resumed.has_ended
    machine.work(machine.report)
    assert machine.now - away == pytest.approx(LIMIT, rel=0.05)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert max(after - before for before, after in pairwise(fractions)) < 0.03


def test_run_killed_in_its_last_evaluation_only_repeats_that() -> None:
    machine = Machine(MACHINES["idle"])
    checkpoints = TimedCheckpoints(machine)
    trainer = Trainer(
        TimedStep(machine), Batches(), BY_THE_CLOCK, checkpoints.evaluate, checkpoints, (), None,
        TimeBudget(60.0, 10**6, clock=machine),
    )  # fmt: skip

    def killed(_model: DETR) -> Any:
        raise KeyboardInterrupt

    trainer.evaluate = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    steps = trainer.train_step.step_number
    again = Trainer(
        TimedStep(machine), Batches(), BY_THE_CLOCK, checkpoints.evaluate, checkpoints, (), None,
        TimeBudget(60.0, 10**6, clock=machine),
    )  # fmt: skip
    again.load_state_dict(checkpoints.states[-1])
    assert not again.has_ended
    again.fit()
    assert again.has_ended
    assert (again.train_step.step_number, again.progress.best is not None) == (steps, True)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_resumed_run_with_the_same_durations_learns_the_same_weights(stop_at: int) -> None:
    settings = SETTINGS.replace(
        evaluate_every=None, lr_scheduler="cosine", warmup_steps=5, warmup_until=0.25, ema_decay=0.9, mosaic=0.5
    )

    def trainer(checkpoints: Checkpoints, callbacks: Sequence[Callback] = ()) -> Trainer:
        machine = Machine(lambda _now: 0.25)  # sums of such durations are exact
        budget = TimeBudget(3.0, clock=machine)
        step = make_train_step(settings, length=budget)
        take = step.step

        def timed(batches: Sequence[Batch]) -> LossOutput:
            machine.work()
            return take(batches)

        step.step = timed  # type: ignore[method-assign]
        return Trainer(step, drawn(settings), settings, checkpoints.evaluate, checkpoints, callbacks, None, budget)

    whole = trainer(Checkpoints([0.1] * 9))
    whole.fit()
    assert whole.train_step.step_number == 12
    checkpoints = Checkpoints([0.1] * 9)
    trainer(checkpoints, [Recorder(f"on_step_end {stop_at}")]).fit()
    resumed = trainer(checkpoints)
    resumed.load_state_dict(checkpoints.states[-1])
    resumed.fit()
    assert resumed.train_step.step_number == 12
    for (name, one), other in zip(
        resumed.train_step.best_model.state_dict().items(),
        whole.train_step.best_model.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, other), name


def test_number_of_steps_is_independent_of_time() -> None:
    budget = budget_of(5, TrainingConfig(epochs=4, gradient_accumulation=2))
    assert isinstance(budget, StepBudget)
    assert (budget.num_steps, budget.num_epochs) == (12, 4)
    assert [budget.fraction_after(step) for step in (0, 3, 12, 20)] == [0, 0.25, 1, 1]
    assert [budget.evaluates_after(epoch) for epoch in (1, 2)] == [True, True]
    spread = budget_of(5, TrainingConfig(epochs=41, evaluate_every=None))
    assert [epoch for epoch in range(1, 10) if spread.evaluates_after(epoch)] == [3, 6, 9]
    timed = budget_of(5, TrainingConfig(minutes=2))
    assert isinstance(timed, TimeBudget)
    assert (timed.seconds, timed.num_steps, timed.num_epochs) == (120, None, None)
