"""Makes the pictures of the README and of the quickstart from a run of the demo.

    detrkit demo
    python docs/figures/pictures.py runs/demo

The demo takes a few minutes on two cores. The run is only read. All images are drawn by the demo: no photograph is shown.
Pictures of pages need playwright and Chromium.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

import detrkit

PLACE = Path(__file__).parents[1] / "pictures"
WIDTH = 1200  # pixels of the pictures of pages
DRAWINGS = ("3.png", "6.png", "10.png", "12.png")
EXPLAINED = "11.png"  # three objects: with the image, four panels


def main(run: Path) -> None:
    """Write all pictures."""
    PLACE.mkdir(exist_ok=True)
    detector = detrkit.Detector.load(run)
    drawn = [detector.predict(run / "drawings" / name, threshold="auto").draw() for name in DRAWINGS]
    small = [image.resize((288, 288), Image.Resampling.LANCZOS) for image in drawn]
    save(side_by_side(small, 16), "detections.png")
    save(grid(small, 2, 16), "detections_grid.png")
    figure = detrkit.explain(detector, run / "drawings" / EXPLAINED).figure("decoder")
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=160)
        Image.open(file).convert("RGB").save(PLACE / "attention.png", optimize=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explained.html"
        image = run / "drawings" / "6.png"
        detrkit.explain(detector, image, annotations=run / "drawings").to_html(page)
        photograph(page, "explained.png", 900)
        photograph(run / "report.html", "report.png", 1000)


def side_by_side(images: list[Image.Image], gap: int) -> Image.Image:
    """Join images of one height, with transparent gaps."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    joined = Image.new("RGBA", (width, images[0].height), (0, 0, 0, 0))
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + gap
    return joined


def grid(images: list[Image.Image], columns: int, gap: int) -> Image.Image:
    """Arrange images of one size in rows, with transparent gaps."""
    rows = [side_by_side(images[start : start + columns], gap) for start in range(0, len(images), columns)]
    height = sum(row.height for row in rows) + gap * (len(rows) - 1)
    joined = Image.new("RGBA", (rows[0].width, height), (0, 0, 0, 0))
    for index, row in enumerate(rows):
        joined.paste(row, (0, index * (row.height + gap)))
    return joined


def photograph(page: Path, name: str, height: int) -> None:
    """Save the upper part of a page as a picture."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page(viewport={"width": WIDTH, "height": height})
        tab.goto(page.resolve().as_uri())
        tab.wait_for_timeout(1500)
        tab.screenshot(path=PLACE / name)
        browser.close()
    save(Image.open(PLACE / name).convert("RGB"), name)


def save(image: Image.Image, name: str) -> None:
    """Save with few colours, which makes small files of drawings and pages."""
    if image.mode == "RGBA":
        image.quantize(128, Image.Quantize.FASTOCTREE).save(PLACE / name, optimize=True)
    else:
        image.quantize(128, Image.Quantize.MEDIANCUT).save(PLACE / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
