"""A dataset format outside of the package: one `boxes.csv` with rows IMAGE,X1,Y1,X2,Y2,CLASS."""

import csv
from pathlib import Path

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.writing import Progress, copy_images
from detrkit.data.images import read_image_size
from detrkit.data.records import Record, Records, SplitName
from detrkit.errors import DatasetError

LAYOUT = "boxes.csv next to the images"
HAS_MASKS = False


def detect(path: Path) -> float:
    return 1.0 if (path / "boxes.csv").is_file() else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    rows: dict[str, list[tuple[list[float], str]]] = {}
    with (path / "boxes.csv").open() as file:
        for number, (image, *corners, name) in enumerate(csv.reader(file), 1):
            try:
                rows.setdefault(image, []).append(([float(value) for value in corners], name))
            except ValueError:
                context.error(DatasetError(f"{path / 'boxes.csv'}: row {number}: expected numbers"))
    names = sorted({name for objects in rows.values() for _, name in objects})
    records = [
        Record(
            image_id=index,
            path=path / image,
            size=read_image_size(path / image),
            boxes=np.array([box for box, _ in objects], np.float32).reshape(-1, 4),
            labels=np.array([names.index(name) for _, name in objects], np.int64),
            is_crowd=np.zeros(len(objects), bool),
        )
        for index, (image, objects) in enumerate(rows.items())
    ]
    return {"train": Split(Records.of(records), Categories(tuple(range(len(names))), tuple(names)), path)}


def write(splits: dict[SplitName, Split], output: Path, progress: Progress | None) -> int:
    named = copy_images(splits, output, ".", progress)
    with (output / "boxes.csv").open("w") as file:
        for name, records in named.items():
            for one in records:
                for box, label, _ in one.objects:
                    csv.writer(file).writerow([one.file_name, *box, splits[name].categories.names[label]])
    return 0
