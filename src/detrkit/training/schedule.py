"""How the learning rates change over a run: a factor for every step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detrkit.config.training import TrainingConfig


def lr_factor(step: int, num_steps: int, settings: TrainingConfig) -> float:
    """Compute the factor at a step, counted from 0.

    "step" divides by ten once, after a share of the run (the published code divides again and again); "cosine" falls
    from 1 to 0. A warm-up rises in a straight line before either.
    """
    if step < settings.schedule.warmup_steps:
        return (step + 1) / (settings.schedule.warmup_steps + 1)
    if settings.schedule.lr_scheduler == "step":
        return 1.0 if step < settings.schedule.lr_drop * num_steps else 0.1
    return 0.5 * (1 + math.cos(math.pi * min(step / max(num_steps, 1), 1)))


def build_schedule(optimizer: Optimizer, num_steps: int, settings: TrainingConfig) -> LambdaLR:
    """Attach the schedule to an optimizer; it is advanced once per step."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, num_steps, settings))
