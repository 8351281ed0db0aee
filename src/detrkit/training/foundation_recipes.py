"""Published training of LW-DETR and RF-DETR: rates per block and part, weight decay, schedules.

The learning rate of the ViT decays from its last block to its embeddings. Where it is below that of the other parts in the
published code ("component decay"), it is multiplied with the square of that of the decoder.

Left out: LW-DETR draws a size for every image and pads the batch, here one for every batch; both crop half of the images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detrkit.config.model import ModelConfig
from detrkit.config.training import TrainingConfig

Defaults = Mapping[str, tuple[Any, str]]  # value and reason of a setting
_PUBLISHED = "as published"
_ENCODER_RATE = 1.5  # of the backbone, relative to lr
_BIASES_AND_NORMS = r"^backbone\..*(bias|norm\.weight)$"
_LWDETR_NO_DECAY = (r"^backbone\.(positions|class_position)$", r"^backbone\..*_scale$", _BIASES_AND_NORMS)
# but LayerScale decays
_RFDETR_NO_DECAY = (
    r"^backbone\.(positions|class_position|tokens|mask_token|patch_embedding\.)",
    _BIASES_AND_NORMS,
)


@dataclass(frozen=True)
class PublishedTraining:
    """Settings that differ between presets.

    Attributes:
        epochs: of the run, with a constant learning rate.
        batch: images per step.
        lr: learning rate.
        layer_decay: factor of the learning rate from a block to the one before.
        component_decay: factor of the decoder's learning rate; its square is that of the backbone's.
        weight_decay: of AdamW.
        ema_decay: of the average of weights.
        ema_warmup_steps: as the setting; 1 for no warm-up.
    """

    epochs: int
    batch: int
    lr: float
    layer_decay: float
    component_decay: float
    weight_decay: float = 1e-4
    ema_decay: float = 0.9997
    ema_warmup_steps: int = 1


_LWDETR = {
    "tiny": PublishedTraining(60, 32, 1e-4, 0.8, 0.7),
    "small": PublishedTraining(60, 32, 1e-4, 0.8, 0.7),
    "medium": PublishedTraining(60, 16, 1e-4, 0.7, 0.7),
    "large": PublishedTraining(60, 16, 1e-4, 0.7, 0.5),
    "xlarge": PublishedTraining(60, 16, 1e-4, 0.75, 0.5, weight_decay=1e-3),
}
_LWDETR_OBJECTS365 = {
    size: PublishedTraining(30, one.batch, 4e-4, 0.75 if size == "xlarge" else 0.8, 1.0)
    for size, one in _LWDETR.items()
}
_RFDETR = PublishedTraining(100, 16, 1e-4, 0.8, 0.7, ema_decay=0.993, ema_warmup_steps=100)


def published_training(preset: str) -> PublishedTraining | None:
    """Return the published training of a preset; None for one that is not of this family."""
    family, _, size = preset.partition("-")
    if family == "lwdetr":
        size, _, data = size.partition("-")
        return (_LWDETR_OBJECTS365 if data else _LWDETR).get(size)
    return _RFDETR if family == "rfdetr" else None


def common_settings(preset: str, model: ModelConfig, given: TrainingConfig) -> Defaults:
    """Return the settings of a model in both recipes.

    Args:
        preset: its name.
        model: its configuration.
        given: settings of the run, of whose learning rates the rates of the blocks are fractions.
    """
    training = published_training(preset) or _RFDETR
    explicit = given.explicit
    ratio = _ENCODER_RATE
    if "backbone_lr" in explicit:
        ratio = explicit["backbone_lr"] / explicit.get("lr", training.lr)
    lr = explicit.get("lr", training.lr)
    return {
        "image_size": (model.published_side or 640, _PUBLISHED),
        "keep_aspect_ratio": (False, "images are stretched to squares, as published"),
        "padding_invariant": (False, ""),
        "lr": (training.lr, _PUBLISHED),
        "backbone_lr": (_ENCODER_RATE * lr, f"{_ENCODER_RATE:g} times lr, less for lower blocks, as published"),
        "lr_factors": (
            lr_factors(model, training, ratio),
            f"learning rate {training.layer_decay:g} times that of the next block, as published",
        ),
        "weight_decay": (training.weight_decay, ""),
        "clip_grad_norm": (0.1, ""),
        "offset_lr_factor": (1.0, ""),
        "cls_loss": ("ia_bce", "scores follow the IoU of the box (IA-BCE), as published"),
        "cls_loss_coef": (1.0, ""),
        **({"mask_loss_coef": (5.0, _PUBLISHED), "dice_loss_coef": (5.0, _PUBLISHED)} if model.mask_head else {}),
        "multi_scale": (1, "sizes of multiples of patches x windows, as published"),
    }


def reference_settings(preset: str, model: ModelConfig, given: TrainingConfig) -> Defaults:
    """Return the settings of a model in the recipe "reference", those of both recipes included; arguments as above."""
    training = published_training(preset)
    settings = common_settings(preset, model, given)
    if training is None:
        return settings
    is_lwdetr = model.backbone.startswith("vit-")
    return {
        **settings,
        "epochs": (training.epochs, _PUBLISHED),
        "lr_scheduler": ("constant", _PUBLISHED),
        "ema_decay": (training.ema_decay, _PUBLISHED),
        "ema_warmup_steps": (training.ema_warmup_steps, ""),
        "no_weight_decay": (_LWDETR_NO_DECAY if is_lwdetr else _RFDETR_NO_DECAY, "the published groups of parameters"),
    }


def lr_factors(model: ModelConfig, training: PublishedTraining, ratio: float = _ENCODER_RATE) -> dict[str, float]:
    """Return the factors of the learning rate of parameters, by patterns of their names.

    Args:
        model: configuration with a ViT.
        training: published.
        ratio: learning rate of the backbone's last norm relative to that of the other parts, before component decay.
    """
    if ratio <= 0:
        return {r"^decoder\.": training.component_decay}
    is_lwdetr = model.backbone.startswith("vit-")
    last = model.backbone_layers if is_lwdetr else max(model.out_layers) + 1
    top = ratio * training.component_decay**2
    factors = {
        rf"^backbone\.blocks\.{block}\.": top * training.layer_decay ** (last - block)
        for block in range(model.backbone_layers)
    }
    factors[r"^backbone\.norm\."] = top
    factors[r"^backbone\."] = top * training.layer_decay ** (last + 1)  # the embeddings
    factors[r"^decoder\."] = training.component_decay
    return factors
