"""Division of Pascal VOC files into splits: by lists of images, or by folders; and class names of a label map."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from detrkit._internal.files import read_names
from detrkit.data.findings import Location
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.locate import (
    LABEL_WORDS,
    DatasetFiles,
    Subset,
    is_named,
    name_key,
    path_parts,
    subset_of,
    subset_of_folder,
)
from detrkit.data.records import SPLIT_FOLDERS, ImageError, SplitName

_LIST_FOLDERS = ("Main", "")  # in ImageSets
_LABEL_MAP = "labelmap.txt"  # of CVAT: NAME:COLOR:PARTS:ACTIONS


def splits_of_files(tree: DatasetFiles, context: ReadContext) -> dict[SplitName, list[Path]]:
    """Divide the XML files below a folder into splits.

    Every folder with lists of images is divided by them, the others by the names of their folders. Images of `trainval` are
    training images, unless another list names them. All files are "train" if nothing divides them.
    """
    files = tree.files(".xml")
    subsets: dict[Subset | None, list[Path]] = defaultdict(list)
    listed_folders = {folder: lists for folder in tree.walk(tree.root) if (lists := _lists_in(tree, folder))}
    for folder, lists in listed_folders.items():
        inside = [file for file in files if file.is_relative_to(folder)]
        files = [file for file in files if not file.is_relative_to(folder)]
        for subset, listed in _divide(inside, lists, context).items():
            subsets[subset] += listed
    for file in files:
        subsets[subset_of_folder(file.parent, tree.root)].append(file)
    return _as_splits(subsets, context, has_lists=bool(listed_folders))


def _as_splits(
    subsets: dict[Subset | None, list[Path]], context: ReadContext, *, has_lists: bool
) -> dict[SplitName, list[Path]]:
    splits: dict[SplitName, list[Path]] = {split: subsets[split] for split in SPLIT_FOLDERS if subsets[split]}
    others = {file for files in splits.values() for file in files}
    trainval = [file for file in subsets["trainval"] if file not in others]
    if trainval and "train" not in splits:
        splits["train"] = trainval
    elif trainval and "val" not in splits:
        splits["val"] = trainval
    unnamed = [file for file in subsets[None] if file not in others]
    if unnamed and "train" not in splits:
        splits["train"] = unnamed
    elif unnamed:
        title = "XML files that no list names" if has_lists else "XML files outside of the folders of the splits"
        for file in unnamed:
            context.inform(title, "they are left out", Location(str(file)))
    return {split: splits[split] for split in SPLIT_FOLDERS if split in splits}


def _lists_in(tree: DatasetFiles, folder: Path) -> dict[Subset, Path]:
    """Find the lists of images of a folder: in ImageSets/Main, in ImageSets, or next to the folder of annotations."""
    image_sets = tree.find(folder, ["ImageSets"])
    places = [tree.find(image_sets, [name]) if name else image_sets for name in _LIST_FOLDERS] if image_sets else []
    if any(is_named(one.name, LABEL_WORDS) for one in tree.subfolders(folder)):
        places.append(folder)
    for place in places:
        names = [] if place is None else sorted(tree.listing(place).files)
        # not aeroplane_train.txt, the list of a class
        found = {subset_of(name): name for name in names if re.fullmatch(r"(?i)[a-z]+[\d_-]*\.txt", name)}
        lists = {subset: place / name for subset, name in found.items() if place is not None and subset is not None}
        if lists:
            return lists
    return {}


def _divide(files: Sequence[Path], lists: dict[Subset, Path], context: ReadContext) -> dict[Subset | None, list[Path]]:
    """Divide files by lists of their names; those that no list names are None.

    Raises:
        DatasetError: a list is not text.
    """
    for path in lists.values():
        context.opened(path)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_stem[name_key(file.stem)].append(file)
    subsets: dict[Subset | None, list[Path]] = {
        subset: list(dict.fromkeys(_named_files(path, by_stem, context if _is_wanted(subset, context) else None)))
        for subset, path in lists.items()
    }
    for subset, path in lists.items():
        if subset in ("val", "test") and _is_wanted(subset, context) and not read_names(path):
            context.warn("splits without images", "they are left out", Location(f"{path}: no images"))
    named = {file for listed in subsets.values() for file in listed}
    subsets[None] = [file for file in files if file not in named]
    return subsets


def _is_wanted(subset: Subset, context: ReadContext) -> bool:
    return context.wants("train" if subset == "trainval" else subset)


def _named_files(path: Path, by_stem: dict[str, list[Path]], context: ReadContext | None) -> Iterator[Path]:
    """Yield the files that a list names: without the 1, 0 or -1 of per-class lists, with folders of any machine.

    Names without a file are reported to `context`, if there is one.
    """
    for line in read_names(path):
        parts = path_parts(re.sub(r"\s+-?[01]$", "", line))
        stems = [name_key(parts[-1]), name_key(Path(parts[-1]).stem)] if parts else []
        found = next((by_stem[stem] for stem in stems if stem in by_stem), None)
        if found is None:
            if context is not None:
                message = f"{path}: {line!r}: no such XML file, expected the annotations of an image; check the list"
                context.error(ImageError(message))
            continue
        folders = [name_key(part) for part in parts[:-1]]
        yield max(found, key=lambda file: len({name_key(part) for part in file.parts} & set(folders)))


def read_label_map(tree: DatasetFiles, context: ReadContext) -> list[str]:
    """Read the class names of a label map, as CVAT writes it: classes keep their numbers where some do not occur."""
    name = tree.listing(tree.root).file(_LABEL_MAP)
    if name is None:
        return []
    context.opened(tree.root / name)
    rows = [line.split(":")[0].strip() for line in read_names(tree.root / name) if not line.startswith("#")]
    return [row for row in rows if row and row != "background"]
