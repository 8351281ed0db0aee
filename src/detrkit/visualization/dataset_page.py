"""HTML page of a dataset report: findings with pictures of their first locations, and object counts per class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detrkit._internal.files import write_text
from detrkit.data.checks.examine import DatasetReport
from detrkit.data.dataset import SampleSplit, Split
from detrkit.data.findings import Finding
from detrkit.data.images import open_image, tensor_to_image
from detrkit.errors import DatasetError
from detrkit.visualization.draw import draw_boxes
from detrkit.visualization.page import embed_image, render_template

_MAX_LOCATIONS = 1000  # listed per finding
_MAX_PICTURES = 8  # per finding
_PICTURE_SIZE = 480  # pixels of the longer side
_MIN_VISIBLE_BOX = 8  # pixels; smaller boxes are drawn with a margin
_MARGIN = 12.0


@dataclass(frozen=True)
class _ImagePlace:
    """An image of a dataset: its split, and its index in it."""

    split: Split
    index: int


def write_dataset_page(path: Path, report: DatasetReport) -> None:
    """Write a report as an HTML page."""
    shown = {location.image for finding in report.findings for location in finding.locations[:_MAX_PICTURES]}
    places = {
        record.path: _ImagePlace(split, index)
        for split in report.dataset.splits.values()
        for index, record in enumerate(split.records)
        if record.path in shown
    }
    findings = [
        (
            finding,
            [(embed_image(picture), caption) for picture, caption in _pictures(finding, places)],
            [relative_to_dataset(one.text, report.source) for one in finding.locations[:_MAX_LOCATIONS]],
        )
        for finding in report.findings
    ]
    splits = list(report.num_images)
    rows = [(one.name, one.category_id, *(one.objects[split] for split in splits)) for one in report.classes]
    page = render_template(
        "detrkit.visualization",
        "dataset.html",
        title=f"doctor: {report.source.name}",
        report=report,
        findings=findings,
        splits=splits,
        rows=rows,
    )
    write_text(path, page)


def relative_to_dataset(text: str, source: Path) -> str:
    """Shorten the paths in a text to those below the dataset folder; readers may have resolved them."""
    return text.replace(f"{source.resolve()}/", "").removeprefix(f"{source}/")


def _pictures(finding: Finding, places: Mapping[Path, _ImagePlace]) -> Iterator[tuple[Image.Image, str]]:
    """Draw the first images of a finding, with the box in question."""
    for location in finding.locations[:_MAX_PICTURES]:
        if location.image is None or location.image not in places:
            continue
        place = places[location.image]
        try:
            image = _read(place)
        except DatasetError:
            continue
        scale = min(1.0, _PICTURE_SIZE / max(image.size))
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        if location.box is not None:
            image = draw_boxes(image, [_with_margin([value * scale for value in location.box])], [0], [()])
        yield image, location.image.name


def _read(place: _ImagePlace) -> Image.Image:
    """Read an image even if its size is not the annotated one."""
    record = place.split.records[place.index]
    if not isinstance(place.split, SampleSplit):
        return open_image(record.path, record.size, record.span)
    return tensor_to_image(place.split.read(place.index).image)


def _with_margin(box: list[float]) -> list[float]:
    """Enlarge a box that is too small to be seen."""
    left, top, right, bottom = box
    margin = _MARGIN if min(right - left, bottom - top) < _MIN_VISIBLE_BOX else 0.0
    return [left - margin, top - margin, right + margin, bottom + margin]
