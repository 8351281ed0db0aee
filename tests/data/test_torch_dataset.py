"""Datasets of (image, target) in torchvision's form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import detrkit
from detrkit.data.dataset import DatasetSplits, concat_splits
from detrkit.data.splits import as_splits, load_dataset
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.data.torch_dataset import class_names_of
from detrkit.errors import ConfigError, DatasetError
from tests.datasets import write_coco

CLASSES = ["cat", "dog"]


class Pairs(Dataset[Any]):
    """Pairs held in memory."""

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


def gray(height: int = 30, width: int = 40, shade: int = 51) -> torch.Tensor:
    return torch.full((3, height, width), shade, dtype=torch.uint8)


def target(**changes: Any) -> dict[str, Any]:
    return {"boxes": torch.tensor([[5.0, 6, 20, 25], [0, 0, 10, 10]]), "labels": torch.tensor([1, 0]), **changes}


def splits_of(pairs: list[Any], **options: Any) -> DatasetSplits:
    return as_splits(Pairs(pairs), **{"classes": CLASSES, **options})


def test_load_dataset_is_public_and_returns_samples(tmp_path: Path) -> None:
    dataset = detrkit.load_dataset(write_coco(tmp_path, num_train=4, num_val=3))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (4, 3, 0)
    assert (dataset.format, dataset.categories.names) == ("coco", SHAPES.names)
    sample = dataset.train[1]
    assert sample.image.shape == (3, 64, 64)
    assert sample.image_id == dataset.train.records[1].image_id
    assert len(sample.annotations.labels) > 0
    assert repr(dataset) == "DatasetSplits(coco: 4 train, 3 val images, 3 classes)"
    with pytest.raises(IndexError):
        dataset.test[0]


def test_masks_are_loaded_if_asked_for(tmp_path: Path) -> None:
    from tests.datasets import write_panoptic

    dataset = detrkit.load_dataset(write_panoptic(tmp_path), masks=True)
    masks = dataset.train[0].annotations.masks
    assert masks is not None
    assert masks.shape[1:] == (20, 30)


@pytest.mark.parametrize(
    "image",
    [
        gray(),
        gray() / 255,
        Image.new("RGB", (40, 30), (51, 51, 51)),
        np.full((30, 40, 3), 51, np.uint8),
        np.full((30, 40), 51, np.uint8),
        torch.full((1, 30, 40), 51, dtype=torch.uint8),
    ],
    ids=["uint8", "float", "PIL", "array", "gray array", "gray tensor"],
)
def test_every_kind_of_image_becomes_uint8(image: Any) -> None:
    dataset = splits_of([(image, target(image_id=torch.tensor([7]), iscrowd=torch.tensor([0, 1])))])
    sample = dataset.train[0]
    assert torch.equal(sample.image, gray())
    assert sample.annotations.boxes.tolist() == [[5, 6, 20, 25]], "crowds are not trained on"
    assert sample.annotations.labels.tolist() == [1]


def test_a_fifth_is_set_aside_and_ids_are_kept() -> None:
    pairs = [(gray(), target(image_id=100 + index)) for index in range(10)]
    dataset = splits_of(pairs)
    assert (len(dataset.train), len(dataset.val)) == (8, 2)
    ids = dataset.train.records.image_ids + dataset.val.records.image_ids
    assert sorted(ids) == list(range(100, 110))
    assert dataset.val[1].image_id == dataset.val.records.image_ids[1]
    assert "2 of 10 images were set aside" in dataset.notes[0]
    assert dataset.categories.ids == (0, 1)


def test_repeated_image_ids_are_replaced_by_indices() -> None:
    dataset = splits_of([(gray(), target(image_id=5))] * 3, val=Pairs([(gray(), target())]))
    assert dataset.train.records.image_ids == [0, 1, 2]
    assert len(dataset.val) == 1


def test_masks_are_kept_as_run_lengths_for_evaluation() -> None:
    masks = torch.zeros(2, 30, 40, dtype=torch.uint8)
    masks[0, 6:25, 5:20] = 1
    masks[1, :10, :10] = 1
    split = splits_of([(gray(), target(masks=masks))] * 2, masks=True).val
    assert split.has_masks
    assert not split.has_segments
    assert torch.equal(split[0].annotations.masks, masks.bool())  # type: ignore[arg-type]
    from detrkit.data.segmentation import read_masks

    assert torch.equal(read_masks(split.records[0], np.arange(2)), masks.bool())


def test_own_datasets_of_samples_need_no_class_names() -> None:
    drawn = SyntheticShapes(3, 0, SyntheticStyle(size=48))
    dataset = as_splits(drawn, val=SyntheticShapes(2, 1, SyntheticStyle(size=48)), masks=True)
    assert dataset.categories == SHAPES
    assert torch.equal(dataset.train[1].image, drawn[1].image)
    assert torch.equal(dataset.train[1].annotations.boxes, drawn[1].annotations.boxes)


def test_splits_are_passed_through_and_val_replaced(tmp_path: Path) -> None:
    one, other = write_coco(tmp_path / "one"), write_coco(tmp_path / "other", num_val=2)
    dataset = load_dataset(one)
    assert as_splits(dataset) is dataset
    assert len(as_splits(one, val=other).val) == 2
    assert len(as_splits(str(one), val=load_dataset(other)).val) == 2


def test_folder_and_torch_dataset_can_be_concatenated(tmp_path: Path) -> None:
    folder = load_dataset(write_coco(tmp_path, num_train=2)).train
    drawn = as_splits(SyntheticShapes(3, 0, SyntheticStyle(size=48))).train
    both = concat_splits(folder, drawn)
    assert len(both) == 2 + len(drawn)
    assert torch.equal(both[2].image, drawn[0].image)
    assert torch.equal(both.select([2, 0])[1].image, folder[0].image)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (gray(), r"found a Tensor, expected a pair"),
        ((gray(), [{"bbox": [0, 0, 1, 1]}]), "wrap_dataset_for_transforms_v2"),
        ((gray(), {"boxes": []}), r"keys \['boxes'\], expected a dict with 'boxes' and 'labels'"),
        ((gray() * 1.0, target()), "float values up to 51, expected float in 0 .. 1.*divide by 255"),
        ((gray() / 255 - 1, target()), "values from -0.8 on.*leave out Normalize"),
        ((gray().permute(1, 2, 0), target()), r"the shape \(30, 40, 3\), expected \(C, H, W\)"),
        ((gray().int(), target()), "torch.int32, expected uint8"),
        (("a.jpg", target()), "found a str, expected a PIL image"),
        ((gray(), target(boxes=torch.tensor([5.0, 6, 20, 25]))), r"the shape \(4,\), expected \(N, 4\)"),
        ((gray(), target(boxes=torch.tensor([[20.0, 20, 9, 9], [0, 0, 4, 4]]))), r"boxes\[0\].*x y width height"),
        ((gray(), target(boxes=torch.tensor([[0.0, 0, 4, 4], [7, 7, 7, 9]]))), r"boxes\[1\].*drop empty boxes"),
        ((gray(), target(boxes=torch.tensor([[0.0, 0, 4, float("nan")]] * 2))), "not finite"),
        ((gray(), target(boxes=torch.tensor([[0.1, 0.1, 0.4, 0.5]] * 2))), "2 of 2 boxes lie within 0 .. 1"),
        ((gray(), target(boxes=torch.tensor([[10.0, 10, 90, 90]] * 2))), "2 of 2 boxes reach beyond their image"),
        ((gray(), target(labels=torch.tensor([1, 2]))), r"labels\[1\]: found 2, expected 0 to 1.*subtract 1"),
        ((gray(), target(labels=torch.tensor([0, 5]))), r"labels\[1\]: found 5, expected 0 to 1.*name all classes"),
        ((gray(), target(labels=torch.tensor([-1, 0]))), r"labels\[0\]: found -1"),
        ((gray(), target(labels=torch.tensor([0.0, 1.0]))), "found torch.float32, expected integers"),
        ((gray(), target(labels=torch.tensor([0]))), "found 1 labels for 2 boxes"),
        ((gray(), target(iscrowd=[1])), "iscrowd: found 1 values for 2 boxes"),
        ((gray(), target(iscrowd=[float("nan"), 0.0])), r"iscrowd: found \[nan, 0.0\], expected 0 or 1 for every box"),
        ((gray(), target(image_id="a.jpg")), "image_id: found a str"),
        ((gray(), target(image_id=[1, 2])), r"image_id: found \[1, 2\], expected one integer"),
    ],
)
def test_malformed_sample_is_named_with_its_index(pair: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        splits_of([pair])


@pytest.mark.parametrize(
    ("masks", "message"),
    [(None, "masks are missing"), (torch.zeros(2, 8, 8), r"shape \(2, 8, 8\), expected \(N, H, W\)")],
)
def test_malformed_masks_are_named(masks: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        splits_of([(gray(), target(masks=masks))], masks=True)


def test_boxes_of_another_format_are_rejected() -> None:
    from torchvision.tv_tensors import BoundingBoxes

    for format, is_right in (("XYXY", True), ("XYWH", False)):
        boxes = BoundingBoxes([[5, 6, 20, 25], [0, 0, 10, 10]], format=format, canvas_size=(30, 40))  # type: ignore[call-overload]
        if is_right:
            assert len(splits_of([(gray(), target(boxes=boxes))]).train) == 1
        else:
            with pytest.raises(DatasetError, match="expected XYXY in pixels"):
                splits_of([(gray(), target(boxes=boxes))])


def test_images_without_objects_are_accepted() -> None:
    empty = {"boxes": torch.zeros(0), "labels": []}
    assert len(splits_of([(gray(), empty), (gray(), target())]).train[0].annotations.labels) in (0, 2)


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("data", "classes", "message"),
    [
        (Pairs([]), None, "classes is missing"),
        (Pairs([]), "cat", "expected a list of class names"),
        (Pairs([]), ["background", "cat"], "the first class is the background"),
        (Pairs([]), ["cat", "cat"], "occurs twice"),
        (_Stream(), ["cat"], "map-style"),
        (object(), None, "found object, expected a dataset folder"),
    ],
)
def test_class_names_and_kind_of_dataset_are_checked(data: Any, classes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        class_names_of(data, classes)


def test_class_names_do_not_apply_to_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="applies to torch datasets only"):
        as_splits(write_coco(tmp_path), classes=["cat"])


def test_empty_dataset_is_rejected() -> None:
    with pytest.raises(DatasetError, match="Pairs: the dataset is empty"):
        splits_of([])


def test_validation_images_that_change_size_are_rejected() -> None:
    class Random(Pairs):
        def __getitem__(self, index: int) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            return gray(30 + self.calls), target()

    dataset = splits_of([(gray(), target())], val=Random([None]))
    with pytest.raises(DatasetError, match=r"without random transforms"):
        dataset.val[0]


def test_progress_counts_samples() -> None:
    seen: list[tuple[int, int]] = []
    report: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
    splits_of([(gray(), target())] * 3, progress=report)
    assert seen == [(1, 3), (2, 3), (3, 3)]
