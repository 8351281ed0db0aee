"""Load the split that is evaluated: of a dataset folder, a loaded dataset, or a torch dataset."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from detrkit.data.categories import Categories
from detrkit.data.dataset import DatasetSplits, Split
from detrkit.data.formats.image_folder import find_image_folder
from detrkit.data.records import SplitName
from detrkit.data.splits import load_split
from detrkit.data.torch_dataset import class_names_of, read_torch_dataset
from detrkit.errors import ConfigError, DatasetError, arg, did_you_mean
from detrkit.inference.detector import Detector

logger = logging.getLogger(__name__)

Data = str | Path | DatasetSplits | Split | Dataset[Any]


def load_for_model(
    data: Data,
    split: SplitName,
    format: str | None,
    classes: Sequence[str] | None,
    *,
    seed: int | None,
    detector: Detector,
) -> tuple[Split, tuple[str, ...]]:
    """Load images, annotated or not, with masks if the model and the data have them."""
    masks, categories = detector.engine.config.mask_head, detector.categories
    if isinstance(data, str | Path) and format is None:
        unannotated = find_image_folder(Path(data), split, categories)
        if unannotated is not None:
            return unannotated, ()
    try:
        records, notes = _load(data, split, format, classes, seed, masks=masks, categories=categories)
    except DatasetError as error:
        if not masks:
            raise
        records, notes = _load(data, split, format, classes, seed, masks=False, categories=categories)
        logger.warning("masks are not evaluated: %s", error)
    return records, notes


def load_annotated(
    data: Data, split: SplitName, format: str | None, classes: Sequence[str] | None
) -> tuple[Split, tuple[str, ...]]:
    """Load annotations that saved predictions are evaluated against, without masks of a COCO file, which has its own."""
    return _load(data, split, format, classes, None, masks=False, categories=None)


def _load(
    data: Data,
    split: SplitName,
    format: str | None,
    classes: Sequence[str] | None,
    seed: int | None,
    *,
    masks: bool,
    categories: Categories | None,
) -> tuple[Split, tuple[str, ...]]:
    """Load one split of any kind of data; `categories` name the classes of a torch dataset by default."""
    if isinstance(data, Split):
        return data, ()
    if isinstance(data, DatasetSplits):
        chosen: Split | None = data.splits.get(split)
        notes = data.notes
    elif isinstance(data, str | Path):
        chosen, notes = load_split(data, split, format, seed, masks=masks)
    else:
        return read_torch_dataset(data, _torch_categories(data, classes, categories), masks=masks), ()
    if chosen is None:
        raise DatasetError(f"{data} has no {split} split; choose another {arg('split')}")
    return chosen, notes


def _torch_categories(dataset: Dataset[Any], classes: Sequence[str] | None, model: Categories | None) -> Categories:
    """Return the categories of a torch dataset: named classes get the model's ids; without names, they are the model's."""
    if model is not None and classes is None and not hasattr(dataset, "classes"):
        return model
    named = class_names_of(dataset, classes)
    if model is None:
        return named
    ids = dict(zip(model.names, model.ids, strict=True))
    if unknown := [name for name in named.names if name not in ids]:
        raise ConfigError(
            f"{arg('classes')}: {unknown[0]!r} is not one of the model's classes; {did_you_mean(unknown[0], model.names)}"
        )
    return Categories(tuple(ids[name] for name in named.names), named.names)
