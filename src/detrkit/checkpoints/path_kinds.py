"""Kinds of paths, by the names of files alone: arguments that were swapped are named before anything is read.

Light: imports no torch.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from detrkit.checkpoints.export_formats import METADATA_FILE, NETWORK_FILE
from detrkit.checkpoints.sources import FILE_SUFFIXES, HUB, is_hub_id
from detrkit.checkpoints.zoo import MODEL_NAMES
from detrkit.data.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from detrkit.errors import ConfigError, arg

Kind = Literal["model", "results", "dataset", "images", "image", "video", "output"]
Paths = str | Path | Sequence[str | Path] | None

# kinds that an argument may be of
MODEL: tuple[Kind, ...] = ("model",)
MODEL_OR_RESULTS: tuple[Kind, ...] = ("model", "results")
DATASET: tuple[Kind, ...] = ("dataset", "images")
IMAGES: tuple[Kind, ...] = ("image", "video", "images", "dataset")
NEW: tuple[Kind, ...] = ("output",)

_NAMES: dict[Kind | None, str] = {
    "model": "a model",
    "results": "a list of results",
    "dataset": "a dataset",
    "images": "a folder of images",
    "image": "an image",
    "video": "a video",
    "output": "an output",
}
_MODEL_FILES = {
    "best",
    "last",
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    METADATA_FILE,
    NETWORK_FILE,
}
_MAX_ENTRIES = 10_000  # of a folder that are looked at
_RUN_FILES = ("config.yaml", "metrics.jsonl")  # of a run that was not saved yet
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # of transformers' Trainer
# lower case: parts of datasets as labelling tools, converters and training code name them
_DATASET_PARTS = re.compile(
    r"annotations?(\.json|\.xml)?|_annotations\.coco\.json|instances_.*\.json|panoptic_.*\.json|labels(\.json)?"
    r"|images|data\.ya?ml|dataset\.ya?ml|obj\.data|classes\.txt|notes\.json|imagesets|jpegimages|vocdevkit|voc\d{4}"
    r"|(train|val|valid|validation|test)(\d{4})?|shards\.json"
)


def kind_of(value: str | Path) -> Kind | None:
    """Return what a path is, judged by names of files; None if it does not exist or could be several things."""
    path = Path(value)
    if str(value).startswith(HUB):
        return "model"
    if path.is_dir():
        return _kind_of_folder(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        return "model" if str(value) in MODEL_NAMES else None
    if suffix in FILE_SUFFIXES:
        return "model"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "results" if suffix == ".json" and _starts_with_list(path) else None


def check_kinds(arguments: Mapping[str, tuple[Paths, tuple[Kind, ...]]]) -> None:
    """Check that arguments that are paths are of the kinds that are expected, and not swapped.

    Args:
        arguments: by name, in the order of the call: the value, or several, and the kinds that it may be of. Values of no
            recognisable kind pass.

    Raises:
        ConfigError: one is of another kind; the message says so if two were swapped.
    """
    values = [
        (name, value, expected)
        for name, (given, expected) in arguments.items()
        for value in ([given] if isinstance(given, str | Path) else given or ())
    ]
    kinds = [kind_of(value) for _, value, _ in values]
    roles = [f"the {_role(expected)}" for _, expected in arguments.values()]
    order = f"pass {' first, then '.join(roles[:2])}"
    for (name, value, expected), kind in zip(values, kinds, strict=True):
        if kind is None or kind in expected:
            continue
        found = f"{arg(name, str(value))} is {_NAMES[kind]}"
        for (other, other_value, accepted), other_kind in zip(values, kinds, strict=True):
            if other == name or kind not in accepted:
                continue
            if expected == NEW and _is_missing(other_value):
                raise ConfigError(
                    f"{arg(other, str(other_value))} does not exist and {found}: they are swapped; {order}"
                )
            if expected != NEW and other_kind not in (None, *accepted):
                also = f"{arg(other, str(other_value))} is {_NAMES[other_kind]}"
                raise ConfigError(f"{found} and {also}: they are swapped; {order}")
        if expected != NEW:
            hint = f"; {order}" if len(roles) > 1 else ""
            raise ConfigError(f"{found}, expected {_expected(expected)}{hint}")


def _is_missing(value: str | Path) -> bool:
    return not Path(value).exists() and str(value) not in MODEL_NAMES and not is_hub_id(value)


def _role(kinds: Sequence[Kind]) -> str:
    if "model" in kinds:
        return "model"
    return "image" if "image" in kinds else "dataset" if "dataset" in kinds else "output"


def _expected(kinds: Sequence[Kind]) -> str:
    if "model" in kinds:
        files = " or a .json file of results" if "results" in kinds else ""
        return f"a model: run folder, weights file, exported file, Hugging Face folder or id, or preset{files}"
    return "images or videos" if "image" in kinds else "a dataset folder"


def _kind_of_folder(path: Path) -> Kind | None:
    names = {entry.name for entry in islice(path.iterdir(), _MAX_ENTRIES)}
    is_model = (
        not names.isdisjoint(_MODEL_FILES)
        or names.issuperset(_RUN_FILES)
        or any(_CHECKPOINT.fullmatch(name) for name in names)
    )
    is_dataset = any(_DATASET_PARTS.fullmatch(name.lower()) for name in names)
    if is_model or is_dataset:
        return None if is_model and is_dataset else "model" if is_model else "dataset"
    return "images" if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names) else None


def _starts_with_list(path: Path) -> bool:
    """Return whether a JSON file holds a list, as COCO results do, and annotations do not."""
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
