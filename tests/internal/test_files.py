"""Atomic writes and file locks."""

from pathlib import Path

import pytest

from detrkit._internal.files import atomic_write, file_lock, write_text
from detrkit.errors import ConfigError


def test_atomic_write_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_error_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
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


def test_unwritable_path_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be a folder"), atomic_write(tmp_path / "file" / "a.txt"):
        pytest.fail("the folder cannot exist")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(ConfigError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "text")


def test_lock_allows_one_writer_per_folder_or_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a.jsonl"):
        with file_lock(path), pytest.raises(ConfigError, match="another process writes to it"), file_lock(path):
            pytest.fail("acquired twice")
        with file_lock(path):  # released
            pass
    with file_lock(tmp_path / "a.jsonl"), file_lock(tmp_path / "b.jsonl"):  # independent locks
        pass
