"""Sources of models as users name them: run folders, files, hub ids and presets. Light: imports no torch."""

import re
from pathlib import Path

from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.zoo import HUB_MODELS, MODEL_NAMES, OFFICIAL_FILES
from detrkit.errors import CheckpointError, did_you_mean

WEIGHTS_FILE = "model.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".onnx", ".pt2")
_EXPECTED = "expected a run folder, a .safetensors or .pth file, a Hugging Face folder or id, or a preset"


def local_file(source: Path | str) -> Path | None:
    """Return the local file that a source is read from; None for presets and hub ids, which must not be changed."""
    path = Path(source)
    if not path.is_dir():
        return path if path.is_file() else None
    candidates = [f"best/{WEIGHTS_FILE}", f"last/{WEIGHTS_FILE}", WEIGHTS_FILE, "pytorch_model.bin"]
    return next((path / name for name in candidates if (path / name).is_file()), None)


def is_hub_id(source: Path | str) -> bool:
    """Return whether a source that does not exist here can only be the id of a model on the Hugging Face hub."""
    path = Path(source)
    return bool(HUB_ID.fullmatch(str(source))) and not path.parent.exists() and path.suffix not in FILE_SUFFIXES


def check_source(source: Path | str) -> None:
    """Check that a source can exist, without reading it and without the network.

    Raises:
        CheckpointError: there is no such file, folder, hub id or preset with published weights.
    """
    path, name = Path(source), str(source)
    if path.is_dir():
        if local_file(path) is None and not is_exported(path):
            raise CheckpointError(
                f"{path}: contains neither best/{WEIGHTS_FILE} nor {WEIGHTS_FILE}, expected a run folder of detrkit train "
                "or a Hugging Face folder"
            )
    elif name in MODEL_NAMES:
        _check_published(name)
    elif not path.is_file() and not is_hub_id(source):
        if path.suffix in FILE_SUFFIXES or "/" in name or "\\" in name:
            raise CheckpointError(f"{name}: no such file or folder, {_EXPECTED}; check the path")
        own_first = sorted(MODEL_NAMES, key=lambda model: not model.startswith("detrkit-"))
        raise CheckpointError(f"{name}: not found, {_EXPECTED} ({did_you_mean(name, own_first, 'detrkit models')})")


def _check_published(preset: str) -> None:
    published = (*OFFICIAL_FILES, *HUB_MODELS)
    if preset not in published:
        raise CheckpointError(
            f"{preset}: no weights of this model were published; use one of {', '.join(published)}, or train it"
        )
