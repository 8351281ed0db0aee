"""Finds the images and annotation files of a split by their names, in the usual places of the field's tools.

File names in annotations are written on other machines, by other systems: with backslashes, in other capitals, absolute, or
relative to another folder. A name is looked up by the longest of its ends that exists below a folder of the dataset, so it
never leads out of it. Folders are listed once.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from detrkit.data.records import SPLIT_FOLDERS, SplitName
from detrkit.data.suffixes import IMAGE_SUFFIXES, OTHER_SUFFIXES

Subset = SplitName | Literal["trainval"]
IMAGE_WORDS = frozenset(
    ["images", "image", "imgs", "img", "jpegimages", "photos", "photo", "pictures", "pics", "frames", "data", "rgb"]
)
MASK_WORDS = frozenset(
    ["panoptic", "png", "pngs", "mask", "masks", "segments", "segmentation", "segmentationclass", "stuff", "semantic"]
)
LABEL_WORDS = frozenset(
    [
        "labels",
        "label",
        "lbls",
        "annotations",
        "annotation",
        "annots",
        "anns",
        "ann",
        "xml",
        "xmls",
        "json",
        "jsons",
        "txt",
        "txts",
    ]
)
_PREFERRED = (".jpg", ".jpeg", ".png")  # if several images have the same stem
_MAX_DEPTH = 4  # of the folders that are searched
_MAX_FOLDERS = 5000
ALL_FOLDERS = (64, 10**9)  # depth and number of all folders below another
_NUM_PROBES = 100  # file names that decide which folders are searched


def subset_of(name: str) -> Subset | None:
    """Return the subset that the name of a file or folder says: ``instances_Train2017``, ``VALID``, ``obj_train_data``."""
    for word in _words(name):
        if word == "trainval":
            return "trainval"
        for split, names in SPLIT_FOLDERS.items():
            if word in names:
                return split
    return None


def subset_of_folder(folder: Path, root: Path) -> Subset | None:
    """Return the subset that the path of a folder below a root says: that of its outermost part that says one."""
    parts = folder.relative_to(root).parts
    return next((subset for part in parts if (subset := subset_of(part)) is not None), None)


def is_named(name: str, words: Iterable[str]) -> bool:
    """Return whether the name of a folder contains one of some words, in any capitals."""
    return not set(_words(name)).isdisjoint(words)


def path_parts(name: str) -> tuple[str, ...]:
    """Split a path of any system into its parts, without drive, root, and ``..``."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    return tuple(parts[1:] if parts and re.fullmatch("[A-Za-z]:", parts[0]) else parts)


