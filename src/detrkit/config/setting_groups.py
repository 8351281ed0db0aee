"""Groups of training settings: fields with their types, ranges, defaults and descriptions, which are the help texts.

The defaults are the published ones. Importing this module does not import torch.
"""

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from detrkit.config.model import ModelConfig
from detrkit.errors import ConfigError, arg, did_you_mean

MAX_UNREADABLE = 0.01  # fraction of the images
Part = Literal["backbone", "neck", "encoder", "query_source", "decoder", "heads", "mask_head"]
PARTS: tuple[Part, ...] = get_args(Part)
BoxNoise = Literal["center_size", "corners", "ordered_corners"]
ClassLoss = Literal["default", "align", "ia_bce", "vfl", "mal"]  # classification loss
BOXES = "boxes"  # in `freeze`: every part but the mask head


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimizerConfig(_Group):
    """AdamW: learning rates, weight decay, gradient clipping and frozen parts."""

    lr: float = Field(default=1e-4, gt=0, description="learning rate; the backbone has backbone_lr")
    backbone_lr: float = Field(default=1e-5, ge=0, description="learning rate of the backbone; 0 freezes it")
    lr_overrides: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description=f"learning rates of other parts; 0 freezes one: {', '.join(PARTS)}"
    )
    offset_lr_factor: float = Field(
        default=1.0,
        ge=0,
        description="factor on the learning rate of deformable attention's sampling offsets and reference points",
    )
    freeze: Annotated[tuple[Literal[Part, "boxes"], ...], BeforeValidator(_as_list)] = Field(
        default=(), description="parts that are not trained; 'boxes' is every part but the mask head"
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="weight decay of AdamW")
    decay_norms: bool = Field(
        default=True, description="apply weight decay to norms, biases and queries too, as published"
    )
    no_weight_decay: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        default=(), description="parameters without weight decay: regular expressions found in their names"
    )
    lr_factors: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="factors on lr for parameters, by regular expressions found in their names; the result replaces the "
        "learning rate of their part",
    )
    clip_grad_norm: float = Field(default=0.1, ge=0, description="maximum norm of the gradient; 0 disables clipping")
    max_nonfinite_steps: int = Field(
        default=10, ge=1, description="consecutive steps with a non-finite loss or gradient after which the run fails"
    )

    @model_validator(mode="after")
    def _parts_exist(self) -> "OptimizerConfig":
        for name in self.lr_overrides:
            if name not in PARTS:
                raise ConfigError(f"{arg('lr_overrides')}: {name!r} is no part of a model; {did_you_mean(name, PARTS)}")
        return self

    @model_validator(mode="after")
    def _patterns_are_valid(self) -> "OptimizerConfig":
        for setting, patterns in (("no_weight_decay", self.no_weight_decay), ("lr_factors", self.lr_factors)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(
                        f"{arg(setting)}: {pattern!r} is not a regular expression ({error}); correct it."
                    ) from None
        return self

    def lr_of_parts(self) -> dict[Part, float]:
        """Learning rate of every part of the model; 0 for a frozen one."""
        rates: dict[Part, float] = dict.fromkeys(PARTS, self.lr)
        rates["backbone"] = self.backbone_lr
        for part in PARTS:
            rates[part] = self.lr_overrides.get(part, rates[part])
            if part in self.freeze or (BOXES in self.freeze and part != "mask_head"):
                rates[part] = 0.0
        return rates

    def trains_masks_only(self, model: ModelConfig) -> bool:
        """Return whether only the mask head is trained, as in the second of the paper's two stages (section 4.4)."""
        rates = self.lr_of_parts()
        return (
            model.mask_head and rates["mask_head"] > 0 and not any(rates[part] for part in PARTS if part != "mask_head")
        )


class ScheduleConfig(_Group):
    """Learning rate schedule."""

    lr_scheduler: Literal["step", "cosine", "flat_cosine", "constant"] = Field(
        default="step",
        description="'step' divides the learning rates by 10 once, 'cosine' lowers them to 0; 'flat_cosine' halves them "
        "between flat_until and cosine_until (DEIM)",
    )
    lr_drop: float = Field(
        default=2 / 3, gt=0, le=1, description="fraction of the run after which 'step' divides by 10"
    )
    flat_until: float = Field(
        default=0.5, ge=0, le=1, description="fraction of the run after which 'flat_cosine' lowers the learning rates"
    )
    cosine_until: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="fraction of the run after which 'flat_cosine' has halved the learning rates; null: strong_aug_until",
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps of warm-up from 0")
    warmup: Literal["linear", "quadratic"] = Field(default="linear", description="course of the warm-up")
    warmup_until: float = Field(
        default=1.0, gt=0, le=1, description="fraction of the run after which the warm-up ends at the latest"
    )
    drop_path_schedule: Literal["constant", "early", "early_linear", "late"] = Field(
        default="constant",
        description="when a ViT has its stochastic depth, drop_path: 'early' until drop_path_cutoff, 'early_linear' "
        "falling to 0 there, 'late' from there on (LW-DETR)",
    )
    drop_path_cutoff: float = Field(
        default=0.5, ge=0, le=1, description="fraction of the run at which drop_path_schedule ends or begins"
    )


class EMAConfig(_Group):
    """Exponential moving average of the weights."""

    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the exponential moving average of the weights, which is evaluated and saved; 0 disables it",
    )
    ema_warmup_steps: int = Field(
        default=0,
        ge=0,
        description="W: after n steps the decay is ema_decay * (1 - exp(-n / W)), and statistics of batch norm are "
        "averaged, too (RT-DETR, D-FINE); 0: at most (1 + n) / (10 + n)",
    )


