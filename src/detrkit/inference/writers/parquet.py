"""JSON lines -> Parquet, a row per photo or frame (extra `parquet`: pyarrow), in memory that does not grow."""

from itertools import islice
from pathlib import Path
from typing import Any

from detrkit._internal.files import atomic_write
from detrkit._internal.provenance import PARQUET_METADATA
from detrkit.errors import import_optional
from detrkit.inference.writers.jsonl import read_lines

_ROWS = 1000  # at a time


def check_parquet() -> Any:
    """See that Parquet can be written, before there is anything to write.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    return import_optional("pyarrow", "--write parquet", "detrkit[parquet]")


def write_parquet(lines: Path, output: Path) -> None:
    """Write the lines of a file as a table: the same columns, null where a line has none.

    Raises:
        ConfigError: pyarrow is not installed, or the file cannot be written.
        DatasetError: the lines cannot be read.
    """
    pyarrow = check_parquet()
    from pyarrow.parquet import ParquetWriter

    columns = _columns(pyarrow)
    entries = read_lines(lines)
    with atomic_write(output) as temporary, ParquetWriter(temporary, columns) as writer:
        while rows := [_as_text(entry) for entry in islice(entries, _ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=columns))


def _as_text(entry: dict[str, Any]) -> dict[str, Any]:
    """Names of files may hold bytes that are no text: they are written out, as in files of text."""
    texts = {name: value for name, value in entry.items() if isinstance(value, str)}
    return {**entry, **{name: value.encode(errors="backslashreplace").decode() for name, value in texts.items()}}


def _columns(pyarrow: Any) -> Any:
    found = pyarrow.struct(
        [
            ("name", pyarrow.string()),
            ("category_id", pyarrow.int64()),
            ("score", pyarrow.float32()),
            ("box", pyarrow.list_(pyarrow.float32(), 4)),
        ]
    )
    return pyarrow.schema(
        metadata=PARQUET_METADATA,
        fields=[
            ("image", pyarrow.string()),
            ("frame", pyarrow.int64()),
            ("seconds", pyarrow.float64()),
            ("width", pyarrow.int32()),
            ("height", pyarrow.int32()),
            ("error", pyarrow.string()),
            ("objects", pyarrow.list_(found)),
        ],
    )
