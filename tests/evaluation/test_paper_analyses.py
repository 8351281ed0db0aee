"""Decoder layers, queries and equal objects: on cases whose outcome is known."""

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from detrkit import build_model
from detrkit.data.batching import collate
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle, draw_identical_shapes
from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.coco import samples_to_coco
from detrkit.evaluation.inference_loop import collect
from detrkit.evaluation.paper.analyses import analyse_queries
from detrkit.evaluation.paper.instance_capacity import Count, count_found
from detrkit.evaluation.paper.layers import score_layers, suppress
from detrkit.evaluation.paper.queries import map_queries
from detrkit.postprocess.boxes import to_detections
from tests.evaluation.cases import case, document, results


def test_nms_helps_a_layer_that_says_everything_twice_and_only_that() -> None:
    objects = [(1, 3, [200.0 * i, 0, 100, 100]) for i in range(4)]
    once = [(1, 3, box, 0.9) for _, _, box in objects]
    twice = [*once, *((1, 3, [box[0] + 5, *box[1:]], 0.95) for _, _, box in objects[:2])]
    truth = GroundTruth.read(document(objects))
    first, last = score_layers(
        truth, [DetectionArrays.from_coco(results(twice)), DetectionArrays.from_coco(results(once))], 100
    )
    assert (first.layer, last.layer) == (1, 2)
    assert first.ap50 < first.ap50_nms == pytest.approx(1)
    assert last.ap == last.ap_nms == pytest.approx(1)


def test_nms_spares_other_classes_other_photos_and_what_overlaps_little() -> None:
    box, moved = [0.0, 0, 100, 100], [40.0, 0, 100, 100]  # IoU 0.43
    found = [(1, 3, box, 0.5), (1, 7, box, 0.4), (2, 3, box, 0.3), (1, 3, moved, 0.2), (1, 3, box, 0.9)]
    assert suppress(case([], found, 2)).scores.tolist() == [0.4, 0.3, 0.2, 0.9]


def test_the_last_layer_is_what_a_detector_says_and_every_layer_is_collected() -> None:
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=3, num_queries=7).eval()
    samples = SyntheticShapes(3, 0, SyntheticStyle(size=64)).draw_all()
    batches = [collate(samples[:2]), collate(samples[2:])]
    layers = collect(model, batches, SHAPES, torch.device("cpu"), layers=(0, 1, 2))
    assert [len(found) for found in layers] == [21, 21, 21]
    assert not np.array_equal(layers[0].scores, layers[2].scores)
    with torch.inference_mode():
        predictions = model(batches[0].images, padding_invariant=True)
    expected = to_detections(predictions, batches[0].original_sizes, SHAPES.ids, SHAPES.names)
    coco = [entry for image_id, one in enumerate(expected, 1) for entry in one.to_coco(image_id)]
    assert layers[2].to_coco()[:14] == coco
    for photo in range(3):
        assert sorted(layers[2].queries[7 * photo : 7 * photo + 7].tolist()) == list(range(7))


def test_a_query_map_sorts_boxes_by_query() -> None:
    """Two queries on two photos of 1000 x 500: 0 says small boxes, 1 a wide one and a tall one."""
    truth = GroundTruth.read(document([], 2))
    found = DetectionArrays(
        image_ids=np.array([10, 10, 20, 20]),
        category_ids=np.full(4, 3),
        boxes=np.array([[0, 0, 800, 100], [100, 100, 200, 100], [0, 200, 200, 100], [400, 0, 100, 400.0]]),
        scores=np.array([0.9, 0.1, 0.3, 0.2]),
        queries=np.array([1, 0, 0, 1]),
    )
    chart = map_queries(truth, found, 2)
    np.testing.assert_allclose(chart.centres, [[[0.2, 0.3], [0.1, 0.5]], [[0.4, 0.1], [0.45, 0.4]]])
    assert chart.is_small.tolist() == [[True, True], [False, False]]
    assert chart.is_wide.tolist() == [[False, False], [True, False]]
    assert chart.is_portrait.tolist() == [[False, False], [False, True]]
    assert chart.most_used(1).tolist() == [1]


