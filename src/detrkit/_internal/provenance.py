"""What detrkit wrote is known by a mark in it, and may be written anew; what somebody else wrote is spared.

Pictures, pages and tables name their maker; JSON and lines of it begin as only ours do.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit._internal.files import is_file
from detrkit.errors import ConfigError

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
        f"maker\x18\x07{MAKER}",  # Parquet: a kind and a length stand before a text
        MAKER_OF_PAGE,
    )
)
# a photo's JSON or line, a document that names its form, a list with a row a line, YAML
_BEGINNINGS = re.compile(
    rb'\s*\{\s*"image": |\s*\{\s*"format": "detrkit-|\[\n\{"(image_id|id)": |' + MAKER_OF_YAML.encode()
)
_HEADER = 4096  # bytes, in which marks are
_FOOTER = 65536  # bytes, in which they are where files describe themselves at their end
_DESCRIBED_AT_THE_END = (".pdf", ".parquet")


def provenance_mark() -> "PngInfo":
    """The mark of a PNG."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", MAKER)
    return info


def is_written_by_detrkit(path: Path) -> bool:
    """Whether detrkit wrote a picture, a page, a table, JSON, lines of it, or a config."""
    try:
        with path.open("rb") as file:
            content = file.read(_HEADER)
            if path.suffix.lower() in _DESCRIBED_AT_THE_END:
                file.seek(max(0, path.stat().st_size - _FOOTER))
                content += file.read()
    except OSError:
        return False
    return _BEGINNINGS.match(content) is not None or any(mark in content for mark in _MARKS)


def refuse_foreign_overwrite(
    path: Path, option: str = "--output", is_ours: Callable[[Path], bool] = is_written_by_detrkit
) -> None:
    """See that a file takes the place of nothing but what detrkit wrote before; an empty file is nobody's work.

    Args:
        path: of the file that is to be written.
        option: that chooses it.
        is_ours: tells what detrkit wrote.

    Raises:
        ConfigError: a folder lies there, or what somebody else wrote.
    """
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder, expected the name of a file")
    if is_file(path) and path.stat().st_size and not is_ours(path):
        raise ConfigError(f"{path}: was not written by detrkit and would be overwritten; choose another {option}")
