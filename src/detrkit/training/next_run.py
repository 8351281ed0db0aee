"""Settings to try after a run that learned almost nothing, which work on this machine without a network."""

from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from detrkit._internal.text import duration
from detrkit.checkpoints.backbones import LITE0, installed_lite0
from detrkit.checkpoints.download import cached_imagenet_weights
from detrkit.config.model import TIMM
from detrkit.config.run import RunConfig
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.planner import MIN_STEPS

_ALMOST_NOTHING = 0.1  # AP50, or panoptic quality
_MINUTES = 40  # in which about 100 images are learned from an ImageNet backbone (docs/guides/training.md)
_LITE0: dict[str, Any] = {
    "model": "detrkit-s",
    "weights": "imagenet",
    "backbone": f"{TIMM}{LITE0}",
    "num_feature_levels": 3,
    "encoder_layers": 1,
}
_RESNET: dict[str, Any] = {"model": "detrkit-m", "weights": "imagenet"}


@dataclass(frozen=True)
class NextRun:
    """A run that is expected to learn more.

    Attributes:
        settings: of `detrkit.train`, by name; everything else as before.
        reason: for them, as the end of a sentence.
    """

    settings: dict[str, Any]
    reason: str


def learned_almost_nothing(metrics: EvalMetrics | None) -> bool:
    """Return whether hardly any object is found."""
    if metrics is None:
        return False
    value = metrics.values.get("ap50", metrics.values.get("pq", -1.0))
    return 0 <= value < _ALMOST_NOTHING


def suggest_next_run(config: RunConfig, steps: int, output: Path) -> NextRun:
    """Choose the run that would learn most, of those that work on this machine without downloads.

    Args:
        config: of the run that learned almost nothing.
        steps: optimizer steps that it took.
        output: its run folder.
    """
    if config.origin == "scratch":
        if find_spec("timm") is not None and installed_lite0() is not None:
            return NextRun(
                {**_LITE0, "minutes": _MINUTES}, "a backbone with ImageNet weights, which are installed here"
            )
        if cached_imagenet_weights("resnet18") is not None:
            return NextRun({**_RESNET, "minutes": _MINUTES}, "a backbone with ImageNet weights, which are cached here")
    if steps < MIN_STEPS[config.origin]:
        seconds = MIN_STEPS[config.origin] * _seconds_per_step(config, output)
        minutes = 10 * max(1, ceil(seconds / 600))
        reason = f"about {MIN_STEPS[config.origin]:,} steps instead of {steps}, {duration(60 * minutes)} at this speed"
        return NextRun({**_same_start(config), "minutes": minutes}, reason)
    reason = "whether eight images can be fitted; it lists probable causes if they cannot"
    return NextRun({**_same_start(config), "overfit": 8}, reason)


def _same_start(config: RunConfig) -> dict[str, Any]:
    weights = {} if config.weights is None else {"weights": config.weights}
    return {"model": config.model, **weights}


def _seconds_per_step(config: RunConfig, output: Path) -> float:
    """Return the median duration of a step, as logged; 1 if nothing was."""
    settings = config.training
    images = settings.batch_size * settings.gradient_accumulation
    rates = [entry["images_per_second"] for entry in read_metrics(output) if entry.get("kind") == "train"]
    known = [rate for rate in rates if isinstance(rate, float) and rate > 0]
    return images / median(known) if known else 1.0
