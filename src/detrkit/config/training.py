"""How a model is trained, as one typed value. Light: reading it does not wait for torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_UNREADABLE = 0.01  # share of the photos


class TrainingConfig(BaseModel):
    """Everything that decides a run, apart from the data and the model. The defaults are the published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=300, ge=1, description="times that every photo is seen")
    steps: int | None = Field(default=None, ge=1, description="updates after which the run ends, in place of epochs")
    batch_size: int = Field(default=2, ge=1, description="photos per batch, of each process")
    gradient_accumulation: int = Field(default=1, ge=1, description="batches per update")
    lr: float = Field(default=1e-4, gt=0, description="of everything but the backbone")
    backbone_lr: float = Field(default=1e-5, ge=0, description="of the backbone; 0 freezes it")
    lr_overrides: str = Field(default="", description="other learning rates, PART=RATE,PART=RATE; parts as in --freeze")
    offset_lr_factor: float = Field(
        default=1.0,
        ge=0,
        description="times the rate, for what says where deformable attention looks: offsets and reference points",
    )
    freeze: str = Field(
        default="",
        description="parts that are not trained, with commas: backbone, input_projection, positions, encoder, queries, "
        "decoder, heads, panoptic; or 'boxes': all but the mask head, panoptic",
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="AdamW's")
    decay_norms: bool = Field(default=True, description="weight decay of norms, biases and queries too, as published")
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="of a running average of the weights, which is evaluated and saved; 0: none",
    )
    clip_grad_norm: float = Field(default=0.1, ge=0, description="largest norm of the gradient; 0 does not clip")
    schedule: Literal["step", "cosine"] = Field(default="step", description="how the rates fall")
    lr_drop: float = Field(default=2 / 3, gt=0, le=1, description="share of the run after which 'step' divides by 10")
    warmup_steps: int = Field(default=0, ge=0, description="steps in which the rates rise from 0")
    image_size: int = Field(
        default=800,
        ge=32,
        le=10_000,
        description="shorter side of photos in tests, pixels; training sizes follow (detrkit-...: 320, detr-tiny: 256)",
    )
    train_scale: float = Field(
        default=1.0,
        gt=0,
        le=4,
        description="factor of training sizes, in the paper 0.6 to 1 times the image size (detrkit-...: 1.25, which puts "
        "tests into the middle)",
    )
    augment: bool = Field(default=True, description="flip, crop and resize at random while training")
    horizontal_flip: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of photos mirrored left to right; 0 where it matters, as for letters",
    )
    vertical_flip: float = Field(
        default=0.0, ge=0, le=1, description="share of photos mirrored top to bottom: for those without an up"
    )
    rotate90: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of batches turned by 90 degrees: for photos without an up; with --vertical-flip, all eight ways",
    )
    crop: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of photos of which a part is cut out and enlarged",
    )
    photometric: float = Field(default=0.0, ge=0, le=1, description="share of photos with other colours and brightness")
    scale_jitter: float = Field(
        default=0.0, ge=0, le=1, description="share of photos resized by 0.1 to 2, in place of the paper's resizing"
    )
    mosaic: float = Field(default=0.0, ge=0, le=1, description="share of samples put together from four photos")
    mixup: float = Field(default=0.0, ge=0, le=1, description="share of samples blended with another photo")
    strong_aug_until: float = Field(
        default=0.9, ge=0, le=1, description="share of the run after which the last four are off"
    )
    group_by_aspect_ratio: bool = Field(
        default=True,
        description="batches of tall or of wide photos, cut and resized alike: less padding; false: as published",
    )
    train_on_val: bool = Field(
        default=False,
        description="learn from the validation photos, too, once all else is chosen; the last checkpoint is kept",
    )
    overfit: int = Field(default=0, ge=0, description="train and evaluate on the first N photos, unaugmented; 0: all")
    cls_loss_coef: float = Field(default=1.0, ge=0, description="of the class, in the loss and in the matching")
    bbox_loss_coef: float = Field(
        default=5.0, ge=0, description="of the L1 distance of boxes, in the loss and the matching"
    )
    giou_loss_coef: float = Field(default=2.0, ge=0, description="of the generalised IoU, in the loss and the matching")
    mask_loss_coef: float = Field(default=1.0, ge=0, description="of the focal loss of masks")
    dice_loss_coef: float = Field(default=1.0, ge=0, description="of the dice loss of masks")
    eos_coef: float = Field(default=0.1, gt=0, description="weight of no-object in the class loss")
    denoising: int = Field(
        default=0,
        ge=0,
        le=100,
        description="noised copies of the objects that extra queries learn to mend (DN-DETR); 0: none",
    )
    contrastive_denoising: bool = Field(
        default=False, description="each copy holds worse boxes, too, which extra queries learn to refuse (DINO)"
    )
    box_noise_scale: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="of the copies: share of half a side by which centres move, of a side it grows",
    )
    label_noise_ratio: float = Field(default=0.2, ge=0, le=1, description="of the copies: share of labels drawn anew")
    query_groups: int = Field(
        default=1, ge=1, le=50, description="groups of queries, each matched for itself; one is kept (Group DETR)"
    )
    hybrid_queries: int = Field(
        default=0, ge=0, le=10_000, description="extra queries among which every object has several (H-DETR); 0: none"
    )
    hybrid_repeats: int = Field(default=6, ge=2, le=100, description="of each object, for the hybrid queries")
    look_forward_twice: bool = Field(
        default=False, description="refined boxes also teach the layer before (DINO); models that refine boxes"
    )
    iou_aware: bool = Field(
        default=False, description="scores learn how well the box fits (Align-DETR); models with sigmoid scores"
    )
    padding_invariant: bool = Field(default=True, description="keep padding out of the backbone; false: as published")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the model; matching and losses are float32"
    )
    compile: bool = Field(
        default=False, description="compile the model, on a GPU: minutes at the start, quicker steps after"
    )
    activation_checkpointing: bool = Field(
        default=False, description="compute activations again for the gradient: less memory, a third slower"
    )
    max_nonfinite_steps: int = Field(
        default=10, ge=1, description="steps in a row that may not be finite; more stop the run"
    )
    patience: int = Field(default=0, ge=0, description="evaluations without a better AP before the run ends; 0: never")
    evaluate_every: int = Field(default=1, ge=1, description="epochs between evaluations")
    log_every: int = Field(default=10, ge=1, description="steps between readings of the losses")
    max_unreadable: float = Field(
        default=MAX_UNREADABLE, ge=0, le=1, description="share of photos that may be unreadable; more stop the run"
    )
    workers: int = Field(default=2, ge=0, description="processes that read photos; 0 reads in this one")
    devices: int = Field(default=1, ge=1, description="processes that train together, one per GPU or on the CPU")
    device: str = Field(default="auto", description="'cpu', 'cuda', 'cuda:1', ...; 'auto' takes a GPU if there is one")
    seed: int = Field(default=42, ge=0, le=2**63 - 1, description="of weights, order and augmentation")
