"""Sources of models as users name them: run folders, files, hub ids and presets. Light: imports no torch."""

import json
import re
from pathlib import Path, PureWindowsPath

from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.zoo import HUB_MODELS, MODEL_NAMES, OFFICIAL_FILES
from detrkit.checkpoints.zoo_realtime import REALTIME_FILES, REALTIME_PAGES
from detrkit.errors import CheckpointError, did_you_mean

WEIGHTS_FILE = "model.safetensors"
INDEX_SUFFIX = ".index.json"  # of files that list the parts of large models
_FOLDER_FILES = (
    f"best/{WEIGHTS_FILE}",
    f"last/{WEIGHTS_FILE}",
    WEIGHTS_FILE,
    f"{WEIGHTS_FILE}{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
_TRAINER_CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # folders of the Hugging Face Trainer
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".onnx", ".pt2")
_EXPECTED = "expected a run folder, a .safetensors or .pth file, a Hugging Face folder or id, or a preset"


def local_file(source: Path | str) -> Path | None:
    """Return the local file that a source is read from; None for presets and hub ids, which must not be changed."""
    path = Path(source)
    if not path.is_dir():
        return path if path.is_file() else None
    trainer = trainer_checkpoint(path)
    return _weights_in(path) or (None if trainer is None else _weights_in(trainer[0]))


def trainer_checkpoint(folder: Path) -> tuple[Path, str] | None:
    """Return the folder to use of those that the Hugging Face Trainer saved in its output folder.

    Returns:
        The folder, and "best" or "newest"; None if there are none with weights.
    """
    steps = {int(match[1]): one for one in folder.iterdir() if (match := _TRAINER_CHECKPOINT.fullmatch(one.name))}
    saved = [steps[step] for step in sorted(steps) if _weights_in(steps[step]) is not None]
    if not saved:
        return None
    best = _best_of_trainer(saved[-1])
    return next(((one, "best") for one in saved if one.name == best), (saved[-1], "newest"))


def _best_of_trainer(checkpoint: Path) -> str | None:
    """Return the name of the folder that the Trainer's metric found best."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        # a path of the machine that trained it
        return PureWindowsPath(str(state["best_model_checkpoint"])).name
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def note_on_folder(source: Path) -> tuple[str, ...]:
    """Return what a user should know of the choice of `local_file`."""
    if not source.is_dir() or _weights_in(source) is not None or (found := trainer_checkpoint(source)) is None:
        return ()
    checkpoint, reason = found
    return (f"{source}: contains checkpoints of the Hugging Face Trainer; the {reason}, {checkpoint.name}, is used",)


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in _FOLDER_FILES if (folder / name).is_file()), None)


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
            weights = sorted(one.name for one in path.iterdir() if one.suffix in FILE_SUFFIXES and one.is_file())
            advice = f"; it contains {weights[0]}, which can be given itself" if weights else ""
            raise CheckpointError(
                f"{path}: contains neither best/{WEIGHTS_FILE} nor {WEIGHTS_FILE}, expected a run folder of detrkit train "
                f"or a Hugging Face folder{advice}"
            )
    elif name in MODEL_NAMES:
        _check_published(name)
    elif not path.is_file() and not is_hub_id(source):
        if path.suffix in FILE_SUFFIXES or "/" in name or "\\" in name:
            raise CheckpointError(f"{name}: no such file or folder, {_EXPECTED}; check the path")
        raise CheckpointError(f"{name}: not found, {_EXPECTED} ({did_you_mean(name, MODEL_NAMES, 'detrkit models')})")


def _check_published(preset: str) -> None:
    published = (*OFFICIAL_FILES, *HUB_MODELS, *REALTIME_FILES, *REALTIME_PAGES)
    if preset not in published:
        raise CheckpointError(
            f"{preset}: no weights of this model were published; use one of {', '.join(published)}, or train it"
        )
