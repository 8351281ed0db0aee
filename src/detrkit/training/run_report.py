"""Report of a run: detections of the best checkpoint on validation images, scores and training curves."""

from pathlib import Path

from detrkit._internal.text import plural
from detrkit.config.run import RunConfig
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.metrics import EvalMetrics, headline
from detrkit.evaluation.output import write_scores
from detrkit.evaluation.report.images import NUM_IMAGES, PREDICTION_THRESHOLD, draw_predictions, draw_worst_images
from detrkit.evaluation.report.page import write_report
from detrkit.inference.detector import Detector
from detrkit.training.data import TrainingData
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.run_folder import REPORT_FILE, SCORES_FILE
from detrkit.visualization.charts import draw_training_curves


def write_run_report(
    output: Path, config: RunConfig, metrics: EvalMetrics, num_epochs: int, data: TrainingData, analysis: Analysis
) -> None:
    """Write ``report.html``, ``scores.json`` and ``predictions/`` into the run folder.

    Args:
        output: run folder.
        config: of the run.
        metrics: of the best checkpoint.
        num_epochs: epochs that are over.
        data: of the run.
        analysis: of the best checkpoint's detections on the validation split.
    """
    best = analysis.best.overall
    threshold = PREDICTION_THRESHOLD if best is None else best.threshold
    write_report(
        output / REPORT_FILE,
        title=f"{config.model}: {headline(metrics)}",
        subtitle=f"{output.name}, {plural(num_epochs, 'epoch')}",
        metrics=metrics,
        analysis=analysis,
        dataset=describe_images(data),
        training_curves=draw_training_curves(read_metrics(output)),
        predictions=draw_predictions(
            Detector.load(output), data.pictures, NUM_IMAGES, output / "predictions", threshold
        ),
        predictions_text=_predictions_text(threshold, is_best=best is not None, segments=metrics.panoptic is not None),
        worst_images=draw_worst_images(analysis, data.pictures, data.val_ids),
    )
    write_scores(output / SCORES_FILE, analysis, metrics)


def describe_images(data: TrainingData) -> str:
    """Say whether the evaluated images were trained on."""
    num_shared, num_val = data.num_val_in_train, len(data.val_ids)
    if num_shared == num_val:
        return "which are training images: metrics on them say nothing about new images"
    return f"{num_shared} of the images were trained on, too" if num_shared else "not used in training"


def _predictions_text(threshold: float, *, is_best: bool, segments: bool) -> str:
    if segments:
        return "Predicted segments, named where there is room."
    kind = "the threshold with the best F1 score" if is_best else "there is no true positive at any threshold"
    return (
        f"The first images of the validation split. Solid lines: detections with a score of {threshold:.2f} or more "
        f"({kind}), in the colour of their class. Dashed white lines: the annotated objects."
    )
