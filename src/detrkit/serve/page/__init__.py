"""The live page: choose a photo, send it, explore the answer on the page of `explain`, whose parts are used as they are."""

import html
from importlib.resources import files

from detrkit.explain.page import filled, read_parts
from detrkit.serve.settings import ServeConfig


def live_page(model_name: str, settings: ServeConfig, explains: bool) -> dict[str, tuple[str, bytes]]:
    """Put the page together: by its address, the type and the content of each part."""
    parts = read_parts()
    fills = {
        "TITLE": html.escape(f"{model_name}: look into your photos"),
        "MODEL": html.escape(model_name),
        "BODY": parts.body,
        "LIMIT": str(settings.max_bytes),
        "EXPLAINS": "yes" if explains else "no",
    }
    script = f'"use strict";\n(() => {{\n{parts.script}\n{_text("live.js")}\n}})();\n'
    return {
        "/": ("text/html; charset=utf-8", filled(_text("live.html"), fills).encode()),
        "/page.css": ("text/css; charset=utf-8", f"{parts.style}\n{_text('live.css')}".encode()),
        "/page.js": ("text/javascript; charset=utf-8", script.encode()),
        "/icon.svg": ("image/svg+xml", _text("icon.svg").encode()),
    }


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
