"""Shards: tar files of images and annotations with an index, for datasets too large for single files.

`train-00000.tar` contains, for every image, `KEY.jpg` (or its own suffix) and `KEY.json`, the layout of WebDataset.
`train.index` (safetensors) contains all annotations as flat arrays, and the position of each image, so that an image is
read with one seek and nothing else is read before training. Without an index, the shards are scanned.
"""

import hashlib
import io
import json
import math
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

from detrkit._internal.documents import parse_json
from detrkit._internal.files import atomic_write, make_folder, read_text, refuse_overwrite, write_tensors, write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.writing import Progress, checked_image_bytes
from detrkit.data.image_structure import MAX_PIXELS
from detrkit.data.records import (
    SPLIT_FOLDERS,
    ErrorHandler,
    ImageError,
    Record,
    RecordArrays,
    Records,
    SplitName,
    raise_error,
)
from detrkit.errors import DatasetError, arg

LAYOUT = "shards.json, train-*.tar and train.index, as detrkit shard writes them"
HAS_MASKS = False
FORMAT = "detrkit-shards-1"
PLAN_FILE = "shards.json"
DEFAULT_IMAGES_PER_SHARD = 1000
_ARRAYS = tuple(field.name for field in fields(RecordArrays) if field.default is MISSING)  # without segmentations
_MAX_JSON = 64 * 2**20  # bytes of one image's annotations


def detect(path: Path) -> float:
    """Return the confidence that a folder contains shards."""
    return 1.0 if (path / PLAN_FILE).is_file() else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read the splits of a folder of shards; see `read_shards`."""
    for file in (PLAN_FILE, *(f"{split}.index" for split in SPLIT_FOLDERS)):
        if (path / file).is_file():
            context.opened(path / file)
    found = {split: read_shards(path, split, context.error) for split in SPLIT_FOLDERS if context.wants(split)}
    return {name: split for name, split in found.items() if split is not None}


def write(splits: dict[SplitName, Split], output: Path, progress: Progress | None = None) -> int:
    """Write shards of the default size; see `write_shards`.

    Returns:
        0: crowds are kept.
    """
    write_shards(splits, output, progress=progress)
    return 0


def read_shards(folder: Path, split: SplitName, on_error: ErrorHandler = raise_error) -> Split | None:
    """Read one split of a folder of shards.

    Returns:
        The split, or None if the folder has no shard of it.

    Raises:
        DatasetError: the index or a shard is malformed or missing.
    """
    plan = _read_plan(folder)
    expected = plan.images.get(split, 0)
    shards = sorted(folder.glob(f"{split}-*.tar"))
    if not expected and not shards:
        return None
    index = folder / f"{split}.index"
    if index.is_file():
        content = _read_index(index, {shard.name: shard for shard in shards})
    else:
        content = Split(Records.of(_scan(shards, plan.categories, on_error)), plan.categories, folder)
    if len(content.records) != expected:
        on_error(
            DatasetError(
                f"{folder}: found {len(content.records)} {split} images, expected {expected}; shards are missing: run "
                "detrkit shard again, or copy the missing files"
            )
        )
    return content


def write_shards(
    splits: dict[SplitName, Split],
    output: Path,
    *,
    images_per_shard: int = DEFAULT_IMAGES_PER_SHARD,
    seed: int = 42,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write splits as shards, images in random order. After an interruption, the same call resumes.

    Args:
        splits: of one dataset.
        output: folder to create, or to complete.
        images_per_shard: images in a shard.
        seed: of the order.
        progress: called with the number of images written and the total.

    Returns:
        Number of shards that existed already.

    Raises:
        DatasetError: an image cannot be read, or the folder contains something else.
    """
    plan = check_shard_folder(splits, output, images_per_shard=images_per_shard, seed=seed)
    make_folder(output)
    write_text(output / PLAN_FILE, plan.to_json())
    total, done, num_existing = sum(len(split.records) for split in splits.values()), 0, 0
    for name, split in splits.items():
        order = list(range(len(split.records)))
        random.Random(seed).shuffle(order)  # so that a shard is a sample of the whole
        written: list[Record] = []
        for number, first in enumerate(range(0, len(order), images_per_shard)):
            path = output / f"{name}-{number:05d}.tar"
            chosen = order[first : first + images_per_shard]
            if path.is_file():
                num_existing += 1
            else:
                _write_shard(path, [split.records[index] for index in chosen], split.categories)
            written += _scan([path], split.categories, raise_error)
            done += len(chosen)
            if progress:
                progress(done, total)
        _write_index(output / f"{name}.index", replace(split, records=Records.of(written)))
    return num_existing


