"""Datasets rewritten in another format, or packed into shards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detrkit._internal.files import refuse_overwrite, staged_folder
from detrkit._internal.text import plural
from detrkit.data.dataset import DatasetSplits, Split, concat_splits
from detrkit.data.formats.registry import load_format
from detrkit.data.formats.shards import DEFAULT_IMAGES_PER_SHARD, check_shard_folder, write_shards
from detrkit.data.links import refuse_outside_files
from detrkit.data.records import NO_SEGMENTATION, SplitName
from detrkit.data.splits import Data, as_splits, load_dataset, require_train
from detrkit.errors import DatasetError, check_minimum

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ConvertResult:
    """A converted dataset.

    Attributes:
        output: its folder.
        dataset: its splits, as read back from the folder.
        num_dropped_crowds: crowds that the format cannot express.
        notes: decisions taken on the way, a sentence each.
    """

    output: Path
    dataset: DatasetSplits
    num_dropped_crowds: int
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"ConvertResult({str(self.output)!r}, {self.dataset!r})"


@dataclass(frozen=True)
class ShardResult:
    """A dataset packed into shards.

    Attributes:
        output: its folder.
        num_images: images in each split.
        images_per_shard: images in a shard; the last one may have fewer.
        num_existing_shards: shards that an earlier, interrupted call had written.
        notes: decisions taken while reading, a sentence each.
    """

    output: Path
    num_images: dict[SplitName, int]
    images_per_shard: int
    num_existing_shards: int
    notes: tuple[str, ...]


def write_dataset(
    splits: dict[SplitName, Split],
    output: Path,
    format: str,
    progress: Progress | None = None,
    *,
    follow_links: bool = False,
) -> int:
    """Write splits as a dataset folder, images copied; after an error nothing is left of it.

    Args:
        splits: of one dataset.
        output: folder to create.
        format: of the annotations.
        progress: called with the number of images copied and the total.
        follow_links: copy files outside of the dataset's folder, too, where links or a `data.yaml` lead.

    Returns:
        Number of crowds that the format cannot express.

    Raises:
        DatasetError: the folder is not empty, the annotations lack what the format requires, a file is outside of the
            dataset's folder, or is not an image.
        ConfigError: there is no such format.
    """
    writer = load_format(format)
    refuse_overwrite(output)
    refuse_outside_files(splits.values(), follow_links=follow_links)
    with staged_folder(output) as staging:
        return writer.write(splits, staging, progress)


def convert_dataset(
    data: Data,
    output: str | Path,
    format: str,
    *,
    source_format: str | None = None,
    classes: Sequence[str] | None = None,
    follow_links: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert a dataset to another format; images are copied.

    Category ids, names and boxes are kept. Crowds are dropped in YOLO, and become difficult objects in Pascal VOC. The
    segmentations of the objects that have one are kept in COCO, panoptic segments as run lengths. Panoptic annotations can
    only be written from panoptic ones. In YOLO, polygons are kept of images whose objects all have one. The copy has the
    splits that the folder has: no validation images are set aside. After an error nothing is left of the output.

    Only images are copied, whatever the suffixes of files say, and only from the dataset's folder unless `follow_links`.

    Args:
        data: dataset folder, splits or torch dataset; see `as_splits`.
        output: folder to create.
        format: of the new annotations.
        source_format: of the annotations of a folder; detected if omitted.
        classes: class names of a torch dataset.
        follow_links: copy files outside of the dataset's folder, too, where links or a `data.yaml` lead.
        progress: called with the number of images copied and the total.

    Raises:
        DatasetError: the data cannot be read or written in this format, the folder is not empty, a file is outside of the
            dataset's folder, or is not an image.
        ConfigError: there is no such format.
    """
    output = Path(output)
    load_format(format)
    refuse_overwrite(output)
    dataset = _read_for_copy(data, classes, source_format, needs_masks=load_format(format).HAS_MASKS)
    require_train(dataset)
    splits = splits_to_copy(dataset)
    notes = (*(() if dataset.is_val_set_aside else dataset.notes), *(finding.line for finding in dataset.findings))
    if dataset.is_val_set_aside:
        notes = ("the data have no validation split, and neither has the copy: training sets images aside", *notes)
    num_crowds = write_dataset(splits, output, format, progress, follow_links=follow_links)
    if num_crowds:
        notes = (*notes, f"{plural(num_crowds, 'crowd')} dropped, which {format} cannot express")
    if num_lost := sum(count_lost_segmentations(split, format) for split in splits.values()):
        notes = (
            *notes,
            f"{plural(num_lost, 'segmentation')} not kept, which {format} cannot express: boxes were written",
        )
    elif num_boxes := sum(_count_boxes(split) for split in splits.values()):
        notes = (*notes, f"{plural(num_boxes, 'object')} of the data have a box and no segmentation")
    return ConvertResult(output, load_dataset(output, format), num_crowds, notes)


