"""Writing files: whole or not at all, by one writer at a time."""

from pathlib import Path

import pytest

from detrkit._internal.files import atomic_write, file_lock, write_text
from detrkit.errors import ConfigError


def test_what_is_written_takes_the_place_of_the_old_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_the_old_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be a folder"), atomic_write(tmp_path / "file" / "a.txt"):
        pytest.fail("there is no such place")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(ConfigError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "text")


def test_a_folder_or_a_file_has_one_writer(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a.jsonl"):
        with file_lock(path), pytest.raises(ConfigError, match="another process writes to it"), file_lock(path):
            pytest.fail("it is held already")
        with file_lock(path):  # and let go of
            pass
    with file_lock(tmp_path / "a.jsonl"), file_lock(tmp_path / "b.jsonl"):  # others are free
        pass
