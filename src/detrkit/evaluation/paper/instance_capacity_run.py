"""Photos with 1, 2, 3 ... objects of one class, and how many of them a model finds (paper, appendix A.5 and figure 12).

A model that knows the drawn shapes is shown drawings; any other is shown tiles of an object of the dataset that it found.
"""

import math
from collections.abc import Sequence

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
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.errors import DetrkitError
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.arrays import EvalInput, GroundTruth
from detrkit.evaluation.coco import samples_to_coco
from detrkit.evaluation.inference_loop import collect
from detrkit.evaluation.paper.instance_capacity import Count, count_found
from detrkit.inference.detector import Detector
from detrkit.structures import Annotations, Sample

MAX_CELLS = 10  # a side: 100 objects, as in the paper
_COUNTS = 20  # numbers of objects that are tried, at most
_PHOTOS = 4  # of each number
_MODELS = 6  # objects that are repeated, of as many classes as there are
_SEED = 12


def measure_instance_capacity(
    detector: Detector,
    analysis: Analysis,
    pictures: Dataset[Sample],
    image_ids: Sequence[int],
) -> tuple[Count, ...]:
    """Show photos with ever more equal objects to a model, and count what it finds at the best threshold.

    Args:
        detector: of the model.
        analysis: of the model on the dataset.
        pictures: photos of the dataset, whose objects are repeated.
        image_ids: of the pictures, in their order.

    Returns:
        Nothing where the model found no object of the dataset that could be repeated.
    """
    cells = min(max(math.ceil(detector.engine.config.num_queries**0.5), 2), MAX_CELLS)
    counts = np.unique(np.linspace(1, cells * cells, _COUNTS).round().astype(int)).tolist()
    size = detector.preprocessing.image_size
    random = np.random.default_rng(_SEED)
    ids_by_name = dict(zip(detector.categories.names, detector.categories.ids, strict=True))
    plan = [(count, number) for count in counts for number in range(_PHOTOS)]
    if set(SHAPES.names) <= set(ids_by_name):
        categories = Categories(tuple(ids_by_name[name] for name in SHAPES.names), SHAPES.names)
        style = SyntheticStyle(size=2 * size)
        samples = [
            draw_identical_shapes(number % len(SHAPES), count, cells, random, style, image_id)
            for image_id, (count, number) in enumerate(plan, start=1)
        ]
    else:
        categories = analysis.case.truth.categories
        crops = found_objects(analysis, pictures, image_ids)
        if not crops:
            return ()
        samples = [
            tile(*crops[number % len(crops)], count, cells, size, random, image_id)
            for image_id, (count, number) in enumerate(plan, start=1)
        ]
    batches = evaluation_loader(SampleDataset(samples, EvalTransform(size)), 1, workers=0)
    found = collect(detector.engine, batches, detector.categories)
    truth = GroundTruth.read(samples_to_coco(samples, categories))
    return count_found(EvalInput.of(truth, found[0]), analysis.threshold)


def found_objects(
    analysis: Analysis, pictures: Dataset[Sample], image_ids: Sequence[int]
) -> list[tuple[Image.Image, int]]:
    """Cut out objects that the model is surest of, first one of every class: picture and label."""
    case = analysis.case
    right = np.flatnonzero(analysis.errors.is_right)
    right = right[np.argsort(-case.found.scores[right], kind="stable")]
    seen: dict[int, int] = {}
    turns = []
    for label in case.labels[right].tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    crops = []
    for one in right[np.argsort(turns, kind="stable")]:
        image_id = int(case.truth.image_ids[case.photos[one]])
        x, y, width, height = case.found.boxes[one]
        try:
            photo = tensor_to_image(pictures[list(image_ids).index(image_id)].image)
        except DetrkitError:
            continue  # evaluation has told of it
        box = (max(x, 0), max(y, 0), min(x + width, photo.width), min(y + height, photo.height))
        if min(box[2] - box[0], box[3] - box[1]) >= 2:
            crops.append((photo.crop(tuple(round(side) for side in box)), int(case.labels[one])))
        if len(crops) == _MODELS:
            break
    return crops


def tile(crop: Image.Image, label: int, count: int, cells: int, size: int, random: Generator, image_id: int) -> Sample:
    """Repeat a picture of an object in some of the cells of a grid, on its own mean colour."""
    cell = size / cells
    scale = 0.85 * cell / max(crop.size)
    small = crop.resize((max(2, round(crop.width * scale)), max(2, round(crop.height * scale))))
    ground = tuple(int(value) for value in np.asarray(small).reshape(-1, 3).mean(0))
    photo = Image.new("RGB", (size, size), ground)
    boxes = []
    for place in random.choice(cells * cells, count, replace=False).tolist():
        left = round((place % cells + 0.5) * cell - small.width / 2)
        top = round((place // cells + 0.5) * cell - small.height / 2)
        photo.paste(small, (left, top))
        boxes.append([left, top, left + small.width, top + small.height])
    annotations = Annotations(torch.tensor(boxes, dtype=torch.float32), torch.full((count,), label))
    return Sample(image_to_tensor(photo), annotations, image_id, (size, size))
