"""The page of an explanation: one HTML file, put together from the files of this folder.

It opens from disk and fetches nothing, which its content security policy also forbids. The server uses the same parts for
its live page: `startPage(document, bytes)` in `start.js` shows a document received in any way.
"""

import base64
import html
import json
import zlib
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from detrkit._internal.provenance import MAKER_OF_PAGE
from detrkit.explain.document import PageDocument

_MASKS = "masks.js"  # views of models with a mask head
_SCRIPTS = (
    "elements.js",
    "maps.js",
    "drawing.js",
    "viewer.js",
    _MASKS,
    "layers.js",
    "edges.js",
    "selection.js",
    "matching.js",
    "stages.js",
    "start.js",
)


@dataclass(frozen=True)
class PageParts:
    """Parts of the page that do not depend on the image.

    Attributes:
        body: HTML of the elements that `startPage` fills.
        style: CSS.
        script: JavaScript, to be wrapped in a function.
    """

    body: str
    style: str
    script: str


def read_parts(*, with_masks: bool = True) -> PageParts:
    """Read the parts of the page, with or without the views of masks."""
    scripts = [name for name in _SCRIPTS if with_masks or name != _MASKS]
    return PageParts(_read("body.html"), _read("page.css"), "\n".join(_read(name) for name in scripts))


def build_page(page: PageDocument) -> str:
    """Build the HTML of a document."""
    parts = read_parts(with_masks="masks" in page.document)
    # "<" could end the script element that contains the document
    document = json.dumps(page.document, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(_read("page.html")).substitute(
        generator=MAKER_OF_PAGE,
        title=html.escape(f"{page.document['image']['name']}: DETR explained"),
        style=parts.style,
        body=parts.body,
        document=document,
        maps=base64.b64encode(zlib.compress(page.block, 9)).decode(),
        script=parts.script,
    )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
