"""The end of a run: what the best checkpoint finds in test photos, and the report."""

from pathlib import Path

from rich.console import Console

from detrkit._internal.text import plural
from detrkit.config.run import RunConfig
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.metrics import headline
from detrkit.evaluation.output import write_scores
from detrkit.evaluation.report.images import NUM_IMAGES, PREDICTION_THRESHOLD, draw_predictions, draw_worst_images
from detrkit.evaluation.report.page import write_report
from detrkit.inference.detector import Detector
from detrkit.training.data import TrainingData
from detrkit.training.loggers.run_log import read_metrics
from detrkit.training.trainer import TrainingResult
from detrkit.visualization.charts import draw_training_curves


def write_run_report(
    output: Path,
    config: RunConfig,
    data: TrainingData,
    result: TrainingResult,
    analysis: Analysis | None,
    console: Console,
) -> None:
    """Predict some test photos with the best checkpoint, write them and the report, and print the scores."""
    if result.interrupted:
        console.print(
            f"stopped after {plural(result.epochs, 'finished epoch')}; {output} holds what was learned", highlight=False
        )
    if result.scores is None or analysis is None:
        return
    gallery = draw_predictions(Detector.load(output), data.pictures, NUM_IMAGES, output / "predictions")
    drawn = (
        f"what it finds is drawn from a score of {PREDICTION_THRESHOLD} on, thin white boxes are the annotations"
        if result.scores.panoptic is None
        else "what it finds is drawn as segments, with a name where there is room"
    )
    learned_from_all = config.training.overfit > 0 or config.training.train_on_val
    write_report(
        output / "report.html",
        title=f"{config.model}: {headline(result.scores)}",
        subtitle=f"{output.name}, {plural(result.epochs, 'epoch')}; {drawn}",
        metrics=result.scores,
        analysis=analysis,
        dataset="the ones it was trained on" if learned_from_all else "not seen in training",
        training_curves=draw_training_curves(read_metrics(output)),
        predictions=gallery,
        worst_images=draw_worst_images(analysis, data.pictures, data.val_ids),
    )
    write_scores(output / "scores.json", analysis, result.scores)
    console.print(headline(result.scores))
    console.print(f"report: {output / 'report.html'}", highlight=False, soft_wrap=True)
