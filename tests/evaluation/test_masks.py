"""Mask AP: by hand, against pycocotools, and from the masks of a model."""

import contextlib
import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit import build_model
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.data.segmentation import read_masks
from detrkit.data.splits import load_dataset
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.errors import DatasetError
from detrkit.evaluation.arrays import DetectionArrays, GroundTruth
from detrkit.evaluation.coco import evaluate_boxes, evaluate_masks
from detrkit.evaluation.ground_truth import split_to_coco
from detrkit.evaluation.inference_loop import run_inference
from detrkit.evaluation.results_io import read_results
from detrkit.ops.masks import encode_masks
from detrkit.structures import Batch, Predictions
from tests.datasets import panoptic_document, write_panoptic

SIZE = (20, 30)


def rectangle(top: int, left: int, bottom: int, right: int) -> dict[str, Any]:
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, top:bottom, left:right] = True
    return encode_masks(mask)[0]


def document(*segmentations: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "segmentation": one}
            for i, one in enumerate(segmentations)
        ],
    }


def result(mask: dict[str, Any], score: float = 0.9, **more: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 3, "score": score, "segmentation": mask, **more}


def test_mask_ap_by_hand() -> None:
    """72 of 100 pixels: a true positive at IoU 0.50 to 0.70, five of ten thresholds; the box is perfect."""
    ground_truth = GroundTruth.from_coco(document([[0, 0, 10, 0, 10, 10, 0, 10]]), masks=True)
    detections = DetectionArrays.from_coco([result(rectangle(0, 0, 9, 8), bbox=[0, 0, 10, 10])])
    assert evaluate_masks(ground_truth, detections).ap == pytest.approx(0.5)
    assert evaluate_boxes(ground_truth, detections).ap == pytest.approx(1)


