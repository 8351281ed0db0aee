"""Shards: round trip, resuming, damage."""

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from detrkit.data.checks.examine import examine
from detrkit.data.convert import write_dataset
from detrkit.data.dataset import DetectionDataset
from detrkit.data.formats.shards import write_shards
from detrkit.data.samplers import BatchGrouping
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError
from tests.datasets import write_coco


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco", num_train=7, num_val=3)


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    write_shards(load_dataset(folder).splits, tmp_path / "shards", images_per_shard=3)
    return tmp_path / "shards"


def check_same(shards: Path, folder: Path) -> None:
    packed, original = load_dataset(shards), load_dataset(folder)
    assert packed.format == "shards"
    for name in ("train", "val"):
        split, expected = packed.splits[name], original.splits[name]
        assert split.categories == expected.categories
        index_of = {image_id: index for index, image_id in enumerate(expected.records.image_ids)}
        assert sorted(split.records.image_ids) == sorted(index_of)
        for index, record in enumerate(split.records):
            expected_index = index_of[record.image_id]
            for field in ("boxes", "labels", "is_crowd", "size"):
                assert np.array_equal(getattr(record, field), getattr(expected.records[expected_index], field))
            assert torch.equal(split[index].image, expected[expected_index].image)


def test_shards_restore_all_records(shards: Path, folder: Path) -> None:
    assert sorted(path.name for path in shards.glob("*.tar")) == [
        *(f"train-0000{number}.tar" for number in range(3)),
        "val-00000.tar",
    ]
    check_same(shards, folder)
    train = load_dataset(shards).train.records
    assert train.image_ids != sorted(train.image_ids), "images are packed in random order"
    grouping = BatchGrouping.from_records(train, by_aspect_ratio=False)
    assert grouping.shard is not None
    assert grouping.shard.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_shards_without_index_are_scanned(shards: Path, folder: Path) -> None:
    for index in shards.glob("*.index"):
        index.unlink()
    check_same(shards, folder)


def test_shard_has_the_webdataset_layout(shards: Path) -> None:
    with tarfile.open(shards / "val-00000.tar") as opened:
        names = opened.getnames()
        assert [Path(name).suffix for name in names] == [".png", ".json"] * 3
        content = json.load(opened.extractfile(names[1]))  # type: ignore[arg-type]
    assert set(content) == {"image_id", "file_name", "height", "width", "boxes_xyxy", "category_ids", "is_crowd"}


def test_interrupted_writing_is_resumed(shards: Path, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    (shards / "train-00001.tar").unlink()
    (shards / "val.index").unlink()
    kept = (shards / "train-00000.tar").stat().st_mtime_ns
    assert write_shards(load_dataset(folder).splits, shards, images_per_shard=3) == 3
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    assert (shards / "train-00000.tar").stat().st_mtime_ns == kept


def test_shards_of_other_annotations_are_rejected(shards: Path, folder: Path) -> None:
    splits = load_dataset(folder).splits
    splits["train"].records.arrays.boxes[0] += 1
    with pytest.raises(DatasetError, match="another dataset"):
        write_shards(splits, shards, images_per_shard=3)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": "detrkit-shards-2"}', '{"format": "detrkit-shards-1"}', "\ud800"]
)
def test_malformed_plan_is_rejected(shards: Path, content: str) -> None:
    (shards / "shards.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(DatasetError, match=r"shards\.json"):
        load_dataset(shards)


def test_folder_with_other_settings_or_content_is_rejected(shards: Path, folder: Path, tmp_path: Path) -> None:
    splits = load_dataset(folder).splits
    with pytest.raises(DatasetError, match="other settings"):
        write_shards(splits, shards, images_per_shard=4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(DatasetError, match="is not overwritten"):
        write_shards(splits, tmp_path / "full")


def test_damaged_shards_are_rejected(shards: Path) -> None:
    shard = shards / "train-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"train-00001\.tar: ends at"):
        load_dataset(shards)
    (shards / "train.index").unlink()
    with pytest.raises(DatasetError, match=r"train-00001\.tar: not readable as a tar file"):
        load_dataset(shards)
    shard.unlink()
    with pytest.raises(DatasetError, match="found 4 train images, expected 7"):
        load_dataset(shards)
    for path in shards.glob("val*"):
        path.unlink()
    with pytest.raises(DatasetError, match="shards are missing"):
        load_dataset(shards)


def test_missing_shard_of_an_index_is_rejected(shards: Path) -> None:
    (shards / "train-00002.tar").unlink()
    with pytest.raises(DatasetError, match=r"the shard train-00002\.tar"):
        load_dataset(shards)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("spans", torch.full((7, 2), -1)),
        ("spans", torch.tensor([[1, 2**63 - 1]] * 7)),
        ("object_ends", torch.full((8,), 10**9)),
        ("path_ends", torch.arange(8).flip(0)),
        ("labels", torch.full((100,), 7, dtype=torch.int32)),
        ("boxes", torch.zeros(3, 4)),
        ("sizes", torch.zeros(7, 2, dtype=torch.int64)),
        ("image_ids", torch.zeros(7)),
    ],
)
def test_malformed_index_is_rejected(shards: Path, column: str, value: torch.Tensor) -> None:
    path = shards / "train.index"
    columns = load_file(path)
    header = {"detrkit": json.dumps({"format": "detrkit-shards-1", "categories": [{"id": 1, "name": "a"}]})}
    save_file({**columns, column: value}, path, metadata=header)
    with pytest.raises(DatasetError, match=r"train\.index: not readable as an index"):
        load_dataset(shards)
    path.write_bytes(b"not an index")
    with pytest.raises(DatasetError, match="remove it"):
        load_dataset(shards)


