"""Learning rate schedule: a factor per step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detrkit.config.training import TrainingConfig


def lr_factor(step: int, num_steps: int, settings: TrainingConfig) -> float:
    """Compute the factor at a step, counted from 0.

    "step" is 1, and 0.1 after a fraction of the run (published: repeatedly); "cosine" decreases from 1 to 0.
    Both start with a linear warm-up.
    """
    if step < settings.schedule.warmup_steps:
        return (step + 1) / (settings.schedule.warmup_steps + 1)
    if settings.schedule.lr_scheduler == "step":
        return 1.0 if step < settings.schedule.lr_drop * num_steps else 0.1
    return 0.5 * (1 + math.cos(math.pi * min(step / max(num_steps, 1), 1)))


def build_schedule(optimizer: Optimizer, num_steps: int, settings: TrainingConfig) -> LambdaLR:
    """Build the scheduler of an optimizer; call its `step` once per optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, num_steps, settings))
