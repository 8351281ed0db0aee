"""Sources of models as users name them: run folders, files, hub ids and presets. Light: imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from detrkit._internal.documents import parse_json
from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.zoo import HUB_MODELS, LATER_FILES, MODEL_NAMES, OFFICIAL_FILES
from detrkit.checkpoints.zoo_realtime import REALTIME_PAGES
from detrkit.errors import CheckpointError, did_you_mean
from detrkit.models.presets_refused import REFUSED_PRESETS

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
HUB = "hf:"  # prefix of models of the hub, whatever their name looks like
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_HUB_SOURCE = re.compile(rf"{HUB}({HUB_ID.pattern})(?:@([\w./-]{{1,200}}))?")
# lower case: usual names of folders for what programs write, and for what they read
_FOLDERS = frozenset(
    [
        "artifacts",
        "checkpoint",
        "checkpoints",
        "ckpt",
        "ckpts",
        "content",
        "data",
        "dataset",
        "datasets",
        "exp",
        "experiment",
        "experiments",
        "exps",
        "export",
        "exports",
        "final",
        "home",
        "images",
        "kaggle",
        "lightning_logs",
        "log",
        "logs",
        "media",
        "mlruns",
        "mnt",
        "model",
        "models",
        "out",
        "output",
        "outputs",
        "photos",
        "pretrained",
        "release",
        "results",
        "root",
        "run",
        "runs",
        "save",
        "saved",
        "saves",
        "snapshot",
        "snapshots",
        "temp",
        "tmp",
        "train",
        "trained",
        "training",
        "user",
        "users",
        "wandb",
        "weights",
        "work_dir",
        "work_dirs",
    ]
)
_FILES_OF_RUNS = re.compile(r"best|last|final|checkpoint-\d+|exp\d*|epoch[_-]?\d+", re.IGNORECASE)
FILE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".onnx", ".pt2")
_LOCAL_SUFFIXES = frozenset((*FILE_SUFFIXES, ".json", ".yaml", ".yml", ".zip", ".tar", ".gz", ".npz", ".xml"))
_EXPECTED = "expected a run folder, a .safetensors or .pth file, a Hugging Face folder or id, or a preset"


def local_file(source: Path | str) -> Path | None:
    """Return the local file that a source is read from; None for presets and hub ids, which must not be changed."""
    path = Path(source)
    if str(source).startswith(HUB):
        return None
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
        state = parse_json((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        # a path of the machine that trained it
        return PureWindowsPath(str(state["best_model_checkpoint"])).name
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_on_folder(source: Path) -> tuple[str, ...]:
    """Return what a user should know of the choice of `local_file`."""
    if not source.is_dir() or _weights_in(source) is not None or (found := trainer_checkpoint(source)) is None:
        return ()
    checkpoint, reason = found
    return (f"{source}: contains checkpoints of the Hugging Face Trainer; the {reason}, {checkpoint.name}, is used",)


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in _FOLDER_FILES if (folder / name).is_file()), None)


@dataclass(frozen=True)
class HubSource:
    """A model on the Hugging Face hub.

    Attributes:
        repo_id: OWNER/NAME.
        revision: commit, branch or tag; None for the one that detrkit chooses.
    """

    repo_id: str
    revision: str | None = None


def hub_source(source: Path | str) -> HubSource | None:
    """Return the model on the hub that a source names; None for anything else.

    ``hf:OWNER/NAME`` and ``hf:OWNER/NAME@REVISION`` always name one. Other sources do if they are of the form OWNER/NAME
    and do not look like a path of this machine, see `_looks_local`.

    Raises:
        CheckpointError: what follows ``hf:`` is not of this form.
    """
    name = str(source)
    if name.startswith(HUB):
        name = name.replace("\\", "/")  # of a Path on Windows
        match = _HUB_SOURCE.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{name}: not a model of the hub, expected {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION"
            )
        return HubSource(match[1], match[2])
    path = Path(source)
    is_named = HUB_ID.fullmatch(name) and not path.is_file() and not path.is_dir()
    return HubSource(name) if is_named and _looks_local(name) is None else None


def is_hub_id(source: Path | str) -> bool:
    """Return whether a source names a model on the hub."""
    return hub_source(source) is not None


def _looks_local(name: str) -> str | None:
    """Return why a name of the form OWNER/NAME is taken for a path of this machine; None if it is not.

    It is if the folder before the slash exists, if either part is a usual name of folders that programs write, or if it
    ends like a file of weights.
    """
    owner, _, rest = name.partition("/")
    if Path(owner).exists():
        return f"the folder {owner!r} exists here"
    if owner.lower() in _FOLDERS:
        return f"{owner!r} is a usual name of folders"
    if _FILES_OF_RUNS.fullmatch(rest):
        return f"{rest!r} is a usual name in run folders"
    suffix = Path(rest).suffix.lower()
    return f"it ends in {suffix}" if suffix in _LOCAL_SUFFIXES else None


def check_source(source: Path | str) -> None:
    """Check that a source can exist, without reading it and without the network.

    Raises:
        CheckpointError: there is no such file, folder, hub id or preset with published weights.
    """
    path, name = Path(source), str(source)
    if hub_source(source) is not None:
        return
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
    elif name in REFUSED_PRESETS and not path.is_file():
        raise CheckpointError(f"{name} is not included: {REFUSED_PRESETS[name]}.")
    elif not path.is_file():
        if HUB_ID.fullmatch(name):
            raise CheckpointError(
                f"{name}: no such file or folder, and not looked for on the Hugging Face Hub, as {_looks_local(name)}; "
                f"check the path, or write {HUB}{name} for a model of the hub"
            )
        if path.suffix in FILE_SUFFIXES or "/" in name or "\\" in name:
            raise CheckpointError(f"{name}: no such file or folder, {_EXPECTED}; check the path")
        raise CheckpointError(f"{name}: not found, {_EXPECTED} ({did_you_mean(name, MODEL_NAMES, 'detrkit models')})")


def _check_published(preset: str) -> None:
    published = (*OFFICIAL_FILES, *HUB_MODELS, *LATER_FILES, *REALTIME_PAGES)
    if preset not in published:
        raise CheckpointError(
            f"{preset}: no weights of this model were published; use one of {', '.join(published)}, or train it"
        )
