"""Photos with what was found in them, for the report: the first ones, and those with most mistakes."""

import math
from collections.abc import Sequence
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
from detrkit.evaluation.report.page import ReportPicture
from detrkit.evaluation.tide import KINDS, MISSED
from detrkit.inference.detector import Detector
from detrkit.structures import PanopticSegments, Sample
from detrkit.visualization.draw import CORRECT, draw_boxes, draw_detections, draw_errors, draw_segments

NUM_PICTURES = 12
THRESHOLD = 0.5
SMALLEST_PICTURE = 384  # pixels a side; smaller photos are enlarged, or captions would cover the objects
LARGEST_PICTURE = 2048  # pixels a side, up to which they are enlarged


def draw_predictions(
    detector: Detector, pictures: Dataset[Sample], count: int, folder: Path | None = None
) -> list[ReportPicture]:
    """Predict the first photos and draw what was found, over the annotations; write them to a folder if there is one.

    Of a panoptic model, the segments are drawn; of others, boxes, with masks if there are any.
    """
    has_segments = detector.engine.config.mask_head and detector.categories.is_thing is not None
    gallery = []
    for index in range(min(count, len(pictures))):  # type: ignore[arg-type]  # every dataset of ours has a length
        try:
            sample = pictures[index]
        except DetrkitError:
            continue  # evaluation has told of it
        name = name_of_photo(pictures, index, sample.image_id)
        picture = _draw_segments(detector, sample, name) if has_segments else _draw_boxes(detector, sample, name)
        if folder is not None:
            with atomic_write(folder / f"{sample.image_id}.png") as temporary:
                picture.picture.save(temporary, pnginfo=provenance_mark())
        gallery.append(picture)
    return gallery


def _draw_boxes(detector: Detector, sample: Sample, name: str) -> ReportPicture:
    large, scale = enlarged(tensor_to_image(sample.image))
    detections = detector.predict(sample.image, THRESHOLD)
    boxes = (sample.annotations.boxes * scale).tolist()
    with_truth = draw_boxes(large, boxes, [-1] * len(boxes), [()] * len(boxes))
    picture = draw_detections(with_truth, detections.scale(scale))
    return ReportPicture(picture, f"{name}: {len(detections)} found, {len(boxes)} annotated")


def _draw_segments(detector: Detector, sample: Sample, name: str) -> ReportPicture:
    large, scale = enlarged(tensor_to_image(sample.image))
    found = detector.predict_segments(sample.image)
    assert isinstance(found, PanopticSegments)
    picture = draw_segments(large, found.enlarge(scale))
    annotated = len(sample.annotations.labels)
    return ReportPicture(picture, f"{name}: {plural(len(found), 'segment')} found, {annotated} annotated")


def draw_worst(
    analysis: Analysis, pictures: Dataset[Sample], image_ids: Sequence[int], count: int = NUM_PICTURES
) -> list[ReportPicture]:
    """Draw the photos with most mistakes.

    Args:
        analysis: of all photos.
        pictures: the photos as people see them.
        image_ids: of the pictures, in their order.
        count: of pictures, at most.
    """
    place_of = {image_id: place for place, image_id in enumerate(image_ids)}
    gallery = []
    for image_id, mistakes in analysis.worst_photos(count):
        try:
            place = place_of[image_id]
            sample = pictures[place]
        except DetrkitError:
            continue  # evaluation has told of it
        photo, scale = enlarged(tensor_to_image(sample.image))
        picture = _draw_mistakes(analysis, image_id, photo, scale)
        gallery.append(
            ReportPicture(picture, f"{name_of_photo(pictures, place, image_id)}: {plural(mistakes, 'mistake')}")
        )
    return gallery


def name_of_photo(pictures: Dataset[Sample], index: int, image_id: int) -> str:
    """What people call a photo: the name of its file; of drawings, which have none, their number."""
    return pictures.split.records.path(index).name if isinstance(pictures, DetectionDataset) else f"photo {image_id}"


def _draw_mistakes(analysis: Analysis, image_id: int, photo: Image.Image, scale: int) -> Image.Image:
    case, errors = analysis.case, analysis.errors
    place = int(np.searchsorted(case.truth.image_ids, image_id))
    names = case.truth.categories.names
    is_false = errors.kind_of >= 0
    ours = np.flatnonzero((case.photos == place) & (is_false | errors.is_right))
    theirs = np.flatnonzero((case.truth.photos == place) & errors.is_unanswered)
    boxes = np.concatenate([case.truth.boxes[theirs], case.found.boxes[ours]]) * scale
    boxes[:, 2:] += boxes[:, :2]
    kinds = [MISSED] * len(theirs) + [CORRECT if errors.is_right[one] else KINDS[errors.kind_of[one]] for one in ours]
    labels = np.r_[case.truth.labels[theirs], case.labels[ours]]
    scores = [None] * len(theirs) + case.found.scores[ours].tolist()
    # mistakes end on top of what is right
    order = sorted(range(len(kinds)), key=lambda index: kinds[index] == CORRECT)
    return draw_errors(
        photo,
        [boxes[index].tolist() for index in order],
        [kinds[index] for index in order],
        [names[labels[index]] for index in order],
        [scores[index] for index in order],
    )


def enlarged(photo: Image.Image) -> tuple[Image.Image, int]:
    """Enlarge a small photo so that captions do not cover its objects; tell by which factor."""
    scale = max(1, min(math.ceil(SMALLEST_PICTURE / min(photo.size)), LARGEST_PICTURE // max(photo.size)))
    return photo.resize((photo.width * scale, photo.height * scale)), scale
