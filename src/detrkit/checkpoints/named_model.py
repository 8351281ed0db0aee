"""Weights under detrkit's own names without a description, such as a saved `model.state_dict()`: the user names the model.

Weights do not show everything: the number of heads, dilation, where positions are added. So the model is not guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit.checkpoints.adapt import FIRST_CONVOLUTIONS
from detrkit.checkpoints.state_dict import check_state_dict
from detrkit.config.model import ModelConfig
from detrkit.config.run import read_yaml
from detrkit.errors import CheckpointError, ConfigError, arg
from detrkit.models.build import model_from_config
from detrkit.models.presets import PRESETS, preset_config

_YAML = (".yaml", ".yml")
NamedModel = str | Path | ModelConfig  # preset, YAML file or run folder, or config


class UndescribedWeightsError(CheckpointError):
    """Weights under detrkit's names whose model has to be named."""


def config_of_named_model(model: NamedModel, state: Mapping[str, Tensor], where: Path | str) -> ModelConfig:
    """Return the configuration that a user names, with the classes, queries and channels of the weights.

    Args:
        model: preset, configuration, ``config.yaml`` of a run, or the run's folder.
        state: weights under detrkit's names.
        where: their file, for messages.

    Raises:
        ConfigError: there is no such preset, or the YAML file is malformed.
        CheckpointError: the weights are not those of this model.
    """
    config = model if isinstance(model, ModelConfig) else _read_config(str(model))
    config = config.model_copy(update=_shown_fields(state, config))
    try:
        _check(config, state)
    except CheckpointError as error:
        name = arg("model") if isinstance(model, ModelConfig) else arg("model", str(model))
        reason = error.message.partition(";")[0]  # without its own advice
        raise CheckpointError(f"{where}: {reason} ({name}); {_advice(state)}") from None
    return config


def undescribed(state: Mapping[str, Tensor], where: Path | str) -> UndescribedWeightsError:
    """Return the error for weights whose model is not named."""
    return UndescribedWeightsError(
        f"{where}: holds weights under detrkit's names without the model's settings, as state_dict() gives them; "
        f"{_advice(state)}; detrkit.convert writes a file that describes itself"
    )


def _advice(state: Mapping[str, Tensor]) -> str:
    fitting = [name for name, config in PRESETS.items() if _fits(config, state)]
    if not fitting:
        return f"name their model, a preset or the config.yaml of its run, with {arg('model')}; no preset fits as it is"
    return f"name their model with {arg('model', fitting[0])}" + (
        f" ({', '.join(fitting[1:])} have the same entries)" if len(fitting) > 1 else ""
    )


def _read_config(model: str) -> ModelConfig:
    path = Path(model)
    if path.suffix.lower() not in _YAML and not path.is_dir():
        return preset_config(model)
    content = read_yaml(path / "config.yaml" if path.is_dir() else path)
    section: Any = content.get("model", content)
    fields = {"name": section} if isinstance(section, str) else section
    if not isinstance(fields, dict):
        raise ConfigError(f"{model}: model: found a {type(fields).__name__}, expected a preset or settings")
    overrides = {str(name): value for name, value in fields.items() if name not in ("name", "num_classes")}
    return preset_config(str(fields.get("name", "detr-r50")), **overrides)


def _shown_fields(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Any]:
    """Return the fields that differ between datasets and that the weights show."""
    fields: dict[str, Any] = {}
    head = next((tensor for name, tensor in state.items() if _is_class_weight(name)), None)
    if head is not None:
        fields["num_classes"] = max(len(head) - (config.class_scores == "softmax"), 1)
    table = state.get("query_source.weight")
    if table is not None and table.ndim == 2:
        fields["num_queries"] = len(table)
    content = state.get("query_source.content")
    if content is not None and content.ndim == 3:
        fields |= {"group_detr": content.shape[0], "num_queries": content.shape[1]}
    stem = next((state[name] for name in FIRST_CONVOLUTIONS if name in state), None)
    if stem is not None and stem.ndim == 4:
        fields["in_channels"] = stem.shape[1]
    return fields


def _is_class_weight(name: str) -> bool:
    return name.startswith("heads.class_head.") and name.endswith("weight")


def _fits(config: ModelConfig, state: Mapping[str, Tensor]) -> bool:
    expand = state.get("decoder.layers.0.feed_forward.expand.weight")
    if expand is None or tuple(expand.shape) != (config.dim_feedforward, config.hidden_dim):
        return False  # without building the model
    try:
        _check(config.model_copy(update=_shown_fields(state, config)), state)
    except (CheckpointError, RuntimeError):
        return False
    return True


def _check(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):  # only shapes are compared
        check_state_dict(model_from_config(config), state)
