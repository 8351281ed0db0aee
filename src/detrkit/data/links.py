"""Files that lie outside of the folder of their dataset: links lead there, or a `data.yaml` names them.

Reading them is usual, as datasets are kept as folders of links. They are not copied unasked: in a dataset from elsewhere, a
link could point to private files, which would then be published with the copy.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from detrkit._internal.text import plural
from detrkit.data.dataset import SampleSplit, Split
from detrkit.errors import DatasetError, arg


class DatasetFolder:
    """Folder of a dataset, which tells the files in it from those that links lead out of it.

    The folder itself may be a link. Hard links cannot be told from files.
    """

    def __init__(self, named: Path) -> None:
        """Take a dataset as it was named.

        Args:
            named: dataset folder; or a file in it: the images of a JSON may be in the folder above its own.
        """
        self.named = named
        absolute = Path(os.path.abspath(named))  # noqa: PTH100  (resolve() would follow links)
        if named.is_dir():
            self._roots = [absolute]
        else:
            has_images_above = named.suffix.lower() == ".json"
            self._roots = [absolute.parent, *([absolute.parent.parent] if has_images_above else [])]
        self._real_folders: dict[Path, str] = {}
        self._inside: dict[tuple[str, Path], bool] = {}

    @property
    def root(self) -> Path:
        """The folder, for messages."""
        return self._roots[0]

    def contains(self, file: Path) -> bool:
        """Return whether a file is in the folder when all links of its path are followed."""
        root = self._root_of(file)
        return self._is_inside(os.path.dirname(self.real_path(file)), root)  # noqa: PTH120

    def real_path(self, file: Path) -> str:
        """Return the path of a file when all links, and junctions of Windows, are followed."""
        if file.is_symlink():
            return os.path.realpath(file)
        folder = file.parent
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return os.path.join(self._real_folders[folder], file.name)  # noqa: PTH118

    def _root_of(self, file: Path) -> Path:
        """Return the innermost folder that a path is in as it is written."""
        if len(self._roots) == 1:
            return self._roots[0]
        written = Path(os.path.abspath(file))  # noqa: PTH100
        return next((root for root in self._roots if written.is_relative_to(root)), self._roots[-1])

    def _is_inside(self, folder: str, root: Path) -> bool:
        if (folder, root) not in self._inside:
            self._inside[folder, root] = _is_below(Path(folder), Path(os.path.realpath(root)))
        return self._inside[folder, root]


def _is_below(folder: Path, root: Path) -> bool:
    """Return whether a folder is another or in it, also where their names differ in capitals and mean the same."""
    if folder.is_relative_to(root):
        return True
    try:
        return any(one.samefile(root) for one in (folder, *folder.parents))
    except OSError:
        return False


def refuse_outside_files(splits: Iterable[Split], *, follow_links: bool) -> None:
    """Check that all files of splits that are about to be copied lie in the folders of their datasets.

    Args:
        splits: of one or several datasets. Those that were not read from a folder have no such files.
        follow_links: allow all files.

    Raises:
        DatasetError: at least one lies elsewhere; the message has the first, and the number of the others.
    """
    if follow_links:
        return
    for split in splits:
        if split.read_from is None or isinstance(split, SampleSplit):
            continue
        folder = DatasetFolder(split.read_from)
        outside = [file for file in _files(split) if not folder.contains(file)]
        if outside:
            others = f" (and {plural(len(outside) - 1, 'more file')})" if len(outside) > 1 else ""
            first = outside[0]
            raise DatasetError(
                f"{first}{others}: leads to {folder.real_path(first)}, outside of the dataset {folder.root}, and is not "
                f"copied; if it belongs to the dataset, pass {arg('follow_links', True)}"
            )


def _files(split: Split) -> Iterator[Path]:
    """Yield the files whose content goes into a copy: of annotations, images, shards and segments."""
    if split.outside_annotations is not None:
        yield split.outside_annotations
    records = split.records
    shards: set[Path] = set()
    for index, offset in enumerate(records.arrays.spans[:, 0].tolist()):
        path = records.path(index)
        if offset < 0:
            yield path
        elif path.parent not in shards:
            shards.add(path.parent)
            yield path.parent
    if records.arrays.mask_files is not None:
        yield from (Path(os.fsdecode(name)) for name in records.arrays.mask_files.between(0, len(records)))
