"""Pascal VOC: one XML file per image.

hotcoco reads a folder of XML, but no lists of images, and trusts sizes and entities. Coordinates are read as box edges in
pixels, as most tools write them today, not as 1-based pixels of the original. Difficult objects are treated as crowds: they
are neither trained on nor evaluated. Classes are numbered from 1 in alphabetical order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from detrkit._internal.files import open_file, reason_of, write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.findings import Location
from detrkit.data.formats.category_file import CATEGORIES_FILE, category_file_text, read_category_file
from detrkit.data.formats.coco import report_unused
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.locate import DatasetFiles, ImageFinder, path_parts
from detrkit.data.formats.recognise import recognise
from detrkit.data.formats.values import flag
from detrkit.data.formats.voc_lists import read_label_map, splits_of_files
from detrkit.data.formats.writing import NamedRecord, Progress, copy_images
from detrkit.data.image_structure import MAX_PIXELS
from detrkit.data.images import read_image_size
from detrkit.data.records import ImageError, ObjectError, Record, Records, SplitName
from detrkit.errors import DatasetError

LAYOUT = "Annotations/*.xml, JPEGImages/ and ImageSets/Main/*.txt, or train/ and valid/ with XML next to the images"
HAS_MASKS = False
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
    if path.is_file():
        return 0.0
    tree = DatasetFiles.below(path)
    first = next(
        (
            folder / name
            for folder in tree.walk(tree.root)
            for name in sorted(tree.listing(folder).files)
            if _is_xml(name)
        ),
        None,
    )
    return 0.6 if first is not None and recognise(first) is None else 0.0


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not name.startswith(".")


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read a folder; see `read_voc`."""
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
    write_text(output / CATEGORIES_FILE, category_file_text(categories))
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
        is_printable = name.isprintable() and "\ufffd" not in name  # which stands for what was no character
        if not name or names.count(name) > 1 or not is_printable:
            raise DatasetError(
                f"class {given!r}: the name must be printable and unique, because Pascal VOC identifies classes by their "
                "names; rename it, or choose another format"
            )


def read_voc(root: Path, context: ReadContext | None = None) -> dict[SplitName, Split]:
    """Read the splits of a folder; the classes are those of all splits.

    Args:
        root: contains XML files in `Annotations/`, next to the images, or in folders of the splits, with or without lists
            of images (`ImageSets/Main/*.txt`); or several such folders, as `VOCdevkit`.
        context: splits to read, and the handler of errors.

    Returns:
        The splits; all images are "train" if nothing divides them.

    Raises:
        DatasetError: a file is malformed or an image is missing; the message names the first error.
    """
    context = context or ReadContext()
    tree = DatasetFiles.below(root)
    files = splits_of_files(tree, context)
    pages = {
        split: list(_read_pages(paths, context if context.wants(split) else ReadContext(_ignore)))
        for split, paths in files.items()
    }
    names = {name for of_split in pages.values() for page in of_split for name, _, _ in page.objects}
    if not names and not context.num_errors:
        raise DatasetError(f"{root}: found no objects in any XML file, expected at least one")
    categories = _read_categories(tree, root, names, context)
    num_splits = len(files)
    splits = {
        split: Split(
            Records.of(_Matcher(tree, split if num_splits > 1 else None, context).records(of_split, categories)),
            categories,
            root,
        )
        for split, of_split in pages.items()
        if context.wants(split)
    }
    if context.splits is None:
        report_unused(tree, splits, context)
    return context.without_empty(splits)


def _read_categories(tree: DatasetFiles, root: Path, names: set[str], context: ReadContext) -> Categories:
    """Number the class names, or read their ids from the file that `write` leaves."""
    in_order = tuple(sorted(names | set(read_label_map(tree, context))))
    categories = read_category_file(root, context) or Categories(tuple(range(1, len(in_order) + 1)), in_order)
    for name in sorted(names):
        if name not in categories.names:
            raise DatasetError(f"{root / CATEGORIES_FILE}: the class {name!r} of the XML files is missing; add it")
    return categories


def _ignore(_error: DatasetError) -> None:
    """Ignore errors of other splits."""


def _read_pages(paths: Sequence[Path], context: ReadContext) -> Iterator[_ImageAnnotations]:
    for path in paths:
        try:
            yield _read_page(path, context)
        except DatasetError as error:
            context.error(ImageError(error.message))


