"""Noise of denoising queries: bounds, and dependence on seed, step and image only."""

import torch

from detrkit.config.model import ModelConfig
from detrkit.config.training import TrainingConfig
from detrkit.models.presets import preset_config
from detrkit.structures import Batch, Target
from detrkit.training.denoising import draw, move, move_corners, noised_boxes

CONTRASTIVE = TrainingConfig(denoising=4, contrastive_denoising=True, box_noise_scale=0.4, label_noise_ratio=0.5)

MODEL = ModelConfig(num_classes=5)
SELECTED = CONTRASTIVE.replace(denoising=0, denoising_queries=10, box_noise="corners", box_noise_scale=1.0)


def batch(counts: list[int], image_ids: list[int]) -> Batch:
    targets = [
        Target(torch.full((count, 4), 0.4) + 0.01 * torch.arange(count)[:, None], torch.arange(count))
        for count in counts
    ]
    sizes = [(8, 8)] * len(counts)
    images, mask = torch.zeros(len(counts), 3, 8, 8), torch.zeros(len(counts), 8, 8, dtype=torch.bool)
    return Batch(images, mask, targets, image_ids, sizes, sizes)


def test_moved_boxes_computed_by_hand() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.4])
    moved = move(box, torch.tensor([0.5, -1.0, 0.5, -0.25]))
    torch.testing.assert_close(moved, torch.tensor([0.55, 0.3, 0.3, 0.3]))
    torch.testing.assert_close(move(box, torch.tensor([0.0, 0.0, -2.0, 9.0])), torch.tensor([0.5, 0.5, 0.02, 1.0]))
    torch.testing.assert_close(
        move(torch.tensor([0.0, 1.0, 0.2, 0.4]), torch.tensor([-1.0, 1.0, 0, 0]))[:2], torch.tensor([0.0, 1.0])
    )


def test_noise_of_objects_is_below_the_scale_and_of_negatives_above() -> None:
    shares, _ = draw(500, CONTRASTIVE.auxiliary_queries, 4, 5, seed=0)
    objects, negatives = shares[:, 0].abs(), shares[:, 1].abs()
    assert objects.max() <= 0.4 <= negatives.min()
    assert negatives.max() <= 0.8
    assert objects.max() > 0.39
    assert objects.min() < 0.01
    assert abs(float(shares.sign().mean())) < 0.05


def test_fraction_of_labels_is_drawn_at_random() -> None:
    _, others = draw(2000, CONTRASTIVE.auxiliary_queries, 4, 5, seed=0)
    assert 0.48 < float((others >= 0).float().mean()) < 0.52
    assert set(others.unique().tolist()) == {-1, 0, 1, 2, 3, 4}
    _, kept = draw(50, CONTRASTIVE.replace(label_noise_ratio=0.0).auxiliary_queries, 4, 5, seed=0)
    assert bool((kept == -1).all())


def test_order_of_copies_objects_and_negatives() -> None:
    still = CONTRASTIVE.replace(denoising=2, box_noise_scale=0.0, label_noise_ratio=0.0)
    noised = noised_boxes(batch([1, 2, 0], [7, 8, 9]), still, MODEL, step=0)
    assert (noised.copies, noised.size) == (2, 4)
    assert noised.labels[1].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    torch.testing.assert_close(noised.boxes[1], torch.tensor([0.4, 0.41]).repeat(4)[:, None].expand(-1, 4))
    assert noised.fillers is not None
    # the image without objects is not masked: attention needs at least one key
    assert noised.fillers.tolist() == [[False, True, False, True], [False] * 4, [False] * 4]


