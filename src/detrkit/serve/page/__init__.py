"""The live page: upload an image and explore its predictions, with the scripts and styles of the page of `explain`."""

import html
from importlib.resources import files
from string import Template

from detrkit.explain.page import read_parts
from detrkit.serve.config import ServeConfig


def live_page(
    model_name: str, config: ServeConfig, can_explain: bool, root_path: str = ""
) -> dict[str, tuple[str, bytes]]:
    """Build the page: media type and content of each file, by its path.

    All links are relative. With a path prefix, they are relative to it, also if the page's address has no slash at its end.
    """
    parts = read_parts()
    page = Template(_text("live.html")).substitute(
        title=html.escape(f"{model_name}: explore your images"),
        model=html.escape(model_name),
        base=f'<base href="{html.escape(root_path)}/">\n' if root_path else "",
        body=parts.body,
        limit=config.max_upload_bytes,
        explains="yes" if can_explain else "no",
    )
    script = f'"use strict";\n(() => {{\n{parts.script}\n{_text("live.js")}\n}})();\n'
    return {
        "/": ("text/html; charset=utf-8", page.encode()),
        "/page.css": ("text/css; charset=utf-8", f"{parts.style}\n{_text('live.css')}".encode()),
        "/page.js": ("text/javascript; charset=utf-8", script.encode()),
        "/icon.svg": ("image/svg+xml", _text("icon.svg").encode()),
    }


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
