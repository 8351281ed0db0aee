"""Score thresholds that maximise F1, and their storage in the evaluated checkpoint.

True positives are detections matched at IoU 0.5. F1 = 2 TP / (detections + objects), the harmonic mean of precision and
recall.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.files import file_lock
from detrkit.checkpoints.files import is_native_file
from detrkit.checkpoints.native import Thresholds, store_thresholds
from detrkit.checkpoints.sources import local_file
from detrkit.config.run import RunConfig, load_run_config
from detrkit.errors import ConfigError, DetrkitError, arg
from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import Matches, compute_ious, match_detections
from detrkit.evaluation.report.section import Section

MIN_OBJECTS = 10  # of a class with its own threshold; with fewer, the threshold would be chosen by chance
_NUM_THRESHOLDS = 101  # of the curves: 0.00 to 1.00


@dataclass(frozen=True)
class OperatingPoint:
    """Precision, recall and F1 at one score threshold."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ThresholdCurves:
    """Precision (1 without detections), recall and F1 at thresholds from 0 to 1, over all classes.

    Attributes:
        thresholds: ascending.
        precision: at each of them.
        recall: likewise.
        f1: likewise.
        best: the threshold with the highest F1; None without a true positive.
    """

    thresholds: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    best: OperatingPoint | None = None

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {name: values for name, values in vars(self).items() if name != "best"}

    def to_section(self) -> Section:
        """Return the section of the report."""
        from detrkit.visualization.charts import as_svg, draw_threshold_curves

        curves = {"precision": self.precision, "recall": self.recall, "F1": self.f1}
        best = None if self.best is None else (self.best.threshold, self.best.f1)
        chart = as_svg(draw_threshold_curves(self.thresholds, curves, best))
        return Section.render(
            "Score thresholds", "thresholds.html", best=self.best, chart=chart, min_objects=MIN_OBJECTS
        )


@dataclass(frozen=True)
class BestThresholds:
    """Thresholds with the highest F1; None without a true positive.

    Attributes:
        overall: one threshold for all classes.
        per_class: of each class by itself, in the order of the labels; also of classes with few objects.
        thresholds: what `predict(threshold="auto")` uses: the overall threshold, and those of classes with at least
            MIN_OBJECTS objects.
    """

    overall: OperatingPoint | None
    per_class: tuple[OperatingPoint | None, ...]
    thresholds: Thresholds | None


def best_thresholds(inputs: EvalInput, matches: Matches | None = None) -> BestThresholds:
    """Find the thresholds with the highest F1, over all classes and for each class."""
    matches = matches or match_detections(inputs, compute_ious(inputs))
    counted = ~matches.is_ignored
    scores, is_true_positive = inputs.detections.scores, matches.is_true_positive
    objects = inputs.ground_truth.objects_per_class()
    overall = best_operating_point(scores[counted], is_true_positive[counted], int(objects.sum()))
    of_class = [counted & (inputs.labels == label) for label in range(len(objects))]
    per_class = tuple(
        best_operating_point(scores[chosen], is_true_positive[chosen], int(count))
        for chosen, count in zip(of_class, objects, strict=True)
    )
    if overall is None:
        return BestThresholds(None, per_class, None)
    class_thresholds = {
        category_id: best.threshold
        for category_id, best, count in zip(
            inputs.ground_truth.categories.ids, per_class, objects.tolist(), strict=True
        )
        if best is not None and count >= MIN_OBJECTS
    }
    return BestThresholds(overall, per_class, Thresholds(overall=overall.threshold, per_class=class_thresholds))


def best_operating_point(scores: np.ndarray, is_true_positive: np.ndarray, num_objects: int) -> OperatingPoint | None:
    """Find the threshold with the highest F1; the highest threshold among equals.

    It lies halfway between two scores, so that rounding differences between machines do not change what is above it.

    Args:
        scores: (D,)
        is_true_positive: (D,)
        num_objects: annotated objects.

    Returns:
        None without a true positive.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, true_positives = scores[order], is_true_positive[order].cumsum()
    if not len(ranked) or true_positives[-1] == 0:
        return None
    num_detections = np.arange(1, len(ranked) + 1)
    is_cut = np.r_[ranked[1:] < ranked[:-1], True]  # no threshold separates equal scores
    f1 = np.where(is_cut, 2 * true_positives / (num_detections + num_objects), -1.0)
    best = int(f1.argmax())
    next_score = float(ranked[best + 1]) if best + 1 < len(ranked) else 0.0
    return OperatingPoint(
        threshold=(float(ranked[best]) + next_score) / 2,
        precision=float(true_positives[best] / num_detections[best]),
        recall=float(true_positives[best] / num_objects),
        f1=float(f1[best]),
    )


def threshold_curves(inputs: EvalInput, matches: Matches, best: OperatingPoint | None = None) -> ThresholdCurves:
    """Compute precision, recall and F1 at thresholds from 0 to 1."""
    counted = ~matches.is_ignored
    order = np.argsort(inputs.detections.scores[counted], kind="stable")
    scores, is_true_positive = inputs.detections.scores[counted][order], matches.is_true_positive[counted][order]
    thresholds = np.linspace(0, 1, _NUM_THRESHOLDS)
    first = np.searchsorted(scores, thresholds)
    num_detections = len(scores) - first
    true_positives = is_true_positive.sum() - np.r_[0, is_true_positive.cumsum()][first]
    num_objects = inputs.ground_truth.num_objects
    precision = np.where(num_detections > 0, true_positives / num_detections.clip(min=1), 1.0)
    recall = true_positives / max(num_objects, 1)
    f1 = 2 * true_positives / (num_detections + num_objects).clip(min=1)
    curves = {"thresholds": thresholds, "precision": precision, "recall": recall, "f1": f1}
    return ThresholdCurves(**{name: tuple(curve.tolist()) for name, curve in curves.items()}, best=best)


def find_run_config(source: str | Path, data: str | Path) -> RunConfig | None:
    """Return the config of the run that a source is or lies in, if it was trained on this dataset."""
    path = Path(source).absolute()
    # RUN, RUN/best, RUN/best/model.safetensors, or a file exported to RUN
    file = next((file for one in (path, *path.parents[:2]) if (file := one / "config.yaml").is_file()), None)
    if file is None:
        return None
    try:
        config = load_run_config(file)
    except DetrkitError:
        return None  # a config.yaml of something else
    return config if Path(config.data).resolve() == Path(data).resolve() else None


@dataclass(frozen=True)
class CheckpointFile:
    """A detrkit checkpoint that thresholds can be stored in, and its state when it was loaded."""

    path: Path
    state: tuple[int, ...]

    @classmethod
    def of_source(cls, source: str | Path) -> "CheckpointFile":
        """Find the file of a model source.

        Raises:
            ConfigError: the source cannot store thresholds.
        """
        path = local_file(str(source))
        if path is None or not is_native_file(path):
            raise ConfigError(
                f"{arg('store_thresholds')}: {source} is not a detrkit checkpoint, which is the only format that stores "
                "thresholds; convert it with detrkit convert"
            )
        return cls(path, _file_state(path))

    def store(self, thresholds: Thresholds) -> None:
        """Store thresholds.

        Raises:
            ConfigError: the file has been replaced since it was loaded, cannot be written, or is being written.
        """
        run = self.path.parent.parent
        # the run may still be training
        with file_lock(run) if (run / "config.yaml").is_file() else nullcontext():
            if _file_state(self.path) != self.state:
                raise ConfigError(f"{self.path} has been replaced since it was loaded; evaluate again")
            store_thresholds(self.path, thresholds)


def _file_state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