def has_image_suffix(name: str) -> bool:
    """Return whether a file name has the suffix of an image, in any capitals."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  (a path for each of a million is slow)


def may_be_image(name: str) -> bool:
    """Return whether a file may be an image by its name: its suffix is that of an image, or unknown."""
    return has_image_suffix(name) or (
        not name.startswith(".") and os.path.splitext(name)[1].lower() not in OTHER_SUFFIXES  # noqa: PTH122
    )


def _words(name: str) -> list[str]:
    separated = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W\d_]+", separated.lower())


def name_key(name: str) -> str:
    """Return what two names have in common that differ in capitals, or in how accents are encoded."""
    return name.casefold() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


@dataclass(frozen=True)
class Listing:
    """Names of the files and folders in a folder."""

    files: frozenset[str]
    folders: tuple[str, ...]

    def file(self, name: str) -> str | None:
        """Return the name of a file as it is on the disk; exact matches come first."""
        return name if name in self.files else self._files_by_key.get(name_key(name))

    def folder(self, name: str) -> str | None:
        """Return the name of a folder, likewise."""
        return name if name in self._folder_names else self._folders_by_key.get(name_key(name))

    def image_of_stem(self, stem: str) -> str | None:
        """Return the name of the image with a stem."""
        found = self._images_by_stem.get(name_key(stem), [])
        return min(found, key=_image_order, default=None)

    @cached_property
    def _files_by_key(self) -> dict[str, str]:
        return {name_key(name): name for name in sorted(self.files, reverse=True)}

    @cached_property
    def _folder_names(self) -> frozenset[str]:
        return frozenset(self.folders)

    @cached_property
    def _folders_by_key(self) -> dict[str, str]:
        return {name_key(name): name for name in reversed(self.folders)}

    @cached_property
    def _images_by_stem(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for name in self.files:
            if may_be_image(name):
                stems.setdefault(name_key(os.path.splitext(name)[0]), []).append(name)  # noqa: PTH122
        return stems


def _image_order(name: str) -> tuple[bool, int, str]:
    suffix = Path(name).suffix.lower()
    return not has_image_suffix(name), _PREFERRED.index(suffix) if suffix in _PREFERRED else len(_PREFERRED), name


@dataclass(frozen=True)
class DatasetFiles:
    """Files below a folder, looked up by name in any capitals.

    Attributes:
        root: absolute path of the folder.
    """

    root: Path
    _listings: dict[Path, Listing] = field(default_factory=dict)

    @classmethod
    def below(cls, root: Path) -> "DatasetFiles":
        """Look files up below a folder; symbolic links in it may point anywhere."""
        return cls(Path(os.path.abspath(root)))  # noqa: PTH100  (resolve() would follow links)

    def listing(self, folder: Path) -> Listing:
        """List a folder; one that does not exist or cannot be read is empty."""
        if folder not in self._listings:
            files: list[str] = []
            folders: list[str] = []
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        (folders if entry.is_dir() else files if entry.is_file() else []).append(entry.name)
            except OSError:
                pass
            self._listings[folder] = Listing(frozenset(files), tuple(sorted(folders)))
        return self._listings[folder]

    def subfolders(self, folder: Path) -> list[Path]:
        """List the folders in a folder that are not hidden."""
        return [folder / name for name in self.listing(folder).folders if not is_hidden(name)]

    def find(self, folder: Path, parts: Sequence[str]) -> Path | None:
        """Find a file or folder by its parts below a folder."""
        for part in parts[:-1]:
            name = self.listing(folder).folder(part)
            if name is None:
                return None
            folder = folder / name
        listing = self.listing(folder)
        name = listing.file(parts[-1]) or listing.folder(parts[-1])
        return None if name is None else folder / name

    def find_end(self, name: str, folders: Sequence[Path]) -> tuple[Path, int] | None:
        """Find the longest end of a path that exists below one of some folders, and the number of parts left out."""
        for written in dict.fromkeys((name, unquote(name))):
            parts = path_parts(written)
            for start in range(len(parts)):
                for folder in folders:
                    found = self.find(folder, parts[start:])
                    if found is not None:
                        return found, start
        return None

    def walk(self, folder: Path, max_depth: int = _MAX_DEPTH, max_folders: int = _MAX_FOLDERS) -> Iterator[Path]:
        """Yield a folder and those below it that are not hidden, nearest first; links are followed once."""
        level, count = [folder], 0
        linked = {folder.resolve()}
        for _ in range(max_depth + 1):
            below = []
            for one in level:
                count += 1
                if count > max_folders:
                    return
                yield one
                for each in self.subfolders(one):
                    if each.is_symlink():
                        target = each.resolve()
                        if target in linked or each.is_relative_to(target) or target.is_relative_to(folder.resolve()):
                            continue  # a loop, or a folder that is listed anyway
                        linked.add(target)
                    below.append(each)
            level = below

    def files(self, suffix: str) -> list[Path]:
        """List the files below the root with a suffix, in any capitals."""
        return [
            folder / name
            for folder in self.walk(self.root, *ALL_FOLDERS)
            for name in sorted(self.listing(folder).files)
            if name.lower().endswith(suffix) and not is_hidden(name)
        ]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is left out: its name starts with a dot, or macOS has put it into an archive."""
    return name.startswith(".") or name == "__MACOSX"


