"""Comparison of a run that is resumed with the run that was saved: settings, classes, images.

Images are compared by their content and annotations, not by their paths, so a dataset may move. Of a large dataset the
content of some thousand images is read, and the names of the others are compared.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from detrkit.config.run import RunConfig
from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleSplit, Split
from detrkit.data.records import PackedStrings, Records
from detrkit.errors import ConfigError, arg, short
from detrkit.models.detr import DETR
from detrkit.training.data import TrainingData

MAX_READ = 5000  # images of a split whose content is read: some seconds on a cold disk
_HEAD_BYTES = 65536  # of every image that is read, together with its size
_NUM_THREADS = 8  # network file systems answer slowly, but many at once
# a run may continue with other values of these: they change where it runs, not what it computes
_MAY_CHANGE = frozenset({"workers", "device", "devices", "compile", "activation_checkpointing", "log_every"})
_COMPARED_ELSEWHERE = frozenset({"epochs", "steps", "minutes"})  # as the number of steps


def describe_run(config: RunConfig, data: TrainingData, model: DETR) -> dict[str, Any]:
    """Return what a resumed run must have in common with this one, as plain values and tensors."""
    settings = config.training.model_dump(mode="json")
    flat = {name: value for group in settings.values() if isinstance(group, dict) for name, value in group.items()}
    flat |= {name: value for name, value in settings.items() if not isinstance(value, dict)}
    skipped = _MAY_CHANGE | _COMPARED_ELSEWHERE
    return {
        "settings": {name: value for name, value in flat.items() if name not in skipped},
        "model": model.config.model_dump(mode="json", exclude={"num_classes"}),
        "categories": data.categories.to_json(),
        "train": torch.zeros(len(data.train), dtype=torch.int64)
        if data.train_split is None
        else image_digests(data.train_split),
        "val": image_digests(data.val_split),
    }


def check_same_run(saved: dict[str, Any], current: dict[str, Any], folder: Path, data: TrainingData) -> None:
    """Check that a run continues what was saved.

    Args:
        saved: result of `describe_run` when the run was saved.
        current: the same now.
        folder: run folder, for messages.
        data: of the run that is resumed, for messages.

    Raises:
        ConfigError: something differs; the message names it.
    """
    for group, where in (("settings", ""), ("model", "model.")):
        for name, value in current[group].items():
            if name in saved[group] and saved[group][name] != value:
                raise ConfigError(
                    f"{folder}: config.yaml has {where}{name}: {short(value)}, but the run was started with "
                    f"{short(saved[group][name])}; restore it, or start a run with {arg('weights', str(folder))} and "
                    f"another {arg('output')}"
                )
    changes = (
        *_class_changes(Categories.from_json(saved["categories"]), data.categories),
        *_image_changes("train", saved["train"], current["train"], data.train_split),
        *_image_changes("val", saved["val"], current["val"], data.val_split),
    )
    if changes:
        raise ConfigError(
            f"{folder}: the dataset {data.val_split.source} has changed since the run was started: {changes[0]}; restore "
            f"it, or start a run with {arg('weights', str(folder))} and another {arg('output')}"
        )


def image_digests(split: Split) -> Tensor:
    """Hash the content and annotations of every image: (P,) int64."""
    records = split.records
    contents = {} if isinstance(split, SampleSplit) else _contents(records)
    arrays, masks = records.arrays, records.arrays.segmentations
    ends = arrays.object_ends.tolist()
    boxes, labels, crowds = (
        memoryview(array.contiguous().numpy().tobytes()) for array in (arrays.boxes, arrays.labels, arrays.is_crowd)
    )
    sizes = arrays.sizes.tolist()
    digests: list[int] = []
    for index in range(len(records)):
        first, end = ends[index], ends[index + 1]
        content = contents.get(index) or records.path(index).name.encode(errors="surrogateescape")
        digest = blake2b(content + b"/%d/%d/" % tuple(sizes[index]), digest_size=8)
        for part, width in ((boxes, 16), (labels, 4), (crowds, 1)):
            digest.update(part[first * width : end * width])
        if masks is not None:
            digest.update(_bytes_between(masks, first, end))
        digests.append(int.from_bytes(digest.digest(), signed=True))
    return torch.tensor(digests, dtype=torch.int64)


def _bytes_between(strings: PackedStrings, first: int, end: int) -> bytes:
    start, stop = int(strings.ends[first]), int(strings.ends[end])
    return strings.content[start:stop].numpy().tobytes()


def _contents(records: Records) -> dict[int, bytes]:
    """Read size and head of the images, by index; of many images, of some at equal distances."""
    count = min(len(records), MAX_READ)
    chosen = [number * len(records) // count for number in range(count)]
    spans = records.arrays.spans.tolist()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        heads = pool.map(lambda index: _head(records.path(index), spans[index]), chosen)
        return dict(zip(chosen, heads, strict=True))


def _head(path: Path, span: Sequence[int]) -> bytes:
    offset, length = span
    try:
        with (path if offset < 0 else path.parent).open("rb") as file:
            size = file.seek(0, 2) if offset < 0 else length
            file.seek(max(offset, 0))
            return b"%d/" % size + file.read(min(size, _HEAD_BYTES))
    except OSError:
        return b"missing"


def _class_changes(before: Categories, now: Categories) -> Iterator[str]:
    for label, (old, new) in enumerate(zip(before.names, now.names, strict=False)):
        if old != new:
            yield f"class {label} is {new!r}, but was {old!r}"
    if len(before) != len(now):
        yield f"it has {len(now)} classes, but had {len(before)}"
    for name, old_id, new_id in zip(before.names, before.ids, now.ids, strict=False):
        if old_id != new_id:
            yield f"class {name!r} has the id {new_id}, but had {old_id}"
    if before.is_thing != now.is_thing:
        yield "other classes are things (isthing)"


def _image_changes(name: Literal["train", "val"], before: Tensor, now: Tensor, split: Split | None) -> Iterator[str]:
    what = "training" if name == "train" else "validation"
    if len(before) != len(now):
        yield f"it has {len(now)} {what} images, but had {len(before)}"
    elif not torch.equal(before, now):
        if torch.equal(before.sort().values, now.sort().values):
            yield f"the {what} images are in another order"
        else:
            is_new = ~torch.isin(now, before)
            is_new = is_new if is_new.any() else now != before  # a repeated image
            index = int(is_new.int().argmax())
            where = f"number {index + 1}" if split is None else split.records.path(index).name
            yield (
                f"{int(is_new.sum())} of {len(now)} {what} images or their annotations are not those of the run, first "
                f"{where}"
            )
