"""Detections of overlapping tiles are merged into one per object."""

import itertools

import pytest
import torch

from detrkit.postprocess.merge import cut_sides, merge_views
from detrkit.structures import Detections

SIZE = (100, 180)  # height, width
LEFT, RIGHT = (0, 0, 100, 100), (80, 0, 180, 100)  # two tiles that overlap by 20 pixels
Row = tuple[list[float], float, int]


def detections(*rows: Row) -> Detections:
    return Detections(
        torch.tensor([row[0] for row in rows]).reshape(-1, 4).float(),
        torch.tensor([row[1] for row in rows]),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
        torch.tensor([row[2] + 10 for row in rows], dtype=torch.int64),
        tuple(f"class {row[2]}" for row in rows),
    )


def merged(left: list[Row], right: list[Row]) -> list[tuple[list[float], float, int]]:
    one = merge_views([detections(*left), detections(*right)], [LEFT, RIGHT], SIZE)
    assert one.class_names == tuple(f"class {label}" for label in one.labels.tolist())
    assert torch.equal(one.category_ids, one.labels + 10)
    scores = [round(score, 4) for score in one.scores.tolist()]
    return list(zip(one.boxes.tolist(), scores, one.labels.tolist(), strict=True))


def test_views_without_detections_are_merged_into_none() -> None:
    assert merged([], []) == []


def test_object_in_the_overlap_is_detected_once_with_its_highest_score() -> None:
    assert merged([([82, 10, 96, 30], 0.7, 1)], [([82, 10, 96, 32], 0.9, 1)]) == [([82, 10, 96, 32], 0.9, 1)]


def test_boxes_of_other_classes_or_positions_are_kept() -> None:
    rows = merged([([82, 10, 96, 30], 0.7, 1)], [([82, 10, 96, 30], 0.6, 2), ([82, 50, 96, 70], 0.5, 1)])
    assert [row[1:] for row in rows] == [(0.7, 1), (0.6, 2), (0.5, 1)]


def test_overlapping_boxes_of_one_view_are_both_kept() -> None:
    rows: list[Row] = [([10, 10, 30, 30], 0.9, 1), ([10, 10, 30, 31], 0.8, 1)]
    assert len(merged(rows, [])) == 2


def test_fragment_is_suppressed_by_the_whole_object_despite_a_higher_score() -> None:
    whole, fragment = [84.0, 10, 130, 50], [84.0, 10, 100, 50]
    assert merged([(fragment, 0.95, 1)], [(whole, 0.6, 1)]) == [(whole, pytest.approx(0.95), 1)]


def test_whole_box_inside_another_is_kept() -> None:
    """Only fragments are suppressed for being inside another box."""
    assert len(merged([([82, 10, 92, 20], 0.9, 1)], [([82, 10, 130, 50], 0.8, 1)])) == 2


def test_fragments_of_an_object_longer_than_the_overlap_are_joined() -> None:
    # 60 .. 130: 60 .. 100 in the left tile, 80 .. 130 in the right one
    rows = merged([([60, 10, 100, 50], 0.7, 1)], [([80, 12, 130, 50], 0.8, 1)])
    assert rows == [([60, 10, 130, 50], 0.8, 1)]


def test_fragments_with_different_intervals_along_the_border_are_not_joined() -> None:
    # IoU of the intervals 10 .. 50 and 40 .. 80: 10 / 70
    assert len(merged([([60, 10, 100, 50], 0.7, 1)], [([80, 40, 130, 80], 0.8, 1)])) == 2


def test_fragments_of_two_neighbors_at_the_border_are_not_joined() -> None:
    """Each is whole in one tile and cut in the other; fragments are suppressed before the joining step."""
    first, second = [70.0, 10, 98, 50], [82.0, 10, 120, 50]
    left: list[Row] = [(first, 0.9, 1), ([82, 10, 100, 50], 0.6, 1)]
    right: list[Row] = [([80, 10, 98, 50], 0.6, 1), (second, 0.8, 1)]
    assert [row[0] for row in merged(left, right)] == [first, second]


def test_object_across_four_tiles_is_joined_in_every_order() -> None:
    views = [(0, 0, 100, 100), (80, 0, 180, 100), (0, 80, 100, 180), (80, 80, 180, 180)]
    whole = torch.tensor([40.0, 50, 150, 140])
    for order in itertools.permutations(range(4)):
        fragments = []
        for number in order:
            view = torch.tensor(views[number], dtype=torch.float32)
            box = torch.cat([whole[:2].maximum(view[:2]), whole[2:].minimum(view[2:])])
            fragments.append(detections((box.tolist(), 0.5 + number / 10, 1)))
        one = merge_views(fragments, [views[number] for number in order], (180, 180))
        assert one.boxes.tolist() == [whole.tolist()]
        assert one.scores.tolist() == [pytest.approx(0.8)]


def test_object_across_three_tiles_in_a_row_is_joined() -> None:
    views = [(0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100)]
    boxes = [[50.0, 20, 100, 60], [80.0, 20, 180, 60], [160.0, 20, 220, 60]]
    one = merge_views([detections((box, 0.5, 1)) for box in boxes], views, (100, 260))
    assert one.boxes.tolist() == [[50, 20, 220, 60]]


def test_fragments_are_suppressed_by_the_detection_of_the_whole_image() -> None:
    views = [(0, 0, 180, 100), LEFT, RIGHT]
    whole = [30.0, 10, 150, 90]
    per_view = [
        detections((whole, 0.6, 1)),
        detections(([30, 10, 100, 90], 0.9, 1)),
        detections(([80, 10, 150, 90], 0.7, 1)),
    ]
    one = merge_views(per_view, views, SIZE)
    assert one.boxes.tolist() == [whole]
    assert one.scores.tolist() == [pytest.approx(0.9)]


def test_cut_sides_are_those_at_borders_inside_the_image() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 98.9, 50], [0, 0, 99.1, 50]])
    assert cut_sides(boxes, LEFT, SIZE).tolist() == [
        [False, False, True, False],
        [False, False, False, False],
        [False, False, True, False],
    ]
    assert not cut_sides(boxes, (0, 0, 180, 100), SIZE).any()


def test_detections_of_a_single_view_are_unchanged() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + torch.rand(40, 2, generator=generator) * 40], 1)
    scores = torch.rand(40, generator=generator).sort(descending=True).values
    labels = torch.randint(3, (40,), generator=generator)
    alone = Detections(boxes, scores, labels, labels, tuple(f"class {label}" for label in labels.tolist()))
    one = merge_views([alone], [(0, 0, 100, 100)], (100, 100))
    assert torch.equal(one.boxes, boxes)
    assert torch.equal(one.scores, scores)
    assert one.class_names == alone.class_names
