"""Configuration of a training run, from a YAML file and from settings given by name. Importing it does not import torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detrkit._internal.documents import parse_yaml
from detrkit._internal.files import write_text
from detrkit._internal.provenance import MAKER_OF_YAML
from detrkit.config.model import ModelConfig
from detrkit.config.training import GROUPS, SETTING_GROUPS, TrainingConfig
from detrkit.config.validation import LENGTHS, check_given
from detrkit.errors import ConfigError, arg, did_you_mean, short

Origin = Literal["detector", "imagenet", "scratch"]
MODEL_SETTINGS = tuple(name for name in ModelConfig.model_fields if name != "num_classes")  # the data has the classes


def _default_model(given: dict[str, Any]) -> str:
    """The paper's model for the paper's recipe; detrkit-m, whose backbone has ImageNet weights, to start from these."""
    if given.get("recipe") == "reference":
        return "detr-r50"
    uses_imagenet = given.get("weights") == "imagenet" and "backbone" not in given.get("model_overrides", {})
    return "detrkit-m" if uses_imagenet else "detrkit-s"


class RunConfig(BaseModel):
    """A training run: data, model, first weights and training settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="dataset folder")
    format: str | None = Field(default=None, description="annotation format; detected from the folder if omitted")
    recipe: Literal["auto", "reference"] = Field(
        default="auto", description="unset settings are chosen for the data ('auto'), or as in the paper ('reference')"
    )
    model_overrides: dict[str, Any] = Field(default_factory=dict, description="fields of the preset to change")
    weights: str | None = Field(default=None, description="'imagenet', or a checkpoint to start from")
    backbone_weights: str | None = Field(default=None, description="file with ImageNet weights of the backbone alone")
    model: str = Field(default_factory=_default_model, description="preset")
    training: TrainingConfig = Field(default_factory=TrainingConfig)

    @property
    def origin(self) -> Origin:
        """Origin of the first weights: a detector's checkpoint, an ImageNet backbone, or random."""
        if self.weights not in (None, "imagenet"):
            return "detector"
        return "imagenet" if self.weights == "imagenet" or self.backbone_weights else "scratch"

    def replace(self, **changes: Any) -> "RunConfig":
        """Return a copy with other values; fields that were not given before count as given."""
        return self.model_copy(update=changes)


RUN_SETTINGS = tuple(name for name in RunConfig.model_fields if name not in ("training", "model_overrides"))


def run_config(settings: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """Combine settings given by name with a YAML file, over which they win.

    Args:
        settings: fields of `RunConfig`, `ModelConfig` and `TrainingConfig` by their names alone.
        file: YAML file as `write_config` writes it: settings at the top level or under their group, and fields of the
            model under ``model``, next to its ``name``.

    Raises:
        ConfigError: the file is missing or malformed, or a setting does not exist, is out of range or contradicts another.
    """
    check_given(settings)
    of_file = {} if file is None else _flat(read_yaml(file), str(file))
    if any(settings.get(name) is not None for name in LENGTHS):
        of_file = {name: value for name, value in of_file.items() if name not in LENGTHS}
    if settings.get("model", of_file.get("model")) != of_file.get("model"):
        of_file = {name: value for name, value in of_file.items() if name not in MODEL_SETTINGS}  # of the file's model
    merged = {**of_file, **settings}
    known = (*RUN_SETTINGS, *MODEL_SETTINGS, *SETTING_GROUPS)
    for name in settings:
        if name not in known:
            raise ConfigError(f"setting {name!r} does not exist; {did_you_mean(name, known, 'detrkit config')}")
    content = {
        **{name: value for name, value in merged.items() if name in RUN_SETTINGS and value is not None},
        "model_overrides": {name: value for name, value in merged.items() if name in MODEL_SETTINGS},
        "training": {name: value for name, value in merged.items() if name in SETTING_GROUPS},
    }
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise _config_error(error, settings, str(file) if file else "") from None


def load_run_config(file: Path) -> RunConfig:
    """Read the configuration of a run from its ``config.yaml``.

    Raises:
        ConfigError: the file is missing or malformed, or a setting does not exist or is out of range.
    """
    return run_config({}, file)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; tags that would create objects are refused.

    Raises:
        ConfigError: it is missing or malformed.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: the file does not exist, expected YAML settings; check the path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({str(error)[:120]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found a {type(content).__name__}, expected settings, one per line: epochs: 50")
    return content


def write_config(path: Path, config: RunConfig, model: Mapping[str, Any]) -> None:
    """Write the resolved configuration: every setting of the run, and every field of the model."""
    content: dict[str, Any] = config.model_dump(mode="json", include=set(RUN_SETTINGS) - {"model"})
    content["model"] = {"name": config.model, **{name: model[name] for name in MODEL_SETTINGS if name in model}}
    content |= config.training.model_dump(mode="json")
    write_text(path, MAKER_OF_YAML + yaml.safe_dump(content, sort_keys=False))


def _flat(content: dict[str, Any], file: str) -> dict[str, Any]:
    """Return the settings of a YAML file by their names alone."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if name == "model" and isinstance(value, dict):
            fields = {"name": None, **dict.fromkeys(MODEL_SETTINGS)}
            _check_names(value, fields, file, "model.")
            flat |= {"model" if key == "name" else key: setting for key, setting in value.items()}
        elif name in GROUPS:
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {name}: found {short(value)}, expected settings, one per line")
            _check_names(value, GROUPS[name].model_fields, file, f"{name}.")
            flat |= value
        else:
            _check_names([name], (*RUN_SETTINGS, *GROUPS, *SETTING_GROUPS), file)
            flat[name] = value
    return flat


def _check_names(names: Any, known: Any, file: str, prefix: str = "") -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{file}: {prefix}{name}: no such setting; {did_you_mean(str(name), known, 'detrkit config')}"
            )


def _config_error(error: ValidationError, given: Mapping[str, Any], file: str) -> ConfigError:
    first = error.errors()[0]
    if first["loc"] == ("data",) and first["type"] == "missing":
        return ConfigError(f"{file or 'settings'}: no dataset was given, expected a folder as {arg('data')}")
    names = [str(part) for part in first["loc"] if part in (*RUN_SETTINGS, *SETTING_GROUPS)]
    name = names[-1] if names else ".".join(map(str, first["loc"]))
    reason = first["msg"][:1].lower() + first["msg"][1:]
    if name in given:
        return ConfigError(f"{arg(name, first['input'])}: {reason}")
    return ConfigError(f"{file}: {name}: found {short(first['input'])}; {reason}")
