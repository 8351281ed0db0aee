"""Everything that is counted about a set of detections: scores, curves, thresholds, errors, confusions, calibration."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.calibration import Calibration, calibrate
from detrkit.evaluation.coco import CocoEvaluation, CocoMetrics, evaluate_coco, metrics_to_json
from detrkit.evaluation.coco_matching import compute_ious, match
from detrkit.evaluation.confusion import Confusion, confuse
from detrkit.evaluation.thresholds import BestThresholds, ThresholdCurves, best_thresholds, threshold_curves
from detrkit.evaluation.tide import TIDE_NAMES, Errors, classify_errors

FORMAT = "detrkit-scores-1"
_USUAL_THRESHOLD = 0.5  # where nothing right was found, and so no threshold is best


@dataclass(frozen=True)
class Analysis:
    """What there is to say about detections of annotated photos.

    Attributes:
        case: detections and truth.
        evaluation: COCO's numbers; no threshold touches them.
        best: thresholds with the best F1.
        curves: precision, recall and F1 at every threshold.
        errors: at the best overall threshold.
        confusion: alike.
        calibration: of the scores.
    """

    case: EvalInput
    evaluation: CocoEvaluation
    best: BestThresholds
    curves: ThresholdCurves
    errors: Errors
    confusion: Confusion
    calibration: Calibration

    @property
    def scores(self) -> CocoMetrics:
        """COCO's numbers."""
        return self.evaluation.scores

    @property
    def threshold(self) -> float:
        """From which score on detections are shown here."""
        return self.errors.threshold

    def worst_photos(self, limit: int) -> list[tuple[int, int]]:
        """Photos with most mistakes: image id and number of mistakes, worst first; photos without are left out."""
        counts = self.errors.per_photo(self.case)
        order = np.argsort(-counts, kind="stable")[:limit]
        return [(int(self.case.truth.image_ids[photo]), int(counts[photo])) for photo in order if counts[photo]]

    def to_json(self) -> dict[str, Any]:
        """Plain values; None in place of NaN."""
        truth = self.case.truth
        per_class = zip(truth.categories.ids, self.scores.per_class, self.best.per_class, strict=True)
        levels = np.where(self.evaluation.precision < 0, np.nan, self.evaluation.precision)
        content = {
            "format": FORMAT,
            "num_images": self.scores.num_images,
            "num_objects": self.scores.num_objects,
            "num_detections": len(self.case.found),
            "max_detections": self.scores.max_detections,
            "metrics": metrics_to_json(self.scores.values),
            "per_class": [
                {"id": number, **asdict(score), "best_threshold": None if best is None else asdict(best)}
                for number, score, best in per_class
            ],
            "thresholds": None if self.best.to_store is None else self.best.to_store.model_dump(mode="json"),
            "best_threshold": None if self.best.overall is None else asdict(self.best.overall),
            "threshold_curves": asdict(self.curves),
            "precision_at_recall": {
                "recall": np.linspace(0, 1, levels.shape[1]).tolist(),
                "iou50": {str(n): levels[0, :, k].tolist() for k, n in enumerate(truth.categories.ids)},
                "iou75": {str(n): levels[5, :, k].tolist() for k, n in enumerate(truth.categories.ids)},
            },
            "errors": {
                "threshold": self.threshold,
                "right": self.errors.num_right,
                "counts": self.errors.counts,
                "unanswered_objects": int(self.errors.is_unanswered.sum()),
                "ap50_gains": {kind: self.evaluation.gains.get(name) for kind, name in TIDE_NAMES.items()},
            },
            "confusion": {
                "threshold": self.confusion.threshold,
                "names": [*self.confusion.names, "background"],
                "counts": self.confusion.counts.tolist(),
            },
            "calibration": asdict(self.calibration),
            "worst_photos": [{"image_id": one, "mistakes": count} for one, count in self.worst_photos(100)],
        }
        return dict(without_nan(content))


def analyse(truth: GroundTruth, found: DetectionArrays, max_detections: int) -> Analysis:
    """Count everything.

    Args:
        truth: annotated objects.
        found: detections, none left out: thresholds are looked for here.
        max_detections: of one class on one photo, that count in COCO's numbers.
    """
    case = EvalInput.of(truth, found)
    overlaps = compute_ious(case)
    matching = match(case, overlaps)
    best = best_thresholds(case, matching)
    threshold = best.overall.threshold if best.overall else _USUAL_THRESHOLD
    return Analysis(
        case=case,
        evaluation=evaluate_coco(case, max_detections),
        best=best,
        curves=threshold_curves(case, matching),
        errors=classify_errors(case, overlaps, matching, threshold),
        confusion=confuse(case, overlaps, matching, threshold),
        calibration=calibrate(case, matching, threshold),
    )


def without_nan(value: Any) -> Any:
    """Put None in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
