"""Parts that the writers of several formats share: file names, copies of images, objects."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detrkit._internal.files import make_folder, open_file
from detrkit._internal.system import usable_stem
from detrkit.data.dataset import SampleSplit, Split
from detrkit.data.formats.locate import name_key
from detrkit.data.images import check_image_content, read_image_bytes, tensor_to_image
from detrkit.data.records import Record, SplitName
from detrkit.errors import DatasetError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class NamedRecord:
    """A record, and the name of its image file in the new folder."""

    record: Record
    file_name: str

    @property
    def objects(self) -> list[tuple[list[float], int, bool]]:
        """Box (xyxy in pixels), label and is_crowd of every object."""
        record = self.record
        return list(zip(record.boxes.tolist(), record.labels.tolist(), record.is_crowd.tolist(), strict=True))


def copy_images(
    splits: dict[SplitName, Split], output: Path, folder: str, progress: Progress | None
) -> dict[SplitName, list[NamedRecord]]:
    """Copy the images of all splits.

    Args:
        splits: of one dataset.
        output: dataset folder.
        folder: of the images within `output`; may contain ``{split}``, the name of the split's folder.
        progress: called with the number of images copied and the total.

    Returns:
        The records of every split with their new file names: their own unless it is taken.

    Raises:
        DatasetError: an image cannot be read or written.
    """
    total, done = sum(len(split) for split in splits.values()), 0
    taken: set[str] = set()
    named: dict[SplitName, list[NamedRecord]] = {}
    for name, split in splits.items():
        target = make_folder(output / folder.format(split=split.folder or name))
        named[name] = []
        for index, record in enumerate(split.records):
            file_name = _unique_name(record, taken, suffix=".png" if isinstance(split, SampleSplit) else None)
            _copy(split, index, record, target / file_name)
            named[name].append(NamedRecord(record, file_name))
            done += 1
            if progress:
                progress(done, total)
    return named


def _unique_name(record: Record, taken: set[str], suffix: str | None) -> str:
    """Return a file name whose stem is unique, too: formats differ in which of them tells files apart."""
    stem, suffix = usable_stem(record.path.stem), suffix or record.path.suffix
    name, number = f"{stem}{suffix}", 1
    while not taken.isdisjoint(keys := {name_key(name), name_key(Path(name).stem)}):
        number += 1
        name = f"{stem}_{number}{suffix}"
    taken |= keys
    return name


def _copy(split: Split, index: int, record: Record, target: Path) -> None:
    try:
        if isinstance(split, SampleSplit):
            tensor_to_image(split.read(index).image).save(target)
        elif record.span is None:
            copy_image(record.path, target)
        else:
            target.write_bytes(checked_image_bytes(record))
    except OSError as error:
        reason = error.strerror or error
        raise DatasetError(f"{record.path}: cannot be copied to {target} ({reason}); no copy was made") from None


def copy_image(path: Path, target: Path) -> None:
    """Copy an image file, by its content.

    Raises:
        DatasetError: it is not an image.
        OSError: it cannot be read or written.
    """
    with open_file(path) as source:
        check_image_content(source, path)
        source.seek(0)
        with target.open("wb") as copy:
            shutil.copyfileobj(source, copy)


def checked_image_bytes(record: Record) -> bytes:
    """Read the bytes of an image, in a file or inside a shard, to be copied.

    Raises:
        DatasetError: it is missing, or not an image.
    """
    content = read_image_bytes(record.path, record.span)
    check_image_content(io.BytesIO(content), record.path)
    return content
