"""Detected objects as the number of identical instances in an image grows (paper, appendix A.5 and figure 12).

Every query is matched to at most one object: recall is limited by the number of queries, and mostly falls before that,
because images with many instances of one class are rare in training. Models trained on drawn shapes see drawings; all
others see copies of an object of the dataset that they detect.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch.utils.data import Dataset

from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleDataset
from detrkit.data.images import image_to_tensor, tensor_to_image
from detrkit.data.loaders import evaluation_loader
from detrkit.data.synthetic import SHAPES, SyntheticStyle, draw_identical_shapes
from detrkit.errors import DetrkitError
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.arrays import EvalInput, GroundTruth
from detrkit.evaluation.coco_matching import compute_ious, match_detections
from detrkit.evaluation.ground_truth import samples_to_coco
from detrkit.evaluation.inference_loop import run_inference
from detrkit.evaluation.paper.analysis import PaperAnalysis
from detrkit.evaluation.report.page import ReportFigure
from detrkit.inference.detector import Detector
from detrkit.structures import Annotations, Sample
from detrkit.visualization.charts import as_png, as_svg, draw_counts

MAX_CELLS = 10  # per side of the grid: up to 100 objects, as in the paper
_NUM_COUNTS = 20  # maximum of different numbers of objects
_IMAGES_PER_COUNT = 4
_NUM_CROPS = 6  # objects that are repeated, of as many classes as there are
_SEED = 12


@dataclass(frozen=True)
class InstanceCount:
    """Results on the images with one number of objects.

    Attributes:
        present: objects in each of these images.
        detected_mean: detected objects, on average.
        detected_min: in the worst image.
        detected_max: in the best image.
        detections_mean: detections above the threshold, true or false positives.
    """

    present: int
    detected_mean: float
    detected_min: int
    detected_max: int
    detections_mean: float


def analyse_instance_capacity(
    detector: Detector,
    analysis: Analysis,
    dataset: Dataset[Sample],
    image_ids: Sequence[int],
    categories: Categories | None = None,
) -> PaperAnalysis | None:
    """Plot detected against present objects (figure 12); arguments as in `measure_instance_capacity`."""
    counts = measure_instance_capacity(detector, analysis, dataset, image_ids, categories)
    if not counts:
        return None
    figure = draw_counts(
        [one.present for one in counts],
        [one.detected_mean for one in counts],
        [one.detected_min for one in counts],
        [one.detected_max for one in counts],
    )
    text = (
        "Identical objects on a grid, and how many of them are detected. "
        f"{detector.engine.config.num_queries} queries can detect no more than that many; if the curve falls off before, "
        "images with many objects were rare in training."
    )
    report_figure = ReportFigure("Instance capacity", text, as_png(figure), as_svg(figure))
    return PaperAnalysis("instance_capacity", report_figure, [asdict(one) for one in counts])


def measure_instance_capacity(
    detector: Detector,
    analysis: Analysis,
    dataset: Dataset[Sample],
    image_ids: Sequence[int],
    categories: Categories | None = None,
) -> tuple[InstanceCount, ...]:
    """Count detected objects on images with more and more identical objects, at the best threshold.

    Args:
        detector: model.
        analysis: of the model on the dataset.
        dataset: samples that have not been transformed, whose objects are repeated.
        image_ids: of the dataset, in its order.
        categories: of the model's labels, with the ids of the dataset; by default the model's.

    Returns:
        One entry per number of objects; empty if the model detected no object that can be repeated.
    """
    cells = min(max(math.ceil(detector.engine.config.num_queries**0.5), 2), MAX_CELLS)
    counts = np.unique(np.linspace(1, cells * cells, _NUM_COUNTS).round().astype(int)).tolist()
    size = detector.preprocessing.image_size
    random = np.random.default_rng(_SEED)
    of_model = categories or detector.categories
    ids_by_name = dict(zip(of_model.names, of_model.ids, strict=True))
    images = [(count, number) for count in counts for number in range(_IMAGES_PER_COUNT)]
    if set(SHAPES.names) <= set(ids_by_name):
        drawn = Categories(tuple(ids_by_name[name] for name in SHAPES.names), SHAPES.names)
        style = SyntheticStyle(size=2 * size)
        samples = [
            draw_identical_shapes(number % len(SHAPES), count, cells, random, style, image_id)
            for image_id, (count, number) in enumerate(images, start=1)
        ]
    else:
        drawn = analysis.inputs.ground_truth.categories
        crops = crop_detected_objects(analysis, dataset, image_ids)
        if not crops:
            return ()
        samples = [
            tile(*crops[number % len(crops)], count, cells, size, random, image_id)
            for image_id, (count, number) in enumerate(images, start=1)
        ]
    transform = detector.preprocessing.transform(detector.engine.config.in_channels)
    batches = evaluation_loader(SampleDataset(samples, transform), 1, workers=0)
    detections = run_inference(detector.engine, batches, of_model)[-1]
    ground_truth = GroundTruth.from_coco(samples_to_coco(samples, drawn))
    return count_detected(EvalInput.align(ground_truth, detections), analysis.threshold)


def count_detected(inputs: EvalInput, threshold: float) -> tuple[InstanceCount, ...]:
    """Count objects that are detected with a score of at least `threshold`, by the number of objects in the image."""
    matches = match_detections(inputs, compute_ious(inputs))
    is_above = inputs.detections.scores >= threshold
    ground_truth, num_images = inputs.ground_truth, len(inputs.ground_truth.image_ids)
    present = np.bincount(ground_truth.image_indices[~ground_truth.is_crowd], minlength=num_images)
    detections = np.bincount(inputs.image_indices[is_above], minlength=num_images)
    detected = np.bincount(inputs.image_indices[is_above & matches.is_true_positive], minlength=num_images)
    return tuple(
        InstanceCount(
            present=int(number),
            detected_mean=float(detected[present == number].mean()),
            detected_min=int(detected[present == number].min()),
            detected_max=int(detected[present == number].max()),
            detections_mean=float(detections[present == number].mean()),
        )
        for number in np.unique(present)
    )


def crop_detected_objects(
    analysis: Analysis, dataset: Dataset[Sample], image_ids: Sequence[int]
) -> list[tuple[Image.Image, int]]:
    """Crop the true positives with the highest scores, one of every class first; return crops and labels."""
    inputs = analysis.inputs
    detections = np.flatnonzero(analysis.errors.is_true_positive)
    detections = detections[np.argsort(-inputs.detections.scores[detections], kind="stable")]
    count_of: dict[int, int] = {}
    rounds = []
    for label in inputs.labels[detections].tolist():
        rounds.append(count_of.get(label, 0))
        count_of[label] = rounds[-1] + 1
    crops = []
    for one in detections[np.argsort(rounds, kind="stable")]:
        image_id = int(inputs.ground_truth.image_ids[inputs.image_indices[one]])
        x, y, width, height = inputs.detections.boxes[one]
        try:
            image = tensor_to_image(dataset[list(image_ids).index(image_id)].image)
        except DetrkitError:
            continue  # unreadable, which evaluation has already reported
        box = (max(x, 0), max(y, 0), min(x + width, image.width), min(y + height, image.height))
        if min(box[2] - box[0], box[3] - box[1]) >= 2:
            crops.append((image.crop(tuple(round(side) for side in box)), int(inputs.labels[one])))
        if len(crops) == _NUM_CROPS:
            break
    return crops


def tile(crop: Image.Image, label: int, count: int, cells: int, size: int, random: Generator, image_id: int) -> Sample:
    """Repeat a crop in `count` random cells of a grid, on a background of its mean colour."""
    cell = size / cells
    scale = 0.85 * cell / max(crop.size)
    small = crop.resize((max(2, round(crop.width * scale)), max(2, round(crop.height * scale))))
    background = tuple(int(value) for value in np.asarray(small).reshape(-1, 3).mean(0))
    image = Image.new("RGB", (size, size), background)
    boxes = []
    for index in random.choice(cells * cells, count, replace=False).tolist():
        left = round((index % cells + 0.5) * cell - small.width / 2)
        top = round((index // cells + 0.5) * cell - small.height / 2)
        image.paste(small, (left, top))
        boxes.append([left, top, left + small.width, top + small.height])
    annotations = Annotations(torch.tensor(boxes, dtype=torch.float32), torch.full((count,), label))
    return Sample(image_to_tensor(image), annotations, image_id, (size, size))
