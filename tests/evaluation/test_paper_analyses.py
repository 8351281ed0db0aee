"""Analyses of the DETR paper on cases with a known outcome: decoder layers, queries, instance capacity."""

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from detrkit import build_model
from detrkit.data.batching import collate
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle, draw_identical_shapes
from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.ground_truth import samples_to_coco
from detrkit.evaluation.inference_loop import run_inference
from detrkit.evaluation.paper.instance_capacity import InstanceCount, count_detected
from detrkit.evaluation.paper.layers import evaluate_layers, nms
from detrkit.evaluation.paper.queries import analyse_queries, map_queries
from detrkit.postprocess.boxes import to_detections
from tests.evaluation.cases import case, document, results


def test_nms_improves_only_a_layer_with_duplicates() -> None:
    objects = [(1, 3, [200.0 * i, 0, 100, 100]) for i in range(4)]
    once = [(1, 3, box, 0.9) for _, _, box in objects]
    twice = [*once, *((1, 3, [box[0] + 5, *box[1:]], 0.95) for _, _, box in objects[:2])]
    ground_truth = GroundTruth.from_coco(document(objects))
    first, last = evaluate_layers(
        ground_truth, [DetectionArrays.from_coco(results(twice)), DetectionArrays.from_coco(results(once))], 100
    )
    assert (first.layer, last.layer) == (1, 2)
    assert first.ap50 < first.ap50_nms == pytest.approx(1)
    assert last.ap == last.ap_nms == pytest.approx(1)


def test_nms_keeps_other_classes_other_images_and_small_overlaps() -> None:
    box, moved = [0.0, 0, 100, 100], [40.0, 0, 100, 100]  # IoU 0.43
    detections = [(1, 3, box, 0.5), (1, 7, box, 0.4), (2, 3, box, 0.3), (1, 3, moved, 0.2), (1, 3, box, 0.9)]
    assert nms(case([], detections, 2)).scores.tolist() == [0.4, 0.3, 0.2, 0.9]


def test_detections_of_every_layer_are_returned_and_the_last_ones_are_the_detector_s() -> None:
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=3, num_queries=7).eval()
    samples = SyntheticShapes(3, 0, SyntheticStyle(size=64)).draw_all()
    batches = [collate(samples[:2]), collate(samples[2:])]
    layers = run_inference(model, batches, SHAPES, torch.device("cpu"), layers=(0, 1, 2))
    assert [len(detections) for detections in layers] == [21, 21, 21]
    assert not np.array_equal(layers[0].scores, layers[2].scores)
    with torch.inference_mode():
        model.padding_invariant = True
        predictions = model(batches[0].images)
    expected = to_detections(predictions, batches[0].original_sizes, SHAPES.ids, SHAPES.names)
    coco = [entry for image_id, one in enumerate(expected, 1) for entry in one.to_coco(image_id)]
    assert layers[2].to_coco()[:14] == coco
    for image in range(3):
        assert sorted(layers[2].queries[7 * image : 7 * image + 7].tolist()) == list(range(7))


def test_query_map_arranges_boxes_by_query() -> None:
    """Two queries on two images of 1000 x 500 px: 0 predicts small boxes, 1 a wide one and a tall one."""
    ground_truth = GroundTruth.from_coco(document([], 2))
    detections = DetectionArrays(
        image_ids=np.array([10, 10, 20, 20]),
        category_ids=np.full(4, 3),
        boxes=np.array([[0, 0, 800, 100], [100, 100, 200, 100], [0, 200, 200, 100], [400, 0, 100, 400.0]]),
        scores=np.array([0.9, 0.1, 0.3, 0.2]),
        queries=np.array([1, 0, 0, 1]),
    )
    query_map = map_queries(ground_truth, detections, 2)
    np.testing.assert_allclose(query_map.centres, [[[0.2, 0.3], [0.1, 0.5]], [[0.4, 0.1], [0.45, 0.4]]])
    assert query_map.is_small.tolist() == [[True, True], [False, False]]
    assert query_map.is_wide.tolist() == [[False, False], [True, False]]
    assert query_map.is_tall.tolist() == [[False, False], [False, True]]
    assert query_map.highest_scoring(1).tolist() == [1]


