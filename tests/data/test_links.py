"""Copies of datasets contain what is in their folder, unless links are followed on request; and only images."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from detrkit.cli import main
from detrkit.data.checks.examine import examine
from detrkit.data.checks.fix import fix_dataset
from detrkit.data.convert import convert_dataset, shard_dataset
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError
from tests.data.layouts import SIZE, put_coco, put_images, put_labels, put_text, put_xml
from tests.datasets import write_panoptic
from tests.parameters import slow_except

NAMES = ("a.png", "b.png", "c.png")
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\n"
OUTSIDE = "outside of the dataset .*follow_links=True"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder outside of the dataset, with a picture and a secret."""
    put_images(tmp_path / "disk", ["private.png"])
    put_text(tmp_path / "disk" / "id_rsa", SECRET)
    return tmp_path / "disk"


def write_yolo(root: Path) -> Path:
    put_images(root / "images", NAMES)
    put_labels(root / "labels", NAMES)
    put_text(root / "data.yaml", "train: images\nval: images\nnames: [fish]\n")
    return root


def write_coco(root: Path) -> Path:
    put_images(root / "images", NAMES)
    put_coco(root / "annotations" / "instances_train.json", NAMES)
    return root


def write_voc(root: Path) -> Path:
    put_images(root / "images", NAMES)
    for name in NAMES:
        put_xml((root / "annotations" / name).with_suffix(".xml"), name)
    return root


WRITERS = {"yolo": write_yolo, "coco": write_coco, "voc": write_voc}


def convert(folder: Path, output: Path, *, follow_links: bool = False) -> None:
    convert_dataset(folder, output, "coco", follow_links=follow_links)


def shard(folder: Path, output: Path, *, follow_links: bool = False) -> None:
    shard_dataset(folder, output, follow_links=follow_links)


def fix(folder: Path, output: Path, *, follow_links: bool = False) -> None:
    fix_dataset(examine(folder, workers=0, cache=False), output, follow_links=follow_links)


def replace_by_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def link_image(folder: Path, disk: Path) -> None:
    replace_by_link(folder / "images" / "b.png", disk / "private.png")


def link_image_relatively(folder: Path, disk: Path) -> None:
    replace_by_link(folder / "images" / "b.png", Path("..", "..", "disk", "private.png"))


def link_by_a_chain(folder: Path, disk: Path) -> None:
    (folder / "hop").symlink_to(disk / "private.png")
    replace_by_link(folder / "images" / "b.png", folder / "hop")


def link_folder(folder: Path, disk: Path) -> None:
    shutil.move(folder / "images", disk / "images")
    (folder / "images").symlink_to(disk / "images")


def link_folder_above(folder: Path, disk: Path) -> None:
    for name in ("images", "labels", "annotations"):
        if (folder / name).exists():
            (disk / "set").mkdir(exist_ok=True)
            shutil.move(folder / name, disk / "set" / name)
            (folder / name).symlink_to(disk / "set" / name)


LINKS = [link_image, link_image_relatively, link_by_a_chain, link_folder, link_folder_above]


@pytest.mark.parametrize("copy", [convert, shard, fix])
@pytest.mark.parametrize("link", slow_except((link_by_a_chain, link_folder), LINKS))
@pytest.mark.parametrize("format", WRITERS)
def test_what_links_lead_to_is_read_and_not_copied_unasked(
    tmp_path: Path, disk: Path, format: str, link: Callable[[Path, Path], None], copy: Callable[..., None]
) -> None:
    folder, output = WRITERS[format](tmp_path / "set"), tmp_path / "copy"
    link(folder, disk)
    assert sum(len(split) for split in load_dataset(folder).splits.values()) >= len(NAMES)
    with pytest.raises(DatasetError, match=OUTSIDE):
        copy(folder, output)
    assert not output.exists()
    copy(folder, output, follow_links=True)
    assert sum(len(split) for split in load_dataset(output).splits.values()) >= len(NAMES)
    assert not any(path.is_symlink() for path in output.rglob("*"))


@pytest.mark.parametrize("copy", [convert, shard])
def test_links_to_inside_of_the_dataset_are_copied(tmp_path: Path, copy: Callable[..., None]) -> None:
    folder = write_coco(tmp_path / "set")
    (folder / "store").mkdir()
    shutil.move(folder / "images" / "a.png", folder / "store" / "1")  # as git-annex and DVC keep files
    (folder / "images" / "a.png").symlink_to(Path("..", "store", "1"))
    copy(folder, tmp_path / "copy")
    assert len(load_dataset(tmp_path / "copy").train) > 0


