"""Length of a run: numbers of steps and epochs, and the time they take on this machine."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from detrkit.config.training import TrainingConfig

_MIN_TIMED_STEPS, _MIN_TIMED_SECONDS = 4, 15.0
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


def strong_epochs(num_batches: int, settings: TrainingConfig) -> int:
    """Epochs with strong augmentation, from the first on; never the last of several, unless all are to have it."""
    epochs, fraction = planned_epochs(num_batches, settings), settings.augmentation.strong_aug_until
    rounded = round(fraction * epochs)
    return min(rounded, epochs - 1) if fraction < 1 and epochs > 1 else rounded


@dataclass(frozen=True)
class Throughput:
    """Measured speed on this machine.

    Attributes:
        step: seconds per optimizer step, data loading included.
        evaluation: seconds per evaluation of the validation split.
    """

    step: float
    evaluation: float

    def seconds(self, num_batches: int, settings: TrainingConfig) -> float:
        """Duration of a run with so many batches per epoch."""
        evaluations = -(-planned_epochs(num_batches, settings) // settings.evaluation.evaluate_every)
        return planned_steps(num_batches, settings) * self.step + evaluations * self.evaluation


@dataclass(frozen=True)
class TimeEstimate:
    """Estimated duration of a run on this machine.

    Attributes:
        throughput: measured in one process.
        num_steps: optimizer steps of the run.
        seconds: of the whole run, evaluations included.
        num_processes: that will train together; only the first one was timed.
    """

    throughput: Throughput
    num_steps: int
    seconds: float
    num_processes: int = 1


def measure_throughput(
    step: Callable[[], object], evaluate: Callable[[int], object], num_val_batches: int
) -> Throughput:
    """Time some optimizer steps, after one to warm up, and some batches of an evaluation.

    Args:
        step: takes one optimizer step and waits for it.
        evaluate: runs inference on the given number of validation batches.
        num_val_batches: of a whole evaluation.
    """
    step()
    taken, start = 0, time.perf_counter()
    while taken < _MIN_TIMED_STEPS or time.perf_counter() - start < _MIN_TIMED_SECONDS:
        step()
        taken += 1
    seconds_per_step = (time.perf_counter() - start) / taken
    evaluate(1)  # warm-up
    first = _seconds(evaluate, [1])  # includes the start of the loader's processes, once per evaluation
    more = max(0.0, _seconds(evaluate, [_TIMED_BATCHES]) - first) / (_TIMED_BATCHES - 1)
    return Throughput(seconds_per_step, first + more * (num_val_batches - 1))


def _seconds(evaluate: Callable[[int], object], counts: Iterable[int]) -> float:
    start = time.perf_counter()
    for count in counts:
        evaluate(count)
    return time.perf_counter() - start
