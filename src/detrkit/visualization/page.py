"""Pages in a single HTML file, which open from disk and fetch nothing."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from detrkit._internal.provenance import MAKER_OF_PAGE

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6577; --ground: #fff; --line: #d9dee7; --bar: #3b6fd4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa4b5; --ground: #14181f; --line: #2c3442; --bar: #6d9bf1 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { color: var(--soft); margin: .3rem 0 }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .5rem; margin: 0 }
dl div { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .6rem }
dt { color: var(--soft); font-size: .85rem } dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line) }
td { font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
.bar { display: inline-block; width: 5rem }
.speed { margin: .6rem 0 } .speed div { display: flex; height: 1.1rem; margin-top: .15rem }
.speed span { background: var(--bar); border-right: 1px solid var(--ground) }
.bar span { display: block; height: .6rem; background: var(--bar); border-radius: .2rem }
img { max-width: 100%; border-radius: .3rem } .curves { background: #fff; padding: .3rem }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem }
.large { grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)) }
figure { margin: 0 } figure img { width: 100% }
figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
.charts svg { width: 100%; height: auto; max-width: 30rem; display: block } .charts figcaption { margin-top: .2rem }
.matrix { width: auto; font-size: .8rem } .matrix td, .matrix th { text-align: center; padding: .15rem .3rem; border: 0 }
.matrix th:first-child { text-align: right } .matrix thead th { vertical-align: bottom }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; overflow: hidden }
.matrix td { position: relative; min-width: 1.6rem } .kinds :is(td, th):last-child { text-align: left; min-width: 14rem }
@media (max-width: 40rem) {
  .kinds tr { display: grid; grid-template-columns: 1fr 5rem 5rem; border-bottom: 1px solid var(--line) }
  .kinds :is(td, th) { border: 0 } .kinds :is(td, th):last-child { grid-column: 1 / -1; color: var(--soft) }
}
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem } .legend i { display: inline-block; width: .8rem; height: .8rem;
  border-radius: .2rem; margin-right: .3rem; vertical-align: -.05rem }
code { overflow-wrap: anywhere }
details { color: var(--soft); overflow-wrap: anywhere; margin-top: .5rem }
"""


def html_page(title: str, body: Sequence[str]) -> str:
    """Put a page together; `body` is HTML, `title` is text."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{MAKER_OF_PAGE}"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{''.join(body)}</html>"
    )


def gallery_of(pictures: Sequence[tuple[Image.Image, str]], kind: str = "photos") -> str:
    """Pictures in a grid, each with its caption."""
    figures = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="{embedded_photo(picture)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for picture, caption in pictures
    )
    return f'<div class="{kind}">{figures}</div>'


def charts_of(charts: Sequence[tuple[str, str]]) -> str:
    """Charts side by side where there is room: SVG, and what it shows in words."""
    figures = "".join(
        f'<figure role="img" aria-label="{html.escape(caption)}">{svg}'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for svg, caption in charts
    )
    return f'<div class="charts">{figures}</div>'


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that can be moved sideways on a narrow screen; cells are HTML, headings are text."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="wide">{opening}<tr>{head}</tr>{body}</table></div>'


def legend_of(entries: Sequence[tuple[tuple[int, int, int], str]]) -> str:
    """Colours and what they mean."""
    items = "".join(
        f'<span><i style="background:rgb{colour}"></i>{html.escape(text)}</span>' for colour, text in entries
    )
    return f'<p class="legend">{items}</p>'


def embedded_png(content: bytes) -> str:
    """A PNG as an address of itself."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def embedded_photo(picture: Image.Image) -> str:
    """A photo, made small, as an address of itself."""
    small = picture.copy()
    small.thumbnail((480, 480))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