def test_names_in_a_shard_cannot_lead_out_of_it(shards: Path, tmp_path: Path) -> None:
    (shards / "val.index").unlink()
    image = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (8, 6)).save(image, "PNG")
    description = {"image_id": 1, "height": 6, "width": 8, "boxes_xyxy": [], "category_ids": [], "is_crowd": []}
    with tarfile.open(shards / "val-00000.tar", "w") as opened:
        for name, content in (("../../x.png", image.getvalue()), ("../../x.json", json.dumps(description).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("y.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    plan = json.loads((shards / "shards.json").read_text())
    (shards / "shards.json").write_text(json.dumps({**plan, "images": {"train": 7, "val": 1}}))
    before = sorted(tmp_path.rglob("*"))
    split = load_dataset(shards).val
    assert split.records[0].path == shards / "val-00000.tar" / "x.png"
    assert DetectionDataset(split)[0].image.shape == (3, 6, 8)
    assert sorted(tmp_path.rglob("*")) == before


def test_malformed_annotations_are_left_out_and_reported(shards: Path) -> None:
    (shards / "val.index").unlink()
    bad: list[bytes] = [b"{", b"[]", b'{"image_id": 1}', b'{"image_id":1,"height":6,"width":8,"boxes_xyxy":[[1,2,NaN,4]],'
                        b'"category_ids":[0],"is_crowd":[0]}']  # fmt: skip
    with tarfile.open(shards / "val-00000.tar", "w") as opened:
        for number, content in enumerate(bad):
            for name, text in ((f"{number}.png", b"x"), (f"{number}.json", content)):
                member = tarfile.TarInfo(name)
                member.size = len(text)
                opened.addfile(member, io.BytesIO(text))
    faults: list[DatasetError] = []
    load_dataset(shards, on_error=faults.append)
    assert len(faults) == len(bad) + 1
    assert all("val-00000.tar: " in str(fault) for fault in faults[:-1])
    assert "found 0 val images, expected 3" in str(faults[-1])


def test_shards_are_examined_and_converted(shards: Path, tmp_path: Path) -> None:
    diagnosis = examine(shards, workers=0, cache=False)
    assert (diagnosis.format, not diagnosis.num_errors, diagnosis.unusable) == ("shards", True, frozenset())
    write_dataset(diagnosis.dataset.splits, tmp_path / "yolo", "yolo")
    again = load_dataset(tmp_path / "yolo")
    assert len(again.train.records) == 7
    assert sum(len(one.labels) for one in again.train.records) == sum(
        len(one.labels) for one in diagnosis.dataset.train.records
    )


def test_random_damage_to_a_shard_raises_a_dataset_error_or_nothing(shards: Path) -> None:
    (shards / "val.index").unlink()
    path = shards / "val-00000.tar"
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        header = int(random.integers(len(content) // 512)) * 512
        for place in random.integers(header, min(header + 512, len(content)), 6):
            content[place] = random.integers(256)
        path.write_bytes(content)
        with suppress(DatasetError):
            assert load_dataset(shards).val.records[0].span is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: columns["object_ends"].clamp_(max=3),  # fewer objects than labels
        lambda columns: columns["sizes"].fill_(2**31),
        lambda columns: columns["sizes"].fill_(20_000),
        lambda columns: columns["path_bytes"][20:21].zero_(),
    ],
    ids=["objects", "overflow", "pixels", "name"],
)
def test_index_that_contradicts_itself_is_rejected(
    shards: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    path = shards / "train.index"
    with safe_open(path, framework="pt") as opened:
        header = opened.metadata()
    columns = load_file(path)
    change(columns)
    save_file(columns, path, metadata=header)
    with pytest.raises(DatasetError, match=r"train\.index: not readable as an index"):
        load_dataset(shards)


def test_image_of_impossible_size_in_a_shard_is_reported(shards: Path) -> None:
    (shards / "train.index").unlink()
    for path in shards.glob("train-*.tar"):
        content = path.read_bytes()
        path.write_bytes(content.replace(b'"width": 64', b'"width":9e9'))
    with pytest.raises(DatasetError, match="do not agree"):
        load_dataset(shards)
