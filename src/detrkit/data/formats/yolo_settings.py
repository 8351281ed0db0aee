"""Settings of a YOLO dataset: class names, and the folders or lists of images of every split.

They are in a `data.yaml` (Ultralytics, Roboflow), an `obj.data` (Darknet, CVAT), or only in a file of class names with the
splits in folders (Label Studio, labelImg, FiftyOne).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detrkit._internal.documents import parse_yaml
from detrkit._internal.files import read_names, read_text
from detrkit.data.categories import Categories
from detrkit.data.formats.category_file import read_category_file
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.locate import IMAGE_WORDS, LABEL_WORDS, DatasetFiles, is_named, path_parts, subset_of
from detrkit.data.formats.recognise import recognise
from detrkit.data.formats.values import is_integer
from detrkit.data.records import SPLIT_FOLDERS, SplitName
from detrkit.errors import DatasetError, short

_SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YAML = (".yaml", ".yml")
_DARKNET = ".data"
_LIST = re.compile(r"(train|val|valid|validation|test)\.txt", re.IGNORECASE)
_NAMES = ("classes.txt", "obj.names", "classes.names", "class_names.txt", "names.txt", "labels.txt")
_UNSET = frozenset({"", "~", "null", "none"})


@dataclass(frozen=True)
class YoloSettings:
    """Settings of a dataset.

    Attributes:
        path: file that they are from.
        tree: files below the folder that the images are in.
        names: class names by the class number of the rows.
        categories: of the classes, in the order of the numbers.
        entries: folders or lists of images of every split, as they are written.
        pose_columns: number of columns of rows with key points, which follow the box; None without key points.
    """

    path: Path
    tree: DatasetFiles
    names: dict[int, str]
    categories: Categories
    entries: dict[SplitName, list[str]]
    pose_columns: int | None = None

    def find(self, entry: str) -> Path | None:
        """Find a folder or list of images.

        Absolute paths are used as they are written, if they exist. Exports contain paths of the machine they were made
        on, or lead out of the folder (`../train/images`): the longest end of the path that exists below the root is used.
        """
        written = _expanded(entry)
        if written.is_absolute() and _exists(written):
            return written
        if not path_parts(entry):
            return self.tree.root
        found = self.tree.find_end(entry, [self.tree.root])
        if found is not None:
            return found[0]
        above = self.tree.root / written
        return above.resolve() if _exists(above) else None


def find_settings(tree: DatasetFiles) -> Path | None:
    """Find the settings of a folder: by their name, or the only YAML, or the class names next to labels."""
    listing = tree.listing(tree.root)
    names = sorted(name for name in listing.files if not name.startswith("."))
    usual = [found for name in _SETTINGS if (found := listing.file(name)) is not None]
    others = [name for name in names if name.lower().endswith(_YAML) and _names_splits(tree.root / name)]
    darknet = [name for name in names if name.lower().endswith(_DARKNET)]
    chosen = usual[:1] or (others if len(others) == 1 else []) or (darknet if len(darknet) == 1 else [])
    if chosen:
        return tree.root / chosen[0]
    class_names = find_class_names(tree)
    return class_names if class_names is not None and _has_labels(tree) else None


def _names_splits(path: Path) -> bool:
    try:
        return re.search(r"(?m)^\s*['\"]?(train|val|names|nc)['\"]?\s*:", read_text(path, "utf-8-sig")) is not None
    except (OSError, ValueError):
        return True  # the reader reports the error


def find_class_names(tree: DatasetFiles) -> Path | None:
    """Find the file of class names, one a line: in the folder, or in one of its folders of labels."""
    labels = [folder for folder in tree.subfolders(tree.root) if is_named(folder.name, LABEL_WORDS | IMAGE_WORDS)]
    parts = [one for one in tree.subfolders(tree.root) if subset_of(one.name) is not None]
    for folder in (tree.root, *labels, *parts):
        listing = tree.listing(folder)
        for name in _NAMES:
            if (found := listing.file(name)) is not None:
                return folder / found
        named = sorted(name for name in listing.files if name.lower().endswith(".names"))
        if len(named) == 1:
            return folder / named[0]
    return None


def read_settings(path: Path, context: ReadContext, tree: DatasetFiles | None = None) -> YoloSettings:
    """Read the settings of a dataset from a YAML, an `obj.data` or a file of class names.

    Args:
        path: the file.
        context: collects notes.
        tree: files of the dataset; by default those below the folder of the file.

    Raises:
        DatasetError: the file is missing or malformed.
    """
    tree = tree or DatasetFiles.below(path.absolute().parent)
    context.opened(path)
    suffix = path.suffix.lower()
    content: dict[str, Any] = {}
    if suffix in _YAML:
        content = _read_yaml(path)
        tree = _find_root(path, content)
    elif suffix == _DARKNET:
        content = _read_darknet(path)
    names = _read_names(content, path, tree, context) if content else dict(enumerate(_read_class_names(path, context)))
    named = {split: written for split in SPLIT_FOLDERS if (written := _entries(content, split, path)) is not None}
    settings = YoloSettings(path, tree, names, _categories(names, path, context), named, _pose_columns(content, path))
    for split, folders in _entries_of_folders(tree, whole=not named).items():
        parents = [found for entries in named.values() for one in entries if (found := settings.find(one)) is not None]
        if split not in named and not any((tree.root / folders[0]).is_relative_to(one) for one in parents):
            settings.entries[split] = folders
    _note_places(settings, context)
    return settings


class _TextLoader(yaml.SafeLoader):
    """Reads plain values as text: a class may be named no, 1.0, null or 2024-01-01."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:merge"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(read_text(path, "utf-8-sig"), _TextLoader)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file, expected a data.yaml; check the path") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as YAML ({str(error)[:120]})") from None
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{path}: found no settings, expected at least 'train' and 'names'")
    return content


