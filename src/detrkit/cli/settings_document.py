"""All settings of a training run as a commented YAML file. Importing this module does not import torch."""

from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from detrkit._internal.provenance import MAKER_OF_YAML
from detrkit.config.model import ModelConfig
from detrkit.config.run import MODEL_SETTINGS, RUN_SETTINGS, RunConfig
from detrkit.config.training import GROUPS, SETTING_GROUPS, setting_field

_HEADER = """\
# All settings of detrkit train. Remove the "#" before those to set, and pass this file: detrkit train DATA --config FILE
# Options of the command line and arguments of detrkit.train have the same names, and win over the file.
# Values: of the model {model}, and of the published training (--recipe reference). Training settings that are unset are
# chosen for model and data, and may differ from these; detrkit train DATA --dry-run prints them.
"""


def settings_document(name: str, model: ModelConfig) -> str:
    """Return a YAML file of all settings, commented out, each with its meaning.

    Args:
        name: of the preset.
        model: its configuration.
    """
    of_run = {field: RunConfig.model_fields[field] for field in RUN_SETTINGS if field not in ("data", "model")}
    run = [_setting(field, info.default, info) for field, info in of_run.items()]
    fields = [_setting(field, getattr(model, field), ModelConfig.model_fields[field], 2) for field in MODEL_SETTINGS]
    training = [_setting(field, *_training(field)) for field, group in SETTING_GROUPS.items() if not group]
    groups = [
        [f"# --- {group}", *(_setting(field, *_training(field)) for field in GROUPS[group].model_fields)]
        for group in GROUPS
    ]
    blocks = [run, [f"model:\n  name: {name}", *fields], training, *groups]
    return MAKER_OF_YAML + _HEADER.format(model=name) + "".join("\n" + "\n".join(block) + "\n" for block in blocks)


def _training(name: str) -> tuple[Any, FieldInfo]:
    field = setting_field(name)
    return field.get_default(call_default_factory=True), field


def _setting(name: str, value: Any, field: FieldInfo, indent: int = 0) -> str:
    value = list(value) if isinstance(value, tuple) else value
    shown = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    choices = [str(one) for one in _choices(field.annotation)]
    choices_text = (
        f" ({', '.join(choices)})" if choices and not all(one in (field.description or "") for one in choices) else ""
    )
    return f"{' ' * indent}# {name}: {shown}  # {field.description}{choices_text}"


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a Literal, or of the Literals in a union."""
    parts = get_args(annotation)
    return parts if get_origin(annotation) is Literal else tuple(one for part in parts for one in _choices(part))
