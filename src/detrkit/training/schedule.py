"""Learning rate schedule: a factor per step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detrkit.config.training import TrainingConfig
from detrkit.training.budget import Budget


def lr_factor(step: int, fraction: float, settings: TrainingConfig) -> float:
    """Compute the factor at a step.

    "step" is 1, and 0.1 after a fraction of the run (published: repeatedly); "cosine" decreases from 1 to 0. Both start
    with a linear warm-up over `warmup_steps`, or until `warmup_until` if that is earlier.

    Args:
        step: number of the step, from 0.
        fraction: part of the run that is over, 0..1.
        settings: of the run.
    """
    schedule = settings.schedule
    if step < schedule.warmup_steps and fraction < schedule.warmup_until:
        of_steps = (step + 1) / (schedule.warmup_steps + 1)
        return of_steps if schedule.warmup_until == 1 else max(of_steps, fraction / schedule.warmup_until)
    if schedule.lr_scheduler == "step":
        return 1.0 if fraction < schedule.lr_drop else 0.1
    return 0.5 * (1 + math.cos(math.pi * fraction))


def build_schedule(optimizer: Optimizer, budget: Budget, settings: TrainingConfig) -> LambdaLR:
    """Build the scheduler of an optimizer; call its `step` once per optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, budget.fraction_after(step), settings))
