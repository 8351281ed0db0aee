"""Data of a training run: augmented training samples, and the validation split."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import Dataset

from detrkit._internal.text import plural, printable
from detrkit.checkpoints.native import Preprocessing
from detrkit.config.model import ModelConfig
from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.config.validation import check_augmentation, check_evaluation
from detrkit.data.categories import Categories
from detrkit.data.checks.annotations import examine_annotations
from detrkit.data.checks.overlap import find_shared_images
from detrkit.data.dataset import DatasetSplits, DetectionDataset, Split, Transform, concat_splits
from detrkit.data.decoding import RGB
from detrkit.data.findings import sort_findings
from detrkit.data.records import SplitName
from detrkit.data.samplers import BatchGrouping
from detrkit.data.splits import load_dataset, require_train
from detrkit.data.transforms.augmentation import AugmentedDataset, StrongAugmentation
from detrkit.data.transforms.geometry import EvalTransform, RandomOrientation, TrainTransform
from detrkit.data.transforms.preprocessing import StretchTransform
from detrkit.errors import ConfigError, DatasetError, arg
from detrkit.models.presets import preset_config
from detrkit.structures import Sample


@dataclass(frozen=True)
class TrainingData:
    """Data of a training run.

    Attributes:
        train: augmented training samples.
        grouping: constraints on the order of the training images.
        val_split: validation images and their ground truth.
        val: validation samples, transformed for the model.
        pictures: validation samples, not transformed.
        train_split: training images and their objects; None for data that is drawn.
        num_val_in_train: validation images that are trained on as well.
        splits: all splits; empty for data that is drawn.
        notes: decisions taken while reading.
    """

    train: AugmentedDataset
    grouping: BatchGrouping
    val_split: Split
    val: Dataset[Sample]
    pictures: Dataset[Sample]
    train_split: Split | None = None
    num_val_in_train: int = 0
    splits: dict[SplitName, Split] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def categories(self) -> Categories:
        """The categories of the dataset."""
        return self.val_split.categories

    @property
    def val_ids(self) -> list[int]:
        """Ids of the validation images."""
        return self.val_split.records.image_ids


def has_masks(config: RunConfig) -> bool:
    """Return whether the model of a run predicts masks."""
    return preset_config(config.model, **config.model_overrides).mask_head


def open_data(config: RunConfig, dataset: DatasetSplits | None = None) -> TrainingData:
    """Prepare the splits of a dataset for a run.

    Args:
        config: of the run.
        dataset: its splits; default: read from the folder `config.data`.

    Raises:
        DatasetError: the folder is missing or malformed, there is nothing to train on, or no masks for a model with a mask
            head.
        ConfigError: the settings do not fit the data.
    """
    if dataset is None:
        dataset = load_dataset(config.data, config.format, seed=config.training.seed, masks=has_masks(config))
    settings = config.training
    model = preset_config(config.model, **config.model_overrides)
    check_augmentation(settings, model.in_channels)
    check_evaluation(settings)
    train_split, val_split = require_train(dataset), dataset.val
    notes = (*dataset.notes, *_warnings(dataset, model, settings.image_size))
    if settings.train_on_val:
        train_split = concat_splits(train_split, val_split)
        notes = (
            *notes,
            f"also trained on {plural(len(val_split), 'validation image')}, so their metrics are not meaningful",
        )
    if settings.overfit:
        train_split = val_split = train_split.select(range(min(settings.overfit, len(train_split))))
        notes = ()
    check_objects(train_split, val_split, settings)
    shared = find_shared_images(train_split, val_split)
    if shared and not settings.overfit and not settings.train_on_val and val_split.records is not train_split.records:
        notes = (*notes, _overlap_warning(shared, val_split))
    images = DetectionDataset(train_split, channels=model.in_channels, masks=model.mask_head)
    if model.in_channels != RGB:
        images[0]  # raises now, not after the first step, if the images have other channels
    return TrainingData(
        train=training_dataset(images, settings, model.in_channels),
        grouping=BatchGrouping.from_records(
            train_split.records, by_aspect_ratio=settings.loading.group_by_aspect_ratio
        ),
        val_split=val_split,
        val=DetectionDataset(val_split, preprocessing_of(settings).transform(model.in_channels), model.in_channels),
        pictures=DetectionDataset(val_split, channels=model.in_channels),
        train_split=train_split,
        num_val_in_train=len(shared),
        splits=dataset.splits,
        notes=notes,
    )


def augmented_as(data: TrainingData, config: RunConfig) -> TrainingData:
    """Return the data of a run with the augmentation of other settings, which were chosen after the data was opened."""
    channels = preset_config(config.model, **config.model_overrides).in_channels
    return replace(data, train=training_dataset(data.train.images, config.training, channels))


def preprocessing_of(settings: TrainingConfig) -> Preprocessing:
    """Return how images are prepared for a model that is trained with these settings."""
    size = settings.image_size
    stretched: dict[str, Any] = {} if settings.keep_aspect_ratio else {"resize": "stretch", "size": (size, size)}
    return Preprocessing(
        image_size=size, normalize=settings.normalize, padding_invariant=settings.padding_invariant, **stretched
    )


def training_dataset(images: Dataset[Sample], settings: TrainingConfig, channels: int = RGB) -> AugmentedDataset:
    """Augment images, which have so many channels, according to the settings."""
    augmentation, size = settings.augmentation, settings.image_size
    changes = augmentation.augment and not settings.overfit
    orientation = RandomOrientation(augmentation.horizontal_flip, augmentation.vertical_flip, augmentation.rotate90)
    transform: Transform = EvalTransform(size)
    if not settings.keep_aspect_ratio:
        transform = StretchTransform(size, orientation if changes else RandomOrientation(horizontal_flip=0.0))
    elif changes:
        transform = TrainTransform(round(augmentation.train_scale * size), augmentation.crop, orientation)
    strong = StrongAugmentation(
        size,
        augmentation.photometric,
        augmentation.scale_jitter,
        augmentation.mosaic,
        augmentation.mixup,
        orientation,
        augmentation.zoom_out,
        augmentation.iou_crop,
        multi_scale=augmentation.multi_scale > 0,
        stretches=not settings.keep_aspect_ratio,
    )
    return AugmentedDataset(
        images,
        transform,
        seed=settings.seed,
        strong=strong if changes else None,
        normalization=None if settings.normalize else preprocessing_of(settings).normalization(channels),
    )


def check_objects(train: Split, test: Split, settings: TrainingConfig) -> None:
    """Check that there are objects to train on, and to evaluate on if training depends on metrics.

    Raises:
        DatasetError: there is no object to train on.
        ConfigError: training depends on metrics that cannot be computed.
    """
    if not _has_objects(train):
        raise DatasetError(
            f"{train.source}: found no object in the {len(train)} training images; annotate some, and not as crowds, which "
            "are not trained on"
        )
    if settings.evaluation.patience and not _has_objects(test):
        raise ConfigError(
            f"{arg('patience', settings.evaluation.patience)} waits for better scores, but {test.source} has no objects. "
            "Annotate some validation images, or leave it out."
        )


def _has_objects(split: Split) -> bool:
    return not bool(split.records.arrays.is_crowd.all())


def _overlap_warning(shared: list[int], val: Split) -> str:
    are = "is a training image, too" if len(shared) == 1 else "are training images, too"
    first = printable(str(val.records.path(shared[0])))
    return (
        f"warning: {len(shared)} of {plural(len(val), 'validation image')} {are}: metrics on them say nothing about new "
        f"images; keep each image in one split; first {first}"
    )


def _warnings(dataset: DatasetSplits, model: ModelConfig, size: int) -> Iterator[str]:
    """Format the findings of the readers and of the annotation checks, one line each."""
    checked = examine_annotations(dataset, num_queries=model.num_queries, image_size=size, stride=model.stride)
    for finding in sort_findings([*dataset.findings, *checked]):
        if finding.severity != "note":
            yield finding.line
