"""Atomic writes and file locks."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit._internal import files, temporary
from detrkit._internal.files import atomic_write, file_lock, staged_folder, write_text
from detrkit._internal.temporary import temporary_path
from detrkit.errors import ConfigError

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and special files of POSIX")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_atomic_write_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


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


@posix
@settings(max_examples=60, deadline=None)
@given(
    mask=st.sampled_from([0o000, 0o022, 0o027, 0o077]),
    before=st.sampled_from(["nothing", 0o600, 0o640, 0o664, 0o755]),
    linked=st.booleans(),
    fails=st.booleans(),
)
def test_content_is_old_or_new_and_kind_links_and_permissions_stay(
    mask: int, before: str | int, linked: bool, fails: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, umask(mask):
        target = Path(folder) / "target.json"
        path = Path(folder) / "link.json" if linked else target
        if linked:
            path.symlink_to("target.json")  # relative, and perhaps to nothing yet
        if isinstance(before, int):
            target.write_text("old")
            target.chmod(before)
        entries = sorted(Path(folder).iterdir())
        try:
            with atomic_write(path) as unfinished:
                unfinished.write_text("new")
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert sorted(Path(folder).iterdir()) == entries
            assert not isinstance(before, int) or target.read_text() == "old"
        else:
            assert target.read_text() == "new"
            expected = before if isinstance(before, int) else 0o666 & ~mask
            assert stat.S_IMODE(target.stat().st_mode) == expected
        assert path.is_symlink() == linked
        assert not list(Path(folder).glob(".*"))


@posix
def test_devices_pipes_and_their_links_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    write_text(Path("/dev/null"), "text")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    link = tmp_path / "out.json"
    link.symlink_to("/dev/null")
    write_text(link, "text")
    assert link.is_symlink()
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through the pipe")
    reader.join()
    assert received == ["through the pipe"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    script = (
        "from pathlib import Path; from detrkit._internal.files import write_text as w; w(Path('/dev/stdout'), 'text')"
    )
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout == b"text"


@posix
def test_read_only_file_and_folder_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(files.os, "access", lambda *_args: False)  # the superuser may write to anything
    with pytest.raises(ConfigError, match=r"a.txt: cannot be written \(no permission"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_that_form_a_circle_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_text(tmp_path / "a", "text")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_full_or_failing_disk_is_one_sentence_and_keeps_the_old_file(tmp_path: Path, code: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as unfinished:
            unfinished.write_text("half")
            raise OSError(code, os.strerror(code))

    with pytest.raises(ConfigError, match=os.strerror(code)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_of_the_block_are_raised_as_they_are(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "a.txt"):
            (tmp_path / "missing").read_text()

    with pytest.raises(FileNotFoundError):
        write()


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="flags of Linux")
def test_files_are_flushed_through_handles_that_windows_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlushFileBuffers refuses handles that were opened for reading, and folders cannot be opened at all."""
    import fcntl

    def flush(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "the handle is not open for writing")

    monkeypatch.setattr(files.os, "fsync", flush)
    monkeypatch.setattr(files, "_flush_folder", lambda _folder: None)
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def end_process_within(folder: Path, block: str) -> None:
    """Write to a folder in another process, which is killed within the block."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from detrkit._internal.files import atomic_write, staged_folder\n"
        f"folder = Path(sys.argv[1])\nwith {block} as unfinished:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(folder)], check=False).returncode == -9


@posix
def test_what_a_killed_process_left_is_swept_and_what_a_running_one_writes_is_not(tmp_path: Path) -> None:
    end_process_within(tmp_path, "atomic_write(folder / 'a.json')")
    (file,) = tmp_path.iterdir()
    end_process_within(tmp_path, "staged_folder(folder / 'copy')")
    (folder,) = tmp_path.iterdir()  # which has swept the file
    assert (file.suffix, folder.is_dir()) == (".json", True)
    own = temporary_path(tmp_path, ".json")
    own.write_text("being written")
    theirs = tmp_path / ".detrkit-not-a-temporary-name"
    theirs.write_text("a user's file")
    temporary.sweep_once.cache_clear()
    write_text(tmp_path / "b.json", "text")
    assert sorted(tmp_path.iterdir()) == sorted([own, theirs, tmp_path / "b.json"])


@posix
def test_lock_of_a_run_folder_sweeps_its_subfolders(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    end_process_within(tmp_path / "last", "atomic_write(folder / 'state.pt')")
    with file_lock(tmp_path):
        assert list((tmp_path / "last").iterdir()) == []


def test_what_another_machine_left_is_swept_after_a_day(tmp_path: Path) -> None:
    old, new = (tmp_path / f".detrkit-00000000-{pid}-0123456789ab.json" for pid in (1, 2))
    for path in (old, new):
        path.write_text("")
    os.utime(old, (0, 0))
    temporary.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_staged_folder_leaves_nothing_behind_after_an_error(tmp_path: Path) -> None:
    def write() -> None:
        with staged_folder(tmp_path / "a" / "b") as staging:
            (staging / "half").write_text("")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ConfigError, match="free disk space"):
        write()
    assert list(tmp_path.iterdir()) == []
