"""Options of the settings of a run, made from the configs: names, types, ranges and help texts are written there once."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BaseModel, Field, create_model

from detrkit.config.model import ModelConfig
from detrkit.config.run import MODEL_SETTINGS
from detrkit.config.training import CHOSEN_SETTINGS, GROUPS, SETTING_GROUPS, setting_field

_ALIASES = {"lr": ["--lr", "--learning-rate"]}
_TITLES = {"": "Training", "ema": "EMA", "auxiliary_queries": "Auxiliary queries", "loading": "Data loading"}


def _model_options() -> dict[str, Any]:
    """Fields of the model, which are unset by default: the preset has them."""
    parameter = Parameter(group=Group("Model (default: the preset's)", sort_key=1))
    return {
        name: (
            Annotated[field.rebuild_annotation() | None, parameter],
            Field(default=None, description=field.description),
        )
        for name, field in ModelConfig.model_fields.items()
        if name in MODEL_SETTINGS
    }


def _training_options() -> dict[str, Any]:
    titles = {name: _TITLES.get(name, name.capitalize()) for name in ("", *GROUPS)}
    groups = {name: Group(title, sort_key=number) for number, (name, title) in enumerate(titles.items(), start=2)}
    options = {}
    for name, group in SETTING_GROUPS.items():
        field = setting_field(name)
        parameter = Parameter(
            name=_ALIASES.get(name),
            group=groups[group],
            consume_multiple=name in ("freeze", "no_weight_decay") or None,
            negative=() if name in ("freeze", "lr_overrides", "no_weight_decay", "lr_factors") else None,
            show_default=CHOSEN_SETTINGS.get(name),
        )
        default = field.get_default(call_default_factory=True)
        options[name] = (
            Annotated[field.rebuild_annotation(), parameter],
            Field(default=default, description=field.description),
        )
    return options


if TYPE_CHECKING:
    RunSettings = BaseModel
else:
    RunSettings = create_model("RunSettings", **_model_options(), **_training_options())


def given_settings(settings: BaseModel | None) -> dict[str, Any]:
    """Return the settings that were given on the command line, by name."""
    return {} if settings is None else settings.model_dump(include=settings.model_fields_set)