@pytest.mark.parametrize("what", ["folder", "parent", "data.yaml", "relative"])
def test_what_is_named_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    folder = write_yolo(tmp_path / "disk" / "set")
    named = tmp_path / "link"
    if what == "parent":
        named.symlink_to(tmp_path / "disk")
        named /= "set"
    else:
        named.symlink_to(folder)
    if what == "data.yaml":
        put_text(folder / "data.yaml", "path: .\ntrain: images\nval: images\nnames: [fish]\n")
        named /= "data.yaml"
    if what == "relative":
        monkeypatch.chdir(tmp_path)
        named = Path("link")
    convert(named, tmp_path / "copy")
    assert len(load_dataset(tmp_path / "copy").train) == len(NAMES)


def test_hard_links_cannot_be_told_from_files(tmp_path: Path, disk: Path) -> None:
    folder = write_coco(tmp_path / "set")
    (folder / "images" / "b.png").unlink()
    os.link(disk / "private.png", folder / "images" / "b.png")
    convert(folder, tmp_path / "copy")


@pytest.mark.parametrize("copy", [convert, shard])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tga", ".npy", ".tif"])
def test_only_images_are_copied_even_if_links_are_followed(
    tmp_path: Path, disk: Path, suffix: str, copy: Callable[..., None]
) -> None:
    folder = write_coco(tmp_path / "set")
    names = ("a.png", f"b{suffix}", "c.png")
    put_coco(folder / "annotations" / "instances_train.json", names)
    (folder / "images" / "b.png").unlink()
    (folder / "images" / f"b{suffix}").symlink_to(disk / "id_rsa")
    with pytest.raises(DatasetError, match=rf"b\{suffix}: (is not an image|cannot be read as an array)"):
        copy(folder, tmp_path / "copy", follow_links=True)
    left = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in left)


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jpg", ".npy", ".ppm", ".tga", ".tif", ".webp"])
def test_images_of_every_kind_are_copied_byte_by_byte(tmp_path: Path, suffix: str) -> None:
    import numpy as np

    folder, file = tmp_path / "set", tmp_path / "set" / "images" / f"a{suffix}"
    put_coco(folder / "annotations" / "instances_train.json", [file.name])
    file.parent.mkdir()
    if suffix == ".npy":
        np.save(file, np.zeros((SIZE[1], SIZE[0], 5), np.uint8))
    else:
        Image.new("RGB", SIZE).save(file)
    convert(folder, tmp_path / "copy")
    assert (tmp_path / "copy" / "train" / file.name).read_bytes() == file.read_bytes()


def test_panoptic_pngs_are_checked_too(tmp_path: Path, disk: Path) -> None:
    folder = write_panoptic(tmp_path / "set")
    png = folder / "annotations" / "panoptic_train2017" / "1.png"
    shutil.copy(png, disk / "segments.png")
    replace_by_link(png, disk / "segments.png")
    with pytest.raises(DatasetError, match=OUTSIDE):
        convert_dataset(folder, tmp_path / "copy", "panoptic")
    convert_dataset(folder, tmp_path / "copy", "panoptic", follow_links=True)


def link_classes(folder: Path, disk: Path) -> None:
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").symlink_to(disk / "id_rsa")  # the lines of the key would be class names


def link_names(folder: Path, disk: Path) -> None:
    put_text(folder / "data.yaml", "train: images\nnames: n.txt\n")
    (folder / "n.txt").symlink_to(disk / "id_rsa")


def name_home(folder: Path, disk: Path) -> None:
    put_text(folder / "data.yaml", f"path: {disk}\ntrain: {folder / 'images'}\nnames: id_rsa\n")


def link_label(folder: Path, disk: Path) -> None:
    put_text(disk / "b.txt", "0 0.5 0.5 0.1 0.1\n")
    replace_by_link(folder / "labels" / "b.txt", disk / "b.txt")


def link_labels(folder: Path, disk: Path) -> None:
    shutil.move(folder / "labels", disk / "labels")
    (folder / "labels").symlink_to(disk / "labels")


def link_list(folder: Path, disk: Path) -> None:
    put_text(disk / "list.txt", "images/a.png\nimages/b.png\n")
    (folder / "train.txt").symlink_to(disk / "list.txt")
    put_text(folder / "data.yaml", "train: train.txt\nnames: [fish]\n")


def name_images_elsewhere(folder: Path, disk: Path) -> None:
    put_text(folder / "data.yaml", f"train: {disk}\nnames: [fish]\n")


