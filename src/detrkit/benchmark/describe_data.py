"""A dataset described: samples as training sees them, on one picture, and the table of classes."""

from pathlib import Path

from PIL import Image

from detrkit._internal.files import atomic_write
from detrkit._internal.provenance import provenance_mark, refuse_foreign_overwrite
from detrkit._internal.text import plain_console, plural
from detrkit.config.run import RunConfig
from detrkit.data.batching import collate
from detrkit.data.checks.annotations import count_classes
from detrkit.data.images import tensor_to_image
from detrkit.data.loaders import train_batch_sampler
from detrkit.errors import ConfigError, DatasetError
from detrkit.structures import Sample
from detrkit.training.data import TrainingData
from detrkit.training.train import open_and_plan
from detrkit.training.trainer import planned_epochs, strong_epochs
from detrkit.visualization.dataset_page import class_table
from detrkit.visualization.draw import contact_sheet, draw_boxes, fit_to_cell

_MAX_SAMPLES = 100


def describe_data(config: RunConfig, *, count: int, epoch: int, output: Path) -> None:
    """Write a contact sheet of the first samples of an epoch, and print the classes.

    Raises:
        DetrkitError: the dataset cannot be read, or the settings do not fit.
    """
    if not 1 <= count <= _MAX_SAMPLES:
        raise ConfigError(f"--count: found {count}, expected 1 to {_MAX_SAMPLES} samples")
    if output.suffix.lower() != ".png":
        raise ConfigError(f"--output: found {output.name!r}, expected the name of a PNG file, for example samples.png")
    refuse_foreign_overwrite(output)
    console = plain_console()
    config, data = open_and_plan(config, console)
    settings = config.training
    epochs = planned_epochs(len(train_batch_sampler(data.grouping, settings)), settings)
    if not 1 <= epoch <= epochs:
        raise ConfigError(f"--epoch: found {epoch}, expected 1 to {epochs}, the epochs of the run")
    console.print(class_table(count_classes(data.splits), data.splits))
    samples, faults = _first_samples(config, data, count, epoch)
    for fault in faults:
        console.print(f"left out: {fault}", soft_wrap=True)
    if not samples:
        raise DatasetError(f"{config.data}: none of the first {count} samples can be read; run detrkit doctor")
    with atomic_write(output) as temporary:
        contact_sheet([_picture(sample, data) for sample in samples]).save(temporary, "PNG", pnginfo=provenance_mark())
    sides = [side for sample in samples for side in sample.image.shape[1:]]
    objects = sum(len(sample.annotations.labels) for sample in samples)
    console.print(
        f"{plural(len(samples), 'sample')} of epoch {epoch}: sides of {min(sides)} to {max(sides)} px, "
        f"{plural(objects, 'object')}; as a batch, the first {min(settings.batch_size, len(samples))} are "
        f"{_padding(samples[: settings.batch_size]):.0%} padding",
    )
    console.print(f"picture: {output}", soft_wrap=True)


def _first_samples(config: RunConfig, data: TrainingData, count: int, epoch: int) -> tuple[list[Sample], list[str]]:
    """The samples that training would see first in an epoch, and what is wrong with those that it cannot read."""
    order = train_batch_sampler(data.grouping, config.training)
    order.epoch = epoch
    data.train.strong_epochs = strong_epochs(len(order), config.training)
    draws = [draw for batch in order for draw in batch]
    samples: list[Sample] = []
    faults: list[str] = []
    for draw in draws[:count]:
        try:
            samples.append(data.train[draw])
        except DatasetError as error:
            faults.append(str(error))
    return samples, faults


def _picture(sample: Sample, data: TrainingData) -> tuple[Image.Image, str]:
    labels = sample.annotations.labels.tolist()
    names = [(data.categories.names[label],) for label in labels]
    height, width = sample.image.shape[1:]
    photo, scale = fit_to_cell(tensor_to_image(sample.image))
    drawn = draw_boxes(photo, (sample.annotations.boxes * scale).tolist(), labels, names)
    return drawn, f"photo {sample.image_id}, {width} x {height} px"


def _padding(samples: list[Sample]) -> float:
    return float(collate(samples).padding_mask.float().mean())
