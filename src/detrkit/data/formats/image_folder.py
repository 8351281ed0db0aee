"""Images without annotations: a folder, or a COCO "image info" JSON, as for evaluation servers.

They become a `Split` without objects, for detections that are scored elsewhere.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detrkit._internal.provenance import is_written_by_detrkit
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.coco import finder_of_file, search_start
from detrkit.data.formats.coco_json import ImageReader, read_json
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.locate import has_image_suffix, may_be_image
from detrkit.data.images import has_image_content, read_image_size
from detrkit.data.records import Record, Records
from detrkit.errors import DatasetError

_IMAGE_INFO = "image_info_"


def find_image_folder(path: Path, split: str, categories: Categories) -> Split | None:
    """Find images without annotations; None if there is anything else.

    Args:
        path: folder or JSON.
        split: name of the split, if a COCO folder has several.
        categories: of the model.

    Raises:
        DatasetError: the JSON is malformed or ambiguous, or an image is missing.
    """
    if path.is_file() and path.suffix == ".json":
        content = read_json(path)
        is_info = isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" not in content
        return read_image_info(path, categories) if is_info else None
    if not path.is_dir():
        return None
    infos = sorted(path.glob(f"annotations/{_IMAGE_INFO}{split}*.json"))
    annotated = any(path.glob(f"annotations/instances_{split}*.json"))
    if infos and not annotated:
        if len(infos) > 1:
            names = ", ".join(info.name for info in infos)
            raise DatasetError(
                f"{path}: found {len(infos)} files for this split ({names}), expected one; pass the file itself"
            )
        return read_image_info(infos[0], categories)
    return _read_folder(path, categories) if _is_image_folder(path) else None


def read_image_info(path: Path, categories: Categories) -> Split:
    """Read a JSON with images and no annotations.

    Raises:
        DatasetError: it is malformed, or an image is missing.
    """
    entries = read_json(path)["images"]
    finder = finder_of_file(path)  # "test-dev2017" is a subset of the images of "test2017"
    names = (entry.get("file_name") for entry in entries if isinstance(entry, dict))
    start = search_start(finder.tree, path.absolute().parent)
    finder.search_below(start, (name for name in names if isinstance(name, str)))
    records = Records.of(record for _, record in ImageReader(path, finder, ReadContext()).read(entries, {}))
    if not records:
        raise DatasetError(f"{path}: found no images, expected at least one")
    return Split(records, categories, path)


def _is_image_folder(path: Path) -> bool:
    """True if a folder contains images, and no files of annotations."""
    files = _foreign_files(path)
    suffixes = {one.suffix.lower() for one in files}
    return any(map(_is_image, files)) and not suffixes & {".json", ".xml", ".yaml", ".yml", ".txt", ".tar"}


def _read_folder(path: Path, categories: Categories) -> Split:
    images = sorted(filter(_is_image, _foreign_files(path)))
    return Split(Records.of(_to_records(images)), categories, path)


def _is_image(path: Path) -> bool:
    """True for a file with the suffix of an image, or with another unknown one and the content of an image."""
    return has_image_suffix(path.name) or (may_be_image(path.name) and has_image_content(path))


def _foreign_files(path: Path) -> list[Path]:
    """List the files in a folder, without those that detrkit has written."""
    return [one for one in path.iterdir() if one.is_file() and not is_written_by_detrkit(one)]


def _to_records(images: list[Path]) -> Iterator[Record]:
    """Number the images: by their file names if all are numbers, as in COCO, otherwise in alphabetical order."""
    stems = [image.stem for image in images]
    are_numbers = all(stem.isascii() and stem.isdigit() and len(stem) < 19 for stem in stems)
    ids = [int(stem) for stem in stems] if are_numbers else []
    if len(set(ids)) < len(images):
        ids = list(range(1, len(images) + 1))
    for image_id, image in zip(ids, images, strict=True):
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        yield Record(image_id, image.absolute(), read_image_size(image), *nothing)