def test_results_without_boxes_get_the_bounding_boxes_of_their_masks() -> None:
    detections = DetectionArrays.from_coco([result(rectangle(2, 3, 9, 8))])
    assert detections.boxes.tolist() == [[3, 2, 5, 7]]
    again = json.loads(json.dumps(detections.to_coco()))
    assert again == [result(rectangle(2, 3, 9, 8), bbox=[3, 2, 5, 7])]
    both = DetectionArrays.concat([detections, DetectionArrays.from_coco([]), detections])
    assert both.masks is not None
    assert len(both.masks) == 2
    assert both.select(np.array([1])).to_coco() == again
    boxes_alone = DetectionArrays.from_coco([{"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}])
    assert DetectionArrays.concat([detections, boxes_alone]).masks is None


def test_mask_ap_without_detections_is_zero() -> None:
    ground_truth = GroundTruth.from_coco(document([[0, 0, 10, 0, 10, 10, 0, 10]]), masks=True)
    assert evaluate_masks(ground_truth, DetectionArrays.from_coco([])).ap == 0


def test_annotations_without_segmentation_are_rejected() -> None:
    with pytest.raises(DatasetError, match="annotation 1 of image 1 has no readable segmentation"):
        GroundTruth.from_coco(document(None), masks=True)
    assert GroundTruth.from_coco(document(None)).masks is None


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
def test_perturbed_masks_of_coco_images_are_scored_as_by_pycocotools(shared: Path) -> None:
    pycocotools_coco = pytest.importorskip("pycocotools.coco")
    pycocotools_eval = pytest.importorskip("pycocotools.cocoeval")
    split = load_dataset(shared / "data" / "coco-mini-dev", masks=True).val
    random = np.random.default_rng(0)
    results = []
    for record in split.records:
        masks = read_masks(record, np.arange(len(record.labels))).numpy()
        for mask, label in zip(masks, record.labels.tolist(), strict=True):
            for _ in range(int(random.integers(0, 3))):
                moved = np.roll(mask, random.integers(-8, 9, 2), (0, 1))
                predicted_label = label if random.random() < 0.9 else 0
                entry = {"image_id": record.image_id, "category_id": split.categories.ids[predicted_label]}
                encoded = encode_masks(torch.from_numpy(moved[None]))[0]
                results.append({**entry, "segmentation": encoded, "score": float(random.random())})
    scores = evaluate_masks(GroundTruth.from_coco(split.source, masks=True), DetectionArrays.from_coco(results))
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = pycocotools_coco.COCO(str(split.source))
        expected = pycocotools_eval.COCOeval(annotations, annotations.loadRes(copy.deepcopy(results)), "segm")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    np.testing.assert_allclose(list(scores.values.values()), expected.stats, rtol=0, atol=1e-12)
    assert 0.1 < scores.ap < 0.5


def test_only_things_of_panoptic_data_are_evaluated(tmp_path: Path) -> None:
    split = load_dataset(write_panoptic(tmp_path)).val
    boxes = split_to_coco(split)
    assert isinstance(boxes, dict)
    assert [one["name"] for one in boxes["categories"]] == ["ant", "zebra"]
    ground_truth = GroundTruth.from_coco(split_to_coco(split, masks=True), masks=True)
    assert ground_truth.objects_per_class().tolist() == [2, 2]
    assert int(ground_truth.is_crowd.sum()) == 2
    _, ids = panoptic_document()
    zebra = encode_masks(torch.from_numpy(ids == 300)[None])[0]
    ground = encode_masks(torch.from_numpy(ids == 70_000)[None])[0]
    results = [result(zebra) | {"category_id": 90}, result(ground) | {"category_id": 4}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    detections = read_results(tmp_path / "results.json", ground_truth, split.categories)
    scores = evaluate_masks(ground_truth, detections)
    assert scores.per_class[1].ap == pytest.approx(0.5, abs=0.01)  # detected on one image of two; stuff is ignored
    assert ground_truth.areas[ground_truth.labels == 1].tolist() == [int((ids == 300).sum())] * 2


MALFORMED = [
    result({"size": [20], "counts": "abc"}),
    result({"size": [20, 30], "counts": [1, 2]}),
    result({"size": [20, 30], "counts": "abc"}),
    result({"size": [20, 30]}),
    {"image_id": 1, "category_id": 3, "score": 0.5},
    result(rectangle(0, 0, 5, 5), bbox=[1, 2, 3]),
    result(rectangle(0, 0, 5, 5), bbox=None),
]


@pytest.mark.parametrize("index", range(len(MALFORMED)))
def test_malformed_masks_are_rejected(tmp_path: Path, index: int) -> None:
    (tmp_path / "results.json").write_text(json.dumps([MALFORMED[index]]))
    with pytest.raises(DatasetError, match=r"entry 0( has neither|: segmentation|: bbox)") as caught:
        read_results(tmp_path / "results.json", GroundTruth.from_coco(document([[0, 0, 10, 0, 10, 10]])))
    assert "\n" not in str(caught.value)


def test_masks_of_another_size_than_their_image_are_rejected(tmp_path: Path) -> None:
    other = encode_masks(torch.ones(1, 30, 20, dtype=torch.bool))[0]
    (tmp_path / "results.json").write_text(json.dumps([result(other)]))
    with pytest.raises(DatasetError, match=r"entry 0 has a mask of \[30, 20\] .*image 1 has \[20, 30\]"):
        read_results(tmp_path / "results.json", GroundTruth.from_coco(document([[0, 0, 10, 0, 10, 10]])))


def test_masks_of_a_model_are_encoded_image_by_image_and_keep_their_queries() -> None:
    samples = [SyntheticShapes(2, 0, SyntheticStyle(size=32))[index] for index in range(2)]
    model = build_model("detr-tiny", num_classes=3, num_queries=4)
    alive: list[int] = []

    def of_queries(predictions: Predictions, batch: Batch) -> Iterator[torch.Tensor]:
        for _ in batch.image_ids:
            alive.append(len(alive))
            masks = torch.zeros(predictions.boxes.shape[1], 32, 32, dtype=torch.bool)
            for query, mask in enumerate(masks):
                mask[: query + 1] = True
            yield masks

    detections = run_inference(model, [collate(samples)], Categories((1, 2, 3), ("a", "b", "c")), masks=of_queries)[-1]
    assert len(alive) == 2
    assert detections.masks is not None
    areas = [entry["segmentation"]["counts"] for entry in detections.to_coco()]
    by_query = {int(query): area for query, area in zip(detections.queries, areas, strict=True)}
    assert len(set(by_query.values())) == 4
    assert areas == [by_query[int(query)] for query in detections.queries]
    expected = torch.zeros(1, 32, 32, dtype=torch.bool)
    expected[0, :3] = True
    assert by_query[2] == encode_masks(expected)[0]["counts"]
