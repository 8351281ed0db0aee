"""Marks that identify files written by detrkit.

Outputs of an earlier call are replaced without asking, while annotations, masks and configs of the user with the same names
are not; and annotated images are skipped when their folder is predicted again.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit._internal.files import is_file
from detrkit.errors import ConfigError, arg

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

MAKER = "detrkit"
MAKER_OF_PAGE = f'<meta name="generator" content="{MAKER}">'
MAKER_OF_YAML = f"# written by {MAKER}\n"
PARQUET_METADATA = {"maker": MAKER}
_MARKS = tuple(
    mark.encode()
    for mark in (
        f"tEXtSoftware\0{MAKER}",  # PNG
        f"<dc:title>{MAKER}</dc:title>",  # SVG: its creator
        f"/Creator ({MAKER})",  # PDF
        f"maker\x18\x07{MAKER}",  # Parquet: a type and a length precede a string
        MAKER_OF_PAGE,
    )
)
# JSON of an image or line, a document with a format or version field, a list with one row per line, YAML
_BEGINNINGS = re.compile(
    rb'\s*\{\s*"image": |\s*\{\s*"(format|version)": "detrkit-|\[\n\{"(image_id|id)": |' + MAKER_OF_YAML.encode()
)
_HEADER_BYTES = 4096
_FOOTER_BYTES = 65536  # of files whose metadata are at the end
_FOOTER_SUFFIXES = (".pdf", ".parquet")


def provenance_mark() -> "PngInfo":
    """Return the mark of a PNG file, for Pillow's `pnginfo`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", MAKER)
    return info


def is_written_by_detrkit(path: Path) -> bool:
    """Return whether detrkit wrote a file: an image, HTML page, table, JSON document, JSON Lines or config."""
    try:
        with path.open("rb") as file:
            content = file.read(_HEADER_BYTES)
            if path.suffix.lower() in _FOOTER_SUFFIXES:
                file.seek(max(0, path.stat().st_size - _FOOTER_BYTES))
                content += file.read()
    except OSError:
        return False
    return _BEGINNINGS.match(content) is not None or any(mark in content for mark in _MARKS)


def refuse_foreign_overwrite(
    path: Path, argument: str = "output", is_own: Callable[[Path], bool] = is_written_by_detrkit
) -> None:
    """Check that writing a file replaces nothing, an empty file, or a file that detrkit wrote.

    Args:
        path: file to be written.
        argument: name of the argument that chooses it.
        is_own: whether detrkit wrote a file.

    Raises:
        ConfigError: the path is a folder, or a file that detrkit did not write.
    """
    if path.is_dir():
        raise ConfigError(f"{arg(argument, str(path))} is a folder; pass the name of a file")
    if is_file(path) and path.stat().st_size and not is_own(path):
        raise ConfigError(
            f"{path}: was not written by detrkit and would be overwritten; choose another {arg(argument)}"
        )
