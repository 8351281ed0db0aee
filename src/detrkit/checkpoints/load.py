"""Load a checkpoint from any source that a user may name.

A source is a run folder, a ``.safetensors`` file of detrkit, an official or training ``.pth``, a file, folder or hub id of
Hugging Face, or the name of a preset with published weights. The format is recognised by the content.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from detrkit.checkpoints.containers import is_native, select_weights
from detrkit.checkpoints.conversion.architectures import architecture_of_names
from detrkit.checkpoints.conversion.huggingface import read_huggingface
from detrkit.checkpoints.conversion.official import read_official
from detrkit.checkpoints.conversion.registry import huggingface_conversion
from detrkit.checkpoints.download import official_weights
from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.files import read_safetensors, read_sharded, read_torch_file
from detrkit.checkpoints.hub_download import hub_snapshot
from detrkit.checkpoints.infer_config import infer_config
from detrkit.checkpoints.named_model import NamedModel, config_of_named_model, undescribed
from detrkit.checkpoints.native import Checkpoint, checkpoint_from_header, default_preprocessing
from detrkit.checkpoints.sources import (
    INDEX_SUFFIX,
    WEIGHTS_FILE,
    HubSource,
    check_source,
    hub_source,
    local_file,
    note_on_folder,
)
from detrkit.checkpoints.zoo import HUB_MODELS, LATER_FILES, MODEL_NAMES
from detrkit.config.model import ModelConfig
from detrkit.data.categories import COCO_NAMES, Categories, contiguous_coco_categories, default_categories
from detrkit.data.objects365 import OBJECTS365_SLOTS, objects365_categories
from detrkit.errors import CheckpointError, arg, python_style, render_arguments

_logger = logging.getLogger(__name__)
# the first convolution of a ResNet, ResNet-vd, HGNetV2, and of timm's networks
_BACKBONE_STEMS = ("conv1.weight", "conv1_1.conv.weight", "stem1.conv.weight", "conv_stem.weight")


def load_checkpoint(
    source: Path | str,
    *,
    model: NamedModel | None = None,
    state_dict_key: str | None = None,
    fine_tuned: ModelConfig | None = None,
) -> Checkpoint:
    """Read a checkpoint from any source. Decisions that a user should know of are logged, and listed in its notes.

    Args:
        source: run folder, weights file, folder of Hugging Face, preset with published weights, or model on the hub:
            OWNER/NAME, or ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION`` if the name looks like a path.
        model: preset, ``config.yaml`` of a run, its folder, or `ModelConfig`, for weights under detrkit's names that do not
            describe their model, such as a saved `state_dict()`.
        state_dict_key: entry of a ``.pth`` file that holds the weights, such as "ema_model" or "ema.module". Default: the
            moving average if there is one.
        fine_tuned: model that will be trained from the weights, whose activation decides between D-FINE and DEIM.

    Raises:
        CheckpointError: the source does not exist, is not a DETR, or leaves open which weights or model to use.
    """
    path = Path(source)
    if is_exported(path):
        raise CheckpointError(
            f"{path}: is an exported network, expected the weights that it was made of; give the run folder or the "
            "checkpoint, and use the exported file for detrkit predict, evaluate, benchmark and serve"
        )
    check_source(source)
    name = str(source)
    file = local_file(path)
    notes = note_on_folder(path)
    if file is None and name in MODEL_NAMES and name not in HUB_MODELS:
        file = official_weights(name)
        model = name if model is None and name in LATER_FILES else model
    if file is None:
        hub = hub_source(source) or HubSource(HUB_MODELS[name])
        snapshot = hub_snapshot(hub.repo_id, hub.revision)
        file, notes = local_file(snapshot), note_on_folder(snapshot)
    if file is None:
        raise CheckpointError(f"{name}: the repository on the hub contains no {WEIGHTS_FILE}; check the name")
    checkpoint = _read_file(file, model, state_dict_key, fine_tuned)
    checkpoint = replace(checkpoint, notes=(*notes, *checkpoint.notes))
    for note in checkpoint.notes:
        _logger.warning("%s", render_arguments(note, python_style), extra={"detrkit_message": note})
    return checkpoint


def _read_file(path: Path, model: NamedModel | None, key: str | None, fine_tuned: ModelConfig | None) -> Checkpoint:
    try:
        return _read_weights(path, model, key, fine_tuned)
    # tensors whose shapes do not fit their names, and malformed settings
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{path}: its weights are not those of a DETR ({reason}); get the file again") from None


def _read_weights(path: Path, model: NamedModel | None, key: str | None, fine_tuned: ModelConfig | None) -> Checkpoint:
    content: Mapping[str, Any]
    if path.name.endswith(INDEX_SUFFIX):
        content = read_sharded(path)
    elif path.suffix == ".safetensors":
        content, header = read_safetensors(path)
        if header is not None:
            if key is not None:
                raise CheckpointError(
                    f"{path}: was written by detrkit and holds one model; omit {arg('state_dict_key')}"
                )
            checkpoint = checkpoint_from_header(content, header, path)
            if model is not None:  # which must fit, though the file describes its model itself
                config_of_named_model(model, checkpoint.state, path)
            return checkpoint
    else:
        content = read_torch_file(path)
    _check_not_backbone(content, path)
    weights, notes = select_weights(content, path, key)
    return _read_state_dict(weights.tensors, content.get("args"), path, model, notes, fine_tuned)


def _read_state_dict(
    tensors: Mapping[str, Tensor],
    args: Any,
    path: Path,
    model: NamedModel | None,
    notes: Sequence[str],
    fine_tuned: ModelConfig | None,
) -> Checkpoint:
    """Recognise the format of the tensors, and infer the configuration from them.

    Args:
        tensors: entries in any format, without prefixes of wrappers.
        args: training arguments of an official checkpoint.
        path: of the file; its folder may hold the JSON files of Hugging Face.
        model: that the user names.
        notes: on the selection of the tensors.
        fine_tuned: model that will be trained from them.
    """
    if is_native(tensors):
        if model is None:
            raise undescribed(tensors, path)
        config = config_of_named_model(model, tensors, path)
        return Checkpoint(
            tensors, config, _default_categories(config), default_preprocessing(config), notes=tuple(notes)
        )
    # Hugging Face's files of RF-DETR have the authors' names
    is_folder = path.name == WEIGHTS_FILE and (path.parent / "config.json").is_file()
    if not (is_folder and huggingface_conversion(tensors)) and (official := read_official(tensors, args)):
        state, fields = official
        if "dc5" in path.name.lower():
            fields.setdefault("dilation", True)
        if model is None and _is_dfine_or_deim(state):
            notes = [*notes, *_choose_activation(fields, path, fine_tuned)]
        config = _config(state, fields, model, path)
        return Checkpoint(state, config, _default_categories(config), default_preprocessing(config), notes=tuple(notes))
    found = read_huggingface(tensors, path.parent)
    assert found is not None, "select_weights returns known names only"
    config = _config(found.state, found.fields, model, path)
    categories = found.categories or _default_categories(config)
    return Checkpoint(found.state, config, categories, found.preprocessing, notes=(*notes, *found.notes))


def _config(
    state: Mapping[str, Tensor], fields: Mapping[str, Any], model: NamedModel | None, path: Path
) -> ModelConfig:
    """Return the configuration: of the named model, or inferred; `fields`, which the checkpoint states, win."""
    if model is None:
        return infer_config(state, **fields)
    named = config_of_named_model(model, state, path)
    return ModelConfig.model_validate({**named.model_dump(), **fields})


def _is_dfine_or_deim(state: Mapping[str, Tensor]) -> bool:
    """Return whether weights are of D-FINE or DEIM, which differ in no name or shape."""
    return architecture_of_names(state) == "dfine" and "encoder.teacher_projection.weight" not in state


def _choose_activation(fields: dict[str, Any], path: Path, fine_tuned: ModelConfig | None) -> list[str]:
    """Decide between D-FINE and DEIM: DEIM's weights are useless with D-FINE's ReLUs.

    Args:
        fields: of the model, to which the activation is added.
        path: of the file, whose name may show it.
        fine_tuned: model that will be trained, which decides.

    Returns:
        What was decided, for the user.
    """
    named_deim = any(name in path.name.lower() for name in ("deim", "rtv4", "rtdetrv4"))
    is_deim = named_deim if fine_tuned is None else fine_tuned.activation == "silu"
    if is_deim:
        fields.setdefault("activation", "silu")
    read_as, other, preset = ("DEIM", "D-FINE", "dfine-s") if is_deim else ("D-FINE", "DEIM", "deim-dfine-s")
    if fine_tuned is not None:
        if not named_deim or is_deim:
            return []
        return [
            f"{path}: the file's name says DEIM, but the model to be trained is of D-FINE, whose activations differ; if "
            f"the weights are DEIM's, train its model, as in {arg('model', preset)}"
        ]
    return [
        f"{path}: weights of D-FINE and DEIM have the same names and shapes; these are read as {read_as}'s. If they are "
        f"{other}'s, name the model, as in {arg('model', preset)}"
    ]


def _default_categories(config: ModelConfig) -> Categories:
    """Return categories for weights without names; RT-DETR and its descendants have 80 classes for COCO."""
    if config.num_classes == OBJECTS365_SLOTS:
        return objects365_categories()
    is_coco = config.is_hybrid and config.num_classes == len(COCO_NAMES)
    return contiguous_coco_categories() if is_coco else default_categories(config.num_classes)


def _check_not_backbone(content: Mapping[str, Any], path: Path) -> None:
    """Check that a file of tensors is not that of a backbone alone.

    Raises:
        CheckpointError: it is.
    """
    names = [name for name, value in content.items() if isinstance(value, Tensor)]
    if any(name.endswith(_BACKBONE_STEMS) for name in names) and not any("decoder" in name for name in names):
        raise CheckpointError(
            f"{path}: contains only a backbone (entries such as {names[0]!r}), expected a whole detector; detrkit train "
            f"takes it as {arg('backbone_weights')}, for a {arg('model')} with this backbone"
        )
