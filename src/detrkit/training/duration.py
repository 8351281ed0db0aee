"""Length of a run: numbers of steps and epochs, and the time they take on this machine."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from detrkit.config.training import TrainingConfig

MAX_EVALUATIONS = 20  # of a run, unless `evaluate_every` is given
EVALUATION_SHARE = 0.1  # of a time limit, at most, except for the last evaluation
# first steps build the kernels of oneDNN for every new shape of a batch, and take several times as long as later ones
_WARM_UP_STEPS, _WARM_UP_SECONDS = 3, 10.0
_TIMED_STEPS, _TIMED_SECONDS = 4, 15.0
_TIMED_BATCHES = 4


def steps_per_epoch(num_batches: int, settings: TrainingConfig) -> int:
    """Optimizer steps of one epoch; the last may accumulate fewer batches."""
    return -(-num_batches // settings.gradient_accumulation)


def planned_steps(num_batches: int, settings: TrainingConfig) -> int:
    """Optimizer steps of a run with so many batches per epoch."""
    return settings.steps or settings.epochs * steps_per_epoch(num_batches, settings)


def planned_epochs(num_batches: int, settings: TrainingConfig) -> int:
    """Epochs of a run; the last may be cut short."""
    return -(-planned_steps(num_batches, settings) // steps_per_epoch(num_batches, settings))


def strong_epochs(num_batches: int, settings: TrainingConfig) -> tuple[range, range]:
    """Return the epochs with strong augmentation, and those of them with mosaic and MixUp.

    The last of several has none, unless all are to have it. With a time limit, their number is not known: any may have it,
    until the trainer ends it by the clock.
    """
    augmentation = settings.augmentation
    until = augmentation.strong_aug_until
    if settings.minutes is not None:
        every = range(1, sys.maxsize if until > 0 else 1)
        return every, every
    epochs = planned_epochs(num_batches, settings)
    first, last = 1 + round(augmentation.strong_aug_from * epochs), round(until * epochs)
    last = min(last, epochs - 1) if until < 1 and epochs > 1 else last
    last_mosaic = min(last, round(augmentation.mosaic_until * epochs))
    return range(first, last + 1), range(first, last_mosaic + 1)


@dataclass(frozen=True)
class Throughput:
    """Measured speed on this machine.

    Attributes:
        step: seconds per optimizer step, data loading included.
        evaluation: seconds per evaluation of the validation split.
    """

    step: float
    evaluation: float


@dataclass(frozen=True)
class TimeEstimate:
    """Estimated duration of a run on this machine.

    Attributes:
        throughput: measured in one process.
        num_steps: optimizer steps of the run.
        num_evaluations: of the run.
        seconds: of the whole run, evaluations included.
        num_processes: that will train together; only the first one was timed.
    """

    throughput: Throughput
    num_steps: int
    num_evaluations: int
    seconds: float
    num_processes: int = 1


def estimate_duration(
    throughput: Throughput, num_batches: int, settings: TrainingConfig, num_processes: int = 1
) -> TimeEstimate:
    """Estimate how long a run takes, or how many steps fit into its time limit."""
    every = settings.evaluation.evaluate_every
    if settings.minutes is None:
        num_steps, epochs = planned_steps(num_batches, settings), planned_epochs(num_batches, settings)
        evaluations = -(-epochs // (every or -(-epochs // MAX_EVALUATIONS)))
        seconds = num_steps * throughput.step + evaluations * throughput.evaluation
        return TimeEstimate(throughput, num_steps, evaluations, seconds, num_processes)
    seconds = 60 * settings.minutes
    per_epoch = steps_per_epoch(num_batches, settings) * throughput.step
    if every is None:
        spacing = max(seconds / MAX_EVALUATIONS, throughput.evaluation / EVALUATION_SHARE)
    else:
        spacing = every * per_epoch + throughput.evaluation
    evaluations = max(1, int(seconds / max(spacing, per_epoch)))  # an epoch is over before an evaluation
    steps = max(1, int((seconds - evaluations * throughput.evaluation) / throughput.step))
    return TimeEstimate(throughput, steps, evaluations, seconds, num_processes)


def measure_throughput(
    step: Callable[[], object], evaluate: Callable[[int], object], num_val_batches: int
) -> Throughput:
    """Time some optimizer steps after a warm-up, and some batches of an evaluation.

    Args:
        step: takes one optimizer step and waits for it.
        evaluate: runs inference on the given number of validation batches.
        num_val_batches: of a whole evaluation.
    """
    _repeat(step, _WARM_UP_STEPS, _WARM_UP_SECONDS)
    return Throughput(_repeat(step, _TIMED_STEPS, _TIMED_SECONDS), measure_evaluation(evaluate, num_val_batches))


def measure_evaluation(evaluate: Callable[[int], object], num_batches: int, at_most: float = math.inf) -> float:
    """Estimate the seconds that inference on the validation split takes.

    Args:
        evaluate: runs inference on the given number of validation batches.
        num_batches: of a whole evaluation.
        at_most: seconds that a batch may take for more of them to be timed.
    """
    evaluate(1)  # warm-up
    first = _seconds(evaluate, 1)  # includes what happens once per evaluation
    if first > at_most or num_batches == 1:
        return first * num_batches
    timed = min(_TIMED_BATCHES, num_batches)
    return first + max(0.0, _seconds(evaluate, timed) - first) / (timed - 1) * (num_batches - 1)


def _repeat(step: Callable[[], object], steps: int, seconds: float) -> float:
    """Take so many steps, and more until the time is over; return the mean duration of a step."""
    taken, start = 0, time.perf_counter()
    while taken < steps or time.perf_counter() - start < seconds:
        step()
        taken += 1
    return (time.perf_counter() - start) / max(1, taken)


def _seconds(evaluate: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    evaluate(count)
    return time.perf_counter() - start
