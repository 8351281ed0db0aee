"""Schedules of the learning rate and of stochastic depth: a factor per step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detrkit.config.setting_groups import ScheduleConfig
from detrkit.config.training import TrainingConfig
from detrkit.training.budget import Budget

_FLAT_COSINE_END = 0.5  # factor at the end of "flat_cosine", as published


def lr_factor(step: int, fraction: float, settings: TrainingConfig) -> float:
    """Compute the factor at a step.

    "step" is 1, and 0.1 after a fraction of the run (published: repeatedly); "cosine" decreases from 1 to 0; "flat_cosine"
    is 1, decreases to 0.5 between `flat_until` and `cosine_until`, and stays there (DEIM, arXiv:2412.04234). All start with
    a warm-up over `warmup_steps`, or until `warmup_until` if that is earlier.

    Args:
        step: number of the step, from 0.
        fraction: part of the run that is over, 0..1.
        settings: of the run.
    """
    schedule = settings.schedule
    if step < schedule.warmup_steps and fraction < schedule.warmup_until:
        progress = (step + 1) / (schedule.warmup_steps + 1)
        if schedule.warmup_until < 1:
            progress = max(progress, fraction / schedule.warmup_until)
        return progress**2 if schedule.warmup == "quadratic" else progress
    if schedule.lr_scheduler == "constant":
        return 1.0
    if schedule.lr_scheduler == "step":
        return 1.0 if fraction < schedule.lr_drop else 0.1
    if schedule.lr_scheduler == "cosine":
        return _half_cosine(fraction)
    end = schedule.cosine_until or settings.augmentation.strong_aug_until
    if fraction >= end:
        return _FLAT_COSINE_END
    decreasing = max(0.0, fraction - schedule.flat_until) / max(end - schedule.flat_until, 1e-9)
    return _FLAT_COSINE_END + (1 - _FLAT_COSINE_END) * _half_cosine(decreasing)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def drop_path_factor(fraction: float, schedule: ScheduleConfig) -> float:
    """Compute the factor on the stochastic depth of a ViT (LW-DETR, published code).

    Args:
        fraction: part of the run that is over, 0..1.
        schedule: its `drop_path_schedule` and `drop_path_cutoff`.
    """
    name, cutoff = schedule.drop_path_schedule, schedule.drop_path_cutoff
    if name == "constant":
        return 1.0
    if name == "late":
        return float(fraction >= cutoff)
    if fraction >= cutoff:
        return 0.0
    return 1 - fraction / cutoff if name == "early_linear" else 1.0


def build_schedule(optimizer: Optimizer, budget: Budget, settings: TrainingConfig) -> LambdaLR:
    """Build the scheduler of an optimizer; call its `step` once per optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, budget.fraction_after(step), settings))
