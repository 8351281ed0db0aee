"""Photos without annotations: a folder of them, or a COCO "image info" JSON, as test servers hand out.

Output: a `Split` whose records hold no objects, for detections that somebody else will score.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detrkit._internal.provenance import is_written_by_detrkit
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.coco import read_images, read_json
from detrkit.data.formats.folder import images_next_to
from detrkit.data.images import read_image_size
from detrkit.data.records import Record, Records, raise_error
from detrkit.data.suffixes import IMAGE_SUFFIXES
from detrkit.errors import DatasetError

_IMAGE_INFO = "image_info_"


def find_image_folder(path: Path, split: str, categories: Categories) -> Split | None:
    """Look for photos without annotations; None where there is something else.

    Args:
        path: what a user named: a folder, or a JSON.
        split: which part, where a COCO folder holds several.
        categories: of the model, which such photos cannot name.

    Raises:
        DatasetError: there are such photos, but something is wrong with them.
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
                f"{path}: found {len(infos)} files for this split ({names}), expected one; name the file itself"
            )
        return read_image_info(infos[0], categories)
    return _read_folder(path, categories) if _is_folder_of_photos(path) else None


def read_image_info(path: Path, categories: Categories) -> Split:
    """Read a JSON with images and no annotations.

    Raises:
        DatasetError: it is malformed, or a photo is missing.
    """
    content = read_json(path)
    of_split = path.parent.parent / path.stem.removeprefix(_IMAGE_INFO)
    # "test-dev2017" is a part of the photos of "test2017"
    whole = path.parent.parent / path.stem.removeprefix(_IMAGE_INFO).replace("-dev", "")
    folder = next((one for one in (of_split, whole) if one.is_dir()), None) or images_next_to(path)
    records = Records.of(read_images(content["images"], {}, folder, path, raise_error))
    if not records:
        raise DatasetError(f"{path}: found no images, expected at least one")
    return Split(records, categories, path)


def _is_folder_of_photos(path: Path) -> bool:
    """Whether photos lie right inside, and nothing that would annotate them."""
    kinds = {one.suffix.lower() for one in _files_of_others(path)}
    return bool(kinds & IMAGE_SUFFIXES) and not kinds & {".json", ".xml", ".yaml", ".yml", ".txt", ".tar"}


def _read_folder(path: Path, categories: Categories) -> Split:
    photos = sorted(one for one in _files_of_others(path) if one.suffix.lower() in IMAGE_SUFFIXES)
    return Split(Records.of(_numbered(photos)), categories, path)


def _files_of_others(path: Path) -> list[Path]:
    """What lies right inside, without what detrkit found in it before."""
    return [one for one in path.iterdir() if one.is_file() and not is_written_by_detrkit(one)]


def _numbered(photos: list[Path]) -> Iterator[Record]:
    """Give every photo an id: the number that is its name, as in COCO, or else its place among the names."""
    stems = [photo.stem for photo in photos]
    are_numbers = all(stem.isascii() and stem.isdigit() and len(stem) < 19 for stem in stems)
    ids = [int(stem) for stem in stems] if are_numbers else []
    if len(set(ids)) < len(photos):
        ids = list(range(1, len(photos) + 1))
    for image_id, photo in zip(ids, photos, strict=True):
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        yield Record(image_id, photo.absolute(), read_image_size(photo), *nothing)
