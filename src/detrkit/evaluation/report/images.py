"""Images of the report: predictions on the first images, and the images with the most errors."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from detrkit._internal.files import atomic_write
from detrkit._internal.provenance import provenance_mark
from detrkit._internal.text import plural
from detrkit.data.dataset import DetectionDataset
from detrkit.data.images import tensor_to_image
from detrkit.errors import DetrkitError
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.tide import ERROR_TYPES, MISSED, NO_ERROR
from detrkit.inference.detector import Detector
from detrkit.structures import PanopticSegments, Sample
from detrkit.visualization.draw import TRUE_POSITIVE, draw_detections, draw_errors, draw_segments

NUM_IMAGES = 12
PREDICTION_THRESHOLD = 0.5  # minimum score of the predictions that are drawn, unless the best one is known
MIN_SIDE = 384  # pixels; smaller images are enlarged, or captions would cover the objects
MAX_SIDE = 2048  # pixels, up to which they are enlarged


@dataclass(frozen=True)
class ReportImage:
    """An image of the report with its caption."""

    image: Image.Image
    caption: str


def draw_predictions(
    detector: Detector,
    dataset: Dataset[Sample],
    count: int,
    folder: Path | None = None,
    threshold: float = PREDICTION_THRESHOLD,
) -> list[ReportImage]:
    """Draw predictions on the first images of a dataset, and write them as PNGs if a folder is given.

    A panoptic model's segments are drawn; otherwise boxes over the annotated ones, with masks if the model has them.

    Args:
        detector: to predict with.
        dataset: samples that have not been transformed.
        count: maximum number of images.
        folder: for the PNGs.
        threshold: minimum score of the boxes.
    """
    has_segments = detector.engine.config.mask_head and detector.categories.is_thing is not None
    images = []
    for index, sample in _readable(dataset, range(min(count, len(dataset)))):  # type: ignore[arg-type]
        name = image_name(dataset, index, sample.image_id)
        drawn = (
            _draw_segments(detector, sample, name) if has_segments else _draw_boxes(detector, sample, name, threshold)
        )
        if folder is not None:
            with atomic_write(folder / f"{sample.image_id}.png") as temporary:
                drawn.image.save(temporary, pnginfo=provenance_mark())
        images.append(drawn)
    return images


def _readable(dataset: Dataset[Sample], indices: Sequence[int]) -> Iterator[tuple[int, Sample]]:
    """Read samples; unreadable ones, which evaluation has already reported, are skipped."""
    for index in indices:
        try:
            sample = dataset[index]
        except DetrkitError:
            continue
        yield index, sample


def _draw_boxes(detector: Detector, sample: Sample, name: str, threshold: float) -> ReportImage:
    image, scale = enlarge_small_image(tensor_to_image(sample.image))
    detections = detector.predict(sample.image, threshold)
    true_boxes = (sample.annotations.boxes * scale).tolist()
    true_names = [detector.categories.names[label] for label in sample.annotations.labels.tolist()]
    drawn = draw_detections(image, detections.scale(scale), true_boxes, true_names)
    found = f"{len(detections)} detected"
    if not len(detections) and not detector.engine.config.mask_head:
        best = detector.predict(sample.image, 0.0).scores
        found = f"nothing detected, the best score is {best.max():.2f}" if len(best) else "nothing detected"
    return ReportImage(drawn, f"{name}: {found}, {len(true_boxes)} annotated")


def _draw_segments(detector: Detector, sample: Sample, name: str) -> ReportImage:
    image, scale = enlarge_small_image(tensor_to_image(sample.image))
    segments = detector.predict_segments(sample.image)
    assert isinstance(segments, PanopticSegments)
    drawn = draw_segments(image, segments.enlarge(scale))
    num_annotated = len(sample.annotations.labels)
    return ReportImage(drawn, f"{name}: {plural(len(segments), 'segment')} predicted, {num_annotated} annotated")


def draw_worst_images(
    analysis: Analysis, dataset: Dataset[Sample], image_ids: Sequence[int], count: int = NUM_IMAGES
) -> list[ReportImage]:
    """Draw errors on the images with the most of them.

    Args:
        analysis: of detections on the dataset.
        dataset: samples that have not been transformed.
        image_ids: of the dataset, in its order.
        count: maximum number of images.
    """
    index_of = {image_id: index for index, image_id in enumerate(image_ids)}
    errors = {index_of[image_id]: num_errors for image_id, num_errors in analysis.worst_images(count)}
    images = []
    for index, sample in _readable(dataset, list(errors)):
        image, scale = enlarge_small_image(tensor_to_image(sample.image))
        drawn = _draw_errors(analysis, image_ids[index], image, scale)
        name = image_name(dataset, index, image_ids[index])
        images.append(ReportImage(drawn, f"{name}: {plural(errors[index], 'error')}"))
    return images


def image_name(dataset: Dataset[Sample], index: int, image_id: int) -> str:
    """Return the file name of an image, or its id if the dataset is not one of files."""
    return dataset.split.records.path(index).name if isinstance(dataset, DetectionDataset) else f"image {image_id}"


def _draw_errors(analysis: Analysis, image_id: int, image: Image.Image, scale: int) -> Image.Image:
    inputs, errors = analysis.inputs, analysis.errors
    ground_truth, predicted = inputs.ground_truth, inputs.detections
    index = int(np.searchsorted(ground_truth.image_ids, image_id))
    is_drawn = (errors.error_types != NO_ERROR) | errors.is_true_positive
    detections = np.flatnonzero((inputs.image_indices == index) & is_drawn)
    objects = np.flatnonzero((ground_truth.image_indices == index) & errors.is_unmatched)
    boxes = np.concatenate([ground_truth.boxes[objects], predicted.boxes[detections]]) * scale
    boxes[:, 2:] += boxes[:, :2]
    types = [MISSED] * len(objects) + [
        TRUE_POSITIVE if errors.is_true_positive[one] else ERROR_TYPES[errors.error_types[one]] for one in detections
    ]
    labels = np.r_[ground_truth.labels[objects], inputs.labels[detections]]
    scores = [None] * len(objects) + predicted.scores[detections].tolist()
    # errors are drawn over true positives
    order = sorted(range(len(types)), key=lambda one: types[one] == TRUE_POSITIVE)
    return draw_errors(
        image,
        [boxes[one].tolist() for one in order],
        [types[one] for one in order],
        [ground_truth.categories.names[labels[one]] for one in order],
        [scores[one] for one in order],
    )


def enlarge_small_image(image: Image.Image) -> tuple[Image.Image, int]:
    """Enlarge a small image by a whole factor; return it with the factor."""
    scale = max(1, min(math.ceil(MIN_SIDE / min(image.size)), MAX_SIDE // max(image.size)))
    return image.resize((image.width * scale, image.height * scale)), scale
