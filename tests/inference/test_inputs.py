"""Listing inputs: folders, patterns, lists, partitions, names of outputs."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

from detrkit._internal.provenance import provenance_mark
from detrkit.distributed.rank import Rank
from detrkit.errors import ConfigError, DatasetError
from detrkit.inference.inputs import Inputs, camera_output_name, list_inputs, output_names, parse_partition


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/2.jpg", "a/1.PNG", "a/notes.md", "a/deep/3.jpg", "a/deep/film.mp4", "a/out/4.png", "b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folder_gives_its_images_and_recursively_those_of_subfolders(place: Path) -> None:
    assert list_inputs(["a"]) == Inputs(images=("a/1.PNG", "a/2.jpg"))
    below = list_inputs(["a"], recursive=True, exclude=Path("a/out"))
    assert below.images == ("a/1.PNG", "a/2.jpg", "a/deep/3.jpg")
    assert list_inputs(["a/out"], recursive=True, exclude=Path("a/out")).images == ("a/out/4.png",)


def test_images_that_detrkit_drew_are_skipped_unless_named_singly(place: Path) -> None:
    drawn = place / "a" / "5.png"
    Image.new("RGB", (9, 9)).save(drawn, pnginfo=provenance_mark())
    assert list_inputs(["a", "a/*.*"]).images == ("a/1.PNG", "a/2.jpg")
    assert list_inputs(["a/5.png"]).images == ("a/5.png",)
    shutil.copy(drawn, "empty")
    with pytest.raises(
        DatasetError, match=r"empty: found no image in this folder.*images that detrkit drew are skipped"
    ):
        list_inputs(["empty"])


def test_links_to_folders_are_not_followed(place: Path) -> None:
    (place / "a" / "deep" / "again").symlink_to(place / "a", target_is_directory=True)
    assert len(list_inputs(["a"], recursive=True).images) == 4


def test_patterns_files_videos_and_cameras_are_listed_once(place: Path) -> None:
    inputs = list_inputs(["a/**/*", "b.jpg", "a/2.jpg", "camera:0", str(place / "*.jpg")])
    assert inputs.images == ("a/1.PNG", "a/2.jpg", "a/deep/3.jpg", "a/out/4.png", "b.jpg", str(place / "b.jpg"))
    assert inputs.videos == ("a/deep/film.mp4",)
    assert inputs.cameras == ("0",)


def test_existing_file_wins_over_a_pattern(place: Path) -> None:
    (place / "c[1].jpg").touch()
    assert list_inputs(["c[1].jpg"]).images == ("c[1].jpg",)


def test_list_entries_are_relative_to_the_list_or_the_working_directory(place: Path) -> None:
    (place / "a" / "list.txt").write_text("2.jpg\n\n  b.jpg  \r\nmissing.jpg\ndeep/film.mp4\n", encoding="utf-8-sig")
    inputs = list_inputs(["a/list.txt"])
    assert inputs.images == ("a/2.jpg", "b.jpg", "missing.jpg")
    assert inputs.videos == ("a/deep/film.mp4",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["empty"], "found no image in this folder"),
        (["nowhere"], "found nothing"),
        (["*.tiff"], "matches this pattern"),
        (["blank.txt"], "an empty list"),
        (["binary.txt"], "not readable as text"),
    ],
)
def test_missing_inputs_are_reported(place: Path, given: list[str], message: str) -> None:
    (place / "blank.txt").write_text(" \n")
    (place / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DatasetError, match=message):
        list_inputs(given)
    with pytest.raises(ConfigError, match="images: found none"):
        list_inputs([])


@given(some.integers(0, 40), some.integers(1, 9))
def test_partitions_are_disjoint_and_complete(count: int, world_size: int) -> None:
    all_inputs = Inputs(tuple(map(str, range(count))))
    parts = [all_inputs.partition(Rank(rank, world_size)).images for rank in range(world_size)]
    assert sorted(name for part in parts for name in part) == sorted(all_inputs.images)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_partition_is_an_argument_or_read_from_torchrun_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_partition("2/5") == (Rank(2, 5), False)
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert parse_partition(None)[0] == Rank()
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert parse_partition(None) == (Rank(1, 3), True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parse_partition(None) == (Rank(0, 2), True)
    for malformed in ("2/2", "1", "a/b", "-1/2", "0/0", "1/2/3"):
        with pytest.raises(ConfigError, match="is not INDEX/COUNT"):
            parse_partition(malformed)


def test_output_names_are_unique() -> None:
    assert output_names(["x/a.jpg", "b.png"]) == ["a", "b"]
    assert output_names(["x/a.jpg", "y/a.jpg", "a.png"]) == ["a.jpg", "a.jpg_", "a.png"]
    assert output_names(["predictions.mp4"], taken=["predictions"]) == ["predictions_"]


@given(some.lists(some.sampled_from(["a", "b", "a.jpg", "a_"]), max_size=12))
def test_output_names_are_unique_for_any_input_names(stems: list[str]) -> None:
    names = output_names([f"{number}/{stem}.jpg" for number, stem in enumerate(stems)])
    assert len(set(names)) == len(stems)


@pytest.mark.parametrize(
    ("given", "camera"),
    [
        ("0", "0"),
        ("2", "2"),
        ("camera:1", "1"),
        ("camera:http://10.0.0.2/video", "http://10.0.0.2/video"),
        ("rtsp://u:p@10.0.0.2/live", "rtsp://u:p@10.0.0.2/live"),
        ("RTSP://10.0.0.2/live", "RTSP://10.0.0.2/live"),
        ("udp://@:1234", "udp://@:1234"),
    ],
)
def test_cameras_are_named_as_in_other_tools(given: str, camera: str) -> None:
    assert list_inputs([given]).cameras == (camera,)


def test_a_file_named_like_a_camera_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").write_bytes(b"")
    assert list_inputs(["0"]).images == ("0",)


@pytest.mark.parametrize("address", ["https://example.com/a.jpg", "s3://bucket/a.jpg", "file:///tmp/a.jpg"])
def test_addresses_of_the_web_are_refused(address: str) -> None:
    with pytest.raises(DatasetError, match="addresses of the web are not read; download the file"):
        list_inputs([address])


def test_passwords_are_in_no_file_name() -> None:
    assert camera_output_name("rtsp://user:secret@10.0.0.2/live") == "camera-rtsp-10-0-0-2-live"
