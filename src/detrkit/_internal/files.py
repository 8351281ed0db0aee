"""Writing files so that a crash leaves either the old content or the new, never half of it."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from torch import Tensor

_LOCK = ".lock"
_TEMPORARY = ".detrkit-"  # and not the name, which may be as long as names can be


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its place when the block ends without an error.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY, suffix=path.suffix)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place with --output") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        try:
            temporary.replace(path)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be written ({error.strerror}); choose another place with --output"
            ) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_write(path) as temporary:
        # names of files and classes may hold bytes that are no text
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON list atomically, a row a line: people can read it, and `signatures` knows it."""
    write_text(path, "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str]) -> None:
    """Write a `.safetensors` file atomically.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to; what was there before is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:  # its writer's word for a full disk
            raise ConfigError(f"{path}: cannot be written ({error}); make room, and give the command again") from None


def is_file(path: Path) -> bool:
    """Tell whether a file lies there; names that were read from files may be longer than the system takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_names(path: Path) -> list[str]:
    """Read a list of photos, a name a line.

    Raises:
        DatasetError: it is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as a list of photos ({error}); save it in UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


def make_folder(path: Path) -> Path:
    """Create a folder and those above it.

    Raises:
        ConfigError: something else lies there, or it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be a folder ({error.strerror}); choose another place with --output"
        ) from None
    return path


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Be the only one who writes to a folder, or to a file; a process that dies lets go of it.

    Raises:
        ConfigError: somebody else does, or the folder cannot be created.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / _LOCK if path.is_dir() else make_folder(path.parent) / f".{path.name}{_LOCK}")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"{path}: another process writes to it; wait until it ends, or choose another place with --output"
        ) from None
    except (NotImplementedError, OSError):
        pass  # some network disks know no locks
    try:
        yield
    finally:
        lock.release()


def check_is_free(output: Path) -> None:
    """See that nothing would be overwritten.

    Raises:
        DatasetError: something lies there.
    """
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise DatasetError(f"{output}: exists already, and nothing is overwritten; choose another place")