def _read_page(path: Path, context: ReadContext) -> _ImageAnnotations:
    context.opened(path)
    try:
        with open_file(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path}: cannot be read ({reason_of(error)}), expected the annotations of an image; check the lists"
        ) from None
    # entities can read other files and expand without bounds (zeros: UTF-16)
    if len(content) > _MAX_BYTES or b"<!" in content.replace(b"\0", b"").replace(b"<!--", b""):
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
            objects.append(_read_object(element, f"{path}: object {index}", context))
        except DatasetError as error:
            num_faults += 1
            context.error(ObjectError(error.message))
    file_name = (top.findtext("filename") or "").strip() or None
    return _ImageAnnotations(path, file_name, _read_size(top), tuple(objects), num_faults)


def _read_size(top: ElementTree.Element) -> tuple[int, int] | None:
    """Read the size, if it is set and possible: old tools left it at zero."""
    try:
        size = int(float(top.findtext("size/height", "0"))), int(float(top.findtext("size/width", "0")))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 and math.prod(size) <= MAX_PIXELS else None


def _read_object(
    element: ElementTree.Element, where: str, context: ReadContext
) -> tuple[str, tuple[float, float, float, float], bool]:
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
    difficult = flag(element.findtext("difficult"), f"{where}: <difficult>")
    if difficult is None:
        context.warn("difficult flags without a value", "they are read as 0", Location(f"{where}: <difficult>"))
    return name, (x1, y1, x2, y2), bool(difficult)


class _Matcher:
    """Finds the image of every XML file of a split.

    The XML's own name comes first: tools that copy or flip images leave <filename> as it was.
    """

    def __init__(self, tree: DatasetFiles, split: SplitName | None, context: ReadContext) -> None:
        self.tree = tree
        self.split = split
        self.context = context
        self._finders: dict[Path, ImageFinder] = {}

    def records(self, pages: Sequence[_ImageAnnotations], categories: Categories) -> Iterator[Record]:
        """Yield the record of every XML file with an image, numbered from 1."""
        label_of = {name: label for label, name in enumerate(categories.names)}
        images = [self._own_image(page) for page in pages]
        taken = {image for image in images if image is not None}
        for number, (page, own) in enumerate(zip(pages, images, strict=True), start=1):
            image = own or self._named_image(page)
            if image is None:
                self.context.error(self._missing(page))
            elif self.context.leave_out_undecodable(image):
                continue
            elif own is None and image in taken:
                self.context.warn(
                    "XML files whose image has another XML file",
                    "they are left out; give every image its own",
                    Location(f"{page.path}: <filename> is {page.file_name}", image),
                )
            else:
                taken.add(image)
                try:
                    yield _to_record(page, number, image, label_of)
                except DatasetError as error:
                    self.context.error(ImageError(error.message))

    def _own_image(self, page: _ImageAnnotations) -> Path | None:
        """Find the image with the stem of the XML file."""
        own = self._finder(page).find_stem(page.path.stem)
        named = Path(path_parts(page.file_name or "")[-1:][0]) if path_parts(page.file_name or "") else None
        if own is not None and named is not None and page.path.stem not in (named.stem, named.name):
            self.context.warn(
                "XML files whose <filename> is another image's",
                "they are taken for the images with their own names",
                Location(f"{page.path}: <filename> is {page.file_name}, the image is {own.name}", own),
            )
        return own

    def _named_image(self, page: _ImageAnnotations) -> Path | None:
        return None if page.file_name is None else self._finder(page).find(page.file_name)

    def _finder(self, page: _ImageAnnotations) -> ImageFinder:
        folder = page.path.parent
        if folder not in self._finders:
            finder = ImageFinder(self.tree, folder, self.split)
            names = [f"{page.path.stem}.jpg", f"{page.path.stem}.png", page.file_name or ""]
            if finder.find_stem(page.path.stem) is None:
                finder.search_below(self.tree.root, names)
            self._finders[folder] = finder
        return self._finders[folder]

    def _missing(self, page: _ImageAnnotations) -> DatasetError:
        name = (path_parts(page.file_name or "") or (page.path.stem,))[-1]
        place = self._finder(page).expected
        return ImageError(f"{page.path}: no such image {name!r} in {place} or the folders around it")


def _to_record(page: _ImageAnnotations, number: int, image: Path, label_of: dict[str, int]) -> Record:
    return Record(
        image_id=number,
        path=image,
        size=page.size or read_image_size(image),
        boxes=np.array([box for _, box, _ in page.objects], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label_of[name] for name, _, _ in page.objects], dtype=np.int64),
        is_crowd=np.array([difficult for _, _, difficult in page.objects], dtype=bool),
        num_faults=page.num_faults,
    )
