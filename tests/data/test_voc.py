"""Pascal VOC: lists, class names, images, malformed files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult>"
    "<bndbox><xmin>10</xmin><ymin>20.5</ymin><xmax>60</xmax><ymax>80</ymax></bndbox></object>"
)


def page(
    objects: str, head: str = "<filename>a.jpg</filename><size><width>100</width><height>90</height></size>"
) -> str:
    return f"<annotation>{head}{objects}</annotation>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name).mkdir()
    for stem in "abcde":
        Image.new("RGB", (100, 90)).save(tmp_path / "JPEGImages" / f"{stem}.jpg")
        head = f"<filename>{stem}.jpg</filename><size><width>100</width><height>90</height></size>"
        write(tmp_path, stem, page(OBJECT.format(name="dog", difficult=0), head))
    return tmp_path


def write(folder: Path, stem: str, text: str) -> None:
    (folder / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")


def lists(folder: Path, **stems: Iterable[str]) -> None:
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in stems.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))


def test_lists_class_names_and_boxes_are_read(folder: Path) -> None:
    lists(folder, train="abc", val="d", test="e")
    both = OBJECT.format(name="  wild\n cat ", difficult=1) + OBJECT.format(name="dog", difficult=0)
    write(folder, "a", page(both))
    data = load_dataset(folder)
    assert data.test is not None
    assert [len(split.records) for split in (data.train, data.val, data.test)] == [3, 1, 1]
    assert data.train.categories.ids == (1, 2)
    assert data.train.categories.names == ("dog", "wild cat")
    record = data.train.records[0]
    np.testing.assert_allclose(record.boxes, [[10, 20.5, 60, 80]] * 2)
    assert record.labels.tolist() == [1, 0]
    assert record.is_crowd.tolist() == [True, False]  # difficult: never learned, never counted


def test_validation_images_are_set_aside_without_lists(folder: Path) -> None:
    data = load_dataset(folder)
    assert (len(data.train.records), len(data.val.records)) == (4, 1)
    assert "1 of 5 images" in data.notes[0]


@pytest.mark.parametrize(
    "head",
    [
        "",
        "<filename>elsewhere.jpg</filename>",
        "<filename>C:\\images\\a.jpg</filename><size><width>0</width><height>0</height></size>",
        "<folder>RBC</folder><path>/home/pi/x.jpg</path><size><height>many</height></size>",
    ],
)
def test_file_name_and_size_in_the_xml_are_not_trusted(folder: Path, head: str) -> None:
    write(folder, "a", page(OBJECT.format(name="dog", difficult=0), head))
    record = next(
        one for one in [*load_dataset(folder).train.records, *load_dataset(folder).val.records] if one.path.stem == "a"
    )
    assert record.size == (90, 100)
    assert record.path == folder / "JPEGImages" / "a.jpg"


def test_parts_of_objects_are_not_objects(folder: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    write(folder, "a", page(OBJECT.format(name="person", difficult=0).replace("</object>", f"{part}</object>")))
    assert load_dataset(folder).train.categories.names == ("dog", "person")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable as XML"),
        ("<annotation>", "not readable as XML"),
        ("<svg></svg>", "found <svg>"),
        (page("<object><name> </name></object>"), "object 1: found no <name>"),
        (page("<object><name>dog</name></object>"), "<xmin>: found None"),
        (page(OBJECT.format(name="dog", difficult=0).replace("10", "left")), "<xmin>: found 'left'"),
        (page(OBJECT.format(name="dog", difficult=0).replace("10", "99")), "expected xmin <= xmax"),
        (page(OBJECT.format(name="dog", difficult=0).replace("10", "nan")), "expected xmin <= xmax"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "declares entities"),
        ('<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>', "declares entities"),
    ],
)
def test_malformed_file_is_rejected_by_name(folder: Path, text: str, message: str) -> None:
    write(folder, "b", text)
    with pytest.raises(DatasetError, match=message) as refused:
        load_dataset(folder)
    assert str(folder / "Annotations" / "b.xml") in str(refused.value)


def test_missing_image_is_rejected(folder: Path) -> None:
    (folder / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(DatasetError, match=r"c\.xml: no such image 'c\.jpg'"):
        load_dataset(folder)


def test_bccd_is_read(shared: Path) -> None:
    data = load_dataset(shared / "data" / "bccd-voc")
    assert data.test is not None
    splits = (data.train, data.val, data.test)
    assert [len(split.records) for split in splits] == [205, 87, 72]
    assert data.train.categories.names == ("Platelets", "RBC", "WBC")
    labels = np.concatenate([record.labels for split in splits for record in split.records])
    assert np.bincount(labels).tolist() == [361, 4155, 372]


def test_lists_may_contain_spaces_folders_and_class_flags(folder: Path) -> None:
    for kind in ("Annotations/a.xml", "JPEGImages/a.jpg"):
        (folder / kind).rename((folder / kind).with_stem("image one"))
    lists(folder, train=["image one", "VOC2012/b.jpg.x/b", "c  1"], val=["d -1"])
    data = load_dataset(folder)
    assert [record.path.stem for record in data.train.records] == ["image one", "b", "c"]
    assert [record.path.stem for record in data.val.records] == ["d"]


def test_empty_list_is_not_a_split(folder: Path) -> None:
    lists(folder, train="abcde", val="")
    data = load_dataset(folder)
    assert len(data.val.records) > 0
    assert "no validation split" in data.notes[0]


def test_list_in_another_encoding_is_rejected(folder: Path) -> None:
    lists(folder, train="abc")
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DatasetError, match=r"train\.txt: not readable as a list.*save it in UTF-8"):
        load_dataset(folder)


def test_overlong_file_name_is_a_missing_image(folder: Path) -> None:
    write(folder, "a", page(OBJECT.format(name="dog", difficult=0), f"<filename>{'a' * 300}.jpg</filename>"))
    (folder / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DatasetError, match=r"a\.xml: no such image 'aaa"):
        load_dataset(folder)


@pytest.mark.parametrize("size", ["1e30", "inf", "4000000000", "-5", "x"])
def test_impossible_size_is_read_from_the_image(folder: Path, size: str) -> None:
    head = f"<filename>a.jpg</filename><size><width>{size}</width><height>{size}</height></size>"
    write(folder, "a", page(OBJECT.format(name="dog", difficult=0), head))
    lists(folder, train="a", val="bcde")
    assert load_dataset(folder).train.records[0].size == (90, 100)