class ImageFinder:
    """Finds the images of one split.

    They are looked for in folders with the split's name, in folders such as `images`, and next to the annotations, from the
    folder of the annotations up to the root; if no image is there, in all other folders that do not name another split.
    """

    def __init__(
        self,
        tree: DatasetFiles,
        near: Path,
        split: Subset | None = None,
        stem: str = "",
        words: frozenset[str] = IMAGE_WORDS,
    ) -> None:
        """Search from the annotations outwards.

        Args:
            tree: files of the dataset.
            near: folder of the annotations, below the tree's root.
            split: whose images are looked for; None for a dataset without splits.
            stem: of the annotation file, whose words name a folder: ``instances_train2017``.
            words: names of folders that contain such images.
        """
        self.tree = tree
        self._words = words
        self._of_masks = words is MASK_WORDS
        self._stem = name_key(stem)
        self.split = split
        self._names = _parts_of_stem(stem)
        self._shortened: dict[Path, tuple[str, ...]] = {}
        bases = [one for one in (near, *near.parents) if one.is_relative_to(tree.root)]
        scored = [entry for base in bases for entry in self._usual(base)]
        self.folders = list(dict.fromkeys(folder for _, folder in sorted(scored, key=lambda entry: entry[0])))

    @property
    def expected(self) -> Path:
        """The first folder in which images are looked for, for messages."""
        return self.folders[0]

    def search_below(self, start: Path, names: Iterable[str]) -> None:
        """Look for the first names in all folders below `start` as well, if none of them is in a usual one."""
        probes = [name for name, _ in zip(names, range(_NUM_PROBES), strict=False)]
        if not probes or any(self.tree.find_end(name, self.folders) for name in probes):
            return
        others = [folder for folder in self.tree.walk(start) if self._is_of_split(folder)]
        for name in probes:
            parts = path_parts(name)
            found = {self.tree.find(folder, parts[-1:]) for folder in others} - {None} if parts else set()
            if len(found) == 1:  # several files of this name may be anything
                path = found.pop()
                assert path is not None
                self.folders.append(path.parent)
                others = [path.parent, *(one for one in others if one != path.parent)]

    def find(self, name: str) -> Path | None:
        """Find an image by its name in the annotations; None if it is missing, or only found as another one."""
        found = self.tree.find_end(name, self.folders)
        if found is None or found[0].name in self.tree.listing(found[0].parent).folders:
            return None
        path, start = found
        if start and self._shortened.setdefault(path, path_parts(name)) != path_parts(name):
            return None  # a/1.jpg and b/1.jpg are not both 1.jpg
        return path

    def find_stem(self, stem: str) -> Path | None:
        """Find an image by its stem."""
        for folder in self.folders:
            name = self.tree.listing(folder).image_of_stem(stem)
            if name is not None:
                return folder / name
        return None

    def _usual(self, base: Path) -> Iterator[tuple[int, Path]]:
        """Yield a folder and those in it that usually contain the images of the split, with their rank."""
        is_own = self.split is not None and subset_of_folder(base, self.tree.root) == self.split
        own_rank = 1 if is_own else 3  # what is in a folder of the split comes before other folders of the split
        yield own_rank, base
        for outer in self.tree.subfolders(base):
            outer_rank = self._rank(outer.name)
            if outer_rank is None:
                continue
            yield min(outer_rank, own_rank), outer
            for inner in self.tree.subfolders(outer):
                inner_rank = self._rank(inner.name)
                if inner_rank is not None:
                    yield min(outer_rank, inner_rank, own_rank), inner

    def _rank(self, name: str) -> int | None:
        """Rank a folder by its name: that of the annotation file, of the split, of images in general."""
        subset = subset_of(name)
        is_own = subset is not None and (subset == self.split or "trainval" in (subset, self.split))
        is_foreign = subset is not None and not is_own and self.split is not None
        if is_foreign or is_named(name, LABEL_WORDS) or (not self._of_masks and is_named(name, MASK_WORDS)):
            return 0 if name_key(name) == self._stem and self._of_masks else None
        if self._of_masks and not is_named(name, MASK_WORDS):
            return 4 if is_own else None
        if name_key(name) in self._names:
            return 0
        if is_own:
            return 1
        if subset is None:
            return 2 if is_named(name, self._words) else None
        return 4

    def _is_of_split(self, folder: Path) -> bool:
        if self.split is None:
            return True
        return subset_of_folder(folder, self.tree.root) in (None, self.split, "trainval")


def _parts_of_stem(stem: str) -> frozenset[str]:
    """Return the beginnings and ends of a stem: ``instances_my_set`` -> instances, instances_my, my_set, set."""
    words = re.split(r"([._-])", stem)
    starts = range(0, len(words), 2)
    return frozenset(
        name_key("".join(part)) for start in starts for part in (words[start:], words[: start + 1]) if stem
    )


def unused_images(tree: DatasetFiles, used: Iterable[Path]) -> list[Path]:
    """List the images that no annotation names, in the folders of those that are named."""
    names: dict[Path, set[str]] = {}
    for path in used:
        names.setdefault(path.parent, set()).add(path.name)
    return [
        folder / name
        for folder, taken in names.items()
        for name in sorted(tree.listing(folder).files - taken)
        if has_image_suffix(name)
    ]