@pytest.mark.parametrize(
    "link", [link_classes, link_names, name_home, link_label, link_labels, link_list, name_images_elsewhere]
)
@pytest.mark.parametrize("copy", [convert, shard, fix])
def test_annotations_and_class_names_of_elsewhere_are_not_copied_unasked(
    tmp_path: Path, disk: Path, link: Callable[[Path, Path], None], copy: Callable[..., None]
) -> None:
    folder = write_yolo(tmp_path / "set")
    link(folder, disk)
    with pytest.raises(DatasetError, match=OUTSIDE):
        copy(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    copy(folder, tmp_path / "copy", follow_links=True)


@pytest.mark.parametrize("file", ["annotations/a.xml", "ImageSets/Main/train.txt", "labelmap.txt", "categories.json"])
def test_voc_files_that_are_links_count_too(tmp_path: Path, disk: Path, file: str) -> None:
    folder = write_voc(tmp_path / "set")
    put_text(folder / "ImageSets/Main/train.txt", "a\nb\n")
    put_text(folder / "labelmap.txt", "fish:0,0,0::\n")
    put_text(folder / "categories.json", json.dumps([{"id": 3, "name": "fish"}]))
    shutil.move(folder / file, disk / "moved")
    (folder / file).symlink_to(disk / "moved")
    with pytest.raises(DatasetError, match=OUTSIDE):
        convert(folder, tmp_path / "copy")


@pytest.mark.parametrize("file", ["train-00000.tar", "train.index", "shards.json"])
def test_shards_that_are_links_count_too(tmp_path: Path, disk: Path, file: str) -> None:
    shards = tmp_path / "shards"
    shard_dataset(write_coco(tmp_path / "set"), shards)
    shutil.move(shards / file, disk / file)
    (shards / file).symlink_to(disk / file)
    assert len(load_dataset(shards).train) > 0
    with pytest.raises(DatasetError, match=OUTSIDE):
        convert(shards, tmp_path / "copy")
    convert(shards, tmp_path / "copy", follow_links=True)


@pytest.mark.parametrize("place", ["set.json", "annotations/set.json"])
def test_folder_of_a_single_json_is_its_own_or_the_one_above(tmp_path: Path, disk: Path, place: str) -> None:
    folder = tmp_path / "set"
    put_images(folder / "images", NAMES)
    put_coco(folder / place, NAMES)
    convert(folder / place, tmp_path / "first")
    link_image(folder, disk)
    with pytest.raises(DatasetError, match=OUTSIDE):
        convert(folder / place, tmp_path / "second")


@pytest.mark.parametrize("name", ["../disk/private.png", "/disk/private.png", "..\\disk\\private.png"])
def test_file_names_that_lead_out_of_the_dataset_copy_nothing_from_there(tmp_path: Path, disk: Path, name: str) -> None:
    folder = write_coco(tmp_path / "set")
    written = str(disk / "private.png") if name.startswith("/") else name
    put_coco(folder / "annotations" / "instances_train.json", ["a.png", written])
    with pytest.raises(DatasetError, match=r"images\[1\]"):
        convert(folder, tmp_path / "copy", follow_links=True)
    assert not (tmp_path / "copy").exists()


def test_loaded_splits_and_added_validation_data_are_checked_too(tmp_path: Path, disk: Path) -> None:
    folder = write_coco(tmp_path / "set")
    link_classes(write_yolo(tmp_path / "other"), disk)
    with pytest.raises(DatasetError, match=OUTSIDE):
        convert_dataset(load_dataset(tmp_path / "other"), tmp_path / "copy", "coco")
    link_image(folder, disk)
    with pytest.raises(DatasetError, match=OUTSIDE):
        convert_dataset(load_dataset(folder), tmp_path / "copy", "coco")


def test_junctions_of_windows_count_as_links(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a junction is no symbolic link for Python; only the real path tells it
    folder, real = write_coco(tmp_path / "set"), os.path.realpath

    def realpath(path: str | Path, **how: bool) -> str:
        return real(path, **how).replace(str(folder / "images"), str(disk / "images"))

    monkeypatch.setattr(os.path, "realpath", realpath)
    with pytest.raises(DatasetError, match=OUTSIDE):
        convert(folder, tmp_path / "copy")


def test_other_capitals_of_the_same_folder_are_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # macOS: the target of a link may be written in other capitals than the folder
    folder, real = write_coco(tmp_path / "set"), os.path.realpath
    (tmp_path / "SET").symlink_to(folder)  # stands for a file system without capitals

    def realpath(path: str | Path, **how: bool) -> str:
        resolved = real(path, **how)
        return resolved.replace(str(folder), str(tmp_path / "SET")) if "images" in resolved else resolved

    monkeypatch.setattr(os.path, "realpath", realpath)
    convert(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    "command",
    [["convert-data", "SET", "COPY", "--to", "yolo"], ["shard", "SET", "COPY"], ["doctor", "SET", "--fix", "COPY"]],
)
def test_commands_name_the_flag(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    folder, copy = write_coco(tmp_path / "set"), tmp_path / "copy"
    link_image(folder, disk)
    words = [{"SET": str(folder), "COPY": str(copy)}.get(word, word) for word in command]
    words += ["--workers", "0"] if command[0] == "doctor" else []
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "pass --follow-links" in error
    assert str(disk / "private.png") in error
    assert not copy.exists()
    with pytest.raises(SystemExit) as left:
        main([*words, "--follow-links"])
    assert not left.value.code
    assert len(load_dataset(copy).train) > 0


def test_doctor_without_a_copy_has_no_links_to_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(write_coco(tmp_path / "set")), "--follow-links"])
    assert left.value.code == 2
    assert "--follow-links is for copies, which only --fix makes" in capsys.readouterr().err