@dataclass(frozen=True)
class ShardPlan:
    """Content of a folder of shards, to check that it is complete.

    Attributes:
        categories: of the dataset.
        images_per_shard: images in a shard.
        seed: of the order.
        images: number of images of every split.
        digests: hashes of every split's annotations and file names.
    """

    categories: Categories
    images_per_shard: int
    seed: int
    images: dict[str, int]
    digests: dict[str, str]

    def to_json(self) -> str:
        """Return the content of the file in the folder."""
        content = {"format": FORMAT, **vars(self), "categories": self.categories.to_json()}
        return json.dumps(content, ensure_ascii=False, indent=1)


def check_shard_folder(splits: dict[SplitName, Split], output: Path, *, images_per_shard: int, seed: int) -> ShardPlan:
    """Check that shards can be written to a folder: it is new, or contains a part of the same shards.

    Raises:
        DatasetError: it contains something else.
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
            f"{output}: contains shards of another dataset, or with other settings; choose another {arg('output')}"
        )
    return plan


def _digest(split: Split) -> str:
    """Hash the annotations and file names of a split."""
    digest = hashlib.sha256()
    arrays = split.records.arrays
    for array in (
        arrays.image_ids,
        arrays.sizes,
        arrays.object_ends,
        arrays.boxes,
        arrays.labels,
        arrays.is_crowd,
    ):
        digest.update(array.numpy().tobytes())
    for index in range(len(split.records)):
        digest.update(os.fsencode(split.records.path(index).name) + b"/")
    return digest.hexdigest()


def _read_plan(folder: Path) -> ShardPlan:
    path = folder / PLAN_FILE
    try:
        content = parse_json(read_text(path))
        if content["format"] != FORMAT:
            raise DatasetError(f"{path}: found format {content['format']!r}, expected {FORMAT!r}; update detrkit")
        return ShardPlan(
            Categories.from_json(content["categories"]),
            int(content["images_per_shard"]),
            int(content["seed"]),
            {str(name): int(count) for name, count in content["images"].items()},
            {str(name): str(digest) for name, digest in content["digests"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise DatasetError(f"{path}: not readable ({reason}); write the shards again") from None


def _write_shard(path: Path, records: Sequence[Record], categories: Categories) -> None:
    with atomic_write(path) as temporary, tarfile.open(temporary, "w") as shard:
        for number, record in enumerate(records):
            key = f"{path.stem}-{number:06d}"
            _add(shard, f"{key}{record.path.suffix.lower()}", checked_image_bytes(record))
            _add(shard, f"{key}.json", json.dumps(_description(record, categories)).encode())


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without owner and time: the same images give the same bytes
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


def _scan(shards: Sequence[Path], categories: Categories, on_error: ErrorHandler) -> Iterator[Record]:
    """Read the annotations of shards; images are skipped."""
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
                        on_error(ImageError(error.message))
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
            raise DatasetError(f"{shard}: not readable as a tar file ({error}); copy it again") from None


def _to_record(
    shard: Path,
    image: tuple[str, tuple[int, int]] | None,
    text: bytes,
    label_of: dict[int, int],
    where: str,
) -> Record:
    if image is None:
        raise DatasetError(f"{where}: found no image of the same name before it")
    try:
        content = parse_json(text)
        boxes = np.array(content["boxes_xyxy"], dtype=np.float32).reshape(-1, 4)
        labels = np.array([label_of[number] for number in content["category_ids"]], dtype=np.int64)
        is_crowd = np.array(content["is_crowd"], dtype=bool).reshape(-1)
        size = (int(content["height"]), int(content["width"]))
        record = Record(int(content["image_id"]), shard / image[0], size, boxes, labels, is_crowd, image[1])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DatasetError(
            f"{where}: malformed ({type(error).__name__}: {str(error)[:80]}); write the shard again"
        ) from None
    fits = abs(record.image_id) < 2**63 and min(size) >= 1 and math.prod(size) <= MAX_PIXELS and "\0" not in image[0]
    if not fits or not len(boxes) == len(labels) == len(is_crowd) or not np.isfinite(boxes).all():
        raise DatasetError(f"{where}: boxes, classes, size and name do not agree; write the shard again")
    return record


def _write_index(path: Path, split: Split) -> None:
    header = json.dumps({"format": FORMAT, "categories": split.categories.to_json()})
    arrays = split.records.arrays.flat
    names = [os.fsencode(f"{record.path.parent.name}/{record.path.name}") for record in split.records]
    arrays["path_bytes"] = torch.frombuffer(bytearray(b"".join(names) or b"\0"), dtype=torch.uint8)
    arrays["path_ends"] = torch.tensor([0, *(len(name) for name in names)]).cumsum(0)
    write_tensors(path, arrays, {"detrkit": header})


def _read_index(path: Path, shards: dict[str, Path]) -> Split:
    try:
        with safe_open(path, framework="pt") as opened:
            header = parse_json((opened.metadata() or {})["detrkit"])
            arrays = {name: opened.get_tensor(name) for name in _ARRAYS}
        if header["format"] != FORMAT:
            raise DatasetError(f"{path}: found format {header['format']!r}, expected {FORMAT!r}; update detrkit")
        categories = Categories.from_json(header["categories"])
        _check_arrays(arrays, len(categories))
        records = Records(RecordArrays(**arrays), path.parent)
        _check_spans(records, shards, path)
        return Split(records, categories, path.parent)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0][:100]
        raise DatasetError(f"{path}: not readable as an index ({reason}); remove it to scan the shards") from None


def _check_spans(records: Records, shards: dict[str, Path], index: Path) -> None:
    """Check that every image is in a shard next to the index.

    Raises:
        DatasetError: it is not.
    """
    sizes = {shard: shard.stat().st_size for shard in shards.values()}
    ends = records.arrays.spans.sum(1).tolist()
    for number, end in enumerate(ends):
        shard = records.path(number).parent
        if shard not in sizes:
            raise DatasetError(f"{index}: the shard {shard.name} is missing; copy it, too")
        if end > sizes[shard]:
            raise DatasetError(f"{shard}: ends at {sizes[shard]} bytes, before its images do; copy the shard again")


def _check_arrays(arrays: dict[str, Tensor], num_classes: int) -> None:
    """Check that arrays fit together: a malformed index must not point outside of them.

    Raises:
        ValueError: they do not.
    """
    num_images, num_objects = len(arrays["image_ids"]), len(arrays["labels"])
    shapes = {
        "image_ids": (num_images,),
        "sizes": (num_images, 2),
        "spans": (num_images, 2),
        "path_ends": (num_images + 1,),
        "object_ends": (num_images + 1,),
        "boxes": (num_objects, 4),
        "labels": (num_objects,),
        "is_crowd": (num_objects,),
    }
    dtypes = {"boxes": torch.float32, "labels": torch.int32, "is_crowd": torch.bool, "path_bytes": torch.uint8}
    for name, tensor in arrays.items():
        if tensor.dtype != dtypes.get(name, torch.int64) or tuple(tensor.shape) != shapes.get(
            name, tuple(tensor.shape)
        ):
            raise ValueError(f"array {name} has shape {tuple(tensor.shape)} of {tensor.dtype}")
    num_bytes = len(arrays["path_bytes"])
    for name, ending in (("path_ends", (num_bytes, 0)), ("object_ends", (num_objects,))):  # 0: no images, and a byte
        ends = arrays[name]
        if int(ends[0]) != 0 or int(ends[-1]) not in ending or bool((ends.diff() < 0).any()):
            raise ValueError(f"array {name} does not rise from 0 to {ending[0]}")
    if num_images and bool((arrays["path_bytes"] == 0).any()):
        raise ValueError("a path contains a zero byte")
    labels = arrays["labels"]
    if num_objects and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels are not all in 0 .. {num_classes - 1}")
    spans = arrays["spans"]
    if num_images and (int(spans.min()) < 0 or int(spans.max()) >= 2**62):
        raise ValueError("an image has no position")
    sizes = arrays["sizes"]
    # the sides alone, too: their product may overflow
    if num_images and not (int(sizes.min()) >= 1 and int(sizes.max()) <= MAX_PIXELS >= int(sizes.prod(1).max())):
        raise ValueError(f"an image has no size, or more than {MAX_PIXELS} pixels")
    if not bool(arrays["boxes"].isfinite().all()):
        raise ValueError("a box is not finite")
