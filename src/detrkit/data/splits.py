"""A dataset folder -> what a run learns from and is judged by."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from detrkit._internal.text import plural, printable
from detrkit.config.model import ModelConfig
from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.data.categories import Categories
from detrkit.data.checks.annotations import examine_annotations
from detrkit.data.dataset import DetectionDataset
from detrkit.data.formats.folder import DatasetFolder, read_dataset
from detrkit.data.images import RGB
from detrkit.data.records import Records, Split, SplitName
from detrkit.data.samplers import BatchGrouping
from detrkit.data.transforms.augmentation import AugmentedDataset, StrongAugmentation
from detrkit.data.transforms.geometry import EvalTransform, RandomOrientation, TrainTransform, Transform
from detrkit.errors import ConfigError, DatasetError
from detrkit.evaluation.coco import annotations_of_split
from detrkit.evaluation.panoptic import GroundTruthSegments
from detrkit.models.presets import preset_config
from detrkit.structures import Sample


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and is judged by."""

    train: AugmentedDataset
    arrangement: BatchGrouping  # of the training photos
    val: Dataset[Sample]
    pictures: Dataset[Sample]  # the test photos as people see them
    annotations: Path | dict[str, Any]  # of the test photos, as COCO has it
    val_ids: list[int]
    categories: Categories
    outlines: Path | dict[str, Any] | None = None  # annotations with masks, where masks are judged by AP
    segments: Callable[[int], GroundTruthSegments] | None = (
        None  # of a test photo by its id, where panoptic quality is judged
    )
    splits: dict[SplitName, Split] = field(default_factory=dict)  # where the data is a folder
    notes: tuple[str, ...] = ()  # what was decided while reading


def open_data(config: RunConfig) -> TrainingData:
    """Read the annotations of a dataset folder.

    Raises:
        DatasetError: the folder is missing or malformed.
        ConfigError: the settings ask for what cannot be.
    """
    settings = config.training
    model = preset_config(config.model, **config.model_settings)
    check_augmentation(settings, model.in_channels)
    check_judges(settings)
    folder = read_dataset(config.data, config.format, settings.seed, masks=model.panoptic)
    train_split, val_split = folder.train, folder.val
    notes = (*folder.notes, *_warnings(folder, model, settings.image_size))
    if settings.train_on_val:
        train_split = concat_splits(folder.train, folder.val)
        notes = (
            *notes,
            f"also learned from: {plural(len(folder.val.records), 'validation photo')}, so scores on them say little",
        )
    if settings.overfit:
        train_split = val_split = replace(folder.train, records=folder.train.records[: settings.overfit])
        notes = ()
    check_objects(train_split, val_split, settings)
    to_model = EvalTransform(settings.image_size)
    photos = DetectionDataset(train_split, channels=model.in_channels, masks=model.panoptic)
    if model.in_channels != RGB:
        photos[0]  # says now, not after the first step, whether photos have these channels
    has_segments = val_split.records.columns.mask_files is not None
    return TrainingData(
        train=training_dataset(photos, settings),
        arrangement=BatchGrouping.of(train_split.records, by_shape=settings.group_by_aspect_ratio),
        val=DetectionDataset(val_split, to_model, model.in_channels),
        pictures=DetectionDataset(val_split, channels=model.in_channels),
        annotations=annotations_of_split(val_split),
        val_ids=val_split.records.image_ids,
        categories=train_split.categories,
        outlines=annotations_of_split(val_split, masks=True) if model.panoptic and not has_segments else None,
        segments=ground_truth_segments(val_split) if model.panoptic and has_segments else None,
        splits=folder.splits,
        notes=notes,
    )


def concat_splits(first: Split, second: Split) -> Split:
    """The photos of both, each once: the split of a single photo is also what it is judged by."""
    known = {record.path for record in first.records}
    return replace(
        first, records=Records.of([*first.records, *(one for one in second.records if one.path not in known)])
    )


def ground_truth_segments(split: Split) -> Callable[[int], GroundTruthSegments]:
    """What tells the segments of a panoptic split's photo by its id; its PNG is read when it is asked for."""
    place_of = {image_id: place for place, image_id in enumerate(split.records.image_ids)}
    return lambda image_id: GroundTruthSegments.from_record(split.records[place_of[image_id]])


def training_dataset(photos: Dataset[Sample], settings: TrainingConfig) -> AugmentedDataset:
    """Change photos as the settings say."""
    changes = settings.augment and not settings.overfit
    orientation = RandomOrientation(settings.horizontal_flip, settings.vertical_flip, settings.rotate90)
    transform: Transform = EvalTransform(settings.image_size)
    if changes:
        transform = TrainTransform(round(settings.train_scale * settings.image_size), settings.crop, orientation)
    strong = StrongAugmentation(
        settings.image_size, settings.photometric, settings.scale_jitter, settings.mosaic, settings.mixup, orientation
    )
    return AugmentedDataset(photos, transform, seed=settings.seed, strong=strong if changes else None)


def check_augmentation(settings: TrainingConfig, channels: int) -> None:
    """See that photos of that many channels can be changed as the settings say.

    Raises:
        ConfigError: they cannot.
    """
    if settings.photometric and channels not in (1, 3):
        raise ConfigError(
            f"--photometric: changes colours of RGB or grey photos, found {channels} channels; set it to 0"
        )


def check_judges(settings: TrainingConfig) -> None:
    """See that nothing waits for scores on photos that are learned from.

    Raises:
        ConfigError: something does.
    """
    for name, value in (("patience", settings.patience), ("overfit", settings.overfit)):
        if settings.train_on_val and value:
            raise ConfigError(
                f"--train-on-val: leaves no photos to be judged by, and --{name} {value} needs some; leave one out"
            )


def check_objects(train: Split, test: Split, settings: TrainingConfig) -> None:
    """See that there is something to learn from, and to be judged by where something waits for it.

    Raises:
        DatasetError: there is no object to learn from.
        ConfigError: something waits for scores that never come.
    """
    if not _has_objects(train):
        raise DatasetError(
            f"{train.source}: found no object in the {len(train.records)} photos to learn from, expected some; annotate "
            "them, and not as crowds, which do not count"
        )
    if settings.patience and not _has_objects(test):
        raise ConfigError(
            f"--patience {settings.patience}: waits for better scores, and {test.source} has no object to be judged by; "
            "annotate some validation photos, or leave it out"
        )


def _has_objects(split: Split) -> bool:
    return not bool(split.records.columns.is_crowd.all())


def _warnings(folder: DatasetFolder, model: ModelConfig, size: int) -> Iterator[str]:
    """What the doctor says without opening a photo, a line each."""
    for finding in examine_annotations(folder, num_queries=model.num_queries, image_size=size, stride=model.stride):
        if finding.severity != "note":
            count, first = (
                (f" ({len(finding.places)})", f"; first {printable(str(finding.places[0]))}")
                if finding.places
                else ("", "")
            )
            yield f"{finding.severity}: {finding.what}{count}: {finding.advice}{first}"
