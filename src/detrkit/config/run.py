"""A run as a typed config, from a YAML file and the command line. Light: reading it does not wait for torch."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detrkit._internal.files import write_text
from detrkit._internal.provenance import MAKER_OF_YAML
from detrkit.config.training import TrainingConfig
from detrkit.errors import ConfigError, did_you_mean, short


def _usual_model(given: dict[str, Any]) -> str:
    """Our own; or the paper's for the paper's recipe, or one whose backbone has ImageNet weights where those are wanted."""
    if given.get("recipe") == "reference":
        return "detr-r50"
    wants_imagenet = given.get("weights") == "imagenet" and "backbone" not in given.get("model_settings", {})
    return "detrkit-m" if wants_imagenet else "detrkit-s"


class RunConfig(BaseModel):
    """What to train, on what, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="dataset folder")
    format: Literal["coco", "panoptic", "yolo", "voc", "shards"] | None = Field(
        default=None, description="of the dataset; None looks"
    )
    recipe: Literal["auto", "reference"] = Field(
        default="auto", description="how gaps are filled: from the data, or as in the paper"
    )
    model_settings: dict[str, Any] = Field(default_factory=dict, description="fields of the preset to change")
    weights: str | None = Field(default=None, description="'imagenet', or a checkpoint to start from")
    backbone_weights: str | None = Field(default=None, description="file with ImageNet weights of the backbone alone")
    model: str = Field(default_factory=_usual_model, description="preset")
    training: TrainingConfig = Field(default_factory=TrainingConfig)


def load_run_config(file: Path | None, given: dict[str, Any], training: dict[str, Any]) -> RunConfig:
    """Combine a YAML file with settings given elsewhere, which win.

    Args:
        file: YAML with fields of `RunConfig`, or None.
        given: fields of `RunConfig` that were given; None counts as not given.
        training: fields of `TrainingConfig` that were given.

    Raises:
        ConfigError: the file is missing or malformed, a setting does not exist or is out of range, or two say the same.
    """
    content = read_yaml(file) if file else {}
    inner = content.get("training") or {}
    if not isinstance(inner, dict):
        raise ConfigError(f"{file}: training: found {short(inner)}, expected settings")
    if {"epochs", "steps"} <= training.keys():
        raise ConfigError("--epochs: found --steps as well, expected one of the two")
    if "epochs" in training:
        inner = {name: value for name, value in inner.items() if name != "steps"}  # they would win over epochs
    given = {key: value for key, value in given.items() if value is not None}
    model_settings = content.get("model_settings") or {}
    if not isinstance(model_settings, dict):
        raise ConfigError(f"{file}: model_settings: found {short(model_settings)}, expected settings")
    if given.get("model", content.get("model")) != content.get("model"):
        model_settings = {}  # they belong to the file's model
    merged = {
        **content,
        **given,
        "model_settings": {**model_settings, **given.get("model_settings", {})},
        "training": {**inner, **training},
    }
    return _validated(merged, str(file) if file else "settings")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; tags that would create objects are refused.

    Raises:
        ConfigError: it is missing or malformed.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: found nothing, expected a YAML file of settings; check the path") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found a {type(content).__name__}, expected settings, one a line: epochs: 50")
    return content


def write_config(path: Path, config: RunConfig, model: dict[str, Any]) -> None:
    """Write the resolved configuration: every setting of the run, and every field of the model."""
    content = config.model_dump(mode="json")
    content["model_settings"] = model
    write_text(path, MAKER_OF_YAML + yaml.safe_dump(content, sort_keys=False))


def _validated(content: dict[str, Any], where: str) -> RunConfig:
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("data",) and first["type"] == "missing":
            raise ConfigError(f"{where}: found no dataset, expected a folder; detrkit train FOLDER") from None
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = TrainingConfig.model_fields if first["loc"][0] == "training" else RunConfig.model_fields
            raise ConfigError(
                f"{where}: setting {name!r} does not exist; {did_you_mean(str(first['loc'][-1]), fields)}"
            ) from None
        raise ConfigError(f"{where}: {name}: found {short(first['input'])}; {first['msg'].lower()}") from None
