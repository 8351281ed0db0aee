"""The end of a run: what the best checkpoint finds in test photos, and the report."""

import math
from pathlib import Path

from rich.console import Console
from torch.utils.data import Dataset

from detrkit.data.photos import tensor_to_photo
from detrkit.errors import DetrkitError
from detrkit.evaluation.report import ReportPicture, write_report
from detrkit.evaluation.table import print_scores
from detrkit.files import replacing
from detrkit.inference.detector import Detector
from detrkit.recipes.config import RunConfig
from detrkit.structures import Sample
from detrkit.training.run_log import read_metrics
from detrkit.training.trainer import TrainingResult
from detrkit.visualization.curves import draw_curves
from detrkit.visualization.draw import draw_boxes, draw_detections

NUM_PICTURES = 12
THRESHOLD = 0.5
SMALLEST_PICTURE = 384  # pixels a side; smaller photos are enlarged, or captions would cover the objects
LARGEST_PICTURE = 2048  # pixels a side, up to which they are enlarged


def finish_run(
    output: Path, config: RunConfig, pictures: Dataset[Sample], result: TrainingResult, console: Console
) -> None:
    """Predict some test photos with the best checkpoint, write them and the report, and print the scores."""
    if result.interrupted:
        console.print(
            f"stopped after {result.epochs} finished epochs; {output} holds what was learned", highlight=False
        )
    if result.scores is None:
        return
    gallery = draw_predictions(Detector.load(output), pictures, NUM_PICTURES, output / "predictions")
    write_report(
        output / "report.html",
        title=f"{config.model}: AP {result.scores.numbers['AP']:.3f}, AP50 {result.scores.numbers['AP50']:.3f}",
        subtitle=f"{output.name}, {result.epochs} epochs; boxes below have a score of at least {THRESHOLD}, "
        "thin white boxes are the annotations",
        scores=result.scores,
        judged_by="the ones it was trained on" if config.training.overfit else "not seen in training",
        curves=draw_curves(read_metrics(output)),
        gallery=gallery,
    )
    print_scores(result.scores, console)
    console.print(f"report: {output / 'report.html'}", highlight=False, soft_wrap=True)


def draw_predictions(
    detector: Detector, pictures: Dataset[Sample], count: int, folder: Path | None = None
) -> list[ReportPicture]:
    """Predict the first photos and draw what was found, over the annotations; write them to a folder if there is one."""
    gallery = []
    for index in range(min(count, len(pictures))):  # type: ignore[arg-type]  # every dataset of ours has a length
        try:
            sample = pictures[index]
        except DetrkitError:
            continue  # evaluation has told of it
        photo = tensor_to_photo(sample.image)
        scale = max(1, min(math.ceil(SMALLEST_PICTURE / min(photo.size)), LARGEST_PICTURE // max(photo.size)))
        detections = detector.predict(sample.image, THRESHOLD)
        large = photo.resize((photo.width * scale, photo.height * scale))
        boxes = (sample.annotations.boxes * scale).tolist()
        with_truth = draw_boxes(large, boxes, [-1] * len(boxes), [""] * len(boxes))
        picture = draw_detections(with_truth, detections.scaled(scale))
        if folder is not None:
            with replacing(folder / f"{sample.image_id}.png") as temporary:
                picture.save(temporary)
        gallery.append(
            ReportPicture(picture, f"photo {sample.image_id}: {len(detections)} found, {len(boxes)} annotated")
        )
    return gallery
