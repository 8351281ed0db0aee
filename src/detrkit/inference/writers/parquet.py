"""Convert JSON Lines to Parquet, one row per image or frame, in bounded memory (extra `parquet`: pyarrow)."""

from itertools import islice
from pathlib import Path
from typing import Any

from detrkit._internal.files import atomic_write
from detrkit._internal.provenance import PARQUET_METADATA
from detrkit.errors import arg, import_optional
from detrkit.inference.writers.jsonl import read_jsonl

_ROWS_PER_GROUP = 1000


def check_parquet() -> Any:
    """Import pyarrow.

    Raises:
        ConfigError: it is not installed.
    """
    return import_optional("pyarrow", arg("write", "parquet"), "detrkit[parquet]")


def write_parquet(lines: Path, output: Path) -> None:
    """Convert a file of lines to a table with the same columns; missing values are null.

    Raises:
        ConfigError: pyarrow is not installed, or the file cannot be written.
        DatasetError: the lines cannot be read.
    """
    pyarrow = check_parquet()
    from pyarrow.parquet import ParquetWriter

    schema = _schema(pyarrow)
    entries = read_jsonl(lines)
    with atomic_write(output) as temporary, ParquetWriter(temporary, schema) as writer:
        while rows := [_escape_undecodable(entry) for entry in islice(entries, _ROWS_PER_GROUP)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _escape_undecodable(entry: dict[str, Any]) -> dict[str, Any]:
    """Escape bytes in file names that are not valid text, as the text files do."""
    texts = {name: value for name, value in entry.items() if isinstance(value, str)}
    return {**entry, **{name: value.encode(errors="backslashreplace").decode() for name, value in texts.items()}}


def _schema(pyarrow: Any) -> Any:
    detection = pyarrow.struct(
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
            ("objects", pyarrow.list_(detection)),
        ],
    )