def test_detected_objects_are_counted_by_the_number_of_objects_in_the_image() -> None:
    """The only object of an image is detected; of two on each of two images both and none, with a false positive."""
    objects = [(1, 3, [0.0, 0, 50, 50])] + [(p, 3, [100.0 * i, 0, 50, 50]) for p in (2, 3) for i in (0, 1)]
    detections = [(1, 3, [0.0, 0, 50, 50], 0.9)] + [(2, 3, [100.0 * i, 0, 50, 50], 0.9) for i in (0, 1)]
    detections += [(3, 3, [700.0, 0, 50, 50], 0.9), (3, 3, [0.0, 0, 50, 50], 0.1)]
    counts = count_detected(case(objects, detections, 3), 0.5)
    assert counts == (InstanceCount(1, 1.0, 1, 1, 1.0), InstanceCount(2, 1.0, 0, 2, 1.5))


def test_crowds_are_not_counted() -> None:
    objects = [(1, 3, [0.0, 0, 50, 50]), (1, 3, [300.0, 0, 200, 200])]
    counts = count_detected(case(objects, [(1, 3, [0.0, 0, 50, 50], 0.9)], 1, crowds=(1,)), 0.5)
    assert counts == (InstanceCount(1, 1.0, 1, 1, 1.0),)


def test_identical_objects_are_drawn_in_separate_cells() -> None:
    sample = draw_identical_shapes(2, 9, 3, default_rng(0), SyntheticStyle(size=96), image_id=5)
    boxes = sample.annotations.boxes
    assert boxes.shape == (9, 4)
    assert sample.annotations.labels.tolist() == [2] * 9
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 // 32).int()
    assert sorted(map(tuple, cells.tolist())) == [(x, y) for x in range(3) for y in range(3)]
    ground_truth = GroundTruth.from_coco(samples_to_coco([sample], SHAPES))
    perfect = DetectionArrays(np.full(9, 5), np.full(9, 3), ground_truth.boxes, np.linspace(0.9, 0.1, 9), np.arange(9))
    assert count_detected(EvalInput.align(ground_truth, perfect), 0.45) == (InstanceCount(9, 5.0, 5, 5, 5.0),)


@pytest.mark.parametrize(
    ("are_proposals", "included", "excluded"),
    [(False, "specialise in positions", "rank"), (True, "a rank but no position of its own", "specialise")],
)
def test_query_map_explains_learned_queries_and_proposals(are_proposals: bool, included: str, excluded: str) -> None:
    detections = results([(1, 3, [0.0, 0, 10, 10], 0.5), (1, 3, [50.0, 50, 10, 10], 0.4)])
    made = DetectionArrays.from_coco(detections)
    made = DetectionArrays(made.image_ids, made.category_ids, made.boxes, made.scores, np.array([0, 1]))
    ground_truth = GroundTruth.from_coco(document([(1, 3, [0.0, 0, 10, 10])]))
    text = analyse_queries(ground_truth, made, 2, are_proposals=are_proposals).figure.text
    assert included in text
    assert excluded not in text


def test_query_map_is_undefined_where_a_query_is_not_in_the_top_k() -> None:
    """With sigmoid scores, a query may have two detections on one image and none on another."""
    images = [{"id": 1, "width": 10, "height": 10}, {"id": 2, "width": 10, "height": 20}]
    categories = [{"id": 1, "name": "a"}]
    ground_truth = GroundTruth.from_coco({"images": images, "annotations": [], "categories": categories})
    detections = DetectionArrays(
        image_ids=np.array([1, 1, 2]),
        category_ids=np.array([1, 1, 1]),
        boxes=np.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 5.0, 5.0]]),
        scores=np.array([0.9, 0.5, 0.4]),
        queries=np.array([0, 0, 1]),
    )
    query_map = map_queries(ground_truth, detections, num_queries=3)
    assert query_map.is_defined.tolist() == [[True, False], [False, True], [False, False]]
    assert query_map.centres[0, 0].tolist() == [0.2, 0.2]  # of the higher score
    assert query_map.centres[1, 1].tolist() == [0.25, 0.125]
    assert query_map.scores.tolist() == [[0.9, 0.0], [0.0, 0.4], [0.0, 0.0]]
    assert not query_map.is_tall[2].any()
