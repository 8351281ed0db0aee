"""Names of classes, files and models as text in matplotlib's figures, which reads `$` as mathematics."""

import unicodedata

from detrkit._internal.text import printable
from detrkit.visualization.fonts import fonts_for

MAX_LENGTH = 32  # letters of a name; longer ones leave no room for the axes
_FAMILY = "DejaVu Sans"  # matplotlib's own


def figure_text(name: str, max_length: int = MAX_LENGTH) -> str:
    """Return a name as it is drawn literally: on one line, cut, without control characters, `$` escaped."""
    line = "".join(sign for sign in printable(name) if unicodedata.category(sign) not in ("Cs", "Cn", "Co"))
    short = line if len(line) <= max_length else f"{line[: max_length - 9]}...{line[-6:]}"  # a score stays
    return short.replace("$", r"\$")


def font_families(text: str) -> list[str]:
    """Return the families of fonts that have the letters of a text, matplotlib's own first."""
    from matplotlib.font_manager import fontManager

    family_of = {font.fname: font.name for font in fontManager.ttflist}
    return [_FAMILY, *dict.fromkeys(family_of[path] for path in fonts_for(text) if path in family_of)]
