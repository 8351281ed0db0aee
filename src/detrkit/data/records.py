"""What is known about a photo before it is opened; of a million objects, in a few flat arrays."""

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

# told of everything that is wrong; raises it, or goes on without what is at fault
FaultHandler = Callable[[DatasetError], None]


def raise_fault(fault: DatasetError) -> None:
    """Stop at the first fault."""
    raise fault


SplitName = Literal["train", "val", "test"]
# what people and exporters call the folder, or the setting, of a split
SPLIT_FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Record:
    """A photo on disk and its annotations, as the annotation file gives them.

    Attributes:
        image_id: the dataset's own id.
        path: where the photo lies; `shard.tar/name.jpg` for one inside a shard.
        size: (height, width) that the annotation file claims.
        boxes: (N, 4) float32, xyxy in pixels, degenerate and crowd boxes included.
        labels: (N,) int64, 0 .. K-1.
        is_crowd: (N,) bool; a crowd box surrounds many objects and belongs to no query.
        span: (offset, length) in bytes of the photo inside its shard; None for a file of its own.
        outlines: of each object, undecoded: JSON of a COCO segmentation; or, beside a `mask_file`, its id there. None where
            masks were not asked for, or there are none.
        mask_file: PNG of segment ids.
    """

    image_id: int
    path: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    span: tuple[int, int] | None = None
    outlines: tuple | None = None  # of bytes
    mask_file: Path | None = None

    def keep(self, chosen: np.ndarray) -> "Record":
        """Leave out the objects that are not chosen: (N,) bool."""
        return replace(
            self,
            boxes=self.boxes[chosen],
            labels=self.labels[chosen],
            is_crowd=self.is_crowd[chosen],
            outlines=None if self.outlines is None else tuple(compress(self.outlines, chosen.tolist())),
        )


@dataclass(frozen=True)
class PackedStrings:
    """Many byte strings, one after the other."""

    content: Tensor  # uint8
    ends: Tensor  # (count + 1,) int64: text i lies from ends[i] to ends[i + 1]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "PackedStrings":
        """Lay texts out flat."""
        flat = torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8)
        return cls(flat, _ends([len(text) for text in texts]))

    def between(self, first: int, end: int) -> tuple[bytes, ...]:
        """Texts number first .. end - 1."""
        ends = self.ends[first : end + 1].tolist()
        joined = self.content[ends[0] : ends[-1]].numpy().tobytes()
        return tuple(joined[start - ends[0] : stop - ends[0]] for start, stop in pairwise(ends))

    def select(self, chosen: Tensor) -> "PackedStrings":
        """Keep some, in the order of `chosen`."""
        ends, places = _gathered(self.ends, chosen)
        return PackedStrings(self.content[places], ends)


@dataclass(frozen=True)
class RecordArrays:
    """The annotations of P photos with N objects, flat.

    Tensors, although nothing is computed with them: processes that read photos share their memory, whether they are
    forked (nobody writes to these pages) or started anew (torch passes a tensor by its place in shared memory).
    """

    image_ids: Tensor  # (P,) int64
    sizes: Tensor  # (P, 2) int64, (height, width)
    spans: Tensor  # (P, 2) int64, -1 for files of their own
    path_bytes: Tensor  # uint8, all paths one after the other
    path_ends: Tensor  # (P + 1,) int64: path i lies from path_ends[i] to path_ends[i + 1]
    object_ends: Tensor  # (P + 1,) int64, alike for the objects
    boxes: Tensor  # (N, 4) float32
    labels: Tensor  # (N,) int32
    is_crowd: Tensor  # (N,) bool
    outlines: PackedStrings | None = None  # of N objects
    mask_files: PackedStrings | None = None  # of P photos: paths, whole

    @property
    def flat(self) -> dict[str, Tensor]:
        """All of them by name, but outlines and mask files."""
        return {name: column for name, column in vars(self).items() if isinstance(column, Tensor)}

    @property
    def num_bytes(self) -> int:
        """How much memory they take."""
        texts = [one for text in (self.outlines, self.mask_files) if text for one in (text.content, text.ends)]
        return sum(column.numel() * column.element_size() for column in (*self.flat.values(), *texts))