def _read_darknet(path: Path) -> dict[str, Any]:
    """Read lines KEY = VALUE."""
    pairs = [line.partition("=") for line in read_names(path) if "=" in line]
    content = {key.strip().lower(): value.strip() for key, _, value in pairs}
    if "names" not in content:
        raise DatasetError(f"{path}: found no line 'names = FILE', expected the file of class names")
    return {("nc" if key == "classes" else key): value for key, value in content.items()}


def _read_class_names(path: Path, context: ReadContext) -> list[str]:
    context.opened(path)
    names = read_names(path)
    if not names:
        raise DatasetError(f"{path}: found no class names, expected one a line")
    return names


def _read_names(content: Mapping[str, Any], path: Path, tree: DatasetFiles, context: ReadContext) -> dict[int, str]:
    """Read the class names: a list, NUMBER: NAME, or the path of a file with one name a line."""
    names = content.get("names")
    if isinstance(names, str) or names is None:
        found = tree.find_end(names, [tree.root, path.absolute().parent]) if names else None
        file = found[0] if found else find_class_names(tree) if names is None else None
        names = _read_class_names(file, context) if file is not None and file.is_file() else names
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(is_integer(number) for number in names):
        other = recognise(path) if names is None else None
        raise DatasetError(
            other or f"{path}: names: found {short(names)}, expected a list of class names, or NUMBER: NAME"
        )
    count = content.get("nc")
    if is_integer(count) and int(str(count).split(".")[0]) != len(names):
        raise DatasetError(f"{path}: nc is {count}, but names has {len(names)} classes; correct one of the two")
    for number, name in names.items():
        if not isinstance(name, str | int | float):
            raise DatasetError(f"{path}: names: found {short(name)} for class {number}, expected its name")
    return {int(str(number).split(".")[0]): str(name) for number, name in names.items()}


def _categories(names: dict[int, str], path: Path, context: ReadContext) -> Categories:
    """Return the categories: with the ids of a `categories.json` of the same classes, or with the class numbers."""
    numbers = tuple(sorted(names))
    in_order = tuple(names[number] for number in numbers)
    written = read_category_file(path.parent, context)
    if written is not None and numbers == tuple(range(len(numbers))) and written.names == in_order:
        return written
    return Categories(numbers, in_order)


