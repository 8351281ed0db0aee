"""Layouts of Pascal VOC annotations as the field's tools write them; lists; file names of other images."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detrkit.data.splits import load_dataset, load_split
from detrkit.errors import DatasetError
from tests.data.layouts import BOX, put_images, put_text, put_xml

STEMS = "abcd"


def put(images: Path, annotations: Path, stems: str = STEMS) -> None:
    put_images(images, [f"{stem}.jpg" for stem in stems])
    for stem in stems:
        put_xml(annotations / f"{stem}.xml", f"{stem}.jpg")


def devkit(root: Path) -> None:
    """Two years below one folder, each with its lists, those of the classes included."""
    for year in ("VOC2007", "VOC2012"):
        folder = root / "VOCdevkit" / year
        stems = [f"{year}_{stem}" for stem in STEMS]
        put_images(folder / "JPEGImages", [f"{stem}.jpg" for stem in stems])
        for stem in stems:
            put_xml(folder / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
        lists = {"train": stems[:2], "val": stems[2:3], "trainval": stems[:3], "test": stems[3:]}
        for name, chosen in lists.items():
            put_text(folder / "ImageSets" / "Main" / f"{name}.txt", "\n".join(chosen))
        put_text(folder / "ImageSets" / "Main" / "fish_train.txt", f"{stems[3]} 1")


def in_split_folders(images: str, annotations: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for split, stems in (("train", "ab"), ("val", "ac"), ("test", "ad")):
            put(root / images.format(split), root / annotations.format(split), stems)

    return make


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("images", "annotations"),
        ("Images", "ANNOTATIONS"),
        ("images", "annots"),
        ("JPEGImages", "Annotations/Annotations"),
        ("", "xml"),
        ("", ""),
        ("photos of june", "Annotations"),
        ("set/images", "set/annotations"),
    ],
)
def test_layout_without_splits_is_read(tmp_path: Path, images: str, annotations: str) -> None:
    put(tmp_path / images, tmp_path / annotations)
    data = load_dataset(tmp_path)
    assert (data.format, len(data.train), len(data.val), data.findings) == ("voc", 3, 1, ())


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("{}", "{}"),
        ("{}/images", "{}/annotations"),
        ("images/{}", "annotations/{}"),
        ("{}/JPEGImages", "{}/Annotations"),
        ("{0}_zip/{0}", "{0}_zip/{0}"),
    ],
)
def test_layout_with_split_folders_is_read(tmp_path: Path, images: str, annotations: str) -> None:
    in_split_folders(images, annotations)(tmp_path)
    data = load_dataset(tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [2, 2, 2]
    assert len({record.path for split in data.splits.values() for record in split.records}) == 6


def test_years_of_a_devkit_are_joined(tmp_path: Path) -> None:
    devkit(tmp_path)
    for path in (tmp_path, tmp_path / "VOCdevkit"):
        data = load_dataset(path)
        assert [len(split) for split in (data.train, data.val, data.test)] == [4, 2, 2]
    assert len(load_dataset(tmp_path / "VOCdevkit" / "VOC2007").train) == 2


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"trainval": "abc", "test": "d"}, (2, 1, 1)),
        ({"Train": "abc", "Validation": "d"}, (3, 1, 0)),
        ({"TRAINVAL": "abc", "VAL": "c", "TEST": "d"}, (2, 1, 1)),
        ({"train": "ab", "trainval": "abc", "test": "d"}, (2, 1, 1)),
        ({"test": "d"}, (2, 1, 1)),
        ({"val": "d"}, (3, 1, 0)),
        ({"default": "abcd"}, (3, 1, 0)),
    ],
)
@pytest.mark.parametrize("place", ["ImageSets/Main", "imagesets/main", "ImageSets", ""])
def test_lists_divide_the_images(
    tmp_path: Path, lists: dict[str, str], expected: tuple[int, int, int], place: str
) -> None:
    put(tmp_path / "JPEGImages", tmp_path / "Annotations")
    for name, stems in lists.items():
        put_text(tmp_path / place / f"{name}.txt", "\n".join(stems))
    data = load_dataset(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == expected
    test = {record.path.stem for record in data.test.records}
    learned = {record.path.stem for split in (data.train, data.val) for record in split.records}
    assert not test & learned


def test_images_that_no_list_names_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "JPEGImages", tmp_path / "Annotations")
    put_text(tmp_path / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    titles = {finding.title: len(finding.locations) for finding in load_dataset(tmp_path).findings}
    assert titles == {"XML files that no list names": 2, "images that the annotations do not name": 2}


def test_own_name_of_the_xml_comes_first(tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "annotations")
    put_images(tmp_path / "images", ["a_flip.png"])
    put_xml(tmp_path / "annotations" / "a_flip.xml", "a.jpg", box=(6, 1, 10, 5))
    put_xml(tmp_path / "annotations" / "b.xml", "b.png")  # another suffix is no difference
    data = load_dataset(tmp_path)
    boxes = {record.path.name: record.boxes.tolist() for split in data.splits.values() for record in split.records}
    assert boxes["a_flip.png"] == [[6, 1, 10, 5]]
    assert boxes["a.jpg"] == [list(BOX)]
    (finding,) = data.findings
    assert "a_flip.xml: <filename> is a.jpg, the image is a_flip.png" in finding.locations[0].text


def test_xml_without_an_image_of_its_own_is_not_added_to_another(tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "annotations")
    put_xml(tmp_path / "annotations" / "a_flip.xml", "a.jpg", box=(6, 1, 10, 5))
    data = load_dataset(tmp_path)
    assert sum(len(record.labels) for split in data.splits.values() for record in split.records) == 4
    assert data.findings[0].title == "XML files whose image has another XML file"


def test_xml_of_another_name_finds_its_image_by_file_name(tmp_path: Path) -> None:
    put_images(tmp_path / "images", ["DSC1.JPG", "DSC2.jpg"])
    put_xml(tmp_path / "annotations" / "1.xml", "C:\\photos\\DSC1.jpg")
    put_xml(tmp_path / "annotations" / "2.xml", "dsc2.jpg")
    data = load_dataset(tmp_path)
    assert {record.path.name for split in data.splits.values() for record in split.records} == {"DSC1.JPG", "DSC2.jpg"}


@pytest.mark.parametrize(("value", "crowd"), [("False", False), ("0", False), ("", False), ("true", True), ("1", True)])
def test_difficult_is_read_as_meant(tmp_path: Path, value: str, crowd: bool) -> None:
    put_images(tmp_path, ["a.jpg", "b.jpg"])
    for stem in "ab":
        put_xml(tmp_path / f"{stem}.xml", difficult=value)
    data = load_dataset(tmp_path)
    assert data.train.records[0].is_crowd.tolist() == [crowd]
    assert data.findings == ()


def test_linked_folders_are_read(tmp_path: Path) -> None:
    put(tmp_path / "disk" / "pictures", tmp_path / "disk" / "boxes")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "JPEGImages").symlink_to(tmp_path / "disk" / "pictures")
    (photos / "Annotations").symlink_to(tmp_path / "disk" / "boxes")
    (photos / "again").symlink_to(photos)  # a loop
    data = load_dataset(photos)
    assert (len(data.train), len(data.val)) == (3, 1)


def test_difficult_without_a_meaning_is_a_finding_or_a_fault(tmp_path: Path) -> None:
    put(tmp_path, tmp_path, "ab")
    put_xml(tmp_path / "a.xml", difficult="Unspecified")
    assert load_dataset(tmp_path).findings[0].title == "difficult flags without a value"
    put_xml(tmp_path / "a.xml", difficult="very")
    with pytest.raises(DatasetError, match=r"a\.xml: object 1 \(fish\): <difficult>: found 'very', expected 0 or 1"):
        load_dataset(tmp_path)


def test_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    for split, names in (("train", "xyz"), ("test", "yz")):
        put_images(tmp_path / split, [f"{name}.jpg" for name in names])
        for name in names:
            put_xml(tmp_path / split / f"{name}.xml", name=name)
    test, _ = load_split(tmp_path, "test")
    assert test is not None
    assert (test.categories.names, test.categories.ids) == (("x", "y", "z"), (1, 2, 3))


def test_lists_of_other_splits_may_name_missing_files(tmp_path: Path) -> None:
    put(tmp_path / "JPEGImages", tmp_path / "Annotations", "ab")
    put_text(tmp_path / "ImageSets" / "Main" / "val.txt", "a\nb\n")
    put_text(tmp_path / "ImageSets" / "Main" / "train.txt", "c\nd\n")
    put_text(tmp_path / "ImageSets" / "Main" / "test.txt", "")
    val, _ = load_split(tmp_path, "val")
    assert val is not None
    assert len(val) == 2
    errors: list[DatasetError] = []
    data = load_dataset(tmp_path, on_error=errors.append)
    assert (len(data.val), len(errors)) == (2, 2)
    assert "splits without images" in [finding.title for finding in data.findings]


def test_image_that_cannot_be_decoded_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "annotations")
    put_xml(tmp_path / "annotations" / "phone.xml", "phone.heic")
    (tmp_path / "images" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    (finding,) = load_dataset(tmp_path).findings
    assert finding.title == "files among the images that cannot be decoded"


def test_label_map_of_cvat_numbers_the_classes(tmp_path: Path) -> None:
    put(tmp_path / "JPEGImages", tmp_path / "Annotations")
    put_text(
        tmp_path / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbird:1,1,1::\nfish:2,2,2::\n"
    )
    assert load_dataset(tmp_path).train.categories.names == ("bird", "fish")
