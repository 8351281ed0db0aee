"""Pascal VOC: one XML file per image.

hotcoco reads a folder of XML, but no lists of images, and trusts sizes and entities. Coordinates are read as box edges in
pixels, as most tools write them today, not as 1-based pixels of the original. Difficult objects are treated as crowds: they
are neither trained on nor evaluated. Classes are numbered from 1 in alphabetical order.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from detrkit._internal.files import is_file, read_names, write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.writing import NamedRecord, Progress, copy_images
from detrkit.data.images import read_image_size
from detrkit.data.records import SPLIT_FOLDERS, ErrorHandler, ImageError, ObjectError, Record, Records, SplitName
from detrkit.data.suffixes import IMAGE_SUFFIXES
from detrkit.errors import DatasetError

LAYOUT = "Annotations/*.xml, JPEGImages/ and ImageSets/Main/*.txt, or train/ and valid/ with XML next to the images"
HAS_MASKS = False
_CATEGORIES_FILE = "categories.json"
_MAX_BYTES = 20_000_000  # of an annotation file: images have thousands of objects, not millions


@dataclass(frozen=True)
class _ImageAnnotations:
    """Content of one XML file."""

    path: Path
    file_name: str | None
    size: tuple[int, int] | None  # (height, width)
    objects: tuple[tuple[str, tuple[float, float, float, float], bool], ...]  # name, xyxy, difficult
    num_faults: int  # objects that are malformed


def detect(path: Path) -> float:
    """Return the confidence that a folder is in Pascal VOC format."""
    has_xml = (path / "Annotations").is_dir() or any(path.glob("*.xml")) or any(path.glob("*/*.xml"))
    return 0.6 if has_xml or any(path.glob("VOC*/Annotations")) else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read a folder, or the only `VOC*` folder in it; see `read_voc`."""
    nested = sorted(path.glob("VOC*/Annotations"))
    if not (path / "Annotations").is_dir() and len(nested) == 1:
        path = nested[0].parent
    return read_voc(path, context)


def write(splits: dict[SplitName, Split], output: Path, progress: Progress | None = None) -> int:
    """Write a folder; crowds become difficult objects, and a `categories.json`, which `read_voc` reads, keeps the ids.

    Returns:
        0: crowds are kept.

    Raises:
        DatasetError: the class names are not unique and printable.
    """
    categories = next(iter(splits.values())).categories
    _check_class_names(categories)
    for name, records in copy_images(splits, output, "JPEGImages", progress).items():
        for one in records:
            _write_xml(output / "Annotations" / Path(one.file_name).with_suffix(".xml"), one, categories)
        stems = "".join(f"{Path(one.file_name).stem}\n" for one in records)
        write_text(output / "ImageSets" / "Main" / f"{name}.txt", stems)
    write_text(output / _CATEGORIES_FILE, json.dumps(categories.to_json(), indent=1, ensure_ascii=False))
    return 0


def _write_xml(path: Path, one: NamedRecord, categories: Categories) -> None:
    top = ElementTree.Element("annotation")
    ElementTree.SubElement(top, "filename").text = one.file_name
    size = ElementTree.SubElement(top, "size")
    for name, value in (("width", one.record.size[1]), ("height", one.record.size[0]), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for box, label, crowd in one.objects:
        element = ElementTree.SubElement(top, "object")
        ElementTree.SubElement(element, "name").text = categories.names[label]
        ElementTree.SubElement(element, "difficult").text = str(int(crowd))
        corners = ElementTree.SubElement(element, "bndbox")
        for side, pixels in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, side).text = f"{pixels:.3f}"
    ElementTree.indent(top)
    write_text(path, ElementTree.tostring(top, encoding="unicode") + "\n")


def _check_class_names(categories: Categories) -> None:
    names = [" ".join(name.split()) for name in categories.names]
    for name, given in zip(names, categories.names, strict=True):
        if not name or names.count(name) > 1 or not name.isprintable():
            raise DatasetError(
                f"class {given!r}: the name must be printable and unique, because Pascal VOC identifies classes by their "
                "names; rename it, or choose another format"
            )


