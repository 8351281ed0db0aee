"""Ground truth of a dataset split: COCO annotations for AP, segments for panoptic quality."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleSplit, Split
from detrkit.data.records import Record
from detrkit.data.segment_png import read_ids
from detrkit.data.segmentation import read_masks, rle_area, segment_ids
from detrkit.evaluation.arrays import GroundTruth
from detrkit.evaluation.coco_document import document_of_file
from detrkit.ops.masks import encode_masks
from detrkit.structures import Annotations, Sample


@dataclass(frozen=True)
class GroundTruthSegments:
    """Annotated panoptic segments of one image, S of them.

    Attributes:
        ids: (H, W) segment id of every pixel; ids that are not in `segment_ids` are void.
        segment_ids: (S,) without 0.
        labels: (S,) in 0 .. K-1.
        is_crowd: (S,) segments of many objects.
    """

    ids: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray

    @classmethod
    def from_record(cls, record: Record) -> "GroundTruthSegments":
        """Read the PNG of a record.

        Raises:
            DatasetError: it cannot be read.
        """
        assert record.mask_file is not None
        assert record.segmentations is not None
        ids = read_ids(record.mask_file, record.size).numpy()
        return cls(ids, segment_ids(record.segmentations).numpy(), record.labels, record.is_crowd)

    @classmethod
    def from_annotations(cls, annotations: Annotations) -> "GroundTruthSegments":
        """Convert masks that do not overlap; uncovered pixels are void."""
        assert annotations.masks is not None
        numbers = np.arange(1, len(annotations.labels) + 1)
        ids = (annotations.masks.numpy() * numbers[:, None, None]).sum(0)
        return cls(ids, numbers, annotations.labels.numpy(), np.zeros(len(numbers), bool))


def ground_truth_segments(split: Split, labels: Sequence[int] | None = None) -> Callable[[int], GroundTruthSegments]:
    """Return a function from an image id to the annotated segments, which are read when it is called.

    Args:
        split: of panoptic data.
        labels: label in the result of every label of the split; None keeps them.
    """
    segments_of = _segments_of(split)
    if labels is None:
        return segments_of
    table = np.array(labels, np.int64)

    def relabelled(image_id: int) -> GroundTruthSegments:
        segments = segments_of(image_id)
        return replace(segments, labels=table[segments.labels])

    return relabelled


def _segments_of(split: Split) -> Callable[[int], GroundTruthSegments]:
    index_of = {image_id: index for index, image_id in enumerate(split.records.image_ids)}
    if isinstance(split, SampleSplit):
        return lambda image_id: GroundTruthSegments.from_annotations(
            split.read(index_of[image_id], masks=True).annotations
        )
    return lambda image_id: GroundTruthSegments.from_record(split.records[index_of[image_id]])


def ground_truth_of_split(split: Split, *, masks: bool = False) -> GroundTruth:
    """Build the ground truth of a split; arguments as in `split_to_coco`."""
    return GroundTruth.from_coco(split_to_coco(split, masks=masks), split.records.image_ids, masks=masks)


def split_to_coco(split: Split, *, masks: bool = False) -> dict[str, Any]:
    """Return COCO annotations of a split: those of its own COCO file if it has one, else made from its records.

    Boxes without an area, which YOLO and VOC files hold by mistake, are left out. Of panoptic data only things are
    evaluated, as in published numbers: detections of stuff are ignored.

    Args:
        split: in any format.
        masks: include segmentations, for which the PNGs of panoptic data are read; a COCO file has its own.

    Raises:
        DatasetError: a PNG cannot be read.
    """
    if split.source.suffix.lower() == ".json" and not split.has_segments:
        document = document_of_file(split)
        if document is not None:
            return document
    things = split.categories.is_thing if split.has_segments else None
    is_evaluated = things if things and any(things) else (True,) * len(split.categories)
    annotations: list[dict[str, Any]] = []
    for record in split.records:
        annotations += _annotations_of(record, split.categories, is_evaluated, masks=masks)
    images = [{"id": one.image_id, "height": one.size[0], "width": one.size[1]} for one in split.records]
    categories = [entry for entry, kept in zip(split.categories.to_json(), is_evaluated, strict=True) if kept]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotations_of(
    record: Record, categories: Categories, is_evaluated: Sequence[bool], *, masks: bool
) -> list[dict[str, Any]]:
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    objects = ((sides > 0).all(1) & np.array(is_evaluated)[record.labels]).nonzero()[0]
    segmentations = encode_masks(read_masks(record, objects)) if masks else [None] * len(objects)
    annotations = []
    for number, segmentation in zip(objects.tolist(), segmentations, strict=True):
        x1, y1, x2, y2 = record.boxes[number].tolist()
        entry = {
            "image_id": record.image_id,
            "category_id": categories.ids[record.labels[number]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": bool(record.is_crowd[number]),
        }
        if segmentation is not None:
            entry |= {"segmentation": segmentation, "area": rle_area(segmentation)}
        annotations.append(entry)
    return annotations


def samples_to_coco(samples: Sequence[Sample], categories: Categories) -> dict[str, Any]:
    """Convert samples, transformed or not, to COCO annotations in pixels of the samples' images."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in samples:
        height, width = sample.image.shape[1:]
        name = f"{sample.image_id}.png"
        images.append({"id": sample.image_id, "height": height, "width": width, "file_name": name})
        objects = zip(sample.annotations.boxes.tolist(), sample.annotations.labels.tolist(), strict=True)
        for (x1, y1, x2, y2), label in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": categories.ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories.to_json()}
