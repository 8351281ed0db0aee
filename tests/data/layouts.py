"""Tiny dataset folders as the field's tools write them: images of 12 x 8 px with one object each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (12, 8)  # width, height
BOX = (2, 1, 6, 5)  # xyxy
YOLO_ROW = "0 0.333333333 0.375 0.333333333 0.5\n"


def put_images(folder: Path, names: Sequence[str], format: str | None = None) -> None:
    """Write images, all of different colors."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        shade = (sum(str(folder / name).encode()) + 7 * index) % 256
        Image.new("RGB", SIZE, (shade, 90, 10 * index)).save(folder / name, format=format)


def put_text(path: Path, text: str) -> None:
    """Write a file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def coco_document(names: Sequence[str], **changes: Any) -> dict[str, Any]:
    """Return a COCO document; `changes` are of every annotation."""
    x1, y1, x2, y2 = BOX
    numbers = range(1, len(names) + 1)
    return {
        "images": [
            {"id": n, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
            for n, name in zip(numbers, names, strict=True)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1], **changes} for n in numbers
        ],
        "categories": [{"id": 3, "name": "fish"}],
    }


def put_coco(path: Path, names: Sequence[str], **changes: Any) -> None:
    """Write a COCO document."""
    put_text(path, json.dumps(coco_document(names, **changes)))


def put_labels(folder: Path, names: Sequence[str], row: str = YOLO_ROW) -> None:
    """Write the YOLO labels of images."""
    for name in names:
        put_text((folder / name).with_suffix(".txt"), row)


def put_xml(
    path: Path,
    file_name: str = "",
    *,
    name: str = "fish",
    difficult: str = "0",
    box: tuple[float, float, float, float] = BOX,
) -> None:
    """Write the VOC annotations of an image."""
    corners = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    put_text(
        path,
        f"<annotation><filename>{file_name}</filename><size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object></annotation>",
    )
