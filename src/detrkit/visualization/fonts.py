"""Text in any script with the available fonts: Pillow's for ASCII, DejaVu Sans (of matplotlib), then those of the system.

Text is cut into runs of one font and one direction. With Raqm, which Pillow's wheels contain and which needs the system's
FriBiDi, letters are joined and ordered by it; without, right-to-left text is reversed and Arabic letters take their
presentation forms here.
"""

import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

_LOG = logging.getLogger(__name__)
_UNWANTED = re.compile(
    "bold|black|heavy|medium|light|thin|italic|oblique|condensed|narrow|mono|serif(?!.*sans)", re.IGNORECASE
)
_PLACEHOLDERS = re.compile("last.?resort|adobe.?blank|notdef|fallback", re.IGNORECASE)  # fonts that draw boxes
_MIRRORED = str.maketrans("()[]{}<>«»", ")(][}{><»«")
_ZERO_WIDTH_JOINER = "\u200d"
_FONT_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")


@dataclass(frozen=True)
class Run:
    """A piece of text in one font and direction.

    Attributes:
        text: in the order of reading; of right-to-left text without Raqm in the order of drawing.
        font: that has all of its letters.
        direction: "rtl" where Raqm orders the letters from right to left.
        left: its start in pixels.
    """

    text: str
    font: ImageFont.FreeTypeFont
    direction: str | None
    left: float


@dataclass(frozen=True)
class Font:
    """Fonts of all scripts in one size.

    Attributes:
        size: in pixels.
    """

    size: int

    def getbbox(self, text: str) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of a text in pixels, relative to the start of its baseline."""
        boxes = [
            (x0 + run.left, y0, x1 + run.left, y1)
            for run in lay_out(text, self.size)
            for x0, y0, x1, y1 in [run.font.getbbox(run.text, anchor="ls", direction=run.direction)]
        ]
        if not boxes:
            return 0.0, 0.0, 0.0, 0.0
        left, top, right, bottom = zip(*boxes, strict=True)
        return min(left), min(top), max(right), max(bottom)

    def draw(self, pen: ImageDraw.ImageDraw, origin: tuple[float, float], text: str, fill: str) -> None:
        """Draw a text whose baseline starts at `origin`."""
        for run in lay_out(text, self.size):
            start = (origin[0] + run.left, origin[1])
            pen.text(start, run.text, fill=fill, font=run.font, anchor="ls", direction=run.direction)


@lru_cache(maxsize=4096)
def lay_out(text: str, size: int) -> tuple[Run, ...]:
    """Cut a text into runs, from left to right. Letters that no font has are drawn as boxes, and logged once."""
    runs: list[Run] = []
    left = 0.0
    for part, is_right_to_left in _directions(_printable(text)):
        pieces = list(_fonts(part, size, is_plain=text.isascii()))
        for piece, font in reversed(pieces) if is_right_to_left else pieces:
            joined = is_right_to_left and _has_raqm()
            shown = piece if joined or not is_right_to_left else visual_order(piece)
            direction = "rtl" if joined else None
            runs.append(Run(shown, font, direction, left))
            left += font.getlength(shown, direction=direction)
    return tuple(runs)


def fonts_for(text: str, size: int = 12) -> list[str]:
    """Return the files of the fonts that a text is drawn with; letters that no font has are logged once."""
    return list(dict.fromkeys(_font_path(cluster, size) for cluster in _clusters(_printable(text))))


def _printable(text: str) -> str:
    """Replace what cannot be drawn: control characters, and bytes of file names that are not text."""
    replaced = {"Cc": " ", "Cs": "\ufffd"}
    return "".join(replaced.get(unicodedata.category(sign), sign) for sign in text)


def _directions(text: str) -> Iterator[tuple[str, bool]]:
    """Split text where its direction changes; the score after a name is not part of the name's direction."""
    strong = [unicodedata.bidirectional(sign) for sign in text]
    start = 0
    while start < len(text):
        if strong[start] not in ("R", "AL"):
            end = next((i for i in range(start, len(text)) if strong[i] in ("R", "AL")), len(text))
            yield text[start:end], False
        else:
            limit = next((i for i in range(start, len(text)) if strong[i] == "L"), len(text))
            end = 1 + max(i for i in range(start, limit) if strong[i] in ("R", "AL"))
            while end < limit and (strong[end] == "NSM" or unicodedata.category(text[end]) in ("Pe", "Pf")):
                end += 1  # accents of the last letter, and brackets that close
            yield text[start:end], True
        start = end


def _fonts(text: str, size: int, *, is_plain: bool) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    """Split text where another font is needed; accents and joined signs stay together. Plain text has Pillow's font."""
    piece, path = "", "" if is_plain else None
    for cluster in _clusters(text):
        chosen = path if path is not None and (cluster.isspace() or _has(path, cluster)) else _font_path(cluster, size)
        if piece and chosen != path:
            yield piece, _load(path, size)
            piece = ""
        piece, path = piece + cluster, chosen
    if piece:
        yield piece, _load(path, size)


