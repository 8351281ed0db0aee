"""Preview of a dataset as training sees it: a picture of the first augmented samples of an epoch."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detrkit._internal.files import atomic_write
from detrkit._internal.provenance import provenance_mark, refuse_foreign_overwrite
from detrkit.config.run import RunConfig
from detrkit.data.batching import collate
from detrkit.data.checks.annotations import ClassCount, count_classes
from detrkit.data.images import tensor_to_image
from detrkit.data.loaders import train_batch_sampler
from detrkit.data.records import SplitName
from detrkit.errors import ConfigError, DatasetError, arg
from detrkit.structures import Sample
from detrkit.training.data import TrainingData
from detrkit.training.duration import planned_epochs, strong_epochs
from detrkit.training.train import prepare
from detrkit.visualization.draw import contact_sheet, draw_boxes, fit_to_cell

_MAX_SAMPLES = 100


@dataclass(frozen=True)
class DataPreview:
    """The first samples of an epoch, drawn on one picture.

    Attributes:
        output: the picture.
        classes: object counts, in the order of the labels.
        splits: names of the splits that are counted.
        num_samples: samples in the picture.
        num_objects: in these samples.
        min_side: shortest side of the samples, pixels.
        max_side: longest side of the samples, pixels.
        batch_size: samples that `padding` is of.
        padding: fraction of a batch of the first samples that is padding.
        errors: of the samples that cannot be read.
    """

    output: Path
    classes: tuple[ClassCount, ...]
    splits: tuple[SplitName, ...]
    num_samples: int
    num_objects: int
    min_side: int
    max_side: int
    batch_size: int
    padding: float
    errors: tuple[str, ...]


def describe_data(config: RunConfig, *, count: int, epoch: int, output: Path) -> DataPreview:
    """Draw the first samples of an epoch, augmented as in training.

    Args:
        config: of the training run.
        count: number of samples.
        epoch: whose augmentation is shown, from 1.
        output: PNG file to write.

    Raises:
        DetrkitError: the dataset cannot be read, or the settings do not fit.
    """
    if not 1 <= count <= _MAX_SAMPLES:
        raise ConfigError(f"{arg('count', count)}: expected 1 to {_MAX_SAMPLES} samples")
    if output.suffix.lower() != ".png":
        raise ConfigError(f"{arg('output', str(output))} is not the name of a PNG file, for example samples.png")
    refuse_foreign_overwrite(output)
    plan, data = prepare(config)
    config = plan.config
    settings = config.training
    epochs = planned_epochs(len(train_batch_sampler(data.grouping, settings)), settings)
    if not 1 <= epoch <= epochs:
        raise ConfigError(f"{arg('epoch', epoch)}: expected 1 to {epochs}, the epochs of the run")
    samples, errors = _first_samples(config, data, count, epoch)
    if not samples:
        raise DatasetError(f"{config.data}: none of the first {count} samples can be read; run detrkit doctor")
    with atomic_write(output) as temporary:
        contact_sheet([_draw(sample, data) for sample in samples]).save(temporary, "PNG", pnginfo=provenance_mark())
    sides = [side for sample in samples for side in sample.image.shape[1:]]
    batch = samples[: settings.batch_size]
    return DataPreview(
        output=output,
        classes=tuple(count_classes(data.splits)),
        splits=tuple(data.splits),
        num_samples=len(samples),
        num_objects=sum(len(sample.annotations.labels) for sample in samples),
        min_side=min(sides),
        max_side=max(sides),
        batch_size=len(batch),
        padding=float(collate(batch).padding_mask.float().mean()),
        errors=tuple(errors),
    )


def _first_samples(config: RunConfig, data: TrainingData, count: int, epoch: int) -> tuple[list[Sample], list[str]]:
    """Return the first training samples of an epoch, and the errors of those that cannot be read."""
    sampler = train_batch_sampler(data.grouping, config.training)
    sampler.epoch = epoch
    data.train.strong_epochs, data.train.mosaic_epochs = strong_epochs(len(sampler), config.training)
    keys = [key for batch in sampler for key in batch]
    samples: list[Sample] = []
    errors: list[str] = []
    for key in keys[:count]:
        try:
            samples.append(data.train[key])
        except DatasetError as error:
            errors.append(str(error))
    return samples, errors


def _draw(sample: Sample, data: TrainingData) -> tuple[Image.Image, str]:
    labels = sample.annotations.labels.tolist()
    names = [(data.categories.names[label],) for label in labels]
    height, width = sample.image.shape[1:]
    image, scale = fit_to_cell(tensor_to_image(sample.image))
    drawn = draw_boxes(image, (sample.annotations.boxes * scale).tolist(), labels, names)
    return drawn, f"image {sample.image_id}, {width} x {height} px"
