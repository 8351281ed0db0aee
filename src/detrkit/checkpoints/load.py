"""Weights from wherever they come: whatever a user calls a model, read into a `Checkpoint`.

A source is a run folder, one of our `.safetensors`, a published or training `.pth`, a Hugging Face folder or file or hub
id, or the name of a preset with published weights. What it is, is told by its content.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr as official
from detrkit.checkpoints.conversion import huggingface
from detrkit.checkpoints.download import HUB_MODELS, published_weights
from detrkit.checkpoints.exported import is_exported
from detrkit.checkpoints.infer_config import infer_config
from detrkit.checkpoints.native import Checkpoint, Preprocessing, checkpoint_from_header, read_tensors
from detrkit.checkpoints.pickles import read_pickle
from detrkit.data.categories import default_categories
from detrkit.errors import CheckpointError, did_you_mean
from detrkit.models.presets import PRESETS

WEIGHTS_FILE = "model.safetensors"
_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_STEMS = ("conv1.weight", "conv_stem.weight")  # the first convolution of a ResNet, and of timm's networks
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_checkpoint(source: Path | str) -> Checkpoint:
    """Read a model from any source.

    Raises:
        CheckpointError: nothing is there, or it is not a DETR.
    """
    path = Path(source)
    if is_exported(path):
        raise CheckpointError(
            f"{path}: is an exported network, expected the weights that it was made of; give the run folder or the "
            "checkpoint, and keep this for detrkit predict, evaluate, benchmark and serve"
        )
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    name = str(source)
    if name in HUB_MODELS:
        return _read_folder(_hub_snapshot(HUB_MODELS[name]))
    if name in PRESETS:
        return _read_file(published_weights(name))
    if HUB_ID.fullmatch(name) and not path.parent.exists() and path.suffix not in _FILE_SUFFIXES:
        return _read_folder(_hub_snapshot(name))
    expected = "expected a run folder, a .safetensors or .pth file, a Hugging Face folder or id, or a preset"
    if path.suffix in _FILE_SUFFIXES or "/" in name or "\\" in name:
        raise CheckpointError(f"{name}: found nothing there, {expected}; check the path")
    ours_first = sorted(PRESETS, key=lambda preset: not preset.startswith("detrkit-"))
    raise CheckpointError(f"{name}: found nothing, {expected} ({did_you_mean(name, ours_first)})")


def local_file(source: Path | str) -> Path | None:
    """The file on this machine that a source is read from; None for presets and hub ids, which must not be changed."""
    path = Path(source)
    if not path.is_dir():
        return path if path.is_file() else None
    parts = [path / part / WEIGHTS_FILE for part in ("best", "last")]
    places = [*parts, path / WEIGHTS_FILE, path / "pytorch_model.bin"]
    return next((place for place in places if place.is_file()), None)


def _read_folder(folder: Path) -> Checkpoint:
    found = local_file(folder)
    if found is not None:
        return _read_file(found)
    raise CheckpointError(
        f"{folder}: found neither best/{WEIGHTS_FILE} nor {WEIGHTS_FILE} in it, expected a run folder of detrkit train "
        "or a Hugging Face folder"
    )


def _read_file(path: Path) -> Checkpoint:
    try:
        return _read_weights(path)
    # tensors of other shapes than their names promise, and settings that are none
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{path}: its weights are not those of a DETR ({reason}); get the file again") from None


def _read_weights(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        tensors, header = read_tensors(path)
        if header is not None:
            return checkpoint_from_header(tensors, header, path)
        return _understand(tensors, {}, path)
    content = read_pickle(path)
    arguments = content.get("args")
    settings = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    settings = settings if isinstance(settings, dict) else {}
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {name: t for name, t in content.items() if isinstance(t, Tensor)}
    return _understand(tensors, _known_from_arguments(settings), path)


def _understand(tensors: Mapping[str, Tensor], known: dict[str, Any], path: Path) -> Checkpoint:
    """Tell whose names the tensors carry, and read the rest of the model off them."""
    categories = None
    preprocessing = Preprocessing()
    if any("transformer.decoder.layers.0." in name for name in tensors):
        state = official.ours_from_official(tensors)
        if "dc5" in path.name.lower():
            known.setdefault("dilation", True)
    elif any("model.decoder.layers.0." in name for name in tensors):
        state = huggingface.ours_from_huggingface(tensors)
        if (config_file := path.parent / "config.json").is_file():
            from_file, categories = huggingface.read_config(config_file, state)
            known = {**known, **from_file}
        preprocessing = huggingface.read_preprocessing(path.parent / "preprocessor_config.json")
    else:
        first = next(iter(tensors), "nothing")
        if any(name.endswith(_STEMS) for name in tensors) and not any("decoder" in name for name in tensors):
            raise CheckpointError(
                f"{path}: holds a backbone alone (entries such as {first!r}), expected a whole detector; detrkit "
                "train takes it as --backbone-weights, for a --model with this backbone"
            )
        raise CheckpointError(
            f"{path}: found entries such as {first!r}, expected those of a DETR under our, the published or Hugging "
            "Face's names"
        )
    config = infer_config(state, **known)
    return Checkpoint(state, config, categories or default_categories(config.num_classes), preprocessing)


def _known_from_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a training checkpoint's arguments what its weights do not show."""
    names = {"dilation": "dilation", "nheads": "num_heads", "dropout": "dropout"}
    known = {ours: arguments[theirs] for theirs, ours in names.items() if theirs in arguments}
    if arguments.get("two_stage"):  # other models' weights show it, in their queries
        known["num_queries"] = arguments.get("num_queries", 300)
    if "pe_temperatureH" in arguments:
        known["position_temperature"] = float(arguments["pe_temperatureH"])
    if "num_select" in arguments:
        known["max_detections"] = arguments["num_select"]
    return known


def _hub_snapshot(name: str) -> Path:
    """Fetch a model from the Hugging Face hub, or find it in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "model.safetensors", "pytorch_model.bin", "preprocessor_config.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: cannot be fetched from the hub ({reason}); check the name and the network"
        ) from None
