"""Columns hold what documents and results say."""

import numpy as np

from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.coco import coco_metric_names, evaluate_boxes, max_detections_to_evaluate
from tests.evaluation.cases import document, results


def test_results_survive_columns() -> None:
    listed = results([(1, 3, [0.1, 0.2, 0.3, 0.4], 0.7), (2, 20, [1.0, 2.0, 3.0, 4.0], 0.25)])
    assert DetectionArrays.from_coco(listed).to_coco() == listed
    parts = [DetectionArrays.from_coco(listed[:1]), DetectionArrays.from_coco(listed[1:])]
    assert DetectionArrays.joined(parts).to_coco() == listed
    assert DetectionArrays.joined([]).to_coco() == []


def test_areas_are_of_the_outline_or_else_of_the_box() -> None:
    content = document([(1, 3, [0.0, 0, 10, 20]), (1, 7, [0.0, 0, 10, 20])])
    content["annotations"][1]["area"] = 33
    assert GroundTruth.read(content).areas.tolist() == [200, 33]
    content["annotations"][1]["area"] = 10**400
    assert GroundTruth.read(content).areas.tolist()[0] == 200


def test_other_photos_and_classes_do_not_count() -> None:
    truth = GroundTruth.read(document([(1, 3, [0.0, 0, 9, 9]), (2, 3, [0.0, 0, 9, 9])], 2), image_ids=[20])
    assert truth.image_ids.tolist() == [20]
    assert truth.num_objects == 1
    found = DetectionArrays.from_coco(
        results([(1, 3, [0.0, 0, 9, 9], 1.0), (2, 4, [0.0, 0, 9, 9], 1.0), (2, 20, [0.0] * 4, 1.0)])
    )
    one = EvalInput.of(truth, found)
    assert one.found.category_ids.tolist() == [20]
    assert (one.photos.tolist(), one.labels.tolist()) == ([0], [2])


def test_photos_stand_in_the_order_of_their_ids_whatever_the_files() -> None:
    content = document([(2, 3, [0.0, 0, 9, 9]), (1, 7, [0.0, 0, 8, 8])], 2)
    content["images"][1]["height"] = 400
    content["images"].reverse()
    truth = GroundTruth.read(content)
    assert truth.image_ids.tolist() == [10, 20]
    assert truth.sizes.tolist() == [[500, 1000], [400, 1000]]
    assert truth.photos.tolist() == [1, 0]
    one = EvalInput.of(
        truth, DetectionArrays.from_coco(results([(1, 7, [0.0, 0, 8, 8], 0.9), (2, 3, [0.0, 0, 9, 9], 0.8)]))
    )
    assert one.photos.tolist() == [0, 1]


def test_a_model_with_more_queries_is_heard_to_the_end() -> None:
    """150 equal objects, all found: with 100 detections counted, a third would be missed."""
    boxes = [[6.0 * (i % 50), 10.0 * (i // 50), 5.0, 9.0] for i in range(150)]
    truth = GroundTruth.read(document([(1, 3, box) for box in boxes]))
    found = DetectionArrays.from_coco(results([(1, 3, box, 0.9) for box in boxes]))
    assert max_detections_to_evaluate(25) == max_detections_to_evaluate(100) == 100
    published = evaluate_boxes(truth, found)
    whole = evaluate_boxes(truth, found, max_detections=max_detections_to_evaluate(150))
    np.testing.assert_allclose([published.values["ar100"], whole.values["ar150"]], [2 / 3, 1])
    assert whole.ap > 0.999
    assert tuple(whole.values) == coco_metric_names(150)
    assert whole.per_class[0].ar == 1