def _entries(content: Mapping[str, Any], split: SplitName, path: Path) -> list[str] | None:
    """Return the folders or lists of a split as they are written; None if the settings do not name the split."""
    by_key = {str(key).lower(): value for key, value in content.items()}
    for key in SPLIT_FOLDERS[split]:
        value = by_key.get(key)
        if value is None or (isinstance(value, str) and value.strip().lower() in _UNSET) or value == []:
            continue
        entries = value if isinstance(value, list) else [value]
        for entry in entries:
            if not isinstance(entry, str):
                raise DatasetError(f"{path}: {split}: found {short(entry)}, expected a folder or a list of folders")
        return entries
    return None


def _entries_of_folders(tree: DatasetFiles, *, whole: bool) -> dict[SplitName, list[str]]:
    """Find the lists or folders of every split by their names; without any, all images are the training split."""
    outer = [folder for folder in tree.subfolders(tree.root) if not is_named(folder.name, LABEL_WORDS)]
    of_images = [folder for folder in outer if is_named(folder.name, IMAGE_WORDS) and subset_of(folder.name) is None]
    folders = [*outer, *(inner for one in of_images for inner in tree.subfolders(one))]
    lists = {subset_of(name): name for name in tree.listing(tree.root).files if _LIST.fullmatch(name)}
    found: dict[SplitName, list[str]] = {}
    for split in SPLIT_FOLDERS:
        own = [str(one.relative_to(tree.root)) for one in folders if subset_of(one.name) == split]
        if split in lists:
            own.insert(0, lists[split])
        if own:
            found[split] = own[:1]
    if found or not whole:
        return found
    return {"train": [str(one.relative_to(tree.root)) for one in of_images[:1]] or ["."]}


def _find_root(path: Path, content: Mapping[str, Any]) -> DatasetFiles:
    """Return the folder that the splits are relative to: that of `path`, or the file's own.

    An absolute `path` may be anywhere: the config is the user's own. A relative one is relative to the file, to the folder
    above, or to the working directory.
    """
    own = DatasetFiles.below(path.absolute().parent)
    named = content.get("path")
    if not isinstance(named, str) or named.strip().lower() in _UNSET:
        return own
    written = _expanded(named)
    bases = [Path()] if written.is_absolute() else [own.root, own.root.parent, Path.cwd()]
    for base in bases:
        if _exists(base / written) and (base / written).is_dir():
            return DatasetFiles.below((base / written).resolve())
    found = own.find_end(named, [own.root])
    return DatasetFiles.below(found[0]) if found is not None and found[0].is_dir() else own


def _note_places(settings: YoloSettings, context: ReadContext) -> None:
    """Note the folders that are read and are not below the settings file."""
    own = settings.path.absolute().parent.resolve()
    root = settings.tree.root
    found = [place for entries in settings.entries.values() for one in entries if (place := settings.find(one))]
    places = [root, *(place for place in found if not place.is_relative_to(root))]
    outside = dict.fromkeys(str(one) for one in places if not one.resolve().is_relative_to(own))
    if outside:
        context.notes.append(f"{settings.path.name} names folders elsewhere: {', '.join(list(outside)[:4])}")


def _pose_columns(content: Mapping[str, Any], path: Path) -> int | None:
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(is_integer(one) for one in shape)
    sizes = [int(str(one).split(".")[0]) for one in shape] if is_shape else []
    if not is_shape or not all(0 < one < 10_000 for one in sizes):
        raise DatasetError(f"{path}: kpt_shape: found {short(shape)}, expected [NUMBER OF POINTS, 2 or 3]")
    return 5 + sizes[0] * sizes[1]


def _has_labels(tree: DatasetFiles) -> bool:
    """Return whether there are label files and images below a folder."""
    for folder in tree.walk(tree.root, 3):
        texts = [name for name in tree.listing(folder).files if name.lower().endswith(".txt")]
        if any(_is_label_file(folder / name) for name in sorted(texts)[:20]):
            return True
    return False


def _is_label_file(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            words = file.read(4096).partition("\n")[0].split()
    except OSError:
        return False
    return len(words) >= 5 and words[0].isdigit() and all(re.fullmatch(r"[-+.\deE]+", word) for word in words[1:])


def _expanded(name: str) -> Path:
    """Return a path as it is written on this system, `~` expanded."""
    path = Path(name.replace("\\", "/"))
    try:
        return path.expanduser()
    except RuntimeError:  # no such user
        return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