def _read_for_copy(
    data: Data, classes: Sequence[str] | None, format: str | None, *, needs_masks: bool
) -> DatasetSplits:
    """Read a dataset with its segmentations; without them if they are malformed, and the copy is of boxes anyway."""
    try:
        return as_splits(data, classes=classes, format=format, masks="available")
    except DatasetError:
        if needs_masks:
            raise
    return as_splits(data, classes=classes, format=format)


def splits_to_copy(dataset: DatasetSplits) -> dict[SplitName, Split]:
    """Return the splits that a dataset has of itself: validation images that were set aside go back."""
    splits = dataset.splits
    if dataset.is_val_set_aside:
        del splits["val"]
        is_single = dataset.val.records is dataset.train.records
        splits["train"] = dataset.train if is_single else concat_splits(dataset.train, dataset.val)
    return splits


def count_lost_segmentations(split: Split, format: str) -> int:
    """Count the objects whose segmentation a format replaces by their box."""
    writer = load_format(format)
    if writer.HAS_MASKS or split.records.arrays.segmentations is None:
        return 0
    count = getattr(writer, "count_lost_segmentations", None)  # of formats that keep some
    if count is not None:
        return int(count(split))
    return int((split.records.arrays.segmentations.ends.diff() > len(NO_SEGMENTATION)).sum())


def _count_boxes(split: Split) -> int:
    """Count the objects without a segmentation among others that have one."""
    strings = split.records.arrays.segmentations
    num_boxes = 0 if strings is None else int((strings.ends.diff() == len(NO_SEGMENTATION)).sum())
    return num_boxes if strings is not None and num_boxes < len(strings.ends) - 1 else 0


def shard_dataset(
    data: Data,
    output: str | Path,
    *,
    format: str | None = None,
    images_per_shard: int = DEFAULT_IMAGES_PER_SHARD,
    seed: int = 42,
    follow_links: bool = False,
    progress: Progress | None = None,
) -> ShardResult:
    """Pack a dataset into tar shards with an index. After an interruption, the same call resumes.

    Args:
        data: dataset folder.
        output: folder to create, or to complete.
        format: of the annotations; detected if omitted.
        images_per_shard: images in a shard.
        seed: of their order, and of the validation images if there is no validation split.
        follow_links: pack files outside of the dataset's folder, too, where links or a `data.yaml` lead.
        progress: called with the number of images written and the total.

    Raises:
        DatasetError: the data cannot be read, the folder contains something else, a file is outside of the dataset's
            folder, or is not an image.
        ConfigError: a number is out of range.
    """
    check_minimum("images_per_shard", images_per_shard, 1)
    check_minimum("seed", seed, 0)
    output = Path(output)
    dataset = as_splits(data, format=format, seed=seed)
    require_train(dataset)
    refuse_outside_files(dataset.splits.values(), follow_links=follow_links)
    check_shard_folder(dataset.splits, output, images_per_shard=images_per_shard, seed=seed)
    num_existing = write_shards(dataset.splits, output, images_per_shard=images_per_shard, seed=seed, progress=progress)
    num_images = {name: len(split) for name, split in dataset.splits.items()}
    return ShardResult(output, num_images, images_per_shard, num_existing, dataset.notes)