def _clusters(text: str) -> list[str]:
    clusters: list[str] = []
    for sign in text:
        extends = unicodedata.category(sign) in ("Mn", "Mc", "Me", "Cf")
        if clusters and (extends or clusters[-1].endswith(_ZERO_WIDTH_JOINER)):
            clusters[-1] += sign
        else:
            clusters.append(sign)
    return clusters


def _font_path(cluster: str, size: int) -> str:
    """Return the first font that has a letter."""
    for path in _font_paths():
        if _has(path, cluster) and _can_load(path, size):
            return path
    sign = next(iter(_needed(cluster)), cluster[0])
    is_letter = unicodedata.category(sign).startswith(("L", "M", "N"))
    _report_missing(unicodedata.name(sign, "unnamed").split()[0] if is_letter else "symbols")
    return _font_paths()[0]


def _has(path: str, cluster: str) -> bool:
    return cluster.isascii() if not path else all(ord(sign) in _characters(path) for sign in _needed(cluster))


def _needed(cluster: str) -> list[str]:
    """Leave out joiners and variation selectors, which have no picture of their own."""
    return [one for one in cluster if unicodedata.category(one) != "Cf" and not "\ufe00" <= one <= "\ufe0f"]


@cache
def _report_missing(script: str) -> None:
    """Log that a script cannot be drawn, once."""
    _LOG.warning(
        "captions: letters of a class name (%s) are drawn as boxes, because no installed font has them; install one, as "
        "Noto Sans of that script",
        script,
    )


@cache
def _font_paths() -> tuple[str, ...]:
    """Return the files of fonts, most suitable first: DejaVu Sans, then upright sans-serif fonts of normal weight."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    packaged = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    found = [path for path in findSystemFonts() if path.lower().endswith(_FONT_SUFFIXES)]
    usable = [path for path in found if not _PLACEHOLDERS.search(Path(path).name)]
    return (packaged, *sorted(usable, key=_unsuitability))


def _unsuitability(path: str) -> tuple[int, bool, str]:
    stem = Path(path).stem
    return len(_UNWANTED.findall(stem)), "sans" not in stem.lower(), stem


@cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a damaged font, or of a format that FreeType does not know
        return frozenset()


@cache
def _can_load(path: str, size: int) -> bool:
    try:
        _load(path, size)
    except OSError:  # fonts of pictures come in sizes of their own
        return False
    return True


@lru_cache(maxsize=256)
def _load(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    if path:
        engine = ImageFont.Layout.RAQM if _has_raqm() else ImageFont.Layout.BASIC
        return ImageFont.truetype(path, size, layout_engine=engine)
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


@cache
def _has_raqm() -> bool:
    return bool(features.check("raqm"))


def visual_order(text: str) -> str:
    """Order right-to-left text from left to right, with Arabic letters in their joined forms; numbers keep their order."""
    clusters = [cluster.translate(_MIRRORED) for cluster in _clusters(join_arabic(text))]
    reversed_text = "".join(reversed(clusters))
    return re.sub(r"\d[\d.,:%]*\d", lambda match: match[0][::-1], reversed_text)


def join_arabic(text: str) -> str:
    """Replace Arabic letters by their forms: isolated, or at the end, at the start or in the middle of a word."""
    forms = _arabic_forms()
    letters = list(_clusters(text))
    joined = []
    for index, cluster in enumerate(letters):
        own = forms.get(cluster[0])
        if own is None:
            joined.append(cluster)
            continue
        before = index > 0 and "initial" in forms.get(letters[index - 1][0], {})
        after = index + 1 < len(letters) and "final" in forms.get(letters[index + 1][0], {}) and "initial" in own
        name = {(False, False): "isolated", (True, False): "final", (False, True): "initial", (True, True): "medial"}
        joined.append(own.get(name[before, after], cluster[0]) + cluster[1:])
    return "".join(joined)


@cache
def _arabic_forms() -> dict[str, dict[str, str]]:
    """Return the presentation forms of every letter by their position, from Unicode's own table."""
    forms: dict[str, dict[str, str]] = {}
    for code in (*range(0xFB50, 0xFE00), *range(0xFE70, 0xFF00)):
        position, *letters = unicodedata.decomposition(chr(code)).split()[:3] or ("",)
        if len(letters) == 1 and position[1:-1] in ("isolated", "final", "initial", "medial"):
            forms.setdefault(chr(int(letters[0], 16)), {})[position[1:-1]] = chr(code)
    return forms


def shown_width(text: str, font: Font) -> float:
    """Return the width of a text in pixels."""
    runs: Sequence[Run] = lay_out(text, font.size)
    return 0.0 if not runs else runs[-1].left + runs[-1].font.getlength(runs[-1].text, direction=runs[-1].direction)
