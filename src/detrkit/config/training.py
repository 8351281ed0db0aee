"""Training settings, in the groups of `config.setting_groups`. Importing this module does not import torch.

Every setting has one name. In Python and on the command line it is given by that name alone (``lr=1e-3``); in YAML it
stands under its group (``optimizer: {lr: 0.001}``). Names are unique over all groups, so that both are clear.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from detrkit.config.setting_groups import (
    AugmentationConfig,
    AuxiliaryQueriesConfig,
    EMAConfig,
    EvaluationConfig,
    HardwareConfig,
    LoadingConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from detrkit.errors import ConfigError, arg, did_you_mean

MAX_IMAGE_SIZE = 4096  # pixels of the shorter side; published models use up to 1333, tiles of aerial images up to 4096


class TrainingConfig(BaseModel):
    """Training settings, apart from the data and the model. The defaults are the published ones.

    Settings may be given flat or in their groups: ``TrainingConfig(lr=1e-3)`` is
    ``TrainingConfig(optimizer={"lr": 1e-3})``.
    """

    model_config = ConfigDict(frozen=True)  # unknown names are refused by the validator below

    epochs: int = Field(default=300, ge=1, description="passes over the training images")
    steps: int | None = Field(default=None, ge=1, description="optimizer steps of the run, instead of epochs")
    minutes: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="time limit of the run instead of epochs, evaluations and report included: learning rates, "
        "augmentation and evaluations follow the clock",
    )
    batch_size: int = Field(default=2, ge=1, description="images per batch and process")
    gradient_accumulation: int = Field(default=1, ge=1, description="batches per optimizer step")
    image_size: int = Field(
        default=800,
        ge=32,
        le=MAX_IMAGE_SIZE,
        description="shorter side of images in evaluation, pixels; training sizes follow (detrkit-...: 320, detr-tiny: "
        "256)",
    )
    keep_aspect_ratio: bool = Field(
        default=True,
        description="resize the shorter side; false stretches images to image_size x image_size, as RT-DETR and D-FINE do",
    )
    normalize: bool = Field(
        default=True,
        description="normalise pixels with ImageNet's mean and standard deviation; false: 0 to 1, as RT-DETR and D-FINE",
    )
    padding_invariant: bool = Field(
        default=True, description="keep padding from affecting the backbone's features; false: as published"
    )
    train_on_val: bool = Field(
        default=False,
        description="also train on the validation images, for a final model; the last checkpoint becomes the best",
    )
    overfit: int = Field(
        default=0, ge=0, description="train and evaluate on the first N images without augmentation; 0 uses all"
    )
    log_every: int = Field(default=10, ge=1, description="steps between logged losses")
    seed: int = Field(default=42, ge=0, le=2**63 - 1, description="random seed of weights, data order and augmentation")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema: EMAConfig = Field(default_factory=EMAConfig)
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    auxiliary_queries: AuxiliaryQueriesConfig = Field(default_factory=AuxiliaryQueriesConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    loading: LoadingConfig = Field(default_factory=LoadingConfig)
    hardware: HardwareConfig = Field(default_factory=HardwareConfig)

    @model_validator(mode="before")
    @classmethod
    def _grouped(cls, values: Any) -> Any:
        """Move settings that were given flat into their groups."""
        if not isinstance(values, Mapping):
            return values
        nested: dict[str, Any] = {}
        for name, value in values.items():
            if name not in GROUPS and name not in SETTING_GROUPS:
                raise ConfigError(
                    f"setting {name!r} does not exist; {did_you_mean(str(name), SETTING_GROUPS, 'detrkit config')}"
                )
            group = name if name in GROUPS else SETTING_GROUPS[name]
            if not group:
                nested[name] = value
            elif group != name:
                nested[group] = {**nested.get(group, {}), name: value}
            elif isinstance(value, Mapping | BaseModel):
                content = value if isinstance(value, Mapping) else value.model_dump(exclude_unset=True)
                nested[group] = {**content, **nested.get(group, {})}
            else:
                raise ConfigError(f"{arg(name, value)}: expected settings by name")
        return nested

    def flat(self) -> dict[str, Any]:
        """Return all settings by their names, without groups."""
        return {name: self[name] for name in SETTING_GROUPS}

    @property
    def explicit(self) -> dict[str, Any]:
        """The settings that were given, as opposed to defaults, by their names."""
        given = set(self.model_fields_set).difference(GROUPS)
        for group in GROUPS:
            given |= getattr(self, group).model_fields_set
        return {name: self[name] for name in SETTING_GROUPS if name in given}

    def __getitem__(self, name: str) -> Any:
        """Return a setting by its name alone."""
        group = SETTING_GROUPS[name]
        return getattr(getattr(self, group) if group else self, name)

    def replace(self, **settings: Any) -> "TrainingConfig":
        """Return a copy with other values, given by name; they are validated and count as given.

        Raises:
            pydantic.ValidationError: a setting does not exist or is out of range.
        """
        return TrainingConfig.model_validate({**self.explicit, **settings})


# settings that the planner of the recipe "auto" chooses if they are not given, and where from: the model, or a plan for the
# data and the length of the run. Their defaults in the configs are the published ones.
CHOSEN_SETTINGS: dict[str, Literal["of the model", "planned"]] = {
    **dict.fromkeys(
        (
            "image_size",
            "keep_aspect_ratio",
            "normalize",
            "train_scale",
            "batch_size",
            "lr",
            "backbone_lr",
            "offset_lr_factor",
            "weight_decay",
            "no_weight_decay",
            "lr_factors",
            "clip_grad_norm",
            "photometric",
            "zoom_out",
            "iou_crop",
            "multi_scale",
            "cls_loss_coef",
            "cls_loss",
            "look_forward_twice",
            "denoising",
            "denoising_queries",
            "contrastive_denoising",
            "box_noise",
            "box_noise_scale",
            "label_noise_ratio",
        ),
        "of the model",
    ),
    **dict.fromkeys(
        (
            "epochs",
            "evaluate_every",
            "lr_scheduler",
            "warmup_steps",
            "warmup_until",
            "warmup",
            "flat_until",
            "ema_decay",
            "ema_warmup_steps",
            "strong_aug_from",
            "strong_aug_until",
            "mosaic",
            "mixup",
            "mosaic_until",
            "decay_norms",
        ),
        "planned",
    ),
}

GROUPS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in TrainingConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
# group of every setting, or "" at the top level
SETTING_GROUPS: dict[str, str] = {
    **{name: "" for name in TrainingConfig.model_fields if name not in GROUPS},
    **{name: group for group, content in GROUPS.items() for name in content.model_fields},
}


def setting_field(name: str) -> FieldInfo:
    """Return the description, type and default of a setting."""
    group = SETTING_GROUPS[name]
    return (GROUPS[group] if group else TrainingConfig).model_fields[name]
