"""Metrics of the evaluation report, in the order of its sections. A new metric is one module and one line here."""

from collections.abc import Mapping

from detrkit.evaluation.analysis import Metric
from detrkit.evaluation.calibration import compute_calibration
from detrkit.evaluation.confusion import compute_confusion_matrix
from detrkit.evaluation.precision_recall import PrecisionRecall
from detrkit.evaluation.thresholds import threshold_curves

METRICS: Mapping[str, Metric] = {
    "precision_recall": lambda analysis: PrecisionRecall(analysis.coco.precision, analysis.category_ids),
    "threshold_curves": lambda analysis: threshold_curves(analysis.inputs, analysis.matches, analysis.best.overall),
    "calibration": lambda analysis: compute_calibration(analysis.inputs, analysis.matches, analysis.threshold),
    "errors": lambda analysis: analysis.errors,
    "confusion_matrix": lambda analysis: compute_confusion_matrix(
        analysis.inputs, analysis.pairs, analysis.matches, analysis.threshold
    ),
}
