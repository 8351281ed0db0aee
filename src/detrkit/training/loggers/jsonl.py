"""Logger that appends JSON lines to ``metrics.jsonl``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from PIL.Image import Image

from detrkit._internal.documents import parse_json
from detrkit._internal.files import write_text
from detrkit.training.loggers.base import Kind, LogContext, Value
from detrkit.training.run_folder import METRICS_FILE

_MAX_VALUE = 1e300  # an integer in JSON may have more digits than a float can hold


class JSONLogger:
    """Writes an object per line: ``{"kind": "train", "step": 10, "epoch": 1, "loss": ...}``."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def open(self, context: LogContext) -> None:
        """Open the file; of a resumed run, entries are kept that lie before its saved state."""
        path = context.output / METRICS_FILE
        kept = [
            entry
            for entry in (read_metrics(context.output) if context.step else [])
            if int(str(entry["step"])) <= context.step
            and (entry.get("kind") != "evaluation" or int(str(entry["epoch"])) < context.epoch)
        ]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, kind: Kind, step: int, epoch: int, values: Mapping[str, Value]) -> None:
        """Write a line."""
        assert self._file is not None, "opened before it logs"
        self._file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
        self._file.flush()

    def images(self, step: int, images: Sequence[Image]) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_metrics(folder: Path) -> list[dict[str, object]]:
    """Read the metrics of a run folder; an incomplete last line, and lines that are no metrics, are left out."""
    entries: list[dict[str, object]] = []
    path = folder / METRICS_FILE
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if _is_entry(entry):
            entries.append(entry)
    return entries


def _is_entry(entry: Any) -> bool:
    """Return whether a value is an object with a kind, a step, an epoch and numbers."""
    if not isinstance(entry, dict) or not all(type(entry.get(name)) is int for name in ("step", "epoch")):
        return False
    values = (value for name, value in entry.items() if name != "kind")
    return isinstance(entry.get("kind"), str) and all(
        value is None or (isinstance(value, int | float) and abs(value) < _MAX_VALUE) for value in values
    )
