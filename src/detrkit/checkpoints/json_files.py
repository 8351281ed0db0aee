"""JSON files that come with weights, read within limits."""

from pathlib import Path
from typing import Any

from detrkit._internal.documents import parse_json
from detrkit._internal.files import read_text
from detrkit.errors import CheckpointError

MAX_JSON = 32 * 2**20  # bytes; a ``config.json`` with the names of 100,000 classes takes about 8 MB


def read_json(path: Path, kind: str = "JSON") -> dict[str, Any]:
    """Read a JSON file.

    Args:
        path: the file.
        kind: what it should be, for messages.

    Raises:
        CheckpointError: it is missing, too large, malformed, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise CheckpointError(f"{path}: has {size:,} bytes, expected at most {MAX_JSON:,}; get the folder again")
        content = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as {kind} ({error}); get the file again") from None
    if not isinstance(content, dict):
        found = type(content).__name__
        raise CheckpointError(f"{path}: not readable as {kind} (found a {found}, expected names); get the file again")
    return content
