"""Writes the pages of all settings of training and of models, with defaults and ranges, from the pydantic models."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic.fields import FieldInfo

from detrkit.config.model import ModelConfig
from detrkit.config.run import RUN_SETTINGS, RunConfig
from detrkit.config.training import CHOSEN_SETTINGS, GROUPS, SETTING_GROUPS, TrainingConfig, setting_field

_TRAINING = """\
# Training settings

Settings of [`detrkit train`](../commands/train.md), of [`detrkit.train`](../api/training.md), and of files for
`--config`. In Python and on the command line a setting is given by its name alone (`lr=1e-3`, `--lr 1e-3`). In a YAML
file it may also stand under its group (`optimizer: {lr: 0.001}`).

The defaults are those of the published training (`--recipe reference`). In the column *chosen by*, unset settings that
the recipe `auto` chooses are marked: *model* means the training defaults of the preset, *plan* a choice for the
dataset and the length of the run. `detrkit train DATA --dry-run` prints the choices with their reasons.
"""
_MODEL = """\
# Model settings

Fields of `ModelConfig`, which decide the architecture of a model. They change a preset:
`detrkit train photos --model detr-r50 --num-queries 50` on the command line, `num_queries=50` in
[`detrkit.train`](../api/training.md) and [`detrkit.build_model`](../api/models.md), and a line below `model:` in a file
for `--config`. The defaults listed here are those of the published DETR with ResNet-50; each preset has its own values
(`detrkit config --model NAME` lists them).
"""
_TITLES = {"ema": "EMA", "auxiliary_queries": "Auxiliary queries", "loading": "Data loading"}
_BOUNDS = (
    (Ge, "≥", "ge"),
    (Gt, ">", "gt"),
    (Le, "≤", "le"),
    (Lt, "<", "lt"),
    (MultipleOf, "multiple of", "multiple_of"),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    files.append(File.generated(config, "reference/settings/training.md", content=training_page()))
    files.append(File.generated(config, "reference/settings/model.md", content=model_page()))
    return files


def training_page() -> str:
    """Return the page of the settings of training."""
    run = {name: RunConfig.model_fields[name] for name in RUN_SETTINGS}
    top = {name: setting_field(name) for name, group in SETTING_GROUPS.items() if not group}
    parts = [_TRAINING, "## Run", _table(run, with_chosen=False), "## Training", _table(top)]
    for name, group in GROUPS.items():
        parts += [f"## {_TITLES.get(name, name.capitalize())}", group.__doc__ or "", _group_note(name)]
        parts.append(_table(group.model_fields))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def model_page() -> str:
    """Return the page of the settings of models."""
    return f"{_MODEL}\n{_table(ModelConfig.model_fields, with_chosen=False)}\n"


def _group_note(name: str) -> str:
    return f"In YAML: below `{name}:`."


def _table(fields: dict[str, FieldInfo], *, with_chosen: bool = True) -> str:
    columns = ["setting", "default", "values", "meaning"]
    if with_chosen:
        columns.insert(2, "chosen by")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, field in fields.items():
        cells = [f'<span id="{name}"></span>`{name}`', _default(field), values_of(field.annotation, field.metadata)]
        if with_chosen:
            cells.insert(2, {"of the model": "model", "planned": "plan"}.get(CHOSEN_SETTINGS.get(name, ""), ""))
        lines.append(f"| {' | '.join([*cells, _text(field.description or '')])} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None and field.default_factory_takes_validated_data:
        return "see meaning"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value}`"


def values_of(annotation: Any, metadata: list[Any]) -> str:
    """Describe the type and range of a field, such as "float, ≥ 0, ≤ 1"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_of(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(values_of(one, metadata) for one in arguments if one is not type(None)))
    if origin is tuple:
        return f"list of {values_of(arguments[0], [])}"
    if origin is dict:
        return f"{values_of(arguments[0], [])}: {values_of(arguments[1], [])}"
    name = {str: "text", bool: "`true`, `false`", int: "integer", float: "number"}.get(annotation, "")
    bounds = [
        f"{mark} {_number(getattr(one, field))}" for kind, mark, field in _BOUNDS for one in _flat(metadata, kind)
    ]
    pattern = "`timm:NAME`" if any(getattr(one, "pattern", None) for one in metadata) else ""
    return ", ".join([pattern or name or str(annotation), *bounds])


def _flat(metadata: list[Any], kind: type) -> list[Any]:
    nested = [inner for one in metadata if isinstance(one, FieldInfo) for inner in one.metadata]
    return [one for one in [*metadata, *nested] if isinstance(one, kind)]


def _number(value: float) -> str:
    return "2^63 - 1" if value == 2**63 - 1 else f"{value:,}"


def _text(description: str) -> str:
    return (description[:1].upper() + description[1:]).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


assert TrainingConfig.model_fields, "the settings are read from it"
