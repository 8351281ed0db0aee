"""Load a checkpoint from any source that a user may name.

A source is a run folder, a ``.safetensors`` file of detrkit, an official or training ``.pth``, a file, folder or hub id of
Hugging Face, or the name of a preset with published weights. The format is recognised by the content.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion.huggingface import read_huggingface
from detrkit.checkpoints.conversion.official import read_official
from detrkit.checkpoints.download import official_weights
from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.files import read_safetensors, read_torch_file
from detrkit.checkpoints.infer_config import infer_config
from detrkit.checkpoints.native import Checkpoint, Preprocessing, checkpoint_from_header
from detrkit.checkpoints.sources import WEIGHTS_FILE, check_source, local_file
from detrkit.checkpoints.zoo import HUB_MODELS, MODEL_NAMES
from detrkit.data.categories import default_categories
from detrkit.errors import CheckpointError, arg

_BACKBONE_STEMS = ("conv1.weight", "conv_stem.weight")  # the first convolution of a ResNet, and of timm's networks
_HUB_FILES = ["config.json", "model.safetensors", "pytorch_model.bin", "preprocessor_config.json"]


def load_checkpoint(source: Path | str) -> Checkpoint:
    """Read a checkpoint from any source.

    Raises:
        CheckpointError: the source does not exist, or is not a DETR.
    """
    path = Path(source)
    if is_exported(path):
        raise CheckpointError(
            f"{path}: is an exported network, expected the weights that it was made of; give the run folder or the "
            "checkpoint, and use the exported file for detrkit predict, evaluate, benchmark and serve"
        )
    check_source(source)
    name = str(source)
    if (file := local_file(path)) is not None:
        return _read_file(file)
    if name in MODEL_NAMES and name not in HUB_MODELS:
        return _read_file(official_weights(name))
    file = local_file(_hub_snapshot(HUB_MODELS.get(name, name)))
    if file is None:
        raise CheckpointError(f"{name}: the repository on the hub contains no {WEIGHTS_FILE}; check the name")
    return _read_file(file)


def _read_file(path: Path) -> Checkpoint:
    try:
        return _read_weights(path)
    # tensors whose shapes do not fit their names, and malformed settings
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{path}: its weights are not those of a DETR ({reason}); get the file again") from None


def _read_weights(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        tensors, header = read_safetensors(path)
        if header is not None:
            return checkpoint_from_header(tensors, header, path)
        return _read_state_dict(tensors, None, path)
    content = read_torch_file(path)
    args = content.get("args")
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    return _read_state_dict(tensors, args, path)


def _read_state_dict(tensors: Mapping[str, Tensor], args: Any, path: Path) -> Checkpoint:
    """Recognise the format of the tensors, and infer the configuration from them.

    Args:
        tensors: entries in any format but detrkit's.
        args: training arguments of an official checkpoint.
        path: of the file; its folder may hold the JSON files of Hugging Face.
    """
    if official := read_official(tensors, args):
        state, fields = official
        if "dc5" in path.name.lower():
            fields.setdefault("dilation", True)
        config = infer_config(state, **fields)
        return Checkpoint(state, config, default_categories(config.num_classes), Preprocessing())
    if found := read_huggingface(tensors, path.parent):
        config = infer_config(found.state, **found.fields)
        categories = found.categories or default_categories(config.num_classes)
        return Checkpoint(found.state, config, categories, found.preprocessing)
    first = next(iter(tensors), "none")
    if any(name.endswith(_BACKBONE_STEMS) for name in tensors) and not any("decoder" in name for name in tensors):
        raise CheckpointError(
            f"{path}: contains only a backbone (entries such as {first!r}), expected a whole detector; detrkit train "
            f"takes it as {arg('backbone_weights')}, for a {arg('model')} with this backbone"
        )
    raise CheckpointError(
        f"{path}: has entries such as {first!r}, expected those of a DETR in detrkit's, the official or Hugging Face's "
        "format"
    )


def _hub_snapshot(repo_id: str) -> Path:
    """Download a model from the Hugging Face hub unless it is in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{repo_id}: cannot be downloaded from the hub ({reason}); check the name and the network"
        ) from None