def read_voc(root: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read the splits of a folder; the classes are those of all splits.

    Args:
        root: contains `Annotations/*.xml` and `JPEGImages/`, with or without `ImageSets/Main/*.txt`; or `train/`, `valid/`,
            `test/` with XML next to the images.
        context: splits to read, and the handler of errors.

    Returns:
        The splits; all images are "train" if there are no lists.

    Raises:
        DatasetError: a file is malformed or an image is missing; the message names the first error.
    """
    pages = {
        split: list(_read_pages(paths, context.error if context.wants(split) else _ignore))
        for split, paths in _files_of(root).items()
    }
    names = sorted({name for of_split in pages.values() for page in of_split for name, _, _ in page.objects})
    if not names:
        raise DatasetError(f"{root}: found no objects in any XML file, expected at least one")
    categories = _read_categories(root) or Categories(tuple(range(1, len(names) + 1)), tuple(names))
    for name in names:
        if name not in categories.names:
            raise DatasetError(f"{root / 'categories.json'}: the class {name!r} of the XML files is missing; add it")
    return {
        split: Split(
            Records.of(_to_records(of_split, categories, root, context.error)),
            categories,
            root,
        )
        for split, of_split in pages.items()
        if context.wants(split)
    }


def _ignore(_error: DatasetError) -> None:
    """Ignore errors of other splits."""


def _read_categories(root: Path) -> Categories | None:
    """Read the categories that `write` leaves next to the XML files, which contain no ids."""
    path = root / _CATEGORIES_FILE
    if not path.is_file():
        return None
    try:
        return Categories.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        raise DatasetError(
            f"{path}: expected a list of objects with 'id' and 'name'; correct it or remove it"
        ) from None


def _files_of(root: Path) -> dict[SplitName, list[Path]]:
    annotations = root / "Annotations"
    if not annotations.is_dir():
        found = {
            split: sorted(path for name in names for path in (root / name).rglob("*.xml"))
            for split, names in SPLIT_FOLDERS.items()
        }
        if not found["train"]:
            found["train"] = sorted(root.glob("*.xml"))
        return {split: paths for split, paths in found.items() if paths}
    lists = root / "ImageSets" / "Main"
    splits: dict[SplitName, list[Path]] = {}
    for split in SPLIT_FOLDERS:
        if (lists / f"{split}.txt").is_file():
            splits[split] = [annotations / f"{name}.xml" for name in _names_in(lists / f"{split}.txt")]
    splits = {split: paths for split, paths in splits.items() if paths}
    return splits if splits.get("train") else {"train": sorted(annotations.glob("*.xml"))}


def _names_in(path: Path) -> list[str]:
    """Read names of images: without the 1, 0 or -1 of per-class lists, and without folders of another machine."""
    return [PurePosixPath(re.sub(r"\s+-?[01]$", "", name)).name for name in read_names(path)]


def _read_pages(paths: Sequence[Path], on_error: ErrorHandler) -> Iterator[_ImageAnnotations]:
    for path in paths:
        try:
            yield _read_page(path, on_error)
        except DatasetError as error:
            on_error(ImageError(error.message))


def _read_page(path: Path, on_error: ErrorHandler) -> _ImageAnnotations:
    try:
        content = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except OSError:
        raise DatasetError(f"{path}: no such file, expected the annotations of an image; check the lists") from None
    # entities can read other files and expand without bounds (zeros: UTF-16)
    if content is None or b"<!" in content.replace(b"\0", b"").replace(b"<!--", b""):
        raise DatasetError(f"{path}: is too large, or declares entities, which annotations do not need; remove them")
    try:
        top = ElementTree.fromstring(content)  # noqa: S314  (declarations were refused above)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DatasetError(f"{path}: not readable as XML ({error})") from None
    if top.tag != "annotation":
        raise DatasetError(f"{path}: found <{top.tag}>, expected <annotation> as in Pascal VOC")
    objects, num_faults = [], 0
    for index, element in enumerate(top.findall("object"), start=1):
        try:
            objects.append(_read_object(element, f"{path}: object {index}"))
        except DatasetError as error:
            num_faults += 1
            on_error(ObjectError(error.message))
    file_name = (top.findtext("filename") or "").strip() or None
    return _ImageAnnotations(path, file_name, _read_size(top), tuple(objects), num_faults)


def _read_size(top: ElementTree.Element) -> tuple[int, int] | None:
    """Read the size, if it is set: old tools left it at zero."""
    try:
        size = int(float(top.findtext("size/height", "0"))), int(float(top.findtext("size/width", "0")))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _read_object(element: ElementTree.Element, where: str) -> tuple[str, tuple[float, float, float, float], bool]:
    name = " ".join((element.findtext("name") or "").split())
    if not name:
        raise DatasetError(f"{where}: found no <name>, expected the class")
    where += f" ({name})"
    corners = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{side}")
        try:
            corners.append(float(text or ""))
        except ValueError:
            raise DatasetError(f"{where}: <{side}>: found {text!r}, expected a number of pixels") from None
    x1, y1, x2, y2 = corners
    if not all(math.isfinite(value) and abs(value) < 1e9 for value in corners) or x2 < x1 or y2 < y1:
        raise DatasetError(
            f"{where}: found the box {x1:g} {y1:g} {x2:g} {y2:g}, expected xmin <= xmax and ymin <= ymax"
        )
    return name, (x1, y1, x2, y2), (element.findtext("difficult") or "0").strip() not in ("0", "")


def _to_records(
    pages: Sequence[_ImageAnnotations], categories: Categories, root: Path, on_error: ErrorHandler
) -> Iterator[Record]:
    for number, page in enumerate(pages, start=1):
        try:
            yield _to_record(page, number, categories, root)
        except DatasetError as error:
            on_error(ImageError(error.message))


def _to_record(page: _ImageAnnotations, number: int, categories: Categories, root: Path) -> Record:
    image = _find_image(page, root)
    label_of = {name: label for label, name in enumerate(categories.names)}
    return Record(
        image_id=number,
        path=image,
        size=page.size or read_image_size(image),
        boxes=np.array([box for _, box, _ in page.objects], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label_of[name] for name, _, _ in page.objects], dtype=np.int64),
        is_crowd=np.array([difficult for _, _, difficult in page.objects], dtype=bool),
        num_faults=page.num_faults,
    )


def _find_image(page: _ImageAnnotations, root: Path) -> Path:
    """Find the image by the file name that the XML gives, without folders, then by the XML's own name."""
    folders: Sequence[Path] = (root / "JPEGImages", root / "images", page.path.parent)
    names = [f"{page.path.stem}{suffix}" for suffix in (".jpg", ".jpeg", ".png", *sorted(IMAGE_SUFFIXES))]
    if page.file_name:
        names.insert(0, PurePosixPath(page.file_name.replace("\\", "/")).name)
    for name in names:
        for folder in folders:
            if is_file(folder / name):
                return folder / name
    raise DatasetError(f"{page.path}: no such image {names[0]!r} in {root / 'JPEGImages'} or next to the file")
