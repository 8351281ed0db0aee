"""Images that are in two splits are found by path and by content."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from detrkit.data.checks.overlap import find_shared_images
from detrkit.data.convert import shard_dataset
from detrkit.data.splits import as_splits, load_dataset
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from tests.datasets import write_coco


def copy_image(folder: Path, number: int, name: str, how: str) -> None:
    """Put a training image into the validation split, under another name."""
    source, target = folder / "train2017" / f"{number}.png", folder / "val2017" / name
    target.unlink(missing_ok=True)
    if how == "symlink":
        target.symlink_to(source)
    elif how == "hard link":
        os.link(source, target)
    else:
        shutil.copy(source, target)
    path = folder / "annotations" / "instances_val2017.json"
    document = json.loads(path.read_text())
    if name not in [entry["file_name"] for entry in document["images"]]:
        document["images"].append({"id": 1000 + number, "file_name": name, "height": 64, "width": 64})
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("how", ["copy", "symlink", "hard link"])
def test_copies_are_found_whatever_their_names(tmp_path: Path, how: str) -> None:
    folder = write_coco(tmp_path / "shapes")
    data = load_dataset(folder)
    assert find_shared_images(data.train, data.val) == []
    copy_image(folder, 2, "other-name.png", how)
    copy_image(folder, 3, "2.png", how)
    data = load_dataset(folder)
    shared = [data.val.records.path(index).name for index in find_shared_images(data.train, data.val)]
    assert sorted(shared) == ["2.png", "other-name.png"]


def test_the_same_folder_is_found(tmp_path: Path) -> None:
    data = load_dataset(write_coco(tmp_path / "shapes"))
    assert find_shared_images(data.train, data.train) == [0, 1, 2, 3]


def test_images_of_equal_size_and_beginning_are_told_apart(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes", 1, 1)
    for split, shade in (("train2017", 0), ("val2017", 255)):
        image = Image.new("RGB", (64, 200))  # uncompressed, so both have the same size and the same first 16 KB
        image.putpixel((63, 0), (shade, 0, 0))  # bitmaps start with their last row
        image.save(folder / split / "1.png", format="BMP")
        path = folder / "annotations" / f"instances_{split}.json"
        document = json.loads(path.read_text())
        document["images"][0]["height"] = 200
        path.write_text(json.dumps(document))
    data = load_dataset(folder)
    first, second = ((folder / split / "1.png").read_bytes() for split in ("train2017", "val2017"))
    assert (len(first), first[:16384]) == (len(second), second[:16384])
    assert find_shared_images(data.train, data.val) == []


def test_images_in_shards_are_compared(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes")
    copy_image(folder, 2, "copy.png", "copy")
    shard_dataset(folder, tmp_path / "shards")
    data = load_dataset(tmp_path / "shards")
    assert len(find_shared_images(data.train, data.val)) == 1


def test_torch_dataset_is_compared_with_itself_only() -> None:
    shapes = SyntheticShapes(4, 0, SyntheticStyle(size=48))
    data = as_splits(shapes)
    assert find_shared_images(data.train, data.val) == []
    again = as_splits(shapes, val=shapes)
    assert find_shared_images(again.train, again.val) == [0, 1, 2, 3]
    other = as_splits(shapes, val=SyntheticShapes(2, 1, SyntheticStyle(size=48)))
    assert find_shared_images(other.train, other.val) == []
    part = as_splits(shapes, val=torch.utils.data.Subset(shapes, [0]), classes=list(data.categories.names))
    assert find_shared_images(part.train, part.val) == []


def test_missing_files_are_not_shared(tmp_path: Path) -> None:
    data = load_dataset(write_coco(tmp_path / "shapes"))
    for path in (tmp_path / "shapes").rglob("*.png"):
        path.unlink()
    assert find_shared_images(data.train, data.val) == []
