"""Detections of softmax scores (best class per query) and of sigmoid scores (best pairs of query and class)."""

import pytest
import torch

from detrkit.postprocess.boxes import to_detections, top_detections
from detrkit.structures import Predictions

SIZES = torch.tensor([[100, 200]])
BOXES = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.1, 0.2]]])


def sigmoid_predictions(scores: list[list[float]], max_detections: int | None) -> Predictions:
    logits = torch.logit(torch.tensor(scores))[None, None]
    return Predictions(logits, BOXES[None], class_scores="sigmoid", max_detections=max_detections)


def test_sigmoid_detections_are_the_best_pairs() -> None:
    best = top_detections(sigmoid_predictions([[0.9, 0.7, 0.1], [0.2, 0.8, 0.3]], max_detections=4), SIZES)
    assert best.scores[0].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.3])
    assert best.labels.tolist() == [[0, 1, 1, 2]]
    assert best.queries.tolist() == [[0, 1, 0, 1]]
    first, second = [50.0, 25.0, 150.0, 75.0], [40.0, 40.0, 60.0, 60.0]
    torch.testing.assert_close(best.boxes[0], torch.tensor([first, second, first, second]))


def test_number_of_sigmoid_detections_is_limited_by_the_number_of_pairs() -> None:
    assert top_detections(sigmoid_predictions([[0.9, 0.7], [0.2, 0.8]], max_detections=100), SIZES).scores.shape == (
        1,
        4,
    )
    assert top_detections(sigmoid_predictions([[0.9, 0.7], [0.2, 0.8]], max_detections=None), SIZES).scores.shape == (
        1,
        2,
    )


def test_softmax_detections_are_the_best_class_of_every_query() -> None:
    logits = torch.tensor([[0.9, 0.06, 0.04], [0.1, 0.2, 0.7]]).log()[None, None]
    best = top_detections(Predictions(logits, BOXES[None]), SIZES)
    assert best.scores[0].tolist() == pytest.approx([0.9, 0.2])
    assert best.labels.tolist() == [[0, 1]]
    assert best.queries.tolist() == [[0, 1]]


def test_two_classes_of_one_query_are_two_detections_with_sigmoid_scores() -> None:
    detections = to_detections(
        sigmoid_predictions([[0.9, 0.7], [0.2, 0.1]], max_detections=4),
        [(100, 200)],
        [3, 18],
        ["cat", "dog"],
        threshold=0.5,
    )[0]
    assert detections.class_names == ("cat", "dog")
    assert detections.labels.tolist() == [0, 1]
    assert detections.category_ids.tolist() == [3, 18]
    assert torch.equal(detections.boxes[0], detections.boxes[1])


def test_probabilities_are_softmax_or_sigmoid_of_the_logits() -> None:
    logits = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    boxes = BOXES[None, :, :1]
    softmax, sigmoid = Predictions(logits, boxes), Predictions(logits, boxes, class_scores="sigmoid")
    assert softmax.probabilities.shape == (1, 1, 2)
    assert softmax.layer_no_object[0, 0, 0] == logits.softmax(-1)[0, 0, 0, 2]
    torch.testing.assert_close(sigmoid.probabilities, logits[0].sigmoid())
    torch.testing.assert_close(sigmoid.layer_no_object[0, 0, 0], 1 - logits[0, 0, 0, 2].sigmoid())
