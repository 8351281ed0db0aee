"""Shards: tar files of photos and annotations, for sets too large for a folder of files, and an index -> records.

`train-00000.tar` holds, for every photo, `KEY.jpg` (or its own suffix) and `KEY.json` one after the other, the layout of
WebDataset. `train.index` (safetensors) holds every annotation in flat columns and where each photo lies, so that any
photo is read by one seek, and nothing else is read before training. Without an index, it is made anew from the shards.
"""

import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrkit._internal.files import atomic_write, make_folder, refuse_overwrite, write_tensors, write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.images import read_image_bytes
from detrkit.data.records import ErrorHandler, Record, RecordArrays, Records, SplitName, raise_error
from detrkit.errors import DatasetError

FORMAT = "detrkit-shards-1"
PLAN_FILE = "shards.json"
DEFAULT_SHARD_PHOTOS = 1000
_COLUMNS = tuple(field.name for field in fields(RecordArrays) if field.default is MISSING)  # outlines stay outside
_MAX_JSON = 64 * 2**20  # bytes of one photo's annotations


def read_shards(folder: Path, split: SplitName, on_error: ErrorHandler = raise_error) -> Split | None:
    """Read one split of a folder of shards.

    Returns:
        The split; None when the folder has no shard of it.

    Raises:
        DatasetError: the index or a shard is malformed or missing.
    """
    plan = _read_plan(folder)
    expected = plan.photos.get(split, 0)
    shards = sorted(folder.glob(f"{split}-*.tar"))
    if not expected and not shards:
        return None
    index = folder / f"{split}.index"
    if index.is_file():
        read = _read_index(index, {shard.name: shard for shard in shards})
    else:
        read = Split(Records.of(_walk(shards, plan.categories, on_error)), plan.categories, folder)
    if len(read.records) != expected:
        on_error(
            DatasetError(
                f"{folder}: found {len(read.records)} {split} photos, expected {expected}; the shards are incomplete: run "
                "detrkit shard again, or copy what is missing"
            )
        )
    return read