class Records(Sequence[Record]):
    """The photos of a split, in order; a `Record` is put together when it is asked for.

    A million objects take 21 MB, once for all workers; as dictionaries they would take hundreds, for each of them
    (`benchmarks/data.py`).
    """

    def __init__(self, columns: RecordArrays, root: Path | None = None) -> None:
        """Wrap columns.

        Args:
            columns: that belong together.
            root: folder that their paths are relative to; None where they are whole.
        """
        self.columns = columns
        self.root = root

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Records":
        """Lay records out flat."""
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
                boxes=torch.from_numpy(_joined([r.boxes for r in kept], np.float32).reshape(-1, 4)),
                labels=torch.from_numpy(_joined([r.labels for r in kept], np.int32)),
                is_crowd=torch.from_numpy(_joined([r.is_crowd for r in kept], np.bool_)),
                outlines=_texts_of([r.outlines for r in kept]),
                mask_files=_texts_of([None if r.mask_file is None else (os.fsencode(r.mask_file),) for r in kept]),
            )
        )

    def __len__(self) -> int:
        return len(self.columns.image_ids)

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
        columns = self.columns
        first, end = columns.object_ends[index : index + 2].tolist()
        height, width = columns.sizes[index].tolist()
        offset, length = columns.spans[index].tolist()
        return Record(
            image_id=int(columns.image_ids[index]),
            path=self.path(index),
            size=(height, width),
            boxes=columns.boxes[first:end].numpy(),
            labels=columns.labels[first:end].numpy().astype(np.int64),
            is_crowd=columns.is_crowd[first:end].numpy(),
            span=None if offset < 0 else (offset, length),
            outlines=None if columns.outlines is None else columns.outlines.between(first, end),
            mask_file=None
            if columns.mask_files is None
            else Path(os.fsdecode(columns.mask_files.between(index, index + 1)[0])),
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def path(self, index: int) -> Path:
        """Where a photo lies."""
        first, end = self.columns.path_ends[index : index + 2].tolist()
        path = Path(os.fsdecode(self.columns.path_bytes[first:end].numpy().tobytes()))
        return path if self.root is None else self.root / path

    def select(self, indices: Iterable[int]) -> "Records":
        """Keep some photos, in the order of `indices`."""
        columns = self.columns
        chosen = torch.tensor(list(indices), dtype=torch.int64)
        path_ends, path_places = _gathered(columns.path_ends, chosen)
        object_ends, objects = _gathered(columns.object_ends, chosen)
        return Records(
            RecordArrays(
                image_ids=columns.image_ids[chosen],
                sizes=columns.sizes[chosen],
                spans=columns.spans[chosen],
                path_bytes=columns.path_bytes[path_places],
                path_ends=path_ends,
                object_ends=object_ends,
                boxes=columns.boxes[objects],
                labels=columns.labels[objects],
                is_crowd=columns.is_crowd[objects],
                outlines=None if columns.outlines is None else columns.outlines.select(objects),
                mask_files=None if columns.mask_files is None else columns.mask_files.select(chosen),
            ),
            self.root,
        )

    @property
    def have_outlines(self) -> bool:
        """Whether masks can be made of them."""
        return self.columns.outlines is not None

    @property
    def image_ids(self) -> list[int]:
        """The dataset's own ids."""
        return self.columns.image_ids.tolist()


def _texts_of(parts: Sequence[Sequence[bytes] | None]) -> PackedStrings | None:
    """Lay texts of all records out flat, if all records have them."""
    known = [part for part in parts if part is not None]
    return PackedStrings.of([text for part in known for text in part]) if known and len(known) == len(parts) else None


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def _gathered(ends: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Where the parts of chosen entries end once they are laid side by side, and from which places they come."""
    lengths = ends.diff()[chosen]
    new_ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    shift = ends[chosen] - new_ends[:-1]
    return new_ends, torch.arange(int(new_ends[-1])) + shift.repeat_interleave(lengths)


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts).astype(kind) if parts else np.zeros(0, kind)
