"""Predictions as JSON lines: a file that only grows, and that says itself what is done, so that a second call goes on.

A line is written when its photo is done. A process that is killed leaves at most one line without an end, which the next
call cuts off. What the lines were made with lies beside them, so that two thresholds or two models never share a file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from detrkit._internal.files import file_lock, make_folder, write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.distributed.rank import Process
from detrkit.errors import ConfigError, DatasetError

_FIRST = b'{"image": '  # every line of ours begins so
_LAST = b"}\n"
_FORMAT = "detrkit-lines-1"


class JsonlWriter:
    """One process's file.

    Attributes:
        path: of the file.
        done: photos that have a line already, from an earlier call.
        faults: what is wrong with those of them that could not be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin the file, or go on with it.

        Raises:
            ConfigError: it was made with other settings, cannot be written, or another process writes it now.
            DatasetError: something else lies there.
        """
        self.path = path
        self.done: set[str] = set()
        self.faults: dict[str, str] = {}
        make_folder(path.parent)
        self._agree_on(settings)
        try:
            self._file = path.open("r+b" if path.exists() else "x+b")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None
        with ExitStack() as stack:
            stack.callback(self._file.close)
            stack.enter_context(file_lock(path))
            self._recall()
            self._open = stack.pop_all()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line; its first entry is "image".

        Raises:
            ConfigError: the disk is full.
        """
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written ({error.strerror}); make room, and the same command goes on"
            ) from None

    def _agree_on(self, settings: Mapping[str, Any]) -> None:
        beside = self.path.with_suffix(".settings.json")
        if not self.path.exists():
            refuse_foreign_overwrite(beside)
            write_text(beside, json.dumps({"format": _FORMAT, **settings}, ensure_ascii=False, indent=2))
            return
        try:
            before = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        advice = "choose another --output, or remove the file to begin anew"
        if not isinstance(before, dict):
            raise ConfigError(f"{self.path}: exists already, and no {beside.name} says what it was made with; {advice}")
        for name, value in settings.items():
            if before.get(name) != value:
                raise ConfigError(f"{self.path}: was begun with {name} {before.get(name)}, found {value}; {advice}")

    def _recall(self) -> None:
        """Read which photos are done, and cut off a line that has no end."""
        end = 0
        for number, line in enumerate(self._file, start=1):
            if line.endswith(b"\n"):
                photo = _photo_of(line, f"{self.path}: line {number}")
                self.done.add(photo)
                if b', "error": ' in line:
                    self.faults[photo] = str(json.loads(line)["error"])
                end += len(line)
        self._file.truncate(end)
        self._file.seek(end)


def _photo_of(line: bytes, where: str) -> str:
    """Read the photo's path from the beginning of a line; the rest was written in the same go."""
    try:
        if not (line.startswith(_FIRST) and line.endswith(_LAST)):
            raise ValueError
        return str(json.JSONDecoder().raw_decode(line.decode("utf-8"), len(_FIRST))[0])
    except ValueError:
        raise DatasetError(f"{where}: is none of detrkit predict; choose another --output") from None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of lines, one after the other; a last line that has no end is left out.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as JSON lines ({error}); write it again") from None


def lines_name(process: Process) -> str:
    """Name a process's file, without suffix: each has its own."""
    if process.world == 1:
        return "predictions"
    digits = len(str(process.world - 1))
    return f"predictions-{process.rank:0{digits}d}-of-{process.world}"
