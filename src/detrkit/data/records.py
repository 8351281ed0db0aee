"""Annotations of a split before its images are opened: millions of objects in a few flat arrays."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, pairwise
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from detrkit.errors import DatasetError

# called with every error in a dataset: raises it, or returns to continue without the malformed entry
ErrorHandler = Callable[[DatasetError], None]
# whether readers keep what masks are made of: of all objects, which then must have it; or "available", of those that do
Masks = bool | Literal["available"]
NO_SEGMENTATION = b""  # of an object without a mask among others that have one


class ImageError(DatasetError):
    """An image cannot be used; it is left out with its objects."""


class ObjectError(DatasetError):
    """An object of a usable image is malformed; it is left out (`Record.num_faults`)."""


class SegmentationError(DatasetError):
    """The segmentation of an object is malformed or does not fit its image; the object keeps its box."""


def raise_error(error: DatasetError) -> None:
    """Stop at the first error."""
    raise error


SplitName = Literal["train", "val", "test"]
# names of a split's folder, or of its entry in a settings file
SPLIT_FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "minival"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Record:
    """An image file and its annotations, as they are in the annotation file.

    Attributes:
        image_id: id in the dataset.
        path: of the image; `shard.tar/name.jpg` for one inside a shard.
        size: (height, width) according to the annotation file.
        boxes: (N, 4) float32, xyxy in pixels, including degenerate and crowd boxes.
        labels: (N,) int64, 0 .. K-1.
        is_crowd: (N,) bool; a crowd box surrounds many objects and is not trained on.
        span: (offset, length) in bytes of the image inside its shard; None for an image file.
        segmentations: of each object, not decoded: JSON of a COCO segmentation; or the segment id if there is a
            `mask_file`; `NO_SEGMENTATION` where there is none. None if masks were not asked for, or do not exist.
        mask_file: PNG of segment ids.
        num_faults: objects that readers left out because they are malformed.
    """

    image_id: int
    path: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    span: tuple[int, int] | None = None
    segmentations: tuple | None = None  # of bytes
    mask_file: Path | None = None
    num_faults: int = 0

    def keep(self, chosen: np.ndarray) -> "Record":
        """Keep the objects of a mask (N,) bool."""
        return replace(
            self,
            boxes=self.boxes[chosen],
            labels=self.labels[chosen],
            is_crowd=self.is_crowd[chosen],
            segmentations=None if self.segmentations is None else tuple(compress(self.segmentations, chosen.tolist())),
        )


@dataclass(frozen=True)
class PackedStrings:
    """Byte strings, concatenated."""

    content: Tensor  # uint8
    ends: Tensor  # (count + 1,) int64: string i spans ends[i] to ends[i + 1]

    @classmethod
    def of(cls, strings: Sequence[bytes]) -> "PackedStrings":
        """Concatenate strings."""
        flat = torch.frombuffer(bytearray(b"".join(strings) or b"\0"), dtype=torch.uint8)
        return cls(flat, _ends([len(string) for string in strings]))

    def between(self, first: int, end: int) -> tuple[bytes, ...]:
        """Return strings first .. end - 1."""
        ends = self.ends[first : end + 1].tolist()
        joined = self.content[ends[0] : ends[-1]].numpy().tobytes()
        return tuple(joined[start - ends[0] : stop - ends[0]] for start, stop in pairwise(ends))

    def select(self, chosen: Tensor) -> "PackedStrings":
        """Return some of the strings, in the order of `chosen`."""
        ends, positions = _gather(self.ends, chosen)
        return PackedStrings(self.content[positions], ends)


@dataclass(frozen=True)
class RecordArrays:
    """Annotations of P images with N objects.

    These are tensors so that worker processes share their memory, whether they are forked (the pages are never written
    to) or spawned (torch passes a tensor by its place in shared memory).
    """

    image_ids: Tensor  # (P,) int64
    sizes: Tensor  # (P, 2) int64, (height, width)
    spans: Tensor  # (P, 2) int64, -1 for image files
    path_bytes: Tensor  # uint8, all paths concatenated
    path_ends: Tensor  # (P + 1,) int64: path i spans path_ends[i] to path_ends[i + 1]
    object_ends: Tensor  # (P + 1,) int64, likewise for the objects
    boxes: Tensor  # (N, 4) float32
    labels: Tensor  # (N,) int32
    is_crowd: Tensor  # (N,) bool
    segmentations: PackedStrings | None = None  # of N objects
    mask_files: PackedStrings | None = None  # of P images: absolute paths
    num_faults: Tensor | None = None  # (P,) int64; None if all are 0

    @property
    def flat(self) -> dict[str, Tensor]:
        """All tensors by name, without segmentations and mask files."""
        return {name: array for name, array in vars(self).items() if isinstance(array, Tensor)}

    @property
    def num_bytes(self) -> int:
        """Memory in bytes."""
        strings = [
            one for string in (self.segmentations, self.mask_files) if string for one in (string.content, string.ends)
        ]
        return sum(array.numel() * array.element_size() for array in (*self.flat.values(), *strings))


class Records(Sequence[Record]):
    """Records of a split, in order; a `Record` is assembled when it is accessed.

    A million objects take 21 MB, once for all workers; as dictionaries they would take hundreds of MB in each worker
    (`benchmarks/data.py`).
    """

    def __init__(self, arrays: RecordArrays, root: Path | None = None) -> None:
        """Wrap arrays.

        Args:
            arrays: of the annotations.
            root: folder that the paths are relative to; None if they are absolute.
        """
        self.arrays = arrays
        self.root = root

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Records":
        """Collect records."""
        kept = list(records)
        paths = [os.fsencode(record.path) for record in kept]
        return cls(
            RecordArrays(
                image_ids=torch.tensor([record.image_id for record in kept], dtype=torch.int64),
                sizes=torch.tensor([record.size for record in kept], dtype=torch.int64).reshape(-1, 2),
                spans=torch.tensor([record.span or (-1, -1) for record in kept], dtype=torch.int64).reshape(-1, 2),
                path_bytes=torch.frombuffer(bytearray(b"".join(paths) or b"\0"), dtype=torch.uint8),
                path_ends=_ends([len(path) for path in paths]),
                object_ends=_ends([len(record.labels) for record in kept]),
                boxes=torch.from_numpy(_concat([r.boxes for r in kept], np.float32).reshape(-1, 4)),
                labels=torch.from_numpy(_concat([r.labels for r in kept], np.int32)),
                is_crowd=torch.from_numpy(_concat([r.is_crowd for r in kept], np.bool_)),
                segmentations=_pack([r.segmentations for r in kept]),
                mask_files=_pack([None if r.mask_file is None else (os.fsencode(r.mask_file),) for r in kept]),
                num_faults=torch.tensor([record.num_faults for record in kept])
                if any(record.num_faults for record in kept)
                else None,
            )
        )

    def __len__(self) -> int:
        return len(self.arrays.image_ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        arrays = self.arrays
        first, end = arrays.object_ends[index : index + 2].tolist()
        height, width = arrays.sizes[index].tolist()
        offset, length = arrays.spans[index].tolist()
        return Record(
            image_id=int(arrays.image_ids[index]),
            path=self.path(index),
            size=(height, width),
            boxes=arrays.boxes[first:end].numpy(),
            labels=arrays.labels[first:end].numpy().astype(np.int64),
            is_crowd=arrays.is_crowd[first:end].numpy(),
            span=None if offset < 0 else (offset, length),
            segmentations=None if arrays.segmentations is None else arrays.segmentations.between(first, end),
            mask_file=None
            if arrays.mask_files is None
            else Path(os.fsdecode(arrays.mask_files.between(index, index + 1)[0])),
            num_faults=0 if arrays.num_faults is None else int(arrays.num_faults[index]),
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def path(self, index: int) -> Path:
        """Path of an image."""
        first, end = self.arrays.path_ends[index : index + 2].tolist()
        path = Path(os.fsdecode(self.arrays.path_bytes[first:end].numpy().tobytes()))
        return path if self.root is None else self.root / path

    def select(self, indices: Iterable[int]) -> "Records":
        """Return some of the records, in the order of `indices`."""
        arrays = self.arrays
        chosen = torch.tensor(list(indices), dtype=torch.int64)
        path_ends, path_positions = _gather(arrays.path_ends, chosen)
        object_ends, objects = _gather(arrays.object_ends, chosen)
        return Records(
            RecordArrays(
                image_ids=arrays.image_ids[chosen],
                sizes=arrays.sizes[chosen],
                spans=arrays.spans[chosen],
                path_bytes=arrays.path_bytes[path_positions],
                path_ends=path_ends,
                object_ends=object_ends,
                boxes=arrays.boxes[objects],
                labels=arrays.labels[objects],
                is_crowd=arrays.is_crowd[objects],
                segmentations=None if arrays.segmentations is None else arrays.segmentations.select(objects),
                mask_files=None if arrays.mask_files is None else arrays.mask_files.select(chosen),
                num_faults=None if arrays.num_faults is None else arrays.num_faults[chosen],
            ),
            self.root,
        )

    @property
    def has_masks(self) -> bool:
        """True if every object has a mask."""
        strings = self.arrays.segmentations
        return strings is not None and bool((strings.ends.diff() > len(NO_SEGMENTATION)).all())

    @property
    def image_ids(self) -> list[int]:
        """Image ids in the dataset."""
        return self.arrays.image_ids.tolist()


def _pack(parts: Sequence[Sequence[bytes] | None]) -> PackedStrings | None:
    """Concatenate the strings of all records, if all records have them."""
    known = [part for part in parts if part is not None]
    return (
        PackedStrings.of([string for part in known for string in part]) if known and len(known) == len(parts) else None
    )


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def _gather(ends: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of the chosen entries after concatenation, and the positions that their parts come from."""
    lengths = ends.diff()[chosen]
    new_ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    shift = ends[chosen] - new_ends[:-1]
    return new_ends, torch.arange(int(new_ends[-1])) + shift.repeat_interleave(lengths)


def _concat(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
