"""Atomic writes, folders and locks: after a crash a file has its old content or its new, never a part of it."""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.errors import ConfigError, DatasetError, arg

if TYPE_CHECKING:
    from torch import Tensor

_LOCK = ".lock"
_TEMPORARY_PREFIX = ".detrkit-"  # without the name, which may already have the maximum length


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` that replaces it when the block ends without an error.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY_PREFIX, suffix=path.suffix)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another {arg('output')}") from None
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
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another {arg('output')}") from None
    finally:
        temporary.unlink(missing_ok=True)


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
    staging = make_folder((output if exists else output.parent) / f"{_TEMPORARY_PREFIX}{secrets.token_hex(6)}")
    is_done = False
    try:
        yield staging
        if exists:
            for entry in staging.iterdir():
                entry.rename(output / entry.name)
            staging.rmdir()
        else:
            staging.rename(output)
        is_done = True
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{output}: cannot be written ({reason}); choose another {arg('output')}") from None
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


def read_names(path: Path) -> list[str]:
    """Read a list of names, one per line.

    Raises:
        DatasetError: the file is not valid text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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
        yield
    finally:
        lock.release()


def refuse_overwrite(output: Path) -> None:
    """Check that an output path is unused: a new file, or a new or empty folder.

    Raises:
        DatasetError: it is in use.
    """
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise DatasetError(f"{output}: exists already and is not overwritten; choose another {arg('output')}")
