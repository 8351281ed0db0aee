"""What is answered: each query's best class, or the best pairs of query and class."""

import pytest
import torch

from detrkit.postprocess.boxes import best_of, to_detections
from detrkit.structures import Predictions

SIZES = torch.tensor([[100, 200]])
BOXES = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.1, 0.2]]])


def sigmoid_predictions(scores: list[list[float]], most: int | None) -> Predictions:
    logits = torch.logit(torch.tensor(scores))[None, None]
    return Predictions(logits, BOXES[None], class_scores="sigmoid", max_detections=most)


def test_best_pairs_by_hand() -> None:
    best = best_of(sigmoid_predictions([[0.9, 0.7, 0.1], [0.2, 0.8, 0.3]], most=4), SIZES)
    assert best.scores[0].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.3])
    assert best.labels.tolist() == [[0, 1, 1, 2]]
    assert best.queries.tolist() == [[0, 1, 0, 1]]
    first, second = [50.0, 25.0, 150.0, 75.0], [40.0, 40.0, 60.0, 60.0]
    torch.testing.assert_close(best.boxes[0], torch.tensor([first, second, first, second]))


def test_no_more_pairs_are_answered_than_there_are() -> None:
    assert best_of(sigmoid_predictions([[0.9, 0.7], [0.2, 0.8]], most=100), SIZES).scores.shape == (1, 4)
    assert best_of(sigmoid_predictions([[0.9, 0.7], [0.2, 0.8]], most=None), SIZES).scores.shape == (1, 2)


def test_with_softmax_each_query_answers_once() -> None:
    logits = torch.tensor([[0.9, 0.06, 0.04], [0.1, 0.2, 0.7]]).log()[None, None]
    best = best_of(Predictions(logits, BOXES[None]), SIZES)
    assert best.scores[0].tolist() == pytest.approx([0.9, 0.2])
    assert best.labels.tolist() == [[0, 1]]
    assert best.queries.tolist() == [[0, 1]]


def test_a_query_may_say_two_things() -> None:
    found = to_detections(
        sigmoid_predictions([[0.9, 0.7], [0.2, 0.1]], most=4), [(100, 200)], [3, 18], ["cat", "dog"], threshold=0.5
    )[0]
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 1]
    assert found.category_ids.tolist() == [3, 18]
    assert torch.equal(found.boxes[0], found.boxes[1])


def test_scores_follow_their_kind() -> None:
    logits = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    boxes = BOXES[None, :, :1]
    softmax, sigmoid = Predictions(logits, boxes), Predictions(logits, boxes, class_scores="sigmoid")
    assert softmax.probabilities.shape == (1, 1, 2)
    assert softmax.layer_no_object[0, 0, 0] == logits.softmax(-1)[0, 0, 0, 2]
    torch.testing.assert_close(sigmoid.probabilities, logits[0].sigmoid())
    torch.testing.assert_close(sigmoid.layer_no_object[0, 0, 0], 1 - logits[0, 0, 0, 2].sigmoid())
