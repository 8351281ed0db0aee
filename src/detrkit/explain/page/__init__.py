"""The page: its parts lie beside this file, and are put together with a document into one HTML file.

It opens from disk and fetches nothing, which its content security policy also forbids. `startPage(document, bytes)` in
`start.js` is all that it takes to show another document, from wherever it comes.
"""

import base64
import html
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from detrkit._internal.provenance import MAKER_OF_PAGE
from detrkit.explain.document import PageDocument

_MASKS = "masks.js"  # the views of models with a mask head
_SCRIPTS = (
    "elements.js",
    "maps.js",
    "drawing.js",
    "look.js",
    _MASKS,
    "layers.js",
    "matching.js",
    "stages.js",
    "start.js",
)


@dataclass(frozen=True)
class PageParts:
    """What the page is made of, apart from what it shows.

    Attributes:
        body: HTML of all that `startPage` fills.
        style: CSS.
        script: JavaScript, to be put inside of a function.
    """

    body: str
    style: str
    script: str


def read_parts(*, with_masks: bool = True) -> PageParts:
    """Read the parts of the page, with the views of masks or without."""
    scripts = [name for name in _SCRIPTS if with_masks or name != _MASKS]
    return PageParts(_text("body.html"), _text("page.css"), "\n".join(_text(name) for name in scripts))


def build_page(page: PageDocument) -> str:
    """Put the page of a document together, as HTML."""
    parts = read_parts(with_masks="masks" in page.document)
    title = f"{page.document['photo']['name']}: how DETR saw it"
    # "<" could end the script it stands in
    document = json.dumps(page.document, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    fills = {
        "MAKER": MAKER_OF_PAGE,
        "TITLE": html.escape(title),
        "STYLE": parts.style,
        "BODY": parts.body,
        "DOCUMENT": document,
        "MAPS": base64.b64encode(zlib.compress(page.block, 9)).decode(),
        "SCRIPT": parts.script,
    }
    return filled(_text("page.html"), fills)


def filled(template: str, fills: Mapping[str, str]) -> str:
    """Put texts in the places of a template that stand between two @@."""
    # every second piece is a name; filled in one pass, so that nothing is looked for inside of what was filled in
    return "".join(fills[piece] if index % 2 else piece for index, piece in enumerate(template.split("@@")))


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