class AugmentationConfig(_Group):
    """Random transforms of training images."""

    augment: bool = Field(default=True, description="flip, crop and resize training images at random")
    train_scale: float = Field(
        default=1.0,
        gt=0,
        le=4,
        description="factor on the training sizes, which are 0.6 to 1 times the image size in the paper (detrkit-...: "
        "1.25, which centres them on the evaluation size)",
    )
    horizontal_flip: float = Field(
        default=0.5, ge=0, le=1, description="probability of a horizontal flip; 0 if orientation matters (text)"
    )
    vertical_flip: float = Field(
        default=0.0, ge=0, le=1, description="probability of a vertical flip, for images without an up direction"
    )
    rotate90: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability that a batch is rotated by 90 degrees, for images without an up direction",
    )
    crop: float = Field(default=0.5, ge=0, le=1, description="probability of a random crop, which is then resized")
    photometric: float = Field(default=0.0, ge=0, le=1, description="probability of brightness and colour changes")
    scale_jitter: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of large-scale jitter (0.1 to 2) instead of the paper's resizing",
    )
    mosaic: float = Field(default=0.0, ge=0, le=1, description="probability of a mosaic of four images")
    mixup: float = Field(default=0.0, ge=0, le=1, description="probability of blending with another image")
    zoom_out: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of placing the image on a black canvas of up to 4 times its sides",
    )
    iou_crop: float = Field(
        default=0.0, ge=0, le=1, description="probability of a crop with a minimum IoU with an object (SSD)"
    )
    multi_scale: int = Field(
        default=0,
        ge=0,
        le=100,
        description="resize each batch to 0.75 to 1.25 times its size at random, in steps of 32 pixels (ViTs: 3 smaller "
        "and 4 larger multiples of patches x windows); the size itself is drawn so many times as often as any other "
        "(RT-DETR: 3); 0 disables it",
    )
    mosaic_until: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="fraction of the run after which mosaic and mixup are off, if it is earlier",
    )
    strong_aug_from: float = Field(
        default=0.0, ge=0, le=1, description="fraction of the run before which there is no strong augmentation"
    )
    strong_aug_until: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="fraction of the run after which photometric, scale_jitter, mosaic, mixup, zoom_out, iou_crop and "
        "multi_scale are off",
    )


