"""Ground ground_truth and detections as arrays."""

import numpy as np

from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.coco import coco_metric_names, evaluate_boxes, max_detections_to_evaluate
from tests.evaluation.cases import document, results


def test_coco_results_are_converted_to_arrays_and_back() -> None:
    listed = results([(1, 3, [0.1, 0.2, 0.3, 0.4], 0.7), (2, 20, [1.0, 2.0, 3.0, 4.0], 0.25)])
    assert DetectionArrays.from_coco(listed).to_coco() == listed
    parts = [DetectionArrays.from_coco(listed[:1]), DetectionArrays.from_coco(listed[1:])]
    assert DetectionArrays.concat(parts).to_coco() == listed
    assert DetectionArrays.concat([]).to_coco() == []


def test_area_is_the_annotated_one_or_else_that_of_the_box() -> None:
    content = document([(1, 3, [0.0, 0, 10, 20]), (1, 7, [0.0, 0, 10, 20])])
    content["annotations"][1]["area"] = 33
    assert GroundTruth.from_coco(content).areas.tolist() == [200, 33]
    content["annotations"][1]["area"] = 10**400
    assert GroundTruth.from_coco(content).areas.tolist()[0] == 200


def test_detections_on_other_images_or_of_other_classes_are_dropped() -> None:
    ground_truth = GroundTruth.from_coco(document([(1, 3, [0.0, 0, 9, 9]), (2, 3, [0.0, 0, 9, 9])], 2), image_ids=[20])
    assert ground_truth.image_ids.tolist() == [20]
    assert ground_truth.num_objects == 1
    detections = DetectionArrays.from_coco(
        results([(1, 3, [0.0, 0, 9, 9], 1.0), (2, 4, [0.0, 0, 9, 9], 1.0), (2, 20, [0.0] * 4, 1.0)])
    )
    one = EvalInput.align(ground_truth, detections)
    assert one.detections.category_ids.tolist() == [20]
    assert (one.image_indices.tolist(), one.labels.tolist()) == ([0], [2])


def test_images_are_sorted_by_id() -> None:
    content = document([(2, 3, [0.0, 0, 9, 9]), (1, 7, [0.0, 0, 8, 8])], 2)
    content["images"][1]["height"] = 400
    content["images"].reverse()
    ground_truth = GroundTruth.from_coco(content)
    assert ground_truth.image_ids.tolist() == [10, 20]
    assert ground_truth.sizes.tolist() == [[500, 1000], [400, 1000]]
    assert ground_truth.image_indices.tolist() == [1, 0]
    one = EvalInput.align(
        ground_truth, DetectionArrays.from_coco(results([(1, 7, [0.0, 0, 8, 8], 0.9), (2, 3, [0.0, 0, 9, 9], 0.8)]))
    )
    assert one.image_indices.tolist() == [0, 1]


def test_all_detections_of_a_model_with_many_queries_are_evaluated() -> None:
    """150 identical objects, all detected: with at most 100 detections, a third is missed."""
    boxes = [[6.0 * (i % 50), 10.0 * (i // 50), 5.0, 9.0] for i in range(150)]
    ground_truth = GroundTruth.from_coco(document([(1, 3, box) for box in boxes]))
    detections = DetectionArrays.from_coco(results([(1, 3, box, 0.9) for box in boxes]))
    assert max_detections_to_evaluate(25) == max_detections_to_evaluate(100) == 100
    published = evaluate_boxes(ground_truth, detections)
    whole = evaluate_boxes(ground_truth, detections, max_detections=max_detections_to_evaluate(150))
    np.testing.assert_allclose([published.values["ar100"], whole.values["ar150"]], [2 / 3, 1])
    assert whole.ap > 0.999
    assert tuple(whole.values) == coco_metric_names(150)
    assert whole.per_class[0].ar == 1
