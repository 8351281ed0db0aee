"""Append-only JSON Lines writer that can be resumed.

A line is appended when its image is done. A killed process leaves at most one incomplete line, which the next call
removes. The settings of the predictions are stored in a second file, so that two thresholds or two models never
share a file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from detrkit._internal.documents import parse_json
from detrkit._internal.files import file_lock, make_folder, write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.distributed.rank import Rank
from detrkit.errors import ConfigError, DatasetError, arg

_LINE_START = b'{"image": '  # of every line
_LINE_END = b"}\n"
_FORMAT = "detrkit-predictions-1"


class JsonlWriter:
    """The file of one process.

    Attributes:
        path: path of the file.
        done: images that have a line from an earlier call.
        errors: of those, the unreadable images and their error messages.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Create the file, or resume it.

        Args:
            path: path of the file.
            settings: everything that the content of the lines depends on.

        Raises:
            ConfigError: the file was written with other settings, cannot be written, or is in use by another process.
            DatasetError: the file was not written by detrkit.
        """
        self.path = path
        self.done: set[str] = set()
        self.errors: dict[str, str] = {}
        make_folder(path.parent)
        self._check_settings(settings)
        try:
            self._file = path.open("r+b" if path.exists() else "x+b")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another {arg('output')}") from None
        with ExitStack() as stack:
            stack.callback(self._file.close)
            stack.enter_context(file_lock(path))
            self._read_done()
            self._open = stack.pop_all()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append a line; its first key is "image".

        Raises:
            ConfigError: the disk is full.
        """
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written ({error.strerror}); free disk space and repeat the call, which resumes"
            ) from None

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        settings_file = self.path.with_suffix(".settings.json")
        if not self.path.exists():
            refuse_foreign_overwrite(settings_file)
            write_text(settings_file, json.dumps({"format": _FORMAT, **settings}, ensure_ascii=False, indent=2))
            return
        try:
            before = parse_json(settings_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        advice = f"choose another {arg('output')}, or remove the file to start again"
        if not isinstance(before, dict):
            raise ConfigError(f"{self.path}: exists, but its settings in {settings_file.name} are missing; {advice}")
        for name, value in settings.items():
            if before.get(name) != value:
                raise ConfigError(f"{self.path}: was written with {name} {before.get(name)}, not {value}; {advice}")

    def _read_done(self) -> None:
        """Read which images are done, and cut off an incomplete line."""
        end = 0
        for number, line in enumerate(self._file, start=1):
            if line.endswith(b"\n"):
                where = f"{self.path}: line {number}"
                image = _image_of_line(line, where)
                self.done.add(image)
                if b', "error": ' in line and (error := _error_of_line(line, where)) is not None:
                    self.errors[image] = error
                end += len(line)
        self._file.truncate(end)
        self._file.seek(end)


def _image_of_line(line: bytes, where: str) -> str:
    """Read the path of the image from the start of a line; the rest was written in the same call."""
    try:
        if not (line.startswith(_LINE_START) and line.endswith(_LINE_END)):
            raise ValueError
        return str(json.JSONDecoder().raw_decode(line.decode("utf-8"), len(_LINE_START))[0])
    except ValueError:
        raise _foreign_line(where) from None


def _error_of_line(line: bytes, where: str) -> str | None:
    """Read why an image could not be read; None if it could."""
    try:
        entry = parse_json(line)
    except ValueError:
        raise _foreign_line(where) from None
    return str(entry["error"]) if isinstance(entry, dict) and "error" in entry else None


def _foreign_line(where: str) -> DatasetError:
    return DatasetError(f"{where}: was not written by detrkit; choose another {arg('output')}")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the lines of a file; an incomplete last line is skipped.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield parse_json(line)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as JSON Lines ({error}); write it again") from None


def jsonl_name(process: Rank) -> str:
    """Return the name of a process's file, without suffix; each process has its own."""
    if process.world_size == 1:
        return "predictions"
    digits = len(str(process.world_size - 1))
    return f"predictions-{process.rank:0{digits}d}-of-{process.world_size}"