class LossConfig(_Group):
    """Loss coefficients, from which the matching costs follow."""

    cls_loss_coef: float = Field(
        default=1.0,
        ge=0,
        description="weight of the classification loss and matching cost; with vfl and mal, the cost is twice as high",
    )
    bbox_loss_coef: float = Field(default=5.0, ge=0, description="weight of the L1 box loss and matching cost")
    giou_loss_coef: float = Field(default=2.0, ge=0, description="weight of the GIoU loss and matching cost")
    mask_loss_coef: float = Field(
        default=1.0,
        ge=0,
        description="weight of the focal loss of masks; of mixed queries (RF-DETR), of their binary cross-entropy at "
        "points, and of that as a matching cost",
    )
    dice_loss_coef: float = Field(
        default=1.0, ge=0, description="weight of the dice loss of masks; of mixed queries, also of this matching cost"
    )
    eos_coef: float = Field(default=0.1, gt=0, description="weight of the no-object class in the cross-entropy")
    cls_loss: ClassLoss = Field(
        default="default",
        description="classification loss; 'default' is cross-entropy of softmax and focal loss of sigmoid scores; for "
        "sigmoid scores also, with targets that follow the box's IoU, 'align' (Align-DETR), 'ia_bce' (the same with the "
        "weights of LW-DETR and RF-DETR), 'vfl' (varifocal, RT-DETR) and 'mal' (matchability-aware, DEIM)",
    )
    fgl_loss_coef: float = Field(
        default=0.15, ge=0, description="weight of the fine-grained localization loss of edge distributions (D-FINE)"
    )
    ddf_loss_coef: float = Field(
        default=1.5, ge=0, description="weight of the distillation of edge distributions by the last layer (D-FINE)"
    )
    match_union: bool = Field(
        default=True,
        description="fine_grained decoder: boxes of all layers are trained on the union of their matches (D-FINE); "
        "false: on each layer's own (DEIMv2-Atto to -Pico)",
    )
    quality_matching_from: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="fraction of the run from which sigmoid scores and boxes are matched by score * IoU^4 alone (DEIMv2)",
    )
    look_forward_twice: bool = Field(
        default=False,
        description="gradients of refined boxes also reach the layer before (DINO); for models with_box_refine",
    )


class AuxiliaryQueriesConfig(_Group):
    """Training-only queries."""

    denoising: int = Field(
        default=0, ge=0, le=100, description="noised copies of the ground truth per image (DN-DETR); 0 disables them"
    )
    denoising_queries: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="noised objects per image, instead of a number of copies: as many copies as fit for the image with the "
        "most objects of a batch, at least one (DINO, RT-DETR: 100); 0 disables them",
    )
    contrastive_denoising: bool = Field(
        default=False, description="each copy also holds negatives with more noise (DINO)"
    )
    box_noise: BoxNoise = Field(
        default="center_size",
        description="what the noise of denoising boxes moves: center and size (DN-DETR), or two corners; where these pass "
        "each other, the box keeps the size between them with 'corners' (D-FINE, DEIM), and has none with "
        "'ordered_corners' (DINO, RT-DETR)",
    )
    box_noise_scale: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="noise of denoising boxes: centers, or corners, move by up to this fraction of half a side; sides "
        "change by it",
    )
    label_noise_ratio: float = Field(
        default=0.2, ge=0, le=1, description="fraction of denoising labels drawn at random"
    )
    query_groups: int = Field(
        default=1, ge=1, le=50, description="groups of queries, each matched separately; one is kept (Group DETR)"
    )
    hybrid_queries: int = Field(
        default=0, ge=0, le=10_000, description="one-to-many matched queries (H-DETR); 0 disables them"
    )
    hybrid_repeats: int = Field(default=6, ge=2, le=100, description="matches per object among the hybrid queries")

    @property
    def has_denoising(self) -> bool:
        """True if objects are noised: a number of copies, or copies for a number of queries."""
        return self.denoising > 0 or self.denoising_queries > 0

    def num_copies(self, max_objects: int) -> int:
        """Number of noised copies in a batch whose images have at most so many objects."""
        return self.denoising or max(1, self.denoising_queries // max_objects if max_objects else 1)


class EvaluationConfig(_Group):
    """Evaluation on the validation split while training."""

    evaluate_every: int | None = Field(
        default=1,
        ge=1,
        description="epochs between evaluations; null: about 20 evaluations, at most 10 % of a time limit",
    )
    patience: int = Field(
        default=0, ge=0, description="evaluations without a better score after which the run ends; 0 disables it"
    )


class LoadingConfig(_Group):
    """Data loading."""

    workers: int = Field(default=2, ge=0, description="processes that load images; 0 loads in the training process")
    max_unreadable: float = Field(
        default=MAX_UNREADABLE, ge=0, le=1, description="fraction of images that may be unreadable before the run fails"
    )
    group_by_aspect_ratio: bool = Field(
        default=True,
        description="batch portrait and landscape images separately, with one crop and size per batch: less padding; "
        "false: as published",
    )


class HardwareConfig(_Group):
    """Devices, precision and memory."""

    device: str = Field(default="auto", description="'cpu', 'cuda', 'cuda:1', ...; 'auto' uses a GPU if there is one")
    devices: int = Field(default=1, ge=1, description="training processes on this machine, one per GPU, or on the CPU")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="autocast precision of the model; matching and losses are float32"
    )
    compile: bool = Field(
        default=False, description="compile the model on a GPU: minutes at the start, faster steps afterwards"
    )
    activation_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, a third slower"
    )
