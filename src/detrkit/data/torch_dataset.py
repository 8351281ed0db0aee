"""Splits of `torch` datasets that yield `(image, target)`, as torchvision's detection models take them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleSplit, keep
from detrkit.data.decoding import RGB
from detrkit.data.images import image_to_pixels
from detrkit.data.records import Masks, Record, Records
from detrkit.errors import ConfigError, DatasetError, arg, short
from detrkit.ops.masks import encode_masks
from detrkit.ops.segments import nonempty_masks
from detrkit.structures import Annotations, Sample

_BACKGROUND = ("background", "__background__")


def is_torch_dataset(data: object) -> TypeGuard[Dataset[Any]]:
    """True if data is a map-style dataset: indexable, with a length."""
    return not isinstance(data, str | Path | Mapping) and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def class_names_of(dataset: object, classes: Sequence[str] | None) -> Categories:
    """Return the categories of a dataset, with ids 0 .. K-1.

    Args:
        dataset: whose attribute `classes` is used if the names are not given; or `categories`, of detrkit's own datasets.
        classes: class names.

    Raises:
        ConfigError: there are no names, or they are malformed.
    """
    if not is_torch_dataset(dataset) or isinstance(dataset, IterableDataset):
        raise ConfigError(
            f"{arg('data')}: found {type(dataset).__name__}, expected a dataset folder, the result of load_dataset, or a "
            "map-style torch.utils.data.Dataset of (image, target) with __len__ and __getitem__"
        )
    categories = getattr(dataset, "categories", None)
    if classes is None and isinstance(categories, Categories):
        return categories
    names = getattr(dataset, "classes", None) if classes is None else classes
    if names is None:
        raise ConfigError(
            f"{arg('classes')} is missing: a torch dataset does not name its classes; pass a list of names in the order of "
            "the labels 0 .. K-1"
        )
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{arg('classes', names)}: expected a list of class names in the order of the labels 0 .. K-1"
        )
    if names[0].lower() in _BACKGROUND:
        raise ConfigError(
            f"{arg('classes', names)}: the first class is the background, which detrkit adds itself; leave it out and "
            "subtract 1 from all labels"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"{arg('classes', names)}: a name occurs twice; give every class a name of its own")
    return Categories(tuple(range(len(names))), tuple(names))


def read_torch_dataset(
    dataset: Dataset[Any],
    categories: Categories,
    *,
    masks: Masks = False,
    is_panoptic: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSplit:
    """Read all targets of a dataset once, and check them.

    Args:
        dataset: of `(image, target)`, see `detrkit.data.splits.as_splits`; or of `Sample`.
        categories: of the labels.
        masks: keep the objects' masks, as run lengths; "available" if the first sample has some.
        is_panoptic: the masks are panoptic segments, which do not overlap.
        workers: processes that read samples.
        progress: called with the number of samples read and the total.

    Raises:
        DatasetError: the dataset is empty, or a sample is malformed; the message names its index.
    """
    total = len(dataset)  # type: ignore[arg-type]
    reader = TorchReader(dataset, len(categories))
    if not total:
        raise DatasetError(f"{reader.name}: the dataset is empty, expected at least one sample")
    records: list[Record] = []
    has_masks = reader.has_masks() if masks == "available" else bool(masks)
    loader = DataLoader(_Targets(reader, has_masks), batch_size=None, num_workers=workers, collate_fn=_identity)
    for record in loader:
        if isinstance(record, DatasetError):
            raise record
        records.append(record)
        if progress:
            progress(len(records), total)
    split = SampleSplit(
        Records.of(_with_unique_ids(records)), categories, Path(reader.name), reader, tuple(range(total)), is_panoptic
    )
    _check_box_format(split)
    return split


@dataclass(frozen=True)
class TorchReader:
    """Reads the samples of a `torch` dataset.

    Attributes:
        dataset: of `(image, target)` or `Sample`.
        num_classes: labels are 0 .. num_classes - 1.
    """

    dataset: Dataset[Any]
    num_classes: int

    @property
    def name(self) -> str:
        """Name of the dataset in messages."""
        return type(self.dataset).__name__

    def read(self, row: int, channels: int = RGB, *, masks: bool = False) -> Sample:
        """Read and check a sample, without crowds.

        Raises:
            DatasetError: the sample is malformed.
        """
        item = self.item(row, channels, masks=masks)
        return Sample(item.image, _usable(item), item.image_id, item.size)

    def has_masks(self) -> bool:
        """Return whether the target of the first sample has masks."""
        found = self.dataset[0]
        target = vars(found.annotations) if isinstance(found, Sample) else found[1] if _is_pair(found) else None
        return isinstance(target, Mapping) and target.get("masks") is not None

    def item(self, row: int, channels: int | None, *, masks: bool) -> "_Item":
        """Read and check a sample; without `channels`, an image is only checked as far as its size is concerned."""
        where = f"{self.name}[{row}]"
        found = self.dataset[row]
        if isinstance(found, Sample):
            found = (found.image, {**vars(found.annotations), "image_id": found.image_id})
        if not _is_pair(found):
            raise DatasetError(f"{where}: found {_kind(found)}, expected a pair (image, target)")
        image, target = found
        if isinstance(target, list | tuple):
            raise DatasetError(
                f"{where}: the target is a list, expected a dict with 'boxes' and 'labels'; wrap torchvision's datasets "
                "with torchvision.datasets.wrap_dataset_for_transforms_v2"
            )
        if not isinstance(target, Mapping) or "boxes" not in target or "labels" not in target:
            what = f"keys {short(list(target))}" if isinstance(target, Mapping) else _kind(target)
            raise DatasetError(f"{where}: the target has {what}, expected a dict with 'boxes' and 'labels'")
        pixels = _to_pixels(image, channels, f"{where}: the image")
        size = (pixels.shape[1], pixels.shape[2])
        boxes = _to_boxes(target["boxes"], f"{where}: boxes")
        labels = _to_labels(target["labels"], len(boxes), self.num_classes, f"{where}: labels")
        crowd = target.get("iscrowd")
        return _Item(
            pixels,
            boxes,
            labels,
            is_crowd=torch.zeros(len(boxes), dtype=torch.bool)
            if crowd is None
            else _to_crowd(crowd, len(boxes), f"{where}: iscrowd"),
            masks=_to_masks(target.get("masks"), len(boxes), size, f"{where}: masks") if masks else None,
            image_id=_to_image_id(target.get("image_id"), row, f"{where}: image_id"),
        )


def _is_pair(found: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(found, tuple | list) and len(found) == 2


@dataclass(frozen=True)
class _Item:
    """A checked sample, with all its objects."""

    image: UInt8[Tensor, "C H W"]
    boxes: Tensor
    labels: Tensor
    is_crowd: Tensor
    masks: Bool[Tensor, "N H W"] | None
    image_id: int

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]


class _Targets(Dataset[Any]):
    """The record of every sample, or the error, which a worker process would wrap into a stack trace."""

    def __init__(self, reader: TorchReader, masks: bool) -> None:
        self.reader = reader
        self.masks = masks

    def __len__(self) -> int:
        return len(self.reader.dataset)  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> Record | DatasetError:
        try:
            item = self.reader.item(row, None, masks=self.masks)
        except DatasetError as error:
            return error
        segmentations = None
        if item.masks is not None:
            segmentations = tuple(json.dumps(one, separators=(",", ":")).encode() for one in encode_masks(item.masks))
        return Record(
            image_id=item.image_id,
            path=Path(f"image {row}"),
            size=item.size,
            boxes=item.boxes.numpy(),
            labels=item.labels.numpy(),
            is_crowd=item.is_crowd.numpy(),
            segmentations=segmentations,
        )


def _identity(record: Any) -> Any:
    return record


def _with_unique_ids(records: Sequence[Record]) -> Iterator[Record]:
    """Number the images by their index if an id occurs twice, as in datasets that repeat or concatenate others."""
    if len({record.image_id for record in records}) == len(records):
        return iter(records)
    return (replace(record, image_id=index) for index, record in enumerate(records))


def _check_box_format(split: SampleSplit) -> None:
    """Check for boxes in another convention than xyxy in pixels, as far as most of the boxes show it.

    Raises:
        DatasetError: they are most probably xywh, or relative to the image.
    """
    arrays = split.records.arrays
    boxes, sizes = arrays.boxes.numpy(), arrays.sizes.numpy()
    of_image = np.repeat(sizes, arrays.object_ends.diff().numpy(), axis=0)
    if not len(boxes):
        return
    height, width = of_image[:, 0], of_image[:, 1]
    outside = (boxes[:, 2] > width + 1) | (boxes[:, 3] > height + 1)
    relative = (boxes.max(1) <= 1.5) & (of_image.min(1) > 4)
    for flags, what, advice in (
        (outside, "reach beyond their image", "boxes must be x1 y1 x2 y2 in pixels of the image as it is returned"),
        (relative, "lie within 0 .. 1", "boxes must be in pixels; multiply them by the width and height of the image"),
    ):
        if flags.sum() > len(boxes) / 2:
            raise DatasetError(f"{split.source}: {flags.sum()} of {len(boxes)} boxes {what}; {advice}")


def _usable(item: _Item) -> Annotations:
    """Drop crowds, clip boxes to the image, and drop objects without area or with an empty mask."""
    height, width = item.size
    boxes = item.boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
    chosen = ~item.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(1)
    if item.masks is not None:
        chosen &= nonempty_masks(item.masks)
    return keep(Annotations(boxes, item.labels, item.masks), chosen)


def _to_pixels(image: Any, channels: int | None, where: str) -> UInt8[Tensor, "C H W"]:
    if isinstance(image, Image.Image):
        return image_to_pixels(image, channels or RGB, where=where)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1) if image.ndim == 3 else image
    if not isinstance(image, Tensor):
        raise DatasetError(
            f"{where}: found {_kind(image)}, expected a PIL image, a tensor (C, H, W) or an array (H, W, C)"
        )
    pixels = torch.as_tensor(image).as_subclass(Tensor)
    if pixels.ndim != 3 or min(pixels.shape) < 1 or (pixels.shape[0] > 4 >= pixels.shape[2]):
        raise DatasetError(f"{where}: found the shape {tuple(pixels.shape)}, expected (C, H, W) of a tensor")
    if pixels.is_floating_point():
        pixels = _from_float(pixels, where)
    if pixels.dtype != torch.uint8:
        raise DatasetError(f"{where}: found {pixels.dtype}, expected uint8, or float in 0 .. 1")
    if channels == RGB and len(pixels) == 1:
        return pixels.expand(RGB, -1, -1)
    if channels is not None and len(pixels) != channels:
        raise DatasetError(f"{where}: found {len(pixels)} channels, but the model reads {channels}")
    return pixels


def _from_float(pixels: Tensor, where: str) -> UInt8[Tensor, "C H W"]:
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1e-3:
        raise DatasetError(
            f"{where}: found values from {low:g} on, expected float in 0 .. 1; "
            "leave out Normalize, which detrkit applies itself"
        )
    if not high <= 1 + 1e-3:
        raise DatasetError(
            f"{where}: found float values up to {high:g}, expected float in 0 .. 1, or uint8; divide by 255, or convert "
            "with .to(torch.uint8)"
        )
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def _to_boxes(boxes: Any, where: str) -> Tensor:
    format = getattr(boxes, "format", None)  # of torchvision.tv_tensors.BoundingBoxes
    if format is not None and getattr(format, "name", format) != "XYXY":
        raise DatasetError(f"{where}: found the format {format}, expected XYXY in pixels; convert them")
    table = _to_tensor(boxes, where).to(torch.float32)
    if not table.numel():
        return torch.zeros(0, 4)
    if table.ndim != 2 or table.shape[1] != 4:
        raise DatasetError(f"{where}: found the shape {tuple(table.shape)}, expected (N, 4)")
    if not table.isfinite().all():
        raise DatasetError(f"{where}: found a value that is not finite")
    bad = (table[:, 2:] <= table[:, :2]).any(1).nonzero()[:, 0]
    if len(bad):
        first = int(bad[0])
        shown = ", ".join(f"{value:g}" for value in table[first].tolist())
        raise DatasetError(
            f"{where}[{first}]: found [{shown}], whose width or height is not positive; expected x1 y1 x2 y2 in "
            "pixels with x1 < x2 and y1 < y2: convert x y width height, and drop empty boxes"
        )
    return table


def _to_labels(labels: Any, count: int, num_classes: int, where: str) -> Tensor:
    table = _to_tensor(labels, where)
    if table.ndim != 1 and not (count == 0 and not table.numel()):
        raise DatasetError(f"{where}: found the shape {tuple(table.shape)}, expected (N,)")
    if table.numel() != count:
        raise DatasetError(f"{where}: found {table.numel()} labels for {count} boxes")
    if count and (table.is_floating_point() or table.dtype == torch.bool):
        raise DatasetError(f"{where}: found {table.dtype}, expected integers")
    table = table.reshape(-1).to(torch.int64)
    bad = ((table < 0) | (table >= num_classes)).nonzero()[:, 0]
    if len(bad):
        first = int(bad[0])
        hint = (
            "; if your labels start at 1, as for torchvision's models, subtract 1"
            if int(table.min()) >= 1
            else "; name all classes"
        )
        raise DatasetError(
            f"{where}[{first}]: found {int(table[first])}, expected 0 to {num_classes - 1} for {num_classes} "
            f"{'class' if num_classes == 1 else 'classes'}{hint}"
        )
    return table


def _to_crowd(crowd: Any, count: int, where: str) -> Bool[Tensor, "N"]:
    table = _to_tensor(crowd, where).reshape(-1)
    if len(table) != count:
        raise DatasetError(f"{where}: found {len(table)} values for {count} boxes")
    if not bool(((table == 0) | (table == 1)).all()):
        raise DatasetError(f"{where}: found {short(table.tolist())}, expected 0 or 1 for every box")
    return table != 0


def _to_masks(masks: Any, count: int, size: tuple[int, int], where: str) -> Bool[Tensor, "N H W"]:
    if masks is None:
        raise DatasetError(f"{where} are missing from the target, but the model is trained on masks")
    table = _to_tensor(masks, where)
    if not count and not table.numel():
        return torch.zeros(0, *size, dtype=torch.bool)
    if tuple(table.shape) != (count, *size):
        raise DatasetError(f"{where}: found the shape {tuple(table.shape)}, expected (N, H, W), here {(count, *size)}")
    return table != 0


def _to_image_id(image_id: Any, row: int, where: str) -> int:
    if image_id is None:
        return row
    table = _to_tensor(image_id, where)
    if table.numel() != 1 or table.is_floating_point():
        raise DatasetError(f"{where}: found {short(image_id)}, expected one integer")
    return int(table.reshape(()))


def _to_tensor(value: Any, where: str) -> Tensor:
    try:
        return torch.as_tensor(value).as_subclass(Tensor).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise DatasetError(f"{where}: found {_kind(value)}, expected a tensor") from None


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
