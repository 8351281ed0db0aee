"""The page: its parts lie beside this file, and are put together with a document into one HTML file.

It opens from disk and fetches nothing, which its content security policy also forbids. `startPage(document, bytes)` in
`start.js` is all that it takes to show another document, from wherever it comes.
"""

import base64
import html
import json
import zlib
from importlib.resources import files

from detrkit.explain.document import PageDocument

_SCRIPTS = ("elements.js", "maps.js", "drawing.js", "look.js", "layers.js", "matching.js", "stages.js", "start.js")


def build_page(page: PageDocument) -> str:
    """Put the page of a document together, as HTML."""
    parts = files(__package__)
    title = f"{page.document['photo']['name']}: how DETR saw it"
    # "<" could end the script it stands in
    document = json.dumps(page.document, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    fills = {
        "TITLE": html.escape(title),
        "STYLE": parts.joinpath("page.css").read_text("utf-8"),
        "DOCUMENT": document,
        "MAPS": base64.b64encode(zlib.compress(page.block, 9)).decode(),
        "SCRIPT": "\n".join(parts.joinpath(name).read_text("utf-8") for name in _SCRIPTS),
    }
    pieces = parts.joinpath("page.html").read_text("utf-8").split("@@")
    # every second piece is a name; filled in one pass, so that nothing is looked for inside of what was filled in
    return "".join(fills[piece] if index % 2 else piece for index, piece in enumerate(pieces))