def write_shards(
    splits: dict[SplitName, Split],
    output: Path,
    *,
    images_per_shard: int = DEFAULT_SHARD_PHOTOS,
    seed: int = 42,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write splits as shards, photos in random order. Written again after an interruption, it goes on where it stopped.

    Args:
        splits: of one dataset.
        output: folder to create, or to complete.
        images_per_shard: photos of a shard.
        seed: of the order.
        progress: told how many photos of how many are written.

    Returns:
        How many shards were there already.

    Raises:
        DatasetError: a photo cannot be read, or the folder holds something else.
    """
    plan = check_place(splits, output, images_per_shard=images_per_shard, seed=seed)
    make_folder(output)
    write_text(output / PLAN_FILE, plan.to_json())
    total, done, found = sum(len(split.records) for split in splits.values()), 0, 0
    for name, split in splits.items():
        order = list(range(len(split.records)))
        random.Random(seed).shuffle(order)  # so that a shard is a sample of the whole
        placed: list[Record] = []
        for number, first in enumerate(range(0, len(order), images_per_shard)):
            path = output / f"{name}-{number:05d}.tar"
            chosen = order[first : first + images_per_shard]
            if path.is_file():
                found += 1
            else:
                _write_shard(path, [split.records[index] for index in chosen], split.categories)
            placed += _walk([path], split.categories, raise_error)
            done += len(chosen)
            if progress:
                progress(done, total)
        _write_index(output / f"{name}.index", replace(split, records=Records.of(placed)))
    return found


@dataclass(frozen=True)
class ShardPlan:
    """What a folder of shards is to hold, so that it can be told whether all of it is there.

    Attributes:
        categories: of the dataset.
        images_per_shard: photos of a shard.
        seed: of the order.
        photos: of every split.
        digests: of every split's annotations and names of photos.
    """

    categories: Categories
    images_per_shard: int
    seed: int
    photos: dict[str, int]
    digests: dict[str, str]

    def to_json(self) -> str:
        """Write the plan as it stands in the folder."""
        content = {"format": FORMAT, **vars(self), "categories": self.categories.to_json()}
        return json.dumps(content, ensure_ascii=False, indent=1)


def check_place(splits: dict[SplitName, Split], output: Path, *, images_per_shard: int, seed: int) -> ShardPlan:
    """See that shards can be written to a folder: it is new, or holds a part of the very same.

    Raises:
        DatasetError: it holds something else.
    """
    plan = ShardPlan(
        splits["train"].categories,
        images_per_shard,
        seed,
        {name: len(split.records) for name, split in splits.items()},
        {name: _digest(split) for name, split in splits.items()},
    )
    if not (output / PLAN_FILE).is_file():
        refuse_overwrite(output)
    elif _read_plan(output) != plan:
        raise DatasetError(
            f"{output}: holds shards of another dataset, or made with other settings; choose another place"
        )
    return plan


def _digest(split: Split) -> str:
    """A number of everything that shards hold but the pixels."""
    digest = hashlib.sha256()
    arrays = split.records.arrays
    for column in (
        arrays.image_ids,
        arrays.sizes,
        arrays.object_ends,
        arrays.boxes,
        arrays.labels,
        arrays.is_crowd,
    ):
        digest.update(column.numpy().tobytes())
    for index in range(len(split.records)):
        digest.update(os.fsencode(split.records.path(index).name) + b"/")
    return digest.hexdigest()


def _read_plan(folder: Path) -> ShardPlan:
    path = folder / PLAN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DatasetError(f"{path}: found format {content['format']!r}, expected {FORMAT!r}; update detrkit")
        return ShardPlan(
            Categories.from_json(content["categories"]),
            int(content["images_per_shard"]),
            int(content["seed"]),
            {str(name): int(count) for name, count in content["photos"].items()},
            {str(name): str(digest) for name, digest in content["digests"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise DatasetError(f"{path}: not readable ({reason}); write the shards again") from None


def _write_shard(path: Path, records: Sequence[Record], categories: Categories) -> None:
    with atomic_write(path) as temporary, tarfile.open(temporary, "w") as shard:
        for number, record in enumerate(records):
            key = f"{path.stem}-{number:06d}"
            _add(shard, f"{key}{record.path.suffix.lower()}", read_image_bytes(record.path, record.span))
            _add(shard, f"{key}.json", json.dumps(_description(record, categories)).encode())


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner, no time: the same photos give the same bytes
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def _description(record: Record, categories: Categories) -> dict[str, Any]:
    return {
        "image_id": record.image_id,
        "file_name": record.path.name,
        "height": record.size[0],
        "width": record.size[1],
        "boxes_xyxy": record.boxes.tolist(),
        "category_ids": [categories.ids[label] for label in record.labels.tolist()],
        "is_crowd": record.is_crowd.tolist(),
    }


def _walk(shards: Sequence[Path], categories: Categories, on_error: ErrorHandler) -> Iterator[Record]:
    """Read the annotations of shards, one after the other; photos are passed over."""
    label_of = {number: label for label, number in enumerate(categories.ids)}
    for shard in shards:
        spans: dict[str, tuple[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(shard, "r:") as opened:
                for member in opened:
                    name = PurePosixPath(member.name)
                    if not member.isfile() or member.size < 0:
                        continue
                    if name.suffix != ".json":
                        spans[name.stem] = name.name, (member.offset_data, member.size)
                        continue
                    content = opened.extractfile(member)
                    text = content.read(_MAX_JSON) if content else b""
                    try:
                        yield _to_record(shard, spans.pop(name.stem, None), text, label_of, f"{shard}: {name}")
                    except DatasetError as error:
                        on_error(error)
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
            raise DatasetError(f"{shard}: not readable as a tar file ({error}); copy it again") from None


def _to_record(
    shard: Path,
    photo: tuple[str, tuple[int, int]] | None,
    text: bytes,
    label_of: dict[int, int],
    where: str,
) -> Record:
    if photo is None:
        raise DatasetError(f"{where}: found no photo before it, expected one of the same name")
    try:
        content = json.loads(text)
        boxes = np.array(content["boxes_xyxy"], dtype=np.float32).reshape(-1, 4)
        labels = np.array([label_of[number] for number in content["category_ids"]], dtype=np.int64)
        is_crowd = np.array(content["is_crowd"], dtype=bool).reshape(-1)
        size = (int(content["height"]), int(content["width"]))
        record = Record(int(content["image_id"]), shard / photo[0], size, boxes, labels, is_crowd, photo[1])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{where}: is malformed ({type(error).__name__}: {str(error)[:80]}); write the shard again"
        ) from None
    fits = abs(record.image_id) < 2**63 and min(size) >= 1 and max(size) < 2**31
    if not fits or not len(boxes) == len(labels) == len(is_crowd) or not np.isfinite(boxes).all():
        raise DatasetError(f"{where}: boxes, classes and size do not agree; write the shard again")
    return record


def _write_index(path: Path, split: Split) -> None:
    header = json.dumps({"format": FORMAT, "categories": split.categories.to_json()})
    columns = split.records.arrays.flat
    names = [os.fsencode(Path(record.path.parent.name) / record.path.name) for record in split.records]
    columns["path_bytes"] = torch.frombuffer(bytearray(b"".join(names) or b"\0"), dtype=torch.uint8)
    columns["path_ends"] = torch.tensor([0, *(len(name) for name in names)]).cumsum(0)
    write_tensors(path, columns, {"detrkit": header})


def _read_index(path: Path, shards: dict[str, Path]) -> Split:
    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})["detrkit"])
            columns = {name: opened.get_tensor(name) for name in _COLUMNS}
        if header["format"] != FORMAT:
            raise DatasetError(f"{path}: found format {header['format']!r}, expected {FORMAT!r}; update detrkit")
        categories = Categories.from_json(header["categories"])
        _check_columns(columns, len(categories))
        records = Records(RecordArrays(**columns), path.parent)
        _check_places(records, shards, path)
        return Split(records, categories, path.parent)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise DatasetError(f"{path}: not readable as an index ({reason}); remove it, and the shards are read") from None


def _check_places(records: Records, shards: dict[str, Path], index: Path) -> None:
    """See that every photo lies in a shard beside the index, whole.

    Raises:
        DatasetError: it does not.
    """
    sizes = {shard: shard.stat().st_size for shard in shards.values()}
    ends = records.arrays.spans.sum(1).tolist()
    for number, end in enumerate(ends):
        shard = records.path(number).parent
        if shard not in sizes:
            raise DatasetError(f"{index}: names the shard {shard.name}, which is not beside it; copy it, too")
        if end > sizes[shard]:
            raise DatasetError(f"{shard}: ends at {sizes[shard]} bytes, before its photos do; copy the shard again")


def _check_columns(columns: dict[str, Tensor], num_classes: int) -> None:
    """See that columns fit together: a malformed index must not lead out of them.

    Raises:
        ValueError: they do not.
    """
    photos, objects = len(columns["image_ids"]), len(columns["labels"])
    shapes = {
        "image_ids": (photos,),
        "sizes": (photos, 2),
        "spans": (photos, 2),
        "path_ends": (photos + 1,),
        "object_ends": (photos + 1,),
        "boxes": (objects, 4),
        "labels": (objects,),
        "is_crowd": (objects,),
    }
    kinds = {"boxes": torch.float32, "labels": torch.int32, "is_crowd": torch.bool, "path_bytes": torch.uint8}
    for name, tensor in columns.items():
        if tensor.dtype != kinds.get(name, torch.int64) or tuple(tensor.shape) != shapes.get(name, tuple(tensor.shape)):
            raise ValueError(f"column {name} has shape {tuple(tensor.shape)} of {tensor.dtype}")
    for name, end in (("path_ends", len(columns["path_bytes"])), ("object_ends", objects)):
        ends = columns[name]
        if int(ends[0]) != 0 or int(ends[-1]) > end or bool((ends.diff() < 0).any()):
            raise ValueError(f"column {name} does not rise from 0 to {end}")
    labels = columns["labels"]
    if objects and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels are not all in 0 .. {num_classes - 1}")
    spans = columns["spans"]
    if photos and (int(spans.min()) < 0 or int(spans.max()) >= 2**62 or int(columns["sizes"].min()) < 1):
        raise ValueError("a photo has no place or no size")
    if not bool(columns["boxes"].isfinite().all()):
        raise ValueError("a box is not finite")
