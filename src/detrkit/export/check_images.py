"""Images on which an export is calibrated and compared with PyTorch: the user's own, or synthetic ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detrkit._internal.text import plural
from detrkit.checkpoints.native import Checkpoint
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.data.dataset import DatasetSplits, DetectionDataset, SampleSplit, Split, Transform, unannotated
from detrkit.data.images import read_image
from detrkit.data.splits import Data, as_splits
from detrkit.data.suffixes import IMAGE_SUFFIXES
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle, repeat_channels
from detrkit.evaluation.class_matching import match_split
from detrkit.evaluation.ground_truth import split_to_coco
from detrkit.structures import Batch, Sample

BATCH_SIZE = 2  # so that most images are padded
_SYNTHETIC_SIZES = ((192, 256), (256, 192), (256, 256), (144, 256))  # (height, width)


@dataclass(frozen=True)
class CheckImages:
    """Images prepared for a model.

    Attributes:
        calibration: samples on which int8 quantization measures ranges.
        check: samples to compare predictions on.
        annotations: of `check`, a COCO file or its content; None if there are none.
        categories: of the model's labels, with the ids of the annotations.
        description: where the images come from, for people.
    """

    calibration: Sequence[Sample]
    check: Sequence[Sample]
    annotations: Path | Mapping[str, Any] | None
    categories: Categories
    description: str

    @property
    def num_batches(self) -> int:
        """Number of batches of `batches`."""
        return -(-len(self.check) // BATCH_SIZE)

    def batches(self) -> Iterator[Batch]:
        """Iterate over batches of `check`; the last may hold a single image."""
        starts = range(0, len(self.check), BATCH_SIZE)
        return (collate(list(self.check[start : start + BATCH_SIZE])) for start in starts)


def open_check_images(
    data: Data | None, checkpoint: Checkpoint, max_images: int, max_calibration_images: int
) -> CheckImages:
    """Prepare images as the model expects them.

    Args:
        data: dataset, whose training split is for calibration and whose validation split is for the comparison; or a
            folder of images without annotations, which are used for both; None for synthetic images.
        checkpoint: of the model.
        max_images: images to compare on.
        max_calibration_images: images to calibrate on; 0 for none.

    Raises:
        DatasetError: the data cannot be read, or its categories are not the model's.
    """
    channels = checkpoint.config.in_channels
    transform = checkpoint.preprocessing.transform(channels)
    if data is None:
        count = min(max_images, len(_SYNTHETIC_SIZES))
        samples = [transform(_synthetic_sample(index, channels)) for index in range(count)]
        return CheckImages([], samples, None, checkpoint.categories, plural(count, "synthetic image"))
    paths = _image_paths(data)
    if paths:
        calibration, check = (
            [
                transform(unannotated(read_image(path, channels=channels), index))
                for index, path in enumerate(spread(paths, count))
            ]
            for count in (max_calibration_images, max_images)
        )
        return CheckImages(calibration, check, None, checkpoint.categories, f"{plural(len(check), 'image')} of {data}")
    splits = _splits(data, checkpoint)
    check = _samples(splits.val, max_images, transform, channels)
    return CheckImages(
        calibration=_samples(splits.train, max_calibration_images, transform, channels),
        check=check,
        annotations=split_to_coco(splits.val),
        categories=match_split(checkpoint.categories, splits.val).categories,
        description=f"{plural(len(check), 'validation image')} of {splits.val.source}",
    )


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items at equal distances."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _splits(data: Data, checkpoint: Checkpoint) -> DatasetSplits:
    if isinstance(data, str | Path | DatasetSplits):
        return as_splits(data)
    splits = as_splits(data, classes=checkpoint.categories.names)
    assert isinstance(splits.val, SampleSplit)
    return replace(splits, val=replace(splits.val, categories=checkpoint.categories))


def _samples(split: Split, count: int, transform: Transform, channels: int) -> list[Sample]:
    dataset = DetectionDataset(split, transform, channels)
    return [dataset[index] for index in spread(range(len(dataset)), count)]


def _image_paths(data: Data) -> list[Path]:
    """Return the images of a folder that contains nothing else; none for datasets."""
    if not isinstance(data, str | Path) or not Path(data).is_dir():
        return []
    paths = sorted(path for path in Path(data).iterdir() if not path.name.startswith("."))
    return paths if all(path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES for path in paths) else []


def _synthetic_sample(index: int, channels: int) -> Sample:
    height, width = _SYNTHETIC_SIZES[index]
    shapes = SyntheticShapes(len(_SYNTHETIC_SIZES), seed=0, style=SyntheticStyle(size=256))
    return unannotated(repeat_channels(shapes[index].image[:, :height, :width], channels), index)
