"""Atomic writes, folders and locks: after a crash a file has its old content or its new, never a part of it."""

import errno
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from detrkit._internal.system import replace, sync
from detrkit._internal.temporary import sweep, sweep_once, temporary_path
from detrkit.errors import ConfigError, DatasetError, arg

if TYPE_CHECKING:
    from torch import Tensor

_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` that replaces it when the block ends without an error.

    A link stays a link, and the file it points to is replaced. An existing file keeps its permissions; a new one has those
    of the umask. What is not a regular file, such as `/dev/null`, `/dev/stdout` or a FIFO, is not replaced: the content
    is written into it.

    Raises:
        ConfigError: the file or its folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        mode = _mode_of(path)
        is_special = mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
        # /dev/stdout is a link to what has no path
        target = path.resolve() if path.is_symlink() and not is_special else path
        if mode is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission to write to it")
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder")
    except (OSError, RuntimeError) as error:  # RuntimeError: links that form a circle
        raise _cannot_write(path, error) from None
    folder = Path(tempfile.gettempdir()) if is_special else make_folder(target.parent)
    sweep_once(folder)
    temporary = temporary_path(folder, path.suffix)
    try:
        # not mkstemp, whose files are private: the kernel applies the umask
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        if is_special:
            with temporary.open("rb") as source, target.open("wb") as device:
                shutil.copyfileobj(source, device)
        else:
            _flush(temporary)
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            replace(temporary, target)
            _flush_folder(folder)
    except OSError as error:
        if error.errno in _FULL or error.filename in (str(temporary), str(target), temporary, target):
            raise _cannot_write(path, error) from None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _mode_of(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None  # `make_folder` says which part of the path is a file


def _flush(path: Path) -> None:
    """Write a file through to the disk; Windows only flushes files that are open for writing."""
    with path.open("r+b") as written:
        sync(written.fileno())


def _flush_folder(folder: Path) -> None:
    """Write the entry of a renamed file through to the disk, where folders can be opened."""
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _cannot_write(path: Path, error: Exception) -> ConfigError:
    reason = reason_of(error)
    advice = "free disk space" if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else "check the path"
    return ConfigError(f"{path}: cannot be written ({reason}); {advice}, or choose another {arg('output')}")


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `output` when the block ends without an error, and is removed otherwise.

    Args:
        output: new or empty folder.

    Raises:
        ConfigError: the folder cannot be created.
    """
    output = Path(output)
    exists = output.is_dir()  # it may be a mount point, which cannot be replaced
    created = [] if exists else [one for one in (output, *output.absolute().parents) if not one.exists()]
    place = output if exists else output.parent
    sweep_once(place)
    staging = make_folder(temporary_path(place))
    is_done = False
    try:
        yield staging
        if exists:
            for entry in staging.iterdir():
                replace(entry, output / entry.name)
            staging.rmdir()
        else:
            replace(staging, output)
        is_done = True
    except OSError as error:
        raise _cannot_write(output, error) from None
    finally:
        if not is_done:
            shutil.rmtree(staging, ignore_errors=True)
            for folder in created[1:]:
                with suppress(OSError):
                    folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_write(path) as temporary:
        # names of files and classes may contain bytes that are not valid text
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON list atomically, one row per line: readable, and recognised by `provenance`."""
    write_text(path, "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str]) -> None:
    """Write a `.safetensors` file atomically.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to; the old file is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:  # raised if the disk is full
            raise ConfigError(f"{path}: cannot be written ({error}); free disk space and try again") from None


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False for names longer than the system allows, which occur in annotation files."""
    try:
        return path.is_file()
    except OSError:
        return False


def what_is_at(path: Path) -> str:
    """Return what is at a path where `is_file` found no file: "is a folder", "is a pipe or device", or "no such file"."""
    try:
        return "is a folder" if path.is_dir() else "is a pipe or device" if path.exists() else "no such file"
    except OSError:
        return "no such file"


def reason_of(error: Exception) -> str:
    """Return what an error of the file system says, without its number and the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which may be linked to and never end, is refused.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder has its own error
        raise OSError(errno.EINVAL, "is a pipe or device, expected a file", str(path))
    return path.open("rb")


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file; see `open_file`.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
        ValueError: it is not in this encoding.
    """
    with open_file(path) as file, io.TextIOWrapper(file, encoding=encoding) as text:
        return text.read()


def read_names(path: Path) -> list[str]:
    """Read a list of names, one per line.

    Raises:
        DatasetError: the file is not valid text.
    """
    try:
        lines = read_text(path, "utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as a list of images ({error}); save it in UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


def make_folder(path: Path) -> Path:
    """Create a folder and its parents.

    Raises:
        ConfigError: the path is a file, or the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be a folder ({error.strerror}); choose another {arg('output')}") from None
    return path


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Lock a folder or a file for writing by one process; the lock of a killed process is released.

    Raises:
        ConfigError: another process has the lock, or the folder cannot be created.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / _LOCK if path.is_dir() else make_folder(path.parent) / f".{path.name}{_LOCK}")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"{path}: another process writes to it; wait until it ends, or choose another {arg('output')}"
        ) from None
    except (NotImplementedError, OSError):
        pass  # some network file systems have no locks
    try:
        if path.is_dir():  # no other process writes to it now
            for folder in (path, *(entry for entry in path.iterdir() if entry.is_dir())):
                sweep(folder)
        yield
    finally:
        lock.release()


def refuse_overwrite(output: Path) -> None:
    """Check that an output path is unused: a new file, or a new or empty folder.

    Raises:
        DatasetError: it is in use.
    """
    is_used = any(output.iterdir()) if output.is_dir() else output.is_file()
    if is_used:
        raise DatasetError(f"{output}: exists already and is not overwritten; choose another {arg('output')}")
