"""What a user names becomes photos, videos and cameras, each once; shares are disjoint and complete."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

from detrkit._internal.provenance import provenance_mark
from detrkit.distributed.rank import Process
from detrkit.errors import ConfigError, DatasetError
from detrkit.inference.inputs import Sources, choose_shard, list_inputs, output_names


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/2.jpg", "a/1.PNG", "a/notes.md", "a/deep/3.jpg", "a/deep/film.mp4", "a/out/4.png", "b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_gives_its_photos_and_with_recursive_those_below(place: Path) -> None:
    assert list_inputs(["a"]) == Sources(photos=("a/1.PNG", "a/2.jpg"))
    below = list_inputs(["a"], recursive=True, leave_out=Path("a/out"))
    assert below.photos == ("a/1.PNG", "a/2.jpg", "a/deep/3.jpg")
    assert list_inputs(["a/out"], recursive=True, leave_out=Path("a/out")).photos == ("a/out/4.png",)


def test_pictures_that_detrkit_drew_are_taken_where_they_are_named_alone(place: Path) -> None:
    drawn = place / "a" / "5.png"
    Image.new("RGB", (9, 9)).save(drawn, pnginfo=provenance_mark())
    assert list_inputs(["a", "a/*.*"]).photos == ("a/1.PNG", "a/2.jpg")
    assert list_inputs(["a/5.png"]).photos == ("a/5.png",)
    shutil.copy(drawn, "empty")
    with pytest.raises(DatasetError, match=r"empty: found no photo in this folder.*; what detrkit drew does not count"):
        list_inputs(["empty"])


def test_links_in_circles_are_not_followed(place: Path) -> None:
    (place / "a" / "deep" / "again").symlink_to(place / "a", target_is_directory=True)
    assert len(list_inputs(["a"], recursive=True).photos) == 4


def test_patterns_files_videos_and_cameras(place: Path) -> None:
    found = list_inputs(["a/**/*", "b.jpg", "a/2.jpg", "camera:0", str(place / "*.jpg")])
    assert found.photos == ("a/1.PNG", "a/2.jpg", "a/deep/3.jpg", "a/out/4.png", "b.jpg", str(place / "b.jpg"))
    assert found.videos == ("a/deep/film.mp4",)
    assert found.cameras == ("0",)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(place: Path) -> None:
    (place / "c[1].jpg").touch()
    assert list_inputs(["c[1].jpg"]).photos == ("c[1].jpg",)


def test_a_list_names_what_lies_beside_it_or_here(place: Path) -> None:
    (place / "a" / "list.txt").write_text("2.jpg\n\n  b.jpg  \r\nmissing.jpg\ndeep/film.mp4\n", encoding="utf-8-sig")
    found = list_inputs(["a/list.txt"])
    assert found.photos == ("a/2.jpg", "b.jpg", "missing.jpg")
    assert found.videos == ("a/deep/film.mp4",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["empty"], "found no photo in this folder"),
        (["nowhere"], "found nothing"),
        (["*.tiff"], "fits this pattern"),
        (["blank.txt"], "an empty list"),
        (["binary.txt"], "not readable as text"),
    ],
)
def test_what_is_not_there_is_one_sentence(place: Path, given: list[str], says: str) -> None:
    (place / "blank.txt").write_text(" \n")
    (place / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DatasetError, match=says):
        list_inputs(given)
    with pytest.raises(ConfigError, match="found no photos"):
        list_inputs([])


@given(some.integers(0, 40), some.integers(1, 9))
def test_shares_are_disjoint_and_complete(count: int, world: int) -> None:
    everything = Sources(tuple(map(str, range(count))))
    shares = [everything.share(Process(rank, world)).photos for rank in range(world)]
    assert sorted(name for share in shares for name in share) == sorted(everything.photos)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_share_is_given_or_told_by_torchrun_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_shard("2/5") == (Process(2, 5), False)
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert choose_shard(None)[0] == Process()
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert choose_shard(None) == (Process(1, 3), True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_shard(None) == (Process(0, 2), True)
    for odd in ("2/2", "1", "a/b", "-1/2", "0/0", "1/2/3"):
        with pytest.raises(ConfigError, match="expected I/N"):
            choose_shard(odd)


def test_outputs_never_share_a_name() -> None:
    assert output_names(["x/a.jpg", "b.png"]) == ["a", "b"]
    assert output_names(["x/a.jpg", "y/a.jpg", "a.png"]) == ["a.jpg", "a.jpg_", "a.png"]
    assert output_names(["predictions.mp4"], taken=["predictions"]) == ["predictions_"]


@given(some.lists(some.sampled_from(["a", "b", "a.jpg", "a_"]), max_size=12))
def test_outputs_never_share_a_name_whatever_the_photos_are_called(stems: list[str]) -> None:
    names = output_names([f"{number}/{stem}.jpg" for number, stem in enumerate(stems)])
    assert len(set(names)) == len(stems)