def test_objects_are_counted_by_how_many_there_are() -> None:
    """Of one object one is found; of two on each of two photos two and none, and a detection of nothing is shown."""
    objects = [(1, 3, [0.0, 0, 50, 50])] + [(p, 3, [100.0 * i, 0, 50, 50]) for p in (2, 3) for i in (0, 1)]
    found = [(1, 3, [0.0, 0, 50, 50], 0.9)] + [(2, 3, [100.0 * i, 0, 50, 50], 0.9) for i in (0, 1)]
    found += [(3, 3, [700.0, 0, 50, 50], 0.9), (3, 3, [0.0, 0, 50, 50], 0.1)]
    counts = count_found(case(objects, found, 3), 0.5)
    assert counts == (Count(1, 1.0, 1, 1, 1.0), Count(2, 1.0, 0, 2, 1.5))


def test_a_crowd_is_no_object_that_could_be_counted() -> None:
    objects = [(1, 3, [0.0, 0, 50, 50]), (1, 3, [300.0, 0, 200, 200])]
    counts = count_found(case(objects, [(1, 3, [0.0, 0, 50, 50], 0.9)], 1, crowds=(1,)), 0.5)
    assert counts == (Count(1, 1.0, 1, 1, 1.0),)


def test_equal_objects_are_drawn_in_cells_of_their_own() -> None:
    sample = draw_identical_shapes(2, 9, 3, default_rng(0), SyntheticStyle(size=96), image_id=5)
    boxes = sample.annotations.boxes
    assert boxes.shape == (9, 4)
    assert sample.annotations.labels.tolist() == [2] * 9
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 // 32).int()
    assert sorted(map(tuple, cells.tolist())) == [(x, y) for x in range(3) for y in range(3)]
    truth = GroundTruth.read(samples_to_coco([sample], SHAPES))
    perfect = DetectionArrays(np.full(9, 5), np.full(9, 3), truth.boxes, np.linspace(0.9, 0.1, 9), np.arange(9))
    assert count_found(EvalInput.of(truth, perfect), 0.45) == (Count(9, 5.0, 5, 5, 5.0),)


@pytest.mark.parametrize(
    ("are_proposals", "says", "never"),
    [(False, "specialise in places", "rank"), (True, "a rank and no place of its own", "specialise")],
)
def test_the_query_map_says_whose_queries_have_places(are_proposals: bool, says: str, never: str) -> None:
    found = results([(1, 3, [0.0, 0, 10, 10], 0.5), (1, 3, [50.0, 50, 10, 10], 0.4)])
    made = DetectionArrays.from_coco(found)
    made = DetectionArrays(made.image_ids, made.category_ids, made.boxes, made.scores, np.array([0, 1]))
    truth = GroundTruth.read(document([(1, 3, [0.0, 0, 10, 10])]))
    text = analyse_queries(truth, made, 2, are_proposals=are_proposals).chart.text
    assert says in text
    assert never not in text


def test_queries_that_are_not_part_of_the_answer_are_left_out() -> None:
    """With sigmoid scores, a query may answer twice on one photo, and never on another."""
    truth = GroundTruth.read({"images": [{"id": 1, "width": 10, "height": 10}, {"id": 2, "width": 10, "height": 20}],
                        "annotations": [], "categories": [{"id": 1, "name": "a"}]})  # fmt: skip
    found = DetectionArrays(
        image_ids=np.array([1, 1, 2]),
        category_ids=np.array([1, 1, 1]),
        boxes=np.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 5.0, 5.0]]),
        scores=np.array([0.9, 0.5, 0.4]),
        queries=np.array([0, 0, 1]),
    )
    chart = map_queries(truth, found, num_queries=3)
    assert chart.is_known.tolist() == [[True, False], [False, True], [False, False]]
    assert chart.centres[0, 0].tolist() == [0.2, 0.2]  # of the better answer
    assert chart.centres[1, 1].tolist() == [0.25, 0.125]
    assert chart.scores.tolist() == [[0.9, 0.0], [0.0, 0.4], [0.0, 0.0]]
    assert not chart.is_portrait[2].any()
