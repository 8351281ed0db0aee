"""The live page: upload an image and explore its predictions, with the scripts and styles of the page of `explain`."""

import html
from importlib.resources import files

from detrkit.explain.page import filled, read_parts
from detrkit.serve.config import ServeConfig


def live_page(model_name: str, config: ServeConfig, can_explain: bool) -> dict[str, tuple[str, bytes]]:
    """Build the page: media type and content of each file, by its path."""
    parts = read_parts()
    fills = {
        "TITLE": html.escape(f"{model_name}: explore your images"),
        "MODEL": html.escape(model_name),
        "BODY": parts.body,
        "LIMIT": str(config.max_upload_bytes),
        "EXPLAINS": "yes" if can_explain else "no",
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
