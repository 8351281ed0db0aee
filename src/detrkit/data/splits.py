"""Datasets from folders or `torch` datasets, divided into splits."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from detrkit._internal.text import plural
from detrkit.data.categories import Categories
from detrkit.data.dataset import DatasetSplits, SampleSplit, Split
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.registry import layouts, read_splits
from detrkit.data.records import ErrorHandler, Masks, SplitName
from detrkit.data.torch_dataset import class_names_of, is_torch_dataset, read_torch_dataset
from detrkit.errors import ConfigError, DatasetError, arg

VAL_FRACTION = 0.2  # of the images, set aside where there is no validation split

# data that training and evaluation take: a folder, its splits, or a dataset of (image, target)
Data = str | Path | DatasetSplits | Dataset[Any]


def load_dataset(
    path: str | Path,
    format: str | None = None,
    *,
    masks: Masks = False,
    seed: int = 42,
    on_error: ErrorHandler | None = None,
    splits: Collection[SplitName] | None = None,
) -> DatasetSplits:
    """Load a dataset folder.

    Only annotations are read; images are read when a sample is asked for. If there is no validation split, a fifth of the
    training images is set aside at random.

    Args:
        path: dataset folder; or a data.yaml, or a COCO JSON.
        format: of the annotations; detected from the folder if omitted.
        masks: load instance masks or panoptic segments; "available" loads those that exist, for copies and checks.
        seed: of the images that are set aside for validation.
        on_error: called with every malformed entry, which is then left out; by default malformed entries are an error,
            raised when all are counted.
        splits: the only splits to read; the images and annotations of others may be missing. By default all are read.

    Returns:
        `.train`, `.val` and `.test`, which are datasets of `Sample`; those that the folder does not have are empty.

    Raises:
        DatasetError: nothing is there, the format is not known or has no masks, or a file is malformed.
    """
    path = Path(path)
    with _faults_raised_at_the_end(path) as count_fault:
        context = ReadContext(on_error or count_fault, masks, splits)
        format, found = read_splits(path, format, context)
    if not found:
        raise DatasetError(f"{path}: found no {' or '.join(splits or ())} split in this {format} dataset")
    return _with_val(found, format, seed, context)


def load_split(
    path: str | Path, split: SplitName, format: str | None = None, seed: int | None = None, *, masks: Masks = False
) -> tuple[Split | None, tuple[str, ...]]:
    """Load one split of a dataset folder, to evaluate on.

    Args:
        path: dataset folder; or a data.yaml; or a COCO JSON, of which all images are taken.
        split: name of the split.
        format: of the annotations; detected from the folder if omitted.
        seed: with which a training run has set aside validation images; None if no run did.
        masks: load instance masks or panoptic segments; "available" loads those that exist, for copies and checks.

    Returns:
        The split, or None if it is missing, and the decisions taken while reading.

    Raises:
        DatasetError: as `load_dataset`.
    """
    path = Path(path)
    if split != "train":  # without the others, whose images may be missing
        with _faults_raised_at_the_end(path) as count_fault:
            context = ReadContext(count_fault, masks, (split,))
            format, found = read_splits(path, format, context)
        if split in found:
            return found[split], tuple(context.notes)
    with _faults_raised_at_the_end(path) as count_fault:
        context = ReadContext(count_fault, masks, ("train", "val" if split == "train" else split))
        format, found = read_splits(path, format, context)
    if "train" not in found:
        return None, ()
    if seed is None and path.suffix.lower() == ".json" and path.is_file():
        return found["train"], (f"all of {path.name}: {plural(len(found['train']), 'image')}",)
    dataset = _with_val(found, format, 42 if seed is None else seed, context)
    return dataset.splits.get(split), dataset.notes


@contextmanager
def _faults_raised_at_the_end(path: Path) -> Iterator[ErrorHandler]:
    """Yield a function that counts malformed entries; raise an error about them when the block ends, even with another.

    Raises:
        DatasetError: there was at least one; the message has the first, and the number of all.
    """
    first: DatasetError | None = None
    count = 0

    def count_fault(error: DatasetError) -> None:
        nonlocal first, count
        first, count = first or error, count + 1

    try:
        yield count_fault
    except DatasetError:  # of a reader that has left out everything: it would hide these
        if first is None:
            raise
    if first is not None:
        others, them = ("", "it") if count == 1 else (f" (and {plural(count - 1, 'more fault')})", "them")
        raise DatasetError(
            f"{first.message}{others}; detrkit doctor {path} shows {them}, and with {arg('fix', 'COPY')} writes a copy "
            f"without {them}"
        )


def as_splits(
    data: Data,
    *,
    val: Data | None = None,
    classes: Sequence[str] | None = None,
    format: str | None = None,
    masks: Masks = False,
    seed: int = 42,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetSplits:
    """Turn any supported data into splits.

    Args:
        data: dataset folder, the result of `load_dataset`, or a map-style `torch.utils.data.Dataset` of
            `(image, target)` in torchvision's form: an image (PIL, uint8 or float tensor (C, H, W), or array (H, W, C)),
            and a dict with `boxes` (N, 4) xyxy in pixels, `labels` (N,) 0 .. K-1 and optionally `masks` (N, H, W),
            `iscrowd` (N,) and `image_id`. Every sample of such a dataset is read once, to check it.
        val: validation data, likewise; if omitted, and `data` has no validation split, a fifth of `data`.
        classes: class names, in the order of the labels; only for `torch` datasets.
        format: of a folder's annotations; detected if omitted.
        masks: load instance masks or panoptic segments; "available" loads those that exist, for copies and checks.
        seed: of the images that are set aside for validation.
        workers: processes that read a `torch` dataset.
        progress: called with the number of samples read and the total.

    Raises:
        DatasetError: the data cannot be read, or a target is malformed.
        ConfigError: the class names are missing or do not apply.
    """
    if classes is not None and not is_torch_dataset(data):
        raise ConfigError(f"{arg('classes')} applies to torch datasets only; a dataset folder names its classes itself")
    if isinstance(data, DatasetSplits):
        dataset = data
    elif isinstance(data, str | Path):
        dataset = load_dataset(data, format, masks=masks, seed=seed)
    else:
        categories = class_names_of(data, classes)
        train = read_torch_dataset(data, categories, masks=masks, workers=workers, progress=progress)
        dataset = DatasetSplits.of({"train": train}) if val is not None else _with_val({"train": train}, None, seed)
    if val is None:
        return dataset
    split = _val_of(val, dataset.categories, format, masks=masks, workers=workers, progress=progress)
    _check_categories(split, dataset.categories)
    return replace(dataset, val=split, notes=(), is_val_set_aside=False)


def _val_of(
    val: Data,
    categories: Categories,
    format: str | None,
    *,
    masks: Masks,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Split:
    """Read validation data of its own: the validation split of a folder, or all of it if it has only one split."""
    if isinstance(val, DatasetSplits):
        return val.val
    if isinstance(val, str | Path):
        _, splits = read_splits(Path(val), format, ReadContext(masks=masks))
        return splits["val"] if "val" in splits else next(iter(splits.values()))
    split = read_torch_dataset(val, categories, masks=masks, workers=workers, progress=progress)
    return replace(split, fixed_sizes=True)


def _with_val(
    splits: dict[SplitName, Split], format: str | None, seed: int, context: ReadContext | None = None
) -> DatasetSplits:
    """Set a validation split aside if there is no such split, and check that all splits have the same categories."""
    context = context or ReadContext()
    train, notes, is_val_set_aside = splits.get("train"), [*context.notes], False
    if train is not None and len(train) and "val" not in splits and context.wants("val"):
        total = len(train)
        train, val = _set_aside(train, seed)
        if total == 1:
            notes.append(
                "no validation split, and a single image: the model is evaluated on the image it is trained on"
            )
        else:
            notes.append(f"no validation split: {len(val)} of {total} images were set aside at random (seed {seed})")
        if isinstance(val, SampleSplit):
            val = replace(val, fixed_sizes=True)
        splits = {**splits, "train": train, "val": val}
        is_val_set_aside = True
    first = train or next(iter(splits.values()))
    for split in splits.values():
        _check_categories(split, first.categories)
    dataset = DatasetSplits.of(splits, format, notes, context.findings)
    return replace(dataset, is_val_set_aside=is_val_set_aside)


def require_train(dataset: DatasetSplits) -> Split:
    """Return the training split.

    Raises:
        DatasetError: it is empty.
    """
    if not len(dataset.train):
        where = next(iter(dataset.splits.values()), dataset.train).source
        raise DatasetError(f"{where}: found no training images; expected {layouts()}")
    return dataset.train


def _check_categories(split: Split, categories: Categories) -> None:
    if split.categories != categories:
        raise DatasetError(
            f"{split.source}: the categories differ from those of the training split; use the same list in all splits"
        )


def _set_aside(split: Split, seed: int) -> tuple[Split, Split]:
    """Divide a split at random; training keeps an image of every class if possible."""
    if len(split) < 2:
        return split, split
    order = list(range(len(split)))
    random.Random(seed).shuffle(order)
    classes = [set(record.labels[~record.is_crowd].tolist()) for record in split.records]
    images_left = Counter(label for labels in classes for label in labels)
    count = max(1, round(VAL_FRACTION * len(order)))
    chosen: set[int] = set()
    for index in order:
        if len(chosen) < count and all(images_left[label] > 1 for label in classes[index]):
            chosen.add(index)
            images_left.subtract(classes[index])
    chosen = chosen or {order[0]}
    return split.select(index for index in range(len(order)) if index not in chosen), split.select(sorted(chosen))
