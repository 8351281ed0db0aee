"""Published training of RT-DETR, RT-DETRv2, D-FINE, DEIM, RT-DETRv4 and DEIMv2, by preset.

Weight decay and learning rates follow the parameter groups that the published configurations make, not those they intend:
"norm anywhere in the name, or bn at its start" finds no norm of HGNetV2, whose names contain bn, so that D-FINE's backbone
norms decay; and RT-DETR (v1) does not call all of its norms so. DEIM excludes names with bn from the backbone's group: its
norms have the learning rate of the other parts.

Left out: the published trainers of D-FINE and DEIM reload their best weights when strong augmentation ends, and whenever an
epoch after it is not the best. DEIMv2 also pastes objects of other images (N only), and drops boxes that augmentation made
smaller than 1 (N) to 12 pixels (Atto).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Defaults = Mapping[str, tuple[Any, str]]  # value and reason of a setting
_PUBLISHED = "as published"
# norms of ResNet are bn1, bn2, bn3 and downsample.1
_NORM = r"((norm|bn\d)\.|layer\d\.0\.downsample\.1\.)"
_NORMS, _BACKBONE_NORMS = _NORM, rf"^backbone\..*{_NORM}"
_OTHER_NORMS, _OTHER_BIASES = r"^(?!backbone\.).*norm\.", r"^(?!backbone\.).*bias$"
_V1_NORMS, _V1_OTHER_NORMS = rf"^(?!neck\.|query_source\.).*{_NORM}", r"^(?!backbone\.|neck\.|query_source\.).*norm\."

# of all, in both recipes: preparation of images, losses and denoising
COMMON: Defaults = {
    "image_size": (640, _PUBLISHED),
    "keep_aspect_ratio": (False, "images are stretched, as published"),
    "normalize": (False, "pixels from 0 to 1, as published"),
    "clip_grad_norm": (0.1, ""),
    "cls_loss": ("vfl", "scores follow the IoU of the box (varifocal loss), as published"),
    "cls_loss_coef": (1.0, ""),
    "offset_lr_factor": (1.0, ""),
    "denoising_queries": (100, "noised objects as queries, as published"),
    "contrastive_denoising": (True, ""),
    "box_noise": ("corners", ""),
    "box_noise_scale": (1.0, ""),
    "label_noise_ratio": (0.25, ""),
    "photometric": (0.5, ""),
    "zoom_out": (0.5, ""),
    "iou_crop": (0.8, "photometric, zoom-out and crop by IoU, as published"),
}


@dataclass(frozen=True)
class PublishedTraining:
    """Settings that differ between presets.

    Attributes:
        epochs: of the run.
        until: last epoch with strong augmentation.
        batch: images per step.
        lr: learning rate.
        backbone_lr: of the backbone.
        no_weight_decay: patterns.
        multi_scale: as the setting.
        weight_decay: of AdamW.
        warmup: steps of warm-up.
        image_size: side of the square images.
    """

    epochs: int
    until: int
    batch: int
    lr: float
    backbone_lr: float
    no_weight_decay: tuple[str, ...]
    multi_scale: int
    weight_decay: float = 1e-4
    warmup: int = 0
    image_size: int = 640


_RTDETR = {
    "r18": PublishedTraining(72, 72, 16, 1e-4, 1e-5, (_V1_NORMS, _OTHER_BIASES), 3),
    "r34": PublishedTraining(72, 72, 16, 1e-4, 1e-5, (_V1_NORMS, _OTHER_BIASES), 3),
    "r50-m": PublishedTraining(72, 72, 16, 1e-4, 1e-5, (_V1_OTHER_NORMS, _OTHER_BIASES), 3),
    "r50": PublishedTraining(72, 72, 16, 1e-4, 1e-5, (_V1_OTHER_NORMS, _OTHER_BIASES), 3),
    "r101": PublishedTraining(72, 72, 16, 1e-4, 1e-6, (), 3),
}
_RTDETRV2 = {
    "s": PublishedTraining(120, 117, 16, 1e-4, 1e-4, (_NORMS,), 0, warmup=2000),
    "ms": PublishedTraining(120, 117, 16, 1e-4, 5e-5, (_NORMS, _OTHER_BIASES), 3, warmup=2000),
    "m": PublishedTraining(84, 81, 16, 1e-4, 1e-5, (_OTHER_NORMS,), 3, warmup=2000),
    "l": PublishedTraining(72, 71, 16, 1e-4, 1e-5, (_OTHER_NORMS,), 3, warmup=2000),
    "x": PublishedTraining(72, 71, 16, 1e-4, 1e-6, (_OTHER_NORMS,), 3, warmup=2000),
}
_NORMS_AND_BIASES = (_OTHER_NORMS, _OTHER_BIASES)
_DFINE = {
    "n": PublishedTraining(160, 148, 128, 8e-4, 4e-4, _NORMS_AND_BIASES, 0, warmup=500),
    "s": PublishedTraining(132, 120, 32, 2e-4, 1e-4, _NORMS_AND_BIASES, 20, warmup=500),
    "m": PublishedTraining(132, 120, 32, 2e-4, 2e-5, _NORMS_AND_BIASES, 6, warmup=500),
    "l": PublishedTraining(80, 72, 32, 2.5e-4, 1.25e-5, (_OTHER_NORMS,), 4, 1.25e-4, 500),
    "x": PublishedTraining(80, 72, 32, 2.5e-4, 2.5e-6, (_OTHER_NORMS,), 3, 1.25e-4, 500),
}
_DFINE_OBJ2COCO = {
    "s": PublishedTraining(64, 56, 32, 2.5e-4, 1.25e-4, _NORMS_AND_BIASES, 20, 1.25e-4),
    "m": PublishedTraining(56, 48, 32, 2.5e-4, 2.5e-5, _NORMS_AND_BIASES, 6, 1.25e-4),
    "l": PublishedTraining(36, 30, 32, 2.5e-4, 1.25e-5, (_OTHER_NORMS,), 4, 1.25e-4),
    "x": PublishedTraining(36, 30, 32, 2.5e-4, 2.5e-6, (_OTHER_NORMS,), 3, 1.25e-4),
}
_DFINE_OBJ365 = {
    "s": PublishedTraining(36, 36, 32, 2.5e-4, 1.25e-4, _NORMS_AND_BIASES, 20, 1.25e-4, 500),
    "m": PublishedTraining(36, 36, 32, 2.5e-4, 2.5e-5, _NORMS_AND_BIASES, 6, 1.25e-4, 500),
    "l": PublishedTraining(24, 24, 32, 2.5e-4, 1.25e-5, (_OTHER_NORMS,), 4, 1.25e-4, 500),
    "x": PublishedTraining(24, 24, 32, 2.5e-4, 2.5e-6, (_OTHER_NORMS,), 3, 1.25e-4, 500),
}
_DEIM = {
    "n": PublishedTraining(160, 148, 128, 8e-4, 4e-4, _NORMS_AND_BIASES, 0, warmup=2000),
    "s": PublishedTraining(132, 120, 32, 4e-4, 2e-4, (_NORMS,), 20, warmup=2000),
    "m": PublishedTraining(102, 90, 32, 4e-4, 4e-5, (_NORMS,), 6, warmup=2000),
    "l": PublishedTraining(58, 50, 32, 5e-4, 2.5e-5, (_OTHER_NORMS,), 4, 1.25e-4, 2000),
    "x": PublishedTraining(58, 50, 32, 5e-4, 5e-6, (_OTHER_NORMS,), 3, 1.25e-4, 2000),
}
_DEIM_RTDETRV2 = {
    "s": PublishedTraining(120, 117, 16, 2e-4, 2e-4, (_NORMS,), 0, warmup=2000),
    "ms": PublishedTraining(120, 117, 16, 2e-4, 1e-4, (_NORMS,), 3, warmup=2000),
    "m": PublishedTraining(60, 58, 16, 2e-4, 2e-5, (_NORMS,), 3, warmup=2000),
    "l": PublishedTraining(60, 58, 16, 2e-4, 2e-5, (_NORMS,), 3, warmup=2000),
    "x": PublishedTraining(60, 58, 16, 2e-4, 2e-6, (_NORMS,), 3, warmup=2000),
}
# the authors name norms after poolings by numbers, which their pattern of norms does not find
_DEIMV2_NORMS = r"^(?!.*downsample\.(0\.)?pointwise\.).*norm\."
_DEIMV2 = {
    "atto": PublishedTraining(500, 400, 128, 2e-3, 1e-3, (_DEIMV2_NORMS,), 0, warmup=4000, image_size=320),
    "femto": PublishedTraining(
        500, 400, 128, 1.6e-3, 8e-4, (_DEIMV2_NORMS, _OTHER_BIASES), 0, warmup=4000, image_size=416
    ),
    "pico": PublishedTraining(500, 400, 128, 1.6e-3, 8e-4, (_DEIMV2_NORMS, _OTHER_BIASES), 0, warmup=4000),
    "n": PublishedTraining(160, 148, 32, 8e-4, 4e-4, (_NORMS, _OTHER_BIASES), 0, warmup=2000),
}
_DEIMV2_NO_AUGMENTATION = 32  # last epochs, at the lowest learning rate, of Atto, Femto and Pico
_DEIM_FIRST_EPOCHS = 4  # before strong augmentation


def published_training(preset: str) -> PublishedTraining | None:
    """Return the published training of a preset; None for one that is not of this family."""
    family, _, size = preset.partition("-")
    if family == "deim":
        family, _, size = preset.removeprefix("deim-").partition("-")
        return (_DEIM if family == "dfine" else _DEIM_RTDETRV2).get(size.partition("-")[0])
    if family == "dfine":
        size, _, data = size.partition("-")
        return {"": _DFINE, "obj2coco": _DFINE_OBJ2COCO, "obj365": _DFINE_OBJ365}[data].get(size)
    if family == "deimv2":
        return _DEIMV2.get(size)
    if family == "rtdetrv4":
        return _DEIM.get(size)
    if family == "rtdetrv2":
        return _RTDETRV2.get(size.partition("-")[0])
    return _RTDETR.get(size.removesuffix("-obj2coco")) if family == "rtdetr" else None


def common_settings(preset: str, lr: float | None = None) -> Defaults:
    """Return the settings of a preset in both recipes.

    Args:
        preset: its name.
        lr: learning rate of the run, which that of the backbone follows; None for the published one.
    """
    is_deim = preset.startswith(("deim-", "deimv2-", "rtdetrv4-"))
    settings = dict(COMMON)
    if _is_lite(preset):
        settings["match_union"] = (False, "boxes of a layer are trained on its own matches, as published")
        settings |= {
            "fgl_loss_coef": (0.0, "no losses of edge distributions, as published"),
            "ddf_loss_coef": (0.0, ""),
        }
    if is_deim:
        settings["cls_loss"] = ("mal", "scores follow the IoU of the box (matchability-aware loss), as published")
    elif not preset.startswith("dfine-"):
        settings["box_noise"] = ("ordered_corners", "")
    training = published_training(preset)
    if training is not None:
        settings |= {
            "lr": (training.lr, _PUBLISHED),
            "backbone_lr": _backbone_lr(training, lr),
            "image_size": (training.image_size, _PUBLISHED),
            "weight_decay": (training.weight_decay, ""),
            "multi_scale": (training.multi_scale, ""),
        }
    return settings


def _backbone_lr(training: PublishedTraining, lr: float | None) -> tuple[float, str]:
    if lr is None or lr == training.lr:
        return training.backbone_lr, _PUBLISHED
    rate = training.backbone_lr * (lr / training.lr)
    return rate, f"scaled like lr {lr:g}: published are lr {training.lr:g} and backbone_lr {training.backbone_lr:g}"


def reference_settings(preset: str, lr: float | None = None) -> Defaults:
    """Return the settings of a preset in the recipe "reference", those of both recipes included.

    Args:
        preset: its name.
        lr: learning rate of the run, which that of the backbone follows; None for the published one.
    """
    training = published_training(preset)
    if training is None:
        return common_settings(preset)
    is_deim = preset.startswith(("deim-", "rtdetrv4-"))
    settings: dict[str, tuple[Any, str]] = {
        **common_settings(preset, lr),
        "epochs": (training.epochs, _PUBLISHED),
        "lr_scheduler": ("constant", _PUBLISHED),
        # at step t the factor is (t + 1) / warmup
        "warmup_steps": (max(0, training.warmup - 1), _PUBLISHED),
        "ema_decay": (0.9999, _PUBLISHED),
        "ema_warmup_steps": (_ema_warmup(preset), ""),
        "strong_aug_until": (
            training.until / training.epochs,
            f"{training.until} of {training.epochs} epochs, as published",
        ),
        "no_weight_decay": (training.no_weight_decay, "the published groups of parameters"),
    }
    if preset.startswith("deimv2-"):
        return {**settings, **_deimv2(preset, training)}
    return {**settings, **_deim(preset, training)} if is_deim else settings


def _ema_warmup(preset: str) -> int:
    if preset.startswith("dfine-") and preset.endswith("obj2coco"):
        return 1  # none: the decay is 0.63 after the first step, 0.99 after the fifth
    return 2000 if preset.startswith(("rtdetr-", "rtdetrv2-")) else 1000


def _deim(preset: str, training: PublishedTraining) -> Defaults:
    """Return the settings of DEIM: dense one-to-one matching by mosaic and MixUp, and a flat cosine schedule."""
    is_rtdetrv2 = preset.startswith("deim-rtdetrv2")
    flat = _DEIM_FIRST_EPOCHS + (training.epochs if is_rtdetrv2 else training.until) // 2
    settings: dict[str, tuple[Any, str]] = {
        "warmup": ("quadratic", ""),
        "mosaic": (0.5, "more objects per image (dense one-to-one matching), as published"),
        "mixup": (0.5, ""),
        "mosaic_until": (flat / training.epochs, f"{flat} of {training.epochs} epochs, as published"),
        "strong_aug_from": (_DEIM_FIRST_EPOCHS / training.epochs, ""),
    }
    if preset != "deim-dfine-n":
        settings["lr_scheduler"] = ("flat_cosine", _PUBLISHED)
        settings["flat_until"] = (flat / training.epochs, "")
    if _NORMS in training.no_weight_decay:
        settings["lr_factors"] = ({_BACKBONE_NORMS: 1.0}, "norms of the backbone have lr, as published")
    return settings


def _is_lite(preset: str) -> bool:
    """Return whether a preset is one of DEIMv2's three smallest."""
    return preset.startswith("deimv2-") and preset != "deimv2-n"


def _deimv2(preset: str, training: PublishedTraining) -> Defaults:
    """Return the settings of DEIMv2: those of DEIM with the authors' numbers, and matching by quality at the end."""
    is_lite, epochs = _is_lite(preset), training.epochs
    mosaic_until = epochs // 2 if is_lite else 78
    quality_from = 450 if is_lite else 136
    settings: dict[str, tuple[Any, str]] = {
        "warmup": ("quadratic", ""),
        "mosaic": (0.3 if preset == "deimv2-atto" else 0.5, "more objects per image, as published"),
        "mosaic_until": (mosaic_until / epochs, f"{mosaic_until} of {epochs} epochs, as published"),
        "strong_aug_from": (_DEIM_FIRST_EPOCHS / epochs, ""),
        "quality_matching_from": (quality_from / epochs, "matching by score and IoU late in training, as published"),
    }
    if not is_lite:
        return {**settings, "mixup": (0.5, "")}
    return {
        **settings,
        "lr_scheduler": ("flat_cosine", _PUBLISHED),
        "flat_until": (mosaic_until / epochs, ""),
        "cosine_until": (1 - _DEIMV2_NO_AUGMENTATION / epochs, ""),
    }
