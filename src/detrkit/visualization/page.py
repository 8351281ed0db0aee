"""Self-contained HTML pages, rendered from Jinja templates: a single file that loads nothing else."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from detrkit._internal.provenance import MAKER_OF_PAGE
from detrkit._internal.text import plural

_PACKAGE = "detrkit.visualization"
MAX_EMBEDDED_SIDE = 480  # pixels


@cache
def _environment(package: str) -> Environment:
    loaders = [PackageLoader(name) for name in dict.fromkeys((package, _PACKAGE))]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.globals["generator"] = Markup(MAKER_OF_PAGE)  # noqa: S704  (a constant)
    environment.globals["plural"] = plural
    return environment


def render_template(package: str, template: str, **context: Any) -> Markup:
    """Render a template; values are escaped unless they are `Markup`.

    Args:
        package: with a folder `templates`. Its templates can extend and import those of `detrkit.visualization`: page.html,
            which takes `title`, and macros.html.
        template: file name.
        context: variables of the template.
    """
    return Markup(_environment(package).get_template(template).render(**context))  # noqa: S704  (escaped by the template)


def html_page(title: str, body: Sequence[str]) -> str:
    """Render a page; `body` is HTML, `title` is text."""
    return render_template(_PACKAGE, "page.html", title=title, body=Markup("\n".join(body)))  # noqa: S704  (HTML)


def image_gallery(images: Sequence[tuple[Image.Image, str]]) -> Markup:
    """Render images in a grid, each with its caption."""
    embedded = [(embed_image(image), caption) for image, caption in images]
    gallery: Markup = _environment(_PACKAGE).get_template("macros.html").module.gallery(embedded)  # type: ignore[attr-defined]
    return gallery


def embed_png(content: bytes) -> str:
    """Encode a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def embed_image(image: Image.Image) -> str:
    """Encode an image as a data URL (JPEG), downscaled to MAX_EMBEDDED_SIDE pixels."""
    small = image.copy()
    small.thumbnail((MAX_EMBEDDED_SIDE, MAX_EMBEDDED_SIDE))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