def test_batch_without_objects_keeps_one_query() -> None:
    noised = noised_boxes(batch([0, 0], [7, 8]), CONTRASTIVE, MODEL, step=0)
    assert noised.boxes.shape == (2, 4 * 2 * 1, 4)
    assert noised.fillers is None


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    together = noised_boxes(batch([2, 3], [7, 8]), CONTRASTIVE, MODEL, step=3)
    alone = noised_boxes(batch([2], [7]), CONTRASTIVE, MODEL, step=3)
    in_batch = together.boxes[0].view(4, 2, 3, 4)[:, :, :2]
    assert torch.equal(in_batch, alone.boxes[0].view(4, 2, 2, 4))
    later = noised_boxes(batch([2], [7]), CONTRASTIVE, MODEL, step=4)
    other = noised_boxes(batch([2], [8]), CONTRASTIVE, MODEL, step=3)
    assert not torch.equal(later.boxes, alone.boxes)
    assert not torch.equal(other.boxes, alone.boxes)
    seeded = noised_boxes(batch([2], [7]), CONTRASTIVE.replace(seed=1), MODEL, step=3)
    assert not torch.equal(seeded.boxes, alone.boxes)


def test_moved_corners_computed_by_hand() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.4])  # corners 0.4, 0.3, 0.6, 0.7; half sides 0.1 and 0.2
    moved = move_corners(box, torch.tensor([0.5, -1.0, 0.0, 1.0]), ordered=True)
    torch.testing.assert_close(moved, torch.tensor([0.525, 0.5, 0.15, 0.8]))
    outside = move_corners(torch.tensor([0.1, 0.9, 0.2, 0.2]), torch.tensor([-1.0, 0.0, 0.0, 1.0]), ordered=True)
    torch.testing.assert_close(outside, torch.tensor([0.1, 0.9, 0.2, 0.2]))


def test_corners_that_have_passed_each_other_give_no_size_in_rtdetr_and_that_between_them_in_dfine() -> None:
    box, shares = torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([2.0, 0.0, -1.0, 0.0])
    # left moves from 0.4 to 0.6, right from 0.6 to 0.5
    torch.testing.assert_close(move_corners(box, shares, ordered=True), torch.tensor([0.55, 0.5, 0.0, 0.2]))
    torch.testing.assert_close(move_corners(box, shares, ordered=False), torch.tensor([0.55, 0.5, 0.1, 0.2]))


def test_number_of_copies_fills_the_queries_of_the_image_with_the_most_objects() -> None:
    settings = TrainingConfig(denoising_queries=100).auxiliary_queries
    assert [settings.num_copies(count) for count in (0, 1, 7, 33, 51, 120)] == [1, 100, 14, 3, 1, 1]
    noised = noised_boxes(batch([3, 1], [7, 8]), SELECTED, preset_config("rtdetr-r18", num_classes=5), step=0)
    assert (noised.copies, noised.size) == (3, 6)


def test_padding_of_selected_queries_has_no_class_and_no_size_and_is_seen() -> None:
    noised = noised_boxes(batch([2, 1], [7, 8]), SELECTED, preset_config("dfine-n", num_classes=5), step=0)
    assert noised.fillers is None
    is_padding = torch.tensor([False, True] * 10)
    assert (noised.labels[1, is_padding] == 5).all()
    assert (noised.labels[1, ~is_padding] < 5).all()
    assert (noised.boxes[1, is_padding] == 0).all()
    assert (noised.labels[0] < 5).all()


def test_batch_of_selected_queries_without_objects_keeps_placeholders() -> None:
    noised = noised_boxes(batch([0, 0], [7, 8]), SELECTED, preset_config("dfine-n", num_classes=5), step=0)
    assert noised.labels.shape == (2, 2)
    assert bool((noised.labels == 5).all())


def test_given_noise_replaces_the_drawn_one() -> None:
    shares = torch.zeros(1, 2, 1, 4)
    shares[0, 1, 0, 0] = 1.0
    labels = torch.tensor([[[-1], [4]]])
    settings = SELECTED.replace(denoising_queries=1)
    noised = noised_boxes(batch([1], [7]), settings, preset_config("dfine-n", num_classes=5), 0, [(shares, labels)])
    assert noised.labels.tolist() == [[0, 4]]
    torch.testing.assert_close(noised.boxes[0, 0], torch.full((4,), 0.4))
    torch.testing.assert_close(noised.boxes[0, 1], torch.tensor([0.5, 0.4, 0.2, 0.4]))
