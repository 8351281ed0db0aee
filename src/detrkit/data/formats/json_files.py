"""Finds the COCO JSON files of a dataset folder, and the split of each by its name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from detrkit._internal.provenance import is_written_by_detrkit
from detrkit.data.findings import Location
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.locate import LABEL_WORDS, DatasetFiles, is_named, subset_of, subset_of_folder
from detrkit.data.formats.recognise import json_kind
from detrkit.data.records import SplitName
from detrkit.errors import DatasetError

Kind = Literal["coco", "panoptic"]
_ROBOFLOW_FILE = "_annotations.coco.json"
_USUAL_PREFIX: dict[Kind, str] = {"coco": "instances", "panoptic": "panoptic_"}
# files of the same images for other tasks, as in COCO 2017
_OTHER_TASKS: dict[Kind, tuple[str, ...]] = {
    "coco": ("captions_", "stuff_", "panoptic_", "image_info_", "person_keypoints_"),
    "panoptic": ("captions_", "stuff_", "instances_", "image_info_", "person_keypoints_"),
}
_MAX_FILES = 200  # in a folder; more are one JSON per image, which COCO has not


@dataclass(frozen=True)
class JsonFiles:
    """The annotation files of a folder.

    Attributes:
        root: the folder.
        of_split: files whose name, or whose folder, says the split.
        unnamed: files that say none.
        has_usual_names: whether they are named as COCO's own or Roboflow's.
        is_roboflow: whether they are named as Roboflow's.
    """

    root: Path
    of_split: dict[SplitName, list[Path]] = field(default_factory=dict)
    unnamed: list[Path] = field(default_factory=list)
    has_usual_names: bool = False
    is_roboflow: bool = False

    def by_split(self, context: ReadContext) -> dict[SplitName, list[Path]]:
        """Return the files to read of every split; files without a split are the training split if no file has one.

        Raises:
            DatasetError: it is not clear which of several files to read.
        """
        if self.of_split:
            for name, files in self.of_split.items():
                if len(files) > 1 and context.wants(name):
                    found = f"found {len(files)} files for {name} ({_list(files)})"
                    raise DatasetError(f"{self.root}: {found}, expected one; keep one of them")
            for file in self.unnamed:
                advice = "their names say no split; move their images into one"
                context.warn("annotation files that are not read", advice, Location(str(file)))
            return self.of_split
        if len(self.unnamed) > 1 and not self.has_usual_names:
            raise DatasetError(
                f"{self.root}: found {len(self.unnamed)} annotation files ({_list(self.unnamed)}), expected one, or one "
                "for each of train, val and test by name; pass the file to read"
            )
        return {"train": self.unnamed} if self.unnamed else {}


def find_json_files(tree: DatasetFiles, kind: Kind) -> JsonFiles:
    """Find the annotation files of a kind: in the folder itself, in those of a split, and in those of annotations."""
    found = [file for folder in _folders(tree) for file in _json_in(tree, folder, kind)]
    usual = [file for file in found if file.name.lower().startswith(_USUAL_PREFIX[kind]) or _is_roboflow(file)]
    usual = [file for file in usual if kind == "coco" or not _is_roboflow(file)]
    chosen = usual or _of_kind(found, kind) or _of_other_tasks(tree, kind)
    files = JsonFiles(
        tree.root, has_usual_names=bool(usual), is_roboflow=bool(usual) and all(_is_roboflow(file) for file in usual)
    )
    trainval: list[Path] = []
    for file in chosen:
        subset = subset_of(file.stem) or subset_of_folder(file.parent, tree.root)
        place = trainval if subset == "trainval" else files.of_split.setdefault(subset, []) if subset else files.unnamed
        place.append(file)
    if trainval and "train" not in files.of_split:
        files.of_split["train"] = trainval
    return files


def _folders(tree: DatasetFiles) -> list[Path]:
    """List the folders in which annotation files are: at most two levels deep."""
    outer = [one for one in tree.subfolders(tree.root) if _may_have_annotations(one)]
    inner = [each for one in outer for each in tree.subfolders(one) if _may_have_annotations(each)]
    return [tree.root, *outer, *inner]


def _may_have_annotations(folder: Path) -> bool:
    return is_named(folder.name, LABEL_WORDS) or subset_of(folder.name) is not None


def _json_in(tree: DatasetFiles, folder: Path, kind: Kind) -> list[Path]:
    names = sorted(name for name in tree.listing(folder).files if name.lower().endswith(".json"))
    names = [name for name in names if not name.startswith(".") and not name.lower().startswith(_OTHER_TASKS[kind])]
    return [folder / name for name in names] if len(names) <= _MAX_FILES else []


def _of_kind(files: list[Path], kind: Kind) -> list[Path]:
    """Keep the files that are annotations of a kind by their content; one that cannot be read is kept to be reported."""
    return [file for file in files if not is_written_by_detrkit(file) and json_kind(file) in (kind, "unreadable")]


def _of_other_tasks(tree: DatasetFiles, kind: Kind) -> list[Path]:
    """Find key point annotations, which have boxes as well, where there are no others."""
    if kind != "coco":
        return []
    return [
        folder / name
        for folder in _folders(tree)
        for name in sorted(tree.listing(folder).files)
        if name.lower().startswith("person_keypoints_") and name.lower().endswith(".json")
    ]


def _is_roboflow(file: Path) -> bool:
    return file.name.lower() == _ROBOFLOW_FILE


def _list(files: list[Path]) -> str:
    return ", ".join(file.name for file in files)
